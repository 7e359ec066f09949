"""From where the iterations ended to the result: unit vectors, a sign, an order, and what deserves a remark."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax.pefs import FisherKind

DEAD = 1e-8
"""A component with less than this fraction of ‖F‖² in its part of the fit, Σ_i W_ij², is reported as dead: below the
rounding of a float32 sum over the examples."""

DUPLICATE = 0.99
"""Two components with a |cosine| above this are reported as duplicates: what tests of recovery call the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """W in its final form, where each component stood, and remarks by final index."""

    W: np.ndarray
    order: np.ndarray
    dead: list[int]
    duplicates: list[list[int]]


def finish(
    W: Float[np.ndarray, "n r"], GG: Float[np.ndarray, "r r"], kind: FisherKind, squared_norm: float, n_frozen: int = 0
) -> Finished:
    """The scale of the vectors put into W, components ordered by contribution Σ_i W_ij²; frozen ones first, as they
    are. Their Gram matrix says all of it: no vector is looked at.
    """
    norm = np.sqrt(np.maximum(np.diagonal(GG).astype(np.float64), 0))
    norm = np.where(norm > 0, norm, 1.0)
    cosines = np.abs(GG / np.outer(norm, norm))
    norm[:n_frozen] = 1.0
    W = (W * (norm**2 if kind is FisherKind.LOW_RANK else norm)).astype(np.float32)  # g_j g_jᵀ is quadratic in g_j

    contribution = np.sum(W.astype(np.float64) ** 2, axis=0)
    order = np.concatenate([np.arange(n_frozen), n_frozen + np.argsort(-contribution[n_frozen:], kind="stable")])
    dead = np.flatnonzero(contribution[order] < DEAD * squared_norm)
    duplicates = np.argwhere(np.triu(cosines[np.ix_(order, order)], 1) > DUPLICATE)
    return Finished(W[:, order], order, dead.tolist(), duplicates.tolist())


class FinishedVectors:
    """G or H in its final form, (r, m'): rows are formed when they are read, so that there may be more than fit.

    Unit norm; a pseudo-Fisher of LRM-NPEFF has no sign, its largest entry is made positive. Frozen ones as they are.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, form: Callable[[Int[np.ndarray, "k"]], Float[np.ndarray, "k m"]], order: np.ndarray, width: int, f: int
    ) -> None:
        """``form`` gives vectors by where they stood, ``order`` says where each stood; the first ``f`` are frozen."""
        self._form, self._order, self._frozen, self.shape = form, order, f, (len(order), width)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: Any) -> np.ndarray:
        own = self._order[rows]
        G = np.array(self._form(np.atleast_1d(own)), np.float32)
        norm = np.sqrt(np.einsum("jk,jk->j", G, G, dtype=np.float64))
        sign = np.sign(G[np.arange(len(G)), np.abs(G).argmax(axis=1)])
        free = (np.atleast_1d(own) >= self._frozen) & (norm > 0)
        G /= np.where(free, norm * np.where(sign == 0, 1, sign), 1.0).astype(np.float32)[:, None]
        return G[0] if np.ndim(own) == 0 else G

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)
