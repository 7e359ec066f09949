"""Out of local minima: components that are missed least give their place to what is left unexplained most.

A run that stands still has often spent two components on one concept and one on two. Alternating steps do not leave
such a minimum. An exchange does: some components are replaced at once, and a window of steps later the loss says
whether that paid. Both sides have a price, with all other components refitted:

    P_jk      (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF
    removal   ‖W_j‖² / (P⁻¹)_jj
    gain      ‖max(b, 0)‖² / (P_cc − P_cG P⁻¹ P_Gc), b_i = cᵀ (F_i − Σ_j W_ij g_j g_jᵀ) c for a candidate c

Candidates are found as a tensor's components are: from the rows that are explained worst, by power iterations on what
is left, c ← Σ_i max(b_i, 0) (F_i − Σ_j W_ij g_j g_jᵀ) c, all at once for the price of a solver's step each.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._sharding import fetch, replicate
from npeff_jax._types import Coefficients, ComponentGram, RowProducts
from npeff_jax.factorization._compile import full_precision, jit
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization.row_spaces import Vectors
from npeff_jax.pefs import FisherKind

POWER = 2
"""Power iterations on the candidates. One leaves some of them short of a component, more merge them (studied)."""

SHARE = 4
"""At most one component in so many is replaced at once: the others have to adapt within one window."""

WORTH = 0.25
"""Gain over removal's price below which an exchange is not tried. Steps after an exchange gain beyond its price, so
ratios under 1 may pay; of the exchanges of seven problems none below 0.27 did."""

PATIENCE = 5
"""Single exchanges in a row that did not pay, after which there are no more."""

RIDGE = 1e-6
"""Of P, as a fraction of its mean diagonal: copies make it singular, and this is above its rounding."""

SPANNED = 1e-3
"""Fraction of P_cc that is left beside all others, below which a candidate counts as a component that is there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Offer:
    """Replacements at a point, best first on both sides.

    Attributes:
        vectors: candidates, (p, size), unit vectors on the devices.
        chosen: numbers of candidates.
        gains: what the loss would fall by with each, after those before it.
        dropped: components to give up.
        costs: what the loss would rise by without each, after those before it.
    """

    vectors: Vectors
    chosen: Int[np.ndarray, "k"]
    gains: Float[np.ndarray, "k"]
    dropped: Int[np.ndarray, "k"]
    costs: Float[np.ndarray, "k"]


@dataclasses.dataclass(eq=False)
class Search:
    """The exchanges of a run: how many components at once, and when there is nothing left to try.

    Attributes:
        cap: components that the next trial may replace; 0: as many as one in `SHARE`.
        passed: candidates of the present offer that failed on their own.
        failures: single exchanges in a row that did not pay.
        over: whether there are no more.
        paid: whether the last one paid.
        offer: at the best point so far; None until it is needed.
    """

    cap: int = 0
    passed: int = 0
    failures: int = 0
    over: bool = False
    paid: bool = False
    offer: Offer | None = None

    @property
    def counters(self) -> tuple[int, ...]:
        """What a checkpoint holds; the offer is made anew."""
        return self.cap, self.passed, self.failures, int(self.over), int(self.paid)

    @classmethod
    def resume(cls, counters: list[int]) -> "Search":
        """Return the search of `counters`."""
        cap, passed, failures, over, paid = counters
        return cls(cap, passed, failures, bool(over), bool(paid))

    def replacements(self, n_free: int) -> dict[int, int]:
        """Return which component gives its place to which candidate next; empty where no trial is worth it.

        As many as pay by their prices, at least one.
        """
        offer, most = self.offer, max(1, n_free // SHARE)
        assert offer is not None
        left = slice(self.passed, None)
        chosen, gains = offer.chosen[left], offer.gains[left]
        dropped, costs = offer.dropped[: len(chosen)], offer.costs[: len(chosen)]
        count = min(max(1, int(np.sum(gains > costs))), self.cap or most, most, len(chosen))
        if count == 0 or gains[:count].sum() < WORTH * costs[:count].sum():
            self.over = True
            return {}
        return dict(zip(dropped[:count].tolist(), chosen[:count].tolist(), strict=True))

    def judge(self, count: int, *, paid: bool) -> None:
        """Take over whether a trial of ``count`` replacements paid: twice as many next, or half, or another one."""
        self.paid = paid
        if paid:
            self.cap, self.passed, self.failures, self.offer = 2 * self.cap, 0, 0, None
            return
        if count == 1:
            self.passed, self.failures = self.passed + 1, self.failures + 1
        self.cap, self.over = max(1, count // 2), self.failures >= PATIENCE


def make_offer(problem: Problem, W: Coefficients, G: Vectors) -> Offer:
    """Find candidates for what W and G leave unexplained, and price both sides of their exchange."""
    f, r = problem.n_kept, W.shape[1]
    assert problem.origin is not None
    energy = replicate(np.asarray(problem.origin.energy, np.float32), problem.rows.mesh)
    C, *products = candidates(problem.on_device(), energy, W, G, count=min(r - f, problem.n_examples))
    b, P_GC, P_CC, P = (fetch(array) for array in products)
    most = max(1, (r - f) // SHARE) + PATIENCE  # single ones may be passed over
    chosen, gains = best_candidates(b, P_GC, P_CC, P, most)
    dropped, costs = least_missed(fetch(W), P, min(len(chosen), r - f), n_frozen=f)
    k = len(dropped)
    return Offer(C, chosen[:k], gains[:k], dropped, costs)


@functools.partial(jit, static_argnames=("count",))
@full_precision
def candidates(
    problem: Problem, energy: Float[Array, "N"], W: Coefficients, G: Vectors, *, count: int
) -> tuple[Vectors, Float[Array, "n p"], Float[Array, "r p"], Float[Array, "p p"], ComponentGram]:
    """Return unit vectors C for what W and G leave unexplained, and what their prices need.

    Args:
        problem: what is factorized.
        energy: ‖a‖² of each row.
        W: coefficients.
        G: vectors, in coordinates.
        count: p, how many.

    Returns:
        C (p, size); b (n, p), what it meets of the residual; P between G and C (r, p), of C (p, p) and of G (r, r).
    """
    low_rank, rows = problem.kind is FisherKind.LOW_RANK, problem.rows
    AG, GG = problem.products(G)
    first = worst_rows(problem, energy, W, AG, GG, count)
    C = rows.pull_back(jnp.zeros((rows.n_rows, count), jnp.float32).at[first, jnp.arange(count)].set(1.0))

    def met(C: Vectors) -> tuple[Vectors, Float[Array, "N p"], Float[Array, "r p"], Float[Array, "n p"], Any]:
        AC, GC, CC = rows.inner(G, C)
        norm = jnp.sqrt(jnp.diagonal(CC))
        scale = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1.0), 0.0)
        C, AC, GC, CC = C * scale[:, None], AC * scale[None], GC * scale[None], CC * jnp.outer(scale, scale)
        b = problem.sum_over_rows(AC * AC) - W @ (GC * GC) if low_rank else problem.sum_over_rows(AC) - W @ GC
        return C, AC, GC, b, CC

    def iteration(_: Any, C: Vectors) -> Vectors:
        C, AC, GC, b, _ = met(C)
        weight = jnp.maximum(b, 0)
        M, own = problem.over_rows(weight), weight.T @ W
        if low_rank:
            return rows.pull_back(M * AC) - (own * GC.T) @ G
        return jnp.maximum(rows.pull_back(M) - own @ G, 0)

    C, _, GC, b, CC = met(jax.lax.fori_loop(0, POWER, iteration, C))
    return (C, b, GC * GC, CC * CC, GG * GG) if low_rank else (C, b, GC, CC, GG)


def worst_rows(
    problem: Problem, energy: Float[Array, "N"], W: Coefficients, AG: RowProducts, GG: ComponentGram, count: int
) -> Int[Array, "count"]:
    """Return the rows that are explained worst, one per example as long as there are examples.

    What W and G leave of a row is aᵀ (F_i − Σ_j W_ij g_j g_jᵀ) a / ‖a‖², taking F_i a for a ‖a‖², which is exact for
    orthogonal rows; for D-NPEFF the squared residual.
    """
    own = problem.over_rows(W)
    if problem.kind is FisherKind.LOW_RANK:
        left = (energy**2 - jnp.sum(own * AG * AG, axis=1)) / jnp.where(energy > 0, energy, 1.0)
    else:
        left = energy + jnp.sum(own * (own @ GG - 2 * AG), axis=1)
    most = jax.ops.segment_max(left, problem.owner, problem.n_examples, indices_are_sorted=True)
    return jax.lax.top_k(jnp.where(left == most[problem.owner], left, -jnp.inf), count)[1]


def best_candidates(
    b: Float[np.ndarray, "n p"],
    P_GC: Float[np.ndarray, "r p"],
    P_CC: Float[np.ndarray, "p p"],
    P: Float[np.ndarray, "r r"],
    count: int,
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Return candidates one after the other, the one that gains most beside those before it, and the gains.

    After each, b and P are those beside it too (a pivoted Cholesky factorization), so that of near copies one is taken.

    Args:
        b: what each meets of each example's residual.
        P_GC: P between components and candidates.
        P_CC: P of candidates.
        P: P of components.
        count: at most so many; fewer where nothing is gained.
    """
    P_GC, P_CC = P_GC.astype(np.float64), P_CC.astype(np.float64)
    own = np.diagonal(P_CC).copy()
    T, b = P_CC - P_GC.T @ np.linalg.solve(_regular(P), P_GC), np.array(b, np.float32)
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < min(count, len(own)):
        free = (own > 0) & (np.diagonal(T) > SPANNED * own)
        free[chosen] = False
        gain = np.sum(np.maximum(b, 0) ** 2, axis=0) / np.where(free, np.diagonal(T), 1.0)
        best = int(np.argmax(np.where(free, gain, -1.0)))
        if not (free[best] and gain[best] > 0):
            break
        chosen.append(best)
        gains.append(float(gain[best]))
        row = T[best] / T[best, best]
        b -= np.maximum(b[:, best], 0)[:, None] * row.astype(np.float32)
        T -= np.outer(T[best], row)
    return np.array(chosen, int), np.array(gains)


def least_missed(
    W: Float[np.ndarray, "n r"], P: Float[np.ndarray, "r r"], count: int, n_frozen: int = 0
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Return components one after the other, the one whose removal costs least without those before it, and the costs.

    The cost is what the loss would rise by, the others refitted without bounds: ‖W_j‖² / (P⁻¹)_jj. One of two near
    copies costs next to nothing, however large its coefficients; after it the other one costs what both explain.

    Args:
        W: coefficients.
        P: (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF.
        count: how many.
        n_frozen: components that stay, protected and named, which come first.
    """
    W, inverse = np.array(W, np.float64), np.linalg.inv(_regular(P))
    left = np.arange(len(P)) >= n_frozen
    dropped: list[int] = []
    costs: list[float] = []
    for _ in range(min(count, int(left.sum()))):
        price = np.where(left, np.sum(W * W, axis=0) / np.where(left, np.diagonal(inverse), 1.0), np.inf)
        least = int(np.argmin(price))
        dropped.append(least)
        costs.append(float(price[least]))
        row = inverse[least] / inverse[least, least]
        W -= np.outer(W[:, least], row)  # what the others take over of it
        inverse -= np.outer(inverse[least], row)
        left[least] = False
    return np.array(dropped, int), np.array(costs)


def _regular(P: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r r"]:
    """P in float64 with `RIDGE`, also where a vector is zero."""
    P = P.astype(np.float64)
    return P + RIDGE * max(float(np.mean(np.diagonal(P))), float(np.finfo(np.float32).tiny)) * np.eye(len(P))
