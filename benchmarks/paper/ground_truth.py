"""Section 3.2: do a compiled program's components stand for its own Boolean variables?

A component counts at k if its k top examples all have a variable of the program, or an AND of two or three, that at
most half of the examples have and that the predicted labels of the k do not imply (`search_concepts`). Program and
examples are fixed by a digest. The program's shape was found on a smaller vocabulary and other examples (four versions,
see RESULTS.md), before this one was ever decomposed; every setting that was tried on this one is in the table.

Examples are ranked in two ways. By coefficient, as in the paper: W is a sparse fit, and where a component has fewer
than k coefficients above zero the rest of its top k are ties. And by the same component fitted alone, gᵀFg: twice the
second-order KL of a unit move along g, where the logits are smooth in the parameters. A compiled program's weights sit
on ReLU kinks, the effects of a move in the two directions differ by a factor of about two, and gᵀFg is the smaller.
Directions and examples that were drawn at random are ranked by in the second way too, so it is them that the counts
have to beat, and the number of different concepts, which directions drawn at random share. Because a count lets one
concept stand for many components, components and variables are also matched one to one (`match_concepts`).
"""

import dataclasses
import fnmatch
from collections.abc import Iterator

import _harness
import numpy as np

import npeff_jax as npeff
from npeff_jax.factorization import GradientDescent, KernelRows, Stopping, fit_alone
from npeff_jax.tasks import PAPER_SIZED_LANGUAGE, SMALL_LANGUAGE, Inference

DIGEST = "4f8372e38ba72be0c7e408d1296bfcab5b66d7b575b5d1172d556d4f4646f2b7"
TOPS = (16, 32, 64, 128)
PAPER = {32: "30/32", 128: "92/128"}
PARTS = {"all": "*", "MLP inputs": "*/mlp/linear_1/w"}
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to decompose: r, whose parameters and how many entries of them, from which starts, by which solver.

    With a rate it is the paper's, for the steps of section 3.3.
    """

    r: int
    part: str = "all"
    keep: int = 8192
    rate: float | None = None
    steps: int = 1500
    seeds: tuple[int, ...] = SEEDS

    @property
    def name(self) -> str:
        solver = "damped ALS" if self.rate is None else f"paper's solver, rate {self.rate:g}"
        return f"r={self.r}, {self.part}, K={self.keep}, {solver}"

    def decompose(self, pefs: npeff.Pefs, seed: int) -> npeff.Decomposition:
        options = {"seed": seed, "rows": KernelRows(), "progress": False}
        if self.rate is not None:
            options |= {"solver": GradientDescent(self.rate), "stopping": Stopping(self.steps, tolerance=0)}
        return npeff.decompose(pefs, self.r, **options)


def settings(fast: bool) -> Iterator[Setting]:
    """All of them; for each r its first is the one that controls are held against."""
    if fast:
        yield Setting(8, keep=2048, seeds=(0, 1))
        yield Setting(8, keep=2048, rate=1e-3, steps=40, seeds=(0,))
        return
    for r in PAPER:
        yield Setting(r)
        yield Setting(r, rate=1e-3)  # that of the authors' code
        for rate in (1e-4, 1e-2):
            yield Setting(r, rate=rate, seeds=(0,))
        yield Setting(r, keep=256, seeds=(0,))
        yield Setting(r, "MLP inputs", seeds=(0,))


def main() -> None:
    script = _harness.Script(__doc__.splitlines()[0])
    language = SMALL_LANGUAGE if script.fast else PAPER_SIZED_LANGUAGE
    task = npeff.tasks.inference(n_examples=240 if script.fast else 1616, language=language)
    if not script.fast and task.digest != DIGEST:
        raise SystemExit(f"program or examples have changed: digest {task.digest}, results were of {DIGEST}")
    pefs = compute(script, task)
    activations = npeff.evaluation.activations(task.model, task.examples, "output")
    details, rows = describe(task, pefs), []
    curves: dict[int, dict[str, list[dict]]] = {}
    for setting in settings(script.fast):
        own = keep_largest(only(pefs, PARTS[setting.part]), setting.keep)
        found = [setting.decompose(own, seed) for seed in setting.seeds]
        losses = ", ".join(f"{decomposition.history.loss[-1]:.3f}" for decomposition in found)
        script.log(f"{setting.name}: loss {losses}")
        scores = {
            "by coefficient": [score(task, own, decomposition.coefficients) for decomposition in found],
            "by gᵀFg": [score(task, own, fit_alone(decomposition, own)) for decomposition in found],
        }
        if setting.r not in curves:
            for seed, decomposition in zip(setting.seeds, found, strict=True):
                W = decomposition.coefficients
                for kind, ranking in npeff.evaluation.control_rankings(own, W, activations, seed=seed).items():
                    scores.setdefault(kind, []).append(score(task, own, ranking))
            curves[setting.r] = scores
        for kind, per_seed in scores.items():
            by_coefficient = kind == "by coefficient"
            note = f"; loss {losses}" if by_coefficient else ""
            paper = PAPER.get(setting.r, "–") if by_coefficient else "–"
            rows.append(row(f"{setting.name}, {kind}", paper, per_seed, note))
        details[setting.name] = scores | {
            "loss": [float(decomposition.history.loss[-1]) for decomposition in found],
            "steps": [int(decomposition.history.step[-1]) for decomposition in found],
        }
    script.finish(rows, details, draw(curves))


def compute(script: _harness.Script, task: Inference) -> npeff.Pefs:
    script.log(f"{task.compiled_size:,} parameters, {task.model.space.size:,} without padding")
    keep = 2048 if script.fast else 8192
    one = npeff.LowRank(max_rows=1)  # where two classes are equally unlikely, the second row has 2e-4 of the energy
    options = {"labels": task.labels, "keep": keep, "progress": False}
    pefs = script.cache(
        f"PEFs of program {task.digest[:8]}, {keep}",
        lambda: npeff.compute_pefs(task.model, task.examples, one, **options),
    )
    script.log(f"PEFs; energy kept {np.min(pefs.kept_energy):.4f} and more")
    return pefs


def only(pefs: npeff.Pefs, pattern: str) -> npeff.Pefs:
    """The PEFs of some parameters: what a model with this mask gives, as long as no entry was dropped. Every Fisher
    here has rank one, so its norm is that of its entries.
    """
    if pattern == "*":
        return pefs
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
    found["matched"] = npeff.evaluation.match_concepts(ranking, task.concepts, n_permutations=0).n_matched()
    return found


def row(name: str, paper: str, scores: list[dict], note: str) -> _harness.Row:
    """Every seed's count at 128, and the curve of the first."""
    first = scores[0]
    r = len(first["precisions"])
    curve = " / ".join(f"{shared} ({distinct})" for shared, distinct in zip(first["shared"], first["distinct"]))
    facts = [
        f"top 16 / 32 / 64 / 128: {curve}",
        f"with negations {first['with_negations'][-1]}",
        f"{sum(count >= TOPS[-1] for count in first['non_zero'])} fill 128 places",
        f"average precision {first['precision']:.2f}",
        "matched one to one " + ", ".join(f"{found['matched']:g}" for found in scores),
    ]
    return _harness.Row(
        name, paper, f"{', '.join(str(s['shared'][-1]) for s in scores)} of {r}", "; ".join(facts) + note
    )


def describe(task: Inference, pefs: npeff.Pefs) -> dict[str, object]:
    return {
        "digest": task.digest,
        "parameters": task.compiled_size,
        "parameters without padding": task.model.space.size,
        "examples": len(task.labels),
        "kept energy, least": float(np.min(pefs.kept_energy)),
        "variables": {name: float(values.mean()) for name, values in task.concepts.items()},
    }


def draw(curves: dict[int, dict[str, list[dict]]]) -> object:
    """For each r the share that have a concept, and how many different ones these are; seeds as a band."""
    figure, axes = _harness.figure(2 * len(curves))
    for pair, (r, kinds) in zip(np.reshape(axes, (-1, 2)), curves.items(), strict=True):
        for axis, what in zip(pair, ("shared", "distinct"), strict=True):
            for kind, scores in kinds.items():
                values = np.array([found[what] for found in scores])
                axis.plot(TOPS, values.mean(axis=0), "o-", label=kind)
                axis.fill_between(TOPS, values.min(axis=0), values.max(axis=0), alpha=0.2)
            axis.set_xscale("log", base=2)
            label = "share a concept" if what == "shared" else "different concepts"
            axis.set(title=f"r={r}", xticks=TOPS, xticklabels=TOPS, xlabel="top examples", ylabel=label)
    axes[0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
