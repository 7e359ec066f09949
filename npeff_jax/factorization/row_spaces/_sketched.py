"""The kernel form with a sketched Gram matrix: Q ≈ S Sᵀ, S = A Ω with Ω (m', s) random. Memory is N s, not N².

Ω has four entries of ±1/2 per row (a sparse Johnson-Lindenstrauss transform), so that E[Ω Ωᵀ] = I and S costs four
operations per non-zero. The error of Q is measured on a sample of its rows, and the coefficients of the result are
refitted on exact products.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import scipy.sparse
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from npeff_jax._sharding import SHARDS, fetch, place, round_up, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.row_spaces._base import Cost, Inner, Leaf, RowSpace, Vectors, matmul
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.factorization.row_spaces._rates import pull_seconds, rates

ENTRIES = 4
"""Non-zeros of Ω per row. With a single one (a count sketch), two heavy parameters can collide completely."""

SAMPLE = 256
"""Number of rows of Q on which the error is measured."""


def sketched_cost(A: BlockedRows, size: int, n_components: int, mesh: Mesh) -> Cost:
    """Estimate memory and time of a sketch to ``size`` columns."""
    (N, m), nnz, r = A.shape, float(A.nnz), n_components
    speed = rates(mesh)
    once = 4 * ENTRIES * nnz * speed.pair * speed.cores + pull_seconds(nnz, r, m, mesh)
    step = 8 * N * size * r / speed.dense + 16.0 * N * size / speed.stream
    return Cost.of_steps(step, once, 4.0 * N * size + 40.0 * r * N, 12.0 * ENTRIES * m + 4.0 * N * size + 8.0 * r * m)


def sketched_space(A: BlockedRows, mesh: Mesh, size: int, seed: int = 0) -> "SketchedSpace":
    """Sketch the rows to ``size`` columns, rounded up to a multiple of the mesh."""
    N, m = A.shape
    size = round_up(size, mesh.size)
    rng = np.random.default_rng(seed)
    columns = rng.integers(size, size=m * ENTRIES)
    signs = rng.choice(np.array([-0.5, 0.5], np.float32), size=m * ENTRIES)
    omega = scipy.sparse.csr_array((signs, columns, np.arange(m + 1) * ENTRIES), shape=(m, size))
    S = np.concatenate([(block @ omega).toarray() for _, block in A.read()])
    some = np.sort(rng.choice(N, min(N, SAMPLE), replace=False))
    sample = A.take(some)
    exact = np.concatenate([(sample @ block.T).toarray() for _, block in A.read()], axis=1)
    error = float(np.linalg.norm(S[some] @ S.T - exact) / max(float(np.linalg.norm(exact)), 1e-30))
    return SketchedSpace(place(S, sharded(mesh, None, SHARDS)), mesh, N, Sketched(A.pull, error))


@dataclasses.dataclass(frozen=True, eq=False)
class Sketched:
    """Host-side data of a sketch.

    Attributes:
        pull: function from coefficients in the rows (r, N) to vectors (r, m').
        error: ‖S Sᵀ − Q‖ / ‖Q‖ (Frobenius), on a sample of rows.
    """

    pull: Callable[[np.ndarray], np.ndarray]
    error: float


@functools.partial(jax.tree_util.register_dataclass, data_fields=["S"], meta_fields=["mesh", "N", "origin"])
@dataclasses.dataclass(frozen=True, eq=False)
class SketchedSpace(RowSpace):
    """S with columns sharded over the mesh. The coordinates of a vector are its coefficients in the rows.

    Attributes:
        S: (N, s), sketched rows.
        mesh: one axis, `SHARDS`.
        N: number of rows.
        origin: conversion to vectors, and the error of the sketch; None inside compiled steps.
    """

    S: Leaf
    mesh: Mesh
    N: int
    origin: Sketched | None

    @property
    def n_rows(self) -> int:
        return self.N

    def inner(self, G: Vectors, D: Vectors) -> Inner:
        @functools.partial(
            jax.shard_map, mesh=self.mesh, in_specs=(P(None, SHARDS), P()), out_specs=P(), check_vma=False
        )
        def on_shard(S: jax.Array, D: jax.Array) -> jax.Array:
            return jax.lax.psum(matmul(S, matmul(D, S).T), SHARDS)

        QD = on_shard(self.S, D)
        return QD, matmul(G, QD), matmul(D, QD)

    def pull_back(self, M: RowProducts) -> Vectors:
        return M.T

    def expand(self, vectors: Vectors) -> np.ndarray:
        return self._origin.pull(fetch(vectors))

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        raise ValueError(
            "the sketched kernel cannot start from given pseudo-Fishers; use rows=DenseRows() or rows=SparseRows()"
        )

    def to_host(self, vectors: Vectors) -> np.ndarray:
        return fetch(vectors)

    def from_host(self, saved: np.ndarray) -> Vectors:
        return place(saved, sharded(self.mesh))

    def on_device(self) -> "SketchedSpace":
        return dataclasses.replace(self, origin=None)

    @property
    def notes(self) -> Mapping[str, Any]:
        return {"sketch_error": self._origin.error}

    @property
    def _origin(self) -> Sketched:
        if self.origin is None:
            raise ValueError("got a SketchedSpace from inside a compiled step, without rows; use that of the Problem")
        return self.origin
