"""How much of a Fisher its sparsified rows S still hold, from c×c Gram matrices alone.

‖F − SᵀS‖² = ‖A Aᵀ‖² − 2 ‖A Sᵀ‖² + ‖S Sᵀ‖², and every product needs A only where S is not zero.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from npeff_jax.pefs._schema import Kind
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


def fidelity(
    kind: Kind,
    selected: Selected,
    gathered: Float[np.ndarray, "k c"],
    gram: Float[np.ndarray, "c c"],
    n_rows: int,
    size: int,
) -> Fidelity:
    """Trace, norm and error of the kept entries.

    Args:
        kind: whether the row is a factor or already the diagonal.
        selected: the kept entries.
        gathered: all rows at the parameters of the kept entries.
        gram: of all c rows.
        n_rows: how many of them, from the first, could be kept.
        size: m.
    """
    values = selected.values.astype(np.float64)
    if kind is Kind.DIAGONAL:
        whole, kept = float(gram[0, 0]), float(values @ values)
        return Fidelity(float(values.sum()), kept**0.5, _root(whole - kept, whole))
    c = gathered.shape[1]
    absolute = np.abs(gathered)
    flat = selected.indices[:, None] + size * np.arange(c)
    kept_here = (absolute > selected.threshold) | ((absolute == selected.threshold) & (flat <= selected.last_tie))
    kept_here[:, n_rows:] = False
    starts = np.searchsorted(selected.rows, np.arange(c + 1))
    cross, own = np.zeros((c, c)), np.zeros((c, c))
    for row, (start, stop) in enumerate(itertools.pairwise(starts)):
        here = gathered[start:stop].astype(np.float64)
        cross[row] = values[start:stop] @ here
        own[row] = values[start:stop] @ np.where(kept_here[start:stop], here, 0.0)
    whole = float(np.sum(gram.astype(np.float64) ** 2))
    missing = whole - 2 * float(np.sum(cross**2)) + float(np.sum(own**2))
    return Fidelity(float(np.trace(own)), float(np.linalg.norm(own)), _root(missing, whole))


def _root(part: float, whole: float) -> float:
    """The relative norm of what is missing; rounding may make it slightly negative."""
    return (max(part, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
