"""Which examples a component stands for."""

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from npeff_jax._checks import check_in_range


def top_examples(coefficients: Float[np.ndarray, "n r"], component: int, k: int) -> Int[np.ndarray, "k"]:
    """Indices of the k examples with a component's highest coefficients, the highest first (section 2.2).

    Equal coefficients keep the order of the examples.

    Args:
        coefficients: W, of the examples the decomposition was found in or of others (`fit_coefficients`).
        component: which.
        k: how many.

    Raises:
        ValueError: k or the component is out of range.
    """
    n, r = coefficients.shape
    check_in_range("component", component, 0, r - 1)
    check_in_range("k", k, 1, n)
    return np.argsort(-coefficients[:, component], kind="stable")[:k]


def rank_correlation(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> float:
    """Spearman's correlation, ties ranked by their mean; NaN where one of the two is constant."""
    ranks = np.stack([scipy.stats.rankdata(first), scipy.stats.rankdata(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.prod(np.sum(ranks**2, axis=1)))
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else float("nan")
