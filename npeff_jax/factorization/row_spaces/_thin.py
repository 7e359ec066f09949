"""Products of sparse rows: the part of a Gram matrix that comes from columns with few entries."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

try:
    # A @ B counts the entries of the product first, a third of the time, and then allocates a new matrix. These two
    # functions behind it write to given memory, and add to a dense matrix. They are not public: see
    # `add_products_by_scipy`.
    from scipy.sparse._sparsetools import csr_matmat, csr_todense
except ImportError:
    csr_matmat = csr_todense = None

BANDS = 16
"""Number of bands of rows. The part below the diagonal of a band is computed in vain, 1 / 16 of all pairs."""

PRODUCT_BYTES = 1 << 22
"""Size of a product of sparse matrices before it is added to Q, per core, in bytes."""

CACHED_ENTRIES = 3 << 19
"""Entries of a chunk of thin columns. They are read in random order, which takes twice as long outside the cache."""


def add_thin(
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
    chunks = list(each(lambda k: Chunk.of(A[:, edges[k] : edges[k + 1]], bands), range(len(edges) - 1)))
    add = add_products if csr_matmat else add_products_by_scipy
    for _ in each(lambda k: add(Q, chunks, k, slice(bands[k], bands[k + 1])), range(len(bands) - 1)):
        pass


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
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
    def of(cls, A: scipy.sparse.csc_array, bands: Int[np.ndarray, "edges"]) -> "Chunk":
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


def add_products(Q: Float[np.ndarray, "size size"], chunks: list[Chunk], band: int, rows: slice) -> None:
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


def add_products_by_scipy(Q: Float[np.ndarray, "size size"], chunks: list[Chunk], band: int, rows: slice) -> None:
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
