"""D-NPEFF the paper's way: the multiplicative updates of Lee & Seung for X ≈ W H."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from npeff_jax.factorization._compile import full_precision
from npeff_jax.factorization._nonnegative import multiplicative
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.solvers._base import Factors
from npeff_jax.factorization.solvers._hals import DiagonalSolver, DiagonalState


@dataclasses.dataclass(frozen=True)
class Multiplicative(DiagonalSolver):
    """D-NPEFF by the multiplicative updates of Lee & Seung, the paper's way.

    Attributes:
        epsilon: what a zero denominator is replaced by: the machine epsilon of float32, as in scikit-learn.
    """

    epsilon: float = float(np.finfo(np.float32).eps)

    @full_precision
    def step(self, problem: Problem, state: DiagonalState) -> DiagonalState:
        """W ← W ∘ X Hᵀ / (W H Hᵀ), then H ← H ∘ Wᵀ X / (WᵀW H). Protected components keep their vectors."""
        W, H, XH, HH, steps = state
        f = problem.n_frozen
        W = multiplicative(W, problem.sum_over_rows(XH), HH, self.epsilon)
        moved = multiplicative(H.T, problem.rows.pull_back(problem.over_rows(W)).T, W.T @ W, self.epsilon).T
        return self.init(problem, Factors(W, jnp.concatenate([H[:f], moved[f:]]), steps + 1))
