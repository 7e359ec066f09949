"""A batch of examples on the devices: the per-example Fisher mapped, sharded, compiled once, and brought to the host.

The form of the mapping is the one that gives right gradients for every architecture: `shard_map` over the examples'
axis, with the check of varying axes off (with it, gradients of replicated parameters are summed over devices), and
not automatic partitioning (which corrupts kernel gradients of convolutions).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from npeff_jax._sharding import EXAMPLES, pad_rows, round_up, sharded
from npeff_jax._types import Examples
from npeff_jax.models import Model
from npeff_jax.pefs._rows import ExampleRows, HostRows, example_key, example_rows
from npeff_jax.pefs.representations import Representation


class BatchRows:
    """``example_rows`` of a batch at a time, padded to one size so that it is compiled once.

    Where classes are dropped, once for each power of two of rows that the batches need.
    """

    def __init__(self, model: Model, representation: Representation, mesh: Mesh, batch_size: int, precision: str):
        """For batches of ``batch_size`` rounded up to the devices along the examples' axis of ``mesh``."""
        self.mesh, self.precision = mesh, precision
        self.batch_size = round_up(batch_size, mesh.shape[EXAMPLES])
        self._params = _place(model.params, mesh)
        self._seed = jax.device_put(np.uint32(representation.seed), NamedSharding(mesh, PartitionSpec()))

        def rows(room: int | None, params: Any, seed: Any, example: Any, index: Any, label: Any) -> ExampleRows:
            most = representation.n_rows(model.output, model.n_classes(example))
            most, key = most if room is None else min(most, room), example_key(seed, index)
            return example_rows(model, representation, model.space.select(params), params, example, key, label, most)

        def count(params: Any, seed: Any, example: Any, index: Any, label: Any) -> jax.Array | None:
            logits = model.logits_fn(params, example).astype(jnp.float32)
            return representation.rows_needed(model.output, logits)

        self._rows = jax.jit(lambda room, *args: self._mapped(functools.partial(rows, room))(*args), static_argnums=0)
        self._count = jax.jit(self._mapped(count))
        self._n_classes, self._needed = model.n_classes, functools.partial(representation.rows_needed, model.output)
        self._counts: bool | None = None  # whether examples need different numbers of rows: known once one is seen

    def __call__(self, examples: Examples, start: int, labels: np.ndarray | None = None) -> ExampleRows:
        """Return the rows of ``examples``, the first of which is number ``start``, on the devices, padded.

        ``labels`` are those of the examples; they are -1 for the representation without them.
        """
        split = sharded(self.mesh, EXAMPLES)
        size = self.batch_size
        batch = jax.tree.map(lambda leaf: jax.device_put(pad_rows(leaf, size), split), examples)
        index = jax.device_put(np.arange(start, start + size, dtype=np.int32), split)
        n = len(jax.tree.leaves(examples)[0])
        given = np.full(n, -1, np.int32) if labels is None else labels.astype(np.int32)
        # Where jit is switched off to look into logits_fn, a sharded program still has to be one.
        with jax.default_matmul_precision(self.precision), jax.disable_jit(False):
            arguments = (self._params, self._seed, batch, index, jax.device_put(pad_rows(given, size), split))
            room = None
            if self._counts is None:
                logits = jax.ShapeDtypeStruct(
                    (self._n_classes(jax.tree.map(lambda leaf: leaf[0], examples)),), jnp.float32
                )
                self._counts = jax.eval_shape(self._needed, logits) is not None
            if self._counts:
                needed = int(np.max(np.asarray(self._count(*arguments))))
                room = 1 << (needed - 1).bit_length()
            return self._rows(room, *arguments)

    def _mapped(self, of_one: Callable[..., Any]) -> Callable[..., Any]:
        """``of_one`` for parameters, seed, a batch of examples, their numbers and their labels."""
        each, batched = PartitionSpec(EXAMPLES), jax.vmap(of_one, (None, None, 0, 0, 0))
        if self.mesh.size == 1:  # nothing to split, and a cache of JAX would keep what it maps
            return batched
        return jax.shard_map(
            batched,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), each, each, each),
            out_specs=PartitionSpec(EXAMPLES),
            axis_names={EXAMPLES},
            check_vma=False,
        )


def on_host(batch: ExampleRows, size: int) -> Iterator[HostRows]:
    """The first ``size`` examples of a batch as NumPy, without a copy where the devices share the host's memory."""
    blocks = [[_parts(leaf) for leaf in block] for block in batch.blocks]
    rest = jax.tree.map(np.asarray, batch[1:])
    for i in range(size):
        own = tuple(tuple(_pick(parts, i) for parts in block) for block in blocks)
        yield HostRows(own, *jax.tree.map(lambda field, i=i: field[i], rest))


def _parts(array: jax.Array) -> list[np.ndarray]:
    """An array split by device along its first axis, in order."""
    shape = array.sharding.shard_shape(array.shape)
    if shape[1:] != array.shape[1:]:  # also split over another axis of the mesh: put it together
        return [np.asarray(array)]
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return [np.asarray(shards[start]) for start in sorted(shards)]


def _pick(parts: list[np.ndarray], i: int) -> np.ndarray:
    size = parts[0].shape[0]
    leaf = parts[i // size][i % size]
    return leaf.reshape(leaf.shape[0], -1)


def _place(params: Any, mesh: Mesh) -> Any:
    """Parameters on every device of the mesh, except those that the caller has sharded over it."""

    def place(leaf: Any) -> Any:
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding) and own.device_set == set(mesh.devices.flat) and not own.is_fully_replicated:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(place, params)
