"""Exact selection of the K largest entries of an example's rows in a compiled program, without moving the rows.

The rule is that of the host (`_selection`): ties go to the lower row, then the lower parameter; zeros are never kept.
The steps are: estimate a threshold from a sample; one pass that computes a bit per entry; the positions of the set
bits; the exact K among these candidates. If the sample was misleading, other thresholds are tried with a pass each.

Batching is by `jax.vmap`: loops end when the last example of the batch is done.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from npeff_jax.pefs._bits import INFINITY, count, first_set, nth, of_rank, places
from npeff_jax.pefs._device_rows import DeviceRows

SAMPLE = 1 << 17
"""Minimum number of entries sampled for the threshold."""

IN_SAMPLE = 128
"""Expected number of the K largest entries in the sample; its standard deviation is 9%."""

MOST_SAMPLED = 1 << 22
"""Maximum number of sampled entries: more than 16 MB would cost as much as they save."""

PIECE = 256
"""Number of products that are summed before being added to the total."""

LIMIT = 1 << 32
"""Number of entries of an example that can be counted in 32 bits."""


class Kept(NamedTuple):
    """Selected entries of one example, sorted by row, then parameter; the first ``n_kept`` of ``room`` are used.

    Attributes:
        rows: (room,), row of each entry.
        indices: (room,), parameter of each entry.
        values: (room,), value of each entry; zero if unused.
        n_kept: number of kept entries.
        whole: whether all non-zeros of all rows are kept.
        own: (c, c), S Sᵀ, with S the kept entries.
        cross: (c, c), D Sᵀ, with D the dropped entries.
        rest: (c, c), D Dᵀ.
        total: sum of the kept values.
        passes: number of passes over the rows to find the threshold.
    """

    rows: Int[Array, "room"]
    indices: UInt32[Array, "room"]
    values: Float[Array, "room"]
    n_kept: Int[Array, ""]
    whole: Bool[Array, ""]
    own: Float[Array, "c c"]
    cross: Float[Array, "c c"]
    rest: Float[Array, "c c"]
    total: Float[Array, ""]
    passes: Int[Array, ""]


class _Found(NamedTuple):
    """Bits of all entries at or above a magnitude; if too many are tied, of those above and the first tied ones."""

    words: UInt32[Array, "words"]
    number: UInt32[Array, ""]
    below: Int[Array, ""]  # argument for `DeviceRows.gram_below`
    all_nonzero: Bool[Array, ""]
    passes: Int[Array, ""]


def largest_on_device(rows: DeviceRows, number: Int[Array, ""] | int, room: int) -> Kept:
    """Select the ``number`` largest entries of the wanted rows, or parameters if the rows are ranked by parameter.

    Args:
        rows: rows of one example.
        number: number of entries or parameters to keep, at most ``room``; may be traced.
        room: maximum number; static.
    """
    total = rows.lanes * rows.size
    room = min(room, total)
    number = jnp.minimum(jnp.asarray(number, jnp.uint32), jnp.uint32(room))
    cap = min(2 * room + 1024, total)
    found = _survivors(rows, number, room, cap)
    word, bit = places(found.words, cap)
    lane, part, inside, parameter = rows.locate(word, bit)
    columns, used = rows.at(part, inside), jnp.arange(cap) < found.number
    scores = rows.scores(columns)
    row_of = jnp.arange(rows.n_rows)[:, None]
    own_score = jnp.where(used, _picked(scores, lane), 0)

    # Select the exact number among the candidates, which are in the order of the rule.
    least = of_rank(own_score, number.astype(jnp.int32))
    above, ties = own_score > least, (own_score == least) & (own_score > 0)
    room_for_ties = number.astype(jnp.int32) - jnp.sum(above, dtype=jnp.int32)
    chosen = above | (ties & (jnp.cumsum(ties, dtype=jnp.int32) <= room_for_ties))
    last = jnp.max(jnp.where(chosen & ties, jnp.arange(cap), -1))  # last kept tie
    last_lane = jnp.where(last >= 0, lane[last], -1)

    # At the candidates' parameters, in every row: entries kept, dropped, and included in `gram_below`.
    lane_of = jnp.zeros_like(row_of) if rows.shared else row_of
    before = (lane_of < last_lane) | ((lane_of == last_lane) & (parameter <= parameter[last]))
    wanted = row_of < rows.wanted
    kept = wanted & (scores > 0) & ((scores > least) | ((scores == least) & before))
    below = ~wanted | (scores < found.below)
    odd = (below == kept) & wanted  # in `below` but kept, or not in it but dropped
    weight = jnp.where(used & _picked(odd, lane if not rows.shared else 0 * lane), 1.0, 0.0)
    if not rows.shared:  # a parameter may be a candidate in several rows
        weight = weight / jnp.maximum(jnp.sum(odd, axis=0), 1)
    dropped, low = jnp.where(kept, 0.0, columns), jnp.where(below, columns, 0.0)
    rest = rows.gram_below(found.below) + _product(dropped * weight, dropped) - _product(low * weight, low)
    here = jnp.where(chosen & (rows.shared | (row_of == lane)) & kept, columns, 0.0)
    own, cross = _product(jnp.where(kept, columns, 0.0), here), _product(dropped, here)
    whole = found.all_nonzero & (found.number <= number) & (rows.wanted == rows.n_rows) & (not rows.shared)

    # Compact to the front, ordered by row, then parameter.
    if rows.shared:
        at = nth(jnp.cumsum(chosen, dtype=jnp.int32), jnp.arange(room, dtype=jnp.int32))
        there = jnp.arange(room) < jnp.sum(chosen)
        values = jnp.where(there & wanted, columns[:, at], 0.0).reshape(-1)
        parameters = jnp.tile(parameter[at], rows.n_rows)
        lanes = jnp.repeat(jnp.arange(rows.n_rows, dtype=jnp.int32), room)
        chosen = values != 0
    else:
        values, parameters, lanes = _picked(columns, lane), parameter, lane
    n_slots = room * rows.n_rows if rows.shared else room
    at = nth(jnp.cumsum(chosen, dtype=jnp.int32), jnp.arange(n_slots, dtype=jnp.int32))
    n_kept = jnp.sum(chosen, dtype=jnp.int32)
    filled = jnp.arange(n_slots) < n_kept
    lanes, parameters, values = (jnp.where(filled, x[at], jnp.zeros_like(x[at])) for x in (lanes, parameters, values))
    return Kept(lanes, parameters, values, n_kept, whole, own, cross, rest, jnp.sum(values), found.passes)


def _survivors(rows: DeviceRows, number: UInt32[Array, ""], room: int, cap: int) -> _Found:
    """Find candidates: the ``number`` largest entries and others, at most ``cap``; all non-zeros if there are fewer."""
    total = rows.lanes * rows.size
    if total <= cap:  # all fit without a threshold
        words = rows.reaching(jnp.int32(1))
        return _Found(words, count(words), jnp.int32(1), jnp.bool_(True), jnp.int32(1))
    sample = rows.sample(min(MOST_SAMPLED, max(SAMPLE, IN_SAMPLE * total // room)))
    expected = number.astype(jnp.float32) * (sample.size / total)

    def guess(expected: Float[Array, ""]) -> Int[Array, ""]:
        rank = expected + 4 * jnp.sqrt(expected) + 8  # four standard deviations, so that a second pass is rare
        return jnp.maximum(of_rank(sample, jnp.minimum(rank, sample.size).astype(jnp.int32)), 1)

    first, second = guess(expected), guess(2 * expected + 8)

    def look(state: Any) -> Any:
        """Make one pass. Fewer than ``number`` entries reach ``high``; at least as many reach ``low`` (initially 0)."""
        low, high, tried, _, best, best_count, passes = state
        words = rows.reaching(tried)
        n = count(words)
        enough = n >= number
        taken = enough | (tried == 1)
        low, high = jnp.where(taken, tried, low), jnp.where(enough, high, tried)
        done = (taken & (n <= cap)) | (high - low <= 1)
        halved = jnp.where(passes == 0, low + 1, low + (high - low) // 2)  # first test for many ties
        following = jnp.where(low > 0, halved, jnp.where(tried > second, second, 1))
        return low, high, following, done, jnp.where(taken, words, best), jnp.where(taken, n, best_count), passes + 1

    blank = jnp.zeros(rows.lanes * rows.n_words, jnp.uint32)
    start: Any = (jnp.int32(0), jnp.int32(INFINITY + 1), first, jnp.bool_(False), blank, jnp.uint32(0), jnp.int32(0))
    low, _, _, _, words, n, passes = jax.lax.while_loop(lambda state: ~state[3], look, start)

    def keep_first_ties(state: Any) -> Any:
        words, _, _, passes = state
        above = rows.reaching(low + 1)
        return above | first_set(words & ~above, number - count(above)), number, low + 1, passes + 1

    found = jax.lax.while_loop(lambda state: state[1] > cap, keep_first_ties, (words, n, low, passes))
    words, n, below, passes = found
    return _Found(words, n, below, low == 1, passes)


def _picked(of_rows: Array, lane: Int[Array, "k"]) -> Array:
    """Return the entry of each column in its lane."""
    return jnp.take_along_axis(of_rows, lane[None], axis=0)[0]


def _product(x: Float[Array, "c k"], y: Float[Array, "c k"]) -> Float[Array, "c c"]:
    """Return x yᵀ, summed in pieces, because a single float32 sum of 30,000 terms has an error of 1e-5 on a CPU."""
    x, y = (jnp.pad(z, ((0, 0), (0, -z.shape[1] % PIECE))).reshape(z.shape[0], -1, PIECE) for z in (x, y))
    return jnp.sum(jnp.einsum("ibk,jbk->bij", x, y, precision="highest"), axis=0)
