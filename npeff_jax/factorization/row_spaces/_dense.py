"""Dense rows: A as one array. The reference for the other row spaces, and the fastest for small or dense A."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from npeff_jax._sharding import SHARDS, fetch, place, round_up, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.row_spaces._base import (
    Cost,
    Inner,
    Leaf,
    ProductPrecision,
    RowChoice,
    RowSpace,
    Vectors,
    matmul,
)
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.factorization.row_spaces._rates import rates, scaling_seconds

ALIGNED = 1024
"""The number of columns per accelerator is a multiple of this. On a GPU, XLA splits the long sums of A Gᵀ into equal,
aligned pieces (16 pieces of a multiple of 16 bytes at this size); otherwise it pads a second copy of A."""


@dataclasses.dataclass(frozen=True)
class DenseRows(RowChoice):
    """Hold A as one dense array with sharded columns. Fastest if A fits in memory and is not mostly zeros."""

    def cost(self, A: BlockedRows, n_components: int, mesh: Mesh) -> Cost:
        (N, m), r, speed = A.shape, n_components, rates(mesh)
        vectors = 4.0 * r * m
        step = (4 * N * m * r + 6 * r * r * m) / speed.dense + (8.0 * N * m + 12 * vectors) / speed.stream
        once = 4.0 * N * m * (speed.touch + 2 / speed.stream) + scaling_seconds(r, m, mesh)
        return Cost.of_steps(step, once, 4.0 * N * m + 5 * vectors, 4.0 * N * m + 2 * vectors)

    def of(
        self,
        A: BlockedRows,
        mesh: Mesh,
        *,
        n_components: int = 64,
        products: ProductPrecision = ProductPrecision.FLOAT32,
        frozen: np.ndarray | None = None,
    ) -> "DenseSpace":
        N, width = A.shape
        dense = np.zeros((N, padded_width(width, mesh)), np.float32)
        for first, block in A.read():
            dense[first : first + block.shape[0], :width] = block.toarray()
        return DenseSpace(place(dense.astype(jnp.dtype(products.value)), sharded(mesh, None, SHARDS)), mesh, width)


def padded_width(width: int, mesh: Mesh) -> int:
    """Return the number of columns of the padded A."""
    return round_up(width, mesh.size * (1 if mesh.devices.flat[0].platform == "cpu" else ALIGNED))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["A"], meta_fields=["mesh", "width"])
@dataclasses.dataclass(frozen=True, eq=False)
class DenseSpace(RowSpace):
    """A as one array, its columns sharded over the mesh.

    Attributes:
        A: (N, padded m'), columns padded with zeros to a multiple of the mesh.
        mesh: one axis, `SHARDS`.
        width: m', without padding.
    """

    A: Leaf
    mesh: Mesh
    width: int

    @property
    def n_rows(self) -> int:
        return self.A.shape[0]

    def inner(self, G: Vectors, D: Vectors) -> Inner:
        @functools.partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(None, SHARDS), P(None, SHARDS), P(None, SHARDS)),
            out_specs=P(),
            check_vma=False,
        )
        def on_shard(A: jax.Array, G: jax.Array, D: jax.Array) -> tuple[Any, ...]:
            AD = matmul(A, D.astype(A.dtype).T)
            return jax.lax.psum((AD, matmul(G, D.T), matmul(D, D.T)), SHARDS)

        return on_shard(self.A, G, D)

    def pull_back(self, M: RowProducts) -> Vectors:
        @functools.partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(None, SHARDS), P()),
            out_specs=P(None, SHARDS),
            check_vma=False,
        )
        def on_shard(A: jax.Array, M: jax.Array) -> jax.Array:
            return matmul(M.T.astype(A.dtype), A)

        return on_shard(self.A, M)

    def expand(self, vectors: Vectors) -> np.ndarray:
        return fetch(vectors)[:, : self.width]

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        padded = np.zeros((vectors.shape[0], self.A.shape[1]), np.float32)
        padded[:, : self.width] = vectors
        return place(padded, sharded(self.mesh, None, SHARDS))
