"""State of a run: best state, losses, exchanges tried, and the stopping criteria."""

import dataclasses
from typing import Any

import numpy as np

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax.factorization._exchange import Search

PAYS = 1e-4
"""Relative decrease of the loss above which an exchange is kept: ten times the spread of converged runs."""

SLOW = 1e-3
"""Relative decrease of the loss per step below which exchanges begin. Later steps converge the run further anyway."""

ROUNDING = 1e-7
"""Rounding error of the loss in float32, as a fraction of ‖F‖²; smaller decreases are not significant."""


@dataclasses.dataclass(frozen=True)
class Stopping:
    """Stopping criteria of the iterations.

    Attributes:
        max_steps: maximum number of steps.
        tolerance: relative decrease of the loss per step, averaged over the last ``window`` steps, below which the
            iterations stop; negative to disable.
        window: number of steps between evaluations of the criteria. It is also the number of steps after which an
            exchange is judged, and after which carried products are recomputed, which bounds their rounding error.
    """

    max_steps: int = 500
    tolerance: float = 1e-5
    window: int = 10

    def __post_init__(self) -> None:
        normalise(
            self,
            max_steps=check_integer("max_steps", self.max_steps, 0),
            tolerance=check_real("tolerance", self.tolerance, -np.inf, np.inf),
            window=check_integer("window", self.window),
        )


@dataclasses.dataclass(eq=False)
class Run:
    """The best state of a run so far, and its history.

    Attributes:
        best: the best state, or initially the factors to start from.
        search: state of the search over exchanges.
        trials: number of exchanges tried.
        since: step at which the warm-up or the last exchange ended; decreases are judged from there.
        losses: loss after each step. During an exchange that is undone, the loss before it.
        seconds: wall-clock time after each step.
    """

    best: Any
    search: Search = dataclasses.field(default_factory=Search)
    trials: int = 0
    since: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return len(self.losses)

    def record(self, state: Any, found: np.ndarray, now: float, *, replaced: int = 0) -> None:
        """Record a window of steps. After a trial of ``replaced`` components that did not pay, keep the old state."""
        if replaced:
            best = self.losses[-1]
            paid = bool(found[-1] < (1 - PAYS) * best)  # False if not finite
            self.losses += np.minimum(np.nan_to_num(found, nan=best), best).tolist() if paid else [best] * len(found)
            self.trials, self.since = self.trials + 1, self.steps
            self.search.judge(replaced, paid=paid)
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
        """Return whether to try an exchange: right after another one, or when the loss decreases slowly."""
        if self.trials and self.since == self.steps:
            return True
        passed = self.steps > max(self.since, stopping.window) and self.steps - self.since >= stopping.window
        return passed and self.decrease(stopping.window) < max(SLOW, stopping.tolerance)

    def may_exchange(self, exchanges: int) -> bool:
        """Return whether exchanges are left to try."""
        return self.trials < exchanges and not self.search.over

    def stands_still(self, stopping: Stopping, exchanges: int) -> str:
        """Return why the run stops, or an empty string if it goes on."""
        window = stopping.window
        left_alone = self.steps - self.since >= window and self.steps > window
        may_stop = left_alone and stopping.tolerance >= 0
        may_stop = may_stop and not (self.may_exchange(exchanges) and self.slow(stopping))
        if may_stop and self.decrease(window) < stopping.tolerance:
            return (
                f"converged: over the last {window} of {self.steps} steps the loss fell by less than "
                f"tolerance={stopping.tolerance:g} of itself a step"
            )
        return f"reached max_steps={stopping.max_steps}" if self.steps >= stopping.max_steps else ""
