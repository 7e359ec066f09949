"""Sparse rows, sharded over parameters: what a step reduces over devices is N×r and r×r, whatever m' is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCSR
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from npeff_jax._sharding import SHARDS, fetch, place, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.rows._blocks import BlockedRows
from npeff_jax.factorization.rows._deal import deal
from npeff_jax.factorization.rows._dense import matmul
from npeff_jax.factorization.rows._protocol import Inner, Vectors

BLOCK_ENTRIES = 1 << 20
"""Entries of r vectors that a block of columns spans, 4 MB. A product gathers from there at random: when it outgrows
the cache, a CPU falls from 18 to 3 GF/s."""

Csr = tuple[jax.Array, jax.Array, jax.Array]
"""Values, indices and row pointers of all blocks, each with the blocks along its first axis."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["by_row", "by_column"], meta_fields=["mesh", "N", "columns"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class SparseSpace:
    """A (N, m') in blocks of columns, each once by row and once by column: products gather, and never scatter.

    Attributes:
        by_row: blocks of A.
        by_column: blocks of Aᵀ.
        mesh: one axis, `SHARDS`, over the blocks.
        N: rows.
        columns: which column of A stands at each coordinate.
    """

    by_row: Csr
    by_column: Csr
    mesh: Mesh
    N: int
    columns: "Columns"

    @classmethod
    def of(cls, rows: BlockedRows, mesh: Mesh, n_vectors: int = 64) -> "SparseSpace":
        """Deal the columns of A to shards and blocks.

        Args:
            rows: A.
            mesh: one axis.
            n_vectors: r, which sets the size of a block.
        """
        (N, m), A = rows.shape, rows.whole.tocsc()
        n_blocks = mesh.size * max(1, round(m * n_vectors / mesh.size / BLOCK_ENTRIES))
        dealt = deal(rows.counts, n_blocks)
        blocks = [A[:, own[own >= 0]] for own in dealt.reshape(n_blocks, -1)]  # padding is at the end of a block
        by_row = _pack([block.tocsr() for block in blocks], N)
        by_column = _pack([block.T for block in blocks], len(dealt) // n_blocks)
        spec = sharded(mesh, SHARDS)
        return cls(_place(by_row, spec), _place(by_column, spec), mesh, N, Columns(dealt, m))

    @property
    def n_rows(self) -> int:
        return self.N

    def inner(self, G: Vectors, D: Vectors) -> Inner:
        @functools.partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(SHARDS), P(None, SHARDS), P(None, SHARDS)),
            out_specs=P(),
            check_vma=False,
        )
        def on_shard(A: Csr, G: jax.Array, D: jax.Array) -> tuple:
            blocks = D.T.reshape(A[0].shape[0], -1, D.shape[0])
            AD = jnp.zeros((self.N, D.shape[0]))
            AD, _ = jax.lax.scan(lambda AD, x: (AD + _product(x[0], x[1], self.N), None), AD, (A, blocks))
            return jax.lax.psum((AD, matmul(G, D.T), matmul(D, D.T)), SHARDS)

        return on_shard(self.by_row, G, D)

    def pull(self, M: RowProducts) -> Vectors:
        @functools.partial(
            jax.shard_map, mesh=self.mesh, in_specs=(P(SHARDS), P()), out_specs=P(None, SHARDS), check_vma=False
        )
        def on_shard(At: Csr, M: jax.Array) -> jax.Array:
            blocks = jax.lax.map(lambda block: _product(block, M, At[2].shape[1] - 1), At)
            return blocks.reshape(-1, M.shape[1]).T

        return on_shard(self.by_column, M)

    def expand(self, vectors: Vectors) -> np.ndarray:
        dealt = self.columns.dealt
        out = np.empty((vectors.shape[0], self.columns.width), np.float32)
        out[:, dealt[dealt >= 0]] = fetch(vectors)[:, dealt >= 0]
        return out

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        dealt = self.columns.dealt
        placed = np.where(dealt >= 0, vectors[:, dealt], 0).astype(np.float32)
        return place(placed, sharded(self.mesh, None, SHARDS))

    def to_host(self, vectors: Vectors) -> np.ndarray:
        return self.expand(vectors)

    def from_host(self, saved: np.ndarray) -> Vectors:
        return self.coordinates(saved)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The permutation of a deal. All of one width are equal to a compiled step, which never looks at them."""

    dealt: np.ndarray = dataclasses.field(compare=False)
    width: int


def _place(blocks: tuple[np.ndarray, np.ndarray, np.ndarray], spec: NamedSharding) -> Csr:
    values, indices, pointers = blocks
    return place(values, spec), place(indices, spec), place(pointers, spec)


def _product(block: Csr, x: jax.Array, n_rows: int) -> jax.Array:
    """One block times a dense matrix. Inside ``jit`` on a CPU, a compiled kernel (outside, ten times slower)."""
    return BCSR(block, shape=(n_rows, x.shape[0])) @ x


def _pack(blocks: list[scipy.sparse.csr_array], n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed blocks of ``n_rows`` rows as arrays of equal length, padded with zeros that belong to the last row."""
    length = max(block.nnz for block in blocks)
    data, indices = np.zeros((len(blocks), length), np.float32), np.zeros((len(blocks), length), np.int32)
    pointers = np.full((len(blocks), n_rows + 1), length, np.int32)
    for k, block in enumerate(blocks):
        data[k, : block.nnz], indices[k, : block.nnz] = block.data, block.indices
        pointers[k, : block.shape[0]] = block.indptr[:-1]
        pointers[k, block.shape[0] : n_rows] = block.nnz
    return data, indices, pointers
