"""The choices of a decomposition: small frozen objects, recorded with its result."""

import dataclasses
import enum
from typing import Any

import numpy as np


class ProductPrecision(enum.Enum):
    """How the large products (A Gᵀ, Mᵀ A) are computed. Losses are summed in float64 from r×r terms either way."""

    FLOAT32 = "float32"
    """Full float32 products."""
    BFLOAT16 = "bfloat16"
    """A and the vectors are rounded to bfloat16, sums are float32: half the memory, and what tensor cores are for."""


@dataclasses.dataclass(frozen=True)
class DampedALS:
    """LRM-NPEFF without a learning rate: HALS on W, then the damped ALS direction on G with an exact line search.

    Attributes:
        damping: λ of (B + λ Diag B)⁻¹. B is only positive semi-definite: nearly parallel components make it singular,
            and the inverse of the r×r system then amplifies the rounding of its right-hand side.
        sweeps: HALS sweeps over W a step. Solving for W exactly while G is still far off stalls (tested).
        exchanges: once it stands still, how often the component that is missed least is replaced by what is explained
            worst, and kept if that pays. Alternating steps alone end in local minima from most starts.
        warm_up: first steps that move G alone, W held at its start.
        orthogonality: weight ρ of ρ Σ_{j≠k} (g_j·g_k)² over unit vectors, added to the loss as a fraction of ‖F‖².
        stiefel: keep the pseudo-Fishers orthonormal.
    """

    damping: float = 1e-2
    sweeps: int = 1
    exchanges: int = 9
    warm_up: int = 0
    orthogonality: float = 0.0
    stiefel: bool = False


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """The paper's algorithm for LRM-NPEFF, for comparison: multiplicative W, gradient steps of a fixed rate on G.

    Attributes:
        learning_rate: of G. 1e-3 is the default of the authors' code.
        epsilon: added to the denominator of the multiplicative update, as there.
        warm_up: first steps that move G alone.
    """

    learning_rate: float = 1e-3
    epsilon: float = 1e-9
    warm_up: int = 0


@dataclasses.dataclass(frozen=True)
class HALS:
    """D-NPEFF by hierarchical alternating least squares: one exact column after the other.

    Attributes:
        sweeps: over W and over H a step, for the same products with X, which cost most.
        exchanges: as for `DampedALS`.
    """

    sweeps: int = 2
    exchanges: int = 9


@dataclasses.dataclass(frozen=True)
class Multiplicative:
    """D-NPEFF by the multiplicative updates of Lee & Seung, the paper's way.

    Attributes:
        epsilon: what a zero denominator is replaced by: the machine epsilon of float32, as in scikit-learn.
    """

    epsilon: float = float(np.finfo(np.float32).eps)


Solver = DampedALS | GradientDescent | HALS | Multiplicative


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When the iterations end.

    Attributes:
        max_steps: at the latest.
        tolerance: relative decrease of the loss a step, averaged over the last ``window`` steps, below which it stops.
        window: steps between looks at the loss, and those an exchange is given; also how often carried products are
            recomputed, which bounds their drift.
    """

    max_steps: int = 500
    tolerance: float = 1e-5
    window: int = 10


@dataclasses.dataclass(frozen=True, eq=False)
class InitialFactors:
    """A given start. What is not given is drawn from the seed.

    Attributes:
        coefficients: W, (n, r), non-negative.
        pseudo_fishers: G or H over all m parameters, (r, m).
    """

    coefficients: Any = None
    pseudo_fishers: Any = None

    @property
    def given(self) -> list[str]:
        """What is given, for the record."""
        return [name for name in ("coefficients", "pseudo_fishers") if getattr(self, name) is not None]


@dataclasses.dataclass(frozen=True)
class DenseRows:
    """A as one dense array, columns sharded. Fastest where it fits and is not mostly zeros."""


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """A in compressed blocks, parameters sharded over the mesh. Work and memory go with the non-zeros."""


@dataclasses.dataclass(frozen=True)
class KernelRows:
    """The N×N Gram matrix of the rows: iterations do not depend on m'. For low-rank PEFs.

    Attributes:
        sketch: approximate it by a random sketch of so many columns, N sketch numbers instead of N². The error is
            measured and reported; coefficients and loss of the result are exact.
    """

    sketch: int | None = None


RowChoice = DenseRows | SparseRows | KernelRows
"""How the rows are held. `decompose` picks by size where none is given."""
