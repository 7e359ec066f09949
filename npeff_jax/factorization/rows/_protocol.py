"""Row spaces: what the solvers ask of the rows A, whatever holds them.

Vectors (pseudo-Fishers, directions) are bundles (r, size) of *coordinates*: positions in the m' parameters, or, in the
kernel form, coefficients U in the rows. The solvers only form linear combinations of them and ask three questions.
"""

from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from npeff_jax._types import RowProducts

Vectors = jax.Array
"""(r, size): r vectors in the coordinates of a row space."""

Inner = tuple[Float[Array, "N d"], Float[Array, "r d"], Float[Array, "d d"]]
"""A Dᵀ, G Dᵀ and D Dᵀ."""


@runtime_checkable
class RowSpace(Protocol):
    """A pytree: it is an argument of the jitted steps, never a constant in them."""

    @property
    def mesh(self) -> Mesh:
        """The devices it lives on, in a row (`SHARDS`)."""

    @property
    def n_rows(self) -> int:
        """N, the rows of all examples together."""

    def inner(self, G: Vectors, D: Vectors) -> Inner:
        """A Dᵀ, G Dᵀ and D Dᵀ, in one reduction over devices."""

    def pull(self, M: RowProducts) -> Vectors:
        """Mᵀ A, in coordinates."""

    def expand(self, vectors: Vectors) -> np.ndarray:
        """Coordinates to (r, m') on the host: the result."""

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        """The way back, where there is one.

        Raises:
            ValueError: the space cannot represent given vectors.
        """

    def to_host(self, vectors: Vectors) -> np.ndarray:
        """Coordinates without padding or order that depend on the devices: what a checkpoint holds."""

    def from_host(self, saved: np.ndarray) -> Vectors:
        """The way back from `to_host`."""
