"""Components that are asked for: are they the planted ones, do they predict, and are absent ones refused?

    python benchmarks/tunings.py [--fast] [--only planted tracr evidence] [--out tunings.json]

planted    A known component is marked in a problem with two components too few, so that a free run mixes it with
           others. |cosine| of the named component with the planted one, against the best component of a free run, and
           against the named component of permuted marks.
tracr      Boolean variables of a compiled program, all named at once from 10% of the examples. AUC of coefficients
           on the other examples, against permuted marks, a logistic probe on the activations that is trained on the
           same 10%, and the best component of a free run as the same 10% pick it. Then moves along named components:
           how much more predictions change where the variable is true, against moves along free components of that KL.
evidence   A digits network: a concept that it has (an image is a nine), and one that it cannot have (a coin per image).
           What `evaluation.tuning_evidence` says of both.

Each over five seeds; the table has medians and ranges.
"""

import argparse
import json
import os
import pathlib
import time

import jax
import numpy as np
from ranges import print_ranges

import npeff_jax as npeff
from npeff_jax.evaluation import auc, tuning_evidence
from npeff_jax.factorization import Tuning
from npeff_jax.perturbation import component_directions, perturbed_kl, scale_to_kl

SEEDS = range(5)
STOP = npeff.Stopping(max_steps=200)


def planted(fast: bool) -> list[dict]:
    """Both flavours, marks on all examples and on a quarter of them."""
    records = []
    for kind in ("low-rank", "diagonal"):
        for seed in SEEDS:
            records.append(planted_by(kind, seed, fast))
            print(records[-1], flush=True)
    return records


def planted_by(kind: str, seed: int, fast: bool) -> dict:
    """One problem."""
    size = {"n": 120, "m": 60, "r": 8} if fast else {"n": 300, "m": 200, "r": 16}
    make = npeff.tasks.planted if kind == "low-rank" else npeff.tasks.planted_diagonal
    made = make(seed=100 + seed, shared=1.0 if kind == "low-rank" else 0.0, **size)
    rng, r = np.random.default_rng(seed), size["r"] - 2
    target = int(np.argsort(np.sum(made.coefficients**2, axis=0))[1])  # a weak one: what a fit gives up first
    mask = made.coefficients[:, target] > 0.02

    def cosines(found: npeff.Decomposition) -> np.ndarray:
        G = np.stack([found.pseudo_fisher(j) for j in range(found.n_components)])
        return np.abs(G @ made.vectors[target])

    def named(marks: np.ndarray) -> float:
        options = {"seed": seed, "stopping": STOP, "progress": False}
        return float(cosines(npeff.decompose(made.pefs, r, tunings=[Tuning("it", marks)], **options))[0])

    free = npeff.decompose(made.pefs, r, seed=seed, stopping=STOP, progress=False)
    quarter = np.where(rng.random(len(mask)) < 0.25, mask.astype(float), np.nan)
    return {
        "kind": kind,
        "seed": seed,
        "free": float(cosines(free).max()),
        "all marked": named(mask),
        "a quarter marked": named(quarter),
        "permuted marks": named(rng.permutation(mask)),
    }


def tracr(fast: bool) -> list[dict]:
    """Variables of the inference program that 10% to 50% of the examples have."""
    task = npeff.tasks.inference(n_examples=240 if fast else 600)
    one = npeff.LowRank(max_rows=1)
    pefs = npeff.compute_pefs(task.model, task.examples, one, keep=2048, progress=False)
    activations = npeff.evaluation.activations(task.model, task.examples, "output").reshape(len(task.labels), -1)
    names = [name for name, values in task.concepts.items() if 0.1 <= values.mean() <= 0.5]
    r, n = len(names) + 12, len(task.labels)
    print(f"{len(names)} variables, {n} examples, r = {r}")
    records = []
    for seed in SEEDS:
        records += tracr_by(task, pefs, activations, names, seed)
    return records


def tracr_by(task: object, pefs: npeff.Pefs, activations: np.ndarray, names: list[str], seed: int) -> list[dict]:
    """All variables from one tenth of the examples."""
    from sklearn.linear_model import LogisticRegression

    records, r, n = [], len(names) + 12, len(task.labels)
    rng = np.random.default_rng(seed)
    known = rng.permutation(n) < 0.1 * n
    options = {"seed": seed, "stopping": STOP, "progress": False}
    truth = {name: np.asarray(task.concepts[name], bool) for name in names}
    usable = [name for name in names if 2 <= truth[name][known].sum() <= known.sum() - 2]

    def marked(name: str, permute: bool) -> np.ndarray:
        values = np.full(n, np.nan)
        own = truth[name][known].astype(float)
        values[known] = rng.permutation(own) if permute else own
        return values

    found = npeff.decompose(pefs, r, tunings=[Tuning(x, marked(x, False)) for x in usable], **options)
    chance = npeff.decompose(pefs, r, tunings=[Tuning(x, marked(x, True)) for x in usable], **options)
    free = npeff.decompose(pefs, r, **options).coefficients
    directions = list(component_directions(task.model, found, np.arange(found.n_components)))
    moved = [scale_to_kl(task.model, d, task.examples[:150], 1e-3)[0] for d in directions]
    kl = perturbed_kl(task.model, task.examples, moved, [1.0, -1.0]).max(axis=1)
    for j, name in enumerate(usable):
        y = truth[name]
        picked = int(np.argmax([auc(free[known, k], y[known]) for k in range(r)]))
        probe = LogisticRegression(max_iter=2000).fit(activations[known], y[known])
        ratios = (kl[:, y].mean(axis=1) + 1e-12) / (kl[:, ~y].mean(axis=1) + 1e-12)
        records.append(
            {
                "variable": name,
                "seed": seed,
                "named": auc(found.coefficients[~known, j], y[~known]),
                "permuted marks": auc(chance.coefficients[~known, j], y[~known]),
                "probe on activations": auc(probe.decision_function(activations[~known]), y[~known]),
                "best free component": auc(free[~known, picked], y[~known]),
                "KL ratio, named": float(ratios[j]),
                "KL ratio, free components": float(np.median(ratios[len(usable) :])),
                "KL ratio, best free component": float(ratios[len(usable) :].max()),
            }
        )
        print(records[-1], flush=True)
    return records


def evidence(fast: bool) -> list[dict]:
    """One concept that is in the network, one that is not."""
    digits = npeff.tasks.digits(progress=False)
    n, r, keep = (200, 8, 256) if fast else (600, 16, 1024)
    low_rank = npeff.LowRank(max_rows=3)
    pefs, heldout = (
        npeff.compute_pefs(digits.model, images[:n], low_rank, keep=keep, progress=False)
        for images in (digits.train_images, digits.heldout_images)
    )
    records = []
    for seed in range(20, 20 + len(SEEDS)):  # the statistic was chosen on others
        rng = np.random.default_rng(seed)
        marks = {"a nine": (digits.train_labels[:n] == 9) * 1.0, "a coin": rng.integers(0, 2, n) * 1.0}
        unknown = rng.random(n) < 0.5
        tunings = [Tuning(name, np.where(unknown, np.nan, values)) for name, values in marks.items()]
        options = {"seed": seed, "stopping": npeff.Stopping(max_steps=60), "progress": False}
        found = npeff.decompose(pefs, r, tunings=tunings, **options)
        h = heldout.n_examples
        held = {"a nine": digits.heldout_labels[:h] == 9, "a coin": rng.integers(0, 2, h)}
        told = tuning_evidence(found, pefs, tunings, heldout, held, seed=seed, progress=False)
        print(told, flush=True)
        for k, name in enumerate(told.names):
            records.append(
                {
                    "concept": name,
                    "seed": seed,
                    "found": told.found[name],
                    "lift": float(told.lift[k]),
                    "permuted lift": float(np.median(told.null[:, k])),
                    "low": float(told.interval[k, 0]),
                    "high": float(told.interval[k, 1]),
                    "p": float(told.p_value[k]),
                    "AUC": float(told.auc[k]),
                    "permuted AUC": float(np.median(told.null_auc[:, k])),
                }
            )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="smaller problems, to check that the script runs")
    parser.add_argument("--only", nargs="*", default=["planted", "tracr", "evidence"])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tunings.json"))
    options = parser.parse_args()
    results: dict[str, object] = {
        "fast": options.fast,
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
    }
    for name, run, by in (
        ("planted", planted, "kind"),
        ("tracr", tracr, "variable"),
        ("evidence", evidence, "concept"),
    ):
        if name not in options.only:
            continue
        begin = time.process_time()
        records = run(options.fast)
        results[name] = {"records": records, "cpu_seconds": round(time.process_time() - begin, 1)}
        print_ranges(name, records, by)
        if name == "tracr":
            print_ranges("tracr, all variables", [record | {"variable": "all"} for record in records], by)
        options.out.write_text(json.dumps(results, indent=1))
    print(f"\n{results['device']}; written to {options.out}")


if __name__ == "__main__":
    main()
