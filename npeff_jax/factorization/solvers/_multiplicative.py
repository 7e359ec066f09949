"""The paper's algorithm for D-NPEFF: the multiplicative updates of Lee & Seung for X ≈ W H."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._checks import check_real, normalise
from npeff_jax._types import Coefficients
from npeff_jax.factorization._compile import full_precision, jit
from npeff_jax.factorization._nonnegative import multiplicative
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.factorization.solvers._base import Factors, InitialFactors
from npeff_jax.factorization.solvers._hals import DiagonalSolver, DiagonalState


@dataclasses.dataclass(frozen=True)
class Multiplicative(DiagonalSolver):
    """The paper's algorithm for D-NPEFF: the multiplicative updates of Lee & Seung.

    Attributes:
        epsilon: replacement for zero denominators; by default the machine epsilon of float32, as in scikit-learn.
    """

    epsilon: float = float(np.finfo(np.float32).eps)

    def __post_init__(self) -> None:
        normalise(self, epsilon=check_real("epsilon", self.epsilon, 0.0, np.inf, open_low=True, open_high=True))

    def start(self, problem: Problem, n_components: int, seed: int, given: InitialFactors) -> Factors:
        start = super().start(problem, n_components, seed, given)
        if given.coefficients is None or given.pseudo_fishers is not None:
            return start
        return start._replace(G=_vectors_for(problem.on_device(), start.W, start.G, epsilon=self.epsilon))

    @full_precision
    def step(self, problem: Problem, state: DiagonalState) -> DiagonalState:
        """Update W ← W ∘ X Hᵀ / (W H Hᵀ), then H ← H ∘ Wᵀ X / (WᵀW H). Protected vectors stay fixed."""
        W, H, XH, HH, steps = state
        f = problem.n_frozen
        W = multiplicative(W, problem.sum_over_rows(XH), HH, self.epsilon)
        moved = multiplicative(H.T, problem.rows.pull_back(problem.over_rows(W)).T, W.T @ W, self.epsilon).T
        return self.init(problem, Factors(W, jnp.concatenate([H[:f], moved[f:]]), steps + 1))


UPDATES = 50
"""Updates of H only, if W is given: otherwise the first update of W would fit it to a random H."""


@functools.partial(jit, static_argnames=("epsilon",))
@full_precision
def _vectors_for(problem: Problem, W: Coefficients, H: Vectors, *, epsilon: float) -> Vectors:
    """Return H after multiplicative updates for a given W; protected vectors stay fixed."""
    b, P = problem.rows.pull_back(problem.over_rows(W)).T, W.T @ W
    moved = jax.lax.fori_loop(0, UPDATES, lambda _, V: multiplicative(V, b, P, epsilon), H.T).T
    return jnp.concatenate([H[: problem.n_frozen], moved[problem.n_frozen :]])
