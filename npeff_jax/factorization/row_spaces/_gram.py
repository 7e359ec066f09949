"""The Gram matrix Q = A Aᵀ of stored rows on the host, with its rows sharded over CPU devices.

Columns are treated by their number of non-zeros d. Thin columns, which cost d² / 2 pairs, are multiplied as sparse
matrices, bands of rows in parallel on all cores. Full columns become dense tiles for a symmetric product by BLAS. Only
the upper triangle is computed.

The diagonal is summed in float64, the rest in float32. An entry is within 1e-5 ‖a‖ ‖b‖ of the exact inner product;
within 5e-5 for rows that share up to 65,536 columns (tested; typically 1e-6).
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg.blas
import scipy.sparse
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from npeff_jax._machine import cores, on_cores
from npeff_jax._sharding import SHARDS, place, round_up, sharded
from npeff_jax.factorization.row_spaces._blocks import ENTRY_BYTES, GROUP_BYTES, BlockedRows, row_squares
from npeff_jax.factorization.row_spaces._rates import rates
from npeff_jax.factorization.row_spaces._thin import BANDS, PRODUCT_BYTES, add_thin

TILE_BYTES = 1 << 27
"""Size of a dense tile of columns, in bytes."""

FULL = 0.06
"""Fraction of non-zeros from which a column counts as full, because a dense product costs less than its pairs. Measured
on two CPU cores (2.5 ns per pair and 180 GFLOP/s on both: 0.065)."""

SORTS = 1.3
"""Passes over the entries on one core, in units of a sort by column: the sort, and moving columns by their counts."""

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
            add_thin(Q, group.tocsc()[:, n_full:], counts[n_full:], pool.map)
            diagonal[:N] += squares.result()
            if frozen is not None:
                Q[:N, N : N + len(frozen)] += group @ frozen[:, columns].T
    if frozen is not None:
        Q[N : N + len(frozen), N : N + len(frozen)] = frozen @ frozen.T
        diagonal[N : N + len(frozen)] = np.einsum("fm,fm->f", frozen, frozen, dtype=np.float64)
    on_cores(functools.partial(_mirror, Q), range(0, size, MIRRORED))
    np.fill_diagonal(Q, diagonal)
    return place(Q, sharded(mesh, SHARDS, None))


def full_from(N: int) -> int:
    """Return the number of non-zeros from which a column counts as full."""
    return max(2, int(np.ceil(FULL * N)))


def gram_seconds(A: BlockedRows, mesh: Mesh) -> float:
    """Estimate the time of `gram` in seconds from the column counts."""
    N, speed, entries = A.shape[0], rates(mesh), float(A.nnz)
    pairs, visits, n_full = work(A.counts, N)
    thin = pairs * (1 + 1 / BANDS) * speed.pair + visits * speed.visit
    full = n_full * (float(N) ** 2 / speed.dense + 8.0 * N / speed.stream)
    return thin + full + SORTS * entries * speed.sort + 4.0 * N * N * (speed.touch + 3 / speed.stream)


def work(counts: Int[np.ndarray, "m_kept"], N: int) -> tuple[float, float, int]:
    """Count the work of `gram`, with each pair of rows once and each row with itself.

    Returns:
        Pairs of entries of thin columns that meet; entries of thin columns with more than one entry;
        and the number of full columns.
    """
    full = counts >= full_from(N)
    thin = counts[~full & (counts > 1)].astype(np.float64)
    return float(np.sum(thin * (thin + 1))) / 2, float(thin.sum()), int(np.count_nonzero(full))


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


def _mirror(Q: Float[np.ndarray, "size size"], first: int) -> None:
    """Copy a block of rows of the upper triangle to the lower one."""
    block = slice(first, min(first + MIRRORED, len(Q)))
    Q[block, block] = np.triu(Q[block, block]) + np.triu(Q[block, block], 1).T
    Q[block.stop :, block] = Q[block, block.stop :].T
