"""TCAV (Kim et al., 2018): do logits react to the direction in activation space that a set of examples stands for?

A concept activation vector is the normal of a linear classifier between a concept's examples and random ones. A class's
score is the fraction of its examples whose logit rises along that vector. Scores of many random counterparts are held
against those of random *concepts*, because a classifier finds some direction for any set of examples.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_in_range


@dataclasses.dataclass(frozen=True, eq=False)
class Tcav:
    """Scores of q concepts.

    Attributes:
        scores: (q, C, runs), one run a set of random counterparts.
        random_scores: (C, runs), of random concepts.
        p_values: (q, C), two-sided Welch test of a concept's scores against the random concepts', times C (Bonferroni).
    """

    scores: Float[np.ndarray, "q C runs"]
    random_scores: Float[np.ndarray, "C runs"]
    p_values: Float[np.ndarray, "q C"]

    def significant(self, level: float = 0.05) -> Bool[np.ndarray, "q"]:
        """Whether a concept is related to the prediction of at least one class."""
        return self.p_values.min(axis=1) < level

    def __repr__(self) -> str:
        found = self.significant()
        return f"Tcav of {len(found)} concepts: {found.sum()} related to at least one class at the 5% level"


def tcav(
    activations: Float[np.ndarray, "n d"],
    logit_gradients: Float[np.ndarray, "n C d"],
    predictions: Int[np.ndarray, "n"],
    concepts: Sequence[Int[np.ndarray, "_"]],
    *,
    n_runs: int = 20,
    seed: int = 0,
) -> Tcav:
    """Test whether concepts, given by their examples, are related to the classes a model predicts.

    Args:
        activations: of n examples.
        logit_gradients: ∂ logits / ∂ activation of each (`logit_gradients`).
        predictions: the class of each; a class's score is taken over its examples, and is 0.5 where it has none.
        concepts: for each, the indices of its examples, such as a component's top examples.
        n_runs: random counterparts of each concept, and random concepts.
        seed: of what is drawn.

    Raises:
        ValueError: no concept, a concept with fewer than two examples, or with more than half of all.
    """
    n = len(activations)
    if not concepts:
        raise ValueError("concepts is empty; pass a sequence of index arrays, one a concept")
    for concept in concepts:
        check_in_range("the number of examples of a concept", len(concept), 2, n // 2)
    check_in_range("n_runs", n_runs, 2, np.inf)
    rng = np.random.default_rng(seed)
    scaled = (activations - activations.mean(0)) / np.maximum(activations.std(0), 1e-12)
    gradients = logit_gradients * activations.std(0)  # with respect to the scaled activations

    def score(concept: np.ndarray) -> np.ndarray:
        counterpart = rng.choice(np.setdiff1d(np.arange(n), concept), len(concept), replace=False)
        return _scores(gradients, predictions, concept_vector(scaled[concept], scaled[counterpart]))

    scores = np.stack([np.stack([score(concept) for _ in range(n_runs)], axis=1) for concept in concepts])
    size = int(np.median([len(concept) for concept in concepts]))
    random = np.stack([score(rng.choice(n, size, replace=False)) for _ in range(n_runs)], axis=1)
    n_classes = random.shape[0]
    p_values = np.array([[welch(row[c], random[c]) for c in range(n_classes)] for row in scores])
    return Tcav(scores, random, np.minimum(p_values * n_classes, 1.0))


def concept_vector(concept: Float[np.ndarray, "k d"], counterpart: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d"]:
    """The normal of the least-squares classifier, pointing to the concept; a ridge of 1 an example keeps it defined."""
    x = np.concatenate([concept, counterpart])
    y = np.concatenate([np.ones(len(concept)), -np.ones(len(counterpart))])
    centred = x - x.mean(axis=0)
    # The dual form where there are fewer examples than dimensions: the same vector from the smaller system.
    if len(x) < x.shape[1]:
        return centred.T @ np.linalg.solve(centred @ centred.T + np.eye(len(x)), y - y.mean())
    return np.linalg.solve(centred.T @ centred + np.eye(x.shape[1]), centred.T @ (y - y.mean()))


def welch(first: Float[np.ndarray, "a"], second: Float[np.ndarray, "b"]) -> float:
    """Two-sided p of equal means with unequal variances. Constant samples give 0 or 1: linear heads often do."""
    a, b = first.var(ddof=1) / first.size, second.var(ddof=1) / second.size
    difference = first.mean() - second.mean()
    if a + b == 0:
        return float(difference == 0)
    freedom = (a + b) ** 2 / (a**2 / (first.size - 1) + b**2 / (second.size - 1))
    return float(2 * scipy.stats.t.sf(abs(difference) / np.sqrt(a + b), freedom))


def _scores(
    gradients: Float[np.ndarray, "n C d"], predictions: Int[np.ndarray, "n"], vector: Float[np.ndarray, "d"]
) -> Float[np.ndarray, "C"]:
    rises = gradients @ vector > 0
    members = predictions[:, None] == np.arange(rises.shape[1])
    counts = members.sum(axis=0)
    return np.where(counts > 0, (rises & members).sum(axis=0) / np.maximum(counts, 1), 0.5)
