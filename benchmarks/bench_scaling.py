"""Time and memory of one iteration against n, K, r and m', for each row space.

    python benchmarks/bench_scaling.py [--out bench_scaling.json]

Random rows of K non-zeros an example over three rows; every axis is varied around one centre. Medians of five windows.
Linear where it should be, flat in m' for the kernel. Memory is that of the rows and of four bundles of vectors.
"""

import argparse
import json
import pathlib
import platform

import jax
import numpy as np
from factorization_problems import from_rows

import npeff_jax as npeff
from npeff_jax.pefs import Kind

CENTRE = {"n": 400, "K": 512, "r": 32, "m": 20_000}
AXES = {"n": (200, 400, 800), "K": (256, 512, 1024), "r": (16, 32, 64), "m": (5_000, 10_000, 20_000, 40_000)}
SPACES = (npeff.Dense(), npeff.Sparse(), npeff.Kernel())
C = 3


def random_pefs(n: int, K: int, m: int, seed: int = 0) -> npeff.Pefs:
    """K entries an example at random places of three rows."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, C * m), np.float32)
    np.put_along_axis(rows, np.argpartition(rng.random((n, C * m), np.float32), K, axis=1)[:, :K], 1.0, axis=1)
    rows *= rng.normal(size=rows.shape).astype(np.float32) / np.sqrt(K)
    return from_rows(rows.reshape(n, C, m), Kind.LOW_RANK, K)


def measure(space, n: int, K: int, r: int, m: int, pefs: npeff.Pefs) -> dict:
    """Milliseconds a step, and megabytes."""
    stopping = npeff.Stopping(max_steps=30, tolerance=-1.0, window=5)
    found = npeff.decompose(pefs, r, rows=space, solver=npeff.DampedALS(exchanges=0), stopping=stopping, progress=False)
    windows = np.diff(found.history.seconds[4::5]) / 5
    N, kept = C * n, len(found.parameter_indices)
    size = {"Dense": N * kept + 4 * r * kept, "Sparse": 4 * n * K + 4 * r * kept, "Kernel": N * N + 4 * r * N}
    name = type(space).__name__
    return {"space": name, "ms": 1e3 * float(np.median(windows)), "MB": 4 * size[name] / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_scaling.json"))
    options = parser.parse_args()
    rows = []
    names = [type(space).__name__ for space in SPACES]
    print("| varied | value | " + " | ".join(f"{name} ms | {name} MB" for name in names) + " |")
    print("|---|---:|" + "---:|" * (2 * len(names)))
    for axis, values in AXES.items():
        for value in values:
            at = CENTRE | {axis: value}
            pefs = random_pefs(at["n"], at["K"], at["m"])
            found = [measure(space, **at, pefs=pefs) for space in SPACES]
            rows += [{"axis": axis, **at, **entry} for entry in found]
            print(
                f"| {axis} | {value} | " + " | ".join(f"{e['ms']:.3g} | {e['MB']:.3g}" for e in found) + " |",
                flush=True,
            )
    machine = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    options.out.write_text(json.dumps(machine | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
