"""LRM-PEFs from sampled labels."""

import dataclasses

from npeff_jax._checks import check_integer, normalise
from npeff_jax._types import Cotangents
from npeff_jax.models import Output
from npeff_jax.pefs.representations._base import Prediction, Representation


@dataclasses.dataclass(frozen=True)
class Sampled(Representation):
    """LRM-PEFs from labels sampled from the model's distribution, for too many outputs to enumerate.

    The rows ``∇ log p(y_s) / sqrt(n_samples)`` give an unbiased estimate of F. Its squared norm and the normalised
    Fisher are biased.

    Attributes:
        n_samples: S, samples per example, which is also the number of rows.
        seed: seed, folded with each example's position so that samples do not depend on batches.

    Raises:
        ValueError: a value out of range.
    """

    n_samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        samples = check_integer("n_samples", self.n_samples)
        normalise(self, n_samples=samples, seed=check_integer("seed", self.seed, 0, 2**32 - 1))

    def n_rows(self, output: Output, n_classes: int) -> int:
        return self.n_samples

    def cotangents(self, at: Prediction) -> Cotangents:
        return at.output.sample(at.key, at.logits, self.n_samples)
