"""TCAV (Kim et al., 2018): sensitivity of logits to the direction in activation space of a set of examples.

A concept activation vector is the normal of a linear classifier between the concept's examples and as many random other
examples, the counterparts. The score of a class is the fraction of its examples whose logit increases along the vector.

Significance is measured against random *concepts*, because a classifier finds a direction for any set of examples.
Kim et al. compare a concept's scores over several counterparts with those of random concepts. The scores of one concept
are not independent, since they share the concept's examples, and that test calls most random sets significant; here
each concept counts as one sample. Under a linear head a score is 0 or 1 for any vector, so the test does not use the
score but the effect of the step along the normal from the counterparts' mean to the concept's.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_in_range
from npeff_jax._html import facts_html, table_html


@dataclasses.dataclass(frozen=True, eq=False)
class Tcav:
    """Scores of q concepts.

    Attributes:
        scores: (q, C), fraction of the class's examples whose logit increases along the concept's vector, averaged over
            counterparts.
        effects: (q, C), first-order change of the class's logit under the step along that vector from the counterparts'
            mean to the concept's, averaged over the class's examples and over counterparts.
        p_values: (q, C), fraction of random concepts of the same size for which the effect on *some* class is as large,
            in units of its standard deviation over random concepts. This corrects for the number of classes.
    """

    scores: Float[np.ndarray, "q C"]
    effects: Float[np.ndarray, "q C"]
    p_values: Float[np.ndarray, "q C"]

    def significant(self, level: float = 0.05) -> Bool[np.ndarray, "q"]:
        """Return whether each concept has a significant effect on at least one class."""
        return self.p_values.min(axis=1) <= level

    def __repr__(self) -> str:
        found = self.significant()
        return f"Tcav of {len(found)} concepts: {found.sum()} related to at least one class at the 5% level"

    def _repr_html_(self) -> str:
        facts = [("concepts", len(self.scores)), ("related to a class at the 5% level", int(self.significant().sum()))]
        heads = ("concept", "class", "score", "effect", "p")
        strongest = self.p_values.argmin(axis=1)
        rows = [
            (int(q), int(c), f"{self.scores[q, c]:.2f}", f"{self.effects[q, c]:+.2g}", f"{self.p_values[q, c]:.3f}")
            for q, c in sorted(enumerate(strongest.tolist()), key=lambda pair: self.p_values[pair])
        ]
        return facts_html("TCAV: each concept's most related class", facts, table_html(heads, rows))


def tcav(
    activations: Float[np.ndarray, "n d"],
    logit_gradients: Float[np.ndarray, "n C d"],
    predictions: Int[np.ndarray, "n"],
    concepts: Sequence[Int[np.ndarray, "_"]],
    *,
    n_counterparts: int = 5,
    n_random_concepts: int = 199,
    seed: int = 0,
) -> Tcav:
    """Test whether concepts, given by their examples, are related to the classes a model predicts.

    Args:
        activations: activations of n examples.
        logit_gradients: ∂ logits / ∂ activation of each example (`logit_gradients`).
        predictions: predicted class of each example. A class without examples has a score of 0.5 and no effect.
        concepts: per concept, the indices of its examples, such as a component's top examples.
        n_counterparts: number of random counterparts per concept.
        n_random_concepts: number of random concepts per concept size; the smallest p-value is
            1 / (n_random_concepts + 1).
        seed: seed of the random sets.

    Raises:
        ValueError: no concept, a concept with fewer than two examples, or with more than half of all.
    """
    n = len(activations)
    if not concepts:
        raise ValueError("concepts is empty; pass a sequence of index arrays, one per concept")
    for concept in concepts:
        check_in_range("the number of examples of a concept", len(concept), 2, n // 2)
    check_in_range("n_counterparts", n_counterparts, 1, np.inf)
    check_in_range("n_random_concepts", n_random_concepts, 19, np.inf)
    rng = np.random.default_rng(seed)
    scale = activations.std(axis=0)
    scaled = (activations - activations.mean(axis=0)) / np.maximum(scale, 1e-12)
    gradients = logit_gradients * scale  # with respect to the scaled activations

    mean_gradients = np.stack([_mean(gradients[predictions == c, c]) for c in range(gradients.shape[1])])

    def steps_of(sets: Sequence[np.ndarray]) -> Float[np.ndarray, "sets counterparts d"]:
        """Return the steps from counterparts to each set."""
        others = [np.setdiff1d(np.arange(n), chosen) for chosen in sets]
        draws = [[rng.choice(rest, n - len(rest), replace=False) for _ in range(n_counterparts)] for rest in others]
        return np.stack(
            [
                [concept_step(scaled[chosen], scaled[counterpart]) for counterpart in drawn]
                for chosen, drawn in zip(sets, draws, strict=True)
            ]
        )

    steps = steps_of(concepts)
    effects = steps.mean(axis=1) @ mean_gradients.T
    p_values = np.empty_like(effects)
    sizes = np.array([len(concept) for concept in concepts])
    for size in np.unique(sizes):
        random = steps_of([rng.choice(n, size, replace=False) for _ in range(n_random_concepts)])
        null = random.mean(axis=1) @ mean_gradients.T
        unit = np.where(null.std(axis=0) > 0, null.std(axis=0), np.inf)
        largest = np.abs(null / unit).max(axis=1)
        own = np.abs(effects[sizes == size] / unit)
        p_values[sizes == size] = (1 + (largest >= own[:, :, None]).sum(axis=-1)) / (n_random_concepts + 1)
    return Tcav(_scores(gradients, predictions, steps), effects, p_values)


def concept_vector(concept: Float[np.ndarray, "k d"], counterpart: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d"]:
    """Return the normal of the ridge classifier (ridge 1 per example), pointing to the concept."""
    x = np.concatenate([concept, counterpart])
    y = np.concatenate([np.ones(len(concept)), -np.ones(len(counterpart))])
    centred = x - x.mean(axis=0)
    # With fewer examples than dimensions, the dual form gives the same vector from a smaller system.
    if len(x) < x.shape[1]:
        return centred.T @ np.linalg.solve(centred @ centred.T + np.eye(len(x)), y - y.mean())
    return np.linalg.solve(centred.T @ centred + np.eye(x.shape[1]), centred.T @ (y - y.mean()))


def concept_step(concept: Float[np.ndarray, "k d"], counterpart: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d"]:
    """Return the difference of the two means, projected onto the normal of `concept_vector`."""
    normal = concept_vector(concept, counterpart)
    length = np.linalg.norm(normal)
    unit = normal / length if length > 0 else normal  # zero if the sets are equal
    return unit * (unit @ (concept.mean(axis=0) - counterpart.mean(axis=0)))


def _mean(gradients: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d"]:
    return gradients.mean(axis=0) if len(gradients) else np.zeros(gradients.shape[1])


def _scores(
    gradients: Float[np.ndarray, "n C d"], predictions: Int[np.ndarray, "n"], steps: Float[np.ndarray, "q runs d"]
) -> Float[np.ndarray, "q C"]:
    scores = np.full((len(steps), gradients.shape[1]), 0.5)
    for c in np.unique(predictions):
        scores[:, c] = [(gradients[predictions == c, c] @ runs.T > 0).mean() for runs in steps]
    return scores
