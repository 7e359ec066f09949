"""A PyTorch module as a pure function of its parameters and one example."""

import copy
import inspect
import os
import pathlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from npeff_jax._checks import listing
from npeff_jax._identity import without_addresses
from npeff_jax._types import Example, PyTree
from npeff_jax.models import _torch_env
from npeff_jax.models._torch_env import Environment, Refused, to_numpy

Forward = Callable[[Any, Any], Any]
"""PyTorch function ``forward(module, batch)`` that returns logits (batch, C), or an object with ``.logits``."""

_CONCRETE = (
    jax.errors.ConcretizationTypeError,  # a branch on a value, or a shape from a value
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerIntegerConversionError,
)


class TorchFunction:
    """A module as a pure function of its parameters and an example.

    Attributes:
        constants: buffers, and tensors that are attributes, by name, as NumPy arrays.
        held: all dependencies besides parameters: constants, settings of submodules, and the forward function.
    """

    def __init__(self, module: Any, forward: Forward | None) -> None:
        import torch

        self._name = type(module).__name__
        self._forward = forward or default_forward
        self._environment = Environment()
        tensors = dict(_tensors(module))
        placeholders = {id(t): torch.empty_like(t, device="meta", requires_grad=False) for t in tensors.values()}
        for parameter in module.parameters():
            placeholders[id(parameter)] = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), False)
        try:
            self._module = copy.deepcopy(module, dict(placeholders))
        except Exception as error:
            raise ValueError(
                f"{self._name} cannot be copied ({type(error).__name__}: {error}); what is no weight of it (a file, a "
                "lock, a tensor with a gradient's history) must not be its attribute"
            ) from error
        self._placeholder = {name: id(placeholders[id(tensor)]) for name, tensor in tensors.items()} | {
            name: id(placeholders[id(parameter)]) for name, parameter in module.named_parameters(remove_duplicate=False)
        }
        self._placeholders = placeholders  # kept alive, because they are identified by id
        self.constants = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        self.held = {"forward": self._forward, "tensors": self.constants, "settings": _settings(module)}
        attributes = {name for name, _ in module.named_buffers(remove_duplicate=False)} | {
            name for name, _, depth in _attributes(module) if depth == 0
        }
        self._swapped = attributes & set(tensors)
        self._in_training = any(part.training for part in module.modules())
        self._folds = False

    def logits(self, params: PyTree, example: Example) -> jax.Array:
        """Compute the logits (C,) of one example; pure."""
        if self._in_training:
            self._check_modes(params, example)
        return self._logits(params, example, training=False)

    def _check_modes(self, params: PyTree, example: Example) -> None:
        """Raise if a module in training mode has a different forward pass in evaluation mode."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), example)
        try:
            with jax.ensure_compile_time_eval():
                traced = [
                    str(jax.make_jaxpr(lambda p, x, mode=mode: self._logits(p, x, training=mode))(params, shapes))
                    for mode in (False, True)
                ]
        except ValueError as error:
            raise ValueError(f"{self._name} is in training mode ({error}); call module.eval() first") from error
        if traced[0] != traced[1]:
            raise ValueError(
                f"{self._name} is in training mode, where its forward pass differs; call module.eval() first"
            )
        self._in_training = False

    def _logits(self, params: PyTree, example: Example, *, training: bool) -> jax.Array:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        try:
            try:
                return self._run(params, batch, training)
            except _CONCRETE:
                if self._folds:
                    raise
                self._folds = True  # it may branch on values that depend only on shapes
                return self._run(params, batch, training)
        except (Refused, _BadOutput) as error:
            raise ValueError(f"{self._name} {error}") from error
        except _CONCRETE as error:
            raise ValueError(
                f"{self._name} branches on, or takes a shape from, values of its inputs{_where(error)}; JAX compiles "
                "one computation for all examples. Write that with torch.where, masks and fixed shapes, or pass a "
                "forward= that goes round it"
            ) from error
        except Exception as error:
            given = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", batch)
            raise ValueError(
                f"{self._name} could not be run on an example given as {given}{_where(error)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _run(self, params: PyTree, batch: PyTree, training: bool) -> jax.Array:
        environment = self._environment
        tensors = {name: environment.wrap(array) for name, array in {**self.constants, **params}.items()}
        stand_ins = {self._placeholder[name]: tensor for name, tensor in tensors.items()}
        swapped = {name: tensor for name, tensor in tensors.items() if name in params or name in self._swapped}
        with environment.running(stand_ins, self._folds), _restored(self._module):
            self._module.train(training)
            output = self._call(swapped, jax.tree.map(environment.wrap, batch))
            return environment.unwrap(self._checked(output))[0]

    def _call(self, tensors: Mapping[str, Any], batch: Any) -> Any:
        import torch

        forward = self._forward

        class Whole(torch.nn.Module):
            def __init__(self, module: Any) -> None:
                super().__init__()
                self.module = module

            def forward(self, batch: Any) -> Any:
                return forward(self.module, batch)

        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        return torch.func.functional_call(Whole(self._module), named, (batch,), tie_weights=False)

    def _checked(self, output: Any) -> Any:
        import torch

        logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise _BadOutput(
                f"returned {_described(output)}; expected logits (batch, C), or an object with .logits: pass forward=, "
                "such as lambda module, batch: module(batch)[0]"
            )
        if logits.ndim != 2 or logits.shape[0] != 1:
            hint = ": choose a position, such as forward=lambda module, batch: module(**batch).logits[:, -1]"
            raise _BadOutput(
                f"returned logits of shape {tuple(logits.shape)} for a batch of 1; expected (1, C)"
                f"{hint if logits.ndim == 3 else ''}"
            )
        return logits


class _BadOutput(Exception):
    """The output of a module is not a vector of logits."""


def default_forward(module: Any, batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return module(*batch) if isinstance(batch, tuple) else module(batch)
    try:
        inspect.signature(module.forward).bind(**batch)
    except TypeError as error:
        names = [n for n in inspect.signature(module.forward).parameters if n not in ("args", "kwargs")]
        raise Refused(
            f"does not take an example of {listing(sorted(batch))} ({error}); its forward takes {listing(names)}"
        ) from error
    return module(**batch)


def _attributes(module: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield name, tensor and depth of tensors that are plain attributes, also inside lists and dictionaries.

    Parameters and buffers are not included.
    """
    import torch

    registered = {id(p) for p in module.parameters()} | {id(b) for b in module.buffers()}

    def inside(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any, int]]:
        if isinstance(value, torch.Tensor):
            if id(value) not in registered:
                yield name, value, depth
        elif depth < _DEEPEST and isinstance(value, list | tuple):
            for i, entry in enumerate(value):
                yield from inside(f"{name}.{i}", entry, depth + 1)
        elif depth < _DEEPEST and isinstance(value, dict):
            for key, entry in value.items():
                yield from inside(f"{name}.{key}", entry, depth + 1)

    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                yield from inside(f"{path}.{key}" if path else key, value, 0)


_DEEPEST = 4  # levels of nested containers that are searched


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield all constant tensors: buffers under each of their names, and tensors that are attributes."""
    yield from module.named_buffers(remove_duplicate=False)
    for name, tensor, _ in _attributes(module):
        yield name, tensor


def _settings(module: Any) -> dict[str, Any]:
    """Return the class and settings of each submodule: its representation, and attributes that are numbers."""
    settings: dict[str, Any] = {}
    for path, part in module.named_modules():
        numbers = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float) and k != "training"}
        settings[path] = [type(part).__qualname__, without_addresses(part.extra_repr()), numbers]
    return settings


class _restored:
    """Context that restores attributes that a forward pass assigns, so that tracing has no side effects."""

    def __init__(self, module: Any) -> None:
        self._parts = list(module.modules())

    def __enter__(self) -> None:
        dicts = ("_parameters", "_buffers", "_modules")
        self._saved = [(dict(vars(p)), {name: dict(vars(p)[name]) for name in dicts}) for p in self._parts]

    def __exit__(self, *_: object) -> None:
        for part, (own, registered) in zip(self._parts, self._saved, strict=True):
            vars(part).clear()
            vars(part).update(own)
            for name, entries in registered.items():
                own[name].clear()
                own[name].update(entries)


def _described(output: Any) -> str:
    import torch

    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {listing([str(key) for key in output])}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {listing([_described(entry) for entry in output], 3)}"
    return f"a {type(output).__name__}"


def _where(error: BaseException) -> str:
    """Return the location in the module's own code that raised an error."""
    import torch
    import torchax

    packages = (jax, jaxtyping, torch, torchax)
    inner = [str(pathlib.Path(str(package.__file__)).parent) + os.sep for package in packages]
    inner += [__file__, _torch_env.__file__, "<"]
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(tuple(inner))
    ]
    return f" ({pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
