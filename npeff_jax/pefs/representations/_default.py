"""What represents an example's Fisher where nothing was chosen: by the number of rows that an exact one has."""

import jax
import jax.numpy as jnp

from npeff_jax.models import Output
from npeff_jax.pefs.representations._low_rank import LowRank

MOST_EXACT_ROWS = 64
"""Backward passes per example that nobody needs to be asked for."""

LARGE = LowRank(max_rows=16, sketch=24)
"""For more: the 16 largest principal rows, found at the cost of some 72 passes whatever the number of classes. What
they lack is recorded (``lost_trace``), where draws (`Sampled`) of equal cost have a larger error that is not."""


def default_representation(output: Output, n_classes: int) -> LowRank:
    """Return what `compute_pefs` and `plan` use where no representation is given.

    That is ``LowRank()``, the exact Fisher, as long as it takes at most 64 backward passes per example: up to 65
    classes. Beyond (ImageNet's classes, a vocabulary of 32,000 to 256,000 words) it is
    ``LowRank(max_rows=16, sketch=24)``.
    """
    logits = jax.ShapeDtypeStruct((n_classes,), jnp.float32)
    exact = jax.eval_shape(output.factor, logits).shape[0]
    return LowRank() if exact <= MOST_EXACT_ROWS else LARGE
