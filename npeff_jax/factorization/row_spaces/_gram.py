"""Q = A Aᵀ from stored rows, accumulated one block of parameters after the other, its rows sharded."""

import functools

import jax
import numpy as np
import scipy.linalg.blas
import scipy.sparse
from jax.experimental.sparse import BCSR
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from npeff_jax._sharding import SHARDS, place, round_up, sharded
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization.row_spaces._base import matmul
from npeff_jax.factorization.row_spaces._blocks import BlockedRows

TILE_BYTES = 1 << 27
"""Size of a block of parameters once dense."""

DENSE = 0.05
"""Fill above which a dense product wins on a CPU: on two cores a symmetric one of BLAS counts as 360 GF/s, the sparse
one runs at 15 to 20."""

MIRRORED = 1024
"""Rows that are copied to the other triangle at a time."""


def gram(
    A: BlockedRows, mesh: Mesh, frozen: Float[np.ndarray, "f m_kept"] | None = None
) -> Float[Array, "N_padded N_padded"]:
    """The Gram matrix of [A; G_frozen], padded by zeros to a multiple of the mesh.

    Parameters are taken in order of how many rows touch them, so the first blocks are the full ones. No more of A than
    a group of parameters is in memory at any time.
    """
    N = A.shape[0] + (0 if frozen is None else len(frozen))
    add = _OnHost(N, mesh) if mesh.devices.flat[0].platform == "cpu" else _OnDevices(N, mesh)
    width = min(max(64, TILE_BYTES // (4 * N)), A.shape[1])
    for columns, group in A.groups():
        if frozen is not None:
            group = scipy.sparse.vstack([group, scipy.sparse.csc_array(frozen[:, columns])], format="csc")
        for first in range(0, len(columns), width):
            add(group[:, first : first + width], width)
    return add.result()


class _OnHost:
    """By BLAS, and by a sparse product where a tile is mostly zeros; only the upper triangle counts."""

    def __init__(self, N: int, mesh: Mesh) -> None:
        self.Q, self.mesh = np.zeros((N, N), np.float32, order="F"), mesh

    def __call__(self, tile: scipy.sparse.csc_array, width: int) -> None:
        dense = _dense(tile, len(self.Q), width)
        if tile.nnz > DENSE * tile.shape[0] * tile.shape[1]:
            scipy.linalg.blas.ssyrk(1.0, dense.T, beta=1.0, c=self.Q, trans=1, overwrite_c=1)
        else:
            self.Q += np.asarray(_sparse_gram(dense, *_padded(tile.tocsr())))

    def result(self) -> jax.Array:
        N, Q = len(self.Q), self.Q
        for first in range(0, N, MIRRORED):
            block = slice(first, min(first + MIRRORED, N))
            Q[block, block] = np.triu(Q[block, block]) + np.triu(Q[block, block], 1).T
            Q[block.stop :, block] = Q[block, block.stop :].T
        missing = round_up(N, self.mesh.size) - N
        Q = np.pad(Q, (0, missing)) if missing else Q
        return place(Q.T, sharded(self.mesh, SHARDS, None))  # symmetric: its transpose is contiguous by rows


class _OnDevices:
    """By the accelerators' dense product, each its rows."""

    def __init__(self, N: int, mesh: Mesh) -> None:
        size = round_up(N, mesh.size)
        self.Q, self.mesh = place(np.zeros((size, size), np.float32), sharded(mesh, SHARDS, None)), mesh

    def __call__(self, tile: scipy.sparse.csc_array, width: int) -> None:
        dense = _dense(tile, len(self.Q), width)
        rows, whole = place(dense, sharded(self.mesh, SHARDS, None)), place(dense, sharded(self.mesh))
        self.Q = _add(self.Q, rows, whole, mesh=self.mesh)

    def result(self) -> jax.Array:
        return self.Q


def _dense(tile: scipy.sparse.csc_array, n_rows: int, width: int) -> Float[np.ndarray, "rows width"]:
    """Padded to one shape, which is one compilation."""
    dense = np.zeros((n_rows, width), np.float32)
    dense[: tile.shape[0], : tile.shape[1]] = tile.toarray()
    return dense


@functools.partial(jit, static_argnames="mesh", donate_argnums=0)
def _add(Q: jax.Array, rows: jax.Array, whole: jax.Array, *, mesh: Mesh) -> jax.Array:
    specs = (P(SHARDS, None), P(SHARDS, None), P())
    add = jax.shard_map(
        lambda Q, x, y: Q + matmul(x, y.T), mesh=mesh, in_specs=specs, out_specs=P(SHARDS, None), check_vma=False
    )
    return add(Q, rows, whole)


@jit
def _sparse_gram(dense: jax.Array, data: jax.Array, indices: jax.Array, pointers: jax.Array) -> jax.Array:
    """Inside ``jit`` on a CPU, a compiled kernel (outside, ten times slower)."""
    return BCSR((data, indices, pointers), shape=dense.shape) @ dense.T


def _padded(tile: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed rows, the number of entries rounded up to a power of two: few compilations for many tiles."""
    length = 1 << max(int(tile.nnz) - 1, 1).bit_length()
    data, indices = np.zeros(length, np.float32), np.zeros(length, np.int32)
    data[: tile.nnz], indices[: tile.nnz] = tile.data, tile.indices
    pointers = tile.indptr.astype(np.int32)
    pointers[-1] = length  # zeros at column 0 of the last row
    return data, indices, pointers
