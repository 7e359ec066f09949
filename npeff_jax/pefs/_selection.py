"""Exact selection of the K largest entries on the host, without sorting, copying or rotating whole rows.

A threshold that slightly more than K entries should exceed is estimated from a sample. One sweep in cache-sized pieces
collects the parameters where some rotated entry may exceed it: the sum of squares over rows, which is invariant under
rotation, is an upper bound, so only few columns are rotated. The exact K are selected among these candidates. If the
sample was misleading, the threshold is lowered and the sweep repeated. NumPy releases the interpreter lock in every
step, so threads scale.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

PIECE = 1 << 17
"""Parameters per piece of a sweep: few enough for the cache, and enough that threads seldom compete for the interpreter
lock. With a quarter as many, two threads were no faster than one."""

WAITING = 1 << 18
"""Number of candidate parameters collected before they are rotated, which limits memory if most are candidates."""

SAMPLE = 1 << 15
"""Entries sampled for the threshold. For K = 65,536 of 10 million, the number of candidates then varies by 7%."""

SMALL = 1 << 16
"""Number of entries up to which partitioning all of them is faster than sampling many short leaves."""

EXACT_ROWS = 16
"""Number of rows up to which rotation is bit-identical to that on a device. For more, a matrix product is faster."""

UNDERFLOW = 1e-15
"""Magnitude below which float32 squares lose precision."""


@dataclasses.dataclass(frozen=True)
class Selected:
    """The kept entries of one example. Zeros are never kept.

    Attributes:
        support: parameters of the kept entries, ascending.
        columns: all rows at these parameters, wanted or not.
        kept: which entries of the wanted rows are kept.
        whole: whether all non-zeros of all rows are kept.
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
    """Rows of an example as blocks of matrices, one per leaf, with a rotation that is applied on access.

    No complete rotated row is ever in memory.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[Float[np.ndarray, "_ _"]]],
        offsets: Int[np.ndarray, "_"],
        rotation: Float[np.ndarray, "c c"] | None = None,
        wanted: int | None = None,
    ) -> None:
        """Wrap leaves that start at the parameters ``offsets``, the last of which is m.

        The rotation is orthogonal. Entries are selected from the first ``wanted`` rows after rotation, by default all.
        """
        self.blocks, self.offsets, self.rotation = blocks, offsets, rotation
        self.n_rows = sum(len(block[0]) for block in blocks)
        self.wanted = self.n_rows if wanted is None else wanted

    @property
    def size(self) -> int:
        """Number of parameters, m."""
        return int(self.offsets[-1])

    def pieces(self) -> Iterator[tuple[int, list[Float[np.ndarray, "_"]]]]:
        """Yield pieces of the rows before rotation: the first parameter, and all rows over a range of parameters."""
        for offset, *parts in zip(self.offsets, *self.blocks):
            rows = [row for part in parts for row in part]
            for start in range(0, len(rows[0]), PIECE):
                yield int(offset) + start, [row[start : start + PIECE] for row in rows]

    def at(self, parameters: Int[np.ndarray, "k"]) -> Float[np.ndarray, "c k"]:
        """Return all rotated rows at the given parameters (ascending)."""
        found = np.empty((self.n_rows, len(parameters)), np.float32)
        bounds = np.searchsorted(parameters, self.offsets)
        for (first, last), offset, *parts in zip(itertools.pairwise(bounds), self.offsets, *self.blocks):
            if first < last:
                places = parameters[first:last] - offset
                for i, row in enumerate(row for part in parts for row in part):
                    if row.flags.c_contiguous:
                        np.take(row, places, out=found[i, first:last], mode="clip")  # "clip" is unbuffered
                    else:  # `np.take` would copy the whole row
                        found[i, first:last] = row[places]
        return self.rotated(found)

    def rotated(self, columns: Float[np.ndarray, "c k"]) -> Float[np.ndarray, "c k"]:
        """Rotate columns of the rows.

        Products are rounded individually and added in the order of the rows, as in `DeviceRows`; the rounding of a
        matrix product would depend on the library.
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
    """Select the ``keep`` largest absolute values of the wanted rows; ties go to the lower row, then parameter."""
    total = rows.wanted * rows.size
    if total <= max(SMALL, 4 * keep):  # candidates would be most entries
        return _exactly(rows, _sweep(rows, 0.0), keep)
    sample = np.abs(rows.at(_sampled(rows.size, rows.wanted))[: rows.wanted]).reshape(-1)
    expected = keep * sample.size / total
    rank = expected + 4 * np.sqrt(expected) + 8  # four standard deviations, so that a second sweep is rare
    while True:
        threshold = _of_rank(sample, int(rank))
        found = _sweep(rows, threshold)
        if threshold == 0 or np.count_nonzero(np.abs(found.columns[: rows.wanted]) >= threshold) >= keep:
            return _exactly(rows, found, keep, threshold)
        rank *= 2


def shared_support(rows: LeafRows, parameters: int) -> Selected:
    """Select the wanted rows at the ``parameters`` positions with the largest sum of squares over these rows."""
    energy = np.empty((1, rows.size), np.float32)
    for start, piece in rows.pieces():
        wanted = rows.rotated(np.stack(piece))[: rows.wanted]
        np.square(wanted, out=wanted)
        for row in wanted[1:]:  # same order and rounding as on a device
            wanted[0] += row
        energy[0, start : start + wanted.shape[1]] = wanted[0]
    _, support, _ = largest(LeafRows([[energy]], np.array([0, rows.size])), parameters).entries
    columns = rows.at(support)
    return Selected(support, columns, columns[: rows.wanted] != 0)


@functools.lru_cache(maxsize=8)
def _sampled(size: int, n_rows: int) -> Int[np.ndarray, "_"]:
    """Return fixed random parameters to sample in all rows. (Regular strides would alias with the shapes of leaves.)"""
    positions = np.random.default_rng(0).integers(0, size, -(-SAMPLE // n_rows))
    return np.sort(positions)


class _Columns(NamedTuple):
    """All rows at some parameters (ascending)."""

    support: Int[np.ndarray, "u"]
    columns: Float[np.ndarray, "c u"]


def _sweep(rows: LeafRows, threshold: float) -> _Columns:
    """Return the columns in which a wanted row has a non-zero absolute value at or above the threshold."""
    threshold = max(threshold, float(np.finfo(np.float32).smallest_subnormal))
    found: list[_Columns] = []
    waiting: list[tuple[np.ndarray, list[np.ndarray]]] = []
    number = 0
    with np.errstate(over="ignore"):  # an overflowing sum of squares is a candidate too
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
    """Yield parameters at which the threshold may be reached, with the rows there before rotation, piece by piece."""
    measure: Any = np.abs
    combine: Any = np.maximum
    least, looked_at = threshold, rows.wanted
    if rows.rotation is not None:  # a rotated entry is at most the column's norm
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
    """Return the candidates at which a rotated, wanted row reaches the threshold."""
    if not waiting:
        return _Columns(np.zeros(0, np.int64), np.zeros((rows.n_rows, 0), np.float32))
    support = np.concatenate([places for places, _ in waiting])
    parts = zip(*(entries for _, entries in waiting), strict=True)
    columns = rows.rotated(np.stack([np.concatenate(row) for row in parts]))
    reached = (np.abs(columns[: rows.wanted]) >= threshold).any(axis=0)
    return _Columns(support[reached], np.compress(reached, columns, axis=1))


def _exactly(rows: LeafRows, found: _Columns, keep: int, threshold: float = 0.0) -> Selected:
    """Select the ``keep`` largest entries of the columns that a sweep found."""
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
    """Return the value of the given rank (1 for the largest); the smallest value if there are fewer."""
    place = max(values.size - rank, 0)
    return float(np.partition(values, place)[place])
