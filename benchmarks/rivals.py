"""NPEFF's components and those of its rivals through the same audit, at the same number and the same KL of every move.

    python benchmarks/rivals.py [--problem digits] [--components 32] [--seeds 5] [--methods NPEFF ...] [--out FILE]
    python benchmarks/rivals.py --problem files --folder FOLDER [--n-files 4500] --components 64
    python benchmarks/rivals.py --problem program
    python benchmarks/rivals.py --problem planted --components 128

Every method gives r directions, and a coefficient per example and direction; `npeff.audit` asks the same five things of
them: the same held-out examples, 16 top examples each, plain moves (without the rejection that `audit` has by default)
up to a mean KL of 0.01 nats on these (of the program 1e-6), two further seeds and a run of the held-out examples alone.
Moves end earlier where equation 2 does (`npeff.KLBudget`); with ``--growth inf`` all have the whole KL. Directions of
activations are moved in the space of activations: as parameters of a model that adds a shift to them, so that equation
5 holds for them as well. What a rival's directions predict is computed with coefficients fitted to the Fishers, which
have the scale that the prediction needs.

* ``digits``: the network of `tasks.digits`. The audit's thresholds were fixed on it, for components of NPEFF, before
  any rival was looked at.
* ``files``: the file-type network on files out of pinned packages (`file_set.py`, fetched into FOLDER if they are not
  there), on which no threshold was chosen. That moves end where equation 2 does was decided after the first results.
* ``program``: the compiled program of `tasks.inference`, whose Boolean variables are known. They are also matched one
  to one with directions (`match_concepts`, Matthews correlation of 0.9 on the other half of the held-out examples), by
  a method's own coefficients, and by dᵀFd for directions d of parameters.
* ``planted``: the base world of `planted.py`. There is no model to move, so there is no audit: planted components are
  matched one to one with directions (`recovery`), and their activity is told from a method's own coefficients, or from
  those fitted to the Fishers. Methods of activations and of classes do not apply.

Of a rival's directions at most 32 are audited, evenly over all: forward passes are what takes the time. A row is
appended for each method and seed; a run that finds rows in the file goes on with what is missing.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np
from planted import measured
from rival_methods import METHODS
from rival_problems import SIGNED, Planted, Problem, digits, files, planted, program

import npeff_jax as npeff
from npeff_jax.factorization import CoefficientFit, Decomposition, History

MOST_AUDITED = 32
"""Directions of a rival that are audited."""

CHECKS = ("selective", "found again", "held out", "readable", "predicted")

MATCHED = ("matched", "matched by dᵀFd")

RECOVERED = {
    "F1": "f1",
    "F1, coefficients fitted": "f1_fitted",
    "mean max abs. cosine": "mean_max_cosine",
    "matched abs. cosine": "matched",
    "unique": "uniqueness",
    "dead": "dead",
    "s of CPU": "cpu",
}
"""Columns of planted Fishers."""


def run(problem: Problem, name: str, r: int, seed: int) -> dict[str, Any]:
    """One method through the audit."""
    method, start, cpu = METHODS[name], time.perf_counter(), time.process_time()
    found = method(problem.decomposed, r, seed)
    activations = name.endswith("of activations")
    model = problem.shifted if activations else problem.model
    pefs, heldout = (side.shifted if activations else side.pefs for side in (problem.decomposed, problem.heldout))
    examples = problem.heldout.activations if activations else problem.heldout.examples
    W, held = (np.asarray(found.encode(side), np.float32) for side in (problem.decomposed, problem.heldout))
    components = _as_decomposition(pefs, W, found.directions, seed)
    runs = {
        f"seed {seed + 100 * k}": method(problem.decomposed, r, seed + 100 * k).encode(problem.heldout) for k in (1, 2)
    }
    runs["held-out examples alone"] = method(problem.heldout, r, seed).encode(problem.heldout)
    nothing = np.zeros(len(held))
    fit = CoefficientFit(held, nothing, nothing, float("nan"))
    options = {"fit": fit, "seed": seed, "progress": False}
    table = npeff.selectivity(
        model, components, heldout, examples, components=_audited(name, W.shape[1]), n_top=problem.n_top,
        norm=problem.budget, reject_below=None,
        nulls=npeff.Nulls(n_random_directions=0, n_random_examples=problem.n_random), **options,
    )  # fmt: skip
    if name != "NPEFF":
        table = dataclasses.replace(table, predicted_kl=_predicted(components, heldout, table))
    audit = npeff.audit(
        model, components, heldout, examples, table=table, runs=runs, readable=problem.heldout.readable, **options
    )
    checks = {check.name: None if check.not_applicable else check for check in audit.checks}
    return {
        "problem": problem.name,
        "method": name,
        "seed": seed,
        "components": W.shape[1],
        "audited": len(table.components),
        "passed": {key: check and int(check.passed.sum()) for key, check in checks.items()},
        "all": int(audit.passed.sum()),
        "fails alone": {
            key: check and int((_others_pass(audit, key) & ~check.passed).sum()) for key, check in checks.items()
        },
        "median": {check.name: float(np.nanmedian(check.statistic)) for check in audit.applicable},
        "verdicts": [audit.verdict(int(j)) for j in audit.components],
        "rules": list(audit["readable"].notes),
        **_matched(problem, held, None if activations else found.directions, seed),
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
    }


def _matched(problem: Problem, held: np.ndarray, directions: np.ndarray | None, seed: int) -> dict[str, float | None]:
    """How many variables of a program are matched one to one, by coefficients and by what directions do."""
    if not problem.variables:
        return {}
    effects = None if directions is None else problem.heldout.effects(directions)
    found = [
        None if ranking is None else npeff.evaluation.match_concepts(ranking, problem.variables, seed=seed).n_matched()
        for ranking in (held, effects)
    ]
    return dict(zip(MATCHED, found, strict=True))


def recover(problem: Planted, name: str, r: int, seed: int) -> dict[str, Any]:
    """One method on planted Fishers."""
    start, cpu = time.perf_counter(), time.process_time()
    side = problem.signed if name.endswith(SIGNED) else problem.side
    found = METHODS[name.removesuffix(SIGNED)](side, r, seed)
    W = np.asarray(found.encode(side), np.float32)
    spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    components = _as_decomposition(side.pefs, W, found.directions, seed)
    planted = problem.world.vectors, problem.world.coefficients
    fitted = npeff.evaluation.recovery(components, *planted, npeff.fit_coefficients(components, side.pefs))
    row = {"problem": problem.name, "method": name, "seed": seed, "components": W.shape[1]}
    return row | measured(npeff.evaluation.recovery(components, *planted)) | {"f1_fitted": fitted.mean_f1} | spent


def _recoverable(names: list[str]) -> list[str]:
    """Methods that need no model, those of gradients with either kind of them."""
    own = [name for name in names if not name.endswith("of activations") and not name.startswith("class")]
    return own + [name + SIGNED for name in own if name.endswith("gradients")]


def _audited(name: str, r: int) -> np.ndarray:
    """All components, or of a rival's directions so many."""
    return np.arange(0, r, 1 if name == "NPEFF" else -(-r // MOST_AUDITED))


def _others_pass(audit: npeff.evaluation.Audit, name: str) -> np.ndarray:
    """Which components pass all checks but one."""
    others = [check.passed for check in audit.applicable if check.name != name]
    return np.logical_and.reduce(others) if others else np.ones(len(audit.components), bool)


def _as_decomposition(pefs: npeff.Pefs, W: np.ndarray, directions: np.ndarray, seed: int) -> Decomposition:
    """Directions at unit norm; one that is zero becomes a random one, which no example has."""
    directions = np.array(directions, np.float64)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    zero = np.flatnonzero(norms[:, 0] <= 0)
    directions[zero] = np.random.default_rng(seed).normal(size=(len(zero), directions.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    empty = np.zeros(0)
    history = History(np.zeros(0, np.int64), empty, empty)
    used = np.flatnonzero(np.abs(directions).max(axis=0) > 0)
    vectors = np.ascontiguousarray(directions[:, used], np.float32)
    return Decomposition(pefs.schema, W, vectors, used, history, "given by another method", {})


def _predicted(components: Decomposition, heldout: npeff.Pefs, table: npeff.Selectivity) -> np.ndarray:
    """Equation 5 with the coefficients that fit the Fishers best: others' own coefficients have another scale."""
    W = np.asarray(npeff.fit_coefficients(components, heldout).coefficients, np.float64)[table.evaluated]
    G = np.asarray(components.pseudo_fishers, np.float64)
    curvature = np.asarray(heldout.norms, np.float64)[table.evaluated, None] / 2 * (W @ np.square(G @ G.T))
    return np.square(table.norms)[:, :, None] * curvature.T[table.components, None, :]


def table(rows: list[dict]) -> str:
    """Means over seeds of how many pass, with the smallest and the largest, as Markdown."""
    matched = [key for key in MATCHED if rows and key in rows[0]]
    heads = ["method", "r (audited)", *CHECKS, "all that apply", "median KL ratio", "median AUC", *matched]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, own in _by_method(rows):
        cells = [_cell([row["passed"][check] for row in own]) for check in CHECKS]
        ratio, auc = (np.mean([row["median"].get(key, np.nan) for row in own]) for key in ("selective", "readable"))
        cells += [_cell([row["all"] for row in own]), f"{ratio:.3g}", f"{auc:.2f}"]
        cells += [_cell([row[key] for row in own]) for key in matched]
        lines.append(f"| {name} | {own[0]['components']} ({own[0]['audited']}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_planted(rows: list[dict]) -> str:
    """The same of what was recovered."""
    lines = ["| method | r | " + " | ".join(RECOVERED) + " |", "|---|" + "---:|" * (len(RECOVERED) + 1)]
    for name, own in _by_method(rows):
        cells = [_cell([row[key] for row in own]) for key in RECOVERED.values()]
        lines.append(f"| {name} | {own[0]['components']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_method(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    return [(name, [row for row in rows if row["method"] == name]) for name in dict.fromkeys(r["method"] for r in rows)]


def _cell(values: list) -> str:
    if any(value is None for value in values):
        return "–"
    spread = "" if len(values) == 1 else f" ({min(values):.3g} to {max(values):.3g})"
    return f"{np.mean(values):.3g}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("digits", "files", "program", "planted"), default="digits")
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=pathlib.Path, help="where the packages of --problem files are, or go")
    parser.add_argument("--n-files", type=int, default=4500, help="of which every second one is held out")
    parser.add_argument(
        "--growth", type=float, default=5.0, help="of KLBudget; inf moves everything by the same KL, local or not"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("rivals.jsonl"))
    options = parser.parse_args()
    if (options.folder is not None) != (options.problem == "files"):
        parser.error("--folder is needed with --problem files, and only there")
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    fixed = {"digits": digits, "program": program, "files": lambda: files(options.folder, options.n_files)}
    models = None if options.problem == "planted" else fixed[options.problem]()
    if models is not None:
        models = dataclasses.replace(models, budget=dataclasses.replace(models.budget, growth=options.growth))
    names = _recoverable(options.methods) if models is None else options.methods
    for seed in range(options.seeds):
        problem = planted(seed) if models is None else models
        asked = {"asked": options.components} | ({} if models is None else {"growth": options.growth})
        rows = [row for row in rows if row["problem"] == problem.name and asked.items() <= row.items()]
        done = {(row["method"], row["seed"]) for row in rows}
        for name in names:
            if (name, seed) in done:
                continue
            one_of = recover if isinstance(problem, Planted) else run
            rows.append(one_of(problem, name, options.components, seed) | asked)
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(
                json.dumps({key: value for key, value in rows[-1].items() if key not in ("verdicts", "rules")}),
                flush=True,
            )
    print(table_of_planted(rows) if models is None else table(rows))


if __name__ == "__main__":
    main()
