"""The kernel form with a sketched Gram matrix: Q ≈ S Sᵀ, S = A Ω with Ω (m', s) random. Memory is N s, not N².

Ω has four entries of ±1/2 in each row (a sparse Johnson-Lindenstrauss transform), so that E[Ω Ωᵀ] = I and S costs four
operations a non-zero. The error of Q is measured on some of its rows, and the result is put back on exact products.
"""

import dataclasses
import functools

import jax
import numpy as np
import scipy.sparse
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from npeff_jax._sharding import SHARDS, fetch, place, round_up, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.rows._blocks import BlockedRows
from npeff_jax.factorization.rows._dense import matmul
from npeff_jax.factorization.rows._kernel import Recover
from npeff_jax.factorization.rows._protocol import Inner, Vectors

ENTRIES = 4
"""Entries of Ω a row: one alone (a count sketch) lets two heavy parameters collide in full."""

SAMPLE = 256
"""Rows of Q that the error is measured on."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["S"], meta_fields=["mesh", "N", "recover", "error"])
@dataclasses.dataclass(frozen=True, eq=False)
class SketchedSpace:
    """S (N, s), its columns sharded over the mesh. Coordinates of a vector are its coefficients in the rows.

    Attributes:
        S: sketched rows.
        mesh: one axis, `SHARDS`.
        N: rows.
        recover: from U to vectors.
        error: ‖S Sᵀ − Q‖ / ‖Q‖ (Frobenius), on a sample of rows.
    """

    S: jax.Array
    mesh: Mesh
    N: int
    recover: Recover
    error: float

    @classmethod
    def of(cls, A: BlockedRows, mesh: Mesh, size: int, seed: int = 0) -> "SketchedSpace":
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
        return cls(place(S, sharded(mesh, None, SHARDS)), mesh, N, Recover.of(A), error)

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

    def pull(self, M: RowProducts) -> Vectors:
        return M.T

    def expand(self, vectors: Vectors) -> np.ndarray:
        return self.recover(fetch(vectors), self.N)

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        raise ValueError(
            "the sketched kernel cannot start from given pseudo-Fishers; use rows=DenseRows() or rows=SparseRows()"
        )

    def to_host(self, vectors: Vectors) -> np.ndarray:
        return fetch(vectors)

    def from_host(self, saved: np.ndarray) -> Vectors:
        return place(saved, sharded(self.mesh))
