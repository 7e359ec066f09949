"""Speed of this machine, measured once per process (0.2 s) if a problem is large enough.

The choice of a row space depends on the relative speeds of dense products, sparse products and memory. They vary
several-fold between machines and with other load, so they are measured instead of assumed.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCSR
from jax.sharding import Mesh

from npeff_jax._machine import cores
from npeff_jax.factorization._compile import jit

ENTRY_SECONDS = 5e-9
"""Seconds to copy or compress a stored entry once, on one core."""

TRIES = 3
"""Repetitions of each measurement, of which the shortest counts."""


SQUARE = 2048
"""Size of the square matrix of the dense measurement: 16 MB, more than a core's cache, as in a step."""

ROWS_OF_32 = np.arange(2049, dtype=np.int32) * 32


@dataclasses.dataclass(frozen=True)
class Rates:
    """Speeds of the devices of a mesh together, and of their host.

    Attributes:
        dense: operations per second of float32 products.
        sparse: operations per second of sparse products on the devices.
        stream: bytes per second of arrays that do not fit a cache.
        pair: seconds per pair of entries that share a column, in sparse products on one core of the host.
        host_sparse: operations per second of sparse times dense matrices on one core of the host.
    """

    dense: float
    sparse: float
    stream: float
    pair: float
    host_sparse: float


def pull_seconds(nnz: float, r: int, m: int, mesh: Mesh) -> float:
    """Estimate the time in seconds of `BlockedRows.pull` to r vectors over m parameters, and of scaling them."""
    speed = rates(mesh)
    entries = 2 * nnz * r / speed.host_sparse + PULLED_PASSES * ENTRY_SECONDS * nnz
    return entries / cores() + VECTOR_BYTES * r * m / speed.stream


PULLED_PASSES, VECTOR_BYTES = 12, 100.0
"""Passes over the entries besides the products, mostly to sort them by column; and bytes read and written per entry of
a vector, including the cost of memory newly allocated by the system."""

TYPICAL = {"cpu": Rates(1.1e11, 1.9e10, 1.5e10, 8e-9, 5e9), "gpu": Rates(5e13, 5e11, 2e12, 8e-9, 5e9)}
"""Rates assumed before any measurement. CPU: measured on two cores of a server; GPU: an estimate."""

_MEASURED: dict[jax.Device, Rates] = {}


def rates(mesh: Mesh) -> Rates:
    """Return the speeds of a mesh: measured ones if there are any, else typical ones.

    The devices of a CPU share its cores; the speeds of accelerators add up.
    """
    device = mesh.local_devices[0]
    one = _MEASURED.get(device, TYPICAL.get(device.platform, TYPICAL["gpu"]))
    n = 1 if device.platform == "cpu" else mesh.size
    return dataclasses.replace(one, dense=n * one.dense, sparse=n * one.sparse, stream=n * one.stream)


def measure(mesh: Mesh) -> None:
    """Measure the speeds of a mesh, once per process."""
    device = mesh.local_devices[0]
    if device not in _MEASURED:
        _MEASURED[device] = _measured(device)


def _measured(device: jax.Device) -> Rates:
    rng = np.random.default_rng(0)
    # a block as in `SparseRows`, whose products gather from beyond a core's cache
    rows, width, each = 8192, 8192, 24
    indices = np.sort(rng.integers(width, size=(rows, each)), axis=1).reshape(-1).astype(np.int32)
    block = np.ones(rows * each, np.float32), indices, np.arange(rows + 1, dtype=np.int32) * each
    host_block, host_right = scipy.sparse.csr_array(block, shape=(rows, width)), np.ones((width, 128), np.float32)
    shapes = ((SQUARE, SQUARE), (128, SQUARE), 1 << 22)
    square, vectors, long = (np.ones(shape, np.float32) for shape in shapes)
    # transferred from the host, because creating each array with JAX would compile a program
    block, square, vectors, right, long = jax.device_put((block, square, vectors, host_right, long), device)
    dense = 2 * square.size * len(vectors) / _shortest(_dense, square, vectors)
    stream = 8 * long.size / _shortest(_stream, long)
    sparse = 2 * host_block.nnz * 128 / _shortest(_sparse, block, right)
    A = scipy.sparse.csr_array(
        (np.ones(1 << 16, np.float32), rng.integers(1 << 12, size=1 << 16, dtype=np.int32), ROWS_OF_32),
        shape=(2048, 1 << 12),
    )
    At, part = A.T.tocsr(), A[:256]
    pairs = float(np.diff(At.indptr)[part.indices].sum())
    pair = _shortest(lambda: (part @ At).toarray()) / pairs
    host_sparse = 2 * host_block.nnz * 128 / _shortest(lambda: host_block @ host_right)
    return Rates(dense, sparse, stream, pair, host_sparse)


def _shortest(function: Callable[..., Any], *arguments: object) -> float:
    jax.block_until_ready(function(*arguments))  # compile, and warm the cache
    took = []
    for _ in range(TRIES):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        took.append(time.perf_counter() - start)
    return min(took)


@jit
def _dense(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


@jit
def _stream(x: jax.Array) -> jax.Array:
    return x + 1


@jit
def _sparse(block: tuple[jax.Array, jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return BCSR(block, shape=(len(block[2]) - 1, len(x))) @ x
