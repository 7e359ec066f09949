"""The paper's algorithm for LRM-NPEFF, for comparison: multiplicative updates of W, a fixed learning rate for G.

It follows section 2.2 and the authors' code, except that the loss counts each pair of rows once.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax.factorization._compile import full_precision
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.factorization.solvers._base import Factors, InitialFactors, solve_for_given
from npeff_jax.factorization.solvers._lrm import LowRankSolver, LowRankState


@dataclasses.dataclass(frozen=True)
class GradientDescent(LowRankSolver):
    """The paper's algorithm for LRM-NPEFF, for comparison: multiplicative updates of W, gradient descent on G.

    The start is that of the authors' code: W uniform in (0, 1), G normal with ‖g‖² = 2/r in expectation, and 200 steps
    on G only. One thing differs: their G is normal over all parameters, so lies almost entirely outside the span of the
    rows, where it only decays; here G is a normal combination of the rows, which every row space can represent.

    Attributes:
        learning_rate: learning rate of G; the default is that of the authors' code. A suitable value depends on the
            scale of the start.
        epsilon: added to the denominator of the multiplicative update, as in the authors' code.
        warm_up: number of initial steps on G only, with W fixed; skipped if only G is given.
    """

    learning_rate: float = 1e-3
    epsilon: float = 1e-9
    warm_up: int = 200

    supports = ("frozen",)
    remedy = "lower its learning_rate"

    def __post_init__(self) -> None:
        normalise(
            self,
            learning_rate=check_real("learning_rate", self.learning_rate, 0.0, np.inf, open_high=True),
            epsilon=check_real("epsilon", self.epsilon, 0.0, np.inf, open_high=True),
            warm_up=check_integer("warm_up", self.warm_up, 0),
        )

    def initial_coefficients(self, problem: Problem, n_components: int, seed: int) -> Float[np.ndarray, "n r"]:
        rng = np.random.default_rng([seed, 1])
        return rng.random((problem.n_examples, n_components), dtype=np.float32)

    def initial_vectors(self, problem: Problem, n_components: int, seed: int) -> Vectors:
        r = n_components + problem.n_frozen
        return super().initial_vectors(problem, n_components, seed) * np.float32(np.sqrt(2 / r))

    def start(self, problem: Problem, n_components: int, seed: int, given: InitialFactors) -> Factors:
        start = super().start(problem, n_components, seed, given)
        return solve_for_given(self, problem, start, given, type(self).warm_up)

    @full_precision
    def step(self, problem: Problem, state: LowRankState) -> LowRankState:
        """Update W ← W ∘ numerator / (W (G Gᵀ ∘ G Gᵀ) + ε), then G ← G − rate · ∇_G ‖F − Σ W H‖²."""
        W, G, AG, GG, numerator, steps = state
        f = problem.n_frozen
        W = jnp.where(steps < self.warm_up, W, W * numerator / (W @ (GG * GG) + self.epsilon))
        B = (W.T @ W) * GG
        M = problem.over_rows(W) * AG
        rate = 4 * self.learning_rate  # ∇_G loss = 4 (B G − Mᵀ A)
        moved, (AG, _, GG) = problem.rows.combine(G, jnp.eye(len(B), dtype=B.dtype)[f:] - rate * B[f:], rate * M[:, f:])
        if f:
            return self.init(problem, Factors(W, jnp.concatenate([G[:f], moved]), steps + 1))
        return LowRankState(W, moved, AG, GG, problem.sum_over_rows(AG * AG), steps + 1)
