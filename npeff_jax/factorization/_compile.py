"""Compilation that pays for itself: on a CPU it takes longer than many a decomposition."""

import functools
from collections.abc import Callable
from typing import Any

import jax

CPU_OPTIONS: dict[str, bool | int] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 1,
    "xla_cpu_parallel_codegen_split_count": 2,
}
"""The older elementwise emitters, fewer passes of LLVM, fewer modules: a quarter of the time to compile a solver step
(0.5 s of CPU instead of 2.1), no slower to run, since its time is in matrix products of compiled libraries."""


@functools.cache
def compiler_options() -> dict[str, bool | int]:
    """Those of `CPU_OPTIONS` that this version of XLA knows; none on an accelerator."""
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
    """`jax.jit` with `compiler_options`, which are looked up at the first call: importing must start no backend."""

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return jitted()(*arguments, **named)

    return call
