"""LRM-NPEFF (section 2.2) without a learning rate, in the symbols of the glossary.

One step: HALS on W for fixed G, then a move of G along the damped ALS direction by an exact line search.

    W-step   non-negative least squares with Gram matrix (G Gᵀ)∘(G Gᵀ) and numerator Σ_rows (A Gᵀ)²
    G-step   ∇_G loss = 4 R,  R = B G − Mᵀ A,  B = (WᵀW) ∘ (G Gᵀ),  M = (W over each example's rows) ∘ (A Gᵀ)
             D = −(B + λ Diag B)⁻¹ R is a descent direction, because the matrix is positive definite. (The similar
             direction (B + λ I)⁻¹ Mᵀ A − G can ascend.)
             Along G + t D, A Gᵀ is linear and G Gᵀ quadratic in t, so the loss is a quartic in t.

The same code runs on every row space. Protected components have D = 0.
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
    """W and G, with the products of G.

    Attributes:
        W: coefficients.
        G: vectors.
        AG: A Gᵀ.
        GG: G Gᵀ.
        numerator: Σ_rows (A Gᵀ)².
        steps: number of steps done.
    """

    W: Coefficients
    G: Vectors
    AG: RowProducts
    GG: ComponentGram
    numerator: Float[Array, "n r"]
    steps: Any


class LowRankSolver(Solver):
    """Base class of the solvers of low-rank problems, whose state is determined by W and G."""

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
            and its inverse then amplifies rounding errors.
        sweeps: HALS sweeps over W per step. An exact solution for W while G is far from converged makes the iterations
            stall.
        exchanges: maximum number of exchanges. After convergence, the least useful components are replaced by
            candidates from the residual, as many at once as are expected to lower the loss, and the exchange is kept if
            it does; alternating steps alone end in local minima from most starts. None with ``stiefel``, because a
            candidate may lie in the span of the other vectors, with no orthonormal vector near it.
        warm_up: number of initial steps on G only, with W fixed; skipped if only G is given. A W solved for a random G
            leads to a poor local minimum. If only W is given, G is always solved for first.
        orthogonality: weight ρ of the penalty ρ Σ_{j≠k} (g_j·g_k)² over unit vectors, as a fraction of ‖F‖².
        stiefel: whether to keep the pseudo-Fishers orthonormal.
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

        # ρ Σ_{j≠k} (g_j·g_k)² has the form of the quadratic term of the loss, with ρ for (WᵀW)_jk.
        WW = W.T @ W
        if problem.ties is not None:  # so has λ ‖W_j − s_j m‖² ‖g_j‖⁴
            WW = WW + jnp.diag(problem.tie_penalty(W))
        penalty = self.orthogonality * problem.squared_norm * (1 - jnp.eye(W.shape[1], dtype=W.dtype))
        definite = (WW * GG)[f:, f:]
        WW = WW + penalty
        owner_W = problem.over_rows(W)
        M = owner_W * AG
        B = (WW * GG)[f:]
        if self.orthogonality:  # shrinking the vectors must not lower the penalty
            along = jnp.sum(B * GG[f:], 1) - jnp.sum(M * AG, 0)[f:]
            # The penalty's part of B is indefinite; row sums bound its eigenvalues.
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
            # ⟨R, D⟩ = −⟨damped D, D⟩, a sum without cancellation, so the slope is accurate near a minimum.
            slope = -4 * jnp.sum(damped * line.DD)

        # Pad D with zeros for protected components: the line search needs products with all components.
        AD, GD = jnp.pad(line.AD, ((0, 0), (f, 0))), jnp.pad(line.GD, ((0, 0), (f, 0)))
        DD = jnp.pad(line.DD, ((f, 0), (f, 0)))
        t = minimize_quartic(line_coefficients(WW, AD, GG, GD, DD, owner_W, slope))
        if self.stiefel:
            G, AG = retract(problem, W, G, AG, GG, line, t)
            GG = jnp.eye(W.shape[1], dtype=GG.dtype)
        else:
            G = G.at[f:].add(t * line.D)
            AG, GG = AG + t * AD, GG + t * (GD + GD.T) + t * t * DD

        # Scale vectors to unit norm and W accordingly: no product W_ij g_j g_jᵀ changes.
        norm = jnp.sqrt(jnp.diagonal(GG))
        norm = jnp.where((norm > 0) & (jnp.arange(norm.size) >= f), norm, 1.0)
        G, AG, GG, W = G / norm[:, None], AG / norm[None], GG / jnp.outer(norm, norm), W * norm[None] ** 2
        return LowRankState(W, G, AG, GG, problem.sum_over_rows(AG * AG), steps + 1)


def damp(B: ComponentGram, damping: float) -> ComponentGram:
    """Return B + λ Diag B. The damping is relative per component, hence invariant to rescaling g_j against W_j.

    A thousandth of λ times the mean diagonal entry is added too, which keeps the system regular if B_jj is zero.
    """
    diagonal = jnp.diagonal(B)
    return B + damping * jnp.diag(diagonal + 1e-3 * jnp.mean(diagonal) + jnp.finfo(B.dtype).tiny)


def inverse(B: ComponentGram) -> ComponentGram:
    """Return B⁻¹. Multiplying by it is local to a shard of R, whereas a triangular solve would gather R.

    If rounding makes B indefinite, return the inverse of its diagonal, which still gives a descent direction.
    """
    factor = jax.lax.linalg.cholesky(B, symmetrize_input=False)
    identity = jnp.eye(B.shape[0], dtype=B.dtype)
    root = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    found = root.T @ root
    return jnp.where(jnp.isfinite(found).all(), found, jnp.diag(1 / jnp.diagonal(B)))
