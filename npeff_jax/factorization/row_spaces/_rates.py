"""Speed of this machine, measured once per process (0.3 s) if a problem is large enough.

The choice of a row space depends on the relative speeds of dense products, sparse products and memory. They vary
several-fold between machines and with other load, so they are measured instead of assumed: each kind of work by a short
run of the same code, on arrays that do not fit a core's cache, on all cores at once where the work is. Other programs
that use the machine at that time slow these runs as they slow the work.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCSR
from jax.sharding import Mesh

from npeff_jax._machine import cores
from npeff_jax.factorization._compile import jit
from npeff_jax.factorization.row_spaces._thin import Chunk, add_products

TRIES = 3
"""Repetitions of each measurement, of which the median counts: the shortest would not show what other programs take."""

SQUARE = 2048
"""Size of the square matrix of the dense measurement: 16 MB, more than a core's cache, as in a step."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Speeds of the devices of a mesh together, and of their host with all of its cores at work unless stated.

    Attributes:
        dense: operations per second of float32 products.
        sparse: operations per second of sparse products on the devices.
        stream: bytes per second of arrays that do not fit a cache.
        pair: seconds per pair of entries that share a column, in products of sparse rows on the host.
        visit: seconds per entry in these products, besides its pairs.
        product: seconds per operation of sparse times dense matrices on the host.
        gather: seconds per number copied from a random position of a vector on the host.
        sort: seconds per entry to sort the entries of sparse rows by column, on one core of the host.
        touch: seconds per byte of newly allocated memory written for the first time, on one core of the host.
        cores: cores of the host at the disposal of this process.
    """

    dense: float
    sparse: float
    stream: float
    pair: float = 3e-9
    visit: float = 4e-8
    product: float = 8e-11
    gather: float = 3e-9
    sort: float = 1.7e-8
    touch: float = 1.5e-10
    cores: float = 2.0


def pull_seconds(nnz: float, r: int, m: int, mesh: Mesh) -> float:
    """Estimate the time in seconds of `BlockedRows.pull` to r vectors over m parameters, and of scaling them."""
    speed = rates(mesh)
    entries = PULLED_SORTS * nnz * speed.sort / speed.cores + 2 * nnz * r * speed.product
    return entries + TRANSPOSED_BYTES * r * m / speed.stream + scaling_seconds(r, m, mesh)


def scaling_seconds(r: int, m: int, mesh: Mesh) -> float:
    """Estimate the time in seconds to write r vectors to new memory and to scale them to unit norm."""
    speed = rates(mesh)
    return (4.0 * speed.touch + SCALED_BYTES / speed.stream) * r * m


PULLED_SORTS, TRANSPOSED_BYTES, SCALED_BYTES = 1.3, 12.0, 24.0
"""Passes over the entries besides the products, in units of a sort by column; and bytes read and written per entry of a
vector, to add it to the result and to scale it."""

TYPICAL = {"cpu": Rates(1.1e11, 1.9e10, 1.5e10), "gpu": Rates(5e13, 5e11, 2e12)}
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
        _MEASURED[device] = dataclasses.replace(Rates(*_of_device(device)), **_of_host())


def _of_device(device: jax.Device) -> tuple[float, float, float]:
    """Measure operations per second of dense and sparse products, and bytes per second."""
    # a block as in `SparseRows`, whose products gather from beyond a core's cache
    block = _uniform(8192, 8192, 24)
    shapes = ((SQUARE, SQUARE), (128, SQUARE), (8192, 128), 1 << 24)
    square, vectors, right, long = (np.ones(shape, np.float32) for shape in shapes)
    # transferred from the host, because creating each array with JAX would compile a program
    arrays = (block.data, block.indices, block.indptr), square, vectors, right, long
    on_device, square, vectors, right, long = jax.device_put(arrays, device)
    held = [long]

    def stream() -> jax.Array:
        held.append(_stream(held.pop()))
        return held[0]

    return (
        2 * square.size * len(vectors) / _usual(lambda: _dense(square, vectors), compiles=True),
        2 * block.nnz * right.shape[1] / _usual(lambda: _sparse(on_device, right), compiles=True),
        8 * long.size / _usual(stream, compiles=True),
    )


def _of_host() -> dict[str, float]:
    """Measure the speeds of the host, as attributes of `Rates`."""
    n, block, wide = cores(), _uniform(8192, 8192, 24), _uniform(512, 1 << 20, 4096)
    right, positions = np.ones((8192, 128), np.float32), np.random.default_rng(1).permutation(1 << 20)
    vector, out = np.ones(1 << 20, np.float32), np.empty((n, 1 << 20), np.float32)
    with ThreadPoolExecutor(n) as pool:

        def together(function: Callable[[int], Any]) -> float:
            return _usual(lambda: list(pool.map(function, range(n))))

        one, all_cores = _usual(lambda: block @ right), together(lambda _: block @ right)
        pair, visit = _of_pairs(together, n)
        return {
            "pair": pair,
            "visit": visit,
            "product": all_cores / (2 * n * block.nnz * right.shape[1]),
            "gather": together(lambda k: np.take(vector, positions, out=out[k], mode="clip")) / out.size,
            "sort": _usual(wide.tocsc) / wide.nnz,
            "touch": _usual(lambda: np.zeros(1 << 25, np.uint8).fill(1)) / (1 << 25),
            "cores": min(n * one / all_cores, float(n)),
        }


def _of_pairs(together: Callable[[Callable[[int], Any]], float], n: int) -> tuple[float, float]:
    """Measure seconds per pair and per entry in products of ``n`` bands of sparse rows with thin columns.

    Columns with many entries and columns with few tell the two apart. A band reads columns in random order, from 8 MB
    of entries, and adds to rows that exceed the fastest cache, as in `gram`.
    """
    N, rng, counted, took = 6144, np.random.default_rng(0), [], []
    Q = np.zeros((N, N), np.float32)
    for width, per_column, height in ((1 << 13, 128, 64), (1 << 17, 8, 256)):
        rows = np.sort(rng.integers(N, size=(width, per_column), dtype=np.int32), axis=1).reshape(-1)
        pointers = np.arange(width + 1, dtype=np.int32) * per_column
        A = scipy.sparse.csc_array((np.ones(len(rows), np.float32), rows, pointers), shape=(N, width))
        chunk = Chunk.of(A, np.array([0, N]))

        def band(k: int, chunk: Chunk = chunk, height: int = height) -> None:
            add_products(Q, [chunk], 0, slice(k * height, (k + 1) * height))

        took.append(together(band))
        entries = float(np.count_nonzero(rows < n * height))
        counted.append((entries * per_column, entries))
    pair, visit = np.linalg.solve(counted, took)
    # noise might make one of them negative
    return max(float(pair), LEAST * took[0] / counted[0][0]), max(float(visit), LEAST * took[1] / counted[1][1])


LEAST = 0.05
"""Minimum share of one of two rates that are measured together."""


def _uniform(rows: int, width: int, each: int) -> scipy.sparse.csr_array:
    """Return sparse rows of ``each`` entries at random columns."""
    indices = np.sort(np.random.default_rng(0).integers(width, size=(rows, each), dtype=np.int32), axis=1)
    entries = np.ones(indices.size, np.float32), indices.reshape(-1), np.arange(rows + 1, dtype=np.int32) * each
    return scipy.sparse.csr_array(entries, shape=(rows, width))


def _usual(function: Callable[[], Any], compiles: bool = False) -> float:
    """Return the median time of a function in seconds, without a first call that compiles it."""
    if compiles:
        jax.block_until_ready(function())
    took = []
    for _ in range(TRIES):
        start = time.perf_counter()
        jax.block_until_ready(function())
        took.append(time.perf_counter() - start)
    return float(np.median(took))


@jit
def _dense(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jit, donate_argnums=0)
def _stream(x: jax.Array) -> jax.Array:
    return x + 1


@jit
def _sparse(block: tuple[jax.Array, jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return BCSR(block, shape=(len(block[2]) - 1, len(x))) @ x
