"""Memory over rounds of a session in which every round brings a fresh function.

    python benchmarks/bench_growth.py [--rounds 200]

Each round computes PEFs, decomposes them, fits coefficients and measures selectivity for a model of a new lambda, as a
notebook cell does that is run again and again. Resident memory is printed every twenty rounds, with how many of the
functions are still alive: caches of compiled programs that are keyed on a function keep both.
"""

import argparse
import gc
import weakref
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import npeff_jax as npeff


def resident_megabytes() -> float:
    """Resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def one_round(examples: np.ndarray, params: dict[str, np.ndarray]) -> weakref.ref:
    """Everything that a short session does; returns a reference that dies with the function."""
    logits_fn = lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"]  # noqa: E731
    model = npeff.Model(logits_fn, params)
    pefs = npeff.compute_pefs(model, examples, npeff.LowRank(), keep=20, progress=False)
    decomposition = npeff.decompose(pefs, 3, progress=False)
    fit = npeff.fit_coefficients(decomposition, pefs)
    npeff.selectivity(model, decomposition, pefs, examples, fit=fit, n_top=4, progress=False)
    return weakref.ref(logits_fn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    examples = rng.normal(size=(32, 6)).astype(np.float32)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("w", (6, 4)), ("v", (4, 3)))}
    functions = []
    print("rounds  resident MB  functions alive")
    for i in range(1, options.rounds + 1):
        functions.append(one_round(examples, params))
        if i % 20 == 0 or i == options.rounds:
            gc.collect()
            alive = sum(function() is not None for function in functions)
            print(f"{i:6}  {resident_megabytes():11.1f}  {alive:15}", flush=True)


if __name__ == "__main__":
    main()
