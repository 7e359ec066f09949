"""The K largest of many, on the host: exact, deterministic, and without a sort or a flat copy.

A threshold that a little more than K entries should pass is read off a sample; one sweep in cache-sized pieces rotates
the rows and collects what passes; the exact K come from those survivors. If the sample misled, the threshold is lowered
and the sweep repeated, so the sample costs time at worst. NumPy releases the interpreter's lock in every step: threads
scale.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

PIECE = 1 << 16
"""Entries swept at a time, of all rows together: with their rotation, absolute values and mask they stay in the
second-level cache. Half as many took a third longer."""

SAMPLE = 1 << 16
"""Entries sampled for the threshold. At K = 65,536 of 10 million the survivors' number then varies by 5%."""

SMALL = 1 << 16
"""Below so many entries one partition of a copy is faster than sweeping many short leaves."""


@dataclasses.dataclass(frozen=True)
class Selected:
    """The kept entries of one example, in ascending order of (row, parameter). Zeros are never kept.

    Attributes:
        rows: row of each.
        indices: parameter of each.
        values: of each, with its sign.
    """

    rows: Int[np.ndarray, "k"]
    indices: Int[np.ndarray, "k"]
    values: Float[np.ndarray, "k"]


class LeafRows:
    """An example's rows where the gradient left them: a matrix a leaf, side by side, and a rotation yet to be applied.

    No rotated row is ever in memory whole.
    """

    def __init__(
        self,
        leaves: Sequence[Float[np.ndarray, "c _"]],
        offsets: Int[np.ndarray, "_"],
        rotation: Float[np.ndarray, "w c"] | None = None,
    ) -> None:
        """Matrices that begin at ``offsets`` of the parameters; the last offset is m."""
        self.leaves, self.offsets, self.rotation = leaves, offsets, rotation
        self.n_rows = len(leaves[0]) if rotation is None else len(rotation)

    @property
    def size(self) -> int:
        """The number of parameters, m."""
        return int(self.offsets[-1])

    def pieces(self) -> Iterator[tuple[int, Float[np.ndarray, "w _"]]]:
        """All rows, some parameters at a time, with the first of these."""
        step = max(1, PIECE // len(self.leaves[0]))
        for leaf, offset in zip(self.leaves, self.offsets):
            for start in range(0, leaf.shape[1], step):
                yield int(offset) + start, self._rotated(leaf[:, start : start + step])

    def at(self, parameters: Int[np.ndarray, "k"]) -> Float[np.ndarray, "w k"]:
        """All rows at some parameters, given in ascending order."""
        bounds = np.searchsorted(parameters, self.offsets)
        parts = [
            leaf[:, parameters[first:last] - offset]
            for leaf, offset, (first, last) in zip(self.leaves, self.offsets, itertools.pairwise(bounds))
            if first < last
        ]
        return self._rotated(np.concatenate(parts, axis=1) if parts else np.zeros((len(self.leaves[0]), 0), np.float32))

    def _rotated(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.rotation is None else self.rotation @ rows


def largest(rows: LeafRows, keep: int) -> Selected:
    """The ``keep`` largest absolute values over all rows; of equals, those of lower row, then lower parameter."""
    total = rows.n_rows * rows.size
    if total <= max(SMALL, 4 * keep):  # little is left out: a copy of all costs no more than of survivors
        flat = LeafRows([np.concatenate(rows.leaves, axis=1)], np.array([0, rows.size]), rows.rotation)
        return _exactly(*_sweep(flat, 0.0), keep, rows.size)
    sample = np.abs(rows.at(_sampled(rows.size, rows.n_rows))).reshape(-1)
    expected = keep * sample.size / total
    rank = expected + 4 * np.sqrt(expected) + 8  # four standard deviations: a second sweep is rare
    while True:
        threshold = _of_rank(sample, int(rank))
        positions, values = _sweep(rows, threshold)
        if positions.size >= keep or threshold == 0:
            return _exactly(positions, values, keep, rows.size)
        rank *= 2


def shared_support(rows: LeafRows, parameters: int) -> Selected:
    """All rows at the ``parameters`` positions whose entries have the largest sum of squares."""
    energy = np.empty((1, rows.size), np.float32)
    for start, piece in rows.pieces():
        np.einsum("cm,cm->m", piece, piece, out=energy[0, start : start + piece.shape[1]])
    support = largest(LeafRows([energy], np.array([0, rows.size])), parameters).indices
    values = rows.at(support)
    kept = np.nonzero(values)
    return Selected(kept[0], support[kept[1]], values[kept])


@functools.lru_cache(maxsize=8)
def _sampled(size: int, n_rows: int) -> Int[np.ndarray, "_"]:
    """Parameters to look at, in all rows. Any fixed ones will do; strides would beat against the shapes of leaves."""
    positions = np.random.default_rng(0).integers(0, size, -(-SAMPLE // n_rows))
    return np.sort(positions)


def _sweep(rows: LeafRows, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions, row times m plus parameter, and values of all at or above the threshold that are not zero."""
    threshold = max(threshold, float(np.finfo(np.float32).smallest_subnormal))
    absolute, passed = np.empty(PIECE, np.float32), np.empty(PIECE, bool)
    positions: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in range(rows.n_rows)]
    values: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] for _ in range(rows.n_rows)]
    for start, piece in rows.pieces():
        size = piece.shape[1]
        for row, entries in enumerate(piece):
            np.abs(entries, out=absolute[:size])
            np.greater_equal(absolute[:size], threshold, out=passed[:size])
            found = np.flatnonzero(passed[:size])
            if found.size:
                positions[row].append(found + (row * rows.size + start))
                values[row].append(entries[found])
    return np.concatenate([p for own in positions for p in own]), np.concatenate([v for own in values for v in own])


def _exactly(positions: np.ndarray, values: np.ndarray, keep: int, size: int) -> Selected:
    """The ``keep`` largest of entries in ascending order of position."""
    if values.size > keep:
        absolute = np.abs(values)
        threshold = _of_rank(absolute, keep)
        kept = absolute > threshold
        kept[np.flatnonzero(absolute == threshold)[: keep - np.count_nonzero(kept)]] = True
        positions, values = positions[kept], values[kept]
    rows, indices = np.divmod(positions, size)
    return Selected(rows, indices, values)


def _of_rank(values: np.ndarray, rank: int) -> float:
    """The value of the given rank from above, from 1; the smallest where there are fewer."""
    place = max(values.size - rank, 0)
    return float(np.partition(values, place)[place])
