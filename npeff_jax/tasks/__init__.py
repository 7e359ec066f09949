"""Models and examples to try things on, and readers of real data sets."""

from npeff_jax.tasks._digits import Digits as Digits
from npeff_jax.tasks._digits import digits as digits
