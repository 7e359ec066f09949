"""LRM-PEFs: low-rank factors of the Fisher."""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from npeff_jax._checks import as_enum, check_integer, check_real, normalise
from npeff_jax._types import Cotangents, Logits
from npeff_jax.models import Output
from npeff_jax.pefs.representations._base import Prediction, Pullback, Representation, Rotation
from npeff_jax.pefs.representations._classes import class_rows, kept_classes, most_classes
from npeff_jax.pefs.representations._eigenvectors import principal_vectors
from npeff_jax.pefs.representations._sketch import sketched


class RowBasis(enum.Enum):
    """Which rows a_1..a_c represent F = Σ a aᵀ. They give the same F, but differ after sparsification."""

    PRINCIPAL = "principal"
    """Scaled singular vectors: orthogonal, largest first. They lose the least when only some entries are kept."""
    FACTOR = "factor"
    """The C−1 rows of the closed-form factor, without a rotation. The cheapest choice."""
    CLASSES = "classes"
    """One row per class, as in the paper: ``sqrt(p_j) ∇ log p_j``."""


@dataclasses.dataclass(frozen=True)
class LowRank(Representation):
    """LRM-PEFs: the Fisher as low-rank rows, exact except for entries dropped by ``keep`` (section 2.1).

    Attributes:
        rows: which rows, a `RowBasis` or its name: "principal", "factor" or "classes".
        min_probability: classes with a smaller probability are dropped (the paper's ε, 3e-3 on ImageNet). At most 1/ε
            classes remain, and the number of gradients per example is the largest number of classes in the batch,
            rounded up to a power of two.
        max_rows: maximum number of rows per example: the largest principal rows, or the most probable classes.
        min_trace: keep as many principal rows as are needed for this fraction of the Fisher's trace.
        sketch: for many classes, compute principal rows in a random subspace of this dimension, with three passes per
            dimension instead of one per class. Choose about 8 more than the number of rows wanted. ``lost_trace`` is
            the part outside the subspace, and ``fisher_error`` is relative to the Fisher inside it. If there are no
            more rows than ``sketch``, they are computed exactly.

    Raises:
        ValueError: a value out of range, or incompatible choices.
        TypeError: a value that is not a number.
    """

    rows: RowBasis = RowBasis.PRINCIPAL
    min_probability: float = 0.0
    max_rows: int | None = None
    min_trace: float | None = None
    sketch: int | None = None

    def __post_init__(self) -> None:
        rows = as_enum("rows", self.rows, RowBasis)
        probability = check_real("min_probability", self.min_probability, 0, 1, open_high=True)
        most = None if self.max_rows is None else check_integer("max_rows", self.max_rows)
        trace = None if self.min_trace is None else check_real("min_trace", self.min_trace, 0, 1, open_low=True)
        sketch = None if self.sketch is None else check_integer("sketch", self.sketch)
        normalise(self, rows=rows, min_probability=probability, max_rows=most, min_trace=trace, sketch=sketch)
        if trace is not None and not self._principal:
            raise ValueError(f"min_trace needs rows ordered by size: use RowBasis.PRINCIPAL, not {rows}")
        if sketch is not None and not self._principal:
            raise ValueError(f"sketch finds principal rows: use RowBasis.PRINCIPAL, not {rows}")
        if sketch is not None and sketch < (most or 1):
            raise ValueError(f"sketch={sketch} cannot hold {most or 1} rows; use max_rows + 8 or more")
        if rows is RowBasis.FACTOR and (probability > 0 or most is not None):
            raise ValueError("RowBasis.FACTOR mixes all classes in each row; to drop some, use PRINCIPAL or CLASSES")

    def n_rows(self, output: Output, n_classes: int) -> int:
        exact = self._n_exact(output, n_classes)
        return exact if self.sketch is None else min(self.sketch, exact)

    def cotangents(self, at: Prediction) -> Cotangents | Pullback:
        n_classes = at.logits.size
        most = self._most_classes(n_classes)
        if self.sketch is not None and self.sketch < self._n_exact(at.output, n_classes):
            found = sketched(at, self.sketch, kept_classes(at.output, at.logits, self.min_probability, most))
        elif self._drops_classes:
            found = class_rows(at, self.min_probability, most)
        else:
            classes = self.rows is RowBasis.CLASSES
            found = Pullback.of(at.output.class_rows(at.logits) if classes else at.output.factor(at.logits))
        if not self._principal:
            return found
        rank = jax.eval_shape(at.output.factor, at.logits).shape[0]
        return found._replace(n_rows=jnp.minimum(found.n_rows, jnp.asarray(rank, found.n_rows.dtype)))

    def rows_needed(self, output: Output, logits: Logits) -> Int[Array, ""] | None:
        if not self._drops_classes or self.sketch is not None:
            return None
        return jnp.sum(kept_classes(output, logits, self.min_probability, self._most_classes(logits.size)))

    def rotation(self, gram: Any, n_rows: Any, xp: Any) -> Rotation:
        """Return the rotation to principal rows, which are orthogonal to rounding for any conditioning of ``gram``."""
        if not self._principal:
            return Rotation(None, gram, n_rows)
        matrix = principal_vectors(gram, xp)
        exact = {} if xp is np else {"precision": "highest"}
        gram = xp.matmul(xp.matmul(matrix, gram, **exact), matrix.T, **exact)
        if self.max_rows is not None:
            n_rows = xp.minimum(n_rows, self.max_rows)
        if self.min_trace is not None:
            held = xp.cumsum(xp.diagonal(gram))
            n_rows = xp.minimum(n_rows, 1 + xp.sum(held < self.min_trace * held[-1]))
        return Rotation(matrix, gram, n_rows)

    @property
    def _principal(self) -> bool:
        return self.rows is RowBasis.PRINCIPAL

    @property
    def _drops_classes(self) -> bool:
        """Whether classes may be dropped."""
        return self.min_probability > 0 or (self.rows is RowBasis.CLASSES and self.max_rows is not None)

    def _most_classes(self, n_classes: int) -> int:
        most = most_classes(self.min_probability, n_classes)
        return min(most, self.max_rows or most) if self.rows is RowBasis.CLASSES else most

    def _n_exact(self, output: Output, n_classes: int) -> int:
        """Return the number of rows without a range finder."""
        if self._drops_classes:
            return self._most_classes(n_classes)
        rows = output.class_rows if self.rows is RowBasis.CLASSES else output.factor
        return jax.eval_shape(rows, jax.ShapeDtypeStruct((n_classes,), jnp.float32)).shape[0]
