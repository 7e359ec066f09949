"""Held-out evidence that a named component represents its concept, tested against permuted marks.

On the marked examples a named component always follows its marks, even if they are noise. Noise, however, does not
predict which held-out examples are marked. The statistic is

    lift_j = mean of W_ij² over marked held-out examples / mean of W_ij² over all held-out examples,

where W_ij² is the energy of example i that component j explains given all others; 1 means no relation. There are two
nulls. First, held-out marks are permuted many times: if marks are unrelated to the Fishers, these and the observed lift
are exchangeable, which gives an exact test. Second, the marks of the tuning are permuted a few times and the
decomposition is repeated: this shows the lifts of components tuned to noise. It is not a test, because such a component
may represent anything, including the concept.
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
        names: names of the t concepts.
        lift: (t,), mean energy explained in marked held-out examples relative to all; 1 for a component that explains
            nothing.
        interval: (t, 2), 95% bootstrap interval of the lift minus the mean of ``null``, over held-out examples.
        null: (p, t), lifts of components tuned to permuted marks.
        p_value: (t,), fraction of permutations of the held-out marks with at least the same lift; at least 1 / 1000.
        auc: (t,), AUC of the coefficients for the held-out marks.
        null_auc: (p, t), AUC of components tuned to permuted marks.
        level: significance level of the test.
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
        """Whether each concept is found: its p-value is at most the level, and its interval is above zero."""
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
    """Test on held-out examples whether named components represent their concepts.

    Each permutation takes one decomposition.

    Args:
        decomposition: result of ``decompose(pefs, r, tunings=tunings)``.
        pefs: the PEFs that were decomposed.
        tunings: the tunings of the decomposition.
        heldout: PEFs of other examples, of the same model and kind.
        heldout_marks: per name, marks of the held-out examples, as for `Tuning`.
        n_permutations: number of permutations of the tunings' marks.
        level: largest p-value at which a concept counts as found.
        solver: solver of the decomposition.
        seed: seed of the permutations.
        progress: True for a bar over the permutations, False for none, a text stream for JSON lines.

    Raises:
        TypeError: ``decomposition`` has the wrong type.
        ValueError: the decomposition has other tunings or another solver, a concept has no held-out marks, or all
            held-out marks of a concept are equal.
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
    """Permute the marks of a tuning among the examples with a known mark."""
    marks = tuning.marks.copy()
    marks[tuning.known] = rng.permutation(marks[tuning.known])
    return dataclasses.replace(tuning, marks=marks)


def _lifts(energy: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "t"]:
    marked, known = np.nan_to_num(truth) > 0, ~np.isnan(truth)
    overall = np.sum(energy * known, axis=0) / known.sum(axis=0)
    within = np.sum(energy * marked, axis=0) / np.maximum(marked.sum(axis=0), 1)
    return np.where(overall > 0, within / np.where(overall > 0, overall, 1.0), 1.0)


N_TEST = 999
"""Number of permutations of held-out marks; p-values are multiples of 1 / 1000."""


def _p_values(
    energy: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"], rng: np.random.Generator
) -> Float[np.ndarray, "t"]:
    """Return the fraction of permuted held-out marks with at least the observed lift, counting the observed marks."""
    observed = _lifts(energy, truth)
    reached = np.ones(len(observed))
    for _ in range(N_TEST):
        permuted = truth.copy()
        for k in range(truth.shape[1]):
            known = np.flatnonzero(~np.isnan(truth[:, k]))
            permuted[known, k] = rng.permutation(truth[known, k])
        reached += _lifts(energy, permuted) >= observed - 1e-12  # up to rounding of the sums
    return reached / (N_TEST + 1)


def _aucs(W: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "t"]:
    return np.array([auc(W[:, k][~np.isnan(m)], m[~np.isnan(m)] > 0) for k, m in enumerate(truth.T)])


def auc(scores: Float[np.ndarray, "n"], positive: Any) -> float:
    """Compute the probability that a positive example has a higher score than a negative one; ties count half."""
    positive = np.asarray(positive, bool)
    n_positive, n_other = positive.sum(), (~positive).sum()
    if not n_positive or not n_other:
        return float("nan")
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_other))


N_BOOTSTRAP = 1000
"""Number of bootstrap resamples: 25 lie beyond each end of a 95% interval."""


def _bootstrap(
    own: Float[np.ndarray, "n t"],
    permuted: list[Float[np.ndarray, "n t"]],
    truth: Float[np.ndarray, "n t"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "t 2"]:
    """Return 95% bootstrap intervals of the lift minus the mean lift under permuted marks.

    Marked and other examples are resampled separately, so that every resample has both.
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
