"""Q = A Aᵀ from stored rows, accumulated one block of parameters after the other, its rows sharded."""

import functools

import jax
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCSR
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from npeff_jax._sharding import SHARDS, place, round_up, sharded
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization.rows._dense import matmul

TILE_BYTES = 1 << 28
"""Size of a block of parameters once dense."""

DENSE = 0.2
"""Fill above which a dense product wins: on two CPU cores it runs at 58 GF/s, the sparse one at 10 to 20."""


def gram(A: scipy.sparse.csr_array, mesh: Mesh) -> Float[Array, "N_padded N_padded"]:
    """A Aᵀ with N padded by zeros to a multiple of the mesh.

    Parameters are taken in order of how many rows touch them, so the first blocks are the full ones.
    """
    size = round_up(A.shape[0], mesh.size)
    A = A.tocsc()[:, np.argsort(-np.diff(A.tocsc().indptr), kind="stable")]
    width = min(A.shape[1], max(64, TILE_BYTES // (4 * size)))
    Q = place(np.zeros((size, size), np.float32), sharded(mesh, SHARDS, None))
    for first in range(0, A.shape[1], width):
        tile = A[:, first : first + width].tocsr()
        dense = np.zeros((size, width), np.float32)  # the last block padded: one compilation
        dense[: tile.shape[0], : tile.shape[1]] = tile.toarray()
        rows = place(dense, sharded(mesh, SHARDS, None))
        if tile.nnz > DENSE * tile.shape[0] * tile.shape[1] or jax.default_backend() != "cpu":
            Q = _add_dense(Q, rows, place(dense, sharded(mesh)), mesh=mesh)
        else:
            Q = _add_sparse(Q, rows, _padded(tile, size), mesh=mesh)
    return Q


@functools.partial(jit, static_argnames="mesh", donate_argnums=0)
def _add_dense(Q: jax.Array, rows: jax.Array, everything: jax.Array, *, mesh: Mesh) -> jax.Array:
    specs = (P(SHARDS, None), P(SHARDS, None), P())
    add = jax.shard_map(
        lambda Q, x, y: Q + matmul(x, y.T), mesh=mesh, in_specs=specs, out_specs=P(SHARDS, None), check_vma=False
    )
    return add(Q, rows, everything)


@functools.partial(jit, static_argnames="mesh", donate_argnums=0)
def _add_sparse(Q: jax.Array, rows: jax.Array, everything: tuple, *, mesh: Mesh) -> jax.Array:
    specs = (P(SHARDS, None), P(SHARDS, None), P())
    add = jax.shard_map(
        lambda Q, x, y: Q + (BCSR(y, shape=(Q.shape[1], x.shape[1])) @ x.T).T,
        mesh=mesh,
        in_specs=specs,
        out_specs=P(SHARDS, None),
        check_vma=False,
    )
    return add(Q, rows, everything)


def _padded(tile: scipy.sparse.csr_array, n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed rows, the number of entries rounded up to a power of two: few compilations for many tiles."""
    length = 1 << max(int(tile.nnz) - 1, 1).bit_length()
    data, indices = np.zeros(length, np.float32), np.zeros(length, np.int32)
    data[: tile.nnz], indices[: tile.nnz] = tile.data, tile.indices
    pointers = np.full(n_rows + 1, tile.nnz, np.int32)
    pointers[: tile.shape[0] + 1] = tile.indptr
    pointers[-1] = length
    return data, indices, pointers
