"""Prediction of the effect of a move from the decomposition (eq. 5), and agreement with the measured effect."""

import numpy as np
import scipy.stats
from jaxtyping import Float

from npeff_jax._checks import check_real
from npeff_jax._types import PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind, Normalization
from npeff_jax.perturbation import Subject, check_decomposition_of, check_direction

_BLOCK_BYTES = 2**28
"""Size of a block of pseudo-Fisher vectors in memory, in bytes."""


def predicted_kl(
    model: Model,
    decomposition: Decomposition,
    coefficients: Float[np.ndarray, "n r"],
    norms: Float[np.ndarray, "n"],
    direction: PyTree,
    scale: float = 1.0,
) -> Float[np.ndarray, "n"]:
    """Predict KL ≈ α_i/2 Σ_j W_ij δᵀ H_j δ per example, in nats (eq. 5), without running the model.

    Args:
        model: the model that was decomposed.
        decomposition: a decomposition of either kind.
        coefficients: W of the examples.
        norms: α, the Frobenius norms of the examples' PEFs (`Pefs.norms`).
        direction: a pytree shaped like the parameters.
        scale: step size, δ = scale · direction.

    Raises:
        TypeError: ``model`` or ``decomposition`` has the wrong type.
        ValueError: the decomposition is of another model, or shapes disagree.
    """
    check_decomposition_of(model, decomposition)
    check_direction(model, direction)
    coefficients, norms = np.asarray(coefficients), np.asarray(norms)
    if coefficients.shape != (norms.size, decomposition.n_components):
        raise ValueError(
            f"coefficients have shape {coefficients.shape}; expected ({norms.size}, {decomposition.n_components}), one "
            "row per norm and one column per component"
        )
    scale = check_real("scale", scale, -np.inf, np.inf, open_low=True, open_high=True)
    delta = np.asarray(model.space.ravel(direction))[decomposition.parameter_indices]
    return predict(Subject(model, decomposition), coefficients, norms, delta[None])[0] * scale**2


def predict(
    subject: Subject,
    coefficients: Float[np.ndarray, "n r"],
    norms: Float[np.ndarray, "n"],
    deltas: Float[np.ndarray, "d m_kept"],
) -> Float[np.ndarray, "d n"]:
    """Compute `predicted_kl` of d moves (d, m'), without checking the arguments."""
    curvatures = _curvatures(subject.decomposition, deltas)
    # Raw PEFs are not divided by their norm, so their coefficients contain it.
    raw = subject.decomposition.schema.normalization == Normalization.NONE.value
    return (1.0 if raw else norms) / 2 * (curvatures @ coefficients.T)


def component_curvatures(decomposition: Decomposition, direction: Float[np.ndarray, "m"]) -> Float[np.ndarray, "r"]:
    """Compute δᵀ H_j δ for every component: (g_j·δ)², or h_j·δ² for diagonal components."""
    return _curvatures(decomposition, np.asarray(direction)[None, decomposition.parameter_indices])[0]


def _curvatures(decomposition: Decomposition, deltas: Float[np.ndarray, "d m_kept"]) -> Float[np.ndarray, "d r"]:
    """Compute `component_curvatures` of d moves, in one pass over the pseudo-Fisher vectors."""
    size = np.abs(deltas).max(axis=1, initial=0.0, keepdims=True)
    size = np.where(size > 0, size, 1.0)  # squares of a small δ underflow in float32
    unit = (deltas / size).astype(np.float32)
    low_rank = decomposition.kind is FisherKind.LOW_RANK
    unit = unit if low_rank else unit**2
    vectors = decomposition.pseudo_fishers
    block = max(1, _BLOCK_BYTES // (4 * max(unit.size, 1)))  # G may be larger than memory
    parts = [np.asarray(vectors[j : j + block]) @ unit.T for j in range(0, len(vectors), block)]
    products = np.concatenate(parts).T.astype(np.float64)
    return (products**2 if low_rank else products) * np.square(size, dtype=np.float64)


def rank_correlation(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> float:
    """Compute the Spearman rank correlation, with mean ranks for ties; NaN if an argument is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(first, second).statistic)


def rank_agreement(predicted: Float[np.ndarray, "n"], measured: Float[np.ndarray, "n"]) -> float:
    """Compute the Spearman correlation of a prediction with ties, averaged over all orders of the tied examples.

    Examples with a coefficient of exactly zero are tied in the prediction. `rank_correlation` divides by the smaller
    spread of tied ranks, which counts ties as if they were predicted correctly; here they contribute nothing.

    Returns:
        The correlation; NaN if an argument is constant.
    """
    ties = [scipy.stats.tiecorrect(scipy.stats.rankdata(values)) for values in (predicted, measured)]
    return rank_correlation(predicted, measured) * float(np.sqrt(np.prod(ties)))
