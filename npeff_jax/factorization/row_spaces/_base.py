"""The protocols of row spaces (`RowSpace`) and of their choice (`RowChoice`).

Vectors (pseudo-Fishers, directions) are arrays (r, size) of *coordinates*: entries at the m' parameters, or, in the
kernel form, coefficients U in the rows. Solvers form only linear combinations, inner products and pull-backs of them.

A custom row space is two classes in one file: a `RowSpace` with the products, and a `RowChoice`, which users pass to
`decompose(rows=...)` and which estimates the cost of the space and builds it.
"""

import abc
import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from npeff_jax._types import RowProducts
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.pefs import FisherKind

Vectors = jax.Array
"""(r, size): r vectors in the coordinates of a row space."""

Leaf = Any
"""A leaf of a pytree: an array, or what a JAX transformation puts in its place (a shape, a sharding)."""

Inner = tuple[Float[Array, "N d"], Float[Array, "r d"], Float[Array, "d d"]]
"""A Dᵀ, G Dᵀ and D Dᵀ."""


class ProductPrecision(enum.Enum):
    """Precision of the large products (A Gᵀ, Mᵀ A). Losses are summed in float64 from r×r terms in either case."""

    FLOAT32 = "float32"
    """Full float32 products."""
    BFLOAT16 = "bfloat16"
    """A and the vectors are rounded to bfloat16, sums are float32. Halves the memory and uses tensor cores."""


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x y at the full precision of the inputs, summed in float32."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


class RowSpace(abc.ABC):
    """The rows A, and the products that solvers need of them.

    A subclass is a pytree (`jax.tree_util.register_dataclass`), so that it is an argument of compiled steps and not a
    constant in them. It has a ``mesh`` (one axis, `SHARDS`) and implements the four abstract members.
    """

    mesh: Mesh

    @property
    @abc.abstractmethod
    def n_rows(self) -> int:
        """N, the number of rows over all examples."""

    @abc.abstractmethod
    def inner(self, G: Vectors, D: Vectors) -> Inner:
        """Return A Dᵀ, G Dᵀ and D Dᵀ, in one reduction over devices."""

    @abc.abstractmethod
    def pull_back(self, M: RowProducts) -> Vectors:
        """Return Mᵀ A, in coordinates."""

    def combine(self, G: Vectors, C: Float[Array, "f r"], M: Float[Array, "N f"]) -> tuple[Vectors, tuple[Any, ...]]:
        """Return D = C G + Mᵀ A, with A Dᵀ, G Dᵀ and D Dᵀ: every step of a solver has this form.

        Override it if a single pass over the coordinates can compute everything.

        Args:
            G: vectors.
            C: (f, r), weights of the vectors.
            M: (N, f), weights of the rows.
        """
        D = matmul(C, G) + self.pull_back(M)
        return D, self.inner(G, D)

    @abc.abstractmethod
    def expand(self, vectors: Vectors) -> np.ndarray:
        """Convert coordinates to vectors over the m' parameters, (r, m'); a new array, or a read-only one."""

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        """Convert vectors over the m' parameters to coordinates.

        Raises:
            ValueError: the space cannot represent arbitrary vectors.
        """
        raise ValueError(
            f"{type(self).__name__} cannot represent given pseudo-Fishers; pass rows=DenseRows() or rows=SparseRows()"
        )

    def to_host(self, vectors: Vectors) -> np.ndarray:
        """Return coordinates for a checkpoint, without padding or an order that depends on the devices."""
        return self.expand(vectors)

    def from_host(self, saved: np.ndarray) -> Vectors:
        """Return coordinates on the devices, from the result of `to_host`."""
        return self.coordinates(saved)

    def on_device(self) -> "RowSpace":
        """Return a copy without host-side data, for compiled steps (whose caches keep their arguments alive)."""
        return self

    @property
    def notes(self) -> Mapping[str, Any]:
        """JSON-serialisable entries for the settings of the result."""
        return {}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimated cost of a row space.

    Attributes:
        memory: bytes on all devices together. The devices of a CPU share the memory of the host.
        seconds: time of `STEPS` steps, including one-time work but not compilation.
        host: further bytes on the host while the space is built and the result is formed.
        once: seconds of one-time work: building the space and forming the result.
    """

    memory: float
    seconds: float
    host: float = 0.0
    once: float = 0.0

    @classmethod
    def of_steps(cls, step: float, once: float, memory: float, host: float) -> "Cost":
        """Return the cost of `STEPS` steps of ``step`` seconds."""
        return cls(memory, once + STEPS * step, host, once)

    @property
    def step(self) -> float:
        """Seconds per step."""
        return (self.seconds - self.once) / STEPS


STEPS = 100
"""Number of steps that costs are estimated for: what the default stopping criteria need on most problems."""


class RowChoice(abc.ABC):
    """A choice of row space: a frozen object that users pass as ``rows=``, and that builds the row space.

    Attributes:
        kinds: the kinds of PEFs it supports.
        exact: whether its space computes exact products of A. If not, the coefficients and the loss of a result are
            recomputed from the rows themselves.
    """

    kinds: ClassVar[tuple[FisherKind, ...]] = (FisherKind.LOW_RANK, FisherKind.DIAGONAL)

    @property
    def exact(self) -> bool:
        return True

    @abc.abstractmethod
    def cost(self, A: BlockedRows, n_components: int, mesh: Mesh) -> Cost:
        """Estimate memory and time from the shape and the number of non-zeros of A."""

    @abc.abstractmethod
    def of(
        self,
        A: BlockedRows,
        mesh: Mesh,
        *,
        n_components: int = 64,
        products: ProductPrecision = ProductPrecision.FLOAT32,
        frozen: Float[np.ndarray, "f m_kept"] | None = None,
    ) -> RowSpace:
        """Put the rows on the devices of ``mesh``.

        Args:
            A: the rows.
            mesh: one axis, `SHARDS`.
            n_components: r, which may set the size of a block.
            products: precision of the products.
            frozen: (f, m'), vectors that the space must be able to represent.

        Raises:
            ValueError: the space does not support ``products`` or ``frozen``.
        """


def name_of(choice: RowChoice) -> str:
    """Return the expression of a choice, without default arguments: ``KernelRows(sketch=64)``."""
    fields = getattr(choice, "__dataclass_fields__", {}).values()
    given = [f"{f.name}={getattr(choice, f.name)!r}" for f in fields if getattr(choice, f.name) != f.default]
    return f"{type(choice).__name__}({', '.join(given)})"
