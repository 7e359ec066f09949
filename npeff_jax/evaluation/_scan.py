"""Choice of the number of components: decompositions over a range of r, by held-out loss and agreement of seeds."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import check_integer
from npeff_jax._html import facts_html, table_html
from npeff_jax._progress import Progress, progress_bar
from npeff_jax.evaluation._matching import stability
from npeff_jax.factorization import decompose, fit_coefficients
from npeff_jax.pefs import Pefs

FOUND_AGAIN = 0.7
"""Smallest cosine of the coefficients at which matched components of different seeds count as the same."""

RELIABLE = 0.8
"""Fraction of components that other seeds must find for a number of components to be recommended."""

GAIN = 0.02
"""Relative decrease of the held-out loss required to recommend a larger number of components."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """Quality of decompositions as a function of the number of components.

    Attributes:
        n_components: (p,), r of each point, ascending.
        loss: (p,), fraction of ‖F‖² not explained, median over seeds.
        heldout_loss: (p,), the same on held-out examples.
        found_again: (p,), fraction of components whose coefficients have a cosine of at least `FOUND_AGAIN` with those
            of their one-to-one matches in runs with other seeds.
        seconds: (p,), wall-clock time of a run, median over seeds.
        n_heldout: number of held-out examples.
        n_seeds: number of runs per point.
    """

    n_components: Int[np.ndarray, "p"]
    loss: Float[np.ndarray, "p"]
    heldout_loss: Float[np.ndarray, "p"]
    found_again: Float[np.ndarray, "p"]
    seconds: Float[np.ndarray, "p"]
    n_heldout: int
    n_seeds: int

    @property
    def suggested(self) -> int:
        """Recommended number of components.

        Starting from the smallest r, the recommendation moves to a larger one if other seeds find at least `RELIABLE`
        of its components and its held-out loss is lower than that of the current recommendation by at least `GAIN`.
        """
        best = 0
        for point in range(1, len(self.n_components)):
            gains = self.heldout_loss[point] < (1 - GAIN) * self.heldout_loss[best]
            if gains and self.found_again[point] >= RELIABLE:
                best = point
        return int(self.n_components[best])

    @property
    def advice(self) -> str:
        """Sentence with the recommendation and its reason."""
        best = int(np.flatnonzero(self.n_components == self.suggested)[0])
        found = (
            f"{self.suggested} components: {self.found_again[best]:.0%} of them are found again by another seed, and "
            f"they leave {self.heldout_loss[best]:.3f} of the held-out PEFs unexplained"
        )
        larger = self.n_components > self.suggested
        if not larger.any():
            return found + "; that is the most that was tried, so try more"
        stable = larger & (self.found_again >= RELIABLE)
        reason = "explain less than 2% more" if stable.any() else f"are found again to less than {RELIABLE:.0%}"
        return f"{found}; larger numbers {reason}"

    def __repr__(self) -> str:
        lines = [f"{'r':>6} {'loss':>8} {'held out':>9} {'found again':>12} {'seconds':>8}"]
        lines += [f"{r:>6} {a:>8.4f} {b:>9.4f} {s:>12.0%} {t:>8.1f}" for r, a, b, s, t in self._rows()]
        return "\n".join([*lines, self.advice])

    def _repr_html_(self) -> str:
        rows = [(r, f"{a:.4f}", f"{b:.4f}", f"{s:.0%}", f"{t:.1f}") for r, a, b, s, t in self._rows()]
        table = table_html(("components", "loss", "held-out loss", "found again", "seconds"), rows)
        facts = [("advice", self.advice), ("held-out examples", self.n_heldout), ("seeds", self.n_seeds)]
        return facts_html("Number of components", facts, table)

    def _rows(self) -> list[tuple[int, float, float, float, float]]:
        columns = (self.n_components, self.loss, self.heldout_loss, self.found_again, self.seconds)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def figure(self) -> Any:
        """Plot the losses and the fraction of components found again against r, with Matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(self.n_components, self.loss, "o-", label="decomposed examples")
        left.plot(self.n_components, self.heldout_loss, "s-", label="held-out examples")
        left.set(xscale="log", xlabel="components r", ylabel="loss / ‖F‖²", ylim=(0, None))
        left.legend(frameon=False)
        right.plot(self.n_components, self.found_again, "o-")
        right.axhline(RELIABLE, color="0.7", linestyle=":")
        right.set(xscale="log", xlabel="components r", ylabel="found again by other seeds", ylim=(0, 1.03))
        for axes in (left, right):
            axes.axvline(self.suggested, color="0.7", linestyle=":")
            axes.set_xticks(self.n_components, [str(r) for r in self.n_components], minor=False)
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def scan(
    pefs: Pefs,
    n_components: Sequence[int],
    *,
    heldout: Pefs | None = None,
    n_seeds: int = 2,
    seed: int = 0,
    progress: Progress = True,
    **options: Any,
) -> Scan:
    """Decompose PEFs with several numbers of components, and compare held-out loss and agreement between seeds.

    Args:
        pefs: PEFs to decompose.
        n_components: values of r to try.
        heldout: PEFs of other examples; by default a random fifth of ``pefs`` is held out.
        n_seeds: number of runs per r, at least two: the data do not determine a component that another seed does not
            find.
        seed: seed of the first run and of the split; further runs use the next seeds.
        progress: True for a bar, False for none, a text stream for JSON lines.
        **options: passed to `decompose`.

    Returns:
        Per r, the losses, the fraction of components found again, and the time; with a recommendation.

    Raises:
        ValueError: no values of r, fewer than two seeds, or too few examples to hold some out.

    Examples:
        >>> pefs = npeff_jax.tasks.planted(r=4, n=80).pefs
        >>> npeff_jax.scan(pefs, [2, 4], progress=False).suggested
        4
    """
    if not isinstance(pefs, Pefs):
        raise TypeError(f"pefs is of type {type(pefs).__name__}; expected Pefs, of compute_pefs or load_pefs")
    points = np.unique([check_integer("n_components", r, -(2**31)) for r in np.ravel(np.asarray(n_components, object))])
    if points.size == 0 or points[0] < 1:
        raise ValueError(f"n_components={list(n_components)}; expected numbers of components, such as [8, 16, 32]")
    if heldout is not None and not isinstance(heldout, Pefs):
        raise TypeError(f"heldout is of type {type(heldout).__name__}; expected Pefs, of compute_pefs or load_pefs")
    seed, n_seeds = check_integer("seed", seed, 0), check_integer("n_seeds", n_seeds)
    if n_seeds < 2:
        raise ValueError(f"n_seeds={n_seeds}; expected two or more, since components are compared between seeds")
    if heldout is None:
        order = np.random.default_rng(seed).permutation(pefs.n_examples)
        n_heldout = pefs.n_examples // 5
        if n_heldout < 1:
            raise ValueError(f"{pefs.n_examples} examples are too few to hold some out; pass heldout= or more examples")
        pefs, heldout = pefs.subset(np.sort(order[n_heldout:])), pefs.subset(np.sort(order[:n_heldout]))
    found = np.zeros((4, len(points)))
    with progress_bar(progress, "scan", len(points) * n_seeds, "run") as advance:
        for point, r in enumerate(points.tolist()):
            runs, heldout_losses, seconds = [], [], []
            for number in range(n_seeds):
                start = time.perf_counter()
                runs.append(decompose(pefs, r, seed=seed + number, progress=False, **options))
                seconds.append(time.perf_counter() - start)
                heldout_losses.append(fit_coefficients(runs[-1], heldout).loss)
                advance(1, r=r)
            again = np.mean(stability(runs).matched >= FOUND_AGAIN)
            losses = [run.history.loss[-1] for run in runs]
            found[:, point] = np.median(losses), np.median(heldout_losses), again, np.median(seconds)
    loss, heldout_loss, found_again, took = found
    return Scan(points, loss, heldout_loss, found_again, took, heldout.n_examples, n_seeds)
