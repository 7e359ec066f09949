"""Orthogonal rejection among pseudo-Fisher vectors, done on their r×r Gram matrix (section 2.3).

Every direction is a combination M_j G of the pseudo-Fisher vectors, so all that rejection decides is M (r, r). What it
needs is the Gram matrix Γ = G Gᵀ in float64: m' appears in one pass over G for Γ, and in one for M G.
"""

import numpy as np
from jaxtyping import Float

from npeff_jax._types import RowArray

MINIMUM_REMAINDER = 1e-3
"""Least norm of what rejection leaves, as a fraction of ‖g_j‖: below it, the rounding of vectors stored in float32
would be more than a ten-thousandth of the remainder."""

_BLOCK_BYTES = 2**28
"""Float64 scratch for one block of rows; large enough for BLAS, small beside the vectors themselves."""


def pseudo_fisher_gram(vectors: RowArray) -> Float[np.ndarray, "r r"]:
    """Γ = G Gᵀ, accumulated in float64, a pair of row blocks at a time."""
    r, width = vectors.shape
    block = _rows_in_a_block(width)
    gram = np.zeros((r, r))
    for i in range(0, r, block):
        left = np.asarray(vectors[i : i + block], np.float64)
        gram[i : i + block, i : i + block] = left @ left.T
        for j in range(i + block, r, block):
            gram[i : i + block, j : j + block] = left @ np.asarray(vectors[j : j + block], np.float64).T
            gram[j : j + block, i : i + block] = gram[i : i + block, j : j + block].T
    return gram


def direction_weights(
    gram: Float[np.ndarray, "r r"], component: int, reject_below: float | None
) -> Float[np.ndarray, "r"]:
    """M_j: the unit direction of a component as a combination of pseudo-Fisher vectors.

    Plain, it is g_j / ‖g_j‖. With a threshold, it is what remains of g_j outside the span of every g_k with
    |cos(g_j, g_k)| below it. The span's basis is the singular vectors above rounding, because the vectors are neither
    orthogonal (subtracting them one after the other rejects nothing exactly) nor independent (duplicates make QR reject
    noise).

    Args:
        gram: Γ.
        component: j.
        reject_below: the threshold, or None for the plain direction.

    Raises:
        ValueError: g_j is zero, or nothing of it remains.
    """
    norm = np.sqrt(gram[component, component])
    if not norm > 0:
        raise ValueError(f"component {component} has a zero pseudo-Fisher vector, so it has no direction")
    weights = np.zeros(len(gram))
    weights[component] = 1 / norm
    if reject_below is None:
        return weights
    norms = np.sqrt(np.diag(gram))
    alive = norms > 0
    scaled = gram / np.where(alive, norms, 1.0) / np.where(alive, norms, 1.0)[:, None]  # cosines
    others = np.flatnonzero(alive & (np.abs(scaled[component]) < reject_below) & (np.arange(len(gram)) != component))
    if others.size == 0:
        return weights
    eigenvalues, basis = np.linalg.eigh(scaled[np.ix_(others, others)])
    # Eigenvalues are squared singular values: float32 vectors cannot tell directions apart below eps of the largest.
    kept = eigenvalues > (others.size * np.finfo(np.float32).eps) ** 2 * eigenvalues[-1]
    projection = basis[:, kept] @ ((basis[:, kept].T @ scaled[others, component]) / eigenvalues[kept])
    weights[others] = -projection / norms[others]
    remainder = np.sqrt(max(weights @ gram @ weights, 0.0))
    if remainder < MINIMUM_REMAINDER:
        raise ValueError(
            f"nothing of component {component} remains outside the span of the {others.size} components it was "
            f"rejected from (norm {remainder:.1e} of 1); use a smaller reject_below than {reject_below}, or None"
        )
    return weights / remainder


def combine(weights: Float[np.ndarray, "d r"], vectors: RowArray) -> Float[np.ndarray, "d m_kept"]:
    """M G in float64, reading ``vectors`` by blocks of rows: rejection cancels digits that float32 does not have."""
    used = np.flatnonzero(np.any(weights != 0, axis=0))
    total = np.zeros((len(weights), vectors.shape[1]))
    block = _rows_in_a_block(vectors.shape[1])
    for i in range(0, used.size, block):
        rows = used[i : i + block]
        total += weights[:, rows] @ np.asarray(vectors[rows], np.float64)
    return total


def _rows_in_a_block(width: int) -> int:
    return max(1, _BLOCK_BYTES // (8 * max(width, 1)))
