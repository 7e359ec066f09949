"""LRM-NPEFF: wall-clock to within 1% of the best loss that either reaches, against the paper's algorithm.

    python benchmarks/bench_lrm.py [--problems digits tracr transformer planted] [--seeds 5] [--out bench_lrm.json]

Ours: the default solver in the row space that `decompose` picks, from the first call in a fresh process: compilation,
Gram matrix and recovery of the pseudo-Fishers included, and shown apart. The paper's: sparse rows, 1,500 steps, at the
best of six learning rates (chosen on a seed of its own; the grid moves until the best is interior) and, for two seeds,
at the default rate; its compilation is left out. Both start from the same vectors.

Where the paper's never arrives, because it is in a worse local minimum, the ratio is a lower bound. So there is a
second one: to within 1% of the loss that the paper's itself ends at.
"""

import argparse
import json
import pathlib
import platform
import time

import jax
import numpy as np
from factorization_problems import PROBLEMS

import npeff_jax as npeff

STEPS = 1500
WARM = npeff.Stopping(max_steps=1, tolerance=-1.0)


def paper(pefs: npeff.Pefs, r: int, rate: float, seed: int, steps: int) -> npeff.Decomposition:
    """The paper's algorithm on sparse rows."""
    stopping = npeff.Stopping(max_steps=steps, tolerance=-1.0)
    return npeff.decompose(
        pefs, r, solver=npeff.Paper(rate), rows=npeff.Sparse(), seed=seed, stopping=stopping, progress=False
    )


def best_rate(pefs: npeff.Pefs, r: int, steps: int = 300) -> tuple[float, dict[float, float]]:
    """The best of six rates, half a decade apart, the best one interior."""
    low = -4.0
    losses: dict[float, float] = {}
    while True:
        grid = [float(10 ** (low + k / 2)) for k in range(6)]
        for rate in grid:
            if rate not in losses:
                found = paper(pefs, r, rate, seed=100, steps=steps)
                good = not found.stopped.startswith("non-finite")
                losses[rate] = float(found.history.loss[-1]) if good else float("inf")
        best = min(grid, key=losses.__getitem__)
        if best == grid[0]:
            low -= 1.0
        elif best == grid[-1]:
            low += 1.0
        else:
            return best, {rate: losses[rate] for rate in grid}


def reached(history: npeff.History, target: float) -> float:
    """Seconds until the loss was at most ``target``; infinite if it never was."""
    below = np.flatnonzero(history.loss <= target)
    return float(history.seconds[below[0]]) if below.size else float("inf")


def compare(problem: str, seeds: int) -> dict:
    """Medians over seeds."""
    made = PROBLEMS[problem]
    pefs, r = made.make(), made.n_components
    start = time.perf_counter()
    npeff.decompose(pefs, r, stopping=WARM, progress=False)  # the first call: compiles
    first = time.perf_counter() - start
    start = time.perf_counter()
    npeff.decompose(pefs, r, stopping=WARM, progress=False)
    setup = time.perf_counter() - start  # rows or Gram, one step, pseudo-Fishers
    compilation = first - setup
    rate, rates = best_rate(pefs, r)
    runs = []
    for seed in range(seeds):
        start = time.perf_counter()
        ours = npeff.decompose(pefs, r, seed=seed, progress=False)
        whole = time.perf_counter() - start
        around = whole - ours.history.seconds[-1]
        tuned = paper(pefs, r, rate, seed, STEPS).history
        default = paper(pefs, r, 1e-3, seed, STEPS).history if seed < 2 else None  # slow: two seeds say enough
        target = 1.01 * min(ours.history.loss[-1], tuned.loss[-1])
        runs.append(
            {
                "our loss": float(ours.history.loss[-1]),
                "paper's loss": float(tuned.loss[-1]),
                "paper's loss, default rate": float(default.loss[-1]) if default else np.nan,
                "our seconds": compilation + around + reached(ours.history, target),
                "of them iterations": reached(ours.history, target),
                "paper's seconds": reached(tuned, target),
                "our seconds to paper's": compilation + around + reached(ours.history, 1.01 * tuned.loss[-1]),
                "paper's seconds to paper's": reached(tuned, 1.01 * tuned.loss[-1]),
                "paper's seconds, all steps": float(tuned.seconds[-1]),
                "paper's seconds, default rate": reached(default, target) if default else np.nan,
            }
        )
    result = {name: float(np.nanmedian([run[name] for run in runs])) for name in runs[0]}
    result |= {"problem": problem, "r": r, "n": pefs.n_examples, "N": pefs.total_rows, "K": pefs.schema.keep}
    result |= {"compilation": compilation, "rate": rate, "rates": rates, "row space": ours.settings["row_space"]}
    # Where the paper's never arrives in its 1,500 steps, their whole time is a lower bound.
    bounds = [min(run["paper's seconds"], run["paper's seconds, all steps"]) / run["our seconds"] for run in runs]
    result |= {"ratio": float(np.median(bounds)), "ratio is a bound": not np.isfinite(result["paper's seconds"])}
    own = [run["paper's seconds to paper's"] / run["our seconds to paper's"] for run in runs]
    result |= {"ratio to paper's": float(np.median(own))}
    result |= {"arrived": sum(bool(np.isfinite(run["paper's seconds"])) for run in runs)}
    worse = [run["our loss"] / run["paper's loss"] - 1 for run in runs]
    return result | {"loss against paper's": float(np.median(worse)), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_lrm.json"))
    options = parser.parse_args()
    columns = ("our loss", "paper's loss", "paper's loss, default rate", "our seconds", "of them iterations")
    columns += ("compilation", "paper's seconds, all steps", "arrived", "ratio", "ratio to paper's")
    print(f"| problem | {' | '.join(columns)} | best rate |\n|---|{'---:|' * (len(columns) + 1)}")
    results = []
    for problem in options.problems:
        result = compare(problem, options.seeds)
        results.append(result)
        bound = "≥ " if result["ratio is a bound"] else ""
        cells = [f"{bound if c == 'ratio' else ''}{result[c]:.3g}" for c in columns]
        print(f"| {problem} | {' | '.join(cells)} | {result['rate']:.2g} |", flush=True)
    machine = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    options.out.write_text(json.dumps(machine | {"problems": results}, indent=1))


if __name__ == "__main__":
    main()
