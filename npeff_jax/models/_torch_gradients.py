"""``torch.autograd.Function`` under JAX: gradients come from its own backward pass."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np


class Context:
    """Data that a forward pass saves for its backward pass, as PyTorch's ``ctx``."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Do nothing: the cotangents of these tensors are zero anyway."""

    def mark_dirty(self, *tensors: Any) -> None:
        """Do nothing: tensors written in place are returned."""

    def set_materialize_grads(self, value: bool) -> None:
        """Do nothing: cotangents always exist in JAX."""


Running = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def own_gradients(
    is_traced: Callable[[Any], bool], wrap: Callable[..., Any], unwrap: Callable[..., Any], running: Running
) -> Iterator[None]:
    """Context in which ``Function.apply``, on this thread, is a JAX function with the Function's backward pass.

    Args:
        is_traced: returns whether a tensor holds a JAX array.
        wrap: wraps an array as such a tensor.
        unwrap: returns the array of a tensor.
        running: context that runs PyTorch code; needed because JAX calls the backward pass after the forward pass.
    """
    import torch

    function, here = torch.autograd.Function, threading.get_ident()
    before = function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here or not any(map(is_traced, args)):
            return before.__get__(None, cls)(*args, **kwargs)
        return _apply(cls, args, is_traced, wrap, unwrap, running)

    function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        function.apply = before  # type: ignore[method-assign]


def _apply(
    cls: Any,
    args: Sequence[Any],
    is_traced: Callable[..., Any],
    wrap: Callable[..., Any],
    unwrap: Callable[..., Any],
    running: Running,
) -> Any:
    import torch

    places = [i for i, arg in enumerate(args) if is_traced(arg)]
    several: list[bool] = []

    def forward(arrays: Sequence[jax.Array]) -> tuple[Any, Context]:
        given = list(args)
        for place, array in zip(places, arrays, strict=True):
            given[place] = wrap(array)
        context = Context(tuple(isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args))
        if cls.setup_context is not torch.autograd.Function.setup_context:
            output = cls.forward(*given)
            cls.setup_context(context, tuple(given), output)
        else:
            output = cls.forward(context, *given)
        several.append(isinstance(output, tuple))
        return jax.tree.map(unwrap, output, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor)), context

    @jax.custom_vjp
    def call(*arrays: jax.Array) -> Any:
        return forward(arrays)[0]

    def backward(arrays: tuple[jax.Array, ...], cotangent: Any) -> tuple[Any, ...]:
        with running():
            _, context = forward(arrays)  # repeated for its saved data; XLA merges both
            given = cotangent if several[-1] else (cotangent,)
            gradients = cls.backward(context, *map(wrap, given))
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
            return tuple(
                _cotangent(array, gradients[place], unwrap) for place, array in zip(places, arrays, strict=True)
            )

    call.defvjp(lambda *arrays: (call(*arrays), arrays), backward)
    output = call(*(unwrap(args[place]) for place in places))
    return tuple(map(wrap, output)) if several[-1] else wrap(output)


def _cotangent(array: jax.Array, gradient: Any, unwrap: Callable[..., Any]) -> Any:
    if not jax.numpy.issubdtype(array.dtype, np.floating):
        return np.zeros(array.shape, jax.dtypes.float0)
    return (
        jax.numpy.zeros_like(array) if gradient is None else unwrap(gradient).astype(array.dtype).reshape(array.shape)
    )
