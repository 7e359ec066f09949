"""The K largest of many, on the host: exact, deterministic, and without a sort, a flat copy or a rotated row.

A threshold that a little more than K entries should pass is read off a sample. One sweep in cache-sized pieces collects
the parameters where some row may pass: the sum of squares over the rows, which no rotation changes, bounds every
rotated entry, so few columns are rotated at all. The exact K come from those survivors. If the sample misled, the
threshold is lowered and the sweep repeated, so the sample costs time at worst. NumPy releases the interpreter's lock in
every step: threads scale.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

PIECE = 1 << 17
"""Parameters swept at a time: few enough for the cache, and so many that threads seldom meet at the interpreter's lock.
With a quarter as many two threads were no faster than one."""

WAITING = 1 << 18
"""Parameters collected before they are rotated and looked at: what bounds memory where the bound lets most pass."""

SAMPLE = 1 << 15
"""Entries sampled for the threshold. At K = 65,536 of 10 million the survivors' number then varies by 7%."""

SMALL = 1 << 16
"""Below so many entries one partition of all is faster than sampling many short leaves."""

EXACT_ROWS = 16
"""Up to so many rows are rotated to the same bits as on a device. Beyond, a matrix product is much faster."""

UNDERFLOW = 1e-15
"""Below this, float32 squares lose digits."""


@dataclasses.dataclass(frozen=True)
class Selected:
    """The kept entries of one example. Zeros are never kept.

    Attributes:
        support: parameters, ascending; every kept entry is at one of them.
        columns: all rows there, wanted or not.
        kept: which of the wanted rows' entries are kept.
        whole: whether every non-zero of all rows is kept.
    """

    support: Int[np.ndarray, "u"]
    columns: Float[np.ndarray, "c u"]
    kept: Bool[np.ndarray, "w u"]
    whole: bool = False

    @property
    def entries(self) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
        """Row, parameter and value of each kept entry, in ascending order of (row, parameter)."""
        rows, places = np.nonzero(self.kept)
        return rows, self.support[places], self.columns[rows, places]


class LeafRows:
    """An example's rows where the gradient left them: blocks of rows, each a matrix a leaf, and a rotation yet to be
    applied. No rotated row is ever in memory whole.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[Float[np.ndarray, "_ _"]]],
        offsets: Int[np.ndarray, "_"],
        rotation: Float[np.ndarray, "c c"] | None = None,
        wanted: int | None = None,
    ) -> None:
        """Leaves that begin at ``offsets`` of the parameters; the last offset is m.

        The rotation is orthogonal. The first ``wanted`` rows after it are those to select from, all by default.
        """
        self.blocks, self.offsets, self.rotation = blocks, offsets, rotation
        self.n_rows = sum(len(block[0]) for block in blocks)
        self.wanted = self.n_rows if wanted is None else wanted

    @property
    def size(self) -> int:
        """The number of parameters, m."""
        return int(self.offsets[-1])

    def pieces(self) -> Iterator[tuple[int, list[Float[np.ndarray, "_"]]]]:
        """The rows before rotation, some parameters at a time, with the first of these."""
        for offset, *parts in zip(self.offsets, *self.blocks):
            rows = [row for part in parts for row in part]
            for start in range(0, len(rows[0]), PIECE):
                yield int(offset) + start, [row[start : start + PIECE] for row in rows]

    def at(self, parameters: Int[np.ndarray, "k"]) -> Float[np.ndarray, "c k"]:
        """All rows at some parameters, given in ascending order."""
        found = np.empty((self.n_rows, len(parameters)), np.float32)
        bounds = np.searchsorted(parameters, self.offsets)
        for (first, last), offset, *parts in zip(itertools.pairwise(bounds), self.offsets, *self.blocks):
            if first < last:
                places = parameters[first:last] - offset
                for i, row in enumerate(row for part in parts for row in part):
                    np.take(row, places, out=found[i, first:last], mode="clip")  # unbuffered; none is out of range
        return self.rotated(found)

    def rotated(self, columns: Float[np.ndarray, "c k"]) -> Float[np.ndarray, "c k"]:
        """All rows at some parameters, from the rows before rotation.

        Products are rounded one by one and added in the order of the rows, as in a compiled program (`DeviceRows`): a
        matrix product would round as its library and its blocks decide.
        """
        if self.rotation is None:
            return columns
        if self.n_rows > EXACT_ROWS:
            return self.rotation @ columns
        found = self.rotation[:, :1] * columns[0]
        product = np.empty_like(found)
        for i in range(1, self.n_rows):
            found += np.multiply(self.rotation[:, i : i + 1], columns[i], out=product)
        return found


def largest(rows: LeafRows, keep: int) -> Selected:
    """The ``keep`` largest absolute values in the wanted rows; of equals, those of lower row, then lower parameter."""
    total = rows.wanted * rows.size
    if total <= max(SMALL, 4 * keep):  # little is left out: a look at all costs no more than at survivors
        return _exactly(rows, _sweep(rows, 0.0), keep)
    sample = np.abs(rows.at(_sampled(rows.size, rows.wanted))[: rows.wanted]).reshape(-1)
    expected = keep * sample.size / total
    rank = expected + 4 * np.sqrt(expected) + 8  # four standard deviations: a second sweep is rare
    while True:
        threshold = _of_rank(sample, int(rank))
        found = _sweep(rows, threshold)
        if threshold == 0 or np.count_nonzero(np.abs(found.columns[: rows.wanted]) >= threshold) >= keep:
            return _exactly(rows, found, keep, threshold)
        rank *= 2


def shared_support(rows: LeafRows, parameters: int) -> Selected:
    """The wanted rows at the ``parameters`` positions whose entries have the largest sum of squares."""
    energy = np.empty((1, rows.size), np.float32)
    for start, piece in rows.pieces():
        wanted = rows.rotated(np.stack(piece))[: rows.wanted]
        np.square(wanted, out=wanted)
        for row in wanted[1:]:  # in this order, each square rounded, as on a device
            wanted[0] += row
        energy[0, start : start + wanted.shape[1]] = wanted[0]
    _, support, _ = largest(LeafRows([[energy]], np.array([0, rows.size])), parameters).entries
    columns = rows.at(support)
    return Selected(support, columns, columns[: rows.wanted] != 0)


@functools.lru_cache(maxsize=8)
def _sampled(size: int, n_rows: int) -> Int[np.ndarray, "_"]:
    """Parameters to look at, in all rows. Any fixed ones will do; strides would beat against the shapes of leaves."""
    positions = np.random.default_rng(0).integers(0, size, -(-SAMPLE // n_rows))
    return np.sort(positions)


class _Columns(NamedTuple):
    """All rows at some parameters, ascending."""

    support: Int[np.ndarray, "u"]
    columns: Float[np.ndarray, "c u"]


def _sweep(rows: LeafRows, threshold: float) -> _Columns:
    """Where a wanted row's absolute value is at or above the threshold and not zero."""
    threshold = max(threshold, float(np.finfo(np.float32).smallest_subnormal))
    found: list[_Columns] = []
    waiting: list[tuple[np.ndarray, list[np.ndarray]]] = []
    number = 0
    with np.errstate(over="ignore"):  # a sum of squares that overflows passes too
        for places, entries in _candidates(rows, threshold):
            waiting.append((places, entries))
            number += places.size
            if number > WAITING:
                found.append(_reaching(rows, threshold, waiting))
                waiting, number = [], 0
    found.append(_reaching(rows, threshold, waiting))
    support, columns = zip(*found, strict=True)
    return _Columns(np.concatenate(support), np.concatenate(columns, axis=1))


def _candidates(rows: LeafRows, threshold: float) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Parameters where the threshold may be reached, and the rows there before rotation, a piece at a time."""
    measure: Any = np.abs
    combine: Any = np.maximum
    least, looked_at = threshold, rows.wanted
    if rows.rotation is not None:  # no entry of a rotated column exceeds the column's norm
        looked_at = rows.n_rows
        if threshold > UNDERFLOW:
            measure, combine, least = np.square, np.add, (1 - 1e-5) * threshold**2
        else:
            least = float(np.finfo(np.float32).smallest_subnormal)
    bound, other, passed = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32), np.empty(PIECE, bool)
    for start, piece in rows.pieces():
        size = len(piece[0])
        measure(piece[0], out=bound[:size])
        for row in piece[1:looked_at]:
            combine(bound[:size], measure(row, out=other[:size]), out=bound[:size])
        places = np.flatnonzero(np.greater_equal(bound[:size], least, out=passed[:size]))
        if places.size:
            yield places + start, [row.take(places) for row in piece]


def _reaching(rows: LeafRows, threshold: float, waiting: list[tuple[np.ndarray, list[np.ndarray]]]) -> _Columns:
    """Those of the candidates whose rotated, wanted rows do reach it."""
    if not waiting:
        return _Columns(np.zeros(0, np.int64), np.zeros((rows.n_rows, 0), np.float32))
    support = np.concatenate([places for places, _ in waiting])
    parts = zip(*(entries for _, entries in waiting), strict=True)
    columns = rows.rotated(np.stack([np.concatenate(row) for row in parts]))
    reached = (np.abs(columns[: rows.wanted]) >= threshold).any(axis=0)
    return _Columns(support[reached], np.compress(reached, columns, axis=1))


def _exactly(rows: LeafRows, found: _Columns, keep: int, threshold: float = 0.0) -> Selected:
    """The ``keep`` largest of what a sweep with a threshold found."""
    absolute = np.abs(found.columns[: rows.wanted])
    kept = absolute > 0
    if np.count_nonzero(kept) > keep:
        least = _of_rank(absolute[kept], keep)
        kept = absolute > least
        ties = np.flatnonzero(absolute == least)
        kept.flat[ties[: keep - np.count_nonzero(kept)]] = True
    whole = rows.wanted == rows.n_rows and threshold == 0 and bool(np.count_nonzero(kept) == np.count_nonzero(absolute))
    return Selected(found.support, found.columns, kept, whole)


def _of_rank(values: np.ndarray, rank: int) -> float:
    """The value of the given rank from above, from 1; the smallest where there are fewer."""
    place = max(values.size - rank, 0)
    return float(np.partition(values, place)[place])
