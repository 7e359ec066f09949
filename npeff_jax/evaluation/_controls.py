"""Rankings of the examples that a decomposition has to beat: what a concept search gives without one."""

import numpy as np
from jaxtyping import Float

from npeff_jax.evaluation._clustering import cluster
from npeff_jax.pefs import Pefs


def control_rankings(
    pefs: Pefs,
    coefficients: Float[np.ndarray, "n r"],
    activations: Float[np.ndarray, "n d"] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "n r"]]:
    """As many rankings of the examples as there are components, of each kind, for `search_concepts`.

    ``permuted``: the coefficients, each component's permuted over the examples. ``random directions``: dᵀ F_i d for d
    a normally distributed combination of all rows of all examples, so in their span, where any pseudo-Fisher lies too:
    what the Fishers group without being decomposed. ``random examples``: ⟨F_i, F_e⟩ with an example e drawn for each:
    its neighbours. ``predicted class``: whether it is the example's, classes by turns. ``k-means``: closeness to the
    centroids of as many clusters of activations.

    Args:
        pefs: what was decomposed.
        coefficients: W.
        activations: of the examples; k-means is left out without them.
        seed: of permutations, directions, examples and clusters.
    """
    random = np.random.default_rng(seed)
    r = coefficients.shape[1]
    A = pefs.to_scipy()
    directions = A.T @ random.normal(size=(A.shape[0], r)).astype(np.float32)
    owner = np.repeat(np.arange(pefs.n_examples), np.asarray(pefs.n_rows))
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    drawn = random.choice(len(starts), r, replace=r > len(starts))
    own = np.isin(owner, drawn)
    near = (A @ A[own].T).power(2) @ (owner[own][:, None] == drawn)  # rows with rows, then each example's summed
    predicted = np.eye(pefs.logits.shape[1])[np.asarray(pefs.logits).argmax(1)]  # not logits: their rounding would rank
    rankings = {
        "permuted": random.permuted(coefficients, axis=0),
        "random directions": np.add.reduceat(np.asarray(A @ directions) ** 2, starts, axis=0),
        "random examples": np.add.reduceat(near, starts, axis=0),
        "predicted class": predicted[:, np.arange(r) % predicted.shape[1]],
    }
    if activations is not None:
        centroids = cluster(activations, r, seed=seed).centroids
        squares = (activations**2).sum(1)[:, None] + (centroids**2).sum(1) - 2 * activations @ centroids.T
        rankings["k-means"] = -squares
    return rankings
