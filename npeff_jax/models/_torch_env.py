"""A torchax environment that runs PyTorch code on JAX arrays, and rejects code that would compute other values.

torchax maps every PyTorch operation to a JAX operation. In addition, here random numbers are rejected,
``torch.no_grad`` and ``detach`` stop gradients, an ``autograd.Function`` keeps its own backward pass, and plain CPU
tensors become constants when combined with traced ones.
"""

import contextlib
import dataclasses
import functools
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from npeff_jax.models._torch_gradients import own_gradients

_ADVICE = "pip install 'npeff_jax[torch]' (PyTorch, and torchax>=0.0.14.dev20260814: torch 2.13 needs that pre-release)"


class Refused(Exception):
    """Unsupported behaviour of a module. The message is the end of a sentence that begins with the module's name."""


@functools.cache
def import_torch() -> Any:
    """Import torch and torchax, and return the module ``torch``.

    Importing torchax renames PyTorch's private device type to "jax", permanently. Its other global changes (the fast
    path of attention, JAX's client options, an environment variable) are reverted.

    Raises:
        ImportError: one of them is missing, or their versions do not match.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"PyTorch models need PyTorch ({error}); {_ADVICE}") from error
    option, variable = "jax_pjrt_client_create_options", "ENABLE_RUNTIME_UPTIME_TELEMETRY"
    before = getattr(jax.config, option, None), os.environ.get(variable), torch.backends.mha.get_fastpath_enabled()
    try:
        import torchax  # noqa: F401
    except (ImportError, AttributeError) as error:  # AttributeError: an operator missing in this PyTorch
        raise ImportError(f"PyTorch models run through torchax, which does not load ({error}); {_ADVICE}") from error
    finally:
        if getattr(jax.config, option, None) != before[0]:
            jax.config.update(option, before[0])
        if before[1] is None:
            os.environ.pop(variable, None)
        torch.backends.mha.set_fastpath_enabled(before[2])
    return torch


def to_numpy(tensor: Any, *, copy: bool = True) -> np.ndarray:
    """Convert a PyTorch tensor to NumPy with the same dtype; without a copy if possible and ``copy`` is False."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # not a NumPy dtype
        array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = tensor.numpy()
    return array.copy() if copy else array


class Environment:
    """Environment that runs PyTorch code on JAX arrays, one call at a time."""

    def __init__(self) -> None:
        import_torch()
        self._torchax = _environment_class()()
        self._lock = threading.RLock()

    def wrap(self, array: Any) -> Any:
        """Wrap a JAX array as a tensor. A NumPy array stays concrete, so that code may branch on its values."""
        from torchax.tensor import Tensor

        if isinstance(array, np.ndarray):
            with jax.ensure_compile_time_eval():
                array = jnp.asarray(array)
        return Tensor(array, self._torchax)

    @contextlib.contextmanager
    def running(self, stand_ins: Mapping[int, Any], folds: bool) -> Iterator[None]:
        """Context in which PyTorch operations compute on JAX arrays.

        Args:
            stand_ins: tensors, by the ``id`` of the placeholder tensor that they replace.
            folds: whether values that depend only on shapes are computed while tracing, so that code may branch on
                them, which makes tracing slower.
        """
        torch = import_torch()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(warnings.catch_warnings())
            # PyTorch code uses 64-bit integers, and JAX would warn about each conversion to 32 bits.
            warnings.filterwarnings("ignore", message="Explicitly requested dtype")
            stack.enter_context(_no_random_numbers())
            stack.enter_context(
                own_gradients(self._is_traced, self.wrap, self.unwrap, lambda: self.running(stand_ins, folds))
            )
            stack.enter_context(_data_is_detached())
            fast = torch.backends.mha.get_fastpath_enabled()
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)  # torchax lacks its fused operator
            stack.enter_context(torch.enable_grad())  # so that the module's own no_grad is detected
            self._torchax.stand_ins, self._torchax.folds = stand_ins, folds
            stack.enter_context(self._torchax)
            yield

    def _is_traced(self, tensor: Any) -> bool:
        from torchax.tensor import Tensor
        from torchax.view import View

        return isinstance(tensor, Tensor | View)

    def unwrap(self, tensor: Any) -> jax.Array:
        """Return the JAX array of a tensor; a CPU tensor created by the code becomes a constant."""
        return self._torchax.t2j_iso(tensor)


@contextlib.contextmanager
def _no_random_numbers() -> Iterator[None]:
    """Reject random numbers drawn on the host. Those of torchax are rejected at the call.

    Python's own generator is not checked, because run-time type checkers (beartype) use it.
    """
    before = _random_states()
    yield
    if _random_states() != before:
        raise Refused(_RANDOM)


def _random_states() -> tuple[Any, ...]:
    import torch

    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (the generator that a module may use)
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), kind, *rest


_RANDOM = (
    "draws random numbers in its forward pass; a prediction must be the same each time: switch that off, with "
    "module.eval() and F.dropout(..., training=self.training)"
)


@contextlib.contextmanager
def _data_is_detached() -> Iterator[None]:
    """Make ``tensor.data`` stop gradients, as in PyTorch; in torchax it is the tensor itself."""
    from torchax.tensor import Tensor

    own = Tensor.__dict__["data"]
    Tensor.data = property(lambda tensor: tensor.detach(), own.fset)
    try:
        yield
    finally:
        Tensor.data = own


@functools.cache
def _environment_class() -> Any:
    """Return a subclass of torchax's environment, defined on first use because torchax is optional."""
    import torch
    from torch.utils import _pytree as pytree
    from torchax.tensor import Environment as Base
    from torchax.tensor import OperatorNotFound, RuntimeProperty, Tensor
    from torchax.view import View

    data: Any = torch.Tensor.data
    data = data.__get__

    class Functions(torch.overrides.TorchFunctionMode):
        """Interceptor of every call of a PyTorch function."""

        def __init__(self, environment: Any) -> None:
            self.environment = environment

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            stand_ins = self.environment.stand_ins
            args, kwargs = pytree.tree_map_only(
                torch.Tensor, lambda tensor: stand_ins.get(id(tensor), tensor), (args, kwargs or {})
            )
            with self._constants((args, kwargs)):
                try:
                    result = self.environment.dispatch(func, types, args, kwargs)
                except OperatorNotFound:  # composite in C++; its parts are dispatched in turn
                    result = func(*args, **kwargs)
            if func == data:  # `data` of a view
                return self.environment.stop_gradient(result)
            in_place = bool(args) and result is args[0]
            if func in (torch.detach, torch.Tensor.detach) or not (torch.is_grad_enabled() or in_place):
                return self.environment.stop_gradient(result)
            return result

        def _constants(self, arguments: Any) -> Any:
            """Compute values that depend on no input eagerly, if code needs them."""
            tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor | View)]
            if self.environment.folds and not any(isinstance(t.jax(), jax.core.Tracer) for t in tensors):
                return jax.ensure_compile_time_eval()
            return contextlib.nullcontext()

    class Own(Base):  # type: ignore[misc]  # torchax has no types
        def __init__(self) -> None:
            super().__init__()
            self._function_mode = Functions(self)
            self.stand_ins: Mapping[int, Any] = {}
            self.folds = False
            # No random key: that of torchax would be a tracer if first used inside a traced function.
            self._property = threading.local()
            self._ops: dict[Any, Any] = {**self._ops}  # a copy, because it is changed below
            for name in ("exponential_", "cauchy_", "exponential", "cauchy"):  # torchax uses a fixed key
                self.override_op_definition(getattr(torch.ops.aten, name), _draw)
            for op in (torch.nn.functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention):
                self._ops[op] = dataclasses.replace(
                    self._ops[op], func=_attention, is_jax_function=True, needs_env=False
                )

        @property
        def param(self) -> Any:
            if not hasattr(self._property, "content"):
                self._property.content = RuntimeProperty(mesh=None, prng=None, autocast_dtype=None)
            return self._property.content

        def get_and_rotate_prng_key(self, generator: Any = None) -> Any:
            raise Refused(_RANDOM)

        def _should_use_torchax_tensor(self, device: Any) -> bool:
            # A new tensor without an explicit device goes to the device of the inputs.
            return True if device is None else super()._should_use_torchax_tensor(device)

        def t2j_iso(self, tensors: Any) -> Any:
            return pytree.tree_map_only(torch.Tensor, self._array, tensors)

        def _array(self, tensor: Any) -> Any:
            if isinstance(tensor, Tensor | View):
                return tensor.jax()
            if tensor.ndim == 0:
                return tensor.item()  # as in PyTorch, scalar tensors do not promote dtypes
            with jax.ensure_compile_time_eval():
                return jnp.asarray(to_numpy(tensor))

        def stop_gradient(self, result: Any) -> Any:
            def stop(tensor: Any) -> Any:
                if isinstance(tensor, Tensor | View):
                    return Tensor(jax.lax.stop_gradient(tensor.jax()), self)
                return tensor

            return pytree.tree_map_only(torch.Tensor, stop, result)

    return Own


def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attn_mask: jax.Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """Compute PyTorch's ``scaled_dot_product_attention``. A fully masked query gives zeros (NaN in torchax)."""
    if dropout_p > 0:
        raise Refused(_RANDOM)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(array, groups, axis=-3) for array in (key, value))
    wide = jnp.promote_types(query.dtype, jnp.float32)  # PyTorch also sums 16-bit scores in 32 bits
    scores = jnp.einsum("...ld,...sd->...ls", query, key, preferred_element_type=wide)
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    if attn_mask is not None and attn_mask.dtype != bool:
        scores += attn_mask
    elif attn_mask is not None:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    if is_causal:
        scores = jnp.where(jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool), scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1.0)).astype(value.dtype)
    return jnp.einsum("...ls,...sd->...ld", weights, value)


def _draw(*_: Any, **__: Any) -> None:
    raise Refused(_RANDOM)
