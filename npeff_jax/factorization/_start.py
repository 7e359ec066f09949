"""Where the iterations start: from a seed, the same on every row space, or from what is given."""

import jax.numpy as jnp
import numpy as np

from npeff_jax._sharding import replicate
from npeff_jax._types import RowProducts
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization._settings import GradientDescent, Multiplicative, Solver
from npeff_jax.factorization.rows import RowSpace, Vectors


def start_vectors(rows: RowSpace, r: int, seed: int, *, nonnegative: bool) -> Vectors:
    """R unit vectors in the span of the rows, G = U A: what every row space can form alike.

    U is normal for LRM-NPEFF. For D-NPEFF it is a few rows a component, distinct enough to part, and a little of
    every row, because a multiplicative update leaves zeros zero.
    """
    rng = np.random.default_rng(seed)
    if nonnegative:
        U = np.full((rows.n_rows, r), 0.01 / rows.n_rows, np.float32)
        for j in range(r):
            np.add.at(U[:, j], rng.integers(rows.n_rows, size=5), rng.random(5, dtype=np.float32))
    else:
        U = rng.standard_normal((rows.n_rows, r), dtype=np.float32)
    return combine(rows, replicate(U, rows.mesh))


@jit
def combine(rows: RowSpace, U: RowProducts) -> Vectors:
    """Uᵀ A, each vector at unit norm."""
    G = rows.pull(U)
    norm = jnp.sqrt(jnp.diagonal(rows.inner(G, G)[1]))
    return G / jnp.where(norm > 0, norm, 1.0)[:, None]


def start_coefficients(n: int, r: int, seed: int, solver: Solver) -> np.ndarray:
    """W to start from: zero where the first sweep is exact, random where updates are products or W is held at first."""
    if isinstance(solver, GradientDescent | Multiplicative) or getattr(solver, "warm_up", 0) > 0:
        # Entries around 1/r: n examples of unit norm are then met in the right order of magnitude.
        return np.random.default_rng([seed, 1]).random((n, r), dtype=np.float32) * 2 / r
    return np.zeros((n, r), np.float32)
