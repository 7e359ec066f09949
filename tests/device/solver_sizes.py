"""Solver steps at the largest size that the plan says fits an H100, compiled for it and read.

python tests/device/solver_sizes.py    # a line of JSON per step, some ten seconds each
"""

import json
import math
import re
import sys
import time

import jax
import numpy as np
from programs import COLLECTIVES, MEMORY, imprecise_dots, mesh_of, spec

import npeff_jax as npeff
from npeff_jax._machine import DEVICE_SHARE
from npeff_jax._sharding import SHARDS, factorization_mesh
from npeff_jax.factorization import Factors
from npeff_jax.factorization._driver import Limits, _advance
from npeff_jax.factorization.row_spaces import BlockedRows, DenseSpace, KernelSpace, SparseSpace, _dense, _sparse
from npeff_jax.pefs import FisherKind

ROWS = {"kernel": npeff.KernelRows(), "dense": npeff.DenseRows(), "sparse": npeff.SparseRows()}

N_ROWS, PER_ROW = 4_000, 4_096
"""Rows of the dense and the sparse problems, and entries of a row where it is sparse: what is found is m'."""

CASES = {
    "kernel": (("kernel", npeff.DampedALS(), 512), ("kernel", npeff.GradientDescent(), 512)),
    "dense": (("dense", npeff.DampedALS(), 64), ("dense", npeff.HALS(), 64), ("dense", npeff.Multiplicative(), 64)),
    "sparse": (("sparse", npeff.DampedALS(), 64), ("sparse", npeff.HALS(), 64)),
}


def blocked(N, m, nnz):
    """Rows without a number in them: what the plan looks at."""
    return BlockedRows((N, m), np.broadcast_to(np.int64(max(1, nnz // m)), (m,)), lambda: iter(()))


def planned(form, size, r, mesh):
    """The bytes that the plan says, of N rows for the kernel and of m' parameters else."""
    A = blocked(size, 1_000_000, 4_096 * size) if form == "kernel" else blocked(N_ROWS, size, N_ROWS * PER_ROW)
    return ROWS[form].cost(A, r, mesh).memory


def largest(form, r, devices):
    """The largest size that fits by the plan, a multiple of what the mesh and two rows per example ask for."""
    mesh = factorization_mesh(npeff.make_mesh(jax.devices("cpu")[:devices]))  # it plans memory as for accelerators
    limit, low, high = DEVICE_SHARE * MEMORY["h100"] * devices, 1, 1 << 28
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if planned(form, 16 * middle, r, mesh) <= limit else (low, middle)
    return 16 * low, planned(form, 16 * low, r, mesh)


def space_of(form, size, r, mesh):
    """A row space of shapes, and the shape of its vectors."""
    if form == "kernel":
        return KernelSpace(spec(mesh, (size, size), SHARDS, None), mesh, size, None), spec(mesh, (r, size))
    if form == "dense":
        width = _dense.padded_width(size, mesh)
        rows = DenseSpace(spec(mesh, (N_ROWS, width), None, SHARDS), mesh, size)
        return rows, spec(mesh, (r, width), None, SHARDS)
    n_blocks = mesh.size * max(1, round(size * r / mesh.size / _sparse.BLOCK_ENTRIES))
    width, length = -(-size // n_blocks), -(-N_ROWS * PER_ROW // n_blocks)

    def blocks(n_rows):
        entries = (spec(mesh, (n_blocks, length), SHARDS, dtype=dtype) for dtype in ("float32", "int32"))
        return (*entries, spec(mesh, (n_blocks, n_rows + 1), SHARDS, dtype="int32"))

    rows = SparseSpace(blocks(N_ROWS), blocks(width), mesh, N_ROWS, None)
    return rows, spec(mesh, (r, width * n_blocks), None, SHARDS)


def figures(form, solver, r, devices):
    """What a window of steps at the largest size is once compiled, as a row of a table."""
    size, plan = largest(form, r, devices)
    mesh = mesh_of("h100", devices)
    rows, G = space_of(form, size, r, mesh)
    N = size if form == "kernel" else N_ROWS
    n = N // 2 if solver.kind is FisherKind.LOW_RANK else N
    members = (spec(mesh, (n, 2), dtype="int32"),) if n < N else ()
    problem = npeff.Problem(rows, spec(mesh, (N,), dtype="int32"), members, spec(mesh, ()), solver.kind, n)
    start = Factors(spec(mesh, (n, r)), G, spec(mesh, (), dtype="int32"))

    limits = Limits(spec(mesh, (), dtype="int32"), spec(mesh, ()), spec(mesh, ()))

    def window(problem, start, limits):
        return _advance.__wrapped__(problem, start, None, limits, solver=solver, window=10, fresh=True)

    began = time.perf_counter()
    compiled = jax.jit(window).lower(problem, start, limits).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    lines = re.findall(rf"= (.*?) (?:{'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    sizes = [math.prod(map(int, s.split(","))) for line in lines for s in re.findall(r"\w\d+\[([\d,]+)\]", line)]
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    taken += memory.output_size_in_bytes - memory.alias_size_in_bytes
    taken += 4 * math.prod(G.sharding.shard_shape(G.shape))  # of a rejected trial: held until the next window is done
    return {
        "rows": form,
        "solver": type(solver).__name__,
        "devices": devices,
        "N": N,
        "parameters": None if form == "kernel" else size,
        "r": r,
        "GB per device": taken / 1e9,
        "over plan": taken * devices / plan,
        "largest collective": max(sizes, default=0),
        "over N r + 2 r^2": max(sizes, default=0) / (N * r + 2 * r * r),
        "products without precision": len(imprecise_dots(text)),
        "seconds to compile": time.perf_counter() - began,
    }


if __name__ == "__main__":
    for form in sys.argv[1:] or CASES:
        for case in CASES[form]:
            for devices in (1, 8):
                print(json.dumps(figures(*case, devices)), flush=True)
