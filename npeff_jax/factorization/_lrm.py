"""LRM-NPEFF (section 2.2) without a learning rate, in the symbols of the glossary.

One step: HALS on W given G, then G moves along the damped ALS direction by the exact minimiser of the loss there.

    W-step   min_W≥0 of the loss; a non-negative least squares with Gram (G Gᵀ)∘(G Gᵀ) and numerator Σ_rows (A Gᵀ)²
    G-step   ∇_G loss = 4 R,  R = B G − Mᵀ A,  B = (WᵀW) ∘ (G Gᵀ),  M = (W over each example's rows) ∘ (A Gᵀ)
             D = −(B + λ Diag B)⁻¹ R descends: the matrix is positive definite. (The step to (B + λ I)⁻¹ Mᵀ A, which
             looks alike, can ascend.)
             G + t D changes A Gᵀ and G Gᵀ linearly and quadratically in t, so the loss along D is a quartic in t.

The same code runs on every row space; with frozen components, D covers the others only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._nonnegative import hals_sweep
from npeff_jax.factorization._objective import line_coefficients, loss_terms, sum_over_rows
from npeff_jax.factorization._quartic import minimize_quartic
from npeff_jax.factorization._settings import DampedALS
from npeff_jax.factorization._tangent import Line, project, retract
from npeff_jax.factorization.rows import RowSpace, Vectors


class State(NamedTuple):
    """W and G, with the products of G carried along."""

    W: Coefficients
    G: Vectors
    AG: RowProducts
    GG: ComponentGram
    numerator: Float[Array, "n r"]
    terms: Float[Array, "2 r"]


def init(rows: RowSpace, owner: Int[Array, "N"], W: Coefficients, G: Vectors) -> State:
    """The state of given W and G. Also what recomputes carried products, so that their rounding does not add up."""
    AG, GG, _ = rows.inner(G, G)
    numerator = sum_over_rows(AG * AG, owner, W.shape[0])
    return State(W, G, AG, GG, numerator, loss_terms(W, numerator, GG * GG))


def step(
    rows: RowSpace,
    owner: Int[Array, "N"],
    state: State,
    solver: DampedALS,
    squared_norm: Float[Array, ""],
    *,
    n_frozen: int = 0,
    move_W: bool = True,
) -> State:
    """One step of both blocks. Components before ``n_frozen`` keep their vectors."""
    W, G, AG, GG, numerator, _ = state
    if move_W:
        for _ in range(solver.sweeps):
            W = hals_sweep(W, numerator, GG * GG)

    # ρ Σ_{j≠k} (g_j·g_k)² is a quadratic term like that of the loss, with ρ in the place of (WᵀW)_jk.
    WW = W.T @ W
    penalty = solver.orthogonality * squared_norm * (1 - jnp.eye(W.shape[1]))
    definite = (WW * GG)[n_frozen:, n_frozen:]
    WW = WW + penalty
    owner_W = W if W.shape[0] == AG.shape[0] else W[owner]
    M = owner_W * AG
    B = (WW * GG)[n_frozen:]
    R = B @ G - rows.pull(M[:, n_frozen:])
    if solver.orthogonality:  # the penalty is of unit vectors: shrinking them must not lower it
        R = R - (jnp.sum(B * GG[n_frozen:], 1) - jnp.sum(M * AG, 0)[n_frozen:])[:, None] * G[n_frozen:]
        # Its part of B is indefinite; row sums bound its eigenvalues.
        definite = definite + 2 * jnp.diag(jnp.sum(penalty * jnp.abs(GG), axis=1)[n_frozen:])
    damped = damp(definite, solver.damping)
    D = -inverse(damped) @ R
    line = Line(D, *rows.inner(G, D))
    if solver.orthogonality or solver.stiefel:
        S = line.GD[n_frozen:]
        S = (S + S.T) / 2 if solver.stiefel else jnp.diag(jnp.diagonal(S))
        line = project(line, S, G, AG, GG, n_frozen)
        slope = 4 * (jnp.sum(B.T * line.GD) - jnp.sum(M[:, n_frozen:] * line.AD))
    else:
        # ⟨R, D⟩ = −⟨damped D, D⟩: a sum without cancellation, so the slope keeps its digits near a minimum.
        slope = -4 * jnp.sum(damped * line.DD)

    # D is zero for frozen components: the line's coefficients need its products with everything.
    pad = (n_frozen, 0)
    AD, GD = jnp.pad(line.AD, ((0, 0), pad)), jnp.pad(line.GD, ((0, 0), pad))
    DD = jnp.pad(line.DD, (pad, pad))
    t = minimize_quartic(line_coefficients(WW, AD, GG, GD, DD, owner_W, slope))
    if solver.stiefel:
        G, AG = retract(owner, W, G, AG, GG, line, t)
        GG = jnp.eye(W.shape[1])
    else:
        G = G.at[n_frozen:].add(t * line.D)
        AG, GG = AG + t * AD, GG + t * (GD + GD.T) + t * t * DD

    # Unit vectors, the scale in W: changes no product W_ij g_j g_jᵀ.
    norm = jnp.sqrt(jnp.diagonal(GG))
    norm = jnp.where((norm > 0) & (jnp.arange(norm.size) >= n_frozen), norm, 1.0)
    G, AG, GG, W = G / norm[:, None], AG / norm, GG / jnp.outer(norm, norm), W * norm**2
    numerator = sum_over_rows(AG * AG, owner, W.shape[0])
    return State(W, G, AG, GG, numerator, loss_terms(W, numerator, GG * GG))


def damp(B: ComponentGram, damping: float) -> ComponentGram:
    """B + λ Diag B: relative to each component's own weight, so that rescaling g_j against W_j changes nothing.

    A thousandth of that, of the mean weight, keeps the system regular where a component has no weight at all.
    """
    diagonal = jnp.diagonal(B)
    return B + damping * jnp.diag(diagonal + 1e-3 * jnp.mean(diagonal) + jnp.finfo(B.dtype).tiny)


def inverse(B: ComponentGram) -> ComponentGram:
    """B⁻¹, symmetric: multiplying by it stays local to a shard of R, which a triangular solve would gather.

    Should rounding ever make B indefinite, the diagonal alone still gives a descent direction.
    """
    factor = jax.lax.linalg.cholesky(B, symmetrize_input=False)
    root = jax.lax.linalg.triangular_solve(factor, jnp.eye(B.shape[0]), left_side=True, lower=True)
    found = root.T @ root
    return jnp.where(jnp.isfinite(found).all(), found, jnp.diag(1 / jnp.diagonal(B)))
