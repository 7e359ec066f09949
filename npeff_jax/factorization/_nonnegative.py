"""Many non-negative least-squares problems with a shared r×r Gram matrix P: min_v≥0 v P vᵀ − 2 v·b for each row v.

HALS is coordinate descent over columns, each update exact given the rest. The updates of W, of H in D-NPEFF, and the
fit of coefficients are all problems of this form.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from npeff_jax._sharding import round_up
from npeff_jax._types import ComponentGram
from npeff_jax.factorization._compile import full_precision, jit

Rows = Float[Array, "rows r"]

BLOCK = 16
"""Number of columns per block. The result is that of plain HALS, but the effect of a block's updates on later columns
is computed by one matrix product instead of many matrix-vector products."""


@full_precision
def hals_sweep(V: Rows, b: Rows, P: ComponentGram) -> Rows:
    """Return V after one pass of exact coordinate updates over its columns, in order.

    A column with a zero diagonal entry in P does not affect the loss; it becomes zero.
    """
    rows, r = V.shape
    size = round_up(r, BLOCK) if r > BLOCK else r
    width = min(BLOCK, size)
    pad = size - r
    Vt = jnp.pad(V.T, ((0, pad), (0, 0)))  # components first, so that updates are contiguous in memory
    bt = jnp.pad(b.T, ((0, pad), (0, 0))).reshape(-1, width, rows)
    P = jnp.pad(P, ((0, pad), (0, pad)))

    def update_block(k: Any, Vt: jax.Array) -> jax.Array:
        start = k * width
        P_block = jax.lax.dynamic_slice_in_dim(P, start, width)
        own = jax.lax.dynamic_slice_in_dim(P_block, start, width, axis=1)
        old = jax.lax.dynamic_slice_in_dim(Vt, start, width)
        rest = bt[k] - P_block @ Vt + own @ old  # b minus what the other blocks explain

        def update(j: Any, new: jax.Array) -> jax.Array:
            diagonal = own[j, j]
            # zero P_jj means a zero component; dividing by 1 instead keeps the others finite
            step = (rest[j] - own[j] @ new + diagonal * new[j]) / jnp.where(diagonal > 0, diagonal, 1.0)
            return new.at[j].set(jnp.where(diagonal > 0, jnp.maximum(step, 0.0), 0.0))

        def update_columns(new: jax.Array, unroll: int) -> jax.Array:
            return jax.lax.fori_loop(0, width, update, new, unroll=unroll)

        # A GPU spends its time on launching kernels: 450 per sweep over 512 columns unrolled, else 2,340.
        unrolled = functools.partial(update_columns, unroll=width)
        new = jax.lax.platform_dependent(old, cpu=functools.partial(update_columns, unroll=1), default=unrolled)
        return jax.lax.dynamic_update_slice_in_dim(Vt, new, start, 0)

    Vt = jax.lax.fori_loop(0, size // width, update_block, Vt)
    return Vt[:r].T


@full_precision
def multiplicative(V: Rows, b: Rows, P: ComponentGram, epsilon: float) -> Rows:
    """Return V ∘ b / (V P), the multiplicative update of Lee & Seung. Zero denominators are replaced by ``epsilon``."""
    denominator = V @ P
    return V * (b / jnp.where(denominator == 0, epsilon, denominator))


@full_precision
def kkt_residual(V: Rows, b: Rows, P: ComponentGram) -> Float[Array, "rows"]:
    """Return the relative distance of each row from optimality; 0 at the solution.

    It is max_j |v_j − max(0, v_j − (v P − b)_j / P_jj)|, the largest change by an exact coordinate update, divided by
    max_j |b_j / P_jj|, the largest solution for a single component.
    """
    diagonal = jnp.diagonal(P)
    safe = jnp.where(diagonal > 0, diagonal, 1.0)[None]
    move = jnp.where(diagonal[None] > 0, V - jnp.maximum(V - (V @ P - b) / safe, 0.0), V)
    scale = jnp.max(jnp.abs(b) / safe, axis=1)
    return jnp.max(jnp.abs(move), axis=1) / jnp.where(scale > 0, scale, 1.0)


@functools.partial(jit, static_argnames=("max_sweeps",))
def solve_nonnegative(
    V: Rows, b: Rows, P: ComponentGram, tolerance: Float[Array, ""] | float, max_sweeps: int
) -> tuple[Rows, Float[Array, "rows"]]:
    """Solve by HALS sweeps until the `kkt_residual` of every row is at most ``tolerance``, or for ``max_sweeps``.

    Returns:
        The solution, and the `kkt_residual` of each row.
    """

    def unfinished(carry: tuple[Any, ...]) -> Any:
        sweep, _, residual = carry
        return (sweep < max_sweeps) & jnp.any(residual > tolerance)

    def sweep(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, V, _ = carry
        V = jax.lax.fori_loop(0, SWEEPS_BETWEEN_CHECKS, lambda _, V: hals_sweep(V, b, P), V)
        return count + SWEEPS_BETWEEN_CHECKS, V, kkt_residual(V, b, P)

    _, V, residual = jax.lax.while_loop(unfinished, sweep, (0, V, kkt_residual(V, b, P)))
    return V, residual


SWEEPS_BETWEEN_CHECKS = 4
"""Sweeps between evaluations of the residual, which cost about as much as a sweep."""
