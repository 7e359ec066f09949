"""The Fisher of one example as rows: cotangents on the logits pulled back through the model (section 2.1).

F = Σ_j p_j ∇log p_j ∇log p_jᵀ = Jᵀ S J with J the (C, m) Jacobian of the logits and S = L Lᵀ, so the rows of Lᵀ J are a
factor of F. The functions here are pure and take one example; the driver maps them over batches and devices.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._checks import as_instance
from npeff_jax._parameters import Mask
from npeff_jax._types import Cotangents, Example, Logits, LogitsFn, PyTree
from npeff_jax.models import Categorical, Model, Output
from npeff_jax.pefs.representations import FisherKind, LowRank, Prediction, Pullback, Representation, scaled_cotangents

Leaves = tuple[Float[Array, "c ..."], ...]
"""Rows split by leaf: per explained leaf, the part of all c rows."""

Blocks = tuple[tuple[Float[Array, "_ ..."], ...], ...]
"""Blocks of rows as computed by the backward passes. Stacking them would copy them: 29 ms instead of 20 per example for
two rows of a small BERT."""

UNROLLED = 8
"""Maximum number of rows that are pulled back by unrolled backward passes. With `vmap`, results have another layout and
are copied: 26 ms instead of 17 per example for two rows of a small BERT. More unrolled rows compile slowly."""


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
    """Dense rows of the Fisher of an example: F = scale² Σ_j a_j a_jᵀ, or f = scale² a_1 if diagonal.

    Attributes:
        blocks: the rows a_1..a_c, in blocks.
        gram: (c, c), inner products of the rows.
        leaf_norms: squared norm of each leaf's part; non-finite if a gradient is.
        scale: factor that the rows were divided by, so that products of rows do not underflow.
        trace: trace of F, divided by scale².
        n_rows: number of rows, from the first, that represent the example.
        logits: logits of the example.
        lost_mass: probability of the classes without a row.
        lost_trace: estimated fraction of the trace of these classes.
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
        """The rows a_1..a_c split by explained leaf, (c, ...) each."""
        return tuple(jnp.concatenate(parts) for parts in zip(*self.blocks, strict=True))


def example_rows(
    model: Model,
    representation: Representation,
    selected: tuple[Any, ...],
    params: PyTree,
    example: Example,
    key: jax.Array,
    label: Int[Array, ""],
    room: int,
) -> ExampleRows:
    """Compute the rows of one example by backward passes, before rotation.

    Args:
        model: the model. Its parameters are not used but passed separately, so that they are not compiled in.
        representation: representation of the Fisher.
        selected: the explained parameters.
        params: all parameters.
        example: an example without a batch axis.
        key: random key of the example.
        label: label of the example; −1 without labels.
        room: maximum number of rows.
    """
    logits, push, pull = _jacobian(model, selected, params, example)
    at = Prediction(logits.astype(jnp.float32), model.output, label, key, room, pull, push)
    back = _pullback_of(representation, at)
    blocks = pulled(pull, back.rows)
    lost = jnp.zeros((), jnp.float32) if back.probe is None else _squared_norm(pulled(pull, back.probe[None]))
    diagonal, n_rows = representation.kind is FisherKind.DIAGONAL, back.n_rows
    if diagonal:
        squares = [[jnp.sum(leaf**2, axis=0, keepdims=True) for leaf in block] for block in blocks]
        blocks = (tuple(functools.reduce(jnp.add, parts) for parts in zip(*squares, strict=True)),)
        n_rows = jnp.ones((), jnp.int32)
    gram, leaf_norms = gram_of(blocks)
    trace = functools.reduce(jnp.add, [jnp.sum(leaf) for leaf in blocks[0]]) if diagonal else jnp.trace(gram)
    lost_trace = lost / jnp.where(lost > 0, lost + trace, jnp.ones_like(lost))
    return ExampleRows(blocks, gram, leaf_norms, back.scale, trace, n_rows, at.logits, back.lost_mass, lost_trace)


def _jacobian(
    model: Model, selected: tuple[Any, ...], params: PyTree, example: Example
) -> tuple[Logits, Callable[[tuple[Any, ...]], Logits], Callable[[Logits], tuple[jax.Array, ...]]]:
    """Return one example's logits, and J and Jᵀ as functions."""
    if model.outcome_fn is None:
        logits, push = jax.linearize(lambda leaves: model.selected_logits(leaves, params, example), selected)
        back_to_leaves = jax.linear_transpose(push, selected)
        return logits, push, lambda row: back_to_leaves(row.astype(logits.dtype))[0]

    def outcome(leaves: tuple[Any, ...], j: jax.Array) -> jax.Array:
        return model.selected_outcome(leaves, params, example, j)

    which = jnp.arange(model.n_classes(example))
    logits, J = jax.vmap(jax.value_and_grad(outcome), (None, 0))(selected, which)
    J = tuple(leaf.astype(jnp.float32) for leaf in J)

    def push_through(leaves: tuple[Any, ...]) -> Logits:
        parts = [jnp.tensordot(j, leaf.astype(j.dtype), leaf.ndim) for j, leaf in zip(J, leaves, strict=True)]
        return functools.reduce(jnp.add, parts).astype(logits.dtype)

    return logits, push_through, lambda row: tuple(jnp.tensordot(row.astype(leaf.dtype), leaf, 1) for leaf in J)


def _pullback_of(representation: Representation, at: Prediction) -> Pullback:
    """Return the cotangents of a representation as a `Pullback`, and check their shape."""
    found = representation.cotangents(at)
    back = found if isinstance(found, Pullback) else Pullback.of(found)
    if back.rows.ndim != 2 or back.rows.shape[1] != at.logits.size or not 1 <= back.rows.shape[0] <= at.room:
        raise ValueError(
            f"{type(representation).__name__}.cotangents returned the shape {back.rows.shape}; expected (c, "
            f"{at.logits.size}) with c from 1 to {at.room}, as its n_rows says"
        )
    return back


class PulledRows(NamedTuple):
    """Gradient rows of one example, divided by a common scale so that products of rows do not underflow.

    Attributes:
        blocks: blocks of rows in float32, each split by explained leaf, (b, ...); see `leaves`.
        scale: factor that the rows were divided by: the actual rows are ``scale * leaf``, and the actual Fisher is
            ``scale**2`` times that of these rows.
        logits: logits of the example.
    """

    blocks: Blocks
    scale: Float[Array, ""]
    logits: Float[Array, "C"]

    @property
    def leaves(self) -> Leaves:
        """The rows split by explained leaf, (c, ...) each."""
        return tuple(jnp.concatenate(parts) for parts in zip(*self.blocks, strict=True))


def pull_back(
    model: Model,
    selected: tuple[Any, ...],
    params: PyTree,
    example: Example,
    cotangents: Callable[[Logits], Cotangents] | None = None,
) -> PulledRows:
    """Pull cotangents on one example's logits back to gradient rows: Lᵀ J, in float32 (section 2.1).

    Pure: can be jitted and mapped. Cotangents are scaled to a largest entry of 1 before the pull-back, as in
    `compute_pefs`, because those of confident predictions are tiny and their Fishers would vanish in float32.

    Args:
        model: the model, for its function and output family; its parameters are not used.
        selected: the explained parameters, ``model.space.select(params)``.
        params: all parameters.
        example: an example without a batch axis.
        cotangents: function from logits to (c, C) cotangents; by default ``factor`` of the output family, which gives
            the exact Fisher. For weights U on rows, use ``U @ rows`` of `scaled_cotangents`.
    """
    logits, back_to_leaves = jax.vjp(lambda leaves: model.selected_logits(leaves, params, example), selected)
    rows, scale = scaled_cotangents((cotangents or model.output.factor)(logits.astype(jnp.float32)))
    return PulledRows(pulled(lambda row: back_to_leaves(row.astype(logits.dtype))[0], rows), scale, logits)


def pulled(pull: Callable[[jax.Array], tuple[jax.Array, ...]], rows: Cotangents) -> Blocks:
    """Pull cotangents on the logits back to gradient rows, in float32 whatever the dtype of the model."""
    if len(rows) > UNROLLED:
        blocks = [jax.vmap(pull)(rows)]
    else:
        blocks = [tuple(leaf[None] for leaf in pull(row)) for row in rows]
    return tuple(tuple(leaf.astype(jnp.float32) for leaf in block) for block in blocks)


def gram_of(blocks: Blocks) -> tuple[Float[Array, "c c"], Float[Array, "leaves"]]:
    """Compute inner products of the rows, and the sum of their squared norms per leaf."""
    grams = [_gram([leaf.reshape(leaf.shape[0], -1) for leaf in parts]) for parts in zip(*blocks, strict=True)]
    return functools.reduce(jnp.add, grams), jnp.stack([jnp.trace(gram) for gram in grams])


def _gram(blocks: Sequence[Float[Array, "_ size"]]) -> Float[Array, "c c"]:
    """Compute inner products of a few long rows.

    For up to four rows by sums of products, because a batched matrix product takes four times as long on a CPU.
    """
    rows = [row for block in blocks for row in block]
    if len(rows) > 4:
        joined = jnp.concatenate(blocks)
        return jnp.tensordot(joined, joined, (1, 1))
    pairs = {(i, j): jnp.sum(rows[i] * rows[j]) for i in range(len(rows)) for j in range(i + 1)}
    return jnp.stack([jnp.stack([pairs[max(i, j), min(i, j)] for j in range(len(rows))]) for i in range(len(rows))])


def _squared_norm(blocks: Blocks) -> Float[Array, ""]:
    """Compute the sum of squares over all rows."""
    return functools.reduce(jnp.add, [jnp.sum(leaf**2) for block in blocks for leaf in block])


def unreached(model: Model, example: Example) -> list[str]:
    """Return the names of explained parameters that the logits do not depend on, without running the model.

    It is found by tracing: a parameter whose gradients happen to be zero is not included.
    """
    selected = model.space.select(model.params)
    shape = jax.eval_shape(model.logits_fn, model.params, example)

    def gradients(cotangent: jax.Array, example: Example) -> tuple[jax.Array, ...]:
        _, pull = jax.vjp(lambda leaves: model.selected_logits(leaves, model.params, example), selected)
        return pull(cotangent)[0]

    jaxpr = jax.make_jaxpr(gradients)(shape, example).jaxpr
    reached = {id(jaxpr.invars[0])}
    for equation in jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached |= {id(variable) for variable in equation.outvars}
    parameters = model.space.layout.parameters
    return [p.name for p, out in zip(parameters, jaxpr.outvars, strict=True) if id(out) not in reached]


def rotated(one: ExampleRows, representation: Representation) -> ExampleRows:
    """Rotate the rows on the device, as specified by the representation."""
    found = representation.rotation(one.gram, one.n_rows, jnp)
    if found.matrix is None:
        return one._replace(n_rows=found.n_rows)
    leaves = tuple(jnp.tensordot(found.matrix, leaf, 1) for leaf in one.leaves)
    return one._replace(blocks=(leaves,), gram=found.gram, n_rows=found.n_rows)


def example_key(seed: Any, index: Any) -> jax.Array:
    """Return the random key of an example, which depends only on the seed and the example's position."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)


def pef_rows(
    logits_fn: LogitsFn,
    params: PyTree,
    example: Example,
    representation: Representation | None = None,
    *,
    mask: Mask = None,
    output: Output | None = None,
    key: jax.Array | None = None,
    label: Any = -1,
) -> ExampleRows:
    """Compute the dense rows of the Fisher of one example. Pure: can be jitted, mapped and differentiated.

    Args:
        logits_fn: ``(params, example) -> (C,)``.
        params: the parameters.
        example: an example without a batch axis.
        representation: `LowRank` (the default), `Diagonal`, `Sampled` or your own.
        mask: which parameters to explain.
        output: output family; by default a softmax.
        key: random key, used by `Sampled`, the range finder, and the probe of the lost trace.
        label: label of the example, for representations that use it.

    Returns:
        The rows, with norms and losses. The (c, m) factor, in the order of `Model.space`, is
        ``jnp.concatenate([leaf.reshape(c, -1) ...], 1) * scale``.
    """
    model = Model(logits_fn, params, mask=mask, output=output or Categorical())
    representation = LowRank() if representation is None else representation
    representation = as_instance("representation", representation, Representation)
    key = example_key(representation.seed, 0) if key is None else key
    room, label = representation.n_rows(model.output, model.n_classes(example)), jnp.asarray(label, jnp.int32)
    one = example_rows(model, representation, model.space.select(params), params, example, key, label, room)
    return rotated(one, representation)


def fisher_vector_product(
    logits_fn: LogitsFn, params: PyTree, example: Example, vector: PyTree, *, output: Output | None = None
) -> PyTree:
    """Compute F v of one example exactly, by one JVP and one VJP, whatever the number of classes (eq. 1).

    Pure: can be jitted and mapped. F v = Jᵀ L (Lᵀ (J v)) with L Lᵀ the Fisher of the output distribution.

    Args:
        logits_fn: ``(params, example) -> (C,)``.
        params: the parameters.
        example: an example without a batch axis.
        vector: v, shaped like the parameters.
        output: output family; by default a softmax.

    Returns:
        F v, shaped like the parameters.
    """
    logits, tangent = jax.jvp(lambda p: logits_fn(p, example), (params,), (vector,))
    _, pull = jax.vjp(lambda p: logits_fn(p, example), params)
    rows = (output or Categorical()).factor(logits.astype(jnp.float32))
    (product,) = pull(((rows @ tangent.astype(rows.dtype)) @ rows).astype(logits.dtype))
    return product
