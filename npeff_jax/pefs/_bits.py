"""Positions of set bits and ranks of magnitudes in a compiled program, without a sort or a scatter.

One pass over an example's rows gives one bit per entry. The positions of the set bits follow from population counts and
prefix sums of the words, which have 1/32 of the size of the rows.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

WORD = 32
"""Bits per word."""

GROUP = 8
"""Words per group. Prefix sums are over groups, which are 256 times fewer than entries."""

MANY = 1 << 14
"""Number of searches from which a single kernel of many steps is worth its longer compilation."""

INFINITY = 0x7F800000
"""Magnitude of infinity; NaNs have larger magnitudes."""

_LANES = np.arange(WORD, dtype=np.uint32)


def magnitude(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Return integers with the same order as the absolute values of float32 numbers; 0 for zeros of either sign."""
    return jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF


def of_rank(magnitudes: Int[Array, "n"], rank: Int[Array, ""]) -> Int[Array, ""]:
    """Return the magnitude of the given rank (1 for the largest); 0 if there are fewer magnitudes.

    It determines eight digits of four bits, the highest first, each from fifteen counts in one pass.
    """
    digits = jnp.arange(1, 16, dtype=jnp.uint32)

    def one_digit(i: jax.Array, found: jax.Array) -> jax.Array:
        shift = jnp.uint32(28) - 4 * i.astype(jnp.uint32)
        tries = found + (digits << shift)
        enough = jnp.sum(magnitudes[None].astype(jnp.uint32) >= tries[:, None], axis=1, dtype=jnp.int32) >= rank
        return found + (jnp.sum(enough, dtype=jnp.uint32) << shift)

    return jax.lax.fori_loop(0, 8, one_digit, jnp.uint32(0)).astype(jnp.int32)


def pack(masks: Sequence[Bool[Array, "... n"]]) -> UInt32[Array, "lanes words"]:
    """Pack masks of n bits into words, padding the last word with zeros; leading axes become separate lanes.

    A single reduction packs all masks, because separate ones would each read the data that the masks are computed from.
    """
    lanes = []
    for mask in masks:
        padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % WORD)])
        lanes.append(padded.reshape(*mask.shape[:-1], -1, WORD).astype(jnp.uint32) << _LANES)
    zeros = [jnp.uint32(0)] * len(lanes)
    words = jax.lax.reduce(lanes, zeros, lambda x, y: [a | b for a, b in zip(x, y, strict=True)], (lanes[0].ndim - 1,))
    return jnp.concatenate([word.reshape(-1, word.shape[-1]) for word in words])


def count(words: UInt32[Array, "words"]) -> UInt32[Array, ""]:
    """Return the number of set bits."""
    return jnp.sum(jax.lax.population_count(words), dtype=jnp.uint32)


def first_set(words: UInt32[Array, "words"], number: UInt32[Array, ""]) -> UInt32[Array, "words"]:
    """Clear all but the first ``number`` set bits."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    room = number.astype(jnp.int32) - (jnp.cumsum(counts) - counts)
    kept = ((words[:, None] >> _LANES) & 1) * (_before(words) < room[:, None]).astype(jnp.uint32)
    return jnp.sum(kept << _LANES, axis=1, dtype=jnp.uint32)


def places(words: UInt32[Array, "words"], size: int) -> tuple[Int[Array, "size"], Int[Array, "size"]]:
    """Return word and bit of each of the first ``size`` set bits, ascending; arbitrary if there are fewer."""
    groups = jnp.pad(words, (0, -words.size % GROUP)).reshape(-1, GROUP)
    counts = jnp.sum(jax.lax.population_count(groups).astype(jnp.int32), axis=1)
    ends = jnp.cumsum(counts)
    rank = jnp.arange(size, dtype=jnp.int32)
    group = nth(ends, rank)
    rank = rank - (ends - counts)[group]
    inside = groups[group]
    ends = jnp.cumsum(jax.lax.population_count(inside).astype(jnp.int32), axis=1)
    word = jnp.sum(ends <= rank[:, None], axis=1, dtype=jnp.int32).clip(0, GROUP - 1)
    chosen = jnp.take_along_axis(inside, word[:, None], axis=1)[:, 0]
    before = jnp.take_along_axis(ends, (word - 1).clip(0)[:, None], axis=1)[:, 0]
    rank = rank - jnp.where(word > 0, before, 0)
    through = _before(chosen) + ((chosen[:, None] >> _LANES) & 1).astype(jnp.int32)
    bit = jnp.sum(through <= rank[:, None], axis=1, dtype=jnp.int32).clip(0, WORD - 1)
    return group * GROUP + word, bit


def nth(ends: Int[Array, "n"], rank: Int[Array, "k"]) -> Int[Array, "k"]:
    """Return the position of the element of each rank (from 0), given running counts; past the end, the last one."""
    method = "scan_unrolled" if rank.size > MANY else "scan"
    found = jnp.searchsorted(ends, rank, side="right", method=method)
    return found.astype(jnp.int32).clip(0, ends.size - 1)


def _before(words: UInt32[Array, "words"]) -> Int[Array, "words 32"]:
    """Count the set bits below each bit, without a prefix sum, so that it fuses with its consumer."""
    return jax.lax.population_count(words[:, None] & ((jnp.uint32(1) << _LANES) - 1)).astype(jnp.int32)
