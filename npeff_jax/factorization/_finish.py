"""From where the iterations ended to the result: unit vectors, a sign, an order, and what deserves a remark."""

import dataclasses

import numpy as np

from npeff_jax.pefs import Kind

DEAD = 1e-8
"""A component with less than this fraction of ‖F‖² in its part of the fit, Σ_i W_ij², is reported as dead: below the
rounding of a float32 sum over the examples."""

DUPLICATE = 0.99
"""Two components with a |cosine| above this are reported as duplicates: what tests of recovery call the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """W and G in their final form, and remarks by final index."""

    W: np.ndarray
    G: np.ndarray
    dead: list[int]
    duplicates: list[list[int]]


def finish(W: np.ndarray, G: np.ndarray, kind: Kind, squared_norm: float, n_frozen: int = 0) -> Finished:
    """Unit pseudo-Fishers with the scale in W, ordered by contribution Σ_i W_ij²; frozen ones first, as they are.

    A pseudo-Fisher of LRM-NPEFF has no sign; its largest entry is made positive.
    """
    W = np.array(W, np.float32)
    G = np.array(G, np.float32)
    free = G[n_frozen:]
    norm = np.sqrt(np.einsum("jk,jk->j", free, free, dtype=np.float64)).astype(np.float32)
    norm = np.where(norm > 0, norm, 1)
    sign = np.sign(free[np.arange(len(free)), np.abs(free).argmax(axis=1)])
    free /= (norm * np.where(sign == 0, 1, sign))[:, None]
    W[:, n_frozen:] *= norm**2 if kind is Kind.LOW_RANK else norm  # g_j g_jᵀ is quadratic in g_j, Diag(h_j) linear

    contribution = np.sum(W.astype(np.float64) ** 2, axis=0)
    order = np.concatenate([np.arange(n_frozen), n_frozen + np.argsort(-contribution[n_frozen:], kind="stable")])
    W, G, contribution = W[:, order], G[order], contribution[order]
    cosines = np.abs(np.triu(G @ G.T, 1))
    dead = np.flatnonzero(contribution < DEAD * squared_norm)
    return Finished(W, G, dead.tolist(), np.argwhere(cosines > DUPLICATE).tolist())
