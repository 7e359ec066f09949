"""Energy by parameter array and pairwise similarity of pseudo-Fisher vectors, in one pass over them."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from npeff_jax.factorization import Decomposition
from npeff_jax.pefs import FisherKind

_EXACT = 2**28
"""Largest number of entries of G (1 GB in float32) for which similarities are exact; above, they come from a sketch."""

_SKETCH = 2**14
"""Width of the sketch: the standard error of a cosine is 1 / sqrt(16384), 0.008."""


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Energy by parameter array and pairwise similarity of components.

    Attributes:
        energy: (r, arrays), share of each component's energy in each parameter array of the layout; rows sum to 1.
            The energy of a parameter is its contribution to the trace of H_j: g² for low-rank components, h for
            diagonal ones.
        similarity: (r, r), |cos| of the pseudo-Fisher vectors of each pair of components.
    """

    energy: Float[np.ndarray, "r arrays"]
    similarity: Float[np.ndarray, "r r"]


def anatomy(decomposition: Decomposition) -> Anatomy:
    """Compute energy by parameter array and the similarity of all pairs of components, reading each vector once."""
    layout, indices = decomposition.schema.layout, decomposition.parameter_indices
    array_of = np.searchsorted([p.offset for p in layout.parameters], indices, side="right") - 1
    r, width = decomposition.pseudo_fishers.shape
    exact = r * width <= _EXACT
    bucket, sign = (np.empty(0, int), np.empty(0)) if exact else _hash(width)
    energy = np.zeros((r, len(layout.parameters)))
    rows = np.zeros((r, width if exact else _SKETCH), np.float32)
    for j in range(r):
        vector = np.asarray(decomposition.pseudo_fishers[j], np.float32)
        trace = vector.astype(float) ** 2 if decomposition.kind is FisherKind.LOW_RANK else np.abs(vector.astype(float))
        energy[j] = np.bincount(array_of, trace, minlength=len(layout.parameters))
        rows[j] = vector if exact else np.bincount(bucket, vector * sign, minlength=_SKETCH)
    total = energy.sum(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1)
    norms[norms == 0] = 1.0
    cosines = np.abs(rows @ rows.T) / np.outer(norms, norms)
    return Anatomy(energy / np.where(total == 0, 1.0, total), np.clip(cosines, 0.0, 1.0).astype(float))


def _hash(width: int) -> tuple[Int[np.ndarray, "width"], Float[np.ndarray, "width"]]:
    """Draw a bucket and a sign per column for a count sketch, which keeps inner products in expectation."""
    random = np.random.default_rng(0)
    return random.integers(_SKETCH, size=width), random.choice([-1.0, 1.0], size=width)


def layout_by_similarity(similarity: Float[np.ndarray, "r r"], iterations: int = 200) -> Float[np.ndarray, "r 2"]:
    """Return points in [0, 1]² whose distances approximate 1 − similarity.

    Classical scaling gives the start; majorisation (SMACOF) follows, whose iterations never increase the stress.
    """
    r = len(similarity)
    if r == 1:
        return np.full((1, 2), 0.5)
    distance = 1.0 - similarity
    np.fill_diagonal(distance, 0.0)
    centre = np.eye(r) - 1.0 / r
    values, vectors = np.linalg.eigh(-0.5 * centre @ distance**2 @ centre)
    points = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    # Points that coincide in the initial layout would never separate: a small fixed spiral breaks the ties.
    angle = np.arange(r) * 2.399963
    points = points + 1e-3 * np.sqrt(np.arange(1, r + 1))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    for _ in range(iterations):
        now = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
        ratio = np.divide(distance, now, out=np.zeros_like(now), where=now > 1e-12)
        points = (ratio.sum(1)[:, None] * points - ratio @ points) / r
    low, span = points.min(0), np.ptp(points, axis=0).max() or 1.0
    return np.clip((points - low) / span + (1 - np.ptp(points, axis=0) / span) / 2, 0.0, 1.0)
