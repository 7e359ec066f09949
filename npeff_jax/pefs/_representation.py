"""Which part of a per-example Fisher is kept: small frozen choices, recorded with the PEFs."""

import dataclasses
import enum


class RowBasis(enum.Enum):
    """Which rows a_1..a_c represent F = Σ a aᵀ. F does not care; its sparsification does."""

    PRINCIPAL = "principal"
    """The singular vectors: orthogonal, largest first. The least is lost when only some entries are kept."""
    FACTOR = "factor"
    """The C−1 rows of the closed-form factor, with no rotation after it: the cheapest."""
    CLASSES = "classes"
    """One row a class, as the paper has it: ``sqrt(p_j) ∇ log p_j``."""


class Normalization(enum.Enum):
    """When each example's rows are divided by the square root of its Fisher's Frobenius norm."""

    BEFORE = "before"
    """Before entries are dropped, by the norm of the whole Fisher: the paper's way (section 2.2, Preprocessing)."""
    AFTER = "after"
    """After entries were dropped, so that every kept Fisher has norm 1."""
    NONE = "none"
    """Raw. Examples with large Fishers then dominate a decomposition."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """LRM-PEFs: the Fisher as rows, exact up to what ``keep`` drops (section 2.1).

    Attributes:
        rows: which rows.
        min_probability: classes with a smaller probability are dropped (the paper's ε, 3e-3 on ImageNet). At most 1/ε
            classes are left, so no more gradients are computed than that; with batches, no more than the example of
            the batch with most classes needs, up to a power of two.
        max_rows: at most so many rows an example: the largest principal rows, or the most probable classes.
        min_trace: as few principal rows as hold this fraction of the Fisher's trace.
        sketch: for many classes: find the principal rows in a random span of so many dimensions, at the cost of three
            passes for each, instead of one for each class. Choose some 8 more than the rows that are wanted.
            ``lost_trace`` is what lies outside the span. Where all rows are no more than ``sketch``, they are taken.

    Raises:
        ValueError: a value out of range, or choices that exclude each other.
    """

    rows: RowBasis = RowBasis.PRINCIPAL
    min_probability: float = 0.0
    max_rows: int | None = None
    min_trace: float | None = None
    sketch: int | None = None

    def __post_init__(self) -> None:
        _check_probability(self.min_probability)
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows={self.max_rows} must be at least 1, or None for every row")
        if self.min_trace is not None and not 0 < self.min_trace <= 1:
            raise ValueError(f"min_trace={self.min_trace} is a fraction of the trace; expected 0 < min_trace <= 1")
        if self.min_trace is not None and self.rows is not RowBasis.PRINCIPAL:
            raise ValueError(f"min_trace needs rows ordered by size: use RowBasis.PRINCIPAL, not {self.rows}")
        if self.sketch is not None and self.rows is not RowBasis.PRINCIPAL:
            raise ValueError(f"sketch finds principal rows: use RowBasis.PRINCIPAL, not {self.rows}")
        if self.sketch is not None and self.sketch < (self.max_rows or 1):
            raise ValueError(f"sketch={self.sketch} cannot hold {self.max_rows or 1} rows; use max_rows + 8 or more")
        if self.rows is RowBasis.FACTOR and (self.min_probability > 0 or self.max_rows is not None):
            raise ValueError(
                "RowBasis.FACTOR mixes all classes in each row; to drop some, use RowBasis.PRINCIPAL or CLASSES"
            )


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """D-PEFs: the Fisher's diagonal (eq. 3).

    Attributes:
        min_probability: classes with a smaller probability are dropped.
    """

    min_probability: float = 0.0

    def __post_init__(self) -> None:
        _check_probability(self.min_probability)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """LRM-PEFs from labels drawn from the model's own distribution, for outputs too many to enumerate.

    The rows are ``∇ log p(y_s) / sqrt(n_samples)``: unbiased for F. Neither the squared norm nor the normalised Fisher
    is unbiased.

    Attributes:
        n_samples: S, draws an example; also its number of rows.
        seed: folded with each example's index, so that batches do not matter.
    """

    n_samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ValueError(f"n_samples={self.n_samples} must be at least 1")


Representation = LowRank | Diagonal | Sampled


@dataclasses.dataclass(frozen=True)
class PerRow:
    """``keep`` that grows with the rank: ``entries`` times c_i non-zeros for example i, over all its rows together."""

    entries: int


@dataclasses.dataclass(frozen=True)
class SharedSupport:
    """``keep`` as ``parameters`` positions an example, the same in each of its rows: those of the largest diagonal
    entries of its Fisher.
    """

    parameters: int


Keep = int | PerRow | SharedSupport | None
"""How many non-zeros to keep of one example: K over all its rows, growing with its rank, on one support shared by its
rows, or (None) all."""


def _check_probability(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"min_probability={value} is out of range; expected 0 <= min_probability < 1")
