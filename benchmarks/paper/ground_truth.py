"""Section 3.2: do a compiled program's components stand for its own Boolean variables?

A component counts at k if its k top examples all have a variable of the program, or an AND of two or three, that at
most half of the examples have and that the predicted labels of the k do not imply (`search_concepts`). Program and
examples are fixed by a digest. The program's shape was found on a smaller vocabulary and other examples (four versions,
see RESULTS.md), before this one was ever decomposed; every setting that was tried on this one is in the table.
"""

import dataclasses
import fnmatch

import _harness
import numpy as np

import npeff_jax as npeff
from npeff_jax.tasks import PAPER_SIZED_LANGUAGE, SMALL_LANGUAGE, Inference

DIGEST = "4f8372e38ba72be0c7e408d1296bfcab5b66d7b575b5d1172d556d4f4646f2b7"
TOPS = (16, 32, 64, 128)
PAPER = {32: "30/32", 128: "92/128"}
PARTS = {"all": "*", "MLP inputs": "*/mlp/linear_1/w"}
SETTINGS = tuple((part, keep, r) for part, keep in (("all", 8192), ("all", 256), ("MLP inputs", 8192)) for r in PAPER)


def main() -> None:
    script = _harness.Script(__doc__.splitlines()[0])
    language = SMALL_LANGUAGE if script.fast else PAPER_SIZED_LANGUAGE
    task = npeff.tasks.inference(n_examples=240 if script.fast else 1616, language=language)
    if not script.fast and task.digest != DIGEST:
        raise SystemExit(f"program or examples have changed: digest {task.digest}, results were of {DIGEST}")
    pefs = compute(script, task)
    details = describe(task, pefs)
    rows, curves = [], {}
    for part, keep, r in (("all", 2048, 8),) if script.fast else SETTINGS:
        name = f"{part}, K={keep}, r={r}"
        own = keep_largest(only(pefs, PARTS[part]), keep)
        decomposition = npeff.decompose(own, r, seed=0, rows=npeff.factorization.Kernel(), progress=False)
        script.log(f"{name}: loss {decomposition.history.loss[-1]:.3f}")
        activations = npeff.evaluation.activations(task.model, task.examples, "output")
        W = decomposition.coefficients
        rankings = {"components": W} | npeff.evaluation.control_rankings(own, W, activations)
        scores = {kind: score(task, own, ranking) for kind, ranking in rankings.items()}
        curves[name] = scores
        details[name] = scores | {
            "loss": float(decomposition.history.loss[-1]),
            "steps": int(decomposition.history.step[-1]),
        }
        for place, k in enumerate(TOPS):
            chance = ", ".join(f"{kind} {found['shared'][place]}" for kind, found in list(scores.items())[1:])
            found = scores["components"]
            note = f"{found['distinct'][place]} different; with negations {found['with_negations'][place]}; {chance}"
            paper = PAPER.get(r, "-") if k == 128 else "-"
            rows.append(_harness.Row(f"{name}, top {k}", paper, f"{found['shared'][place]}/{r}", note))
        precisions = ", ".join(f"{kind} {found['precision']:.2f}" for kind, found in list(scores.items())[1:])
        ours = f"{scores['components']['precision']:.2f}"
        rows.append(_harness.Row(f"{name}, average precision of the best concept, median", "-", ours, precisions))
    script.finish(rows, details, draw(curves))


def compute(script: _harness.Script, task: Inference) -> npeff.Pefs:
    script.log(f"{task.compiled_size:,} parameters, {task.model.space.size:,} without padding")
    keep = 2048 if script.fast else 8192
    pefs = npeff.compute_pefs(task.model, task.examples, labels=task.labels, keep=keep, progress=False)
    script.log(f"PEFs; energy kept {np.min(pefs.kept_energy):.4f} and more")
    return pefs


def only(pefs: npeff.Pefs, pattern: str) -> npeff.Pefs:
    """The PEFs of some parameters: what a model with this mask gives, as long as no entry was dropped. Every Fisher
    here has rank one, so its norm is that of its entries.
    """
    parameters = pefs.schema.layout.parameters
    wanted = np.array([fnmatch.fnmatch(parameter.name, pattern) for parameter in parameters])
    of = np.searchsorted([parameter.offset for parameter in parameters], np.asarray(pefs.indices[:]), side="right") - 1
    values = np.where(wanted[of], np.asarray(pefs.values[:]), 0)
    return dataclasses.replace(pefs, values=values / np.linalg.norm(values, axis=1, keepdims=True))


def keep_largest(pefs: npeff.Pefs, keep: int) -> npeff.Pefs:
    """The PEFs with fewer entries an example: what `compute_pefs` gives for this ``keep``."""
    values = np.asarray(pefs.values[:])
    if keep >= values.shape[1]:
        return pefs
    chosen = np.sort(np.argpartition(-np.abs(values), keep - 1, axis=1)[:, :keep], axis=1)
    names = ("values", "indices", "rows")
    return dataclasses.replace(
        pefs, **{name: np.take_along_axis(np.asarray(getattr(pefs, name)[:]), chosen, axis=1) for name in names}
    )


def score(task: Inference, pefs: npeff.Pefs, ranking: np.ndarray) -> dict[str, object]:
    """Of a ranking by r columns: how many share a concept among their top k, for each k, and which."""
    predictions = np.asarray(pefs.logits).argmax(1)
    found: dict[str, object] = {}
    both = task.concepts | npeff.evaluation.negations(task.concepts)
    for name, variables, terms in (("shared", task.concepts, 3), ("with_negations", both, 2)):
        searches = [
            npeff.evaluation.search_concepts(
                ranking, variables, predictions=predictions, max_terms=terms, n_top=k, n_permutations=0
            )
            for k in TOPS
        ]
        found[name] = [int(search.shared.sum()) for search in searches]
        if name == "shared":
            found["distinct"] = [len(search.found) for search in searches]
            found["concepts"] = [dict(search.found.most_common()) for search in searches]
            found["precision"] = float(np.median(searches[0].best_average_precision))
            found["precisions"] = searches[0].best_average_precision.round(3).tolist()
            found["non_zero"] = searches[0].n_positive.tolist()
    return found


def describe(task: Inference, pefs: npeff.Pefs) -> dict[str, object]:
    return {
        "digest": task.digest,
        "parameters": task.compiled_size,
        "parameters without padding": task.model.space.size,
        "examples": len(task.labels),
        "kept energy, least": float(np.min(pefs.kept_energy)),
        "variables": {name: float(values.mean()) for name, values in task.concepts.items()},
    }


def draw(curves: dict[str, dict]) -> object:
    figure, axes = _harness.figure(len(curves))
    for axis, (name, scores) in zip(axes, curves.items(), strict=True):
        r = len(scores["components"]["precisions"])
        for kind, found in scores.items():
            axis.plot(TOPS, np.array(found["shared"]) / r, "o-", label=kind)
        axis.set_xscale("log", base=2)
        axis.set(title=name, xticks=TOPS, xticklabels=TOPS, xlabel="top examples", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("share a concept")
    axes[0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
