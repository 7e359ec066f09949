"""Whether a component that was asked for is in the model: held-out evidence against permuted marks.

A component always follows the marks it was tied to, on the examples that were marked, also where the marks are noise.
What noise cannot do is to tell marked from other examples that were not decomposed:

    lift_j = mean of W_ij² over marked held-out examples / mean over all of them,

W_ij² being the energy of example i that component j explains beside all others. A lift of 1 is no relation. Two nulls
stand beside it. Held-out marks are permuted, many times: where marks have nothing to do with the Fishers these lifts
are exchangeable with the one observed, which makes an exact test. And the marks that were asked with are permuted, a
few times, and the decomposition made again in the same way from each: what asking for noise gives. Such a component is
as a free one, and may be about anything, the concept too, so it is no test, but it says how large a lift is large.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from npeff_jax._checks import check_integer, check_real
from npeff_jax._html import facts_html, table_html
from npeff_jax._identity import describe
from npeff_jax._progress import Progress, progress_bar
from npeff_jax.factorization import Decomposition, Solver, Stopping, Tuning, decompose, fit_coefficients
from npeff_jax.pefs import Pefs
from npeff_jax.perturbation import check_decomposition


@dataclasses.dataclass(frozen=True, eq=False)
class TuningEvidence:
    """Held-out evidence for named components.

    Attributes:
        names: of the t concepts.
        lift: (t,), energy explained in marked held-out examples, relative to all; 1 for a component that explains none.
        interval: (t, 2), 95% bootstrap interval, over held-out examples, of the lift minus the mean of ``null``.
        null: (p, t), lifts of components that were asked for with permuted marks.
        p_value: (t,), how often permuted held-out marks give as large a lift; at least 1 / 1000.
        auc: (t,), of coefficients against held-out marks.
        null_auc: (p, t), the same with permuted marks.
        level: of the test.
    """

    names: tuple[str, ...]
    lift: Float[np.ndarray, "t"]
    interval: Float[np.ndarray, "t 2"]
    null: Float[np.ndarray, "p t"]
    p_value: Float[np.ndarray, "t"]
    auc: Float[np.ndarray, "t"]
    null_auc: Float[np.ndarray, "p t"]
    level: float

    @property
    def found(self) -> dict[str, bool]:
        """Whether the model has each concept: a p-value up to the level, and an interval above zero."""
        yes = (self.p_value <= self.level) & (self.interval[:, 0] > 0)
        return dict(zip(self.names, yes.tolist(), strict=True))

    def verdict(self, name: str) -> str:
        """Return the evidence for one concept in a sentence."""
        if name not in self.names:
            raise KeyError(f"{name!r} was not asked for; there are {list(self.names)}")
        k = self.names.index(name)
        low, high = self.interval[k]
        word = "found" if self.found[name] else "not found"
        return (
            f"{name!r} {word}: on held-out examples its component explains {self.lift[k]:.3g} times as much energy "
            f"where the concept is marked as on average; beyond permuted marks "
            f"{self.lift[k] - self.null[:, k].mean():+.3g} "
            f"({low:.3g} to {high:.3g}), p = {self.p_value[k]:.2g}; AUC {self.auc[k]:.2f}, permuted "
            f"{np.median(self.null_auc[:, k]):.2f}"
        )

    def __repr__(self) -> str:
        return "\n".join(self.verdict(name) for name in self.names)

    def _repr_html_(self) -> str:
        heads = ("concept", "verdict", "lift", "permuted", "95% interval", "p", "AUC", "permuted")
        rows = [
            (
                name,
                "found" if self.found[name] else "not found",
                self.lift[k],
                float(np.median(self.null[:, k])),
                f"{self.interval[k, 0]:.2g} to {self.interval[k, 1]:.2g}",
                float(self.p_value[k]),
                self.auc[k],
                float(np.median(self.null_auc[:, k])),
            )
            for k, name in enumerate(self.names)
        ]
        facts = [("decompositions of permuted marks", len(self.null)), ("level", self.level)]
        return facts_html("Evidence for named components", facts, table_html(heads, rows))


def tuning_evidence(
    decomposition: Decomposition,
    pefs: Pefs,
    tunings: Sequence[Tuning],
    heldout: Pefs,
    heldout_marks: Mapping[str, Any],
    *,
    n_permutations: int = 9,
    level: float = 0.05,
    solver: Solver | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> TuningEvidence:
    """Test on held-out examples whether concepts that were asked for are in the model.

    Every permutation costs one decomposition.

    Args:
        decomposition: what ``decompose(pefs, r, tunings=tunings)`` gave.
        pefs: what it was made from.
        tunings: what it was asked for.
        heldout: PEFs of other examples, of the same model and kind.
        heldout_marks: for each name marks of the held-out examples, as for `Tuning`.
        n_permutations: of the marks that were asked with.
        level: largest p-value at which a concept counts as found.
        solver: as the decomposition was made with.
        seed: of the permutations.
        progress: a bar over the permutations, a stream for JSON lines, or False.

    Raises:
        TypeError: something else than a decomposition.
        ValueError: it was made with other tunings or another solver, a concept without held-out marks, or held-out
            marks that are all alike.
    """
    check_decomposition(decomposition)
    n_permutations = check_integer("n_permutations", n_permutations)
    level = check_real("level", level, 0.0, 1.0, open_low=True, open_high=True)
    tunings, settings = tuple(tunings), decomposition.settings
    if not tunings or [tuning.record() for tuning in tunings] != settings.get("tunings"):
        raise ValueError("the decomposition was made with other tunings; pass those that decompose was given")
    if decomposition.n_frozen:
        raise ValueError("this decomposition has frozen components; test one that decompose made")
    if solver is not None and describe(solver) != settings["solver"]:
        raise ValueError(f"the decomposition was made with {settings['solver']['name']}(...); pass that solver")
    names = tuple(tuning.name for tuning in tunings)
    truth = np.stack([_heldout(name, heldout_marks, heldout.n_examples) for name in names], axis=1)
    same = {
        "seed": settings["seed"],
        "solver": solver,
        "stopping": Stopping(**settings["stopping"]),
        "min_count": settings.get("min_count", 1),
        "progress": False,
    }
    r, t = decomposition.n_components, len(tunings)
    own = fit_coefficients(decomposition, heldout).coefficients[:, :t].astype(np.float64)
    rng = np.random.default_rng(seed)
    permuted = []
    with progress_bar(progress, "permuted marks", n_permutations, "run") as advance:
        for _ in range(n_permutations):
            again = decompose(pefs, r, tunings=[_permuted(tuning, rng) for tuning in tunings], **same)
            permuted.append(fit_coefficients(again, heldout).coefficients[:, :t].astype(np.float64))
            advance(1)
    null = np.stack([_lifts(W**2, truth) for W in permuted])
    return TuningEvidence(
        names=names,
        lift=_lifts(own**2, truth),
        interval=_bootstrap(own, permuted, truth, rng),
        null=null,
        p_value=_p_values(own**2, truth, rng),
        auc=_aucs(own, truth),
        null_auc=np.stack([_aucs(W, truth) for W in permuted]),
        level=level,
    )


def _heldout(name: str, given: Mapping[str, Any], n: int) -> Float[np.ndarray, "n"]:
    if name not in given:
        raise ValueError(
            f"heldout_marks has no {name!r}; it has {list(given)}: mark held-out examples of every concept"
        )
    marks = Tuning(name, given[name]).marks
    if marks.shape != (n,):
        raise ValueError(f"the held-out marks of {name!r} are {marks.size}; there are {n} held-out examples")
    if not (marks == 0).any():
        raise ValueError(f"no held-out example of {name!r} is marked zero; mark some that do not have the concept")
    return marks


def _permuted(tuning: Tuning, rng: np.random.Generator) -> Tuning:
    """The same marks on other examples, among those that have one."""
    marks = tuning.marks.copy()
    marks[tuning.known] = rng.permutation(marks[tuning.known])
    return dataclasses.replace(tuning, marks=marks)


def _lifts(energy: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "t"]:
    marked, known = np.nan_to_num(truth) > 0, ~np.isnan(truth)
    overall = np.sum(energy * known, axis=0) / known.sum(axis=0)
    within = np.sum(energy * marked, axis=0) / np.maximum(marked.sum(axis=0), 1)
    return np.where(overall > 0, within / np.where(overall > 0, overall, 1.0), 1.0)


N_TEST = 999
"""Permutations of held-out marks: p-values in steps of a thousandth."""


def _p_values(
    energy: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"], rng: np.random.Generator
) -> Float[np.ndarray, "t"]:
    """How often permuted held-out marks give as large a lift, the observed one counted."""
    observed = _lifts(energy, truth)
    reached = np.ones(len(observed))
    for _ in range(N_TEST):
        permuted = truth.copy()
        for k in range(truth.shape[1]):
            known = np.flatnonzero(~np.isnan(truth[:, k]))
            permuted[known, k] = rng.permutation(truth[known, k])
        reached += _lifts(energy, permuted) >= observed - 1e-12  # equal but for the order of the sums
    return reached / (N_TEST + 1)


def _aucs(W: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "t"]:
    return np.array([auc(W[:, k][~np.isnan(m)], m[~np.isnan(m)] > 0) for k, m in enumerate(truth.T)])


def auc(scores: Float[np.ndarray, "n"], positive: Any) -> float:
    """Compute the probability that a positive example scores above another one; ties count half."""
    positive = np.asarray(positive, bool)
    n_positive, n_other = positive.sum(), (~positive).sum()
    if not n_positive or not n_other:
        return float("nan")
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_other))


N_BOOTSTRAP = 1000
"""Resamples of the held-out examples: 25 beyond each end of a 95% interval."""


def _bootstrap(
    own: Float[np.ndarray, "n t"],
    permuted: list[Float[np.ndarray, "n t"]],
    truth: Float[np.ndarray, "n t"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "t 2"]:
    """95% intervals of the lift minus the mean lift of permuted marks, over resampled examples.

    Marked and other examples are resampled apart, so that no resample lacks one of the two.
    """
    found = []
    for k in range(own.shape[1]):
        groups = [np.flatnonzero(truth[:, k] > 0), np.flatnonzero(truth[:, k] == 0)]
        energy = np.stack([own[:, k], *(W[:, k] for W in permuted)], axis=1) ** 2
        differences = []
        for _ in range(N_BOOTSTRAP):
            rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
            lifts = _lifts(energy[rows], np.broadcast_to(truth[rows, k, None], energy[rows].shape))
            differences.append(lifts[0] - lifts[1:].mean())
        found.append(np.quantile(differences, [0.025, 0.975]))
    return np.array(found)
