"""Recovery of planted components, by the measures of sparse-autoencoder benchmarks."""

import dataclasses
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Bool, Float, Int

from npeff_jax._html import facts_html, histogram_html
from npeff_jax.evaluation._selectivity import Fitted
from npeff_jax.factorization import Decomposition

ENOUGH = 20
"""Number of active examples from which a planted component's F1 counts; with fewer, one error changes it by a few
hundredths."""


@dataclasses.dataclass(frozen=True, eq=False)
class Recovery:
    """Comparison of planted with found components.

    Attributes:
        cosines: (planted, found), |cosine| of every pair of vectors.
        pairs: (p, 2), planted and found component of the one-to-one assignment with the largest total cosine.
        f1: (planted,), F1 of predicting whether the component is active in an example from the coefficients of its
            match; 0 without a match.
        n_active: (planted,), number of examples in which each planted component is active.
        dead: (found,), whether all coefficients of the component are zero.
    """

    cosines: Float[np.ndarray, "p f"]
    pairs: Int[np.ndarray, "k 2"]
    f1: Float[np.ndarray, "p"]
    n_active: Int[np.ndarray, "p"]
    dead: Bool[np.ndarray, "f"]

    @property
    def frequent(self) -> Bool[np.ndarray, "p"]:
        """Whether each planted component has at least `ENOUGH` active examples."""
        return self.n_active >= ENOUGH

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the frequent components."""
        return float(self.f1[self.frequent].mean()) if self.frequent.any() else float("nan")

    @property
    def mean_max_cosine(self) -> float:
        """Largest |cosine| with any found component, averaged over planted components."""
        return float(self.cosines.max(axis=1).mean())

    @property
    def matched(self) -> Float[np.ndarray, "p"]:
        """|Cosine| of each planted component with its one-to-one match; 0 without a match."""
        found = np.zeros(len(self.cosines))
        found[self.pairs[:, 0]] = self.cosines[self.pairs[:, 0], self.pairs[:, 1]]
        return found

    @property
    def uniqueness(self) -> float:
        """Number of distinct planted components that best match a live found component, per live found component."""
        best = self.cosines[:, ~self.dead].argmax(axis=0)
        return float(np.unique(best).size / best.size) if best.size else float("nan")

    def interval(self, n_draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Return the 95% bootstrap interval of `mean_f1`, resampling components."""
        f1 = self.f1[self.frequent]
        if not f1.size:
            return float("nan"), float("nan")
        draws = np.random.default_rng(seed).choice(f1, (n_draws, f1.size)).mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(low), float(high)

    def _facts(self) -> list[tuple[str, Any]]:
        low, high = self.interval()
        return [
            (f"F1 of activity, mean over {int(self.frequent.sum())} of {ENOUGH}+ active examples", self.mean_f1),
            ("95% interval over components", f"{low:.3f} to {high:.3f}"),
            ("mean maximum |cosine|", self.mean_max_cosine),
            ("|cosine| matched one to one, mean", float(self.matched.mean())),
            ("uniqueness", self.uniqueness),
            ("dead", f"{self.dead.mean():.1%}"),
        ]

    def __repr__(self) -> str:
        title = f"Recovery of {len(self.cosines)} planted components by {self.cosines.shape[1]}"
        facts = [
            f"  {name}: {value:.3f}" if isinstance(value, float) else f"  {name}: {value}"
            for name, value in self._facts()
        ]
        return "\n".join([title, *facts])

    def _repr_html_(self) -> str:
        title = f"Recovery of {len(self.cosines)} planted components"
        return facts_html(title, self._facts(), histogram_html(self.matched, "|cosine|, one to one"))


def recovery(
    decomposition: Decomposition,
    vectors: Float[np.ndarray, "p m"] | scipy.sparse.csr_array,
    coefficients: Float[np.ndarray, "n p"],
    fit: Fitted | None = None,
) -> Recovery:
    """Compare a decomposition with the planted vectors and coefficients that its PEFs were constructed from.

    A found component counts as active where its coefficient reaches a threshold. The threshold is chosen per component
    for the best F1 on every other example and scored on the rest, both ways; F1 is the mean of the two.

    Args:
        decomposition: decomposition of the planted PEFs.
        vectors: planted G (or H) over all m parameters, of any scale.
        coefficients: planted W of the examples to score.
        fit: found coefficients of these examples; by default those of the decomposition.

    Raises:
        ValueError: arguments of inconsistent shapes.
    """
    found = np.asarray((decomposition if fit is None else fit).coefficients)
    m = decomposition.schema.layout.size
    if vectors.shape[1] != m or coefficients.shape != (len(found), vectors.shape[0]):
        raise ValueError(
            f"vectors of shape {vectors.shape} and coefficients of shape {coefficients.shape} do not belong to a "
            f"decomposition of {len(found)} examples over {m} parameters; expected (p, {m}) and ({len(found)}, p)"
        )
    planted = scipy.sparse.csr_array(vectors)
    norms = np.sqrt(np.asarray(planted.multiply(planted).sum(axis=1)).reshape(-1))
    kept = planted[:, decomposition.parameter_indices].tocsr()
    cosines = np.zeros((planted.shape[0], decomposition.n_components))
    for j in range(decomposition.n_components):  # one at a time: all vectors may exceed memory
        cosines[:, j] = np.abs(kept @ np.asarray(decomposition.pseudo_fishers[j], np.float64))
    cosines /= np.where(norms > 0, norms, 1.0)[:, None]
    rows, columns = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    active, f1 = np.asarray(coefficients) > 0, np.zeros(len(cosines))
    for j, k in zip(rows, columns, strict=True):
        f1[j] = _f1(found[:, k], active[:, j])
    pairs, dead = np.stack([rows, columns], axis=1), np.asarray((found <= 0).all(axis=0))
    return Recovery(cosines, pairs, f1, active.sum(axis=0), dead)


def _f1(scores: Float[np.ndarray, "n"], active: Bool[np.ndarray, "n"]) -> float:
    """Compute the F1 of "score ≥ t", with t chosen on one half of the examples and scored on the other, both ways."""
    halves = np.arange(len(scores)) % 2 == 0
    values = []
    for chosen in (halves, ~halves):
        order = np.argsort(-scores[chosen], kind="stable")
        s, hits = scores[chosen][order], np.cumsum(active[chosen][order])
        curve = 2 * hits / (np.arange(1, len(s) + 1) + max(hits[-1], 1))
        curve[np.append(s[1:] == s[:-1], False)] = -1.0  # a threshold cannot separate equal scores
        curve[s <= 0] = -1.0
        best = int(np.argmax(curve))
        below = s[best + 1] if best + 1 < len(s) else 0.0
        threshold = (s[best] + below) / 2 if curve[best] > 0 else np.inf  # halfway between two scores
        claimed = scores[~chosen] >= threshold
        total = claimed.sum() + active[~chosen].sum()
        values.append(2 * np.sum(claimed & active[~chosen]) / total if total else 0.0)
    return float(np.mean(values))
