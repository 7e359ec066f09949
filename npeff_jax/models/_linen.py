"""Flax Linen modules as models."""

from typing import Any

import jax
import numpy as np

from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import Model


def from_linen(module: Any, variables: PyTree, *, method: Any = None, **options: Any) -> Model:
    """A model from a Linen module and its variables, in evaluation mode as the module has it.

    Args:
        module: a ``flax.linen.Module`` that takes a batch and returns logits (batch, C).
        variables: what ``module.init`` returns. ``"params"`` is explained; other collections (``"batch_stats"``) are
            held constant.
        method: the module's method to call, ``__call__`` by default.
        **options: further fields of `Model`, such as ``mask`` or ``output``.

    Raises:
        ValueError: ``variables`` has no collection ``"params"``.
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {sorted(variables)}, not 'params'; pass what module.init returned, "
            "{'params': ...}, rather than the parameters alone"
        )
    constants = {name: value for name, value in variables.items() if name != "params"}

    def logits_fn(params: PyTree, example: Example) -> jax.Array:
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None] if np.isscalar(leaf) else leaf[None], example)
        return module.apply({"params": params, **constants}, batch, method=method)[0]

    return Model(logits_fn, variables["params"], **options)
