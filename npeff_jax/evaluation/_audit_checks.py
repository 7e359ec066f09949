"""The five checks of an audit as functions of arrays, so that they also apply to alternatives to a decomposition.

Each check gives a statistic per component, its value under a null hypothesis, and a threshold fixed beforehand. Checks
with a null distribution also give a p-value, adjusted for the number of components by the Benjamini-Hochberg procedure,
which bounds the expected fraction of false discoveries among the components that pass.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.optimize
import scipy.stats
from jaxtyping import Bool, Float

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax.evaluation._matching import coefficient_similarities
from npeff_jax.evaluation._readable import Rules

FEWEST_OTHERS = 19
"""Smallest number of other components for which a p-value of 5% is possible: the best rank among 20 is 1 in 20."""


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds of the checks, to be fixed before looking at the examples.

    Attributes:
        level: significance level per component; 0.05 for the 95th percentile of the null.
        discoveries: false discovery rate: the largest adjusted p-value of a component that passes.
        cosine: smallest cosine of a component's coefficients with those of its match in another run.
        concentration: largest factor between the concentrations of held-out and decomposed coefficients.
        prediction: largest factor between measured and predicted KL.
        n_permutations: number of permutations of each null distribution.
    """

    level: float = 0.05
    discoveries: float = 0.1
    cosine: float = 0.7
    concentration: float = 2.0
    prediction: float = 3.0
    n_permutations: int = 199

    def __post_init__(self) -> None:
        normalise(
            self,
            level=check_real("level", self.level, 0, 1, open_low=True, open_high=True),
            discoveries=check_real("discoveries", self.discoveries, 0, 1, open_low=True),
            cosine=check_real("cosine", self.cosine, 0, 1),
            concentration=check_real("concentration", self.concentration, 1, np.inf),
            prediction=check_real("prediction", self.prediction, 1, np.inf),
            n_permutations=check_integer("n_permutations", self.n_permutations, 19),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """Result of one check for c components.

    Attributes:
        name: "selective", "found again", "held out", "readable" or "predicted".
        statistic: (c,), the measured values.
        null: (c,), a quantile of the statistic under the null hypothesis, as defined by each check.
        at_least: (c,), lower thresholds.
        at_most: (c,), upper thresholds; infinite for most checks.
        p_value: (c,), adjusted for the number of components; NaN for checks of effect size only.
        most: largest p-value of a component that passes.
        not_applicable: why the check does not apply; empty if it does.
        notes: per component a remark, such as the rule that describes its top examples; may be empty.
    """

    name: str
    statistic: Float[np.ndarray, "c"]
    null: Float[np.ndarray, "c"]
    at_least: Float[np.ndarray, "c"]
    at_most: Float[np.ndarray, "c"]
    p_value: Float[np.ndarray, "c"]
    most: float = 0.1
    not_applicable: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def without(cls, name: str, c: int, why: str) -> "Check":
        """Return a check that does not apply to any of c components."""
        nothing = np.full(c, np.nan)
        return cls(name, nothing, nothing, nothing, nothing, nothing, not_applicable=why)

    @property
    def passed(self) -> Bool[np.ndarray, "c"]:
        """(c,), whether each component passes; a component with a NaN statistic does not."""
        if self.not_applicable:
            return np.zeros(len(self.statistic), bool)
        inside = (self.statistic >= self.at_least) & (self.statistic <= self.at_most)
        return inside & (np.isnan(self.p_value) | (self.p_value <= self.most))

    def result(self, place: int) -> str:
        """Return "passed", "failed" or "not applicable" for the component at a position."""
        if self.not_applicable:
            return "not applicable"
        return "passed" if self.passed[place] else "failed"


def selective(
    own: Float[np.ndarray, "c"], others: Float[np.ndarray, "c k"], thresholds: Thresholds = Thresholds()
) -> Check:
    """Check that a component's move changes its top examples more than other components' moves do.

    The statistic is the KL ratio of the component's move, maximised over both signs. The null distribution consists of
    the ratios of k other moves on the same top examples, each maximised over both signs; the statistic must rank within
    the first 5%.

    Args:
        own: KL ratio of each component's own move.
        others: KL ratios of other components' moves on the same top examples; NaN where not measured.
        thresholds: the significance level.
    """
    c = len(own)
    known = np.isfinite(others) & (others > 0)
    if known.sum(axis=1).max(initial=0) < FEWEST_OTHERS:
        why = f"fewer than {FEWEST_OTHERS} other moves to compare with"
        return Check.without("selective", c, why)
    at_least, null, p = np.full(c, np.inf), np.full(c, np.nan), np.ones(c)
    for j in range(c):
        drawn = np.sort(others[j, known[j]])
        if len(drawn) < FEWEST_OTHERS:
            continue
        at_least[j] = drawn[int(np.ceil((1 - thresholds.level) * (len(drawn) + 1))) - 1]
        null[j] = np.median(drawn)
        p[j] = (1 + (drawn >= own[j]).sum()) / (1 + len(drawn))
    above = np.nextafter(at_least, np.inf)  # a tie with the quantile does not pass
    return Check("selective", own, null, above, np.full(c, np.inf), adjusted(p), thresholds.discoveries)


def found_again(
    coefficients: Float[np.ndarray, "n c"],
    runs: Mapping[str, Float[np.ndarray, "n r"]],
    components: np.ndarray,
    thresholds: Thresholds = Thresholds(),
    seed: int = 0,
) -> Check:
    """Check that other runs find the component: cosine with the coefficients of its one-to-one match.

    The statistic is the smallest cosine over the runs. For the null distribution, the component's coefficients are
    permuted over the examples and the largest cosine with any component of a run is taken, an upper bound on the cosine
    with a one-to-one match.

    Args:
        coefficients: coefficients of all components of the audited run.
        runs: coefficients of other runs over the same examples, by name.
        components: indices of the audited components.
        thresholds: cosine and significance level.
        seed: seed of the permutations.
    """
    c = len(components)
    if not runs:
        return Check.without("found again", c, "no other run to compare with")
    random = np.random.default_rng(seed)
    statistic, null = np.full(c, np.inf), np.full((c, thresholds.n_permutations), np.inf)
    closest = np.full(c, "", object)
    for name, run in runs.items():
        cosines = coefficient_similarities(coefficients, run)
        rows, columns = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
        matched = np.zeros(cosines.shape[0])
        matched[rows] = cosines[rows, columns]
        own = matched[components]
        closest[own < statistic] = name
        statistic = np.minimum(statistic, own)
        for b in range(thresholds.n_permutations):
            permuted = random.permuted(coefficients[:, components], axis=0)
            null[:, b] = np.minimum(null[:, b], coefficient_similarities(permuted, run).max(axis=1))
    chance = np.quantile(null, 1 - thresholds.level, axis=1)
    p = (1 + (null >= statistic[:, None]).sum(axis=1)) / (1 + thresholds.n_permutations)
    notes = tuple(f"least like it: {name}" for name in closest)
    at_least = np.maximum(thresholds.cosine, chance)
    return Check(
        "found again", statistic, chance, at_least, np.full(c, np.inf), adjusted(p), thresholds.discoveries, "", notes
    )


def held_out(
    decomposed: Float[np.ndarray, "n1 c"],
    coefficients: Float[np.ndarray, "n2 c"],
    thresholds: Thresholds = Thresholds(),
    seed: int = 0,
) -> Check:
    """Check that coefficients are as concentrated on held-out examples as on decomposed ones.

    The concentration is n Σw² / (Σw)²: 1 for equal coefficients, n for a single non-zero one. An overfitted component
    has nearly equal or zero coefficients on other examples. The statistic is the ratio of the two concentrations. Under
    the null, all examples are split at random into two sets of the same sizes; its 95th percentile is that of
    max(ratio, 1 / ratio).

    Args:
        decomposed: coefficients of the decomposed examples.
        coefficients: coefficients of the held-out examples.
        thresholds: the largest factor.
        seed: seed of the random splits.
    """
    n1, c = decomposed.shape
    statistic = _concentration(coefficients) / _concentration(decomposed)
    random, pooled, draws = np.random.default_rng(seed), np.concatenate([decomposed, coefficients]), []
    for _ in range(thresholds.n_permutations):
        order = random.permutation(len(pooled))
        ratio = _concentration(pooled[order[n1:]]) / _concentration(pooled[order[:n1]])
        draws.append(np.exp(np.abs(np.log(np.where(ratio > 0, ratio, np.nan)))))
    with np.errstate(all="ignore"):
        null = np.array(
            [np.quantile(d[~np.isnan(d)], 0.95) if (~np.isnan(d)).any() else np.nan for d in np.array(draws).T]
        )
    factor = np.full(c, thresholds.concentration)
    return Check("held out", statistic, null, 1 / factor, factor, np.full(c, np.nan))


def readable(rules: Rules, top: Bool[np.ndarray, "c n"], thresholds: Thresholds = Thresholds(), seed: int = 0) -> Check:
    """Check that a short readable rule distinguishes the top examples from the others.

    The statistic is the AUC of the best rule, on the half of the examples that it was not chosen on (`Rules.read`). The
    null distribution repeats this choice for random sets of the same size, as permuted coefficients would give.

    Args:
        rules: readable properties of the examples.
        top: (c, n), the top examples of each component, equally many for all.
        thresholds: the significance level.
        seed: seed of the halves and the random sets.
    """
    c, n = top.shape
    if not rules.names:
        return Check.without("readable", c, "nothing readable is given of the examples")
    random = np.random.default_rng(seed)
    drawn = np.zeros((thresholds.n_permutations, n), bool)
    for row in drawn:
        row[random.choice(n, int(top[0].sum()), replace=False)] = True
    scores, texts = rules.read(top, _halves(top, random))
    by_chance, _ = rules.read(drawn, _halves(drawn, random))
    p = (1 + (by_chance[None] >= scores[:, None]).sum(axis=1)) / (1 + len(by_chance))
    threshold = np.full(c, np.quantile(by_chance, 1 - thresholds.level))
    above = np.nextafter(threshold, np.inf)
    infinite = np.full(c, np.inf)
    return Check("readable", scores, threshold, above, infinite, adjusted(p), thresholds.discoveries, "", tuple(texts))


def predicted(
    measured: Float[np.ndarray, "c 2 e"],
    prediction: Float[np.ndarray, "c 2 e"],
    top: Bool[np.ndarray, "c e"],
    thresholds: Thresholds = Thresholds(),
    seed: int = 0,
) -> Check:
    """Check that the KL of a component's move on its top examples agrees with its prediction (eq. 5).

    The statistic is the mean measured KL divided by the mean predicted KL, over both signs so that odd orders cancel.
    The null is the median of this ratio when predictions are permuted over the examples.

    Args:
        measured: KL of each move and sign on e examples.
        prediction: predicted KL of each move and sign.
        top: (c, e), whether each example is among the component's top examples.
        thresholds: the largest factor.
        seed: seed of the permutations.
    """
    c = len(measured)
    random = np.random.default_rng(seed)
    statistic, null = np.full(c, np.nan), np.full(c, np.nan)
    for j in range(c):
        actual, expected = measured[j].mean(axis=0, dtype=np.float64), prediction[j].mean(axis=0, dtype=np.float64)
        draws = [random.permutation(expected)[top[j]].mean() for _ in range(thresholds.n_permutations)]
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic[j] = actual[top[j]].mean() / expected[top[j]].mean()
            null[j] = actual[top[j]].mean() / np.median(draws)
    factor = np.full(c, thresholds.prediction)
    return Check("predicted", statistic, null, 1 / factor, factor, np.full(c, np.nan))


def adjusted(p: Float[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
    """Adjust the p-values of c components by the Benjamini-Hochberg procedure."""
    return scipy.stats.false_discovery_control(np.clip(p, 0, 1)) if len(p) else p


def _concentration(coefficients: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c"]:
    W = np.asarray(coefficients, np.float64)
    total = W.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return len(W) * np.square(W).sum(axis=0) / total**2


def _halves(sets: Bool[np.ndarray, "s n"], random: np.random.Generator) -> Bool[np.ndarray, "s n"]:
    """Draw per set a random half of its examples and of the other examples."""
    halves = np.zeros_like(sets)
    for half, own in zip(halves, sets, strict=True):
        for part in (np.flatnonzero(own), np.flatnonzero(~own)):
            half[random.permutation(part)[: len(part) // 2]] = True
    return halves
