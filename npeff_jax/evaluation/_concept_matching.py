"""One-to-one matching of components with known variables, and control rankings for comparison."""

import dataclasses

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_integer
from npeff_jax._html import facts_html, table_html
from npeff_jax.evaluation._baselines import cluster
from npeff_jax.evaluation._concepts import Variables, truth_table
from npeff_jax.evaluation._ranking import coefficient_array
from npeff_jax.pefs import Pefs


@dataclasses.dataclass(frozen=True, eq=False)
class ConceptMatches:
    """One-to-one matches of components with variables, by two-fold cross-validation.

    Coefficients are thresholded: the threshold is chosen on one half of the examples and scored on the other.

    Attributes:
        names: names of the v variables.
        component: (2, v), per fold, the component matched with each variable; −1 if there are too few components.
        score: (2, v), per fold, the Matthews correlation of the thresholded component with the variable on the other
            half: 1 if they agree, or if the component is the variable's negation; 0 without a component.
        permuted: (permutations, 2, v), scores with every component's coefficients permuted over the examples.
        distinct: (v,), False if an earlier variable holds for the same examples, or for exactly the other ones, so that
            no ranking can distinguish the two.
    """

    names: tuple[str, ...]
    component: Int[np.ndarray, "2 v"]
    score: Float[np.ndarray, "2 v"]
    permuted: Float[np.ndarray, "p 2 v"]
    distinct: Bool[np.ndarray, "v"]

    def n_matched(self, at_least: float = 0.9) -> float:
        """Return the number of variables with a score of at least ``at_least``, averaged over the two folds."""
        return float((self.score >= at_least).sum(axis=1).mean())

    def n_matched_permuted(self, at_least: float = 0.9) -> Float[np.ndarray, "p"]:
        """Return `n_matched` per permutation."""
        return (self.permuted >= at_least).sum(axis=2).mean(axis=1)

    def __repr__(self) -> str:
        by_chance = self.n_matched_permuted()
        chance = f", {by_chance.mean():.1f} with permuted coefficients" if by_chance.size else ""
        return (
            f"ConceptMatches: {self.n_matched():.1f} of {len(self.names)} variables ({self.distinct.sum()} of them "
            f"distinct) matched one to one at a Matthews correlation of 0.9 or more on the other half{chance}"
        )

    def _repr_html_(self) -> str:
        order = np.argsort(-self.score.mean(axis=0), kind="stable")
        rows = [
            (self.names[v], *(f"{self.score[f, v]:.2f} (component {self.component[f, v]})" for f in (0, 1)))
            for v in order.tolist()
        ]
        heads = ("variable", "first half scored", "second half scored")
        return facts_html(repr(self), (), table_html(heads, rows, most=40))


def match_concepts(
    coefficients: Float[np.ndarray, "n r"], variables: Variables, *, n_permutations: int = 20, seed: int = 0
) -> ConceptMatches:
    """Match components one to one with known Boolean variables, by thresholding their coefficients.

    The examples are divided into random halves. On one half, each component's threshold is chosen to maximise the
    Matthews correlation with the variable or its negation, and components are assigned to variables by the largest sum
    of these correlations. The thresholds are scored on the other half. Unlike in a count of concepts that top examples
    share, a component matches one variable only, and frequent variables have no advantage.

    Args:
        coefficients: W, or another ranking of n examples by r columns, such as `control_rankings`.
        variables: per variable, whether it holds for each of the n examples. A constant variable scores 0.
        n_permutations: number of permutations of the coefficients, for comparison.
        seed: seed of the halves and the permutations.

    Raises:
        ValueError: fewer than four examples, non-finite coefficients, or a variable of the wrong length.

    Examples:
        >>> has = np.arange(40) % 4 == 0
        >>> match_concepts(np.stack([has * 2.0, np.sin(np.arange(40))], 1), {"fourth": has}).n_matched()
        1.0
    """
    W = coefficient_array(coefficients)
    n = len(W)
    if n < 4:
        raise ValueError(f"{n} examples; expected four or more, to choose cuts on one half and score them on the other")
    if not np.isfinite(W).all():
        raise ValueError("a coefficient is not finite; leave examples that failed out")
    table = truth_table(variables, n)
    if not table:
        raise ValueError("variables is empty; pass {name: truth values}")
    has = np.stack(list(table.values()), axis=1)
    random = np.random.default_rng(check_integer("seed", seed, 0))
    first = np.zeros(n, bool)
    first[random.permutation(n)[: n // 2]] = True
    halves = (~first, first)  # the half that chooses; the other one scores
    component, score = _matched(W, has, halves)
    n_permutations = check_integer("n_permutations", n_permutations, 0)
    permuted = [_matched(random.permuted(W, axis=0), has, halves)[1] for _ in range(n_permutations)]
    signed = np.where(has[0], ~has, has)  # equal for a variable and its negation
    _, earliest = np.unique(signed, axis=1, return_index=True)
    distinct = np.isin(np.arange(has.shape[1]), earliest)
    return ConceptMatches(tuple(table), component, score, np.reshape(permuted, (-1, *score.shape)), distinct)


def _matched(
    W: Float[np.ndarray, "n r"], has: Bool[np.ndarray, "n v"], halves: tuple[np.ndarray, np.ndarray]
) -> tuple[Int[np.ndarray, "2 v"], Float[np.ndarray, "2 v"]]:
    """Return the matched component and the score of every variable, per fold."""
    component = np.full((2, has.shape[1]), -1)
    score = np.zeros((2, has.shape[1]))
    for fold, choosing in enumerate(halves):
        cuts, chosen = _best_cuts(W[choosing], has[choosing])
        rows, columns = scipy.optimize.linear_sum_assignment(np.abs(chosen), maximize=True)
        component[fold, columns] = rows
        above = W[~choosing][:, rows] >= cuts[rows, columns]
        held = has[~choosing][:, columns]
        score[fold, columns] = np.sign(chosen[rows, columns]) * _matthews(
            (above & held).sum(0), above.sum(0), held.sum(0), len(held)
        )
    return component, score


def _best_cuts(
    W: Float[np.ndarray, "n r"], has: Bool[np.ndarray, "n v"]
) -> tuple[Float[np.ndarray, "r v"], Float[np.ndarray, "r v"]]:
    """Return the best threshold of each component for each variable, and its Matthews correlation."""
    cuts, chosen = np.zeros((W.shape[1], has.shape[1])), np.zeros((W.shape[1], has.shape[1]))
    for j, column in enumerate(W.T):
        order = np.argsort(-column, kind="stable")
        ranked = column[order]
        ends = np.flatnonzero(ranked[:-1] > ranked[1:])  # equal coefficients are never separated
        if not ends.size:
            cuts[j] = np.inf
            continue
        inside = has[order].cumsum(axis=0)[ends]
        correlations = _matthews(inside, (ends + 1)[:, None], has.sum(axis=0), len(has))
        best = np.abs(correlations).argmax(axis=0)
        # halfway to the next coefficient, because those of the other half lie between
        cuts[j] = (ranked[ends[best]].astype(np.float64) + ranked[ends[best] + 1]) / 2
        chosen[j] = correlations[best, np.arange(has.shape[1])]
    return cuts, chosen


def _matthews(both: np.ndarray, above: np.ndarray, held: np.ndarray, n: int) -> np.ndarray:
    """Compute the Matthews correlation of two Boolean variables from their counts; 0 if one of them is constant."""
    both, above, held = (np.asarray(count, np.float64) for count in (both, above, held))
    scale = np.sqrt(above * (n - above) * held * (n - held))
    return np.divide(n * both - above * held, scale, out=np.zeros(np.broadcast(both, scale).shape), where=scale > 0)


def control_rankings(
    pefs: Pefs,
    coefficients: Float[np.ndarray, "n r"],
    activations: Float[np.ndarray, "n d"] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "n r"]]:
    """Compute control rankings of the examples, r of each kind, to compare in `search_concepts` or `match_concepts`.

    The kinds are ``permuted``: the coefficients, permuted over the examples per component. ``random directions``:
    dᵀ F_i d with d a normal random combination of all rows, which is how the Fishers rank examples without a
    decomposition. ``random examples``: ⟨F_i, F_e⟩ with a random example e, which ranks the neighbours of e.
    ``predicted class``: whether a class is predicted, with the classes repeated in turn. ``k-means``: closeness to the
    r centroids of clusters of activations.

    Args:
        pefs: the PEFs that were decomposed.
        coefficients: W.
        activations: activations of the examples; without them k-means is left out.
        seed: seed of permutations, directions, examples and clusters.

    Raises:
        ValueError: coefficients or activations of another number of examples than the PEFs.
    """
    coefficients = coefficient_array(coefficients)
    for name, array in (("coefficients", coefficients), ("activations", activations)):
        if array is not None and len(array) != pefs.n_examples:
            raise ValueError(f"{name} of {len(array)} examples, PEFs of {pefs.n_examples}; pass those of the same ones")
    random = np.random.default_rng(seed)
    r = coefficients.shape[1]
    A = pefs.to_scipy()
    directions = A.T @ random.normal(size=(A.shape[0], r)).astype(np.float32)
    owner = np.repeat(np.arange(pefs.n_examples), np.asarray(pefs.n_rows))
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    drawn = random.choice(len(starts), r, replace=r > len(starts))
    own = np.isin(owner, drawn)
    near = (A @ A[own].T).power(2) @ (owner[own][:, None] == drawn)  # products of rows, summed over the rows of e
    predicted = np.eye(pefs.logits.shape[1])[np.asarray(pefs.logits).argmax(1)]  # one-hot, because logits would rank
    rankings = {
        "permuted": random.permuted(coefficients, axis=0),
        "random directions": np.add.reduceat(np.asarray(A @ directions) ** 2, starts, axis=0),
        "random examples": np.add.reduceat(near, starts, axis=0),
        "predicted class": predicted[:, np.arange(r) % predicted.shape[1]],
    }
    if activations is not None:
        centroids = cluster(activations, r, seed=seed).centroids
        squares = (activations**2).sum(1)[:, None] + (centroids**2).sum(1) - 2 * activations @ centroids.T
        rankings["k-means"] = -squares
    return rankings
