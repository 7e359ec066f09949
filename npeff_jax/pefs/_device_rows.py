"""Rows of an example in a compiled program: rotated while they are read leaf by leaf, never concatenated or sorted.

The counterpart on the host is `LeafRows`. On both, rotated entries are sums of products that are rounded individually
and added in the order of the rows, so that the same rows and rotation give bit-identical results on every backend.
"""

import copy
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from npeff_jax.pefs._bits import WORD, magnitude, pack

SMALL = 1 << 16
"""Leaves with fewer entries are concatenated with their neighbours, because each part costs a few kernels per pass."""

SEPARATE = 4
"""Up to this number, rows are processed separately, which reads each row once. More rows are processed as one matrix,
which is slower, but keeps the number of operations to compile from growing quadratically."""

_NO_NUMBER = 0x7FD5AA55
"""Bits of a particular NaN. It never occurs in valid rows, because examples with NaN are rejected."""


class Part(NamedTuple):
    """All rows over a range of consecutive parameters, flattened."""

    first: int
    size: int
    rows: tuple[Float[Array, "size"], ...]


class DeviceRows:
    """Rows of one example in a compiled program, with a rotation that is applied when they are read."""

    def __init__(
        self,
        leaves: Sequence[Sequence[Float[Array, "_"]]],
        rotation: Float[Array, "c c"] | None = None,
        wanted: Int[Array, ""] | int | None = None,
    ) -> None:
        """Make rows from the flattened rows of each leaf, in the order of the parameters.

        Args:
            leaves: ``leaves[l][i]`` is the part of row i in leaf l.
            rotation: orthogonal matrix.
            wanted: number of rows, from the first after rotation, to select from; by default all.

        Attributes:
            n_rows: c.
            size: m.
            wanted: as given; may be traced.
            shared: whether parameters are ranked (by the sum of squares over wanted rows) instead of entries.
        """
        self.n_rows = len(leaves[0])
        self.size = sum(rows[0].size for rows in leaves)
        self.rotation, self.shared = rotation, False
        self.wanted = jnp.asarray(self.n_rows if wanted is None else wanted, jnp.int32)
        self.parts = _joined(leaves)
        first = jax.lax.bitcast_convert_type(self.parts[0].rows[0][0].astype(jnp.float32), jnp.int32)
        self._nothing = (first == _NO_NUMBER).astype(jnp.int32)  # zero, but not known to the compiler
        words = np.array([-(-part.size // WORD) for part in self.parts])
        self.first_word, self.n_words = np.cumsum(words) - words, int(words.sum())

    @property
    def lanes(self) -> int:
        """Number of ranked values per parameter: one per row, or one sum."""
        return 1 if self.shared else self.n_rows

    def by_parameter(self) -> "DeviceRows":
        """Return the same rows, with parameters ranked instead of entries."""
        found = copy.copy(self)
        found.shared = True
        return found

    def reaching(self, least: Int[Array, ""]) -> UInt32[Array, "words"]:
        """Return one bit per entry (or per parameter if shared): whether its magnitude is at least ``least``.

        It takes one pass. Words are ordered by row, then parameter; each part starts a new word.
        """
        packed = [
            pack([magnitude(score) >= least for score in self._scores(self._turned(part.rows))]) for part in self.parts
        ]
        return jnp.concatenate(packed, axis=1).reshape(-1)

    def gram_below(self, least: Int[Array, ""]) -> Float[Array, "c c"]:
        """Return inner products of the rotated rows without the entries that `reaching` finds.

        Rows that are not wanted are complete. It takes one pass.
        """
        grams = []
        for part in self.parts:
            rows = self._turned(part.rows)
            rows = [jnp.where(low, row, 0.0) for low, row in zip(self._below(rows, least), rows, strict=True)]
            grams.append(_gram(rows))
        return functools.reduce(jnp.add, grams)

    def sample(self, number: int) -> Int[Array, "_"]:
        """Return the magnitudes of at least about ``number`` entries, evenly spaced over the parameters with jitter."""
        fraction, found = min(1.0, number / self.lanes / self.size), []
        for part in self.parts:
            count = min(part.size, int(np.ceil(part.size * fraction)))
            stride = part.size // count
            at = jnp.arange(count, dtype=jnp.uint32)
            # a multiplicative hash, to avoid aliasing with shapes
            jitter = (at * jnp.uint32(2654435761) >> 8) % jnp.uint32(stride)
            at = (at * jnp.uint32(stride) + jitter).astype(jnp.int32)
            for score in self._scores(self._turned([row[at] for row in part.rows])):
                found.append(magnitude(score).reshape(-1))
        return jnp.concatenate(found)

    def at(self, part: Int[Array, "k"], inside: Int[Array, "k"]) -> Float[Array, "c k"]:
        """Return all rotated rows at positions ``inside`` parts. Every part is read for each position, and masked."""
        rows = [jnp.zeros(part.shape, jnp.float32)] * self.n_rows
        for number, one in enumerate(self.parts):
            places = inside.clip(0, one.size - 1)
            found = [row[places].astype(jnp.float32) for row in one.rows]
            rows = [jnp.where(part == number, new, row) for new, row in zip(found, rows, strict=True)]
        turned = self._turned(rows)
        return jnp.concatenate([row.reshape(-1, row.shape[-1]) for row in turned])

    def scores(self, columns: Float[Array, "c k"]) -> Int[Array, "lanes k"]:
        """Return the ranked magnitudes of columns from `at`."""
        rows = list(columns) if self.n_rows <= SEPARATE else [columns]
        return jnp.concatenate([magnitude(x).reshape(-1, x.shape[-1]) for x in self._scores(rows)])

    def locate(self, word: Int[Array, "k"], bit: Int[Array, "k"]) -> tuple[Array, Array, Array, Array]:
        """Return lane, part, position in the part, and parameter of bits of `reaching`."""
        lane, word = word // self.n_words, word % self.n_words
        part = jnp.zeros(word.shape, jnp.int32)
        for first in self.first_word[1:]:
            part = part + (word >= int(first)).astype(jnp.int32)
        inside = (word - jnp.asarray(self.first_word, jnp.int32)[part]) * WORD + bit
        first = jnp.asarray([part.first for part in self.parts], jnp.uint32)[part]
        return lane, part, inside, first + inside.astype(jnp.uint32)

    def _below(self, rows: list[Float[Array, "..."]], least: Int[Array, ""]) -> list[Bool[Array, "..."]]:
        """Return masks of the entries of rotated rows that do not reach ``least``."""
        scores = self._scores(rows)
        if self.shared:
            scores = scores * len(rows) if self.n_rows <= SEPARATE else [scores[0][None]]
        return [
            (magnitude(score) < least) | ~wanted for score, wanted in zip(scores, self._is_wanted(rows), strict=True)
        ]

    def _scores(self, rows: list[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
        """Return the ranked values: entries of wanted rotated rows, or the sum of their squares."""
        rows = [jnp.where(wanted, row, 0.0) for wanted, row in zip(self._is_wanted(rows), rows, strict=True)]
        if not self.shared:
            return rows
        each = rows if self.n_rows <= SEPARATE else [rows[0][i] for i in range(self.n_rows)]
        return [_sum_of([row * row for row in each], self._nothing)]

    def _is_wanted(self, rows: list[Float[Array, "..."]]) -> list[Bool[Array, "..."]]:
        if self.n_rows <= SEPARATE:
            return [j < self.wanted for j in range(len(rows))]
        return [jnp.arange(self.n_rows)[:, None] < self.wanted]

    def _turned(self, rows: Sequence[Float[Array, "k"]]) -> list[Float[Array, "..."]]:
        """Return rotated rows, separately if there are few, else as one matrix."""
        rows = [row.astype(jnp.float32) for row in rows]
        if self.n_rows > SEPARATE:
            if self.rotation is None:
                return [jnp.stack(rows)]
            products = [self.rotation[:, i, None] * row[None] for i, row in enumerate(rows)]
            return [_sum_of(products, self._nothing)]
        if self.rotation is None:
            return rows
        return [
            _sum_of([self.rotation[j, i] * row for i, row in enumerate(rows)], self._nothing)
            for j in range(self.n_rows)
        ]


def _sum_of(products: Sequence[Float[Array, "..."]], nothing: Int[Array, ""]) -> Float[Array, "..."]:
    """Add products in order, each rounded before it is added.

    A compiler may contract a product and a sum into a fused multiply-add, which rounds once. The exclusive or with a
    zero unknown to the compiler prevents this, without memory traffic.
    """
    if len(products) == 1:
        return products[0]

    def rounded(product: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(product, jnp.int32) ^ nothing
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    return functools.reduce(jnp.add, [rounded(product) for product in products])


def _joined(leaves: Sequence[Sequence[Float[Array, "_"]]]) -> list[Part]:
    """Return parts: large leaves, and concatenations of neighbouring small leaves."""
    runs: list[list[int]] = []
    for number, rows in enumerate(leaves):
        small = rows[0].size < SMALL
        if runs and small and sum(leaves[i][0].size for i in runs[-1]) + rows[0].size < SMALL:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts, first = [], 0
    for run in runs:
        rows = tuple(leaves[run[0]]) if len(run) == 1 else tuple(map(jnp.concatenate, zip(*(leaves[i] for i in run))))
        parts.append(Part(first, rows[0].size, rows))
        first += rows[0].size
    return parts


def _gram(rows: list[Float[Array, "..."]]) -> Float[Array, "c c"]:
    """Compute inner products: by sums of products for a few rows, which reads them once; else by a matrix product."""
    if rows[0].ndim == 2:
        return jnp.matmul(rows[0], rows[0].T, precision="highest")
    pairs = {(i, j): jnp.sum(rows[i] * rows[j]) for i in range(len(rows)) for j in range(i + 1)}
    return jnp.stack([jnp.stack([pairs[max(i, j), min(i, j)] for j in range(len(rows))]) for i in range(len(rows))])
