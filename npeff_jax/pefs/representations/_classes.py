"""Dropping of improbable classes, and the probability mass and trace lost with them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from npeff_jax._types import Logits
from npeff_jax.models import Output
from npeff_jax.pefs.representations._base import Prediction, Pullback


def most_classes(min_probability: float, n_classes: int) -> int:
    """Return how many classes can have a probability of ``min_probability`` or more: 1/ε, plus one for rounding."""
    return min(n_classes, int(1 / min_probability) + 1) if min_probability > 0 else n_classes


def kept_classes(output: Output, logits: Logits, min_probability: float, most: int) -> Bool[Array, "C"]:
    """Return which classes are kept: those above the threshold, at most the ``most`` most probable ones.

    If every class is below the threshold, the most probable one is kept.
    """
    p = output.probabilities(logits)
    likeliest = jax.lax.top_k(p, most)[1]  # ties go to the lower class
    among = jnp.zeros(p.shape, bool).at[likeliest].set(True)
    return (p >= min_probability) & among | (jnp.arange(p.size) == likeliest[0])


def class_rows(at: Prediction, min_probability: float, most: int) -> Pullback:
    """Return the rows of the kept classes, most probable first, with the lost mass and a probe of the lost trace."""
    p, kept = at.output.probabilities(at.logits), kept_classes(at.output, at.logits, min_probability, most)
    n_rows = jnp.sum(kept, dtype=jnp.int32)
    likeliest = jax.lax.top_k(p, at.room)[1]
    used = (jnp.arange(at.room) < n_rows).astype(p.dtype)
    rows = at.output.weighted(at.logits, jax.nn.one_hot(likeliest, p.size, dtype=p.dtype) * used[:, None])
    signs = jax.random.rademacher(at.key, (1, p.size), at.logits.dtype)
    (probe,) = at.output.weighted(at.logits, jnp.where(kept[None], jnp.zeros_like(signs), signs))
    return Pullback.of(rows, n_rows, lost_mass(at, kept), probe)


def lost_mass(at: Prediction, kept: Bool[Array, "C"]) -> Array:
    """Return the probability of the classes that are not kept."""
    p = at.output.probabilities(at.logits)
    return jnp.sum(jnp.where(kept, jnp.zeros_like(p), p))
