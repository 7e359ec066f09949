"""Comparison of runs by the cosine similarity of their coefficients over the same examples (section 3.3)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

from npeff_jax._html import facts_html, histogram_html, table_html
from npeff_jax.evaluation._ranking import coefficient_array
from npeff_jax.evaluation._selectivity import Fitted

Run = Fitted | np.ndarray
"""A decomposition, a fit, or coefficients (n, r). Compared runs are over the same n examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunComparison:
    """Similarity of the components of two runs over the same examples.

    Attributes:
        similarities: (r₁, r₂), cosine similarities of the coefficient vectors; 0 if a vector is zero.
        pairs: (min(r₁, r₂), 2), the one-to-one assignment with the largest total similarity, sorted by the component of
            the first run.
    """

    similarities: Float[np.ndarray, "r1 r2"]
    pairs: Int[np.ndarray, "p 2"]

    @property
    def forward(self) -> Float[np.ndarray, "r1"]:
        """Largest similarity of each component of the first run to any of the second (the paper's measure)."""
        return self.similarities.max(axis=1)

    @property
    def backward(self) -> Float[np.ndarray, "r2"]:
        """Largest similarity of each component of the second run to any of the first."""
        return self.similarities.max(axis=0)

    @property
    def matched(self) -> Float[np.ndarray, "p"]:
        """Similarity of each pair of ``pairs``. Unlike `forward`, it uses each component at most once."""
        return self.similarities[self.pairs[:, 0], self.pairs[:, 1]]

    def __repr__(self) -> str:
        return (
            f"RunComparison of {self.similarities.shape[0]} with {self.similarities.shape[1]} components; mean maximum "
            f"cosine {self.forward.mean():.3f} forward, {self.backward.mean():.3f} backward, matched one to one "
            f"{self.matched.mean():.3f}"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("components", f"{self.similarities.shape[0]} and {self.similarities.shape[1]}"),
            ("maximum cosine, mean over the first run", float(self.forward.mean())),
            ("over the second run", float(self.backward.mean())),
            ("matched one to one", float(self.matched.mean())),
        ]
        return facts_html("Two runs compared", facts, histogram_html(self.forward, "maximum cosine of each component"))


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Match the components of two runs by the cosine similarity of their coefficients.

    Raises:
        ValueError: the runs have different numbers of examples.

    Examples:
        >>> compare_runs(np.eye(3), np.eye(3)[:, [2, 0]]).pairs.tolist()
        [[0, 1], [2, 0]]
    """
    similarities = coefficient_similarities(_coefficients(first), _coefficients(second))
    rows, columns = scipy.optimize.linear_sum_assignment(similarities, maximize=True)
    return RunComparison(similarities, np.stack([rows, columns], axis=1))


def coefficient_similarities(
    first: Float[np.ndarray, "n1 r1"], second: Float[np.ndarray, "n2 r2"]
) -> Float[np.ndarray, "r1 r2"]:
    """Compute the cosine similarity of every pair of columns; 0 for zero columns (dead components)."""
    if len(first) != len(second):
        raise ValueError(
            f"coefficients of {len(first)} and of {len(second)} examples cannot be compared; fit both runs to the same "
            "examples"
        )
    return _unit_columns(first).T @ _unit_columns(second)


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """Assignment of the components of a larger run to those of a smaller run.

    Attributes:
        parents: (r₂,), the most similar component of the smaller run; −1 for a component with no similarity to any.
        similarities: (r₁, r₂), cosine similarities of the coefficients.
    """

    parents: Int[np.ndarray, "r2"]
    similarities: Float[np.ndarray, "r1 r2"]

    def of(self, component: int) -> Int[np.ndarray, "s"]:
        """Return the components of the larger run assigned to a component of the smaller run, most similar first."""
        found = np.flatnonzero(self.parents == component)
        return found[np.argsort(-self.similarities[component, found], kind="stable")]

    @property
    def counts(self) -> Int[np.ndarray, "r1"]:
        """Number of components of the larger run assigned to each component of the smaller run."""
        return np.bincount(self.parents[self.parents >= 0], minlength=len(self.similarities))

    def __repr__(self) -> str:
        counts = self.counts
        return (
            f"Splits of {len(counts)} components: {np.mean(counts > 0):.1%} have one or more, {counts.mean():.2f} each"
        )

    def _repr_html_(self) -> str:
        shown = np.argsort(-self.counts, kind="stable")
        rows = [(j, int(self.counts[j]), ", ".join(map(str, self.of(j)[:8]))) for j in shown.tolist()]
        return facts_html(repr(self), (), table_html(("component", "splits", "most similar first"), rows))


def find_splits(smaller: Run, larger: Run) -> Splits:
    """Assign every component of a larger run to the most similar component of a smaller run (section 3.3).

    Raises:
        ValueError: the runs have different numbers of examples, or ``smaller`` has more components.
    """
    similarities = coefficient_similarities(_coefficients(smaller), _coefficients(larger))
    if similarities.shape[0] > similarities.shape[1]:
        raise ValueError(
            f"smaller has {similarities.shape[0]} components, but larger has {similarities.shape[1]}; swap them"
        )
    alike = similarities.max(axis=0) > 0
    return Splits(np.where(alike, similarities.argmax(axis=0), -1), similarities)


def similarity_to_final(steps: Sequence[Float[np.ndarray, "n r"]]) -> Float[np.ndarray, "steps r"]:
    """Compute the cosine similarity of each component's coefficients at each step to those at the last (figure 5).

    Raises:
        ValueError: no steps, or steps of different shapes.
    """
    shapes = {np.shape(step) for step in steps}
    if len(shapes) != 1:
        raise ValueError(f"steps have shapes {sorted(shapes)}; expected one or more arrays of one shape (n, r)")
    final = _unit_columns(steps[-1])
    return np.stack([np.sum(_unit_columns(step) * final, axis=0) for step in steps])


@dataclasses.dataclass(frozen=True, eq=False)
class Stability:
    """Similarity of s runs that differ only in their seed.

    Attributes:
        mean_max: (s, s), at [i, j] the largest cosine with any component of run j, averaged over the components of i.
        matched: (s, r), mean similarity of each component to its one-to-one matches in the other runs.
    """

    mean_max: Float[np.ndarray, "s s"]
    matched: Float[np.ndarray, "s r"]

    def __repr__(self) -> str:
        off = self.mean_max[~np.eye(len(self.mean_max), dtype=bool)]
        return (
            f"Stability over {len(self.mean_max)} runs: mean maximum cosine {off.mean():.3f} "
            f"({off.min():.3f} to {off.max():.3f}), matched one to one {self.matched.mean():.3f}"
        )

    def _repr_html_(self) -> str:
        off = self.mean_max[~np.eye(len(self.mean_max), dtype=bool)]
        facts = [
            ("runs", len(self.mean_max)),
            ("mean maximum cosine", f"{off.mean():.3f} ({off.min():.3f} to {off.max():.3f})"),
            ("matched one to one", float(self.matched.mean())),
        ]
        label = "each component's mean similarity to its partners in the other runs"
        return facts_html("Stability over seeds", facts, histogram_html(self.matched, label))


def stability(runs: Sequence[Run]) -> Stability:
    """Compare all pairs of several runs with the same number of components.

    Raises:
        TypeError: ``runs`` is not a list of runs.
        ValueError: fewer than two runs, or different numbers of components or examples.

    Examples:
        >>> stability([np.eye(3), np.eye(3)[:, [2, 0, 1]]]).mean_max.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if hasattr(runs, "coefficients") or hasattr(runs, "shape") or not isinstance(runs, Sequence):
        raise TypeError(f"runs is a {type(runs).__name__}; expected a list of two or more runs")
    coefficients = [_coefficients(run) for run in runs]
    shapes = {c.shape for c in coefficients}
    if len(runs) < 2 or len(shapes) > 1:
        raise ValueError(f"expected two or more runs of one shape (n, r), got {len(runs)} with shapes {sorted(shapes)}")
    mean_max, matched = np.eye(len(runs)), np.zeros((len(runs), coefficients[0].shape[1]))
    for i, first in enumerate(coefficients):
        for j, second in enumerate(coefficients):
            if i != j:
                comparison = compare_runs(first, second)
                mean_max[i, j] = comparison.forward.mean()
                matched[i] += comparison.matched / (len(runs) - 1)  # pairs are sorted by component of the first run
    return Stability(mean_max, matched)


def _coefficients(run: Run) -> Float[np.ndarray, "n r"]:
    found = getattr(run, "coefficients", run)
    if not hasattr(found, "shape"):
        raise TypeError(f"a run is a {type(run).__name__}; expected a decomposition, a fit, or coefficients (n, r)")
    array = coefficient_array(found).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("coefficients of a run are not finite; leave examples that failed out of all runs")
    return array


def _unit_columns(coefficients: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n r"]:
    coefficients = np.asarray(coefficients, np.float64)
    norms = np.linalg.norm(coefficients, axis=0)
    return coefficients / np.where(norms > 0, norms, 1.0)
