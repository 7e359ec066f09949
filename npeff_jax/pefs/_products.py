"""Fisher-vector products of a live model: nothing is stored, and no row is formed."""

import jax
import jax.numpy as jnp

from npeff_jax._types import Example, LogitsFn, PyTree
from npeff_jax.models import Categorical, Output


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
