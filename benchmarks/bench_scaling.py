"""Time and memory of one iteration against n, K, r and m', for each row space.

    python benchmarks/bench_scaling.py [--out bench_scaling.json]

Random rows of K non-zeros an example over three rows; every axis is varied around one centre. Time is the median of
runs of five steps. Memory is what XLA reports for the compiled iteration: the rows and vectors that it is given, its
temporaries and its results. The last table has the exponents: the slope of log time and log memory between the two
largest values of each axis, 1 where a cost is linear and 0 where it is flat.
"""

import argparse
import json
import math
import pathlib
import platform
import time

import jax
import numpy as np
from factorization_problems import from_rows

import npeff_jax as npeff
from npeff_jax.factorization import _loop
from npeff_jax.factorization._compile import compiler_options
from npeff_jax.factorization._decompose import algorithm_of, starting_point
from npeff_jax.factorization._source import source_of_pefs
from npeff_jax.factorization._stack import stack
from npeff_jax.pefs import FisherKind

CENTRE = {"n": 600, "K": 1024, "r": 32, "m": 20_000}
AXES = {"n": (300, 600, 1200), "K": (512, 1024, 2048), "r": (16, 32, 64), "m": (5_000, 10_000, 20_000)}
SPACES = (npeff.Dense(), npeff.Sparse(), npeff.Kernel())
C = 3
STEPS, RUNS = 5, 9


def random_pefs(n: int, K: int, m: int, seed: int = 0) -> npeff.Pefs:
    """K entries an example at random places of three rows."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, C * m), np.float32)
    for row in rows:
        row[rng.choice(C * m, K, replace=False)] = rng.normal(size=K) / np.sqrt(K)
    return from_rows(rows.reshape(n, C, m), FisherKind.LOW_RANK, K)


def measure(space: npeff.Dense | npeff.Sparse | npeff.Kernel, pefs: npeff.Pefs, r: int) -> dict:
    """Milliseconds a step, and megabytes."""
    solver = npeff.DampedALS()
    source = source_of_pefs(pefs.schema, stack(pefs), r, None, space, npeff.Products.FLOAT32)
    W, G = starting_point(source, r, 0, solver, npeff.Start())
    static = {"algorithm": algorithm_of(solver), "window": STEPS, "n_frozen": 0, "move_W": True}
    steps = jax.jit(_loop._steps.__wrapped__, static_argnames=tuple(static))
    arguments = (source.rows, source.owner, W, G, G, -1, np.float32(source.squared_norm), STEPS)
    compiled = steps.lower(*arguments, **static).compile(compiler_options())
    took = []
    for _ in range(RUNS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        took.append(time.perf_counter() - start)
    size = compiled.memory_analysis()
    total = size.argument_size_in_bytes + size.temp_size_in_bytes + size.output_size_in_bytes
    total -= G.nbytes  # given twice, there once
    return {"space": type(space).__name__, "ms": 1e3 * float(np.median(took)) / STEPS, "MB": total / 1e6}


def exponent(points: list[dict], axis: str, what: str) -> float:
    """The slope of log ``what`` over log ``axis`` between the two largest values."""
    low, high = points[-2:]
    return math.log(high[what] / low[what]) / math.log(high[axis] / low[axis])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_scaling.json"))
    options = parser.parse_args()
    rows, names = [], [type(space).__name__ for space in SPACES]
    print("| varied | value | " + " | ".join(f"{name} ms | {name} MB" for name in names) + " |")
    print("|---|---:|" + "---:|" * (2 * len(names)))
    for axis, values in AXES.items():
        for value in values:
            at = CENTRE | {axis: value}
            pefs = random_pefs(at["n"], at["K"], at["m"])
            found = [measure(space, pefs, at["r"]) for space in SPACES]
            rows += [{"axis": axis, **at, **entry} for entry in found]
            cells = " | ".join(f"{entry['ms']:.3g} | {entry['MB']:.3g}" for entry in found)
            print(f"| {axis} | {value:,} | {cells} |", flush=True)
    print("\n| exponent in | " + " | ".join(f"{name} time | {name} memory" for name in names) + " |")
    print("|---|" + "---:|" * (2 * len(names)))
    for axis in AXES:
        cells = []
        for name in names:
            points = [row for row in rows if row["axis"] == axis and row["space"] == name]
            cells += [f"{exponent(points, axis, what):.2f}" for what in ("ms", "MB")]
        print(f"| {axis} | " + " | ".join(cells) + " |")
    machine = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    options.out.write_text(json.dumps(machine | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
