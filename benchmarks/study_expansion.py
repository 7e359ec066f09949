"""Do components that are added to frozen ones end as low as those of a fresh run with as many?

    python benchmarks/study_expansion.py [--components 128 512] [--examples 1500] [--seeds 2] [--cases own others]
                                         [--out expansion.jsonl]

r components are planted as in ``study_solvers.py``, one to three per example. "Fresh" is the loss of a run with r
components on these examples. "Fit" is their loss by the frozen half of the components alone, "expanded" with r / 2
components that are learned beside it. Two cases of what is frozen:

    own     every second component of the fresh run, so that its loss can be reached again: "excess" over it, less one,
            is what the search for the rest falls short by
    others  components of a run on other examples, which have the first half of the planted ones alone. They are fitted
            to the noise of those other examples, which costs something that no search regains: "from fresh" is the
            loss beside them from the coefficients that the fresh run gave to the rest, and excess that over the lower
            of the two

Every run is appended and not repeated.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np
import scipy.optimize
from factorization_problems import user_size

import npeff_jax as npeff
from npeff_jax import Decomposition, Pefs

SIZE = {"keep": 4096, "support": 8192}
OPTIONS = {"rows": npeff.KernelRows(), "progress": False}


def half_of(fresh: Decomposition) -> Decomposition:
    """Every second component of a run."""
    kept = np.arange(0, fresh.n_components, 2)
    return Decomposition(
        fresh.schema,
        fresh.coefficients[:, kept],
        fresh.pseudo_fishers[kept],
        fresh.parameter_indices,
        fresh.history,
        fresh.stopped,
        fresh.settings,
    )


def from_fresh(frozen: Decomposition, fitted: np.ndarray, fresh: Decomposition, pefs: Pefs, seed: int) -> float:
    """The loss beside frozen components from the coefficients that a fresh run gave to what they are not."""
    W = fresh.coefficients
    alike = (fitted / np.linalg.norm(fitted, axis=0).clip(1e-9)).T @ (W / np.linalg.norm(W, axis=0).clip(1e-9))
    rest = np.setdiff1d(np.arange(W.shape[1]), scipy.optimize.linear_sum_assignment(-alike)[1])
    problem = npeff.Problem.of(pefs, rows=npeff.KernelRows(), n_components=W.shape[1], protected=frozen)
    start = npeff.InitialFactors(coefficients=np.concatenate([fitted, W[:, rest]], axis=1))
    return npeff.decompose(problem, W.shape[1], seed=seed, start=start, progress=False).loss


def study(r: int, n: int, seeds: int, cases: list[str], out: pathlib.Path) -> None:
    """Run what is not in the file yet."""
    done = {(row["components"], row["seed"], row["frozen half"]) for row in read(out)}
    for seed in range(seeds):
        missing = [case for case in cases if (r, seed, case) not in done]
        if not missing:
            continue
        pefs = user_size(n, r=r, examples_seed=2, **SIZE)
        fresh = npeff.decompose(pefs, r, seed=seed, **OPTIONS)
        for case in missing:
            if case == "own":
                frozen = half_of(fresh)
            else:
                first = user_size(n // 2, r=r, among=r // 2, examples_seed=1, **SIZE)
                frozen = npeff.decompose(first, r // 2, seed=seed, **OPTIONS)
            fit = npeff.fit_coefficients(frozen, pefs)
            begin = time.perf_counter()
            expanded = npeff.expand(frozen, pefs, r - frozen.n_components, seed=seed + 100, **OPTIONS)
            seconds = time.perf_counter() - begin
            row = {"components": r, "examples": n, "seed": seed, "frozen half": case, "fresh": fresh.loss}
            row |= {"fit": fit.loss, "expanded": expanded.loss, "seconds": seconds, "stopped": expanded.stopped}
            if case == "others":
                row["from fresh"] = from_fresh(frozen, fit.coefficients, fresh, pefs, seed)
            row |= {"kkt": float(fit.kkt_residual.max()), "jax": jax.__version__}
            row["machine"] = jax.devices()[0].device_kind
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(table([row]).splitlines()[-1], flush=True)


def read(path: pathlib.Path) -> list[dict]:
    """The runs so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict]) -> str:
    """Losses per number of components and case, medians over seeds, as Markdown."""
    lines = ["| r | frozen half | seeds | fit | expanded | fresh | from fresh | excess, median | worst |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for r, case in sorted({(row["components"], row["frozen half"]) for row in rows}):
        own = [row for row in rows if (row["components"], row["frozen half"]) == (r, case)]
        fit, expanded, fresh = (np.array([row[key] for row in own]) for key in ("fit", "expanded", "fresh"))
        reached = np.array([row.get("from fresh", np.nan) for row in own])
        target = fresh if case == "own" else np.minimum(expanded, reached)
        excess = expanded / target - 1
        medians = " | ".join(f"{np.median(x):.4f}" for x in (fit, expanded, fresh))
        other = "" if case == "own" else f"{np.median(reached):.4f}"
        lines.append(
            f"| {r} | {case} | {len(own)} | {medians} | {other} | {np.median(excess):.2%} | {excess.max():.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--components", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=["own", "others"], choices=["own", "others"])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("expansion.jsonl"))
    options = parser.parse_args()
    for r in options.components:
        study(r, options.examples, options.seeds, options.cases, options.out)
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
