"""Sparse rows, sharded over parameters: devices exchange only N×r and r×r arrays per step, independent of m'."""

import dataclasses
import functools
import heapq
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCSR
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from npeff_jax._machine import on_cores
from npeff_jax._sharding import SHARDS, fetch, place, round_up, sharded
from npeff_jax._types import RowProducts
from npeff_jax.factorization.row_spaces._base import (
    Cost,
    Inner,
    Leaf,
    ProductPrecision,
    RowChoice,
    RowSpace,
    Vectors,
    matmul,
)
from npeff_jax.factorization.row_spaces._blocks import BlockedRows
from npeff_jax.factorization.row_spaces._rates import rates, scaling_seconds

BLOCK_ENTRIES = 1 << 20
"""Entries of r vectors over a block of columns, 4 MB. Products gather from them in random order: if they exceed the
cache, a CPU slows from 18 to 3 GFLOP/s."""

PACKED = 3.5
"""Passes over the entries that packing them by row and by column takes, in units of a sort by column."""

DEALT = 1.2e-6
"""Seconds per column to assign it by load, on one core."""

Csr = tuple[jax.Array, jax.Array, jax.Array]
"""Values, indices and row pointers of all blocks, each with the blocks along its first axis."""


@dataclasses.dataclass(frozen=True)
class SparseRows(RowChoice):
    """Hold A in compressed blocks, sharded over parameters. Work and memory are proportional to the non-zeros."""

    def cost(self, A: BlockedRows, n_components: int, mesh: Mesh) -> Cost:
        (N, m), nnz, r, speed = A.shape, float(A.nnz), n_components, rates(mesh)
        vectors = 4.0 * r * m
        products = 12.0 * N * r * max(1, r * m / BLOCK_ENTRIES)  # read and written once per block
        # 4 r and 6 r² operations, with small matrices and a shared cache at less than the measured speeds
        step = 8 * nnz * r / speed.sparse + 8 * r * r * m / speed.dense
        step += (16 * nnz + 6 * vectors + products) / speed.stream
        once = PACKED * speed.sort * nnz + 32 * nnz * speed.touch + DEALT * min(m, GREEDY)
        once += r * m * speed.gather + scaling_seconds(r, m, mesh)
        memory = 16 * nnz + 3.5 * vectors  # three copies, and a block
        return Cost.of_steps(step, once, memory, max(24 * nnz, 2 * vectors))

    def of(
        self,
        A: BlockedRows,
        mesh: Mesh,
        *,
        n_components: int = 64,
        products: ProductPrecision = ProductPrecision.FLOAT32,
        frozen: np.ndarray | None = None,
    ) -> "SparseSpace":
        if products is not ProductPrecision.FLOAT32:
            raise ValueError(
                f"products={products.value} is for DenseRows() and KernelRows(); sparse ones are float32: choose other "
                "rows, or ProductPrecision.FLOAT32"
            )
        (N, m), whole = A.shape, A.whole.tocsc()
        n_blocks = mesh.size * max(1, round(m * n_components / mesh.size / BLOCK_ENTRIES))
        dealt = deal(A.counts, n_blocks)
        blocks = [whole[:, own[own >= 0]] for own in dealt.reshape(n_blocks, -1)]  # padding comes last
        by_row = _pack([block.tocsr() for block in blocks], N)
        by_column = _pack([block.T for block in blocks], len(dealt) // n_blocks)
        spec = sharded(mesh, SHARDS)
        return SparseSpace(_place(by_row, spec), _place(by_column, spec), mesh, N, Columns(dealt, m))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["by_row", "by_column"], meta_fields=["mesh", "N", "columns"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class SparseSpace(RowSpace):
    """A (N, m') in blocks of columns, stored by row and by column, so that products gather and never scatter.

    Attributes:
        by_row: blocks of A, a `Csr`.
        by_column: blocks of Aᵀ, a `Csr`.
        mesh: one axis, `SHARDS`, over the blocks.
        N: number of rows.
        columns: the column of A at each coordinate; None inside compiled steps.
    """

    by_row: Leaf
    by_column: Leaf
    mesh: Mesh
    N: int
    columns: "Columns | None"

    @property
    def n_rows(self) -> int:
        return self.N

    def inner(self, G: Vectors, D: Vectors) -> Inner:
        same = D is G

        @self._on_shards((P(None, SHARDS), P(None, SHARDS)), P())
        def on_shard(by_row: Csr, by_column: Csr, G: jax.Array, D: jax.Array) -> Inner:
            def add_block(b: jax.Array, sums: Inner) -> Inner:
                D_block = _columns(D, by_column, b)
                G_block = D_block if same else _columns(G, by_column, b)
                return self._add_products(sums, by_row, b, G_block, D_block)

            sums = self._zero_products(len(G), len(D))
            return jax.lax.psum(jax.lax.fori_loop(0, len(by_row[0]), add_block, sums), SHARDS)

        return on_shard(self.by_row, self.by_column, G, D)

    def pull_back(self, M: RowProducts) -> Vectors:
        @self._on_shards((P(),), P(None, SHARDS))
        def on_shard(by_row: Csr, by_column: Csr, M: jax.Array) -> jax.Array:
            def write_block(b: jax.Array, pulled: jax.Array) -> jax.Array:
                return _write(pulled, by_column, b, _pulled(by_column, b, M))

            blank = jnp.zeros((M.shape[1], _width(by_column)), jnp.float32)
            return jax.lax.fori_loop(0, len(by_row[0]), write_block, blank)

        return on_shard(self.by_row, self.by_column, M)

    def combine(self, G: Vectors, C: Float[Array, "f r"], M: Float[Array, "N f"]) -> tuple[Vectors, tuple[Any, ...]]:
        """Return D = C G + Mᵀ A, with A Dᵀ, G Dᵀ and D Dᵀ, in one pass over blocks of columns that fit the cache.

        It moves 8 r m' bytes (G is read once and D written once) and 16 bytes per entry of A (read twice), and takes
        6 r² m' operations of dense products and 4 r operations of sparse products per entry.

        Args:
            G: (r, m').
            C: (f, r).
            M: (N, f).
        """

        @self._on_shards((P(None, SHARDS), P(), P()), (P(None, SHARDS), P()))
        def on_shard(by_row: Csr, by_column: Csr, G: jax.Array, C: jax.Array, M: jax.Array) -> tuple[Vectors, Inner]:
            def do_block(b: jax.Array, carry: tuple[Vectors, Inner]) -> tuple[Vectors, Inner]:
                D, sums = carry
                G_block = _columns(G, by_column, b)
                D_block = matmul(C, G_block) + _pulled(by_column, b, M)
                return _write(D, by_column, b, D_block), self._add_products(sums, by_row, b, G_block, D_block)

            start = jnp.zeros((len(C), _width(by_column)), jnp.float32), self._zero_products(len(G), len(C))
            D, sums = jax.lax.fori_loop(0, len(by_row[0]), do_block, start)
            return D, jax.lax.psum(sums, SHARDS)

        return on_shard(self.by_row, self.by_column, G, C, M)

    def _on_shards(self, in_specs: tuple[Any, ...], out_specs: Any) -> Callable[..., Any]:
        """Map a function of the blocks of A and Aᵀ and further arguments over the shards."""
        return functools.partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(SHARDS), P(SHARDS), *in_specs),
            out_specs=out_specs,
            check_vma=False,
        )

    def _zero_products(self, r: int, f: int) -> Inner:
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
        return zeros((self.N, f)), zeros((r, f)), zeros((f, f))

    def _add_products(self, sums: Inner, by_row: Csr, b: jax.Array, G: jax.Array, D: jax.Array) -> Inner:
        """Add the contribution of column block ``b`` to A Dᵀ, G Dᵀ and D Dᵀ."""
        AD, GD, DD = sums
        own = matmul(D, D.T)
        return AD + _product(by_row, b, D.T, self.N), GD + (own if G is D else matmul(G, D.T)), DD + own

    def expand(self, vectors: Vectors) -> np.ndarray:
        dealt, width = self._columns
        place_of = np.empty(width, np.intp)  # other integers are converted at every call
        place_of[dealt[dealt >= 0]] = np.flatnonzero(dealt >= 0)
        held, out = fetch(vectors), np.empty((vectors.shape[0], width), np.float32)
        on_cores(lambda j: np.take(held[j], place_of, out=out[j], mode="clip"), range(len(out)))  # "raise" copies
        return out

    def coordinates(self, vectors: np.ndarray) -> Vectors:
        dealt, _ = self._columns
        placed = np.where(dealt >= 0, vectors[:, dealt], 0).astype(np.float32)
        return place(placed, sharded(self.mesh, None, SHARDS))

    def on_device(self) -> "SparseSpace":
        return dataclasses.replace(self, columns=None)

    @property
    def _columns(self) -> tuple[np.ndarray, int]:
        if self.columns is None:
            raise ValueError("got a SparseSpace from inside a compiled step, without columns; use that of the Problem")
        return self.columns.dealt, self.columns.width


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """The assignment of columns to coordinates, from `deal`.

    Attributes:
        dealt: the column of A at each coordinate, −1 for padding.
        width: m'.
    """

    dealt: np.ndarray
    width: int


def _place(blocks: tuple[np.ndarray, np.ndarray, np.ndarray], spec: NamedSharding) -> Csr:
    values, indices, pointers = blocks
    return place(values, spec), place(indices, spec), place(pointers, spec)


def _product(blocks: Csr, b: jax.Array, x: jax.Array, n_rows: int) -> jax.Array:
    """Multiply block ``b`` by a dense matrix. Call it inside ``jit``: on a CPU it is much slower outside."""
    block = tuple(jax.lax.dynamic_index_in_dim(array, b, keepdims=False) for array in blocks)
    return BCSR(block, shape=(n_rows, x.shape[0])) @ x


def _pulled(by_column: Csr, b: jax.Array, M: jax.Array) -> jax.Array:
    """Return Mᵀ A over the columns of block ``b``, (f, w)."""
    return _product(by_column, b, M, by_column[2].shape[1] - 1).T


def _width(by_column: Csr) -> int:
    """Return the number of columns of all blocks together."""
    return by_column[2].shape[0] * (by_column[2].shape[1] - 1)


def _columns(vectors: jax.Array, by_column: Csr, b: jax.Array) -> jax.Array:
    """Return the columns of ``vectors`` in block ``b``, (r, w)."""
    width = by_column[2].shape[1] - 1
    return jax.lax.dynamic_slice_in_dim(vectors, b * width, width, axis=1)


def _write(vectors: jax.Array, by_column: Csr, b: jax.Array, part: jax.Array) -> jax.Array:
    """Replace the columns of ``vectors`` in block ``b``."""
    return jax.lax.dynamic_update_slice_in_dim(vectors, part, b * (by_column[2].shape[1] - 1), axis=1)


def _pack(blocks: list[scipy.sparse.csr_array], n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stack compressed blocks of ``n_rows`` rows as arrays of equal length, padded with zeros in the last row."""
    length = max(block.nnz for block in blocks)
    data, indices = np.zeros((len(blocks), length), np.float32), np.zeros((len(blocks), length), np.int32)
    pointers = np.full((len(blocks), n_rows + 1), length, np.int32)
    for k, block in enumerate(blocks):
        data[k, : block.nnz], indices[k, : block.nnz] = block.data, block.indices
        pointers[k, : block.shape[0]] = block.indptr[:-1]
        pointers[k, block.shape[0] : n_rows] = block.nnz
    return data, indices, pointers


GREEDY = 100_000
"""Number of the heaviest columns that are assigned by load, one to each block per round. Lighter columns are assigned
in snake order, which needs no loop."""


def deal(counts: Int[np.ndarray, "m_kept"], n_blocks: int) -> Int[np.ndarray, "size"]:
    """Assign columns to blocks of equal size and similar numbers of non-zeros.

    Columns are assigned heaviest first, in rounds of one per block: the heaviest of a round goes to the block with the
    fewest non-zeros so far.

    Args:
        counts: number of non-zeros of each column.
        n_blocks: number of blocks.

    Returns:
        Column indices, block after block, padded with −1 to a multiple of ``n_blocks``.
    """
    width = round_up(max(len(counts), 1), n_blocks) // n_blocks
    order = np.full(width * n_blocks, -1)
    order[: len(counts)] = np.argsort(-counts, kind="stable")
    rounds = order.reshape(width, n_blocks)
    weights = np.where(rounds >= 0, counts[rounds], 0) if len(counts) else np.zeros_like(rounds)
    dealt = rounds.copy()
    dealt[1::2] = dealt[1::2, ::-1]
    load = [(0, block) for block in range(n_blocks)]
    for k in range(min(width, -(-GREEDY // n_blocks))):
        following = []
        for position in range(n_blocks):
            weight, block = heapq.heappop(load)
            dealt[k, block] = rounds[k, position]
            following.append((weight + int(weights[k, position]), block))
        load = following
        heapq.heapify(load)
    return dealt.T.reshape(-1)
