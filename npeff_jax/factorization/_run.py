"""The record of a run: its best state, its losses, whether an exchange paid, and when it stops.

A run that stands still has often spent two components on one concept and one on two. Alternating steps do not leave
such a minimum. An exchange does: the component that is missed least gives its place to the row that is explained worst,
and a window of steps later the loss says whether it paid. Ten of ten starts then reached the same loss on a digits
network and on sixteen planted components, where without it three and two of ten did.
"""

import dataclasses
import operator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

PAYS = 1e-4
"""Relative decrease of the loss for which an exchange is kept: ten times what separates converged runs."""

SLOW = 1e-3
"""Relative decrease per step below which exchanges begin: what follows an exchange converges it further anyway."""

ROUNDING = 1e-7
"""Rounding error of the loss in float32, as a fraction of ‖F‖²: smaller decreases mean nothing."""


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When the iterations end.

    Attributes:
        max_steps: at the latest.
        tolerance: relative decrease of the loss per step, averaged over the last ``window`` steps, below which it
            stops; negative: never.
        window: steps between looks at the loss, and those an exchange is given; also how often carried products are
            recomputed, which bounds their drift.
    """

    max_steps: int = 500
    tolerance: float = 1e-5
    window: int = 10

    def __post_init__(self) -> None:
        for name, least in (("max_steps", 0), ("window", 1)):
            try:
                value = operator.index(getattr(self, name))
            except TypeError:
                raise TypeError(f"Stopping({name}={getattr(self, name)!r}); expected a whole number") from None
            if value < least:
                raise ValueError(f"Stopping({name}={value}); expected at least {least}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "tolerance", float(self.tolerance))


@dataclasses.dataclass(eq=False)
class Run:
    """The best state so far, which would be returned if the run ended now, and how it came about.

    Attributes:
        best: that state, or the factors to start from.
        visited: rows that exchanges tried.
        trials: exchanges so far.
        since: the step after which the loss was left to itself: the end of the warm-up or of the last exchange.
        losses: of the state, one per step. A trial is recorded at the loss it would fall back to, until it pays.
        seconds: one per step.
    """

    best: Any
    visited: Bool[np.ndarray, "N"]
    trials: int = 0
    since: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    def record(self, state: Any, found: np.ndarray, now: float, *, trial: bool) -> None:
        """Take over the end of a window, unless it was a trial that did not pay."""
        if trial:
            best = self.losses[-1]
            paid = found[-1] < (1 - PAYS) * best  # false for what is not finite
            self.losses += np.minimum(np.nan_to_num(found, nan=best), best).tolist() if paid else [best] * len(found)
            self.trials, self.since = self.trials + 1, self.steps
        else:
            paid = True
            self.losses += found.tolist()
        if paid:
            self.best = state
        before = self.seconds[-1] if self.seconds else 0.0
        self.seconds += np.linspace(before, now, len(found) + 1)[1:].tolist()

    def decrease(self, window: int) -> float:
        """Return the relative decrease of the loss per step over the last window."""
        return (self.losses[-1 - window] - self.losses[-1]) / max(abs(self.losses[-1]), ROUNDING) / window

    def slow(self, stopping: Stopping) -> bool:
        """Return whether it is time for an exchange: right after another one, or when a window brought little."""
        if self.trials and self.since == self.steps:
            return True
        passed = self.steps > max(self.since, stopping.window) and self.steps - self.since >= stopping.window
        return passed and self.decrease(stopping.window) < max(SLOW, stopping.tolerance)

    def stands_still(self, stopping: Stopping, exchanges: int) -> str:
        """Return why to stop, or nothing."""
        window = stopping.window
        left_alone = self.steps - self.since >= window and self.steps > window
        may_stop = left_alone and stopping.tolerance >= 0 and (self.trials >= exchanges or not self.slow(stopping))
        if may_stop and self.decrease(window) < stopping.tolerance:
            return (
                f"converged: over the last {window} of {self.steps} steps the loss fell by less than "
                f"tolerance={stopping.tolerance:g} of itself a step"
            )
        return f"reached max_steps={stopping.max_steps}" if self.steps >= stopping.max_steps else ""


def worst_row(
    W: Float[np.ndarray, "n r"],
    AG: Float[np.ndarray, "N r"],
    GG: Float[np.ndarray, "r r"],
    energy: Float[np.ndarray, "N"],
    owner: Int[np.ndarray, "N"],
    visited: Bool[np.ndarray, "N"],
    *,
    quadratic: bool,
) -> int:
    """Return the row that the fit explains worst, of those not visited.

    What it leaves of a row is aᵀ (F_i − Σ_j W_ij g_j g_jᵀ) a / ‖a‖², taking F_i a for a ‖a‖², which is exact for
    orthogonal rows; for D-NPEFF the squared residual. On the host: a few passes over A Gᵀ, not worth a compilation.

    Args:
        W: coefficients.
        AG: A Gᵀ.
        GG: G Gᵀ.
        energy: ‖a‖² of each row.
        owner: the example of each row.
        visited: rows that were tried.
        quadratic: LRM-NPEFF (rows and vectors enter as a aᵀ and g gᵀ), else D-NPEFF.
    """
    own = W[owner]
    if quadratic:
        explained = np.einsum("ij,ij,ij->i", own, AG, AG)
        left = (energy**2 - explained) / np.where(energy > 0, energy, 1)
    else:
        left = energy + np.einsum("ij,ij->i", own, own @ GG - 2 * AG)
    return int(np.argmax(np.where(visited | (energy <= 0), -np.inf, left)))


def cost_of_removal(W: Float[np.ndarray, "n r"], P: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r"]:
    """Return what the loss would rise by without each component, the others refitted without bounds: ‖W_j‖² / (P⁻¹)_jj.

    One of two near copies costs next to nothing, however large its coefficients.

    Args:
        W: coefficients.
        P: (g_j·g_k)² for LRM-NPEFF, h_j·h_k for D-NPEFF.
    """
    P = P.astype(np.float64)
    ridge = 1e-6 * np.mean(np.diagonal(P)) * np.eye(len(P))  # copies make P singular; this is above its rounding
    return np.sum(W.astype(np.float64) ** 2, axis=0) / np.diagonal(np.linalg.inv(P + ridge))
