"""Factorization at the sizes people have: phases, memory, what the plan predicted, and whole-call times to two targets.

    python benchmarks/bench_size.py [--n 1500 3000] [--m 1000000] [--r 128] [--kind low_rank|diagonal] [--fast|--huge]

Planted problems (`user_size`, three rows per example). Every run is a process of its own, which reads the PEFs from
disk, compiles, iterates, forms the pseudo-Fishers and writes them; each of these phases is timed, in seconds on the
clock and in seconds of CPU (on a machine that others use too, the latter say more), with the peak of resident memory.

For each size, first all row spaces with ten steps each, against what their `cost` predicts. Then whole calls: ours as
users call it; the paper's algorithm in sparse rows; the same in the row space that `decompose` chooses. The paper's
rate is the best of `--rates` (by its loss after as many steps as all get). Two targets: 1.01 times the paper's own best
loss, and 1.01 times the best loss known here. What did not arrive is written "> t".

`--fast` is a small problem for the test suite. `--huge` is N = 30,000 rows, m = 1,000,000, r = 128 by ours alone, from
disk to disk: stop it when you like, it reports each phase as it ends.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import factorization_problems as problems
import jax
import numpy as np

import npeff_jax as npeff
from npeff_jax._sharding import factorization_mesh
from npeff_jax.factorization._problem import Problem
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization.row_spaces._choose import costs, needed_memory
from npeff_jax.factorization.row_spaces._rates import measure, rates
from npeff_jax.pefs import FisherKind

FACTOR = 1.01
ROWS = {"dense": npeff.DenseRows(), "sparse": npeff.SparseRows(), "kernel": npeff.KernelRows(), "chosen": None}
ARRAYS = ("values", "indices", "rows")


class Phases:
    """Seconds on the clock and of CPU, and the peak of resident memory, at the end of each phase."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end(self, name: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.found[name] = {"wall": wall - self._wall, "cpu": cpu - self._cpu, "peak": peak}
        print(
            f"  {name}: {wall - self._wall:.2f} s, CPU {cpu - self._cpu:.2f} s, peak {peak / 1e9:.2f} GB",
            file=sys.stderr,
        )
        self._wall, self._cpu = wall, cpu


def write_problem(path: pathlib.Path, pefs: npeff.Pefs) -> None:
    """Arrays as a run reads them, so that nothing but that run's own copies is in its memory."""
    for name in ARRAYS:
        np.save(path / f"{name}.npy", getattr(pefs, name))
    (path / "problem.json").write_text(
        json.dumps([pefs.schema.kind.value, int(pefs.n_rows[0]), pefs.schema.layout.size])
    )


def read_problem(path: pathlib.Path) -> npeff.Pefs:
    """PEFs on disk."""
    kind, c, m = json.loads((path / "problem.json").read_text())
    return problems.from_entries(
        *(np.load(path / f"{name}.npy", mmap_mode="r") for name in ARRAYS), FisherKind(kind), c, m
    )


def solver_of(name: str, kind: FisherKind, rate: float) -> Any:
    """A solver; None is the default one."""
    if name == "ours":
        return None
    if name == "steps":
        return npeff.DampedALS(exchanges=0) if kind is FisherKind.LOW_RANK else npeff.HALS(exchanges=0)
    return npeff.GradientDescent(learning_rate=rate) if kind is FisherKind.LOW_RANK else npeff.Multiplicative()


def one_run(path: pathlib.Path, r: int, space: str, name: str, rate: float, steps: int) -> dict[str, Any]:
    """What a process of its own does: one run, its phases, its losses, and the plan beside."""
    pefs, mesh, phases = read_problem(path), factorization_mesh(None), Phases()
    kind = pefs.schema.kind
    stacked = stack(pefs)
    phases.end("reading")
    measure(mesh)
    predicted = {
        label: {"once": cost.once, "step": cost.step, "memory": needed_memory(cost, list(mesh.devices.flat))}
        for label, cost in zip(("dense", "sparse", "kernel"), costs(stacked.A, r, kind, mesh).values(), strict=False)
    }
    shape = {"N": stacked.A.shape[0], "m": stacked.A.shape[1], "nnz": stacked.A.nnz}
    shape["pairs"] = float(np.sum(stacked.A.counts.astype(float) ** 2)) / 2
    del stacked
    phases.end("calibration and plan")
    problem = Problem.of(pefs, rows=ROWS[space], n_components=r)
    jax.block_until_ready(problem.rows)
    phases.end("reading again and row space")
    solver, stopping = (
        solver_of(name, kind, rate),
        npeff.Stopping(steps) if name == "ours" else npeff.Stopping(steps, -1.0),
    )
    npeff.decompose(problem, r, solver=solver, stopping=npeff.Stopping(1, -1.0), progress=False)
    phases.end("compilation and one step")
    found = npeff.decompose(problem, r, solver=solver, stopping=stopping, progress=False)
    phases.end("iterations and pseudo-Fishers")
    with tempfile.TemporaryDirectory(dir=path) as target:
        found.save(pathlib.Path(target) / "decomposition")
    phases.end("writing")
    curve = list(zip(found.history.seconds.tolist(), found.history.loss.tolist(), strict=True))
    return {
        "space": space, "row space": found.settings["row_space"], "solver": name, "rate": rate, "phases": phases.found,
        "curve": curve, "stopped": found.stopped, "predicted": predicted, "shape": shape,
        "rates": rates(mesh).__dict__, "load": os.getloadavg()[0],
    }  # fmt: skip


def in_a_process(
    path: pathlib.Path, r: int, space: str, name: str, rate: float = 0.0, steps: int = 500
) -> dict[str, Any]:
    """`one_run` in a new process, whose memory is its own."""
    print(f"{name} {rate or ''} on {space} rows", file=sys.stderr)
    command = [sys.executable, __file__, "--one", str(path), str(r), space, name, str(rate), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def whole_call(run: dict[str, Any]) -> float:
    """Seconds of a call beside its iterations: reading, row space, compilation (its step off), forming."""
    phases, (ended, _) = run["phases"], run["curve"][-1]
    step = ended / len(run["curve"])
    compiled = max(0.0, phases["compilation and one step"]["wall"] - step)
    formed = max(0.0, phases["iterations and pseudo-Fishers"]["wall"] - ended)
    return phases["reading again and row space"]["wall"] + compiled + formed


def time_to(run: dict[str, Any], target: float) -> str:
    """Whole-call seconds until the loss came to ``target``, or a bound."""
    at = next((seconds for seconds, loss in run["curve"] if loss <= target), None)
    return f"{whole_call(run) + at:.3g}" if at is not None else f"> {whole_call(run) + run['curve'][-1][0]:.3g}"


def table_of_spaces(runs: list[dict[str, Any]]) -> str:
    """Phases of each row space, and what was predicted."""
    lines = [
        "| rows | build + form, s (plan) | step, s (plan) | peak, GB (plan) | CPU in all, s | load |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        phases, plan = run["phases"], run["predicted"][run["space"]]
        step = run["curve"][-1][0] / len(run["curve"])
        built = phases["reading again and row space"]["wall"] - phases["reading"]["wall"]
        formed = max(0.0, phases["iterations and pseudo-Fishers"]["wall"] - run["curve"][-1][0])
        peak = max(phase["peak"] for phase in phases.values()) - phases["calibration and plan"]["peak"]
        cpu = sum(phase["cpu"] for phase in phases.values())
        lines.append(
            f"| {run['space']} | {built + formed:.2f} ({plan['once']:.2f}) | {step:.3f} ({plan['step']:.3f}) | "
            f"{peak / 1e9:.2f} ({plan['memory'] / 1e9:.2f}) | {cpu:.1f} | {run['load']:.1f} |"
        )
    return "\n".join(lines)


def table_of_calls(runs: list[dict[str, Any]]) -> str:
    """Whole-call times to the two targets."""
    best = min(run["curve"][-1][1] for run in runs)
    papers = min(run["curve"][-1][1] for run in runs if run["solver"] == "paper")
    lines = [
        "| call | loss | steps | to 1.01 of the paper's best, s | to 1.01 of the best, s | whole, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        rate = f", rate {run['rate']:g}" if run["rate"] else ""
        ended, loss = run["curve"][-1]
        lines.append(
            f"| {run['solver']}{rate}, {run['space']} rows | {loss:.4f} | {len(run['curve'])} | "
            f"{time_to(run, FACTOR * papers)} | {time_to(run, FACTOR * best)} | {whole_call(run) + ended:.3g} |"
        )
    return "\n".join(lines)


def measured(n: int, options: argparse.Namespace) -> dict[str, Any]:
    """All runs of one size."""
    low_rank = options.kind == "low_rank"
    with tempfile.TemporaryDirectory(dir=options.scratch) as directory:
        path, sizes = pathlib.Path(directory), {"m": options.m, "r": options.r, "keep": options.keep}
        if options.support:
            sizes["support"] = options.support
        write_problem(path, problems.user_size(n, **sizes) if low_rank else problems.user_size_diagonal(n, **sizes))
        if options.huge:
            return {
                "n": n,
                "calls": [in_a_process(path, options.r, "kernel", "ours", steps=options.steps)],
                "spaces": [],
            }
        fitting = [space for space in ("dense", "sparse", "kernel") if low_rank or space != "kernel"]
        fitting = fitting if 4 * n * 3 * options.m < options.dense_bytes else fitting[1:]
        spaces = [in_a_process(path, options.r, space, "steps", steps=10) for space in fitting]
        print(table_of_spaces(spaces), flush=True)
        if options.spaces_only:
            return {"n": n, "spaces": spaces}
        calls = [in_a_process(path, options.r, "chosen", "ours", steps=500)]
        papers = [
            in_a_process(path, options.r, "chosen", "paper", rate, options.steps)
            for rate in options.rates[: None if low_rank else 1]
        ]
        best = min(papers, key=lambda run: run["curve"][-1][1])
        calls += [best, in_a_process(path, options.r, "sparse", "paper", best["rate"], options.steps)]
        print("\n" + table_of_calls(calls), flush=True)
        return {"n": n, "spaces": spaces, "calls": calls, "papers": papers}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        path, r, space, name, rate, steps = sys.argv[2:]
        print(json.dumps(one_run(pathlib.Path(path), int(r), space, name, float(rate), int(steps))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[1500, 3000, 6000])
    parser.add_argument("--m", type=int, default=1_000_000)
    parser.add_argument("--keep", type=int, default=8192)
    parser.add_argument("--r", type=int, default=128)
    parser.add_argument("--support", type=int, default=0, help="parameters of a planted component")
    parser.add_argument("--kind", choices=["low_rank", "diagonal"], default="low_rank")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--spaces-only", action="store_true")
    parser.add_argument("--steps", type=int, default=400, help="of the paper's algorithm")
    parser.add_argument("--dense-bytes", type=float, default=4e9, help="dense rows are left out beyond")
    parser.add_argument("--scratch", type=pathlib.Path, default=None)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_size.json"))
    options = parser.parse_args()
    if options.fast:
        options.n, options.m, options.keep, options.r, options.support, options.steps = [40], 2000, 64, 4, 200, 20
        options.rates = [0.1]
    if options.huge:
        options.n, options.m, options.keep, options.r = [10_000], 1_000_000, 8192, 128
    sizes = []
    for n in options.n:
        print(f"\n## n = {n}, m = {options.m:,}, K = {options.keep}, r = {options.r}, {options.kind}\n", flush=True)
        sizes.append(measured(n, options))
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
        settings = {name: str(value) for name, value in vars(options).items()}
        options.out.write_text(json.dumps(machine | {"settings": settings, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
