"""From where the iterations ended to the result: unit vectors, a sign, an order, and what deserves a remark."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._machine import on_cores
from npeff_jax.pefs import FisherKind

DEAD = 1e-8
"""A component with less than this fraction of ‖F‖² in its part of the fit, Σ_i W_ij², is reported as dead: below the
rounding of a float32 sum over the examples."""

DUPLICATE = 0.99
"""Two components with a |cosine| above this are reported as duplicates: what tests of recovery call the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """W in its final form, where each component stood, and remarks by final index.

    Attributes:
        W: coefficients, (n, r).
        order: where each component stood.
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
    """Put the scale of the vectors into W and order components by contribution Σ_i W_ij²; frozen ones first, as they
    are, then named ones in their order. Their Gram matrix is enough: no vector is looked at.
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
    """G or H in its final form, (r, m'): rows are formed when they are read, so that there may be more than fit.

    Unit norm; a pseudo-Fisher of LRM-NPEFF has no sign, its largest entry is made positive. Frozen ones are as
    given, to the bit: some row spaces hold them as products.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        form: Callable[[Int[np.ndarray, "k"]], Float[np.ndarray, "k m"]],
        order: np.ndarray,
        frozen: Float[np.ndarray, "f m"],
    ) -> None:
        """``form`` gives vectors by where they stood, ``order`` says where; the first are ``frozen``."""
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
"""Squares that are summed in float32 before float64 takes over: the sum is then within 1e-6."""


def _scale_to_unit(vector: Float[np.ndarray, "m"], out: Float[np.ndarray, "m"]) -> None:
    """Write a vector at unit norm, its largest entry positive; zeros stay zeros."""
    whole = len(vector) - len(vector) % SUMMED
    parts, rest = vector[:whole].reshape(-1, SUMMED), vector[whole:]
    square = float(np.einsum("pk,pk->p", parts, parts).sum(dtype=np.float64) + np.dot(rest, rest))
    if not 1e-20 < square < 1e20:  # some of its squares may be beyond float32
        square = float(np.einsum("k,k->", vector, vector, dtype=np.float64))
    norm = np.sqrt(square)
    sign = -1.0 if -vector.min(initial=0) > vector.max(initial=0) else 1.0
    np.multiply(vector, np.float32(sign / norm if norm > 0 else 1.0), out=out)
