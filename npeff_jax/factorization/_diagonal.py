"""D-NPEFF: non-negative matrix factorization of the (n, m') matrix X of diagonal PEFs, X ≈ W H.

W-step   a non-negative least squares with Gram H Hᵀ and numerator X Hᵀ
H-step   one a column of X, all with Gram WᵀW; numerator Wᵀ X. A shard of columns needs nothing of the others.

X Hᵀ and Wᵀ X are what a step costs, so HALS uses each for more than one sweep (Gillis & Glineur 2012).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from npeff_jax._types import Coefficients, ComponentGram
from npeff_jax.factorization._nonnegative import hals_sweep, multiplicative
from npeff_jax.factorization._objective import loss_terms
from npeff_jax.factorization._settings import HALS, Multiplicative
from npeff_jax.factorization.rows import RowSpace, Vectors


class State(NamedTuple):
    """W and H, with the products of H carried along."""

    W: Coefficients
    G: Vectors
    XH: Coefficients
    HH: ComponentGram
    terms: Float[Array, "2 r"]


def init(rows: RowSpace, owner: Int[Array, "n"], W: Coefficients, G: Vectors) -> State:
    """The state of given W and H."""
    XH, HH, _ = rows.inner(G, G)
    return State(W, G, XH, HH, loss_terms(W, XH, HH))


def step(
    rows: RowSpace,
    owner: Int[Array, "n"],
    state: State,
    solver: HALS | Multiplicative,
    squared_norm: Float[Array, ""],
    *,
    n_frozen: int = 0,
    move_W: bool = True,
) -> State:
    """One step of both blocks, W first. Components before ``n_frozen`` keep their vectors."""
    W, H, XH, HH, _ = state
    if isinstance(solver, Multiplicative):
        W = multiplicative(W, XH, HH, solver.epsilon)
        moved = multiplicative(H.T, rows.pull(W).T, W.T @ W, solver.epsilon).T
        return init(rows, owner, W, jnp.concatenate([H[:n_frozen], moved[n_frozen:]]) if n_frozen else moved)
    W = sweep(W, XH, HH, solver.sweeps)
    free, WW = W[:, n_frozen:], W.T @ W
    # What the frozen components explain is taken off the numerator; the rest is a smaller problem of the same kind.
    numerator = rows.pull(free) - WW[n_frozen:, :n_frozen] @ H[:n_frozen]
    moved = sweep(H[n_frozen:].T, numerator.T, WW[n_frozen:, n_frozen:], solver.sweeps).T
    return init(rows, owner, W, jnp.concatenate([H[:n_frozen], moved]))


def sweep(V: Float[Array, "rows r"], b: Float[Array, "rows r"], P: ComponentGram, times: int) -> Float[Array, "rows r"]:
    """HALS sweeps with the same products."""
    return jax.lax.fori_loop(0, times, lambda _, V: hals_sweep(V, b, P), V)
