"""Compilation and precision: how every compiled function of the factorization is built and run."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # jax before 0.8
    from jax.core import get_opaque_trace_state

CPU_OPTIONS: dict[str, bool | int] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 1,
    "xla_cpu_parallel_codegen_split_count": 2,
}
"""The older elementwise emitters, fewer passes of LLVM, fewer modules: a quarter of the time to compile a solver step
(0.5 s of CPU instead of 2.1), no slower to run, since its time is in matrix products of compiled libraries."""

EAGER = get_opaque_trace_state(convention="flax")
"""The state of a thread that traces nothing, to be compared with."""

F = TypeVar("F", bound=Callable[..., Any])


def full_precision(function: F) -> F:
    """Run ``function`` with "highest" as the precision of every matrix product that states none.

    An accelerator's default rounds the inputs of a float32 product (TF32 on a GPU, bfloat16 on a TPU). Coordinate
    updates then never reach their tolerance, and the loss moves by more than stopping looks at.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **named)

    return cast(F, call)


@functools.cache
def compiler_options() -> dict[str, bool | int]:
    """Return those of `CPU_OPTIONS` that this version of XLA knows; none on an accelerator."""
    if jax.default_backend() != "cpu":
        return {}

    def known(options: dict[str, bool | int]) -> bool:
        try:
            jax.jit(lambda: None, compiler_options=options)()
        except Exception as error:  # its type differs between versions of JAX
            if "No such compile option" in str(error):
                return False
            raise
        return True

    if known(CPU_OPTIONS):
        return CPU_OPTIONS
    return {name: value for name, value in CPU_OPTIONS.items() if known({name: value})}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile ``function`` as `jax.jit` does, with `compiler_options` and in `full_precision`.

    The options are looked up at the first call, because importing must start no backend. While something else is being
    traced (a user's own ``jit``) the plain function is called: JAX accepts compiler options at the top level only.
    """

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    @full_precision
    def call(*arguments: Any, **named: Any) -> Any:
        traced = get_opaque_trace_state(convention="flax") != EAGER
        return (function if traced else jitted())(*arguments, **named)

    return call
