"""What does an accelerator do? Everything worth measuring on one, in under six minutes.

1. Selecting on the device against selecting on the host: the same entries, norms and errors.
2. PEFs of a BERT-base shape: steady examples per second, the share of gradients and of selection, ordinary batch
   gradients beside them, peak memory against the plan's, and what is written per second.
3. Precisions of the products: norms, errors, entries in common, and speed.
4. `decompose` of planted components whose entries are made on the device: Gram matrix, step, recovery; and at a tenth
   of the examples the same losses as on the host's CPU. Product precisions: loss and components in common.

    python benchmarks/bench_device.py [--toy] [--minutes 6] [--out bench_device.json]

Without an accelerator sizes are those of a toy: that the script runs is what it then shows. A part that would begin
after the minutes are over is left out by name.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from bench_fishers import GPU_SHAPE, Clock, batch_gradients, dense_rows, jax_model
from factorization_problems import from_entries

import npeff_jax as npeff
from npeff_jax.pefs import FisherKind

TOY_SHAPE = {"layers": 2, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 100, "classes": 3}

TOY = {"keep": 512, "examples": 24, "n": 200, "r": 8, "m": 20_000, "entries": 512, "steps": 20}

REAL = {"keep": 65_536, "examples": 512, "n": 20_000, "r": 512, "m": 20_000_000, "entries": 65_536, "steps": 50}


def tokens(shape: dict, n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, shape["vocabulary"], (n, shape["tokens"])).astype(np.int32)


def agreement(first: npeff.Pefs, second: npeff.Pefs) -> dict:
    """Two sets of PEFs of the same examples: entries in common, and the largest differences of the figures."""
    common = []
    for i in range(len(first)):
        pairs = [set(zip(p.rows[i].tolist(), p.indices[i].tolist())) for p in (first, second)]
        common.append(len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1]))
    return {
        "entries in common": float(np.min(common)),
        "norms, relative": float(np.max(np.abs(first.norms / second.norms - 1))),
        "Fisher errors": float(np.max(np.abs(first.fisher_error - second.fisher_error))),
    }


def selection(shape: dict, sizes: dict) -> dict:
    model, x = jax_model(shape), tokens(shape, 4)
    run = {"keep": sizes["keep"], "progress": False}
    host, device = (npeff.compute_pefs(model, x, select_on=where, **run) for where in ("host", "device"))
    return agreement(host, device)


def speed(shape: dict, sizes: dict) -> dict:
    model = jax_model(shape)
    x = tokens(shape, sizes["examples"])
    planned = npeff.plan(model, x, keep=[sizes["keep"]], n_sampled=4, select_on="device")
    batch = planned.batch_size if len(x) > planned.batch_size else max(1, len(x) // 4)
    few = x[: min(planned.at_once, batch)]

    def run(path: pathlib.Path | None = None) -> float:
        """Examples per second from the end of the first batch, which compiles, to that of the last."""
        ends, size = Clock(), {"batch_size": batch, "path": path}
        npeff.compute_pefs(model, x, keep=sizes["keep"], select_on="device", progress=ends, **size)
        return (len(x) - batch) / (ends.times[-1] - ends.times[0])

    in_memory = run()
    with tempfile.TemporaryDirectory() as folder:
        to_disk = run(pathlib.Path(folder) / "pefs")
    rows = 1 / dense_rows(model, few)()
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "parameters": model.space.size,
        "batch": batch,
        "at once": planned.at_once,
        "examples per second": in_memory,
        "to disk": to_disk,
        "rows alone": rows,
        "batch gradients": 1 / batch_gradients(model, few, shape["classes"] - 1)(),
        "share of gradients": min(1.0, in_memory / rows),
        "bytes written per second": 9 * sizes["keep"] * to_disk,
        "planned GB": planned.memory_bytes / 1e9,
        "peak GB, with the model": stats.get("peak_bytes_in_use", float("nan")) / 1e9,
    }


def precisions(shape: dict, sizes: dict) -> dict:
    model, x = jax_model(shape), tokens(shape, min(64, sizes["examples"]))
    found, exact = {}, None
    for precision in ("highest", "BF16_BF16_F32_X3", "tensorfloat32", "bfloat16"):
        ends, run = Clock(), {"keep": sizes["keep"], "select_on": "device", "batch_size": len(x) // 4}
        try:
            pefs = npeff.compute_pefs(model, x, precision=precision, progress=ends, **run)
        except Exception as error:  # an algorithm that this device does not have
            found[precision] = {"refused": str(error).splitlines()[0][:120]}
            continue
        exact = exact or pefs
        rate = 3 * (len(x) // 4) / (ends.times[-1] - ends.times[0])
        found[precision] = agreement(exact, pefs) | {"examples per second": rate}
    return found


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


def factorization(shape: dict, sizes: dict) -> dict:
    began = time.perf_counter()
    pefs, truth = planted(sizes["n"], sizes)
    seconds = {"making": time.perf_counter() - began}
    few = pefs.subset(slice(0, sizes["n"] // 10))
    first, _ = decomposed(few, sizes)
    with jax.default_device(jax.devices("cpu")[0]):
        host, _ = decomposed(few, sizes)
    began = time.perf_counter()
    npeff.Problem.of(pefs, n_components=sizes["r"], rows=npeff.KernelRows())
    seconds["Gram matrix"] = time.perf_counter() - began
    exact, seconds["decompose"] = decomposed(pefs, sizes)
    fast, seconds["decompose, bfloat16 products"] = decomposed(pefs, sizes, products=npeff.ProductPrecision.BFLOAT16)
    return {
        "seconds": seconds,
        "recovery": matched(truth, exact.coefficients),
        "loss": exact.loss,
        "loss, bfloat16 products": fast.loss,
        "components in common, bfloat16 products": matched(exact.coefficients, fast.coefficients),
        "loss against the CPU's, relative": abs(first.loss / host.loss - 1),
    }


PARTS = {"selection": selection, "speed": speed, "precisions": precisions, "decompose": factorization}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="sizes of a toy, as without an accelerator")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_device.json"))
    options = parser.parse_args()
    device, began = jax.devices()[0], time.perf_counter()
    toy = options.toy or device.platform == "cpu"
    shape, sizes = (TOY_SHAPE, TOY) if toy else (GPU_SHAPE, REAL)
    result: dict = {"device": device.device_kind, "jax": jax.__version__, "toy": toy, "shape": shape, "sizes": sizes}
    print(f"{device.device_kind}, jax {jax.__version__}{', at the size of a toy' if toy else ''}")
    for name in options.part or PARTS:
        if time.perf_counter() - began > 60 * options.minutes:
            result[name] = f"left out: {options.minutes:g} minutes were over"
            print(f"{name}: {result[name]}")
            continue
        started = time.perf_counter()
        result[name] = PARTS[name](shape, sizes)
        print(f"{name} ({time.perf_counter() - started:.0f} s)")
        for what, value in result[name].items():
            print(f"    {what:38}{value if isinstance(value, dict) else format(value, '.4g')}")
        options.out.write_text(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
