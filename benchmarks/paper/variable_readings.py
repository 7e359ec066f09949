"""More ways to read a compiled program's variables off components, for those that gᵀFg of one decomposition misses.

The program, its examples and its PEFs are those of `ground_truth.py`; scores are those of `program_variables.py`, means
of two folds for three halvings. Tried: the readings of several sizes side by side; rows scaled by a power of the
spectrum of their Gram matrix before they are decomposed, which makes small directions larger; and unions of one to
eight cut components, chosen on one half of the examples and scored on the other (`_unions.py`), beside the same unions
of other methods, random directions, random examples and permuted coefficients.
"""

import dataclasses

import _harness
import ground_truth
import numpy as np
import program_variables
from _unions import MOST_TERMS, union_scores

import npeff_jax as npeff
from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.evaluation import match_concepts
from npeff_jax.factorization import KernelRows, fit_alone
from npeff_jax.tasks import PAPER_SIZED_LANGUAGE, SMALL_LANGUAGE

HALVINGS = (0, 1, 2)
POWERS = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
CHOSEN = "coefficients of two sizes, gᵀFg of the smaller"


def main() -> None:
    script = _harness.Script(__doc__.splitlines()[0])
    language = SMALL_LANGUAGE if script.fast else PAPER_SIZED_LANGUAGE
    task = npeff.tasks.inference(n_examples=240 if script.fast else 1616, language=language)
    if not script.fast and task.digest != ground_truth.DIGEST:
        raise SystemExit(f"program or examples have changed: digest {task.digest}, expected {ground_truth.DIGEST}")
    pefs = ground_truth.compute(script, task)
    sizes = (4, 8, 16) if script.fast else (32, 64, 128)
    small, middle, large = sizes
    W, alone, decomposition = read(pefs, sizes)
    rankings = {f"gᵀFg, r={r}": alone[r] for r in sizes}
    beside = {
        CHOSEN: np.hstack([W[middle], W[small], alone[small]]),
        "gᵀFg of two sizes, coefficients of the smaller": np.hstack([alone[middle], alone[small], W[small]]),
        "both readings of one size": np.hstack([alone[middle], W[middle]]),
    }
    rankings |= beside
    rankings["all of these"] = np.hstack([*W.values(), *alone.values()])
    for power in POWERS:
        scaled = scale(pefs, power)
        found = npeff.decompose(scaled, large, rows=KernelRows(), progress=False)
        rankings[f"spectrum to the power −{power:g}, gᵀFg"] = fit_alone(found, scaled)
        controls = npeff.evaluation.control_rankings(scaled, W[large])
        rankings[f"spectrum to the power −{power:g}, random directions"] = controls["random directions"]
    rows, details = [], {}
    for name, ranking in rankings.items():
        found = [match_concepts(ranking, task.concepts, n_permutations=0, seed=seed) for seed in HALVINGS]
        matched = [one.n_matched() for one in found]
        script.log(f"{name}: {matched}")
        rows.append(_harness.Row(name, "–", ", ".join(f"{one:g}" for one in matched), f"{ranking.shape[1]} columns"))
        scores = np.mean([one.score.mean(axis=0) for one in found], axis=0)
        details[name] = dict(zip(task.concepts, scores.tolist(), strict=True))
    stream = npeff.evaluation.activations(task.model, task.examples, "output")
    others = program_variables.methods(pefs, decomposition, stream, seed=0)
    unions = {f"coefficients, r={r}": W[r] for r in sizes} | {f"gᵀFg, r={r}": alone[r] for r in sizes}
    unions |= beside
    for seed in (1, 2):  # of the decompositions; the readings side by side were chosen on seed 0
        W, alone, _ = read(pefs, (small, middle), seed)
        unions[f"{CHOSEN}, seed {seed}"] = np.hstack([W[middle], W[small], alone[small]])
    unions |= {name: ranking for name, (ranking, _) in others.items() if not name.startswith("components")}
    for name, ranking in unions.items():
        scores = np.stack([union_scores(ranking, task.concepts, seed) for seed in HALVINGS])
        matched = (scores >= 0.9).sum(axis=3).mean(axis=2)
        mean, least, most = matched.mean(axis=0), matched.min(axis=0), matched.max(axis=0)
        script.log(f"unions of {name}: {mean.round(1)}, least {least}, most {most}")
        spread = f"{least[-1]:g} to {most[-1]:g} over halvings with {MOST_TERMS} terms"
        means = ", ".join(f"{one:.3g}" for one in mean)
        rows.append(_harness.Row(f"unions of 1 to {MOST_TERMS}, {name}", "–", means, spread))
        details[f"unions, {name}"] = {"least": least.tolist(), "most": most.tolist(), "scores": scores.tolist()}
    script.finish(rows, details)


def read(
    pefs: npeff.Pefs, sizes: tuple[int, ...], seed: int = 0
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], npeff.Decomposition]:
    """Both readings of a decomposition of each size, and the last decomposition."""
    W, alone = {}, {}
    for r in sizes:
        decomposition = npeff.decompose(pefs, r, seed=seed, rows=KernelRows(), progress=False)
        W[r], alone[r] = np.asarray(decomposition.coefficients), fit_alone(decomposition, pefs)
    return W, alone, decomposition


def scale(pefs: npeff.Pefs, power: float) -> npeff.Pefs:
    """PEFs in the coordinates of the rows' own span, each times its eigenvalue to the power −``power``.

    Every Fisher here has rank one; the scaled rows have unit norm again.
    """
    A = pefs.to_scipy()
    values, vectors = np.linalg.eigh((A @ A.T).toarray().astype(np.float64))
    kept = values > 1e-6 * values[-1]
    rows = vectors[:, kept] * values[kept] ** (0.5 - power)
    rows = np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
    n, d = rows.shape
    layout = ParameterLayout((Parameter("span", (d,), 0),))
    schema = dataclasses.replace(pefs.schema, layout=layout, keep=d, model=f"{pefs.schema.model}, scaled {power:g}")
    indices = np.tile(np.arange(d, dtype=np.int64), (n, 1))
    ones, zeros = np.ones(n, np.float32), np.zeros(n, np.float32)
    logits = np.asarray(pefs.logits)
    return npeff.Pefs(
        schema, rows, indices, np.zeros((n, d), np.int32), np.ones(n, np.int64), ones, logits, ones, zeros, zeros, zeros
    )


if __name__ == "__main__":
    main()
