"""Whether a component that was asked for is in the model: held-out evidence against permuted marks.

A component always follows the marks it was tied to, on the examples that were marked, also where the marks are noise.
What noise cannot do is to tell marked from other examples that were not decomposed. So marks are permuted among the
examples that have one, the decomposition is made again from each permutation in the same way, and the same quantity is
computed on held-out examples:

    gap_j = mean of W_ij² over marked held-out examples − the mean over the others,

W_ij² being the energy of example i that component j explains beside all others (for PEFs of norm 1 a fraction of it).
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
        gap: (t,), energy explained in marked held-out examples beyond that in others.
        interval: (t, 2), 95% bootstrap interval, over held-out examples, of the gap minus the mean of `null`.
        null: (p, t), gaps of components that were asked for with permuted marks.
        auc: (t,), of coefficients against held-out marks.
        null_auc: (p, t), the same with permuted marks.
        level: of the test.
    """

    names: tuple[str, ...]
    gap: Float[np.ndarray, "t"]
    interval: Float[np.ndarray, "t 2"]
    null: Float[np.ndarray, "p t"]
    auc: Float[np.ndarray, "t"]
    null_auc: Float[np.ndarray, "p t"]
    level: float

    @property
    def p_value(self) -> Float[np.ndarray, "t"]:
        """How often permuted marks do as well; at least 1 / (p + 1)."""
        return (1 + np.sum(self.null >= self.gap, axis=0)) / (len(self.null) + 1)

    @property
    def found(self) -> dict[str, bool]:
        """Whether the model has each concept: better than permuted marks, and the interval is above zero."""
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
            f"{name!r} {word}: on held-out examples its component explains {self.gap[k]:.3g} more of the energy where "
            f"the concept is marked than elsewhere; beyond permuted marks {self.gap[k] - self.null[:, k].mean():.3g} "
            f"({low:.3g} to {high:.3g}), p = {self.p_value[k]:.2g}; AUC {self.auc[k]:.2f}, permuted "
            f"{np.median(self.null_auc[:, k]):.2f}"
        )

    def __repr__(self) -> str:
        return "\n".join(self.verdict(name) for name in self.names)

    def _repr_html_(self) -> str:
        heads = ("concept", "verdict", "gap", "permuted", "95% interval", "p", "AUC", "permuted")
        rows = [
            (
                name,
                "found" if self.found[name] else "not found",
                self.gap[k],
                float(np.median(self.null[:, k])),
                f"{self.interval[k, 0]:.2g} to {self.interval[k, 1]:.2g}",
                float(self.p_value[k]),
                self.auc[k],
                float(np.median(self.null_auc[:, k])),
            )
            for k, name in enumerate(self.names)
        ]
        facts = [("permutations of the marks", len(self.null)), ("level", self.level)]
        return facts_html("Evidence for named components", facts, table_html(heads, rows))


def tuning_evidence(
    decomposition: Decomposition,
    pefs: Pefs,
    tunings: Sequence[Tuning],
    heldout: Pefs,
    heldout_marks: Mapping[str, Any],
    *,
    n_permutations: int = 19,
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
        n_permutations: of the marks. A p-value is at least 1 / (n_permutations + 1).
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
    if 1 / (n_permutations + 1) > level:
        raise ValueError(
            f"n_permutations={n_permutations} cannot reach {level=}; ask for at least {int(np.ceil(1 / level)) - 1}"
        )
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
    null = np.stack([_gaps(W, truth) for W in permuted])
    return TuningEvidence(
        names=names,
        gap=_gaps(own, truth),
        interval=_bootstrap(own, np.mean([W**2 for W in permuted], axis=0), truth, rng),
        null=null,
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


def _gaps(W: Float[np.ndarray, "n t"], truth: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "t"]:
    energy = W**2
    return np.array([energy[truth[:, k] > 0, k].mean() - energy[truth[:, k] == 0, k].mean() for k in range(W.shape[1])])


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


N_BOOTSTRAP = 2000
"""Resamples of the held-out examples: 50 beyond each end of a 95% interval."""


def _bootstrap(
    own: Float[np.ndarray, "n t"],
    null_energy: Float[np.ndarray, "n t"],
    truth: Float[np.ndarray, "n t"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "t 2"]:
    """95% intervals of the gap minus the mean gap of permuted marks: of one difference per example, group by group."""
    found = []
    for k in range(own.shape[1]):
        difference = own[:, k] ** 2 - null_energy[:, k]
        groups = [difference[truth[:, k] > 0], difference[truth[:, k] == 0]]
        means = [group[rng.integers(len(group), size=(N_BOOTSTRAP, len(group)))].mean(axis=1) for group in groups]
        found.append(np.quantile(means[0] - means[1], [0.025, 0.975]))
    return np.array(found)
