"""How much of a Fisher its sparsified rows S still hold, from c×c Gram matrices alone.

‖F − SᵀS‖² = ‖A Aᵀ‖² − 2 ‖A Sᵀ‖² + ‖S Sᵀ‖², and every product needs A only where S is not zero.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from npeff_jax.pefs._selection import Selected


class Fidelity(NamedTuple):
    """What selection left of one example.

    Attributes:
        kept_trace: trace of the kept Fisher, in the unit of the rows.
        kept_norm: its Frobenius norm.
        error: ‖F − F_kept‖ / ‖F‖.
    """

    kept_trace: float
    kept_norm: float
    error: float


def diagonal_fidelity(values: Float[np.ndarray, "k"], squared_norm: float) -> Fidelity:
    """Of kept entries of the diagonal itself."""
    kept = values.astype(np.float64)
    squares = float(kept @ kept)
    return Fidelity(float(kept.sum()), squares**0.5, _root(squared_norm - squares, squared_norm))


def fidelity(selected: Selected, gram: Float[np.ndarray, "c c"]) -> Fidelity:
    """Of kept entries of a factor A, whose Gram matrix A Aᵀ, of all its c rows, is ``gram``."""
    A = selected.columns.astype(np.float64)  # what is missing is a small difference
    S = np.zeros(A.shape)
    S[: len(selected.kept)] = np.where(selected.kept, A[: len(selected.kept)], 0.0)
    cross, own = A @ S.T, S @ S.T
    whole = float(np.sum(gram**2))
    missing = whole - 2 * float(np.sum(cross**2)) + float(np.sum(own**2))
    return Fidelity(float(np.trace(own)), float(np.linalg.norm(own)), _root(missing, whole))


def _root(part: float, whole: float) -> float:
    """The relative norm of what is missing; rounding may make it slightly negative."""
    return (max(part, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
