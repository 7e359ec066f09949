"""Which solver is the default? Variants over seeds and problems: loss after equal steps, spread, time a step.

    python benchmarks/study_solvers.py [--problems digits tracr transformer planted] [--seeds 10] [--out study.json]

Losses are fractions of ‖F‖². "excess" is the median over seeds of the loss over the best that any variant reached on
that problem from any seed, less one.
"""

import argparse
import json
import pathlib
import platform

import jax
import numpy as np
from factorization_problems import PROBLEMS

import npeff_jax as npeff

VARIANTS = {
    "damping 1e-3": npeff.DampedALS(damping=1e-3),
    "damping 1e-2": npeff.DampedALS(damping=1e-2),
    "damping 1e-1": npeff.DampedALS(damping=1e-1),
    "damping 1": npeff.DampedALS(damping=1.0),
    "gradient (damping 1e6)": npeff.DampedALS(damping=1e6),
    "3 sweeps": npeff.DampedALS(sweeps=3),
    "10 sweeps": npeff.DampedALS(sweeps=10),
    "30 sweeps": npeff.DampedALS(sweeps=30),
}


def study(problem: str, seeds: int, steps: int) -> list[dict]:
    """One row a variant."""
    made = PROBLEMS[problem]
    pefs = made.make()
    stopping = npeff.Stopping(max_steps=steps, tolerance=-1.0)
    rows = []
    for name, solver in VARIANTS.items():
        curves, seconds = [], []
        for seed in range(seeds):
            found = npeff.decompose(
                pefs, made.n_components, solver=solver, seed=seed, stopping=stopping, progress=False
            )
            curves.append(found.history.loss)
            took = found.history.seconds
            seconds.append((took[-1] - took[stopping.window - 1]) / (len(took) - stopping.window))
        losses = np.array(curves)
        rows.append(
            {
                "problem": problem,
                "variant": name,
                "after 20": float(np.median(losses[:, 19])),
                "after 50": float(np.median(losses[:, 49])),
                "final": float(np.median(losses[:, -1])),
                "best": float(losses[:, -1].min()),
                "worst": float(losses[:, -1].max()),
                "ms a step": 1e3 * float(np.median(seconds)),
            }
        )
    best = min(row["best"] for row in rows)
    return [row | {"excess": row["final"] / best - 1} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("study_solvers.json"))
    options = parser.parse_args()
    rows = []
    columns = ("after 20", "after 50", "final", "best", "worst", "excess", "ms a step")
    print(f"| problem | variant | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for problem in options.problems:
        for row in study(problem, options.seeds, options.steps):
            rows.append(row)
            print(f"| {problem} | {row['variant']} | {' | '.join(f'{row[c]:.4g}' for c in columns)} |", flush=True)
    machine = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    options.out.write_text(json.dumps(machine | {"seeds": options.seeds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
