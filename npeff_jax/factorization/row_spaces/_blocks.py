"""The rows A as compressed blocks that are read one at a time, so that A may be larger than memory."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from npeff_jax._machine import cores, on_cores

GROUP_BYTES = 1 << 31
"""Size in bytes of a group of columns in memory. Larger rows are read once per group."""

ENTRY_BYTES = 8
"""Bytes per compressed entry: a float32 and an int32."""

PULLED = 1 << 19
"""Number of float32 entries of the vectors formed at once (2 MB), so that they are transposed within the cache."""


@dataclasses.dataclass(frozen=True, eq=False)
class BlockedRows:
    """A (N, m') in compressed blocks of rows.

    Attributes:
        shape: N and m'.
        counts: number of non-zeros of each column.
        read: function that returns an iterator over ``(first row, block)``; every call reads the blocks again.
    """

    shape: tuple[int, int]
    counts: Int[np.ndarray, "m_kept"]
    read: Callable[[], Iterator[tuple[int, scipy.sparse.csr_array]]]

    @classmethod
    def of(cls, A: scipy.sparse.csr_array) -> "BlockedRows":
        """Wrap a matrix in memory."""
        return cls(A.shape, np.bincount(A.indices, minlength=A.shape[1]), lambda: iter([(0, A)]))

    @property
    def nnz(self) -> int:
        """Number of non-zeros."""
        return int(self.counts.sum())

    @functools.cached_property
    def whole(self) -> scipy.sparse.csr_array:
        """A as one matrix in memory."""
        return scipy.sparse.vstack([block for _, block in self.read()], format="csr")

    def groups(self) -> Iterator[tuple[Int[np.ndarray, "w"], scipy.sparse.csr_array]]:
        """Yield groups of columns in descending order of non-zeros: the column indices, and A at these columns.

        A group takes at most `GROUP_BYTES`, unless a single column is larger.
        """
        order = np.argsort(-self.counts, kind="stable")
        size = np.cumsum(self.counts[order]) * ENTRY_BYTES // GROUP_BYTES
        for columns in np.split(order, np.flatnonzero(np.diff(size)) + 1):
            position = np.full(self.shape[1], -1, np.int32)
            position[columns] = np.arange(len(columns), dtype=np.int32)
            parts = [over(_canonical(block), position, len(columns)) for _, block in self.read()]
            yield columns, parts[0] if len(parts) == 1 else scipy.sparse.vstack(parts, format="csr")

    def pull(self, U: Float[np.ndarray, "r N"]) -> Float[np.ndarray, "r m_kept"]:
        """Return U A as a new array, computed in chunks of columns that fit the cache, on all cores."""
        r, m = len(U), self.shape[1]
        G = np.zeros((r, m), np.float32)
        width = max(PULLED // max(r, 1), 64)
        for first, block in self.read():
            edges = np.linspace(0, block.shape[0], cores() + 1).astype(int)
            parts = on_cores(block.__getitem__, [slice(*edges[k : k + 2]) for k in range(len(edges) - 1)])
            columns = [part.T for part in on_cores(scipy.sparse.csr_array.tocsc, parts)]
            weights = [np.ascontiguousarray(part.T) for part in np.split(U[:, first:][:, : edges[-1]], edges[1:-1], 1)]
            on_cores(functools.partial(_add_pulled, G, columns, weights, width), range(0, m, width))
        return G

    def pull_bytes(self, r: int) -> float:
        """Estimate the memory of `pull` for r vectors in bytes, including the result."""
        return 4.0 * r * self.shape[1] + 3.0 * min(ENTRY_BYTES * self.nnz, GROUP_BYTES)

    def take(self, rows: Int[np.ndarray, "k"]) -> scipy.sparse.csr_array:
        """Return the given rows of A (ascending indices)."""
        found = []
        for first, block in self.read():
            inside = rows[(rows >= first) & (rows < first + block.shape[0])] - first
            found.append(block[inside])
        return scipy.sparse.vstack(found, format="csr")


def _add_pulled(
    G: Float[np.ndarray, "r m"], columns: list[Any], weights: list[np.ndarray], width: int, start: int
) -> None:
    """Add the products of a chunk of columns, given in parts by rows, to the vectors ``G``."""
    own = slice(start, min(start + width, G.shape[1]))
    pulled = columns[0][own] @ weights[0]
    for part, weight in zip(columns[1:], weights[1:], strict=True):
        pulled += part[own] @ weight
    G[:, own] += pulled.T


def over(block: scipy.sparse.csr_array, position: Int[np.ndarray, "m"], width: int) -> scipy.sparse.csr_array:
    """Return the block with its columns moved to ``position``; columns without a position are dropped."""
    column = position[block.indices]
    kept = column >= 0
    if kept.all():
        return scipy.sparse.csr_array((block.data, column, block.indptr), shape=(block.shape[0], width))
    pointers = np.concatenate([[0], np.cumsum(kept)])[block.indptr].astype(block.indptr.dtype)
    return scipy.sparse.csr_array((block.data[kept], column[kept], pointers), shape=(block.shape[0], width))


def row_squares(A: scipy.sparse.csr_array) -> Float[np.ndarray, "rows"]:
    """Return ‖a‖² of each row, in float64."""
    total, filled = np.zeros(A.shape[0]), np.diff(A.indptr) > 0
    if filled.any():
        squares = A.data.astype(np.float64)
        squares *= squares
        total[filled] = np.add.reduceat(squares, A.indptr[:-1][filled])
    return total


def _canonical(block: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return the block with duplicate entries summed."""
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    return block
