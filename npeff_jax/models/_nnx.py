"""Flax NNX modules as models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax import _identity
from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import Model, check_module


def from_nnx(module: Any, **options: Any) -> Model:
    """Make a model from a Flax NNX module that maps a batch to logits (batch, C).

    Its ``nnx.Param`` variables are the parameters; BatchNorm statistics and other state are constants.

    Args:
        module: a ``flax.nnx.Module`` in evaluation mode; it is not changed.
        **options: further fields of `Model`, such as ``mask`` or ``output``.

    Returns:
        A model whose parameters are nested dictionaries, named by attribute.

    Raises:
        TypeError: ``module`` is none.
        ValueError: the module is in training mode.
    """
    from flax import nnx

    check_module(module, nnx.Module, "from_nnx")
    training = [
        f"{'.'.join(map(str, path)) or 'the module'} ({type(node).__name__})"
        for path, node in nnx.iter_graph(module)
        if getattr(node, "use_running_average", True) is False
        or (getattr(node, "deterministic", True) is False and getattr(node, "rate", 1) not in (0, 0.0))
    ]
    if training:
        raise ValueError(f"{training[0]} is in training mode; call module.eval() first")
    graph, params, *rest = nnx.split(module, nnx.Param, ...)
    constants = jax.tree.map(_on_host, rest[0])

    def logits_fn(values: PyTree, example: Example) -> jax.Array:
        state = jax.tree.map(lambda leaf: leaf, params)  # a copy, because merging changes it
        nnx.replace_by_pure_dict(state, values)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        merged = nnx.merge(graph, state, jax.tree.map(jnp.asarray, constants))  # JAX arrays are immutable
        before = jax.tree.leaves(nnx.state(merged))
        logits = merged(batch)
        after, shape = nnx.state(merged), nnx.graphdef(merged)
        if shape != graph or any(new is not old for new, old in zip(jax.tree.leaves(after), before, strict=True)):
            raise ValueError(
                f"{type(module).__name__} changes itself when it is called (a counter, a cache, statistics); pass a "
                "module whose call only reads"
            )
        return logits[0]

    held = {"graph": _identity.without_addresses(repr(graph)), "state": jax.tree.leaves(constants)}
    return Model(logits_fn, nnx.to_pure_dict(params), **{"constants": held} | options)


def _on_host(leaf: Any) -> Any:
    """Copy a constant to NumPy, independent of devices and callers. Random keys are returned as they are."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.array(leaf)
