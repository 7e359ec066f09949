"""Final form of the factors: unit vectors, a sign, an order, and lists of dead and duplicate components."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._machine import on_cores
from npeff_jax.pefs import FisherKind

DEAD = 1e-8
"""Contribution to the fit, Σ_i W_ij² / ‖F‖², below which a component is reported as dead: it is less than the rounding
error of a float32 sum over the examples."""

DUPLICATE = 0.99
"""|Cosine| above which two components are reported as duplicates; the tests of recovery use the same threshold."""


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """W in its final form, the order of the components, and dead and duplicate components by final index.

    Attributes:
        W: coefficients, (n, r).
        order: (r,), the index of each component before reordering.
        dead: components below `DEAD`.
        duplicates: pairs above `DUPLICATE`.
    """

    W: np.ndarray
    order: np.ndarray
    dead: list[int]
    duplicates: list[list[int]]


def finish(
    W: Float[np.ndarray, "n r"],
    GG: Float[np.ndarray, "r r"],
    kind: FisherKind,
    squared_norm: float,
    n_frozen: int = 0,
    n_named: int = 0,
) -> Finished:
    """Move the scale of the vectors into W and order components by contribution Σ_i W_ij².

    Frozen components come first in their order, then named ones in theirs. Only the Gram matrix of the vectors is used.
    """
    norm = np.sqrt(np.maximum(np.diagonal(GG).astype(np.float64), 0))
    norm = np.where(norm > 0, norm, 1.0)
    cosines = np.abs(GG / np.outer(norm, norm))
    norm[:n_frozen] = 1.0
    W = (W * (norm**2 if kind is FisherKind.LOW_RANK else norm)).astype(np.float32)  # g_j g_jᵀ is quadratic in g_j

    contribution = np.sum(W.astype(np.float64) ** 2, axis=0)
    kept = n_frozen + n_named
    order = np.concatenate([np.arange(kept), kept + np.argsort(-contribution[kept:], kind="stable")])
    dead = np.flatnonzero(contribution[order] < DEAD * squared_norm)
    duplicates = np.argwhere(np.triu(cosines[np.ix_(order, order)], 1) > DUPLICATE)
    return Finished(W[:, order], order, dead.tolist(), duplicates.tolist())


class FinishedVectors:
    """G or H in its final form, (r, m'). Rows are formed when they are read, so all together may exceed memory.

    Vectors have unit norm. The sign of a pseudo-Fisher of LRM-NPEFF is arbitrary; its largest entry is made positive.
    Frozen vectors are returned bit-identical to those given, because some row spaces hold only their products.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        form: Callable[[Int[np.ndarray, "k"]], Float[np.ndarray, "k m"]],
        order: np.ndarray,
        frozen: Float[np.ndarray, "f m"],
    ) -> None:
        """Keep ``form``, which maps indices before reordering to vectors, the ``order``, and the ``frozen`` vectors."""
        self._form, self._order, self._frozen, self.shape = form, order, frozen, (len(order), frozen.shape[1])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: Any) -> np.ndarray:
        own = self._order[rows]
        places, f = np.atleast_1d(own), len(self._frozen)
        free = np.flatnonzero(places >= f)
        found = np.asarray(self._form(places[free]) if len(free) else np.zeros((0, self.shape[1])), np.float32)
        in_place = len(free) == len(places) and found.flags.writeable
        G = found if in_place else np.empty((len(places), self.shape[1]), np.float32)
        G[places < f] = self._frozen[places[places < f]]
        on_cores(lambda k: _scale_to_unit(found[k], G[free[k]]), range(len(free)))
        return G[0] if np.ndim(own) == 0 else G

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


SUMMED = 4096
"""Number of squares summed in float32 before accumulating in float64; the relative error of the sum is below 1e-6."""


def _scale_to_unit(vector: Float[np.ndarray, "m"], out: Float[np.ndarray, "m"]) -> None:
    """Write a vector to ``out`` scaled to unit norm with its largest entry positive; a zero vector stays zero."""
    whole = len(vector) - len(vector) % SUMMED
    parts, rest = vector[:whole].reshape(-1, SUMMED), vector[whole:]
    square = float(np.einsum("pk,pk->p", parts, parts).sum(dtype=np.float64) + np.dot(rest, rest))
    if not 1e-20 < square < 1e20:  # squares may overflow or underflow float32
        square = float(np.einsum("k,k->", vector, vector, dtype=np.float64))
    norm = np.sqrt(square)
    sign = -1.0 if -vector.min(initial=0) > vector.max(initial=0) else 1.0
    np.multiply(vector, np.float32(sign / norm if norm > 0 else 1.0), out=out)
