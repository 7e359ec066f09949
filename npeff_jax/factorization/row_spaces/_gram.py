"""The Gram matrix Q = A Aᵀ of stored rows on the host, with its rows sharded over CPU devices.

Columns are treated by their number of non-zeros d. Thin columns, which cost d² / 2 pairs, are multiplied as sparse
matrices, bands of rows in parallel on all cores. Full columns become dense tiles for a symmetric product by BLAS. Only
the upper triangle is computed.

The diagonal is summed in float64, the rest in float32. An entry is within 1e-5 ‖a‖ ‖b‖ of the exact inner product;
within 5e-5 for rows that share up to 65,536 columns (tested; typically 1e-6).
"""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.linalg.blas
import scipy.sparse
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from npeff_jax._machine import cores
from npeff_jax._sharding import SHARDS, place, round_up, sharded
from npeff_jax.factorization.row_spaces._blocks import ENTRY_BYTES, GROUP_BYTES, BlockedRows, row_squares
from npeff_jax.factorization.row_spaces._rates import ENTRY_SECONDS, rates

try:
    # A @ B counts the entries of the product first, a third of the time, and then allocates a new matrix. These two
    # functions behind it write to given memory, and add to a dense matrix. They are not public: see `_product_by_scipy`
    from scipy.sparse._sparsetools import csr_matmat, csr_todense
except ImportError:
    csr_matmat = csr_todense = None

TILE_BYTES = 1 << 27
"""Size of a dense tile of columns, in bytes."""

BANDS = 16
"""Number of bands of rows. In a band, 1 / 32 of the columns' entries of the triangle are multiplied in vain."""

PRODUCT_BYTES = 1 << 22
"""Size of a product of sparse matrices before it is added to Q, per core, in bytes."""

CACHED_ENTRIES = 3 << 19
"""Entries of a chunk of thin columns. They are read in random order, which takes twice as long outside the cache."""

FULL = 0.045
"""Fraction of non-zeros from which a column counts as full, because a dense product costs less than its pairs. Measured
on two CPU cores (8 ns per pair on one core, 150 GFLOP/s on both)."""

MIRRORED = 1024
"""Rows per block when the upper triangle is copied to the lower one."""


def gram(
    A: BlockedRows, mesh: Mesh, frozen: Float[np.ndarray, "f m_kept"] | None = None
) -> Float[Array, "N_padded N_padded"]:
    """Compute the Gram matrix of [A; G_frozen], padded with zeros to a multiple of the mesh.

    Only one group of columns of A is in memory at a time.

    Args:
        A: the rows.
        mesh: one axis, `SHARDS`, over which the rows of Q are sharded.
        frozen: (f, m'), further dense rows.
    """
    N = A.shape[0]
    size = round_up(N + (0 if frozen is None else len(frozen)), mesh.size)
    Q = _aligned_zeros(size)
    diagonal = np.zeros(len(Q))
    with ThreadPoolExecutor(cores()) as pool:
        for columns, group in A.groups():
            counts = A.counts[columns]
            n_full = int(np.searchsorted(-counts, -full_from(N), side="right"))
            for tile in _tiles(group, n_full, max(64, TILE_BYTES // (4 * size))):
                _add_full(Q, tile)
            squares = pool.submit(row_squares, group)
            _add_thin(Q, group.tocsc()[:, n_full:], counts[n_full:], pool.map)
            diagonal[:N] += squares.result()
            if frozen is not None:
                Q[:N, N : N + len(frozen)] += group @ frozen[:, columns].T
    if frozen is not None:
        Q[N : N + len(frozen), N : N + len(frozen)] = frozen @ frozen.T
        diagonal[N : N + len(frozen)] = np.einsum("fm,fm->f", frozen, frozen, dtype=np.float64)
    _mirror(Q)
    np.fill_diagonal(Q, diagonal)
    return place(Q, sharded(mesh, SHARDS, None))


def full_from(N: int) -> int:
    """Return the number of non-zeros from which a column counts as full."""
    return max(2, int(np.ceil(FULL * N)))


def gram_seconds(A: BlockedRows, mesh: Mesh) -> float:
    """Estimate the time of `gram` in seconds from the column counts: pairs of thin columns, products of full ones."""
    N, speed = A.shape[0], rates(mesh)
    counts = A.counts.astype(np.float64)
    full = counts >= full_from(N)
    pairs = float(np.sum(counts[~full] ** 2)) / 2 * (1 + 1 / BANDS)
    entries = float(counts.sum()) * 8 * ENTRY_SECONDS
    thin = (pairs * speed.pair + entries) / cores()
    dense = np.count_nonzero(full) * float(N) ** 2 / speed.dense
    return thin + dense + 3 * 4.0 * N * N / speed.stream + float(counts.sum()) * 3 * ENTRY_SECONDS


def gram_bytes(A: BlockedRows) -> float:
    """Estimate the memory of `gram` in bytes, without its result."""
    return 24.0 * min(A.nnz, GROUP_BYTES / ENTRY_BYTES) + 2.0 * cores() * PRODUCT_BYTES


def _aligned_zeros(size: int) -> Float[np.ndarray, "size size"]:
    """Return zeros in memory aligned so that JAX adopts it on a CPU without a copy."""
    room = np.zeros(size * size + 32, np.float32)
    first = (-room.ctypes.data % 128) // 4
    return room[first : first + size * size].reshape(size, size)


def _tiles(group: scipy.sparse.csr_array, n_full: int, width: int) -> Iterator[scipy.sparse.csr_array]:
    for first in range(0, n_full, width):
        yield group[:, first : min(first + width, n_full)]


def _add_full(Q: Float[np.ndarray, "size size"], tile: scipy.sparse.csr_array) -> None:
    """Add the products of a tile to the upper triangle (the lower one for BLAS, which is column-major)."""
    N = tile.shape[0]
    dense = tile.toarray()
    if len(Q) > N:
        dense = np.pad(dense, ((0, len(Q) - N), (0, 0)))
    scipy.linalg.blas.ssyrk(1.0, dense.T, beta=1.0, c=Q.T, trans=1, lower=1, overwrite_c=1)


def _add_thin(
    Q: Float[np.ndarray, "size size"], A: scipy.sparse.csc_array, counts: Int[np.ndarray, "w"], each: Callable[..., Any]
) -> None:
    """Add the products of sparse rows to the upper triangle of Q, in parallel over bands of rows.

    The diagonal is left undefined.

    Args:
        Q: the matrix to add to.
        A: the sparse rows, compressed by column.
        counts: number of entries per column, descending.
        each: maps a function over the bands, on all cores.
    """
    N = A.shape[0]
    shared = int(np.searchsorted(-counts, -1))  # columns with a single entry contribute to the diagonal only
    edges = _chunks(counts[:shared], N)
    bands = np.linspace(0, N, min(BANDS, N) + 1).astype(int)
    chunks = list(each(lambda k: _Chunk.of(A[:, edges[k] : edges[k + 1]], bands), range(len(edges) - 1)))
    add = _add_products if csr_matmat else _add_products_by_scipy
    for _ in each(lambda k: add(Q, chunks, k, slice(bands[k], bands[k + 1])), range(len(bands) - 1)):
        pass


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunk:
    """Some thin columns of A, by row and by column.

    By column, they are a sparse matrix with two rows per column j: row 2 j for the entries in rows of A before a given
    band, row 2 j + 1 for the others. So a band multiplies only entries of the upper triangle, without copying them.

    Attributes:
        by_row: values, indices and row pointers of the rows of A; the index of an entry of column j is 2 j + 1.
        by_column: values and rows of the entries, column after column.
        first: (w + 1,), position of the first entry of each column.
        starts: (bands, w), position of the first entry of each column from each band on.
    """

    by_row: tuple[np.ndarray, np.ndarray, np.ndarray]
    by_column: tuple[np.ndarray, np.ndarray]
    first: Int[np.ndarray, "w_plus_1"]
    starts: Int[np.ndarray, "bands w"]

    @classmethod
    def of(cls, A: scipy.sparse.csc_array, bands: Int[np.ndarray, "edges"]) -> "_Chunk":
        """Convert some columns of A, for bands between the given rows."""
        rows, first = A.tocsr(), A.indptr.astype(np.int32)
        indices, pointers = rows.indices.astype(np.int32), rows.indptr.astype(np.int32)
        starts = np.empty((len(bands) - 1, A.shape[1]), np.int32)
        starts[0] = first[:-1]
        for k in range(1, len(starts)):
            passed = indices[pointers[bands[k - 1]] : pointers[bands[k]]]
            starts[k] = starts[k - 1] + np.bincount(passed, minlength=A.shape[1])
        return cls((rows.data, 2 * indices + 1, pointers), (A.data, A.indices.astype(np.int32)), first, starts)

    def operands(self, band: int, rows: slice) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Return some rows of A, and by column the entries from a band on: values, indices and pointers of both."""
        values, indices, pointers = self.by_row
        split = np.empty(2 * len(self.first) - 1, np.int32)
        split[::2], split[1::2] = self.first, self.starts[band]
        return (values, indices, pointers[rows.start : rows.stop + 1]), (*self.by_column, split)


def _add_products(Q: Float[np.ndarray, "size size"], chunks: list[_Chunk], band: int, rows: slice) -> None:
    """Add the products of a band of rows with the rows from its first on, over all chunks of columns."""
    size = len(Q)
    height = max(1, PRODUCT_BYTES // (8 * size))
    pointers, columns = np.empty(height + 1, np.int32), np.empty(height * size, np.int32)
    values = np.empty(height * size, np.float32)
    for chunk in chunks:
        (data, indices, starts), (others, at, split) = chunk.operands(band, rows)
        for first in range(0, rows.stop - rows.start, height):
            n = min(height, rows.stop - rows.start - first)
            some = starts[first : first + n + 1]
            csr_matmat(n, size, some, indices, data, split, at, others, pointers, columns, values)
            target = Q[rows.start + first : rows.start + first + n]
            csr_todense(n, size, pointers, columns, values, target.reshape(-1))


def _add_products_by_scipy(Q: Float[np.ndarray, "size size"], chunks: list[_Chunk], band: int, rows: slice) -> None:
    """Add the same products by SciPy's public functions."""
    for chunk in chunks:
        (data, indices, starts), (others, at, split) = chunk.operands(band, rows)
        own = slice(starts[0], starts[-1])
        left = scipy.sparse.csr_array(
            (data[own], indices[own], starts - starts[0]), shape=(len(starts) - 1, len(split) - 1)
        )
        right = scipy.sparse.csr_array((others, at, split), shape=(len(split) - 1, len(Q)))
        Q[rows] += (left @ right).toarray()


def _chunks(counts: Int[np.ndarray, "w"], N: int) -> Int[np.ndarray, "edges"]:
    """Split columns into chunks that fit the cache, but with enough pairs to amortise adding N² / 2 results each."""
    if not len(counts):
        return np.zeros(1, int)
    entries, pairs = np.cumsum(counts), float(np.sum(counts.astype(np.float64) ** 2))
    n_chunks = int(max(1, min(entries[-1] // CACHED_ENTRIES, pairs // (2 * N * N))))
    inner = np.searchsorted(entries, np.arange(1, n_chunks) * entries[-1] / n_chunks)
    return np.unique(np.concatenate([[0], inner, [len(counts)]]))


def _mirror(Q: Float[np.ndarray, "size size"]) -> None:
    """Copy the upper triangle to the lower one."""
    for first in range(0, len(Q), MIRRORED):
        block = slice(first, min(first + MIRRORED, len(Q)))
        Q[block, block] = np.triu(Q[block, block]) + np.triu(Q[block, block], 1).T
        Q[block.stop :, block] = Q[block, block.stop :].T
