"""Which solver is the default? Variants over numbers of components, seeds and problems of the size that users have.

    python benchmarks/study_solvers.py [--problems planted files digits tracr] [--components 16 64 128] [--seeds 2]
                                       [--variants default ...] [--out study.jsonl] [--cache study-problems]
    python benchmarks/study_solvers.py --table [--out study.jsonl]

Every run is appended to ``--out`` and not repeated, so that the study can be stopped, resumed and widened. PEFs are
computed once into ``--cache``. Problems:

    planted      1,500 examples of three rows, 1,000,000 parameters, K = 8,192: 128 components, one to three per example
    files        800 files, the network that tells their types (the package magika), K = 8,192, four rows
    digits       1,200 images, a convolutional network
    tracr        1,000 sentence pairs, a compiled program

All are solved in kernel form, on one Gram matrix per problem. "excess" is a run's loss over the best that any variant
and seed reached at that number of components, less one. Seconds are those of the iterations, compilation of a first run
included; a run without exchanges or a paper's run stops by the same rule, at its maximum of steps otherwise. The
paper's algorithm is run at several rates, and its best one counts.
"""

import argparse
import json
import pathlib
import platform
from collections.abc import Callable

import jax
import numpy as np
from factorization_problems import REAL, user_size

import npeff_jax as npeff


def files() -> npeff.Pefs:
    """PEFs of the file-type network, which was trained by others."""
    preset = npeff.tasks.presets.FILES
    task = npeff.tasks.file_types(n_files=1200, heldout_share=1 / 3)
    return npeff.compute_pefs(task.model, task.decomposed.examples, preset.representation, keep=preset.keep)


PROBLEMS: dict[str, Callable[[], npeff.Pefs]] = {
    "planted": lambda: user_size(1500),
    "files": files,
    "digits": REAL["digits"].make,
    "tracr": REAL["tracr"].make,
}

PAPER = npeff.Stopping(max_steps=600)
VARIANTS: dict[str, dict] = {
    "default": {},
    "no exchanges": {"solver": npeff.DampedALS(exchanges=0)},
    "no warm-up": {"solver": npeff.DampedALS(warm_up=0)},
    "neither": {"solver": npeff.DampedALS(exchanges=0, warm_up=0)},
    **{
        f"paper, rate {rate:g}": {"solver": npeff.GradientDescent(learning_rate=rate), "stopping": PAPER}
        for rate in (3e-4, 1e-3, 3e-3, 1e-2, 0.03)
    },
}
"""The default, what it consists of, and the paper's algorithm."""


def pefs_of(name: str, cache: pathlib.Path) -> npeff.Pefs:
    """The PEFs of a problem: from the cache, where they may be the work of minutes."""
    path = cache / f"{name}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            arrays = {key: kept[key] for key in kept.files}
        m = int(arrays.pop("m"))
        return npeff.Pefs.from_arrays(**arrays, parameters=m, normalization=npeff.Normalization.NONE)
    pefs = PROBLEMS[name]()
    cache.mkdir(parents=True, exist_ok=True)
    arrays = {"values": pefs.values[:], "indices": pefs.indices[:], "rows": pefs.rows[:]}
    np.savez(path, m=pefs.schema.layout.size, **arrays)
    return pefs_of(name, cache)


def study(options: argparse.Namespace) -> None:
    """Run what is not in the file yet."""
    rows = read(options.out)
    done = {(row["problem"], row["components"], row["variant"], row["seed"]) for row in rows}
    for name in options.problems:
        problem = None
        for r in options.components:
            for variant in options.variants:
                for seed in range(options.seeds):
                    if (name, r, variant, seed) in done:
                        continue
                    if problem is None:
                        problem = npeff.Problem.of(pefs_of(name, options.cache), rows=npeff.KernelRows())
                    if r > problem.n_examples:
                        continue
                    found = npeff.decompose(problem, r, seed=seed, progress=False, **VARIANTS[variant])
                    row = {
                        "problem": name,
                        "components": r,
                        "variant": variant,
                        "seed": seed,
                        "loss": float(min(found.history.loss, default=np.inf)),  # overflowed at once: a rate too large
                        "steps": len(found.history.loss),
                        "seconds": float(max(found.history.seconds, default=0.0)),
                        "stopped": found.stopped,
                        "rows": int(problem.rows.n_rows),
                        "jax": jax.__version__,
                        "machine": platform.machine(),
                    }
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{name} r={r} {variant} seed {seed}: {row['loss']:.4f}, {row['seconds']:.1f} s", flush=True)


def read(path: pathlib.Path) -> list[dict]:
    """The runs so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict]) -> str:
    """Losses and excess over the best known, per problem, number of components and variant, as Markdown."""
    lines = ["| problem | r | variant | seeds | loss, median | excess, median | worst | steps | s |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for name, r in dict.fromkeys((row["problem"], row["components"]) for row in rows):
        here = [row for row in rows if (row["problem"], row["components"]) == (name, r)]
        best = min(row["loss"] for row in here)
        for variant in (variant for variant in VARIANTS if any(row["variant"] == variant for row in here)):
            own = [row for row in here if row["variant"] == variant]
            loss = np.array([row["loss"] for row in own])
            steps, seconds = (np.median([row[key] for row in own]) for key in ("steps", "seconds"))
            excess = loss / best - 1
            lines.append(
                f"| {name} | {r} | {variant} | {len(own)} | {np.median(loss):.4f} | {np.median(excess):.2%} | "
                f"{excess.max():.2%} | {steps:.0f} | {seconds:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--components", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("study.jsonl"))
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("study-problems"))
    parser.add_argument("--table", action="store_true", help="only print the table of what was run")
    options = parser.parse_args()
    if not options.table:
        study(options)
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
