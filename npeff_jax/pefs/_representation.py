"""Which part of a per-example Fisher is kept: small frozen choices, recorded with the PEFs."""

import dataclasses
import enum


class Rows(enum.Enum):
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
        min_probability: classes with a smaller probability are dropped (the paper's ε, 3e-3 on ImageNet).
        max_rows: at most so many rows an example, the best ones.
        min_trace: as few principal rows as hold this fraction of the Fisher's trace.
    """

    rows: Rows = Rows.PRINCIPAL
    min_probability: float = 0.0
    max_rows: int | None = None
    min_trace: float | None = None


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """D-PEFs: the Fisher's diagonal (eq. 3).

    Attributes:
        min_probability: classes with a smaller probability are dropped.
    """

    min_probability: float = 0.0


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


Representation = LowRank | Diagonal | Sampled
