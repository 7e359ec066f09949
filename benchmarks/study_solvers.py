"""Which solver is the default? Variants over numbers of components, seeds and problems of the size that users have.

    python benchmarks/study_solvers.py [--problems planted files digits tracr ...] [--components 16 64 128] [--seeds 2]
                                       [--variants default ...] [--minutes 60] [--out study.jsonl]
                                       [--cache study-problems]
    python benchmarks/study_solvers.py --table [--out study.jsonl]

Every run is appended to ``--out`` and not repeated, so that the study can be stopped, resumed and widened. PEFs are
computed once into ``--cache``. Problems:

    planted      1,500 examples of three rows, 1,000,000 parameters, K = 8,192: 128 components, one to three per example
    files        800 files, the network that tells their types (the package magika), K = 8,192, four rows
    digits       1,200 images, a convolutional network
    tracr        1,000 sentence pairs, a compiled program
    digits D     diagonal PEFs of 1,200 images, the same network
    planted D    1,500 diagonal PEFs over 300,000 parameters, K = 4,096: 64 components, one to three per example

Low-rank problems are solved in kernel form, on one Gram matrix per problem. "excess" is a run's loss over the best that
any variant and seed reached at that number of components, less one. Seconds are those of the iterations, compilation of
a first run included; a run without exchanges or a paper's run stops by the same rule, at its maximum of steps
otherwise. The paper's algorithm is run at several rates, and its best one counts. "to paper's" is the time to 1.001
times the lowest loss that any run of the paper's algorithm reached there, the median over the seeds that arrived.
Diagonal problems are also given to scikit-learn's coordinate descent, from random and from NNDSVD starts.
"""

import argparse
import json
import pathlib
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
from factorization_problems import REAL, user_size, user_size_diagonal

import npeff_jax as npeff
from npeff_jax.pefs import FisherKind


def files() -> npeff.Pefs:
    """PEFs of the file-type network, which was trained by others."""
    preset = npeff.tasks.presets.FILES
    task = npeff.tasks.file_types(n_files=1200, heldout_share=1 / 3)
    return npeff.compute_pefs(task.model, task.decomposed.examples, preset.representation, keep=preset.keep)


def diagonal_digits() -> npeff.Pefs:
    """Diagonal PEFs of 1,200 images."""
    from bench_nmf import digits  # it imports PyTorch, which other problems do not need

    return digits(1200, 1024)


PROBLEMS: dict[str, Callable[[], npeff.Pefs]] = {
    "planted": lambda: user_size(1500),
    "files": files,
    "digits": REAL["digits"].make,
    "tracr": REAL["tracr"].make,
    "digits D": diagonal_digits,
    "planted D": lambda: user_size_diagonal(1500),
}
DIAGONAL = ("digits D", "planted D")

PAPER = npeff.Stopping(max_steps=600)
PAPER_LONG = npeff.Stopping(max_steps=3000, tolerance=-1)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 0.03)
LOW_RANK_VARIANTS: dict[str, dict] = {
    "default": {},
    "no exchanges": {"solver": npeff.DampedALS(exchanges=0)},
    "no warm-up": {"solver": npeff.DampedALS(warm_up=0)},
    "neither": {"solver": npeff.DampedALS(exchanges=0, warm_up=0)},
    "four starts": {"restarts": 4},
}
for rate in RATES:
    paper = npeff.GradientDescent(learning_rate=rate)
    LOW_RANK_VARIANTS[f"paper, rate {rate:g}"] = {"solver": paper, "stopping": PAPER}
    LOW_RANK_VARIANTS[f"paper, rate {rate:g}, 3,000 steps"] = {"solver": paper, "stopping": PAPER_LONG}
"""The default, what it consists of, and the paper's algorithm."""

DIAGONAL_VARIANTS: dict[str, dict] = {
    "default": {},
    "no exchanges": {"solver": npeff.HALS(exchanges=0)},
    "two sweeps": {"solver": npeff.HALS(sweeps=2)},
    "eight sweeps": {"solver": npeff.HALS(sweeps=8)},
    "paper": {"solver": npeff.Multiplicative(), "stopping": npeff.Stopping(max_steps=3000)},
    "four starts": {"restarts": 4},
    "scikit-learn cd": {"init": "random"},
    "scikit-learn cd, NNDSVD": {"init": "nndsvd"},
    "scikit-learn cd, NNDSVD filled": {"init": "nndsvdar"},
}
VARIANTS = LOW_RANK_VARIANTS | DIAGONAL_VARIANTS


def pefs_of(name: str, cache: pathlib.Path) -> npeff.Pefs:
    """The PEFs of a problem: from the cache, where they may be the work of minutes."""
    path = cache / f"{name}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            arrays = {key: kept[key] for key in kept.files}
        m = int(arrays.pop("m"))
        kind = FisherKind.DIAGONAL if name in DIAGONAL else FisherKind.LOW_RANK
        return npeff.Pefs.from_arrays(**arrays, parameters=m, kind=kind, normalization=npeff.Normalization.NONE)
    pefs = PROBLEMS[name]()
    cache.mkdir(parents=True, exist_ok=True)
    arrays = {"values": pefs.values[:], "indices": pefs.indices[:], "rows": pefs.rows[:]}
    np.savez(path, m=pefs.schema.layout.size, **arrays)
    return pefs_of(name, cache)


def ours(problem: npeff.Problem, pefs: npeff.Pefs, r: int, seed: int, options: dict) -> dict:
    """Run `decompose`: what is recorded of it, with a point per window of its curve."""
    whole = problem if "restarts" not in options else pefs  # a part is taken of PEFs
    rows = {"rows": npeff.KernelRows()} if whole is pefs and problem.kind is FisherKind.LOW_RANK else {}
    found = npeff.decompose(whole, r, seed=seed, progress=False, **rows, **options)
    history = found.history
    points = range(9, len(history.loss), 10)
    return {
        "loss": float(min(history.loss, default=np.inf)),  # overflowed at once: a rate too large
        "steps": len(history.loss),
        "seconds": float(max(history.seconds, default=0.0)),
        "curve": [[round(float(history.seconds[k]), 4), float(history.loss[k])] for k in points],
        "stopped": found.stopped,
    }


def scikit_learn(pefs: npeff.Pefs, r: int, seed: int, init: str, iterations: int) -> dict:
    """Run scikit-learn's coordinate descent."""
    from bench_nmf import as_given, loss_of
    from sklearn.decomposition import NMF

    X = pefs.to_scipy()
    begin = time.perf_counter()
    model = NMF(r, init=init, solver="cd", max_iter=iterations, tol=0, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "maximum number of iterations reached"
        W = model.fit_transform(as_given(X))
    took = time.perf_counter() - begin
    return {"loss": float(loss_of(X, W, model.components_)), "steps": iterations, "seconds": took, "stopped": ""}


def study(options: argparse.Namespace) -> None:
    """Run what is not in the file yet; nothing new is begun after ``--minutes``."""
    end = time.monotonic() + 60 * options.minutes
    done = {(row["problem"], row["components"], row["variant"], row["seed"]) for row in read(options.out)}
    for name in options.problems:
        of_kind = DIAGONAL_VARIANTS if name in DIAGONAL else LOW_RANK_VARIANTS
        problem = None
        for r in options.components:
            for variant in options.variants or of_kind:
                for seed in range(options.seeds):
                    if (name, r, variant, seed) in done or variant not in of_kind:
                        continue
                    if time.monotonic() > end:
                        print(f"{options.minutes:g} minutes are over; the same command goes on from here")
                        return
                    if problem is None:
                        pefs = pefs_of(name, options.cache)
                        problem = npeff.Problem.of(pefs, rows=None if name in DIAGONAL else npeff.KernelRows())
                    if r > problem.n_examples:
                        continue
                    settings = of_kind[variant]
                    if "init" in settings:
                        row = scikit_learn(pefs, r, seed, settings["init"], options.iterations)
                    else:
                        row = ours(problem, pefs, r, seed, settings)
                    row = {"problem": name, "components": r, "variant": variant, "seed": seed} | row
                    row |= {"rows": int(problem.rows.n_rows), "jax": jax.__version__}
                    row["machine"] = jax.devices()[0].device_kind
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{name} r={r} {variant} seed {seed}: {row['loss']:.5f}, {row['seconds']:.1f} s", flush=True)


def read(path: pathlib.Path) -> list[dict]:
    """The runs so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reached(row: dict, target: float) -> float:
    """Return the seconds after which a run had come to ``target``; infinite where it had not, or has no curve."""
    return next((seconds for seconds, loss in row.get("curve", []) if loss <= target), float("inf"))


def table(rows: list[dict]) -> str:
    """Losses and excess over the best known, per problem, number of components and variant, as Markdown."""
    lines = ["| problem | r | variant | seeds | loss, median | excess, median | worst | steps | s | to paper's, s |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    names = list(PROBLEMS)
    for name, r in sorted(
        {(row["problem"], row["components"]) for row in rows}, key=lambda x: (names.index(x[0]), x[1])
    ):
        here = [row for row in rows if (row["problem"], row["components"]) == (name, r)]
        best = min(row["loss"] for row in here)
        paper = min((row["loss"] for row in here if row["variant"].startswith("paper")), default=-np.inf)
        for variant in (variant for variant in VARIANTS if any(row["variant"] == variant for row in here)):
            own = [row for row in here if row["variant"] == variant]
            loss = np.array([row["loss"] for row in own])
            if not np.isfinite(loss).any():
                lines.append(f"| {name} | {r} | {variant} | {len(own)} | overflows | | | | | |")
                continue
            steps, seconds = (np.median([row[key] for row in own]) for key in ("steps", "seconds"))
            arrived = [at for at in (reached(row, 1.001 * paper) for row in own) if np.isfinite(at)]
            to_paper = f"{np.median(arrived):.2f} ({len(arrived)} of {len(own)})" if arrived else ""
            excess = loss / best - 1
            lines.append(
                f"| {name} | {r} | {variant} | {len(own)} | {np.median(loss):.4g} | {np.median(excess):.2%} | "
                f"{excess.max():.2%} | {steps:.0f} | {seconds:.1f} | {to_paper} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--components", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="by default all of the problem's kind")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--iterations", type=int, default=1000, help="of scikit-learn")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("study.jsonl"))
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("study-problems"))
    parser.add_argument("--table", action="store_true", help="only print the table of what was run")
    options = parser.parse_args()
    if not options.table:
        study(options)
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
