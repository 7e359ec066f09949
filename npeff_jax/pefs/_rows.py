"""One example's Fisher as rows: vectors on the logits pulled back through the model (section 2.1).

F = Σ_j p_j ∇log p_j ∇log p_jᵀ = Jᵀ S J with J the (C, m) Jacobian of the logits and S = L Lᵀ, so the rows of Lᵀ J are a
factor of F. Everything here is pure and of one example; the driver maps it over batches and devices.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._types import Cotangents, Example, Logits, PyTree
from npeff_jax.models import Model
from npeff_jax.pefs._cotangents import cotangents, scaled_cotangents, uses_sketch
from npeff_jax.pefs._representation import Diagonal, LowRank, Representation, RowBasis
from npeff_jax.pefs._sketch import sketched_cotangents

Leaves = tuple[Float[Array, "c ..."], ...]
"""Rows in parts: for each explained leaf, its part of all c rows."""

Blocks = tuple[tuple[Float[Array, "_ ..."], ...], ...]
"""Rows as they come from the gradient, some at a time. Stacked they would be copied: 29 ms an example in place of 20
for two rows of a small BERT."""

UNROLLED = 8
"""Rows that are pulled back one after the other in the compiled program. Mapped over, the products behind them come out
in another order and are copied: 26 ms an example against 17 for two rows of a small BERT. More rows would take long to
compile."""


class HostRows(NamedTuple):
    """`ExampleRows` as NumPy, each leaf of a block as (rows, size)."""

    blocks: tuple[tuple[np.ndarray, ...], ...]
    gram: np.ndarray
    leaf_norms: np.ndarray
    scale: np.ndarray
    trace: np.ndarray
    n_rows: np.ndarray
    logits: np.ndarray
    lost_mass: np.ndarray
    lost_trace: np.ndarray


class ExampleRows(NamedTuple):
    """A Fisher before anything is dropped: F = scale² Σ_j a_j a_jᵀ, or, diagonal, f = scale² a_1.

    Attributes:
        blocks: the rows a_1..a_c, some at a time.
        gram: (c, c), their inner products.
        leaf_norms: squared norm of each leaf's part: not finite where a gradient is not.
        scale: what the rows were divided by, so that no product of them underflows.
        trace: of F, divided by scale².
        n_rows: how many rows, from the first, represent the example.
        logits: of the example.
        lost_mass: probability of the classes that have no row.
        lost_trace: estimated trace lost with them, as a fraction of the whole.
    """

    blocks: Blocks
    gram: Float[Array, "c c"]
    leaf_norms: Float[Array, "leaves"]
    scale: Float[Array, ""]
    trace: Float[Array, ""]
    n_rows: Int[Array, ""]
    logits: Float[Array, "C"]
    lost_mass: Float[Array, ""]
    lost_trace: Float[Array, ""]

    @property
    def leaves(self) -> Leaves:
        """The rows a_1..a_c, in parts, (c, ...) each, one an explained leaf."""
        return tuple(jnp.concatenate(parts) for parts in zip(*self.blocks, strict=True))


def example_rows(
    model: Model,
    representation: Representation,
    selected: tuple[jax.Array, ...],
    params: PyTree,
    example: Example,
    key: jax.Array,
    most: int,
) -> ExampleRows:
    """The rows of one example as gradients give them.

    Args:
        model: its parameters are not looked at: as arguments they are not compiled in as constants.
        representation: which rows.
        selected: the explained parameters.
        params: all of them.
        example: without a batch axis.
        key: the example's own.
        most: how many rows there is room for.
    """
    logits, push = jax.linearize(lambda leaves: model.selected_logits(leaves, params, example), selected)
    back_to_leaves = jax.linear_transpose(push, selected)

    def pull(row: jax.Array) -> tuple[jax.Array, ...]:
        return back_to_leaves(row.astype(logits.dtype))[0]

    if isinstance(representation, LowRank) and uses_sketch(model.output, representation, logits.size):
        back = sketched_cotangents(model.output, representation, logits.astype(jnp.float32), pull, push, key)
    else:
        back = cotangents(model.output, representation, logits.astype(jnp.float32), key, most)
    blocks = pulled(pull, back.rows)
    lost = jnp.zeros(()) if back.probe is None else _squared_norm(pulled(pull, back.probe[None]))
    n_rows = back.n_rows
    if isinstance(representation, Diagonal):
        squares = [[jnp.sum(leaf**2, axis=0, keepdims=True) for leaf in block] for block in blocks]
        blocks = (tuple(functools.reduce(jnp.add, parts) for parts in zip(*squares, strict=True)),)
        n_rows = jnp.asarray(1)
    gram, leaf_norms = gram_of(blocks)
    total = functools.reduce(jnp.add, [jnp.sum(leaf) for leaf in blocks[0]])
    trace = total if isinstance(representation, Diagonal) else jnp.trace(gram)
    if isinstance(representation, LowRank) and representation.rows is RowBasis.PRINCIPAL:
        n_rows = jnp.minimum(n_rows, jax.eval_shape(model.output.factor, logits).shape[0])
    lost_trace = lost / jnp.where(lost > 0, lost + trace, 1.0)
    return ExampleRows(blocks, gram, leaf_norms, back.scale, trace, n_rows, logits, back.lost_mass, lost_trace)


class PulledRows(NamedTuple):
    """Gradient rows of one example, divided by a common scale so that no product of two of them underflows.

    Attributes:
        blocks: the rows, some at a time, each explained leaf's part (b, ...) in float32; see `leaves`.
        scale: what they were divided by: the rows are ``scale * leaf``, and their Fisher ``scale**2`` times that of
            what is here.
        logits: of the example.
    """

    blocks: Blocks
    scale: Float[Array, ""]
    logits: Float[Array, "C"]

    @property
    def leaves(self) -> Leaves:
        """For each explained leaf, its part of all rows, (c, ...)."""
        return tuple(jnp.concatenate(parts) for parts in zip(*self.blocks, strict=True))


def pull_back(
    model: Model,
    selected: tuple[jax.Array, ...],
    params: PyTree,
    example: Example,
    cotangents: Callable[[Logits], Cotangents] | None = None,
) -> PulledRows:
    """Pull cotangents on one example's logits back to gradient rows: Lᵀ J, in float32 (section 2.1).

    Pure, to be jitted and mapped. Confident predictions have tiny cotangents: they are scaled to a largest entry of 1
    before the pull-back, as in `compute_pefs`, so that their Fishers do not vanish in float32.

    Args:
        model: gives the function and the output family; its own parameters are not looked at.
        selected: the explained parameters, ``model.space.select(params)``.
        params: all of them.
        example: without a batch axis.
        cotangents: logits to (c, C) cotangents; the output family's ``factor``, whose rows make the exact Fisher, if
            None. For weights U on rows, pull back ``U @ rows`` of `scaled_cotangents` in its place.
    """
    logits, back_to_leaves = jax.vjp(lambda leaves: model.selected_logits(leaves, params, example), selected)
    rows, scale = scaled_cotangents((cotangents or model.output.factor)(logits.astype(jnp.float32)))
    return PulledRows(pulled(lambda row: back_to_leaves(row.astype(logits.dtype))[0], rows), scale, logits)


def pulled(pull: Callable[[jax.Array], tuple[jax.Array, ...]], rows: Cotangents) -> Blocks:
    """Vectors on the logits to rows over the parameters, in float32 whatever the model computes in."""
    if len(rows) > UNROLLED:
        blocks = [jax.vmap(pull)(rows)]
    else:
        blocks = [tuple(leaf[None] for leaf in pull(row)) for row in rows]
    return tuple(tuple(leaf.astype(jnp.float32) for leaf in block) for block in blocks)


def gram_of(blocks: Blocks) -> tuple[Float[Array, "c c"], Float[Array, "leaves"]]:
    """Inner products of the rows, and each leaf's share of their squared norms."""
    grams = [_gram([leaf.reshape(leaf.shape[0], -1) for leaf in parts]) for parts in zip(*blocks, strict=True)]
    return functools.reduce(jnp.add, grams), jnp.stack([jnp.trace(gram) for gram in grams])


def _gram(blocks: Sequence[Float[Array, "_ size"]]) -> Float[Array, "c c"]:
    """Inner products of a few long rows. Up to four, sums of products: a CPU's matrix product of such thin matrices,
    batched, took four times as long.
    """
    rows = [row for block in blocks for row in block]
    if len(rows) > 4:
        joined = jnp.concatenate(blocks)
        return jnp.tensordot(joined, joined, (1, 1))
    pairs = {(i, j): jnp.sum(rows[i] * rows[j]) for i in range(len(rows)) for j in range(i + 1)}
    return jnp.stack([jnp.stack([pairs[max(i, j), min(i, j)] for j in range(len(rows))]) for i in range(len(rows))])


def _squared_norm(blocks: Blocks) -> Float[Array, ""]:
    """Of all rows together."""
    return functools.reduce(jnp.add, [jnp.sum(leaf**2) for block in blocks for leaf in block])
