"""Components and known variables matched one to one, and the rankings that a decomposition has to beat there."""

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
    """Components matched with variables one to one, cut on one half of the examples and scored on the other, both ways.

    Attributes:
        names: of the v variables.
        component: (2, v), fold by fold, the component that is matched with each variable; −1 where components ran out.
        score: (2, v), the Matthews correlation of the cut component with the variable on the half that did not choose
            the cut: 1 for a component that is the variable or its negation. 0 where there is no component.
        permuted: (permutations, 2, v), the same when every component's coefficients are permuted over the examples.
        distinct: (v,), whether no variable before it has the same examples or exactly the others. Those that have
            cannot be told apart from it by any ranking.
    """

    names: tuple[str, ...]
    component: Int[np.ndarray, "2 v"]
    score: Float[np.ndarray, "2 v"]
    permuted: Float[np.ndarray, "p 2 v"]
    distinct: Bool[np.ndarray, "v"]

    def n_matched(self, at_least: float = 0.9) -> float:
        """Return how many variables have a component with such a score, averaged over the two folds."""
        return float((self.score >= at_least).sum(axis=1).mean())

    def n_matched_permuted(self, at_least: float = 0.9) -> Float[np.ndarray, "p"]:
        """Return the same count per permutation."""
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
    """Match components with known Boolean variables one to one, by how well one cut of each tells the variable.

    The examples are halved at random. On one half every component is cut where its Matthews correlation with the
    variable, or with its negation, is largest, and components are assigned to variables with the largest sum of these
    correlations. On the other half the same cuts are scored. Unlike a count of concepts that top examples share, no
    component stands for several variables, and no variable is found because many examples have it.

    Args:
        coefficients: W, or any other ranking of n examples by r columns: controls go through the same matching.
        variables: for each whether each of the n examples has it. A variable that all or no examples have scores 0.
        n_permutations: of the coefficients, for comparison.
        seed: of the halves and the permutations.

    Raises:
        ValueError: fewer than four examples, coefficients that are not finite, or a variable of another length.

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
    halves = (~first, first)  # what chooses; the other one scores
    component, score = _matched(W, has, halves)
    n_permutations = check_integer("n_permutations", n_permutations, 0)
    permuted = [_matched(random.permuted(W, axis=0), has, halves)[1] for _ in range(n_permutations)]
    signed = np.where(has[0], ~has, has)  # a variable and its negation become equal
    _, earliest = np.unique(signed, axis=1, return_index=True)
    distinct = np.isin(np.arange(has.shape[1]), earliest)
    return ConceptMatches(tuple(table), component, score, np.reshape(permuted, (-1, *score.shape)), distinct)


def _matched(
    W: Float[np.ndarray, "n r"], has: Bool[np.ndarray, "n v"], halves: tuple[np.ndarray, np.ndarray]
) -> tuple[Int[np.ndarray, "2 v"], Float[np.ndarray, "2 v"]]:
    """Component and score of every variable, fold by fold."""
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
    """For every component and variable the least coefficient above the best cut, and the correlation there."""
    cuts, chosen = np.zeros((W.shape[1], has.shape[1])), np.zeros((W.shape[1], has.shape[1]))
    for j, column in enumerate(W.T):
        order = np.argsort(-column, kind="stable")
        ranked = column[order]
        ends = np.flatnonzero(ranked[:-1] > ranked[1:])  # equal coefficients stay on one side of a cut
        if not ends.size:
            cuts[j] = np.inf
            continue
        inside = has[order].cumsum(axis=0)[ends]
        correlations = _matthews(inside, (ends + 1)[:, None], has.sum(axis=0), len(has))
        best = np.abs(correlations).argmax(axis=0)
        # Halfway to the next coefficient: the other half's fall on either side of it.
        cuts[j] = (ranked[ends[best]].astype(np.float64) + ranked[ends[best] + 1]) / 2
        chosen[j] = correlations[best, np.arange(has.shape[1])]
    return cuts, chosen


def _matthews(both: np.ndarray, above: np.ndarray, held: np.ndarray, n: int) -> np.ndarray:
    """The Matthews correlation of two Boolean variables from their counts; 0 where one of them is constant."""
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
    """Rank the examples by controls, as many of each kind as there are components, for `search_concepts`.

    ``permuted``: the coefficients, each component's permuted over the examples. ``random directions``: dᵀ F_i d for d
    a normally distributed combination of all rows of all examples, so in their span, where any pseudo-Fisher lies too:
    what the Fishers group without being decomposed. ``random examples``: ⟨F_i, F_e⟩ with an example e drawn for each:
    its neighbours. ``predicted class``: whether it is the example's, classes by turns. ``k-means``: closeness to the
    centroids of as many clusters of activations.

    Args:
        pefs: what was decomposed.
        coefficients: W.
        activations: of the examples; k-means is left out without them.
        seed: of permutations, directions, examples and clusters.

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
    near = (A @ A[own].T).power(2) @ (owner[own][:, None] == drawn)  # rows with rows, then each example's summed
    predicted = np.eye(pefs.logits.shape[1])[np.asarray(pefs.logits).argmax(1)]  # not logits: their rounding would rank
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
