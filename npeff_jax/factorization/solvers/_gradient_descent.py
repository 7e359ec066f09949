"""The paper's algorithm for LRM-NPEFF, for comparison: multiplicative updates of W, a fixed learning rate for G.

After its section 2.2 and the authors' code. What differs from theirs: the loss counts each pair of rows once.
"""

import dataclasses

import jax.numpy as jnp

from npeff_jax.factorization._compile import full_precision
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.solvers._base import Factors
from npeff_jax.factorization.solvers._lrm import LowRankSolver, LowRankState


@dataclasses.dataclass(frozen=True)
class GradientDescent(LowRankSolver):
    """The paper's algorithm for LRM-NPEFF, for comparison: multiplicative W, gradient steps of a fixed rate on G.

    Attributes:
        learning_rate: of G. 1e-3 is the default of the authors' code.
        epsilon: added to the denominator of the multiplicative update, as there.
        warm_up: first steps that move G alone.
    """

    learning_rate: float = 1e-3
    epsilon: float = 1e-9
    warm_up: int = 0

    supports = ("frozen",)
    remedy = "lower its learning_rate"

    @full_precision
    def step(self, problem: Problem, state: LowRankState) -> LowRankState:
        """W ← W ∘ numerator / (W (G Gᵀ ∘ G Gᵀ) + ε), then G ← G − rate · ∇_G loss, where loss is ‖F − Σ W H‖²."""
        W, G, AG, GG, numerator, steps = state
        f = problem.n_frozen
        W = jnp.where(steps < self.warm_up, W, W * numerator / (W @ (GG * GG) + self.epsilon))
        B = (W.T @ W) * GG
        M = problem.over_rows(W) * AG
        rate = 4 * self.learning_rate  # of B G − Mᵀ A
        moved, (AG, _, GG) = problem.rows.combine(G, jnp.eye(len(B), dtype=B.dtype)[f:] - rate * B[f:], rate * M[:, f:])
        if f:
            return self.init(problem, Factors(W, jnp.concatenate([G[:f], moved]), steps + 1))
        return LowRankState(W, moved, AG, GG, problem.sum_over_rows(AG * AG), steps + 1)
