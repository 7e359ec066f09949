"""One example's Fisher as rows: vectors on the logits pulled back through the model, and rotated (section 2.1).

F = Σ_j p_j ∇log p_j ∇log p_jᵀ = Jᵀ S J with J the (C, m) Jacobian of the logits and S = L Lᵀ, so the rows of Lᵀ J are a
factor of F. Everything here is pure and of one example; the driver maps it over batches and devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._parameters import Mask
from npeff_jax._types import Example, LogitsFn, PyTree
from npeff_jax.models import Categorical, Model, Output
from npeff_jax.pefs._cotangents import cotangents
from npeff_jax.pefs._representation import Diagonal, LowRank, Representation, Rows

Leaves = tuple[Float[Array, "c ..."], ...]
"""Rows as they come from the gradient: for each explained leaf, its part of all c rows."""


class HostRows(NamedTuple):
    """`ExampleRows` as NumPy, each leaf as (c, size)."""

    leaves: tuple[np.ndarray, ...]
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
        leaves: the rows a_1..a_c, in parts, (c, ...) each, one an explained leaf.
        gram: (c, c), their inner products.
        leaf_norms: squared norm of each leaf's part: not finite where a gradient is not.
        scale: what the rows were divided by, so that no product of them underflows.
        trace: of F, divided by scale².
        n_rows: how many rows, from the first, represent the example.
        logits: of the example.
        lost_mass: probability of the classes that have no row.
        lost_trace: estimated trace lost with them, as a fraction of the whole.
    """

    leaves: Leaves
    gram: Float[Array, "c c"]
    leaf_norms: Float[Array, "leaves"]
    scale: Float[Array, ""]
    trace: Float[Array, ""]
    n_rows: Int[Array, ""]
    logits: Float[Array, "C"]
    lost_mass: Float[Array, ""]
    lost_trace: Float[Array, ""]


Rotated = TypeVar("Rotated", ExampleRows, HostRows)


def pef_rows(
    logits_fn: LogitsFn,
    params: PyTree,
    example: Example,
    representation: Representation | None = None,
    *,
    mask: Mask = None,
    output: Output | None = None,
    key: jax.Array | None = None,
) -> ExampleRows:
    """One example's Fisher, exact and dense. Pure: can be jitted, mapped and differentiated.

    Args:
        logits_fn: ``(params, example) -> (C,)``.
        params: the parameters.
        example: without a batch axis.
        representation: `LowRank` (the default), `Diagonal` or `Sampled`.
        mask: which parameters to explain.
        output: what the logits mean; a softmax by default.
        key: for `Sampled` and for the probe of the lost trace.

    Returns:
        The rows and what is known of the whole Fisher. ``jnp.concatenate([leaf.reshape(c, -1) ...], 1) * scale`` is the
        (c, m) factor, in the order of `Model.space`.
    """
    model = Model(logits_fn, params, mask=mask, output=output or Categorical())
    key = jax.random.key(0) if key is None else key
    representation = representation or LowRank()
    one = example_rows(model, representation, model.space.select(params), params, example, key)
    return principal(one, representation)


def example_rows(
    model: Model,
    representation: Representation,
    selected: tuple[jax.Array, ...],
    params: PyTree,
    example: Example,
    key: jax.Array,
) -> ExampleRows:
    """`pef_rows` before rotation, with the parameters as arguments, so that they are not compiled in as constants."""
    logits, pull = jax.vjp(lambda leaves: model.selected_logits(leaves, params, example), selected)
    back = cotangents(model.output, representation, logits, key)
    leaves = pulled(pull, back.rows, logits.dtype)
    lost = jnp.zeros(())
    if back.probe is not None:
        lost = jnp.trace(gram_of(pulled(pull, back.probe[None], logits.dtype))[0])
    scale, n_rows = back.scale, back.n_rows
    if isinstance(representation, Diagonal):
        leaves = tuple(jnp.sum(leaf**2, axis=0, keepdims=True) for leaf in leaves)
        n_rows = jnp.asarray(1)
    gram, leaf_norms = gram_of(leaves)
    total = functools.reduce(jnp.add, [jnp.sum(leaf) for leaf in leaves])
    trace = total if isinstance(representation, Diagonal) else jnp.trace(gram)
    if isinstance(representation, LowRank) and representation.rows is Rows.PRINCIPAL:
        n_rows = jnp.minimum(n_rows, jax.eval_shape(model.output.factor, logits).shape[0])
    lost_trace = lost / jnp.where(lost > 0, lost + trace, 1.0)
    return ExampleRows(leaves, gram, leaf_norms, scale, trace, n_rows, logits, back.lost_mass, lost_trace)


def _gram(rows: Float[Array, "c size"]) -> Float[Array, "c c"]:
    """Inner products of a few long rows. Up to four, sums of products: a CPU's matrix product of such thin matrices,
    batched, took four times as long.
    """
    c = rows.shape[0]
    if c > 4:
        return jnp.tensordot(rows, rows, (1, 1))
    pairs = {(i, j): jnp.sum(rows[i] * rows[j]) for i in range(c) for j in range(i + 1)}
    return jnp.stack([jnp.stack([pairs[max(i, j), min(i, j)] for j in range(c)]) for i in range(c)])


def principal(one: Rotated, representation: Representation, xp: Any = jnp) -> Rotated:
    """The rows as the representation wants them: orthogonal and the largest first, unless it says otherwise.

    The rotation is orthogonal to rounding whatever the condition of the Gram matrix, so F is kept exactly.

    Args:
        one: rows that are any factor of F.
        representation: says whether to rotate, and how many of the rotated rows to use.
        xp: ``jax.numpy``, or ``numpy`` for rows on the host. The driver rotates on the host: XLA's batched
            eigensolver for CPUs waits for threads of the pool that it occupies, and with several devices deadlocks.
    """
    if not (isinstance(representation, LowRank) and representation.rows is Rows.PRINCIPAL):
        return one
    unit = xp.trace(one.gram)
    _, vectors = xp.linalg.eigh(one.gram / xp.where(unit > 0, unit, 1.0))
    vectors = vectors[:, ::-1]
    largest = xp.take_along_axis(vectors, xp.argmax(xp.abs(vectors), axis=0)[None], axis=0)
    rotation = (vectors * xp.where(largest < 0, -1.0, 1.0)).T  # a sign that no detail of the eigensolver decides
    gram = rotation @ one.gram @ rotation.T
    leaves = tuple(xp.tensordot(rotation.astype(leaf.dtype), leaf, 1) for leaf in one.leaves)
    return one._replace(leaves=leaves, gram=gram, n_rows=_principal_rank(representation, gram, one.n_rows, xp))


def pulled(pull: Callable, rows: Float[Array, "c C"], dtype: Any) -> Leaves:
    """Vectors on the logits to rows over the parameters, in float32 whatever the model computes in."""
    (leaves,) = jax.vmap(pull)(rows.astype(dtype))
    return tuple(leaf.astype(jnp.float32) for leaf in leaves)


def gram_of(leaves: Leaves) -> tuple[Float[Array, "c c"], Float[Array, "leaves"]]:
    """Inner products of the rows, and each leaf's share of their squared norms."""
    grams = [_gram(leaf.reshape(leaf.shape[0], -1)) for leaf in leaves]
    return functools.reduce(jnp.add, grams), jnp.stack([jnp.trace(gram) for gram in grams])


def _principal_rank(representation: LowRank, gram: Any, n_rows: Any, xp: Any) -> Any:
    """How many principal rows are wanted: by count, and by the share of the trace that they hold."""
    if representation.max_rows is not None:
        n_rows = xp.minimum(n_rows, representation.max_rows)
    if representation.min_trace is not None:
        held = xp.cumsum(xp.diagonal(gram))
        n_rows = xp.minimum(n_rows, 1 + xp.sum(held < representation.min_trace * held[-1]))
    return n_rows
