"""Oracles for problems with a known answer, in dense float64 and without library code."""

import numpy as np
import scipy.optimize


def best_cosines(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|cosine| of every true vector with the found one that an optimal matching gives it."""
    norms = np.maximum(np.linalg.norm(found, axis=1), 1e-30)  # a dead component matches nothing
    cosines = np.abs(found @ truth.T) / norms[:, None] / np.linalg.norm(truth, axis=1)
    i, j = scipy.optimize.linear_sum_assignment(-cosines)
    return cosines[i, j]


def oracle_loss(fishers: np.ndarray, W: np.ndarray, G: np.ndarray) -> float:
    """‖F − Σ W H‖² / ‖F‖², by forming every matrix, in float64."""
    W, G = np.asarray(W, np.float64), np.asarray(G, np.float64)
    H = np.einsum("rj,rk->rjk", G, G) if fishers.ndim == 3 else G
    return float(np.sum((fishers - np.tensordot(W, H, axes=1)) ** 2) / np.sum(fishers**2))
