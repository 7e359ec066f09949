"""What does an accelerator do? Everything worth measuring on one, in about six minutes.

1. Selecting on the device against selecting on the host, at a toy's size: the same entries, norms and errors.
2. PEFs of a BERT-base shape at each precision of the products: steady examples per second, peak memory, bytes written;
   norms, errors and entries in common with "highest".
3. Beside them ordinary batch gradients at the same precision, and the rows alone.
4. `decompose` of planted components whose entries are made on the device: Gram matrix, step, recovery; products in
   bfloat16: loss and components in common. And at a tenth of the examples the same losses as on the host's CPU.

    python benchmarks/bench_device.py [--toy] [--minutes 6] [--out FOLDER]

Compiling takes longer than running: every part is a process of its own, they compile side by side, and a lock lets one
at a time be timed. Each writes its figures as JSON. A part that is not done after the minutes is ended and said so.
Without an accelerator sizes are those of a toy: that the script runs is what it then shows.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from bench_fishers import GPU_SHAPE, Clock, batch_gradients, dense_rows, jax_model
from factorization_problems import from_entries

import npeff_jax as npeff
from npeff_jax.pefs import FisherKind

TOY_SHAPE = {"layers": 2, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 100, "classes": 3}

TOY = {"keep": 512, "batch": 4, "batches": 4, "n": 200, "r": 8, "m": 20_000, "entries": 512, "steps": 20}

REAL = TOY | {"keep": 65_536, "batch": 12, "batches": 12, "n": 4_000, "r": 256}
REAL |= {"m": 20_000_000, "entries": 65_536, "steps": 50}

PRECISIONS = ("highest", "BF16_BF16_F32_X3", "tensorfloat32")


class AloneAfterTheFirst(Clock):
    """Notes when each batch was done; after the first one, which compiles, waits until the device is free."""

    def __init__(self, lock: filelock.BaseFileLock) -> None:
        super().__init__()
        self.lock = lock

    def write(self, line: str) -> int:
        if not self.times:
            self.lock.acquire()
        return super().write(line)


def tokens(shape: dict, n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, shape["vocabulary"], (n, shape["tokens"])).astype(np.int32)


def agreement(first: dict, second: dict) -> dict:
    """Two sets of PEFs of the same examples: entries in common, and the largest differences of the figures."""
    common = []
    for rows, indices, others, there in zip(
        first["rows"], first["indices"], second["rows"], second["indices"], strict=True
    ):
        pairs = [set(zip(a.tolist(), b.tolist(), strict=True)) for a, b in ((rows, indices), (others, there))]
        common.append(len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1]))
    return {
        "entries in common, least": float(np.min(common)),
        "norms, relative, largest": float(np.max(np.abs(first["norms"] / second["norms"] - 1))),
        "Fisher errors, largest difference": float(np.max(np.abs(first["fisher_error"] - second["fisher_error"]))),
    }


def figures(pefs: npeff.Pefs) -> dict:
    return {name: np.asarray(getattr(pefs, name)[:]) for name in ("rows", "indices", "norms", "fisher_error")}


def selection(sizes: dict, shape: dict, out: pathlib.Path, lock: filelock.BaseFileLock) -> dict:
    del sizes, shape, out, lock
    model, x = jax_model(TOY_SHAPE), tokens(TOY_SHAPE, 8)
    run = {"keep": TOY["keep"], "progress": False}
    host, device = (figures(npeff.compute_pefs(model, x, select_on=where, **run)) for where in ("host", "device"))
    return agreement(host, device)


def pefs_at(precision: str, sizes: dict, shape: dict, out: pathlib.Path, lock: filelock.BaseFileLock) -> dict:
    model, size = jax_model(shape), sizes["batch"]
    x = tokens(shape, size * sizes["batches"])
    ends = AloneAfterTheFirst(lock)
    run = {"keep": sizes["keep"], "select_on": "device", "batch_size": size, "precision": precision}
    began = time.perf_counter()
    found = npeff.compute_pefs(model, x, progress=ends, **run)
    lock.release(force=True)
    seconds = np.diff(ends.times[1 : sizes["batches"]])
    np.savez(out / f"{precision}.npz", **figures(found))
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "parameters": model.space.size,
        "first batch, with compilation, s": ends.times[0] - began,
        "examples per second": size * len(seconds) / float(np.sum(seconds)),
        "examples per second, median batch": size / float(np.median(seconds)),
        "bytes kept per second": 9 * sizes["keep"] * size / float(np.median(seconds)),
        "peak GB": stats.get("peak_bytes_in_use", float("nan")) / 1e9,
    }


def gradients(precision: str, sizes: dict, shape: dict, out: pathlib.Path, lock: filelock.BaseFileLock) -> dict:
    del out
    model, x = jax_model(shape), tokens(shape, sizes["batch"])
    with jax.default_matmul_precision(precision):
        run = batch_gradients(model, x, shape["classes"] - 1)
        run()  # compiles
        with lock:
            found = min(run() for _ in range(5))
    result = {"batch gradients, examples per second": 1 / found}
    if precision == "highest":
        few = x[: max(1, sizes["batch"] // 2)]
        rows = dense_rows(model, few)
        rows()
        with lock:
            seconds = min(rows() for _ in range(5))
        reads = jax.jit(lambda a: jnp.sum(jnp.abs(a)))
        block = jnp.ones(1 << 28)
        reads(block).block_until_ready()
        with lock:
            began = time.perf_counter()
            for _ in range(10):
                reads(block).block_until_ready()
            rate = 10 * block.nbytes / (time.perf_counter() - began)
        of_rows = 4 * (shape["classes"] - 1) * model.space.size
        result |= {"rows alone, examples per second": 1 / seconds, "bytes read per second": rate}
        result |= {"five reads of the rows, examples per second": rate / (5 * of_rows)}
    return result


def planted(n: int, sizes: dict) -> tuple[npeff.Pefs, np.ndarray]:
    """Two rows per example, each one planted component with multiplied noise; made on the device, batch by batch."""
    r, m, half = sizes["r"], sizes["m"], sizes["entries"] // 2
    key = jax.random.key(0)

    @jax.jit
    def component(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        at, what = jax.random.split(jax.random.fold_in(key, j))
        places = jnp.arange(half) * (m // half) + jax.random.randint(
            at, (half,), 0, m // half
        )  # ascending, no two alike
        values = jax.random.t(what, 3.0, (half,))
        return places.astype(jnp.int32), values / jnp.linalg.norm(values)

    where, what = jax.vmap(component)(jnp.arange(r))

    @jax.jit
    def batch(numbers: jax.Array) -> tuple[jax.Array, ...]:
        def one(i: jax.Array) -> tuple[jax.Array, ...]:
            which, strength, noise = jax.random.split(jax.random.fold_in(key, r + i), 3)
            active = jax.random.choice(which, r, (2,), replace=False)
            weights = 0.1 + jax.random.gamma(strength, 2.0, (2,))
            factor = 1 + 0.5 * jax.random.normal(noise, (2, half))
            rows = jnp.sqrt(weights)[:, None] * what[active] * factor
            rows = rows / jnp.sqrt(jnp.linalg.norm(jnp.sum(rows**2, axis=1)))
            return rows.reshape(-1), where[active].reshape(-1), active, weights

        return jax.vmap(one)(numbers)

    values, indices = np.empty((n, 2 * half), np.float32), np.empty((n, 2 * half), np.int32)
    truth = np.zeros((n, r), np.float32)
    step = min(n, 500)
    for start in range(0, n, step):
        numbers = jnp.arange(start, min(start + step, n))
        found = jax.device_get(batch(numbers))
        values[start : start + step], indices[start : start + step] = found[:2]
        np.put_along_axis(truth[start : start + step], found[2], found[3], axis=1)
    owner = np.broadcast_to(np.repeat(np.arange(2, dtype=np.uint8), half), values.shape)
    return from_entries(values, indices, np.ascontiguousarray(owner), FisherKind.LOW_RANK, 2, m), truth


def matched(first: np.ndarray, second: np.ndarray) -> float:
    """Mean cosine of columns paired one to one."""
    unit = [w / np.maximum(np.linalg.norm(w, axis=0), 1e-30) for w in (first, second)]
    cosines = unit[0].T @ unit[1]
    return float(cosines[scipy.optimize.linear_sum_assignment(-cosines)].mean())


def decomposed(pefs: npeff.Pefs, sizes: dict, **options: object) -> tuple[npeff.Decomposition, float]:
    stopping = npeff.Stopping(max_steps=sizes["steps"])
    began = time.perf_counter()
    run = {"rows": npeff.KernelRows(), "stopping": stopping, "progress": False} | options
    found = npeff.decompose(pefs, sizes["r"], **run)
    return found, time.perf_counter() - began


def factorization(sizes: dict, shape: dict, out: pathlib.Path, lock: filelock.BaseFileLock) -> dict:
    del shape
    began = time.perf_counter()
    pefs, truth = planted(sizes["n"], sizes)
    result = {"making, s": time.perf_counter() - began}
    began = time.perf_counter()
    npeff.Problem.of(pefs, n_components=sizes["r"], rows=npeff.KernelRows())
    result["reading and Gram matrix, s"] = time.perf_counter() - began
    (out / "decompose.json").write_text(json.dumps(result, indent=1))
    exact, result["decompose, s"] = decomposed(pefs, sizes)
    result |= {"loss": exact.loss, "recovery, mean cosine": matched(truth, exact.coefficients)}
    (out / "decompose.json").write_text(json.dumps(result, indent=1))
    with lock:
        again, result["decompose again, compiled, s"] = decomposed(pefs, sizes)
    result["the same loss again"] = again.loss == exact.loss
    (out / "decompose.json").write_text(json.dumps(result, indent=1))
    fast, _ = decomposed(pefs, sizes, products=npeff.ProductPrecision.BFLOAT16)
    result |= {
        "loss, bfloat16 products": fast.loss,
        "components in common, bfloat16 products": matched(exact.coefficients, fast.coefficients),
    }
    return result


def against_host(sizes: dict, shape: dict, out: pathlib.Path, lock: filelock.BaseFileLock) -> dict:
    del shape, out, lock
    few = sizes | {"n": sizes["n"] // 10, "r": max(2, sizes["r"] // 10)}
    pefs, _ = planted(few["n"], few)
    device, _ = decomposed(pefs, few)
    with jax.default_device(jax.devices("cpu")[0]):
        mesh = jax.make_mesh((1,), ("examples",), devices=jax.devices("cpu")[:1])
        host, _ = decomposed(pefs, few, mesh=mesh)
    return {
        "loss": device.loss,
        "loss on the host": host.loss,
        "losses of the first ten steps, relative": float(
            np.max(np.abs(np.divide(device.history.loss[:10], host.history.loss[:10]) - 1))
        ),
    }


PARTS: dict[str, Callable[..., dict]] = {
    **{f"pefs {precision}": functools.partial(pefs_at, precision) for precision in PRECISIONS},
    **{f"gradients {precision}": functools.partial(gradients, precision) for precision in PRECISIONS},
    "decompose": factorization,
    "selection": selection,
    "against the host": against_host,
}


def one(name: str, out: pathlib.Path, toy: bool) -> None:
    shape, sizes = (TOY_SHAPE, TOY) if toy else (GPU_SHAPE, REAL)
    lock = filelock.FileLock(pathlib.Path(tempfile.gettempdir()) / "npeff_bench_device.lock")
    result = PARTS[name](sizes, shape, out, lock)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="sizes of a toy, as without an accelerator")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="all by default")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_device"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        one(options.part[0], options.out, options.toy)
        return
    end = time.monotonic() + 60 * options.minutes
    probe = "import jax; d = jax.devices()[0]; print(d.platform, jax.__version__, d.device_kind)"
    platform, version, kind = subprocess.check_output([sys.executable, "-c", probe], text=True).strip().split(" ", 2)
    toy = options.toy or platform == "cpu"
    print(f"{kind}, jax {version}, {os.cpu_count()} CPU cores{', at the size of a toy' if toy else ''}", flush=True)
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    running = {}
    for name in options.part or PARTS:
        command = [sys.executable, __file__, "--one", "--part", name, "--out", str(options.out), *["--toy"] * toy]
        with (options.out / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    for name, process in running.items():
        try:
            status = process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = f"not done after {options.minutes:g} minutes"
        print(f"{name}{'' if status == 0 else f': {status}'}")
        figures_of = options.out / f"{name}.json"
        if status != 0:
            print((options.out / f"{name}.log").read_text()[-1500:])
        for what, value in (json.loads(figures_of.read_text()) if figures_of.exists() else {}).items():
            print(f"    {what:45}{value if isinstance(value, bool) else format(value, '.5g')}", flush=True)
    exact = options.out / "highest.npz"
    for precision in PRECISIONS[1:]:
        other = options.out / f"{precision}.npz"
        if exact.exists() and other.exists():
            found = agreement(dict(np.load(exact)), dict(np.load(other)))
            (options.out / f"agreement {precision}.json").write_text(json.dumps(found, indent=1))
            print(f"{precision} against highest: {found}")


if __name__ == "__main__":
    main()
