"""State of a run: best state, losses, exchanges tried, and the stopping criteria."""

import dataclasses
from typing import Any

import numpy as np

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax.factorization._exchange import Search

PAYS = 1e-4
"""Relative decrease of the loss above which an exchange is kept: ten times the spread of converged runs."""

SLOW = 1e-3
"""Relative decrease of the loss per step, averaged over a window, below which exchanges begin. Later steps converge the
run further anyway."""

EARLIEST = 3
"""Number of steps after which a window may end early."""

STEADY = 2e-4
"""Relative decrease of the loss per step; two steps in a row below it end the window, and exchanges begin."""

ROUNDING = 1e-7
"""Rounding error of the loss in float32, as a fraction of ‖F‖²; smaller decreases are not significant."""


@dataclasses.dataclass(frozen=True)
class Stopping:
    """Stopping criteria of the iterations.

    Attributes:
        max_steps: maximum number of steps.
        tolerance: relative decrease of the loss per step, averaged over at most the last ``window`` steps, below
            which the iterations stop; negative to disable.
        window: number of steps between evaluations of the criteria, and after which an exchange is judged and carried
            products are recomputed, which bounds their rounding error. A window of a solver that exchanges components
            ends early once its outcome is clear.
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
        since: step at which the warm-up or the last exchange ends; decreases are judged from there.
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

    @property
    def target(self) -> float:
        """Loss below which an exchange pays."""
        return (1 - PAYS) * self.losses[-1]

    def floor(self, stopping: Stopping, exchanges: int) -> float:
        """Return the relative decrease per step below which the next window ends early; without exchanges, none does.

        Further steps are in vain where an exchange can be tried instead, or where the run has converged.
        """
        if not exchanges or stopping.tolerance < 0 or self.steps < self.since:
            return -np.inf
        exchanging = self.trials > 0 and self.since == self.steps
        return (
            max(STEADY, stopping.tolerance) if self.may_exchange(exchanges) and not exchanging else stopping.tolerance
        )

    def decrease(self, count: int) -> float:
        """Return the relative decrease of the loss per step over the last ``count`` steps."""
        return (self.losses[-1 - count] - self.losses[-1]) / max(abs(self.losses[-1]), ROUNDING) / count

    def judged(self, window: int) -> int:
        """Return over how many of the last steps the decrease is judged: at most a window; 0 if there are too few.

        They begin after the warm-up or the last exchange. After an exchange, whose failure leaves the state as it was,
        a window that ended early is enough.
        """
        count = min(window, self.steps - max(self.since, 1))
        return count if count >= (EARLIEST - 1 if self.trials else window) else 0

    def slow(self, stopping: Stopping) -> bool:
        """Return whether to try an exchange: right after another one, or when the loss decreases slowly."""
        if self.trials and self.since == self.steps:
            return True
        count = self.judged(stopping.window)
        if count and self.decrease(count) < max(SLOW, stopping.tolerance):
            return True
        if self.steps - max(self.since, 1) < EARLIEST:
            return False
        before = (self.losses[-3] - self.losses[-2]) / max(abs(self.losses[-1]), ROUNDING)
        return max(self.decrease(1), before) < STEADY

    def may_exchange(self, exchanges: int) -> bool:
        """Return whether exchanges are left to try."""
        return self.trials < exchanges and not self.search.over

    def stands_still(self, stopping: Stopping, exchanges: int) -> str:
        """Return why the run stops, or an empty string if it goes on."""
        count = self.judged(stopping.window)
        may_stop = count > 0 and stopping.tolerance >= 0
        may_stop = may_stop and not (self.may_exchange(exchanges) and self.slow(stopping))
        if may_stop and self.decrease(count) < stopping.tolerance:
            return (
                f"converged: over the last {count} of {self.steps} steps the loss fell by less than "
                f"tolerance={stopping.tolerance:g} of itself a step"
            )
        return f"reached max_steps={stopping.max_steps}" if self.steps >= stopping.max_steps else ""
