"""Dealing columns to blocks, so that every shard has equal m' and, within 1%, equal non-zeros."""

import heapq

import numpy as np
from jaxtyping import Int

from npeff_jax._sharding import round_up

GREEDY_ROUNDS = 10_000
"""Rounds dealt by load, one column to each block. Later columns are light and follow a snake, which needs no loop."""


def deal(counts: Int[np.ndarray, "m_kept"], n_blocks: int) -> Int[np.ndarray, "size"]:
    """A permutation of the columns, padded with −1 to a multiple of ``n_blocks``, cut evenly into the blocks.

    Columns go out heaviest first, in rounds of one a block: the heaviest of a round to the block that has least.

    Args:
        counts: non-zeros of each column.
        n_blocks: how many equal parts.
    """
    width = round_up(max(len(counts), 1), n_blocks) // n_blocks
    order = np.full(width * n_blocks, -1)
    order[: len(counts)] = np.argsort(-counts, kind="stable")
    rounds = order.reshape(width, n_blocks)
    weights = np.where(rounds >= 0, counts[rounds], 0) if len(counts) else np.zeros_like(rounds)
    dealt = rounds.copy()
    dealt[1::2] = dealt[1::2, ::-1]
    load = [(0, block) for block in range(n_blocks)]
    for k in range(min(width, GREEDY_ROUNDS)):
        following = []
        for position in range(n_blocks):
            weight, block = heapq.heappop(load)
            dealt[k, block] = rounds[k, position]
            following.append((weight + int(weights[k, position]), block))
        load = following
        heapq.heapify(load)
    return dealt.T.reshape(-1)
