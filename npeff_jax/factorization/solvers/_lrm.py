"""LRM-NPEFF (section 2.2) without a learning rate, in the symbols of the glossary.

One step: HALS on W given G, then G moves along the damped ALS direction by the exact minimiser of the loss there.

    W-step   min_W≥0 of the loss; a non-negative least squares with Gram (G Gᵀ)∘(G Gᵀ) and numerator Σ_rows (A Gᵀ)²
    G-step   ∇_G loss = 4 R,  R = B G − Mᵀ A,  B = (WᵀW) ∘ (G Gᵀ),  M = (W over each example's rows) ∘ (A Gᵀ)
             D = −(B + λ Diag B)⁻¹ R descends: the matrix is positive definite. (The step to (B + λ I)⁻¹ Mᵀ A, which
             looks alike, can ascend.)
             G + t D changes A Gᵀ and G Gᵀ linearly and quadratically in t, so the loss along D is a quartic in t.

The same code runs on every row space; with protected components, D covers the others only.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._compile import full_precision
from npeff_jax.factorization._objective import line_coefficients, loss_terms
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.factorization.solvers._base import Factors, InitialFactors, Solver, fit_to_given, solve_for_given
from npeff_jax.factorization.solvers._quartic import minimize_quartic
from npeff_jax.factorization.solvers._tangent import Line, project, retract
from npeff_jax.pefs import FisherKind


class LowRankState(NamedTuple):
    """W and G, with the products of G carried along.

    Attributes:
        W: coefficients.
        G: vectors.
        AG: A Gᵀ.
        GG: G Gᵀ.
        numerator: Σ_rows (A Gᵀ)².
        steps: how many steps were done.
    """

    W: Coefficients
    G: Vectors
    AG: RowProducts
    GG: ComponentGram
    numerator: Float[Array, "n r"]
    steps: Any


class LowRankSolver(Solver):
    """What the solvers of low-rank problems share: a state that W and G determine."""

    kind = FisherKind.LOW_RANK
    restarts = True

    @full_precision
    def init(self, problem: Problem, start: Factors) -> LowRankState:
        AG, GG = problem.products(start.G)
        return LowRankState(start.W, start.G, AG, GG, problem.sum_over_rows(AG * AG), start.steps)

    def factors(self, state: LowRankState) -> tuple[Coefficients, Vectors]:
        return state.W, state.G

    def products(self, problem: Problem, state: LowRankState) -> tuple[RowProducts, ComponentGram]:
        return state.AG, state.GG

    @full_precision
    def loss_terms(self, problem: Problem, state: LowRankState) -> Float[Array, "2 r"]:
        return loss_terms(state.W, state.numerator, state.GG * state.GG, problem.tie_penalty(state.W))


@dataclasses.dataclass(frozen=True)
class DampedALS(LowRankSolver):
    """LRM-NPEFF without a learning rate: HALS on W, then the damped ALS direction on G with an exact line search.

    Attributes:
        damping: λ of (B + λ Diag B)⁻¹. B is only positive semi-definite: nearly parallel components make it singular,
            and the inverse of the r×r system then amplifies the rounding of its right-hand side.
        sweeps: HALS sweeps over W per step. Solving for W exactly while G is still far off stalls (tested).
        exchanges: once it stands still, components that are missed least are replaced by what is explained worst, as
            many at once as promise to pay, and kept if that pays; at most so many times, fewer where nothing is left to
            gain. Alternating steps alone end in local minima from most starts. None with ``stiefel``: a row may lie in
            the span of the other vectors, and nothing orthonormal is near that.
        warm_up: first steps that move G alone, W held at its start, given or drawn; none where G alone is given. A W
            that is solved for a random G is far from any concept, and stays there. For a W that is given alone G is
            solved in any case.
        orthogonality: weight ρ of ρ Σ_{j≠k} (g_j·g_k)² over unit vectors, added to the loss as a fraction of ‖F‖².
        stiefel: keep the pseudo-Fishers orthonormal.
    """

    damping: float = 1e-2
    sweeps: int = 1
    exchanges: int = 100
    warm_up: int = 10
    orthogonality: float = 0.0
    stiefel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stiefel, bool):
            raise TypeError(f"stiefel={self.stiefel!r} is a {type(self.stiefel).__name__}; expected True or False")
        normalise(
            self,
            damping=check_real("damping", self.damping, 0.0, np.inf, open_high=True),
            sweeps=check_integer("sweeps", self.sweeps),
            exchanges=0 if self.stiefel else check_integer("exchanges", self.exchanges, 0),
            warm_up=check_integer("warm_up", self.warm_up, 0),
            orthogonality=check_real("orthogonality", self.orthogonality, 0.0, np.inf, open_high=True),
        )

    @property
    def supports(self) -> tuple[str, ...]:
        return ("tunings",) if self.stiefel else ("frozen", "tunings")

    def check(self, kind: FisherKind, parts: tuple[str, ...]) -> None:
        if self.stiefel and "frozen" in parts:
            raise ValueError("stiefel=True cannot hold with frozen components, which need not be orthonormal; drop it")
        super().check(kind, parts)

    def start(self, problem: Problem, n_components: int, seed: int, given: InitialFactors) -> Factors:
        start = fit_to_given(problem, super().start(problem, n_components, seed, given), given)
        return solve_for_given(self, problem, start, given, type(self).warm_up)

    @full_precision
    def step(self, problem: Problem, state: LowRankState) -> LowRankState:
        """Move W, then G. Protected components, which come first, keep their vectors."""
        W, G, AG, GG, numerator, steps = state
        f, rows = problem.n_frozen, problem.rows

        def swept(W: Coefficients) -> Coefficients:
            for _ in range(self.sweeps):
                W = problem.sweep(W, numerator, GG * GG)
            return W

        W = jax.lax.cond(steps < self.warm_up, lambda W: W, swept, W) if self.warm_up else swept(W)

        # ρ Σ_{j≠k} (g_j·g_k)² is a quadratic term like that of the loss, with ρ in the place of (WᵀW)_jk.
        WW = W.T @ W
        if problem.ties is not None:  # λ ‖W_j − s_j m‖² ‖g_j‖⁴ is such a term too
            WW = WW + jnp.diag(problem.tie_penalty(W))
        penalty = self.orthogonality * problem.squared_norm * (1 - jnp.eye(W.shape[1], dtype=W.dtype))
        definite = (WW * GG)[f:, f:]
        WW = WW + penalty
        owner_W = problem.over_rows(W)
        M = owner_W * AG
        B = (WW * GG)[f:]
        if self.orthogonality:  # the penalty is of unit vectors: shrinking them must not lower it
            along = jnp.sum(B * GG[f:], 1) - jnp.sum(M * AG, 0)[f:]
            # Its part of B is indefinite; row sums bound its eigenvalues.
            definite = definite + 2 * jnp.diag(jnp.sum(penalty * jnp.abs(GG), axis=1)[f:])
            direction_of = B.at[:, f:].add(-jnp.diag(along))
        else:
            direction_of = B
        damped = damp(definite, self.damping)
        inverted = inverse(damped)
        D, products = rows.combine(G, -inverted @ direction_of, M[:, f:] @ inverted)
        line = Line(D, *products)
        if self.orthogonality or self.stiefel:
            S = line.GD[f:]
            S = (S + S.T) / 2 if self.stiefel else jnp.diag(jnp.diagonal(S))
            line = project(line, S, G, AG, GG, f)
            slope = 4 * (jnp.sum(B.T * line.GD) - jnp.sum(M[:, f:] * line.AD))
        else:
            # ⟨R, D⟩ = −⟨damped D, D⟩: a sum without cancellation, so the slope keeps its digits near a minimum.
            slope = -4 * jnp.sum(damped * line.DD)

        # D is zero for protected components: the line's coefficients need its products with everything.
        AD, GD = jnp.pad(line.AD, ((0, 0), (f, 0))), jnp.pad(line.GD, ((0, 0), (f, 0)))
        DD = jnp.pad(line.DD, ((f, 0), (f, 0)))
        t = minimize_quartic(line_coefficients(WW, AD, GG, GD, DD, owner_W, slope))
        if self.stiefel:
            G, AG = retract(problem, W, G, AG, GG, line, t)
            GG = jnp.eye(W.shape[1], dtype=GG.dtype)
        else:
            G = G.at[f:].add(t * line.D)
            AG, GG = AG + t * AD, GG + t * (GD + GD.T) + t * t * DD

        # Unit vectors, the scale in W: changes no product W_ij g_j g_jᵀ.
        norm = jnp.sqrt(jnp.diagonal(GG))
        norm = jnp.where((norm > 0) & (jnp.arange(norm.size) >= f), norm, 1.0)
        G, AG, GG, W = G / norm[:, None], AG / norm[None], GG / jnp.outer(norm, norm), W * norm[None] ** 2
        return LowRankState(W, G, AG, GG, problem.sum_over_rows(AG * AG), steps + 1)


def damp(B: ComponentGram, damping: float) -> ComponentGram:
    """Return B + λ Diag B: relative to each component's own weight, so that rescaling g_j against W_j changes nothing.

    A thousandth of that, of the mean weight, keeps the system regular where a component has no weight at all.
    """
    diagonal = jnp.diagonal(B)
    return B + damping * jnp.diag(diagonal + 1e-3 * jnp.mean(diagonal) + jnp.finfo(B.dtype).tiny)


def inverse(B: ComponentGram) -> ComponentGram:
    """Return B⁻¹, symmetric: multiplying by it stays local to a shard of R, which a triangular solve would gather.

    Should rounding ever make B indefinite, the diagonal alone still gives a descent direction.
    """
    factor = jax.lax.linalg.cholesky(B, symmetrize_input=False)
    identity = jnp.eye(B.shape[0], dtype=B.dtype)
    root = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    found = root.T @ root
    return jnp.where(jnp.isfinite(found).all(), found, jnp.diag(1 / jnp.diagonal(B)))
