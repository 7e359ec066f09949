"""The exact kernel of a model by backward passes, without sparsifying or storing rows.

The rows of example i are L_iᵀ J_i (section 2.1). Their Gram matrix Q is accumulated block by block. Afterwards G = U A
is one backward pass per component and batch, of Σ_i ⟨cotangent_i, logits_i⟩ with the cotangents held constant.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from npeff_jax._checks import check_integer, check_precision, normalise
from npeff_jax._examples import count_examples, slice_examples, take_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._sharding import SHARDS, pad_rows, place, replicate, round_up, sharded
from npeff_jax._types import Examples
from npeff_jax.factorization.row_spaces._kernel import KernelSpace, Recover, made_by_host
from npeff_jax.factorization.row_spaces._model_gram import GramOnDevices, GramOnHost
from npeff_jax.models import Model, check_model
from npeff_jax.pefs import pull_back, scaled_cotangents


@dataclasses.dataclass(frozen=True, eq=False)
class ModelRows:
    """The exact rows of a model, to pass to `decompose` instead of PEFs. Nothing is sparsified.

    Attributes:
        model: the model.
        examples: the n examples.
        batch_size: examples per backward pass.
        block_bytes: memory for dense rows, in bytes. If all n (C−1) m entries fit, one pass over the examples suffices;
            otherwise rows are computed again for every block. Vectors are recovered in blocks of this size, of which a
            device holds three at a time.
        precision: precision of the matrix products in the forward and backward passes.
    """

    model: Model
    examples: Examples
    batch_size: int = 32
    block_bytes: int = 1 << 30
    precision: str = "highest"

    def __post_init__(self) -> None:
        check_model(self.model)
        check_precision(self.precision)
        normalise(
            self,
            examples=take_examples(self.examples),
            batch_size=check_integer("batch_size", self.batch_size),
            block_bytes=check_integer("block_bytes", self.block_bytes),
        )

    @property
    def n_examples(self) -> int:
        """n, the number of examples."""
        return count_examples(self.examples)

    @functools.cached_property
    def n_classes(self) -> int:
        """C."""
        return self.model.n_classes(jax.tree.map(lambda leaf: leaf[0], slice_examples(self.examples, slice(0, 1))))

    @functools.cached_property
    def rows_per_example(self) -> int:
        """The rank of the output family's Fisher, C−1 for classes."""
        logits = jax.ShapeDtypeStruct((self.n_classes,), jnp.float32)
        return jax.eval_shape(self.model.output.factor, logits).shape[0]


def model_rows(model: Model, examples: Examples, **options: Any) -> ModelRows:
    """Make the rows of a model, to decompose without computing and storing PEFs first.

    Args:
        model: the model.
        examples: a pytree with a leading axis, or a sized source.
        **options: further fields of `ModelRows`.

    Raises:
        ValueError: no examples, or logits that are not a vector.
    """
    rows = ModelRows(model, examples, **options)
    if rows.n_examples == 0:
        raise ValueError("there are no examples; pass at least one")
    _ = rows.n_classes
    return rows


def kernel_of_model(source: ModelRows, mesh: Mesh, progress: Progress) -> tuple[KernelSpace, np.ndarray]:
    """Compute the exact kernel of the normalised rows, and the norm of each example's Fisher in the same units.

    Args:
        source: the model and its examples.
        mesh: one axis, `SHARDS`.
        progress: as for `decompose`.
    """
    passes = _Passes(source, mesh)
    n, c = source.n_examples, source.rows_per_example
    per_block = max(source.block_bytes // (4 * c * source.model.space.size) // passes.size, 1) * passes.size
    Q = (GramOnHost if made_by_host(mesh) else GramOnDevices)(n * c, mesh)
    with progress_bar(progress, "kernel", n * -(-n // per_block), "example") as advance:
        for outer in range(0, n, per_block):
            held = [passes.rows(first) for first in range(outer, min(outer + per_block, n), passes.size)]
            for inner in range(outer, n, passes.size):  # Q is symmetric: earlier batches are done
                # rows within the block are in memory; others are computed again
                at = (inner - outer) // passes.size
                here = held[at] if at < len(held) else passes.rows(inner)
                for k, block in enumerate(held):
                    Q.set(_gram(block, here), (outer + k * passes.size) * c, inner * c)
            advance(min(per_block, n - outer))
    norms = np.sqrt((Q.diagonal_blocks(c).astype(np.float64) ** 2).sum(axis=(1, 2)))
    scale = np.repeat(np.where(norms > 0, norms, 1) ** -0.5, c).astype(np.float32)
    recover = Recover(lambda U: passes.pull(U * scale), np.zeros((0, source.model.space.size), np.float32))
    return KernelSpace(Q.scaled(scale), mesh, n * c, recover), norms


@jax.jit
def _gram(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> jax.Array:
    """Return inner products between the rows of two batches, (a c, b c), accumulated over parameter leaves."""
    pairs = zip(left, right, strict=True)
    grams = [jnp.einsum("acp,bdp->acbd", x, y, precision=jax.lax.Precision.HIGHEST) for x, y in pairs]
    (a, c), (b, d) = left[0].shape[:2], right[0].shape[:2]
    return sum(grams[1:], grams[0]).reshape(a * c, b * d)


_Sums = tuple[tuple[jax.Array, jax.Array], ...]
"""Per explained leaf, a float32 sum (r, leaf size) and its accumulated rounding error."""


def _added(total: jax.Array, lost: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add ``part`` to a compensated float32 sum, about as accurate as float64; ``lost`` is the rounding error."""
    new = total + part
    taken = new - total
    return new, lost + ((total - (new - taken)) + (part - taken))


class _Passes:
    """Compiled passes over a batch of a model's examples, one shard of the batch per device."""

    def __init__(self, source: ModelRows, mesh: Mesh):
        model, self.source, self.mesh = source.model, source, mesh
        self.size = round_up(min(source.batch_size, source.n_examples), mesh.size)
        self.split = sharded(mesh, SHARDS)

        def rows_of_one(params: Any, example: Any) -> tuple[jax.Array, ...]:
            leaves = pull_back(model, model.space.select(params), params, example).leaves
            return tuple(leaf.reshape(leaf.shape[0], -1) for leaf in leaves)

        def pull_batch(params: Any, examples: Any, U: jax.Array, sums: _Sums) -> _Sums:
            def logits_of(selected: tuple[Any, ...]) -> jax.Array:
                return jax.vmap(lambda example: model.selected_logits(selected, params, example))(examples)

            # One backward pass for the whole batch, which never forms rows.
            logits, back_to_leaves = jax.vjp(logits_of, model.space.select(params))
            rows, _ = jax.vmap(lambda one: scaled_cotangents(model.output.factor(one)))(logits.astype(jnp.float32))
            cotangents = jnp.einsum("rbk,bkc->rbc", U, rows, precision=jax.lax.Precision.HIGHEST)
            (leaves,) = jax.vmap(back_to_leaves)(cotangents.astype(logits.dtype))
            parts = [jax.lax.psum(leaf.reshape(leaf.shape[0], -1).astype(jnp.float32), SHARDS) for leaf in leaves]
            return tuple(_added(*so_far, part) for so_far, part in zip(sums, parts, strict=True))

        # shard_map, because automatic partitioning gives wrong per-example gradients for some architectures.
        mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
        self._rows = jax.jit(mapped(jax.vmap(rows_of_one, (None, 0)), in_specs=(P(), P(SHARDS)), out_specs=P(SHARDS)))
        specs = (P(), P(SHARDS), P(None, SHARDS), P())
        self._pull = jax.jit(mapped(pull_batch, in_specs=specs, out_specs=P()), donate_argnums=3)

    def rows(self, first: int) -> tuple[jax.Array, ...]:
        """Compute the rows of a batch, (b, c, leaf size) for each explained leaf."""
        with jax.default_matmul_precision(self.source.precision):
            return self._rows(self.source.model.params, self._batch(first))

    def pull(self, U: np.ndarray) -> np.ndarray:
        """Return U A (r, m) for U (r, N), for as many components at a time as fit in `ModelRows.block_bytes`."""
        m = self.source.model.space.size
        size = max(1, self.source.block_bytes // (4 * m))
        parts = [self._pull_some(U[first : first + size]) for first in range(0, len(U), size)]
        return np.concatenate(parts) if parts else np.zeros((0, m), np.float32)

    def _pull_some(self, U: np.ndarray) -> np.ndarray:
        """Return U A for some components, summed over batches on the devices."""
        n, c = self.source.n_examples, self.source.rows_per_example
        model = self.source.model
        nothing = [np.zeros((U.shape[0], np.size(leaf)), np.float32) for leaf in model.space.select(model.params)]
        sums = tuple((replicate(zeros, self.mesh), replicate(zeros, self.mesh)) for zeros in nothing)
        for first in range(0, n, self.size):
            weights = np.zeros((U.shape[0], self.size, c), np.float32)  # zero for the padding of the last batch
            part = U[:, first * c : (first + self.size) * c].reshape(U.shape[0], -1, c)
            weights[:, : part.shape[1]] = part
            with jax.default_matmul_precision(self.source.precision):
                sums = self._pull(model.params, self._batch(first), weights, sums)
        return np.concatenate([np.asarray(total + lost) for total, lost in sums], axis=1)

    def _batch(self, first: int) -> Any:
        batch = slice_examples(self.source.examples, slice(first, min(first + self.size, self.source.n_examples)))
        return jax.tree.map(lambda leaf: place(pad_rows(leaf, self.size), self.split), batch)
