"""Compilation and matrix-product precision of every compiled function of the factorization."""

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
"""The older elementwise emitters, fewer LLVM passes and fewer modules: a solver step compiles in a quarter of the time
(0.5 s of CPU instead of 2.1) and runs as fast, since its time is spent in library matrix products."""

GPU_OPTIONS: dict[str, bool | int] = {"xla_gpu_enable_triton_gemm": False}
"""Matrix products by cuBLAS. Otherwise XLA compiles dozens of Triton kernels for each product, to keep the fastest."""

EAGER = get_opaque_trace_state(convention="flax")
"""Trace state outside of any transformation, for comparison with the current one."""

F = TypeVar("F", bound=Callable[..., Any])


def full_precision(function: F) -> F:
    """Wrap ``function`` so that matrix products without an explicit precision use "highest".

    By default an accelerator rounds the inputs of a float32 product (TF32 on a GPU, bfloat16 on a TPU). Coordinate
    updates then never reach their tolerance, and rounding changes the loss by more than the stopping tolerance.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **named)

    return cast(F, call)


@functools.cache
def compiler_options() -> dict[str, bool | int]:
    """Return the options of `CPU_OPTIONS` or `GPU_OPTIONS` that this version of XLA accepts; none on a TPU."""
    options = {"cpu": CPU_OPTIONS, "gpu": GPU_OPTIONS}.get(jax.default_backend(), {})

    def known(options: dict[str, bool | int]) -> bool:
        try:
            jax.jit(lambda: None, compiler_options=options)()
        except Exception as error:  # the exception type differs between versions of JAX
            if "No such compile option" in str(error):
                return False
            raise
        return True

    if known(options):
        return options
    return {name: value for name, value in options.items() if known({name: value})}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile ``function`` as `jax.jit` does, with `compiler_options` and in `full_precision`.

    The options are looked up at the first call, because importing must not start a backend. Inside another trace (a
    user's own ``jit`` or ``grad``) they are left out, because JAX accepts compiler options at the top level only.
    """
    plain = jax.jit(function, **{name: value for name, value in options.items() if name != "donate_argnums"})

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    @full_precision
    def call(*arguments: Any, **named: Any) -> Any:
        traced = get_opaque_trace_state(convention="flax") != EAGER
        return (plain if traced else jitted())(*arguments, **named)

    return call
