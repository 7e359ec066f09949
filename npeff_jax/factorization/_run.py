"""The book of a run: its state, its losses, whether an exchange paid, and when it stands still."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from npeff_jax._sharding import fetch, replicate
from npeff_jax.factorization._checkpoints import Saved
from npeff_jax.factorization._exchange import PAYS, SLOW
from npeff_jax.factorization._settings import Stopping
from npeff_jax.factorization.rows import RowSpace, Vectors

ROUNDING = 1e-7
"""What float32 products leave of a loss that should be zero, as a fraction of ‖F‖²: decreases of less mean nothing."""


class Point(NamedTuple):
    """Where a run stands: what every solver's state begins with.

    Attributes:
        W: coefficients.
        G: vectors.
        AG: A Gᵀ, None where it was not computed yet.
        GG: G Gᵀ, likewise.
    """

    W: jax.Array
    G: Vectors
    AG: Any = None
    GG: Any = None


@dataclasses.dataclass(eq=False)
class Run:
    """The best state so far, which would be returned if the run ended now, and how it came about.

    Attributes:
        best: that state.
        visited: rows that exchanges tried.
        trials: exchanges so far.
        since: the step after which the loss was left to itself: the end of the warm-up or of the last exchange.
        losses: of the state, one a step. A trial is recorded at the loss it would fall back to, until it pays.
        seconds: one a step.
    """

    best: Point
    visited: np.ndarray
    trials: int = 0
    since: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.losses)

    @classmethod
    def resume(cls, saved: Saved, rows: RowSpace) -> "Run":
        W, G = replicate(saved.W, rows.mesh), rows.from_host(saved.G)
        trials, since = saved.counters.tolist()
        return cls(Point(W, G), saved.visited, trials, since, saved.losses.tolist(), saved.seconds.tolist())

    def saved(self, rows: RowSpace) -> Saved:
        counters = np.array([self.trials, self.since])
        losses, seconds = np.array(self.losses), np.array(self.seconds)
        return Saved(fetch(self.best.W), rows.to_host(self.best.G), losses, seconds, self.visited, counters)

    def record(self, point: Point, found: np.ndarray, now: float, *, trial: bool) -> None:
        """Take the end of a window over, unless it was a trial that did not pay."""
        if trial:
            best = self.losses[-1]
            paid = found[-1] < (1 - PAYS) * best  # false for what is not finite
            self.losses += np.minimum(np.nan_to_num(found, nan=best), best).tolist() if paid else [best] * len(found)
            self.trials, self.since = self.trials + 1, self.steps
        else:
            paid = True
            self.losses += found.tolist()
        if paid:
            self.best = point
        before = self.seconds[-1] if self.seconds else 0.0
        self.seconds += np.linspace(before, now, len(found) + 1)[1:].tolist()

    def decrease(self, window: int) -> float:
        """Relative decrease of the loss a step, over the last window."""
        return (self.losses[-1 - window] - self.losses[-1]) / max(abs(self.losses[-1]), ROUNDING) / window

    def slow(self, stopping: Stopping) -> bool:
        """Whether it is time for an exchange: right after another one, or when a window brought little."""
        if self.trials and self.since == self.steps:
            return True
        passed = self.steps > max(self.since, stopping.window) and self.steps - self.since >= stopping.window
        return passed and self.decrease(stopping.window) < max(SLOW, stopping.tolerance)

    def stands_still(self, stopping: Stopping, exchanges: int) -> str:
        """Why to stop, or nothing."""
        window = stopping.window
        left_alone = self.steps - self.since >= window and self.steps > window
        may_stop = left_alone and stopping.tolerance >= 0 and (self.trials >= exchanges or not self.slow(stopping))
        if may_stop and self.decrease(window) < stopping.tolerance:
            return (
                f"converged: over the last {window} of {self.steps} steps the loss fell by less than "
                f"tolerance={stopping.tolerance:g} of itself a step"
            )
        return f"reached max_steps={stopping.max_steps}" if self.steps >= stopping.max_steps else ""
