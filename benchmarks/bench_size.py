"""Factorization at the sizes people have: phases, memory, what the plan predicted, and whole-call times to two targets.

    python benchmarks/bench_size.py [--n 1500 3000] [--m 1000000] [--r 128] [--kind low_rank|diagonal]
                                    [--parts spaces ours paper sklearn] [--fast]

Planted problems (`user_size`, three rows per example). Every run is a process of its own, which reads the PEFs from
disk, compiles, iterates, forms the pseudo-Fishers and writes them; each of these phases is timed, in seconds on the
clock and in seconds of CPU (on a machine that others use too, the latter say more), with the peak of resident memory.

Parts of a size: `spaces`, all row spaces with twenty steps each, against what their `cost` predicts; `ours`, a whole
call as users make it; `paper`, the paper's algorithm from the authors' own start (their 200 steps of G alone included),
in the row space that `decompose` chooses with each of `--rates`, and with the best of them in sparse rows; `sklearn`,
for diagonal problems, coordinate descent and multiplicative updates from two starts each. Two targets: 1.01
(diagonal: 1.001) times the other's own best loss, and so many times the best loss known here. What did not arrive is
written "> t".

`--n 10000 --parts ours` is N = 30,000 rows, from disk to disk. `--fast` is a small problem for tests.
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
import warnings
from typing import Any

import factorization_problems as problems
import jax
import numpy as np
import scipy.sparse

import npeff_jax as npeff
from npeff_jax._sharding import factorization_mesh
from npeff_jax.factorization._problem import of_stack
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization.row_spaces._choose import costs, needed_memory
from npeff_jax.factorization.row_spaces._rates import measure, rates
from npeff_jax.pefs import FisherKind

FACTOR = 1.01
ROWS = {"dense": npeff.DenseRows(), "sparse": npeff.SparseRows(), "kernel": npeff.KernelRows(), "chosen": None}
ARRAYS = ("values", "indices", "rows")
COMPILING = tuple(f"/jax/core/compile/{name}" for name in (
    "jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration",
))  # fmt: skip


class Phases:
    """Seconds on the clock and of CPU, and the peak of resident memory, at the end of each phase."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._wall, self._cpu, self._busy = time.perf_counter(), time.process_time(), busy()

    def end(self, name: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        held = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        took = {"wall": wall - self._wall, "cpu": cpu - self._cpu}
        took["others"] = busy() - self._busy - took["cpu"]
        self.found[name] = took | {"peak": peak, "held": held}
        print(
            f"  {name}: {took['wall']:.2f} s, CPU {took['cpu']:.2f} s, of others {took['others']:.2f} s, "
            f"peak {peak / 1e9:.2f} GB",
            file=sys.stderr,
        )
        self._wall, self._cpu, self._busy = wall, cpu, busy()


def busy() -> float:
    """Seconds that all cores together have worked, for any program (0 where /proc/stat is not there)."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return 0.0
    ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


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


def one_run(path: pathlib.Path, r: int, space: str, name: str, rate: float, steps: int, limit: float) -> dict[str, Any]:
    """What a process of its own does: one call of `decompose` from disk to disk, in its parts, and the plan beside."""
    pefs, mesh, phases, compiled = read_problem(path), factorization_mesh(None), Phases(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event in COMPILING else None
    )
    kind, begun = pefs.schema.kind, []
    stacked = stack(pefs)
    phases.end("reading")
    measure(mesh)
    predicted = {
        label: {"once": cost.once, "step": cost.step, "memory": needed_memory(cost, list(mesh.devices.flat))}
        for label, cost in zip(("dense", "sparse", "kernel"), costs(stacked.A, r, kind, mesh).values(), strict=False)
    }
    shape = {"N": stacked.A.shape[0], "m": stacked.A.shape[1], "nnz": stacked.A.nnz}
    shape["pairs"] = float(np.sum(stacked.A.counts.astype(float) ** 2)) / 2
    phases.end("calibration and plan")
    compiled.clear()
    problem = of_stack(stacked, pefs.schema, ROWS[space], r, mesh, npeff.factorization.ProductPrecision.FLOAT32, None)
    jax.block_until_ready(problem.rows)
    phases.end("row space")

    def look(iterate: npeff.factorization.Iterate) -> bool:
        begun[:] = begun or [time.perf_counter() - iterate.seconds]
        return iterate.seconds > limit

    solver, called = solver_of(name, kind, rate), time.perf_counter()
    stopping = npeff.Stopping(steps) if name == "ours" else npeff.Stopping(steps, -1.0)
    found = npeff.decompose(problem, r, solver=solver, stopping=stopping, callback=look, progress=False)
    ended = time.perf_counter()
    phases.end("start, iterations, pseudo-Fishers")
    with tempfile.TemporaryDirectory(dir=path) as target:
        found.save(pathlib.Path(target) / "decomposition")
    phases.end("writing")
    curve = list(zip(found.history.seconds.tolist(), found.history.loss.tolist(), strict=True))
    took = {"start": begun[0] - called if begun else 0.0, "iterations": curve[-1][0] if curve else 0.0}
    took |= {"compilation": sum(compiled), "pseudo-Fishers": ended - called - took["start"] - took["iterations"]}
    return {
        "space": space, "row space": found.settings["row_space"], "solver": name, "rate": rate, "phases": phases.found,
        "curve": curve, "took": took, "stopped": found.stopped, "predicted": predicted, "shape": shape,
        "rates": rates(mesh).__dict__, "load": os.getloadavg()[0],
    }  # fmt: skip


def sklearn_run(path: pathlib.Path, r: int, init: str, name: str, limit: float) -> dict[str, Any]:
    """The same for scikit-learn, a call per point of its curve: it reports no losses on the way."""
    from sklearn.decomposition import NMF

    start = time.perf_counter()
    A = scipy.sparse.csr_matrix(stack(read_problem(path)).A.whole)
    read, norm, curve = time.perf_counter() - start, float(np.sum(A.data.astype(np.float64) ** 2)), []
    W, H, at = None, None, read
    while at < limit and len(curve) < 40:
        model = NMF(r, init="custom" if curve else init, solver=name, max_iter=5, tol=0, random_state=0)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "maximum number of iterations reached"
            W = model.fit_transform(A, W=W, H=H)
        H, at = model.components_, at + time.perf_counter() - start
        WW, HH = (x.astype(np.float64) for x in (W.T @ W, H @ H.T))
        curve.append((at, (norm - 2 * float(np.sum((A @ H.T) * W, dtype=np.float64)) + float(np.sum(WW * HH))) / norm))
        print(f"  {name} {curve[-1]}", file=sys.stderr)
        if len(curve) > 3 and curve[-2][1] - curve[-1][1] < 1e-6 * curve[-1][1]:
            break
    return {"space": init, "solver": name, "rate": 0.0, "curve": curve, "load": os.getloadavg()[0]}


def in_a_process(
    path: pathlib.Path, r: int, space: str, name: str, rate: float = 0.0, steps: int = 500, limit: float = 1e9
) -> dict[str, Any]:
    """`one_run` in a new process, whose memory is its own. What it found stays beside the problem."""
    found = path / f"run-{name}-{space}-{rate:g}.json"
    if not (REUSE and found.exists()):
        print(f"{name} {rate or ''} on {space} rows", file=sys.stderr)
        subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({BACKED}, numpy.uint8)"], check=True)
        command = [sys.executable, __file__, "--one", str(path), str(r), space, name, str(rate), str(steps), str(limit)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.write_text(done.stdout.splitlines()[-1])
    return json.loads(found.read_text())


SKLEARN = ("random", "cd"), ("nndsvd", "cd"), ("random", "mu"), ("nndsvda", "mu")
"""Its starts and solvers. With exact zeros, as nndsvd has them, multiplicative updates could not move."""

BACKED = 0 if "--fast" in sys.argv else 6 << 30
"""Bytes that a process before each run writes and frees. The first write to a page that the host of a virtual machine
has to provide takes 2.5 ns per byte instead of 0.1: 1.3 s for 512 MB, or nothing, by what ran before."""

REUSE = "--reuse" in sys.argv
"""Whether runs that an earlier call left beside a problem stand for new ones, so that tables can be made in parts."""


def whole_call(run: dict[str, Any]) -> float:
    """Seconds of a call beside its iterations: reading, row space, start, pseudo-Fishers."""
    if "phases" not in run:
        return 0.0  # scikit-learn's curve is of the whole call
    phases, took = run["phases"], run["took"]
    return phases["reading"]["wall"] + phases["row space"]["wall"] + took["start"] + took["pseudo-Fishers"]


def time_to(run: dict[str, Any], target: float) -> str:
    """Whole-call seconds until the loss came to ``target``, or a bound."""
    at = next((seconds for seconds, loss in run["curve"] if loss <= target), None)
    return f"{whole_call(run) + at:.3g}" if at is not None else f"> {whole_call(run) + run['curve'][-1][0]:.3g}"


def table_of_spaces(runs: list[dict[str, Any]]) -> str:
    """Phases of each row space, and what was predicted."""
    lines = [
        "| rows | reading, s | row space + pseudo-Fishers, s (plan) | compilation, s | step, s (plan) | writing, s | "
        "peak beyond reading, GB (plan) | CPU in all, s | of others | worst ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        phases, plan, took = run["phases"], run["predicted"][run["space"]], run["took"]
        # the first window compiles
        step = (run["curve"][-1][0] - run["curve"][9][0]) / (len(run["curve"]) - 10)
        once = phases["row space"]["wall"] + took["pseudo-Fishers"]
        peak = max(phase["peak"] for phase in phases.values()) - phases["calibration and plan"]["held"]
        cpu = sum(phase["cpu"] for phase in phases.values())
        ratios = [once / plan["once"], step / plan["step"], peak / plan["memory"]]
        worst = max(max(ratio, 1 / ratio) for ratio in ratios)
        lines.append(
            f"| {run['space']} | {phases['reading']['wall']:.2f} | {once:.2f} ({plan['once']:.2f}) | "
            f"{took['compilation']:.2f} | {step:.3f} ({plan['step']:.3f}) | {phases['writing']['wall']:.2f} | "
            f"{peak / 1e9:.2f} ({plan['memory'] / 1e9:.2f}) | {cpu:.1f} | "
            f"{sum(phase['others'] for phase in phases.values()):.1f} | {worst:.2f} |"
        )
    return "\n".join(lines)


def table_of_calls(runs: list[dict[str, Any]], factor: float) -> str:
    """Whole-call times to the two targets."""
    best = min(run["curve"][-1][1] for run in runs)
    theirs = min(run["curve"][-1][1] for run in runs if run["solver"] != "ours")
    lines = [
        f"| call | loss | steps | to {factor} of the other's best, s | to {factor} of the best, s | whole, s | load |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        rate = f", rate {run['rate']:g}" if run["rate"] else ""
        ended, loss = run["curve"][-1]
        lines.append(
            f"| {run['solver']}{rate}, {run['space']} | {loss:.4f} | {len(run['curve'])} | "
            f"{time_to(run, factor * theirs)} | {time_to(run, factor * best)} | {whole_call(run) + ended:.3g} | "
            f"{run['load']:.1f} |"
        )
    return "\n".join(lines)


def measured(n: int, options: argparse.Namespace) -> dict[str, Any]:
    """All runs of one size, whose problem is made in ``--scratch`` unless it is there."""
    low_rank, sizes = options.kind == "low_rank", {"m": options.m, "r": options.r, "keep": options.keep}
    path = options.scratch / "-".join(map(str, (options.kind, n, *sizes.values())))
    if options.support:
        sizes["support"] = options.support
    if not (path / "problem.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        write_problem(path, problems.user_size(n, **sizes) if low_rank else problems.user_size_diagonal(n, **sizes))
    result: dict[str, Any] = {"n": n, "spaces": [], "calls": []}
    r, parts = options.r, options.parts
    if "spaces" in parts:
        fitting = [space for space in ("dense", "sparse", "kernel") if low_rank or space != "kernel"]
        fitting = fitting if 4 * n * 3 * options.m < options.dense_bytes else fitting[1:]
        result["spaces"] = [in_a_process(path, r, space, "steps", steps=20) for space in fitting]
        print(table_of_spaces(result["spaces"]), flush=True)
    calls = result["calls"]
    if "ours" in parts:
        calls.append(in_a_process(path, r, "chosen", "ours", steps=500))
    if "paper" in parts and low_rank:
        papers = [in_a_process(path, r, "chosen", "paper", rate, options.steps) for rate in options.rates]
        result["papers"] = papers
        best = min((run for run in papers if run["curve"]), key=lambda run: run["curve"][-1][1])
        calls.append(best)
        if options.sparse_steps:
            calls.append(in_a_process(path, r, "sparse", "paper", best["rate"], options.sparse_steps, options.limit))
    if "sklearn" in parts and not low_rank:
        calls += [in_a_process(path, r, *run, limit=options.limit) for run in SKLEARN]
    if len(calls) > 1:
        print("\n" + table_of_calls(calls, FACTOR if low_rank else 1.001), flush=True)
    return result


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        path, r, space, name, rate, steps, limit = sys.argv[2:]
        if (space, name) in SKLEARN:
            print(json.dumps(sklearn_run(pathlib.Path(path), int(r), space, name, float(limit))))
        else:
            of = pathlib.Path(path), int(r), space, name
            print(json.dumps(one_run(*of, float(rate), int(steps), float(limit))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[1500, 3000, 6000])
    parser.add_argument("--m", type=int, default=1_000_000)
    parser.add_argument("--keep", type=int, default=8192)
    parser.add_argument("--r", type=int, default=128)
    parser.add_argument("--support", type=int, default=0, help="parameters of a planted component")
    parser.add_argument("--kind", choices=["low_rank", "diagonal"], default="low_rank")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.01, 0.03])
    parser.add_argument("--parts", nargs="+", default=["spaces", "ours", "paper", "sklearn"])
    parser.add_argument("--steps", type=int, default=600, help="of the paper's algorithm, in the chosen row space")
    parser.add_argument("--sparse-steps", type=int, default=250, help="the same in sparse rows; 0: not run")
    parser.add_argument("--limit", type=float, default=300, help="seconds of scikit-learn, and of sparse rows")
    parser.add_argument("--reuse", action="store_true", help="take runs that are there already")
    parser.add_argument("--dense-bytes", type=float, default=4e9, help="dense rows are left out beyond")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("bench-size-problems"))
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_size.json"))
    options = parser.parse_args()
    if options.fast:
        options.n, options.m, options.keep, options.r, options.support, options.steps = [40], 2000, 64, 4, 200, 20
        options.rates, options.sparse_steps = [0.01], 20
    sizes = []
    for n in options.n:
        print(f"\n## n = {n}, m = {options.m:,}, K = {options.keep}, r = {options.r}, {options.kind}\n", flush=True)
        sizes.append(measured(n, options))
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
        settings = {name: str(value) for name, value in vars(options).items()}
        options.out.write_text(json.dumps(machine | {"settings": settings, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
