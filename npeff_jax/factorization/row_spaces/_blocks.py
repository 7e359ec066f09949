"""The rows A as they are stored: compressed, and read in blocks, so that they may be larger than memory."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

GROUP_BYTES = 1 << 31
"""Size of a group of columns in memory. Rows that are larger are read once a group."""

ENTRY_BYTES = 8
"""Of a compressed entry: a float32 and an int32."""


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

    def groups(self) -> Iterator[tuple[Int[np.ndarray, "w"], scipy.sparse.csc_array]]:
        """Groups of columns, the fullest first, each of at most `GROUP_BYTES` unless a single column is larger."""
        order = np.argsort(-self.counts, kind="stable")
        size = np.cumsum(self.counts[order]) * ENTRY_BYTES // GROUP_BYTES
        for columns in np.split(order, np.flatnonzero(np.diff(size)) + 1):
            yield columns, scipy.sparse.vstack([block.tocsc()[:, columns] for _, block in self.read()], format="csc")

    def pull(self, U: Float[np.ndarray, "r N"]) -> Float[np.ndarray, "r m_kept"]:
        """U A."""
        total = np.zeros((self.shape[1], len(U)), np.float32)
        for first, block in self.read():
            total += block.T @ U[:, first : first + block.shape[0]].T
        return total.T

    def take(self, rows: Int[np.ndarray, "k"]) -> scipy.sparse.csr_array:
        """Some rows, ascending."""
        found = []
        for first, block in self.read():
            inside = rows[(rows >= first) & (rows < first + block.shape[0])] - first
            found.append(block[inside])
        return scipy.sparse.vstack(found, format="csr")
