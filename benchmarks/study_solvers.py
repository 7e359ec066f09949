"""Which solver is the default? Variants over seeds and problems: how low, how reliably, in how many steps.

    python benchmarks/study_solvers.py [--problems digits tracr transformer planted] [--seeds 10] [--out study.json]

Every run stops by the default rule, but for what a variant changes. Losses are fractions of ‖F‖². "excess" is the mean
over seeds of the loss over the best that any variant reached on that problem from any seed, less one: what a user who
runs once loses; "error" is its standard error. The last table averages over problems. The default is the least excess;
of those that the error does not tell apart, the one that takes fewest steps, and then fewest sweeps.
"""

import argparse
import dataclasses
import json
import pathlib
import platform

import jax
import numpy as np
from factorization_problems import STUDY

import npeff_jax as npeff

DEFAULT = npeff.DampedALS()


def changed(**fields: float) -> dict:
    """The default solver with other fields."""
    return {"solver": dataclasses.replace(DEFAULT, **fields)}


VARIANTS: dict[str, dict] = {
    "default": {},
    **{f"damping {x:g}": changed(damping=x) for x in (1e-3, 1e-1, 1.0)},
    "scaled gradient": changed(damping=1e6),
    **{f"{k} sweeps": changed(sweeps=k) for k in (3, 10)},
    **{f"{k} exchanges": changed(exchanges=k) for k in (0, 3, 6, 12)},
    "window of 5": {"stopping": npeff.Stopping(window=5)},
    "window of 20": {"stopping": npeff.Stopping(window=20)},
    "window of 20, 6 exchanges": {"stopping": npeff.Stopping(window=20)} | changed(exchanges=6),
}
"""The default, and what differs from it; the last was the default before."""


def study(problem: str, seeds: int) -> list[dict]:
    """One row a variant."""
    made = STUDY[problem]
    pefs = made.make()
    rows, finals = [], {}
    for name, variant in VARIANTS.items():
        runs = [
            npeff.decompose(pefs, made.n_components, seed=seed, **variant, progress=False).history
            for seed in range(seeds)
        ]
        finals[name] = losses = np.array([run.loss[-1] for run in runs])
        rows.append(
            {
                "problem": problem,
                "variant": name,
                "after 20": float(np.median([run.loss[19] for run in runs])),
                "after 60": float(np.median([run.loss[min(59, len(run.loss) - 1)] for run in runs])),
                "median": float(np.median(losses)),
                "best": float(losses.min()),
                "worst": float(losses.max()),
                "steps": float(np.median([len(run.loss) for run in runs])),
            }
        )
    best = min(row["best"] for row in rows)
    for row in rows:
        excess = finals[row["variant"]] / best - 1
        row |= {"excess": float(excess.mean()), "error": float(excess.std(ddof=1) / seeds**0.5)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(STUDY))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("study.json"))
    options = parser.parse_args()
    rows = []
    columns = ("after 20", "after 60", "median", "best", "worst", "steps", "excess", "error")
    print(f"| problem | variant | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for problem in options.problems:
        for row in study(problem, options.seeds):
            rows.append(row)
            print(f"| {problem} | {row['variant']} | {' | '.join(f'{row[c]:.4g}' for c in columns)} |", flush=True)
    print("\n| variant | mean excess | error | mean steps |\n|---|---:|---:|---:|")
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        excess, steps = (np.mean([row[key] for row in own]) for key in ("excess", "steps"))
        error = sum(row["error"] ** 2 for row in own) ** 0.5 / len(own)
        print(f"| {name} | {excess:.4f} | {error:.4f} | {steps:.0f} |")
    machine = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    options.out.write_text(json.dumps(machine | {"seeds": options.seeds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
