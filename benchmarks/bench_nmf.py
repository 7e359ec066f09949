"""D-NPEFF: time to 1.001 times the best loss, against scikit-learn (cd, mu) and a PyTorch NMF.

    python benchmarks/bench_nmf.py synthetic|digits [--seeds 5] [--out bench_nmf.json]

Two problems: sums of components with Zipf-like support (n = 1,500, m = 20,000, K = 512, another one each seed), and the
diagonal PEFs of a digits network (n = 1,200, 1,418 parameters, K = 1,024), of which the seeds draw starts.

All start from the same W and H and run on the same cores, until they arrive or reach a limit: multiplicative updates
get 3,000 iterations (--limit), and where they do not arrive their whole time makes the ratio "at least". All get the
rows sparse, or dense where more than a fifth of them is not zero. Ours counts from a compiled step on; a second ratio
includes compilation (of a first call in a fresh process, so one problem a run), reading and recovery. Every method's W
and H are measured by one function. scikit-learn reports no losses, so it is first run in small pieces to see how many
iterations it needs, and then timed in one call of so many.
"""

import argparse
import functools
import json
import pathlib
import platform
import time
import warnings

import jax
import numpy as np
import scipy.sparse
import torch
from factorization_problems import from_rows
from sklearn.decomposition import NMF

import npeff_jax as npeff
from npeff_jax.pefs import FisherKind

FACTOR = 1.001
R = 32
DENSE = 0.2
COORDINATE_STEPS, MULTIPLICATIVE_STEPS = 200, 3000


def synthetic(n: int, m: int, r: int, keep: int, seed: int) -> npeff.Pefs:
    """Sums of components with Zipf-like support, under noise, the largest entries kept."""
    rng = np.random.default_rng(seed)
    popular = 1 / np.arange(1, m + 1) ** 0.7
    support = rng.random((r, m)) < np.minimum(1, popular * 0.1 * m / popular.sum())
    H = rng.gamma(1.0, size=(r, m)) * support
    W = rng.gamma(0.5, size=(n, r)) * (rng.random((n, r)) < 0.2) + 1e-3
    X = W @ H * rng.gamma(4.0, 0.25, size=(n, m))
    return from_rows((X / np.linalg.norm(X, axis=1, keepdims=True))[:, None, :], FisherKind.DIAGONAL, keep)


@functools.cache
def digits(n: int, keep: int) -> npeff.Pefs:
    """Diagonal PEFs of the convolutional network of the demo."""
    task = npeff.tasks.digits(progress=False)
    return npeff.compute_pefs(task.model, task.train_images[:n], npeff.Diagonal(), keep=keep, progress=False)


PROBLEMS = {"synthetic": lambda seed: synthetic(1500, 20_000, R, 512, seed), "digits": lambda seed: digits(1200, 1024)}


def as_given(X: scipy.sparse.csr_array) -> scipy.sparse.csr_matrix | np.ndarray:
    """To the others: sparse as scikit-learn takes it, or dense where that is faster."""
    return X.toarray() if X.nnz > DENSE * X.shape[0] * X.shape[1] else scipy.sparse.csr_matrix(X)


def loss_of(X: scipy.sparse.csr_array, W: np.ndarray, H: np.ndarray) -> float:
    """‖X − W H‖² / ‖X‖² in float64, without forming W H."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    norm = float((X.data.astype(np.float64) ** 2).sum())
    return (norm - 2 * np.sum((X @ H.T) * W) + np.sum((W.T @ W) * (H @ H.T))) / norm


def sklearn_run(X, W, H, solver: str, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """W, H and seconds of one call."""
    model = NMF(H.shape[0], init="custom", solver=solver, max_iter=steps, tol=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "maximum number of iterations reached"
        W = model.fit_transform(as_given(X), W=W.copy(), H=H.copy())
    return W, model.components_, time.perf_counter() - start


def sklearn_curve(X, W, H, solver: str, steps: int, size: int, target: float) -> list[tuple[float, float]]:
    """(iterations, loss) after each piece of ``size`` iterations, until ``target``. Not timed: a call has its costs."""
    curve: list[tuple[float, float]] = []
    while len(curve) * size < steps and not (curve and curve[-1][1] <= target):
        W, H, _ = sklearn_run(X, W, H, solver, size)
        curve.append((size * (len(curve) + 1), loss_of(X, W, H)))
    return curve


def torch_curve(X, W, H, steps: int, size: int, target: float) -> list[tuple[float, float]]:
    """Multiplicative updates, both orientations of the rows stored."""

    def make(A: scipy.sparse.csr_matrix | np.ndarray) -> torch.Tensor:
        if isinstance(A, np.ndarray):
            return torch.tensor(A)
        return torch.sparse_csr_tensor(torch.tensor(A.indptr), torch.tensor(A.indices), torch.tensor(A.data), A.shape)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "sparse CSR support is in beta"
        rows, columns = make(as_given(X)), make(as_given(X.T.tocsr()))
    w, ht = torch.tensor(W), torch.tensor(H.T.copy())
    total, curve = 0.0, []
    while len(curve) * size < steps and not (curve and curve[-1][1] <= target):
        start = time.perf_counter()
        for _ in range(size):
            w = w * (rows @ ht) / (w @ (ht.T @ ht) + 1e-9)
            ht = ht * (columns @ w) / (ht @ (w.T @ w) + 1e-9)
        total += time.perf_counter() - start
        curve.append((total, loss_of(X, w.numpy(), ht.numpy().T)))
    return curve


def our_curve(pefs, start, r: int, steps: int) -> tuple[list[tuple[float, float]], float, float]:
    """The curve of a compiled run; the seconds of reading and recovery; those of compilation."""
    solver = npeff.HALS(exchanges=0)  # the same local minimum as the others: time is compared, not luck
    options = {"start": start, "solver": solver, "stopping": npeff.Stopping(steps, tolerance=-1.0), "progress": False}
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        found = npeff.decompose(pefs, r, **options)
        took.append(time.perf_counter() - begin)
    curve = list(zip(found.history.seconds.tolist(), found.history.loss.tolist(), strict=True))
    return curve, took[1] - curve[-1][0], took[0] - took[1]


def reached(curve: list[tuple[float, float]], target: float) -> float:
    """The seconds, or iterations, at which the loss first came to ``target``."""
    return next((at for at, loss in curve if loss <= target), float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=MULTIPLICATIVE_STEPS, help="iterations of mu at most")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench_nmf.json"))
    options = parser.parse_args()
    runs, compilation = [], 0.0
    for seed in range(options.seeds):
        pefs = PROBLEMS[options.problem](seed)
        X = pefs.to_scipy()
        rng = np.random.default_rng(seed)
        scale = np.sqrt(X.mean() / R)
        W = (scale * rng.random((X.shape[0], R))).astype(np.float32)
        H = (scale * rng.random((R, X.shape[1]))).astype(np.float32)
        curve, beside, compiled = our_curve(pefs, npeff.Start(W, H), R, COORDINATE_STEPS)
        curves = {"npeff_jax HALS": curve}
        compilation = compilation or compiled  # of the first seed: later ones find it compiled
        counts = {"cd": sklearn_curve(X, W, H, "cd", COORDINATE_STEPS, 1, 0.0)}
        target = FACTOR * min(curves["npeff_jax HALS"][-1][1], counts["cd"][-1][1])
        counts["mu"] = sklearn_curve(X, W, H, "mu", options.limit, 5, target)
        curves["torch mu"] = torch_curve(X, W, H, options.limit, 5, target)
        run = {name: {"seconds": reached(c, target), "end": c[-1][0], "loss": c[-1][1]} for name, c in curves.items()}
        for solver, curve in counts.items():
            needed = reached(curve, target)
            took = sklearn_run(X, W, H, solver, int(min(needed, curve[-1][0])))[2]
            seconds = took if np.isfinite(needed) else np.inf
            run[f"scikit-learn {solver}"] = {"seconds": seconds, "end": took, "loss": curve[-1][1]}
        ours = run["npeff_jax HALS"]["seconds"]
        ours = ours if np.isfinite(ours) else np.nan  # then there is no ratio
        for entry in run.values():
            entry["ratio"] = min(entry["seconds"], entry["end"]) / ours
            entry["ratio in all"] = min(entry["seconds"], entry["end"]) / (ours + beside + compilation)
            entry["arrived"] = float(np.isfinite(entry["seconds"]))
        runs.append(run | {"reading and recovery": beside})
    print("| method | seconds to target | seconds in all | final loss | times ours | all included | seeds arrived |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in run:
        median = {key: float(np.median([run[name][key] for run in runs])) for key in runs[0][name]}
        bound = "" if median["arrived"] == 1 else "≥ "
        arrived = int(sum(run[name]["arrived"] for run in runs))
        print(
            f"| {name} | {median['seconds']:.3g} | {median['end']:.3g} | {median['loss']:.5g} | "
            f"{bound}{median['ratio']:.3g} | {bound}{median['ratio in all']:.3g} | {arrived} of {len(runs)} |"
        )
    print(f"\nof ours beside: compilation {compilation:.2g} s, reading and recovery {beside:.2g} s (last seed)")
    machine = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    settings = {"problem": options.problem, "seeds": options.seeds, "r": R}
    options.out.write_text(json.dumps(machine | settings | {"compilation": compilation, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
