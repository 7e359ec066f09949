"""Haiku transforms as models."""

from typing import Any

import jax
import numpy as np

from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import Model


def from_haiku(transformed: Any, params: PyTree, state: PyTree | None = None, **options: Any) -> Model:
    """Make a model from a Haiku transform of a function that maps a batch to logits (batch, C).

    Args:
        transformed: result of ``hk.transform`` or, with ``state``, ``hk.transform_with_state``, of the function in
            evaluation mode: no dropout, ``is_training=False``.
        params: parameters of the function.
        state: state of the function (BatchNorm statistics), held constant.
        **options: further fields of `Model`, such as ``mask`` or ``output``.

    Raises:
        ValueError: when the model is first called, if the function draws random numbers or changes its state.
    """
    constants = None if state is None else jax.tree.map(np.array, state)  # copies on the host

    def logits_fn(params: PyTree, example: Example) -> jax.Array:
        batch = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf)[None], example)
        try:
            if constants is None:
                return transformed.apply(params, None, batch)[0]
            logits, after = transformed.apply(params, constants, None, batch)
        except ValueError as error:
            if "rng" not in str(error).lower():
                raise
            raise ValueError(
                "the function draws random numbers; transform it as it is at evaluation, without dropout"
            ) from error
        # Unmodified state is returned as the same objects, also while tracing.
        before = jax.tree.leaves(constants)
        if any(new is not old for new, old in zip(jax.tree.leaves(after), before, strict=True)):
            raise ValueError("the function updates its state; transform it as it is at evaluation, is_training=False")
        return logits[0]

    return Model(logits_fn, params, **{"constants": {"state": constants}} | options)
