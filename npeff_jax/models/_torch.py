"""Models from PyTorch modules, run through torchax."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._checks import listing
from npeff_jax._parameters import Mask, _predicate
from npeff_jax.models._model import Model
from npeff_jax.models._torch_env import import_torch, to_numpy
from npeff_jax.models._torch_function import Forward, TorchFunction


def from_torch(module: Any, *, forward: Forward | None = None, trainable: Mask = None, **options: Any) -> Model:
    """Make a model from a PyTorch module in evaluation mode.

    The module's own code runs with its operations computed by JAX (torchax), on one or several devices. Parameters are
    named as in the state dict, and tied parameters count once. Buffers, and tensors that are plain attributes, are
    constants. Parameters are copied, and the module is not changed.

    By default an example is an array, passed as ``module(x[None])``, or a dictionary, passed as ``module(**batch)``,
    and the module returns logits (batch, C), or an object with an attribute ``logits``. Integers are 32-bit, as in JAX.

    Args:
        module: a ``torch.nn.Module`` after ``eval()``.
        forward: PyTorch function ``(module, batch) -> logits``, for a module with another calling convention. ``batch``
            is an example with a batch axis of size 1, and the logits have shape (1, C).
        trainable: which parameters to explain, globs over their names (``"*.lora_*"``) or a predicate ``(name, array)
            -> bool``; by default those that require gradients.
        **options: further fields of `Model`, such as ``output`` or ``label_names``.

    Returns:
        A model whose ``params`` are a flat dictionary of all parameters of the module, with their dtypes. Parameters
        that are not explained are arguments of the computation too, so that a large base model is not compiled in as a
        constant.

    Raises:
        ImportError: PyTorch or torchax is missing, or their versions do not match.
        ValueError: a part of the module is in training mode, no parameter is to be explained, or JAX cannot hold a
            parameter. When the model is first called: the forward pass draws random numbers, branches on values of its
            inputs, uses an operation that torchax does not support, or does not return logits.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> from_torch(net.eval()).space.size
        67
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; expected a torch.nn.Module")
    if "mask" in options:
        raise TypeError("pass trainable=, globs over the module's parameter names, instead of mask=")
    return model_of(module, forward, trainable, **options)


def model_of(module: Any, forward: Forward | None, trainable: Mask, *, owned: bool = False, **options: Any) -> Model:
    """Make a model as `from_torch`. If ``owned``, no caller holds the module, so memory is shared instead of copied."""
    _check_evaluation_mode(module)
    params, frozen = _parameters(module, owned)
    explained = _explained(params, frozen, trainable)
    function = TorchFunction(module, forward)
    options = {"constants": function.held} | options
    return Model(function.logits, params, mask=lambda name, _: name in explained, **options)


def _parameters(module: Any, owned: bool) -> tuple[dict[str, jax.Array], set[str]]:
    """Return all parameters as JAX arrays (tied ones as the same object), and the names of frozen parameters."""
    arrays: dict[int, jax.Array] = {}
    params, frozen = {}, set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) not in arrays:
            arrays[id(parameter)] = _jax_array(name, parameter, owned)
        params[name] = arrays[id(parameter)]
        if not parameter.requires_grad:
            frozen.add(name)
    if not params:
        raise ValueError(f"{type(module).__name__} has no parameters; expected a module whose forward pass uses some")
    return params, frozen


def _jax_array(name: str, tensor: Any, owned: bool) -> jax.Array:
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        raise ValueError(f"{name} has no shape yet; call the module once on a batch before from_torch")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, without values; load the weights before from_torch")
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is a {type(tensor).__name__} of layout {tensor.layout}; expected a plain dense tensor "
            "(dequantize or gather it first)"
        )
    array = to_numpy(tensor, copy=not owned)
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if kept != array.dtype and np.issubdtype(array.dtype, np.inexact):
        raise ValueError(
            f"{name} is {array.dtype}, which JAX would make {kept}; call module.float(), or set jax_enable_x64"
        )
    return jnp.asarray(array)


def _explained(params: Mapping[str, jax.Array], frozen: set[str], trainable: Mask) -> set[str]:
    if trainable is None:
        explained = set(params) - frozen
        if not explained:
            raise ValueError("every parameter has requires_grad=False; say which to explain, such as trainable='*'")
        return explained
    explains = _predicate(trainable)
    explained = {name for name, array in params.items() if explains(name, array)}
    if not explained:
        raise ValueError(f"trainable={trainable!r} fits no parameter; they are {listing(list(params))}")
    return explained


def _check_evaluation_mode(module: Any) -> None:
    """Raise if a PyTorch layer that differs in evaluation mode is in training mode. `TorchFunction` checks others."""
    for path, part in module.named_modules():
        if part.training and _differs_in_training(part):
            raise ValueError(
                f"{path or 'the module'} ({type(part).__name__}) is in training mode; call module.eval() first"
            )


def _differs_in_training(part: Any) -> bool:
    from torch import nn

    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        return True
    if isinstance(part, nn.modules.instancenorm._InstanceNorm):
        return part.track_running_stats
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase):
        return part.dropout > 0 and part.num_layers > 1
    if isinstance(part, nn.MultiheadAttention):
        return part.dropout > 0
    return isinstance(part, nn.RReLU)
