"""LRM-PEFs from sampled labels."""

import dataclasses

from npeff_jax._checks import check_integer, normalise
from npeff_jax._types import Cotangents
from npeff_jax.models import Output
from npeff_jax.pefs.representations._base import Prediction, Representation


@dataclasses.dataclass(frozen=True)
class Sampled(Representation):
    """LRM-PEFs from labels drawn from the model's own distribution, for outputs too many to enumerate.

    The rows are ``∇ log p(y_s) / sqrt(n_samples)``: unbiased for F. Neither the squared norm nor the normalised Fisher
    is unbiased.

    Attributes:
        n_samples: S, draws per example; also its number of rows.
        seed: folded with each example's index, so that batches do not matter.

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
