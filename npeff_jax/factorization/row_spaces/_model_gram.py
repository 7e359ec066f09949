"""The Gram matrix Q of rows that are computed batch by batch: on the host if the devices are CPUs, else on the devices.

Both hold the same numbers: a product of two batches is stored at its place and, transposed, at the mirrored one.
"""

import abc
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from npeff_jax._sharding import SHARDS, fetch, place, round_up, sharded
from npeff_jax.factorization._compile import jit


class GramOfBatches(abc.ABC):
    """Q of N rows, padded with zeros to a multiple of the mesh.

    Attributes:
        N: number of rows.
        mesh: one axis, `SHARDS`, over which the rows of the result are sharded.
    """

    def __init__(self, N: int, mesh: Mesh) -> None:
        self.N, self.mesh, self.size = N, mesh, round_up(N, mesh.size)

    @abc.abstractmethod
    def set(self, part: Float[Array, "a b"], row: int, column: int) -> None:
        """Store the products of the rows from ``row`` on with those from ``column`` on; rows >= N are padding."""

    @abc.abstractmethod
    def diagonal_blocks(self, c: int) -> Float[np.ndarray, "n c c"]:
        """Return the blocks of c rows on the diagonal, on the host."""

    @abc.abstractmethod
    def scaled(self, scale: Float[np.ndarray, "N"]) -> Float[Array, "N_padded N_padded"]:
        """Return Q with row and column i multiplied by ``scale[i]``, sharded over the mesh; call it last."""


class GramOnHost(GramOfBatches):
    """Q in the memory of the host."""

    def __init__(self, N: int, mesh: Mesh) -> None:
        super().__init__(N, mesh)
        self._Q = np.zeros((self.size, self.size), np.float32)

    def set(self, part: Float[Array, "a b"], row: int, column: int) -> None:
        known = np.asarray(part)[: self.N - row, : self.N - column]
        rows, columns = slice(row, row + known.shape[0]), slice(column, column + known.shape[1])
        self._Q[rows, columns] = known
        self._Q[columns, rows] = known.T

    def diagonal_blocks(self, c: int) -> Float[np.ndarray, "n c c"]:
        return np.stack([self._Q[first : first + c, first : first + c] for first in range(0, self.N, c)])

    def scaled(self, scale: Float[np.ndarray, "N"]) -> Float[Array, "N_padded N_padded"]:
        padded = np.pad(scale.astype(np.float32), (0, self.size - self.N))
        self._Q *= padded
        self._Q *= padded[:, None]
        return place(self._Q, sharded(self.mesh, SHARDS, None))


class GramOnDevices(GramOfBatches):
    """Q in the memory of the devices, each of which holds its rows. Only n c² numbers are copied to the host."""

    def __init__(self, N: int, mesh: Mesh) -> None:
        super().__init__(N, mesh)
        self._Q = _zeros(size=self.size, mesh=mesh)

    def set(self, part: Float[Array, "a b"], row: int, column: int) -> None:
        at = (place(np.asarray(first, np.int32), sharded(self.mesh)) for first in (row, column))
        self._Q = _set(self._Q, part, *at, N=self.N, mesh=self.mesh)
        jax.block_until_ready(self._Q)  # so that rows of at most one further batch are on the devices

    def diagonal_blocks(self, c: int) -> Float[np.ndarray, "n c c"]:
        return fetch(_near_diagonal(self._Q, c=c, mesh=self.mesh))[: self.N].reshape(-1, c, c)

    def scaled(self, scale: Float[np.ndarray, "N"]) -> Float[Array, "N_padded N_padded"]:
        padded = np.pad(scale.astype(np.float32), (0, self.size - self.N))
        return _scaled(self._Q, place(padded, sharded(self.mesh)), mesh=self.mesh)


@functools.partial(jit, static_argnames=("size", "mesh"))
def _zeros(*, size: int, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros((size, size), jnp.float32), sharded(mesh, SHARDS, None))


@functools.partial(jit, static_argnames=("N", "mesh"), donate_argnums=0)
def _set(Q: jax.Array, part: jax.Array, row: jax.Array, column: jax.Array, *, N: int, mesh: Mesh) -> jax.Array:
    """Store a product and its transpose, on the devices that hold these rows."""

    def on_shard(Q: jax.Array, part: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        first = jax.lax.axis_index(SHARDS) * len(Q)

        def stored(Q: jax.Array, part: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
            rows, columns = row + jnp.arange(part.shape[0]), column + jnp.arange(part.shape[1])
            # positions outside of Q are dropped, but negative ones would count from the end
            own = jnp.where((rows >= first) & (rows < N), rows - first, len(Q))
            inside = jnp.where(columns < N, columns, Q.shape[1])
            return Q.at[own[:, None], inside].set(part, mode="drop")

        return stored(stored(Q, part, row, column), part.T, column, row)

    split = P(SHARDS, None)
    mapped = jax.shard_map(on_shard, mesh=mesh, in_specs=(split, P(), P(), P()), out_specs=split, check_vma=False)
    return mapped(Q, part, row, column)


@functools.partial(jit, static_argnames=("c", "mesh"))
def _near_diagonal(Q: jax.Array, *, c: int, mesh: Mesh) -> jax.Array:
    """Return of each row the c entries of its block on the diagonal, (N_padded, c)."""

    def on_shard(Q: jax.Array) -> jax.Array:
        rows = jax.lax.axis_index(SHARDS) * len(Q) + jnp.arange(len(Q))
        return jnp.take_along_axis(Q, (rows // c * c)[:, None] + jnp.arange(c), axis=1, mode="clip")

    split = P(SHARDS, None)
    return jax.shard_map(on_shard, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(Q)


@functools.partial(jit, static_argnames="mesh", donate_argnums=0)
def _scaled(Q: jax.Array, scale: jax.Array, *, mesh: Mesh) -> jax.Array:
    def on_shard(Q: jax.Array, scale: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(scale, jax.lax.axis_index(SHARDS) * len(Q), len(Q))
        return Q * scale * own[:, None]

    split = P(SHARDS, None)
    return jax.shard_map(on_shard, mesh=mesh, in_specs=(split, P()), out_specs=split, check_vma=False)(Q, scale)
