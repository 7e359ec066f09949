"""How much of a planted world of Fishers is found: over noise, components below and above the truth, and K.

    python benchmarks/planted.py [--fast | --full | --large R [--minutes M]] [--seeds 3] [--out planted.json]

The world is `npeff_jax.tasks.planted_fishers`: Zipf frequencies, a hierarchy, correlated pairs, overlapping supports,
Fishers of rank 1 to 4. By default 128 components in 2,000 examples; ``--full`` is 1,024 components in 9,000 examples
(about 20,000 rows), once, and ``--large 512`` the same world at half the size, checkpointed beside ``--out`` and ended
after M minutes of iterations if they have not converged by then. Measures are those of
`npeff_jax.evaluation.recovery`. Two nulls stand beside each problem: the same decomposition with its coefficients
permuted over the examples, and random vectors on the same parameters with their fitted coefficients.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import time
from typing import Any

import jax
import numpy as np

import npeff_jax as npeff
from npeff_jax.evaluation import recovery
from npeff_jax.factorization import Checkpoints, Iterate

BASE = {"n": 2000, "r": 128, "m": 100_000, "support": 512, "keep": 2048, "noise": 0.3}
FAST = {"n": 200, "r": 12, "m": 4000, "support": 64, "keep": 400, "noise": 0.3}
FULL = BASE | {"n": 9000, "r": 1024, "m": 400_000}


def large(r: int) -> dict:
    """The full world with r components: as many examples and parameters per component."""
    return FULL | {"n": FULL["n"] * r // FULL["r"], "r": r, "m": FULL["m"] * r // FULL["r"]}


def variants(base: dict) -> list[tuple[str, dict, float]]:
    """Name, world and found components as a multiple of the planted ones."""
    found = [("base", base, 1.0)]
    found += [(f"noise {noise}", base | {"noise": noise}, 1.0) for noise in (0.0, 0.6, 1.0)]
    found += [(f"{factor:g} times as many components", base, factor) for factor in (0.5, 2.0)]
    return found + [(f"K = {keep}", base | {"keep": keep}, 1.0) for keep in (base["keep"] // 8, base["keep"] // 2)]


def measured(found: npeff.evaluation.Recovery) -> dict[str, float]:
    """The figures of a table's row."""
    return {
        "f1": found.mean_f1,
        "f1_low": found.interval()[0],
        "f1_high": found.interval()[1],
        "mean_max_cosine": found.mean_max_cosine,
        "matched": float(found.matched.mean()),
        "uniqueness": found.uniqueness,
        "dead": float(found.dead.mean()),
        "frequent": int(found.frequent.sum()),
    }


def run(name: str, world: dict, factor: float, seed: int, **options: Any) -> list[dict]:
    """One world, decomposed once, beside its nulls."""
    planted = npeff.tasks.planted_fishers(seed=seed, **world)
    r = max(1, round(factor * world["r"]))
    start = time.perf_counter()
    decomposition = npeff.decompose(planted.pefs, r, seed=seed, progress=False, **options)
    seconds = time.perf_counter() - start
    common = {"problem": name, "seed": seed, "components": r, "rows": planted.pefs.total_rows} | world
    rows = [
        common
        | {"method": "NPEFF", "seconds": seconds, "loss": float(decomposition.history.loss[-1])}
        | {"steps": int(decomposition.history.step[-1]), "stopped": decomposition.stopped}
        | measured(recovery(decomposition, planted.vectors, planted.coefficients))
    ]
    rng = np.random.default_rng(seed)
    permuted = dataclasses.replace(decomposition, coefficients=rng.permutation(decomposition.coefficients))
    rows.append(common | {"method": "permuted"} | measured(recovery(permuted, planted.vectors, planted.coefficients)))
    vectors = rng.standard_normal((r, len(decomposition.parameter_indices)), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    drawn = dataclasses.replace(decomposition, pseudo_fishers=vectors)
    fit = npeff.fit_coefficients(drawn, planted.pefs)
    rows.append(
        common | {"method": "random vectors"} | measured(recovery(drawn, planted.vectors, planted.coefficients, fit))
    )
    return rows


def watched(minutes: float, folder: pathlib.Path) -> dict[str, Any]:
    """Options of a long decomposition: it says how far it is, can be resumed, and ends in time."""

    def callback(at: Iterate) -> bool:
        print(f"step {at.step}: loss {at.loss:.4f} after {at.seconds:.0f} s", flush=True)
        return at.seconds > 60 * minutes

    return {"callback": callback, "checkpoints": Checkpoints(folder, every=2)}


def table(rows: list[dict]) -> str:
    """Medians over seeds, as Markdown."""
    heads = ("problem", "method", "r found", "F1 (95%)", "mean max |cos|", "matched", "unique", "dead", "s")
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for problem, method in dict.fromkeys((row["problem"], row["method"]) for row in rows):
        own = [row for row in rows if (row["problem"], row["method"]) == (problem, method)]

        def median(key: str, own: list[dict] = own) -> float:
            return float(np.median([row.get(key, np.nan) for row in own]))

        seconds = "" if np.isnan(median("seconds")) else f"{median('seconds'):.1f}"
        f1 = f"{median('f1'):.3f} ({median('f1_low'):.3f} to {median('f1_high'):.3f})"
        figures = [f"{median(key):.3f}" for key in ("mean_max_cosine", "matched", "uniqueness", "dead")]
        lines.append("| " + " | ".join([problem, method, f"{median('components'):.0f}", f1, *figures, seconds]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--fast", action="store_true", help="12 components in 200 examples: checks that the script runs")
    size.add_argument("--full", action="store_true", help="1,024 components in about 20,000 rows, alone")
    size.add_argument("--large", type=int, metavar="R", help="the same with R components, 9,000 R / 1,024 examples")
    parser.add_argument("--minutes", type=float, default=60.0, help="of iterations of a large run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("planted.json"))
    options = parser.parse_args()
    if options.large is not None and options.large < 16:
        parser.error(f"--large is {options.large}; expected 16 components or more")
    r = FULL["r"] if options.full else options.large
    problems = [(f"{r:,} components", large(r), 1.0)] if r else variants(FAST if options.fast else BASE)
    long = watched(options.minutes, options.out.with_suffix(".checkpoints")) if r else {}
    rows: list[dict] = []
    for seed in range(1 if r or options.fast else options.seeds):
        for name, world, factor in problems:
            rows += run(name, world, factor, seed, **long)
            machine = {"machine": platform.machine(), "jax": jax.__version__, "device": str(jax.devices()[0])}
            options.out.write_text(json.dumps({"environment": machine, "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
