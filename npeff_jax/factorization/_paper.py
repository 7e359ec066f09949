"""The paper's algorithm for LRM-NPEFF, for comparison: multiplicative updates of W, a fixed learning rate for G.

After its section 2.2 and the authors' code. What differs from theirs: the loss counts each pair of rows once.
"""

from jaxtyping import Array, Float, Int

from npeff_jax.factorization._lrm import State, init
from npeff_jax.factorization._settings import GradientDescent
from npeff_jax.factorization.rows import RowSpace


def step(
    rows: RowSpace,
    owner: Int[Array, "N"],
    state: State,
    solver: GradientDescent,
    squared_norm: Float[Array, ""],
    *,
    n_frozen: int = 0,
    move_W: bool = True,
) -> State:
    """W ← W ∘ numerator / (W (G Gᵀ ∘ G Gᵀ) + ε), then G ← G − rate · ∇_G loss. Components before ``n_frozen`` stay."""
    W, G, AG, GG, numerator, _ = state
    if move_W:
        W = W * numerator / (W @ (GG * GG) + solver.epsilon)
    B = (W.T @ W) * GG
    M = (W if W.shape[0] == AG.shape[0] else W[owner]) * AG
    gradient = 4 * (B[n_frozen:] @ G - rows.pull(M[:, n_frozen:]))
    return init(rows, owner, W, G.at[n_frozen:].add(-solver.learning_rate * gradient))
