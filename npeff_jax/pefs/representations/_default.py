"""Default representation, by the number of rows of the exact Fisher."""

import jax
import jax.numpy as jnp

from npeff_jax.models import Output
from npeff_jax.pefs.representations._low_rank import LowRank

MOST_EXACT_ROWS = 64
"""Largest number of backward passes per example of the exact default."""

LARGE = LowRank(max_rows=16, sketch=24)
"""Default for more rows: the 16 largest principal rows, at the cost of about 72 passes whatever the number of classes.
The lost trace is recorded (``lost_trace``); `Sampled` has a larger error for the same cost, and it is not recorded."""


def default_representation(output: Output, n_classes: int) -> LowRank:
    """Return the default representation of `compute_pefs` and `plan`.

    It is ``LowRank()``, the exact Fisher, if that takes at most 64 backward passes per example (up to 65 classes), and
    otherwise (ImageNet, a vocabulary of many thousand tokens) ``LowRank(max_rows=16, sketch=24)``.
    """
    logits = jax.ShapeDtypeStruct((n_classes,), jnp.float32)
    exact = jax.eval_shape(output.factor, logits).shape[0]
    return LowRank() if exact <= MOST_EXACT_ROWS else LARGE
