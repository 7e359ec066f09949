"""Step lengths with a given measured mean KL on some examples."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._examples import take_examples
from npeff_jax._types import Examples, PyTree
from npeff_jax.models import Model, check_model
from npeff_jax.perturbation._arguments import check_direction, check_positive
from npeff_jax.perturbation._divergence import Passes, iterate_perturbed_kl
from npeff_jax.perturbation._edit import NoEditError, scaled

PASSES = Passes()
"""Default settings."""


def scale_to_kl(
    model: Model, direction: PyTree, others: Examples, nats: float, *, passes: Passes = PASSES
) -> tuple[PyTree, float]:
    """Scale a direction to a given mean KL on some examples; return the scaled direction and its KL.

    Moves of equal KL are comparable between models and directions; moves of equal norm are not.

    Args:
        model: the model.
        direction: a pytree shaped like the parameters, of any norm; its sign is kept.
        others: examples that the mean is taken over.
        nats: mean KL to reach, in nats; the result has at least nine tenths of it.
        passes: settings of forward passes.

    Raises:
        NoEditError: the direction changes no prediction, or the KL jumps over the range.
    """
    check_model(model)
    check_direction(model, direction)
    flat = np.asarray(model.space.ravel(direction), np.float64)
    norm = float(np.linalg.norm(flat))
    if not norm > 0:
        raise NoEditError("the direction is zero; it changes no prediction")
    unit = (flat / norm).astype(np.float32)[None]
    nats = check_positive("nats", nats)
    c, kl = go_to_kl(model, unit, np.zeros(1), np.ones(1), 1e-2, nats, take_examples(others), passes)
    return scaled(float(c[0]), model.space.unravel(jnp.asarray(unit[0]))), kl


TRIES = 40
"""Maximum number of step lengths tried for a given KL; a smooth model needs two or three, one with kinks a few more."""


def go_to_kl(
    model: Model,
    flat: Float[np.ndarray, "d m"],
    c: Float[np.ndarray, "d"],
    ahead: Float[np.ndarray, "d"],
    length: float,
    target: float,
    others: Examples,
    passes: Passes,
) -> tuple[Float[np.ndarray, "d"], float]:
    """Return c + t · ahead with t such that the measured KL is 0.97 to 1 times ``target``; and that KL."""
    low, high, best = 0.0, np.inf, (c, 0.0)
    for _ in range(TRIES):
        tried = c + length * ahead
        move = model.space.unravel(jnp.asarray(tried @ flat, jnp.float32))
        (kl,) = iterate_perturbed_kl(model, others, [move], [1.0], passes, finite=False)
        mean = float(np.mean(np.asarray(kl, np.float64)))
        if 0.97 * target <= mean <= target:
            return tried, mean
        if np.isfinite(mean) and mean < target:
            low, best = length, (tried, mean)
        else:
            high = length
        guess = length * np.sqrt(0.985 * target / mean) if np.isfinite(mean) and mean > 0 else 10 * length
        inside = low < guess < high
        length = guess if inside else (low + high) / 2 if np.isfinite(high) else 10 * length
    if best[1] > 0:
        return best
    raise NoEditError(f"no move along this direction has a mean KL near {target:.2g} nats; try another budget")
