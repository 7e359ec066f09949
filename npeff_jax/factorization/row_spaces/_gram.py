"""The Gram matrix Q = A Aᵀ of stored rows on the host, with its rows sharded over CPU devices.

Columns are treated by their number of non-zeros d. Thin columns, which cost d² / 2 pairs, are multiplied as sparse
matrices, bands of rows in parallel on all cores. Full columns become dense tiles for a symmetric product by BLAS. Only
the upper triangle is computed.

The diagonal is summed in float64, the rest in float32. An entry is within 1e-5 ‖a‖ ‖b‖ of the exact inner product;
within 5e-5 for rows that share up to 65,536 columns (tested; typically 1e-6).
"""

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

TILE_BYTES = 1 << 27
"""Size of a dense tile of columns, in bytes."""

BAND_BYTES = 1 << 27
"""Size of a dense band of rows of Q, one per core, in bytes."""

MOST_BANDS, LEAST_BANDS = 64, 8
"""Bounds on the number of bands: fewer bands compute more unused pairs below the diagonal and balance cores worse."""

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
            thin = group[:, n_full:] if n_full else group
            _add_thin(Q, thin, counts[n_full:], pool.map)
            diagonal[:N] += row_squares(group)
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
    pairs = float(np.sum(counts[~full] ** 2)) / 2 * (1 + 1 / LEAST_BANDS)
    entries = float(counts.sum()) * (8 + MOST_BANDS // 16) * ENTRY_SECONDS
    thin = (pairs * speed.pair + entries) / cores()
    dense = np.count_nonzero(full) * float(N) ** 2 / speed.dense
    return thin + dense + 3 * 4.0 * N * N / speed.stream + float(counts.sum()) * 3 * ENTRY_SECONDS


def gram_bytes(A: BlockedRows) -> float:
    """Estimate the memory of `gram` in bytes, without its result."""
    return 24.0 * min(A.nnz, GROUP_BYTES / ENTRY_BYTES) + 3.0 * cores() * min(4.0 * A.shape[0] ** 2, BAND_BYTES)


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
    Q: Float[np.ndarray, "size size"], A: scipy.sparse.csr_array, counts: Int[np.ndarray, "w"], each: Callable[..., Any]
) -> None:
    """Add the products of sparse rows to the upper triangle of Q, in parallel over bands of rows.

    The diagonal is left undefined.

    Args:
        Q: the matrix to add to.
        A: the sparse rows.
        counts: number of entries per column, descending.
        each: maps a function over the bands, on all cores.
    """
    N = A.shape[0]
    shared = int(np.searchsorted(-counts, -1))  # columns with a single entry contribute to the diagonal only
    edges = _chunks(counts[:shared], N)
    chunks = list(each(lambda k: _both_ways(A[:, edges[k] : edges[k + 1]]), range(len(edges) - 1)))
    n_bands = min(max(LEAST_BANDS, -(-4 * N * N // BAND_BYTES)), MOST_BANDS, N)
    bands = np.linspace(0, N, n_bands + 1).astype(int)

    def add_band(k: int) -> None:
        first, stop = bands[k], bands[k + 1]
        for by_row, by_column in chunks:
            Q[first:stop, first:N] += (by_row[first:stop] @ by_column[:, first:]).toarray()

    for _ in each(add_band, range(n_bands)):
        pass


def _chunks(counts: Int[np.ndarray, "w"], N: int) -> Int[np.ndarray, "edges"]:
    """Split columns into chunks that fit the cache, but with enough pairs to amortise adding N² / 2 results each."""
    if not len(counts):
        return np.zeros(1, int)
    entries, pairs = np.cumsum(counts), float(np.sum(counts.astype(np.float64) ** 2))
    n_chunks = int(max(1, min(entries[-1] // CACHED_ENTRIES, pairs // (2 * N * N))))
    inner = np.searchsorted(entries, np.arange(1, n_chunks) * entries[-1] / n_chunks)
    return np.unique(np.concatenate([[0], inner, [len(counts)]]))


def _both_ways(A: scipy.sparse.csr_array) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Return A and Aᵀ, both compressed by row."""
    return A, A.T.tocsr()


def _mirror(Q: Float[np.ndarray, "size size"]) -> None:
    """Copy the upper triangle to the lower one."""
    for first in range(0, len(Q), MIRRORED):
        block = slice(first, min(first + MIRRORED, len(Q)))
        Q[block, block] = np.triu(Q[block, block]) + np.triu(Q[block, block], 1).T
        Q[block.stop :, block] = Q[block, block.stop :].T
