"""Selection of the examples on a component's card."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

NEAR_MISS = 0.1
"""Largest coefficient of a near miss, as a fraction of the mean coefficient of the top examples."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """How many examples a card shows.

    Attributes:
        top: number of examples with the largest coefficients.
        random: number of examples drawn at random, for comparison.
        near_misses: number of examples with small coefficients whose predictions are closest to the top examples'.
        mix: number of top examples, but at most a tenth of all, in the mixes of predictions, labels and words.
        seed: seed of the random draw.
    """

    top: int = 16
    random: int = 8
    near_misses: int = 8
    mix: int = 128
    seed: int = 0


def top_of(column: Float[np.ndarray, "n"], k: int) -> Int[np.ndarray, "k"]:
    """Return the positions of the k largest coefficients, largest first, ties by position; zeros are left out."""
    order = np.argsort(-column, kind="stable")[:k]
    return order[column[order] > 0]


def random_of(usable: Int[np.ndarray, "n"], k: int, seed: int, component: int) -> Int[np.ndarray, "k"]:
    """Draw k of the ``usable`` examples for one component, from a pool of 64 examples that all components share.

    The pool keeps a report of many components small, because its images and texts are stored once.
    """
    pool = np.random.default_rng(seed).permutation(usable)[:64]
    return np.random.default_rng([seed, component]).permutation(pool)[:k]


def near_misses_of(
    column: Float[np.ndarray, "n"],
    probabilities: Float[np.ndarray, "n C"],
    top: Int[np.ndarray, "t"],
    k: int,
    usable: Int[np.ndarray, "m"],
) -> Int[np.ndarray, "k"]:
    """Find the k of the ``usable`` examples with small coefficients whose predictions are closest to the top examples'.

    Closeness is Hellinger distance to the mean prediction of the top examples, which is bounded and sensitive to small
    probabilities. The contrast with such examples shows what the component adds to a prediction.
    """
    if not len(top):
        return np.empty(0, int)
    quiet = usable[column[usable] <= NEAR_MISS * column[top].mean()]
    likeness = np.sqrt(probabilities[quiet]) @ np.sqrt(probabilities[top].mean(0))
    return quiet[np.argsort(-likeness, kind="stable")[:k]]


def mix_of(classes: Int[np.ndarray, "t"]) -> tuple[tuple[int, float], ...]:
    """Return (class, fraction) of the classes that occur, most frequent first."""
    found, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple((int(found[i]), float(counts[i] / counts.sum())) for i in order)


def likeliest_pairs(probabilities: Float[np.ndarray, "n C"]) -> Int[np.ndarray, "n 2"]:
    """Return the two likeliest classes per example, the smaller class number first."""
    return np.sort(np.argpartition(-probabilities, 1, axis=1)[:, :2], axis=1)


def pair_mix_of(pairs: Int[np.ndarray, "n 2"], top: Int[np.ndarray, "t"]) -> tuple[tuple[int, int, float, float], ...]:
    """Return the three most frequent (class, class, fraction of the top examples, fraction of all) among pairs."""
    found, counts = np.unique(pairs[top], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    of_all = [np.all(pairs == found[i], axis=1).mean() for i in order]
    own = counts[order] / len(top)
    return tuple((int(found[i, 0]), int(found[i, 1]), float(a), float(b)) for i, a, b in zip(order, own, of_all))
