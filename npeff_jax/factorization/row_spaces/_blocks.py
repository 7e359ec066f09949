"""The rows A as they are stored: compressed, and read in blocks, so that they may be larger than memory."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from npeff_jax._machine import cores, on_cores

GROUP_BYTES = 1 << 31
"""Size of a group of columns in memory. Rows that are larger are read once a group."""

ENTRY_BYTES = 8
"""Of a compressed entry: a float32 and an int32."""

PULLED = 1 << 19
"""Numbers of r vectors that are formed at once, 2 MB: they are transposed while they are in the cache."""


@dataclasses.dataclass(frozen=True, eq=False)
class BlockedRows:
    """A (N, m') in compressed blocks of rows.

    Attributes:
        shape: N and m'.
        counts: non-zeros of each column.
        read: an iterator over ``(first row, block)``; every call reads anew.
    """

    shape: tuple[int, int]
    counts: Int[np.ndarray, "m_kept"]
    read: Callable[[], Iterator[tuple[int, scipy.sparse.csr_array]]]

    @classmethod
    def of(cls, A: scipy.sparse.csr_array) -> "BlockedRows":
        """Of a matrix in memory."""
        return cls(A.shape, np.bincount(A.indices, minlength=A.shape[1]), lambda: iter([(0, A)]))

    @property
    def nnz(self) -> int:
        """Non-zeros."""
        return int(self.counts.sum())

    @functools.cached_property
    def whole(self) -> scipy.sparse.csr_array:
        """All of A in memory."""
        return scipy.sparse.vstack([block for _, block in self.read()], format="csr")

    def groups(self) -> Iterator[tuple[Int[np.ndarray, "w"], scipy.sparse.csr_array]]:
        """Yield groups of columns, the fullest first: which they are, and A over them, in that order.

        A group takes at most `GROUP_BYTES` unless a single column is larger.
        """
        order = np.argsort(-self.counts, kind="stable")
        size = np.cumsum(self.counts[order]) * ENTRY_BYTES // GROUP_BYTES
        for columns in np.split(order, np.flatnonzero(np.diff(size)) + 1):
            position = np.full(self.shape[1], -1, np.int32)
            position[columns] = np.arange(len(columns), dtype=np.int32)
            parts = [over(_canonical(block), position, len(columns)) for _, block in self.read()]
            yield columns, parts[0] if len(parts) == 1 else scipy.sparse.vstack(parts, format="csr")

    def pull(self, U: Float[np.ndarray, "r N"]) -> Float[np.ndarray, "r m_kept"]:
        """Return U A, a new array: columns in chunks that stay in the cache, on all cores."""
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
        """Estimate the memory of `pull` to r vectors, its result included."""
        return 4.0 * r * self.shape[1] + 3.0 * min(ENTRY_BYTES * self.nnz, GROUP_BYTES)

    def take(self, rows: Int[np.ndarray, "k"]) -> scipy.sparse.csr_array:
        """Some rows, ascending."""
        found = []
        for first, block in self.read():
            inside = rows[(rows >= first) & (rows < first + block.shape[0])] - first
            found.append(block[inside])
        return scipy.sparse.vstack(found, format="csr")


def _add_pulled(
    G: Float[np.ndarray, "r m"], columns: list[Any], weights: list[np.ndarray], width: int, start: int
) -> None:
    """Add the products of some columns, whose rows are in parts, to the vectors."""
    own = slice(start, min(start + width, G.shape[1]))
    pulled = columns[0][own] @ weights[0]
    for part, weight in zip(columns[1:], weights[1:], strict=True):
        pulled += part[own] @ weight
    G[:, own] += pulled.T


def over(block: scipy.sparse.csr_array, position: Int[np.ndarray, "m"], width: int) -> scipy.sparse.csr_array:
    """Return the entries of the columns that have a position, at that position."""
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
    """Return the block with one entry for a row and column."""
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    return block
