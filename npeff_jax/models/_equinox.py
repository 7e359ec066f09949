"""Equinox modules as models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax import _identity
from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import Model, check_module


def from_equinox(module: Any, state: Any = None, **options: Any) -> Model:
    """Make a model from an Equinox module that maps one example to logits (C,).

    The floating-point arrays of the module are the parameters; everything else is constant.

    Args:
        module: an ``equinox.Module`` in inference mode, called with the example, and with ``state`` if given.
        state: an ``equinox.nn.State`` (BatchNorm statistics), held constant.
        **options: further fields of `Model`, such as ``mask`` or ``output``.

    Returns:
        A model whose ``params`` are the module with only its floating-point arrays.

    Raises:
        ValueError: a part of the module is in training mode.
    """
    import equinox as eqx

    if not callable(module) or isinstance(module, type):
        check_module(module, eqx.Module, "from_equinox")

    def in_training(node: Any) -> bool:
        # A dropout with rate zero is the same in both modes.
        return getattr(node, "inference", True) is False and getattr(node, "p", 1) != 0

    nodes = jax.tree.leaves(module, is_leaf=in_training)
    training = [type(node).__name__ for node in nodes if in_training(node)]
    if training:
        raise ValueError(f"{training[0]} is in training mode; pass equinox.nn.inference_mode(module)")
    params, constants = eqx.partition(module, eqx.is_inexact_array)
    state = None if state is None else jax.tree.map(_on_host, state)

    def logits_fn(params: PyTree, example: Example) -> jax.Array:
        whole = eqx.combine(params, constants)
        return whole(example) if state is None else whole(example, state)[0]

    leaves = jax.tree.map(_on_host, jax.tree.leaves(constants))
    structure = _identity.without_addresses(str(jax.tree.structure(module)))  # contains the static fields
    held = {"leaves": leaves, "structure": structure, "state": jax.tree.leaves(state)}
    return Model(logits_fn, params, **{"constants": held} | options)


def _on_host(leaf: Any) -> Any:
    """Copy an array to NumPy, independent of devices and callers. Random keys and functions are returned unchanged."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(leaf) if isinstance(leaf, jax.Array | np.ndarray) and not is_key else leaf
