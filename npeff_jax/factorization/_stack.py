"""From PEFs to the matrix A: rows of all examples stacked, pruned to parameters with enough non-zeros."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from npeff_jax._identity import tree_digest
from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.factorization._objective import squared_norms
from npeff_jax.factorization.row_spaces import BlockedRows
from npeff_jax.factorization.row_spaces._blocks import over, row_squares
from npeff_jax.pefs import FisherKind, Pefs, Schema

BLOCK_BYTES = 1 << 30
"""Size in bytes of a block of examples in memory. Larger PEFs are read again at every pass over them."""

ENTRY_BYTES = 32
"""Bytes per entry while it is read: value, index and row as stored, and their converted copies."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """The rows of all examples over the kept parameters.

    Attributes:
        A: (N, m'). Rows without entries are left out.
        owner: (N,), the example of each row, ascending.
        energy: (N,), ‖a‖² of each row.
        n_examples: n.
        parameter_indices: (m',), ascending.
        example_norms: (n,), ‖F_i‖² before pruning. Losses count pruned entries as unexplained.
        lost_energy: fraction of the trace that was pruned.
        failed: examples that `compute_pefs` skipped, which have no rows.
    """

    A: BlockedRows
    owner: Int[np.ndarray, "N"]
    energy: Float[np.ndarray, "N"]
    n_examples: int
    parameter_indices: Int[np.ndarray, "m_kept"]
    example_norms: Float[np.ndarray, "n"]
    lost_energy: float
    failed: Int[np.ndarray, "failed"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def squared_norm(self) -> float:
        """‖F‖², summed over examples."""
        return float(self.example_norms.sum())


def stack(pefs: Pefs, *, min_count: int = 1, parameter_indices: np.ndarray | None = None) -> Stack:
    """Stack the rows of ``pefs``, which may be larger than memory, in two passes over blocks of examples.

    Args:
        pefs: PEFs of either kind.
        min_count: parameters with fewer non-zeros over all rows are pruned.
        parameter_indices: parameters to keep instead.

    Raises:
        ValueError: no examples, a non-finite value, or no parameter left.
    """
    if pefs.n_examples == 0:
        raise ValueError("there are no examples in these PEFs; select at least one")
    blocks, low_rank = _Blocks(pefs), pefs.schema.kind is FisherKind.LOW_RANK
    counts, norms = np.zeros(pefs.schema.layout.size, np.int64), []
    for examples, block in blocks:
        n_rows = pefs.n_rows[examples]
        if not np.isfinite(block.data).all():
            row = np.searchsorted(block.indptr, np.flatnonzero(~np.isfinite(block.data))[0], side="right") - 1
            bad = examples.start + np.repeat(np.arange(len(n_rows)), n_rows)[row]
            raise ValueError(f"the PEF of example {bad} has a value that is not finite; recompute or leave it out")
        counts += np.bincount(block.indices, minlength=len(counts))
        norms.append(squared_norms(block, n_rows) if low_rank else row_squares(block))
    if parameter_indices is None:
        parameter_indices = np.flatnonzero(counts >= max(min_count, 1))
        if not counts.any():
            raise ValueError(
                "all of these Fishers are zero: no gradient reaches any parameter; check that the model function uses "
                "the parameters that it is given"
            )
        if parameter_indices.size == 0:
            raise ValueError(f"min_count={min_count} leaves no parameter; the most frequent one has {counts.max()}")
    position = np.full(len(counts), -1, np.int32)
    position[parameter_indices] = np.arange(len(parameter_indices), dtype=np.int32)

    filled, energy, trace, kept_trace = [], [], 0.0, 0.0
    for _, block in blocks:
        kept = over(block, position, len(parameter_indices))
        filled.append(np.diff(kept.indptr) > 0)
        squares = row_squares(kept)
        energy.append(squares[filled[-1]])
        before = squares if kept.nnz == block.nnz else row_squares(block)
        trace += float(np.sum(before) if low_rank else np.sum(block.data, dtype=np.float64))
        kept_trace += float(np.sum(energy[-1]) if low_rank else np.sum(kept.data, dtype=np.float64))

    def read() -> Iterator[tuple[int, scipy.sparse.csr_array]]:
        first = 0
        for keep, (_, block) in zip(filled, blocks, strict=True):
            rows = over(block, position, len(parameter_indices))
            rows = rows if keep.all() else rows[keep]
            yield first, rows
            first += rows.shape[0]

    owner = np.repeat(np.arange(pefs.n_examples), pefs.n_rows)[np.concatenate(filled)]
    A = BlockedRows((len(owner), len(parameter_indices)), counts[parameter_indices], read)
    return Stack(
        A=A if len(filled) > 1 else BlockedRows.of(next(read())[1]),
        owner=owner,
        energy=np.concatenate(energy).astype(np.float32),
        n_examples=pefs.n_examples,
        parameter_indices=np.asarray(parameter_indices, np.int64),
        example_norms=np.concatenate(norms),
        lost_energy=max(0.0, 1 - kept_trace / trace) if trace > 0 else 0.0,
        failed=pefs.failed,
    )


def stack_rows(A: Any, owner: Any, kind: FisherKind) -> tuple[Stack, Schema]:
    """Stack given rows; the arguments are those of `Problem.from_rows`.

    Returns:
        The rows, and a schema with a single parameter named "columns".

    Raises:
        ValueError: as for `Problem.from_rows`.
    """
    given = A if scipy.sparse.issparse(A) else np.asarray(A)
    if given.ndim != 2 or given.dtype.kind not in "biuf":
        raise ValueError(f"A has shape {given.shape} and dtype {given.dtype}; expected (N, m) real numbers")
    matrix = scipy.sparse.csr_array(given, dtype=np.float32)
    matrix.eliminate_zeros()
    owner, (N, m) = np.asarray(owner), matrix.shape
    if owner.shape != (N,) or not np.issubdtype(owner.dtype, np.integer):
        raise ValueError(f"owner has shape {owner.shape} and type {owner.dtype}; expected {N} integers")
    if N == 0 or (np.diff(owner) < 0).any() or owner[0] < 0:
        raise ValueError("owner must be the example of each row, from 0 and ascending; sort the rows by example")
    if not np.isfinite(matrix.data).all():
        raise ValueError("A has values that are not finite; clean or drop their rows")
    n = int(owner[-1]) + 1
    if n > MOST_PER_ROW * N:
        raise ValueError(f"owner has example {n - 1}, but there are {N} rows; number the examples from 0 without gaps")
    n_rows = np.bincount(owner, minlength=n)
    if kind is FisherKind.DIAGONAL and n_rows.max() > 1:
        raise ValueError(f"example {int(n_rows.argmax())} has {n_rows.max()} rows; a diagonal Fisher is one row")
    energy = row_squares(matrix)
    norms = squared_norms(matrix, n_rows) if kind is FisherKind.LOW_RANK else np.bincount(owner, energy, n)
    digest = tree_digest({"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "owner": owner})
    layout = ParameterLayout((Parameter("columns", (m,), 0),))
    schema = Schema(kind, {"name": "Rows"}, "none", digest, digest, layout, n, 0, int(n_rows.max()) * m)
    rows = BlockedRows.of(matrix)
    return Stack(rows, owner, energy.astype(np.float32), n, np.arange(m), norms, 0.0), schema


MOST_PER_ROW = 1000
"""Maximum number of examples per row. Examples may have no rows, but larger numbers are identifiers, not positions."""


class _Blocks:
    """The rows of PEFs as blocks of examples, read again at each iteration; kept in memory if one block holds all."""

    def __init__(self, pefs: Pefs) -> None:
        self._pefs, self._size = pefs, max(1, BLOCK_BYTES // (ENTRY_BYTES * pefs.values.shape[1]))

    def __iter__(self) -> Iterator[tuple[slice, scipy.sparse.csr_array]]:
        n = self._pefs.n_examples
        if n <= self._size:
            yield slice(0, n), self._whole
            return
        for first in range(0, n, self._size):
            examples = slice(first, min(first + self._size, n))
            yield examples, self._pefs.to_scipy(examples)

    @functools.cached_property
    def _whole(self) -> scipy.sparse.csr_array:
        return self._pefs.to_scipy()
