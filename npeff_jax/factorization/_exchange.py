"""Exchanges, which escape local minima: replace the least useful components by candidates from the residual.

A converged run has often spent two components on one concept and one component on two concepts, a local minimum of
alternating updates. An exchange replaces some components at once, runs a window of steps, and is kept if the loss is
lower. Estimates, with all other components refitted:

    P_jk      (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF
    cost      of removing component j: ‖W_j‖² / (P⁻¹)_jj
    gain      of adding candidate c: ‖max(b, 0)‖² / (P_cc − P_cG P⁻¹ P_Gc), b_i = cᵀ (F_i − Σ_j W_ij g_j g_jᵀ) c

Candidates start from the rows with the largest residual and are improved by power iterations on the residual,
c ← Σ_i max(b_i, 0) (F_i − Σ_j W_ij g_j g_jᵀ) c. An iteration over all candidates costs as much as a solver's step.
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
"""Power iterations on the candidates: with one, some do not reach a component; with more, candidates merge."""

SHARE = 4
"""At most one in `SHARE` components is replaced at once, because the others have to adapt within one window."""

WORTH = 0.25
"""Ratio of gain to cost below which an exchange is not tried. The steps after an exchange lower the loss further, so
ratios under 1 can succeed; on seven problems, no exchange with a ratio below 0.27 did."""

PATIENCE = 5
"""Number of consecutive failures of single exchanges after which no more are tried."""

RIDGE = 1e-6
"""Ridge on the diagonal of P, as a fraction of its mean: duplicates make P singular, and this exceeds its rounding."""

SPANNED = 1e-3
"""Fraction of P_cc outside the span of the others below which a candidate counts as a duplicate."""


@dataclasses.dataclass(frozen=True, eq=False)
class Offer:
    """Proposed replacements of components, in order of preference.

    Attributes:
        vectors: candidates, (p, size), unit vectors on the devices.
        chosen: indices of the candidates to add, largest gain first.
        gains: estimated decrease of the loss with each candidate, given those before it.
        dropped: components to remove, smallest cost first.
        costs: estimated increase of the loss without each component, given those removed before it.
    """

    vectors: Vectors
    chosen: Int[np.ndarray, "k"]
    gains: Float[np.ndarray, "k"]
    dropped: Int[np.ndarray, "k"]
    costs: Float[np.ndarray, "k"]


@dataclasses.dataclass(eq=False)
class Search:
    """State of the search over exchanges: how many components to replace next, and whether to go on.

    Attributes:
        cap: maximum number of components that the next trial replaces; 0 for one in `SHARE`.
        passed: number of candidates of the current offer that failed in a single exchange.
        failures: consecutive single exchanges that did not lower the loss.
        over: whether the search has ended.
        paid: whether the last exchange lowered the loss.
        offer: offer at the best state so far; None until it is needed.
    """

    cap: int = 0
    passed: int = 0
    failures: int = 0
    over: bool = False
    paid: bool = False
    offer: Offer | None = None

    @property
    def counters(self) -> tuple[int, ...]:
        """The fields as integers, for a checkpoint. The offer is not saved but computed again."""
        return self.cap, self.passed, self.failures, int(self.over), int(self.paid)

    @classmethod
    def resume(cls, counters: list[int]) -> "Search":
        """Restore a search from `counters`."""
        cap, passed, failures, over, paid = counters
        return cls(cap, passed, failures, bool(over), bool(paid))

    def replacements(self, n_free: int) -> dict[int, int]:
        """Return the candidate that replaces each component in the next trial; empty if no trial is worth it.

        As many are replaced as have a gain above the cost, but at least one.
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
        """Update the search after a trial of ``count`` replacements.

        The cap is doubled after a success and halved after a failure; a candidate that failed alone is skipped.
        """
        self.paid = paid
        if paid:
            self.cap, self.passed, self.failures, self.offer = 2 * self.cap, 0, 0, None
            return
        if count == 1:
            self.passed, self.failures = self.passed + 1, self.failures + 1
        self.cap, self.over = max(1, count // 2), self.failures >= PATIENCE


def make_offer(problem: Problem, W: Coefficients, G: Vectors) -> Offer:
    """Find candidates in the residual of W and G, and estimate the gains and costs of exchanges."""
    f, r = problem.n_kept, W.shape[1]
    assert problem.origin is not None
    energy = replicate(np.asarray(problem.origin.energy, np.float32), problem.rows.mesh)
    C, *products = candidates(problem.on_device(), energy, W, G, count=min(r - f, problem.n_examples))
    b, P_GC, P_CC, P = (fetch(array) for array in products)
    most = max(1, (r - f) // SHARE) + PATIENCE  # spares for candidates that fail alone
    chosen, gains = best_candidates(b, P_GC, P_CC, P, most)
    dropped, costs = least_missed(fetch(W), P, min(len(chosen), r - f), n_frozen=f)
    k = len(dropped)
    return Offer(C, chosen[:k], gains[:k], dropped, costs)


@functools.partial(jit, static_argnames=("count",))
@full_precision
def candidates(
    problem: Problem, energy: Float[Array, "N"], W: Coefficients, G: Vectors, *, count: int
) -> tuple[Vectors, Float[Array, "n p"], Float[Array, "r p"], Float[Array, "p p"], ComponentGram]:
    """Find candidate vectors C in the residual of W and G, with the products that gains and costs are made of.

    Args:
        problem: the problem to factorize.
        energy: ‖a‖² of each row.
        W: coefficients.
        G: vectors, in coordinates.
        count: p, the number of candidates.

    Returns:
        C (p, size), unit vectors; b (n, p), cᵀ R_i c with R_i the residual of example i (for D-NPEFF, its inner product
        with c); P between G and C (r, p), of C (p, p) and of G (r, r).
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
    """Return the positions of the rows with the largest residual, at most one row per example.

    The residual of a row is aᵀ (F_i − Σ_j W_ij g_j g_jᵀ) a / ‖a‖² with F_i a approximated by ‖a‖² a, which is exact if
    the rows of an example are orthogonal. For D-NPEFF it is the squared norm of the row's residual.
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
    """Choose candidates greedily by their gain given the candidates chosen before; return them and the gains.

    After each choice b and P are projected away from it (a pivoted Cholesky factorization), so that only one of several
    near duplicates is chosen.

    Args:
        b: (n, p), inner product of each example's residual with each candidate, as returned by `candidates`.
        P_GC: P between components and candidates.
        P_CC: P of candidates.
        P: P of components.
        count: maximum number to choose; fewer if no further one has a gain.
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
    """Choose components greedily by the cost of their removal given those removed before; return them and the costs.

    The cost is the increase of the loss with the other components refitted without bounds: ‖W_j‖² / (P⁻¹)_jj. One of
    two near duplicates costs almost nothing, however large its coefficients; then the other costs what both explain.

    Args:
        W: coefficients.
        P: (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF.
        count: number of components to choose.
        n_frozen: number of components that stay (protected and named ones, which come first).
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
        W -= np.outer(W[:, least], row)  # refit of the other components
        inverse -= np.outer(inverse[least], row)
        left[least] = False
    return np.array(dropped, int), np.array(costs)


def _regular(P: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r r"]:
    """Return P in float64 with `RIDGE` on its diagonal, so that it is regular even if vectors are zero or equal."""
    P = P.astype(np.float64)
    return P + RIDGE * max(float(np.mean(np.diagonal(P))), float(np.finfo(np.float32).tiny)) * np.eye(len(P))
