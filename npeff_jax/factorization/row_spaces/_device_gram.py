"""Gram matrix Q = A Aᵀ on accelerators: sparse rows are sent once, and become dense one tile of columns at a time.

No N×N array is copied between host and device. Each device multiplies its own rows of a tile with all rows and adds the
product to its rows of Q, in float32 ("highest"). The host sums the diagonal in float64.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from npeff_jax._sharding import SHARDS, place, round_up, sharded
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization.row_spaces._base import matmul
from npeff_jax.factorization.row_spaces._blocks import BlockedRows, row_squares
from npeff_jax.factorization.row_spaces._rates import rates

TILE_BYTES = 1 << 28
"""Maximum size of a tile per device. The product of 1,000 columns takes 20 times as long as a pass over Q."""

TILE_SHARE = 1 / 16
"""Maximum size of a tile as a fraction of the memory of a device."""

ALIGNED = 64
"""The number of columns of a tile is a multiple of this."""

LEAST_CHUNK, CHUNK = 1 << 14, 1 << 22
"""Minimum and maximum number of entries sent at a time, powers of two so that few lengths are compiled; up to 48 MB."""

ENTRY_SENT = 12
"""Bytes sent per entry: row, column and value."""

BUS = 2e10
"""Estimated transfer rate from the host to an accelerator, in bytes per second."""

SORTS = 3
"""Passes of one core over the entries, in units of a sort by column: grouping, sorting by column, sending."""


def device_gram(
    A: BlockedRows, mesh: Mesh, frozen: Float[np.ndarray, "f m_kept"] | None = None
) -> Float[Array, "N_padded N_padded"]:
    """Compute the Gram matrix of [A; G_frozen], as `gram` does, padded with zeros to a multiple of the mesh.

    Args:
        A: the sparse rows.
        mesh: a mesh with one axis, `SHARDS`, over which the rows of Q are sharded.
        frozen: additional dense rows.
    """
    N, m = A.shape
    frozen = np.zeros((0, m), np.float32) if frozen is None else frozen
    size = round_up(N + len(frozen), mesh.size)
    width = min(tile_width(size, mesh), round_up(max(m, 1), ALIGNED))
    diagonal = np.zeros(size)
    diagonal[N : N + len(frozen)] = np.einsum("fm,fm->f", frozen, frozen, dtype=np.float64)
    Q, tile = _zeros(size=size, width=width, mesh=mesh)
    for columns, group in A.groups():
        diagonal[:N] += row_squares(group)
        # Sorted by count, largest first. Without frozen rows, a column of one entry contributes to the diagonal only.
        n_used = len(columns) if len(frozen) else int(np.searchsorted(-A.counts[columns], -1))
        by_column = group.tocsc()
        for first in range(0, n_used, width):
            own = columns[first : min(first + width, n_used)]
            dense = np.zeros((len(frozen), width), np.float32)
            dense[:, : len(own)] = frozen[:, own]
            chunks = list(_chunks(by_column, first, len(own), size))  # while the devices multiply the previous tile
            jax.block_until_ready(tile)  # so that the entries of at most one tile wait on a device
            for entries in chunks:
                tile = _fill(tile, *(place(array, sharded(mesh)) for array in entries), mesh=mesh)
            Q, tile = _add_tile(Q, tile, place(dense, sharded(mesh)), first_frozen=N, mesh=mesh)
    return _with_diagonal(Q, place(diagonal.astype(np.float32), sharded(mesh, SHARDS)), mesh=mesh)


def tile_width(size: int, mesh: Mesh) -> int:
    """Choose the number of columns per tile of ``size`` rows from the memory of a device."""
    room = min(TILE_BYTES, TILE_SHARE * _memory(mesh))
    return max(int(room / (4 * size * ALIGNED)), 1) * ALIGNED


def _memory(mesh: Mesh) -> float:
    """Return the total memory of a device in bytes (free memory differs between processes); infinite if unknown."""
    return float((mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", np.inf))


def device_gram_seconds(A: BlockedRows, mesh: Mesh) -> float:
    """Estimate the seconds of `device_gram`: dense products, passes over Q and tiles, and transfers."""
    N, speed, entries = A.shape[0], rates(mesh), float(A.nnz)
    columns, width = float(np.count_nonzero(A.counts > 1)), tile_width(N, mesh)
    passes = columns / width * (8.0 * N * N + 12.0 * N * width * mesh.size) / speed.stream
    return 2 * columns * N * N / speed.dense + passes + entries * (SORTS * speed.sort + ENTRY_SENT * mesh.size / BUS)


def device_gram_bytes(N: int, mesh: Mesh) -> float:
    """Estimate the bytes of `device_gram` on all devices, excluding the result: tiles, their rows, and entries."""
    return 4.0 * N * tile_width(N, mesh) * (mesh.size + 1) + 2.0 * ENTRY_SENT * CHUNK * mesh.size


def _chunks(
    A: scipy.sparse.csc_array, first: int, width: int, size: int
) -> Iterator[tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], Float[np.ndarray, "k"]]]:
    """Yield row, column and value of the entries in some columns of A, in chunks; rows >= ``size`` are padding."""
    pointers = A.indptr[first : first + width + 1]
    columns = np.repeat(np.arange(width, dtype=np.int32), np.diff(pointers))
    for start in range(int(pointers[0]), int(pointers[-1]), CHUNK):
        stop = min(start + CHUNK, int(pointers[-1]))
        length = max(LEAST_CHUNK, 1 << (stop - start - 1).bit_length())
        row, column = np.full(length, size, np.int32), np.arange(length, dtype=np.int32)  # unique positions
        value = np.zeros(length, np.float32)
        row[: stop - start], value[: stop - start] = A.indices[start:stop], A.data[start:stop]
        column[: stop - start] = columns[start - pointers[0] : stop - pointers[0]]
        yield row, column, value


@functools.partial(jit, static_argnames=("size", "width", "mesh"))
def _zeros(*, size: int, width: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Return zeros for Q, sharded by rows, and for a replicated tile."""
    blank = jnp.zeros((size, size), jnp.float32), jnp.zeros((size, width), jnp.float32)
    return jax.lax.with_sharding_constraint(blank, (sharded(mesh, SHARDS, None), sharded(mesh)))


@functools.partial(jit, static_argnames="mesh", donate_argnums=0)
def _fill(tile: jax.Array, row: jax.Array, column: jax.Array, value: jax.Array, *, mesh: Mesh) -> jax.Array:
    """Set entries of the tile, at unique positions."""

    def on_shard(tile: jax.Array, row: jax.Array, column: jax.Array, value: jax.Array) -> jax.Array:
        return tile.at[row, column].set(value, mode="drop", unique_indices=True)

    return jax.shard_map(on_shard, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(tile, row, column, value)


@functools.partial(jit, static_argnames=("first_frozen", "mesh"), donate_argnums=(0, 1))
def _add_tile(
    Q: jax.Array, tile: jax.Array, frozen: jax.Array, *, first_frozen: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Add the products of the tile's rows to Q; return Q and a tile of zeros."""

    def on_shard(Q: jax.Array, tile: jax.Array, frozen: jax.Array) -> tuple[jax.Array, jax.Array]:
        tile = jax.lax.dynamic_update_slice(tile, frozen, (first_frozen, 0))
        own = jax.lax.dynamic_slice_in_dim(tile, jax.lax.axis_index(SHARDS) * len(Q), len(Q))
        return Q + matmul(own, tile.T), jnp.zeros_like(tile)

    split = P(SHARDS, None)
    mapped = jax.shard_map(on_shard, mesh=mesh, in_specs=(split, P(), P()), out_specs=(split, P()), check_vma=False)
    return mapped(Q, tile, frozen)


@functools.partial(jit, static_argnames="mesh", donate_argnums=0)
def _with_diagonal(Q: jax.Array, diagonal: jax.Array, *, mesh: Mesh) -> jax.Array:
    def on_shard(Q: jax.Array, diagonal: jax.Array) -> jax.Array:
        rows = jax.lax.axis_index(SHARDS) * len(Q) + jnp.arange(len(Q))
        return jnp.where(rows[:, None] == jnp.arange(Q.shape[1]), diagonal[:, None], Q)

    split = P(SHARDS, None)
    return jax.shard_map(on_shard, mesh=mesh, in_specs=(split, P(SHARDS)), out_specs=split, check_vma=False)(
        Q, diagonal
    )
