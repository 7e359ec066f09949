"""One example's Fisher for researchers: pure functions, to be jitted, mapped and differentiated. Nothing is stored."""

import jax
import jax.numpy as jnp

from npeff_jax._parameters import Mask
from npeff_jax._types import Example, LogitsFn, PyTree
from npeff_jax.models import Categorical, Model, Output
from npeff_jax.pefs._cotangents import n_cotangents
from npeff_jax.pefs._representation import LowRank, Representation
from npeff_jax.pefs._rotation import rotated
from npeff_jax.pefs._rows import ExampleRows, example_rows


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
    """One example's Fisher, exact and dense.

    Args:
        logits_fn: ``(params, example) -> (C,)``.
        params: the parameters.
        example: without a batch axis.
        representation: `LowRank` (the default), `Diagonal` or `Sampled`.
        mask: which parameters to explain.
        output: what the logits mean; a softmax by default.
        key: for what is random: `Sampled`, the range finder, and the probe of the lost trace.

    Returns:
        The rows and what is known of the whole Fisher. ``jnp.concatenate([leaf.reshape(c, -1) ...], 1) * scale`` is the
        (c, m) factor, in the order of `Model.space`.
    """
    model = Model(logits_fn, params, mask=mask, output=output or Categorical())
    key = jax.random.key(0) if key is None else key
    representation = representation or LowRank()
    most = n_cotangents(model.output, representation, model.n_classes(example))
    one = example_rows(model, representation, model.space.select(params), params, example, key, most)
    return rotated(one, representation)


def fisher_vector_product(
    logits_fn: LogitsFn, params: PyTree, example: Example, vector: PyTree, *, output: Output | None = None
) -> PyTree:
    """F v of one example, exact: one pass forward and one back, whatever the number of classes (eq. 1).

    Pure: can be jitted and mapped. F v = Jᵀ L (Lᵀ (J v)) with L Lᵀ the Fisher of the output distribution.

    Args:
        logits_fn: ``(params, example) -> (C,)``.
        params: the parameters.
        example: without a batch axis.
        vector: v, shaped like the parameters.
        output: what the logits mean; a softmax by default.

    Returns:
        F v, shaped like the parameters.
    """
    logits, tangent = jax.jvp(lambda p: logits_fn(p, example), (params,), (vector,))
    _, pull = jax.vjp(lambda p: logits_fn(p, example), params)
    rows = (output or Categorical()).factor(logits.astype(jnp.float32))
    (product,) = pull(((rows @ tangent) @ rows).astype(logits.dtype))
    return product
