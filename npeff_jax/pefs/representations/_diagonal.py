"""D-PEFs: the diagonal of the Fisher."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from npeff_jax._checks import check_real, normalise
from npeff_jax._types import Cotangents, Logits
from npeff_jax.models import Output
from npeff_jax.pefs.representations._base import FisherKind, Prediction, Pullback, Representation
from npeff_jax.pefs.representations._classes import class_rows, kept_classes, most_classes


@dataclasses.dataclass(frozen=True)
class Diagonal(Representation):
    """D-PEFs: the diagonal of the Fisher (eq. 3).

    Attributes:
        min_probability: classes with a smaller probability are dropped.

    Raises:
        ValueError: a value out of range.
    """

    min_probability: float = 0.0

    kind: ClassVar[FisherKind] = FisherKind.DIAGONAL

    def __post_init__(self) -> None:
        given = check_real("min_probability", self.min_probability, 0, 1, open_high=True)
        normalise(self, min_probability=given)

    def n_rows(self, output: Output, n_classes: int) -> int:
        if self.min_probability > 0:
            return most_classes(self.min_probability, n_classes)
        return jax.eval_shape(output.factor, jax.ShapeDtypeStruct((n_classes,), jnp.float32)).shape[0]

    def cotangents(self, at: Prediction) -> Cotangents | Pullback:
        if self.min_probability > 0:
            return class_rows(at, self.min_probability, most_classes(self.min_probability, at.logits.size))
        return at.output.factor(at.logits)

    def rows_needed(self, output: Output, logits: Logits) -> Int[Array, ""] | None:
        if self.min_probability == 0:
            return None
        return jnp.sum(
            kept_classes(output, logits, self.min_probability, most_classes(self.min_probability, logits.size))
        )
