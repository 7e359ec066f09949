"""How fast are per-example Fishers?

A BERT shape: gradients, selection and the whole of `compute_pefs` against ordinary batch gradients and against
`torch.func.vmap(jacrev)`, with torch's own top-k and with this library's selection given to torch; selection alone
against `np.argpartition`; cost and memory against n. Every ratio is of one run on one machine.

    python benchmarks/bench_fishers.py [--gpu] [--out bench_fishers.json]
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

import npeff_jax as npeff
from npeff_jax.pefs import LeafRows, _driver, largest

KEEP = 65_536
CPU_SHAPE = {"layers": 4, "width": 256, "heads": 4, "tokens": 64, "vocabulary": 1000, "classes": 3}
GPU_SHAPE = {"layers": 12, "width": 768, "heads": 12, "tokens": 128, "vocabulary": 30522, "classes": 3}


def init(shape: dict, seed: int = 0) -> dict:
    """Parameters of an encoder as nested dictionaries of NumPy arrays, the same for JAX and for torch."""
    rng = np.random.default_rng(seed)
    width = shape["width"]

    def dense(n_in, n_out):
        kernel = rng.normal(size=(n_in, n_out)) / np.sqrt(n_in)
        return {"kernel": kernel.astype(np.float32), "bias": np.zeros(n_out, np.float32)}

    def norm():
        return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}

    def block():
        names = {"query": (width, width), "key": (width, width), "value": (width, width), "out": (width, width)}
        names |= {"up": (width, 4 * width), "down": (4 * width, width)}
        return {name: dense(*sizes) for name, sizes in names.items()} | {"norm1": norm(), "norm2": norm()}

    params = {f"layer{i}": block() for i in range(shape["layers"])}
    params["tokens"] = rng.normal(size=(shape["vocabulary"], width)).astype(np.float32)
    params["positions"] = rng.normal(size=(shape["tokens"], width)).astype(np.float32) * 0.1
    return params | {"pooler": dense(width, width), "head": dense(width, shape["classes"])}


def logits(xp, softmax, gelu, shape: dict, params: dict, tokens):
    """The encoder written once: ``xp`` is ``jax.numpy`` or ``torch``."""

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(p, x):
        centred = x - x.mean(-1)[..., None]
        return centred / xp.sqrt((centred**2).mean(-1)[..., None] + 1e-12) * p["scale"] + p["bias"]

    def split(x):
        return x.reshape(shape["tokens"], shape["heads"], -1).swapaxes(0, 1)

    x = params["tokens"][tokens] + params["positions"]
    for i in range(shape["layers"]):
        p = params[f"layer{i}"]
        q, k, v = (split(dense(p[name], x)) for name in ("query", "key", "value"))
        weights = softmax(q @ k.swapaxes(1, 2) / (shape["width"] / shape["heads"]) ** 0.5)
        attended = (weights @ v).swapaxes(0, 1).reshape(shape["tokens"], shape["width"])
        x = norm(p["norm1"], x + dense(p["out"], attended))
        x = norm(p["norm2"], x + dense(p["down"], gelu(dense(p["up"], x))))
    return dense(params["head"], xp.tanh(dense(params["pooler"], x[0])))


def jax_model(shape: dict) -> npeff.Model:
    def logits_fn(params, tokens):
        return logits(jnp, jax.nn.softmax, lambda x: jax.nn.gelu(x, approximate=False), shape, params, tokens)

    return npeff.Model(logits_fn, jax.tree.map(jnp.asarray, init(shape)))


def seconds(function, repeats: int = 1, clock=time.perf_counter) -> float:
    """The least of a few, after one that warms up. ``time.thread_time`` counts what one processor worked, which other
    programs on the machine disturb less.
    """
    function()
    found = []
    for _ in range(repeats):
        start = clock()
        function()
        found.append(clock() - start)
    return min(found)


def in_turns(methods: dict, rounds: int) -> dict[str, list[float]]:
    """Each method's seconds, round after round, so that a machine that slows down slows them all."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            times[name].append(method())
    return times


def batch_gradients(model: npeff.Model, x: np.ndarray, passes: int):
    """Seconds an example of ``passes`` ordinary gradients of the batch's loss: what training would cost."""

    @jax.jit
    def gradient(params, tokens, label):
        def loss(params):
            found = jax.vmap(model.logits_fn, (None, 0))(params, tokens)
            return -jnp.mean(jax.nn.log_softmax(found)[:, label])

        return jax.grad(loss)(params)

    def all_passes():
        for label in range(passes):
            jax.block_until_ready(gradient(model.params, x, label))

    return lambda: seconds(all_passes) / len(x)


def dense_rows(model: npeff.Model, x: np.ndarray):
    """Seconds an example of the rows on the devices, before anything is selected."""
    from npeff_jax._sharding import make_mesh
    from npeff_jax.pefs import BatchRows

    rows = BatchRows(model, npeff.LowRank(), make_mesh(jax.devices()[:1]), len(x), "highest")
    return lambda: seconds(lambda: jax.block_until_ready(rows(x, 0))) / len(x)


class Clock(io.StringIO):
    """A progress stream that notes when each batch was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, line: str) -> int:
        self.times.append(time.perf_counter())
        return len(line)


def whole(model: npeff.Model, x: np.ndarray, batch: int, path=None):
    """Seconds an example of `compute_pefs`, from the end of the first batch, which compiles, to that of the last."""

    def run() -> float:
        ends = Clock()
        npeff.compute_pefs(model, x, keep=KEEP, batch_size=batch, path=path, on_existing="overwrite", progress=ends)
        return (ends.times[-1] - ends.times[0]) / (len(x) - batch)

    return run


def torch_rows(shape: dict, x: np.ndarray) -> dict:
    """Seconds an example of the same PEFs in torch: jacrev of all classes, normalised, its own top-k or ours."""
    import torch

    params = jax.tree.map(torch.from_numpy, init(shape))
    leaves, tree = jax.tree.flatten(params)
    sizes = [leaf.numel() for leaf in leaves]
    tokens = torch.from_numpy(x)

    def log_p(leaves, tokens):
        params = jax.tree.unflatten(tree, leaves)
        gelu = torch.nn.functional.gelu
        found = logits(torch, lambda z: torch.softmax(z, -1), gelu, shape, params, tokens)
        return torch.log_softmax(found, -1), torch.log_softmax(found, -1)

    jacobian = torch.func.vmap(torch.func.jacrev(log_p, has_aux=True), (None, 0))

    def rows():
        with torch.no_grad():
            gradients, values = jacobian(tuple(leaves), tokens)
            root = torch.exp(values / 2)
            return [g.reshape(*g.shape[:2], -1) * root[..., None] for g in gradients]

    def norm_of(parts):
        gram = sum(part @ part.T for part in parts)
        return torch.sqrt(torch.linalg.norm(gram))

    def with_topk():
        for parts in zip(*rows(), strict=True):
            flat = torch.cat(parts, 1) / norm_of(parts)
            flat = flat.reshape(-1)
            index = torch.topk(flat.abs(), KEEP, sorted=False).indices
            flat[index]

    offsets = np.concatenate([[0], np.cumsum(sizes)])

    def selected(parts):
        norm_of(parts)
        largest(LeafRows([[part.numpy() for part in parts]], offsets), KEEP)

    def with_our_selection():
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # as `compute_pefs` does
            list(threads.map(selected, zip(*rows(), strict=True)))

    methods = {"jacrev": rows, "jacrev and topk": with_topk, "jacrev and our selection": with_our_selection}
    return {name: lambda method=method: seconds(method) / len(x) for name, method in methods.items()}


def selection(n: int = 10_000_000) -> dict[str, float]:
    """Seconds of one thread to find the largest 65,536 of 10 million, exactly."""
    values = np.random.default_rng(0).normal(size=n).astype(np.float32)
    rows = LeafRows([[values[None]]], np.array([0, n]))
    ours = largest(rows, KEEP)
    absolute = np.abs(values)
    theirs = np.sort(np.argpartition(absolute, n - KEEP)[n - KEEP :])
    assert np.array_equal(ours.entries[1], theirs)
    return {
        "ours": seconds(lambda: largest(rows, KEEP), 5, time.thread_time),
        "argpartition": seconds(lambda: np.argpartition(np.abs(values), n - KEEP), 3, time.thread_time),
        "argpartition of absolute values at hand": seconds(
            lambda: np.argpartition(absolute, n - KEEP), 3, time.thread_time
        ),
    }


def growth(n: int) -> dict[str, float]:
    """Time and peak memory of a run to disk over ``n`` examples, in a process of its own."""
    command = [sys.executable, __file__, "--growth", str(n)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_growth(n: int) -> None:
    rng = np.random.default_rng(0)
    shape = (256, 128, 10)
    params = [rng.normal(size=(a, b)).astype(np.float32) / 16 for a, b in itertools.pairwise(shape)]
    model = npeff.Model(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], params)

    class Source:
        """Examples made when they are asked for, so that they take no memory themselves."""

        def __len__(self):
            return n

        def __getitem__(self, rows):
            return np.stack([np.random.default_rng(i).normal(size=256) for i in range(n)[rows]]).astype(np.float32)

    level: list[int] = []
    run = _driver._run

    def from_here(*arguments):
        level.append(resident("VmRSS"))
        run(*arguments)

    _driver._run = from_here
    with tempfile.TemporaryDirectory() as folder:
        clock, path = Clock(), pathlib.Path(folder) / "pefs"
        npeff.compute_pefs(model, Source(), keep=2048, path=path, batch_size=64, progress=clock)
    seconds = (clock.times[-1] - clock.times[0]) * n / (n - 64)
    print(json.dumps({"n": n, "seconds": seconds, "bytes_above_first_batch": resident("VmHWM") - level[0]}))


def resident(field: str) -> int:
    """Bytes of memory of this process, now (VmRSS) or at most (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def figure(growths: list[dict], path: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    n = [g["n"] for g in growths]
    left.plot(n, [g["seconds"] for g in growths], "o-")
    left.set(xlabel="examples", ylabel="seconds", title="time", xlim=0, ylim=0)
    right.plot(n, [g["bytes_above_first_batch"] / 2**20 for g in growths], "o-")
    right.set(xlabel="examples", ylabel="MiB above the level before", title="peak memory", xlim=0, ylim=0)
    fig.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the shape of BERT-base, where a GPU is at hand")
    parser.add_argument("--batch", type=int, default=8, help="examples at a time, for all methods")
    parser.add_argument("--rounds", type=int, default=11, help="of all methods in turn; medians are reported")
    parser.add_argument("--part", choices=["speed", "selection", "growth"], action="append")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_fishers.json"))
    parser.add_argument("--growth", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.growth:
        measure_growth(options.growth)
        return
    shape, batch = (GPU_SHAPE, 16) if options.gpu else (CPU_SHAPE, options.batch)
    parts = options.part or ["speed", "selection", "growth"]
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    result: dict = {"device": device, "jax": jax.__version__, "shape": shape, "keep": KEEP}
    if "speed" in parts:
        model = jax_model(shape)
        x = np.random.default_rng(1).integers(0, shape["vocabulary"], (5 * batch, shape["tokens"]))
        few, passes = x[:batch], shape["classes"] - 1
        gradients, ours = f"batch gradients, {passes} passes", "compute_pefs, in memory"
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "pefs"
            methods = {gradients: batch_gradients(model, few, passes), "rows": dense_rows(model, few)}
            methods |= {ours: whole(model, x, batch), "compute_pefs, to disk": whole(model, x, batch, path)}
            if not options.gpu:
                methods |= {f"torch {name}": method for name, method in torch_rows(shape, few).items()}
            times = in_turns(methods, options.rounds)
        result |= {"parameters": model.space.size, "batch": batch}
        result["milliseconds_an_example"] = {name: 1e3 * float(np.median(found)) for name, found in times.items()}
        result["over_batch_gradients"] = float(np.median(np.divide(times[ours], times[gradients])))
        ratios = {name: np.divide(found, times[ours]) for name, found in times.items()}
        result["ratios_to_compute_pefs"] = {  # quartiles over the rounds
            name: np.quantile(ratio, (0.25, 0.5, 0.75)).tolist() for name, ratio in ratios.items()
        }
        result["rounds"] = times
    if "selection" in parts:
        times = selection()
        result["selection_milliseconds"] = {name: 1e3 * value for name, value in times.items()}
        result["selection_ratios"] = {name: value / times["ours"] for name, value in times.items()}
    if "growth" in parts:
        result["growth"] = [growth(n) for n in (2_000, 5_000, 10_000, 20_000)]
        peaks = [g["bytes_above_first_batch"] for g in result["growth"]]
        result["peak_of_most_over_peak_of_least"] = peaks[-1] / peaks[0]
        figure(result["growth"], options.out.with_suffix(".png"))
    options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
