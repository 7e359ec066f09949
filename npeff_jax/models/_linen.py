"""Flax Linen modules as models."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import Model, check_module


def from_linen(
    module: Any, variables: PyTree, *, method: Any = None, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Model:
    """Make a model from a Flax Linen module and its variables, in evaluation mode.

    Args:
        module: a ``flax.linen.Module`` that maps a batch to logits (batch, C).
        variables: variables as returned by ``module.init``. ``"params"`` are the parameters; other collections
            (``"batch_stats"``) are held constant.
        method: method of the module to call; by default ``__call__``.
        kwargs: further arguments of the method, such as ``{"training": False}``.
        **options: further fields of `Model`, such as ``mask`` or ``output``.

    Raises:
        ValueError: ``variables`` has no collection ``"params"``; or, when the model is first called, the module is in
            training mode: it draws random numbers or updates its statistics.
    """
    import flax.errors
    import flax.linen

    check_module(module, flax.linen.Module, "from_linen")
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables is a {type(variables).__name__}; pass what module.init returned")
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {sorted(variables)}, not 'params'; pass what module.init returned, "
            "{'params': ...}, rather than the parameters alone"
        )
    # Copies as NumPy arrays: constants of the traced function, independent of devices and of changes by the caller.
    constants = {name: jax.tree.map(np.array, value) for name, value in variables.items() if name != "params"}

    def logits_fn(params: PyTree, example: Example) -> jax.Array:
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None] if np.isscalar(leaf) else leaf[None], example)
        try:
            return module.apply({"params": params, **constants}, batch, method=method, **(kwargs or {}))[0]
        except (flax.errors.InvalidRngError, flax.errors.ModifyScopeVariableError) as error:
            raise ValueError(
                f"{type(module).__name__} is in training mode (it draws random numbers or updates its statistics); "
                "call it as at evaluation, for instance with kwargs={'training': False}"
            ) from error

    held = {"module": module, "method": method, "kwargs": dict(kwargs or {}), "collections": constants}
    return Model(logits_fn, variables["params"], **{"constants": held} | options)
