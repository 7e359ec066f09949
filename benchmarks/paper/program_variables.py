"""Section 3.2, scored so that chance cannot pass: which of a compiled program's variables does a component stand for?

The program, its examples and its PEFs are those of `ground_truth.py`. Four scores, each beside the same score of every
null and rival with as many directions:

* the paper's criterion read literally: all top 128 examples of a component have one value of one Boolean variable, true
  or false, whatever its base rate;
* ours: they share a variable or an AND of two or three that at most half of the examples have, where it is true;
* components and variables matched one to one by a cut found on one half of the examples, and how many variables have a
  Matthews correlation of 0.9 on the other half (`match_concepts`), over both folds;
* causal: of the variables, how many have their own read-out at the last token moved more than any other variable's by a
  step of 1e-6 along the direction matched with them, in float64, in units of what random directions do to that
  read-out. Of both signs the smaller effect counts: compiled weights sit on ReLU kinks.
"""

import _harness
import ground_truth
import jax
import numpy as np
import sklearn.decomposition

import npeff_jax as npeff
from npeff_jax.evaluation import ConceptMatches, control_rankings, match_concepts, search_concepts, top_examples
from npeff_jax.factorization import KernelRows, fit_alone
from npeff_jax.tasks import PAPER_SIZED_LANGUAGE, SMALL_LANGUAGE, Inference

TOP = 128
STEP = 1e-6
SEEDS = (0, 1, 2)
MOVED_EXAMPLES = 100
"""Examples whose read-outs are looked at, evenly over all: a mean of 100 is enough to say which of 31 is largest."""
REFERENCES = 16
"""Random directions whose median effect on a read-out is its unit."""


def main() -> None:
    script = _harness.Script(__doc__.splitlines()[0])
    language = SMALL_LANGUAGE if script.fast else PAPER_SIZED_LANGUAGE
    task = npeff.tasks.inference(n_examples=240 if script.fast else 1616, language=language)
    if not script.fast and task.digest != ground_truth.DIGEST:
        raise SystemExit(f"program or examples have changed: digest {task.digest}, expected {ground_truth.DIGEST}")
    pefs = ground_truth.compute(script, task)
    activations = npeff.evaluation.activations(task.model, task.examples, "output")
    probe = Probe(task, pefs)
    scores: dict[int, dict[str, list[dict[str, float]]]] = {}
    for seed in (0,) if script.fast else SEEDS:
        for r in (8,) if script.fast else (32, 128):
            decomposition = npeff.decompose(pefs, r, seed=seed, rows=KernelRows(), progress=False)
            script.log(f"r={r}, seed {seed}: loss {decomposition.loss:.3f}")
            lifts: dict[int, dict[int, np.ndarray]] = {}  # two readings of the same directions share what they do
            for name, (ranking, directions) in methods(pefs, decomposition, activations, seed).items():
                found = score(task, pefs, ranking, seed)
                matches = match_concepts(ranking, task.concepts, n_permutations=0, seed=seed)
                found["matched"] = matches.n_matched()
                if directions is not None:
                    found |= probe.score(matches, directions, lifts.setdefault(id(directions), {}), seed)
                scores.setdefault(r, {}).setdefault(name, []).append(found)
                script.log(f"  {name}: {found}")
    rows = [row(f"r={r}, {name}", r, name, found) for r, own in scores.items() for name, found in own.items()]
    details: dict[str, object] = {f"r={r}": own for r, own in scores.items()}
    n_distinct = int(matches.distinct.sum())
    details["distinct variables"] = n_distinct
    script.log(f"{n_distinct} of {len(task.concepts)} variables are distinct and no two complementary")
    script.finish(rows, details)


Method = tuple[np.ndarray, np.ndarray | None]
"""How it ranks the examples (n, r), and its directions (r, m') on the parameters that the PEFs have, if it has any."""


def methods(
    pefs: npeff.Pefs, decomposition: npeff.Decomposition, activations: np.ndarray, seed: int
) -> dict[str, Method]:
    """The decomposition in its two readings, nulls, and rivals."""
    r, W, G = decomposition.n_components, decomposition.coefficients, np.asarray(decomposition.pseudo_fishers)
    columns = decomposition.parameter_indices
    A = pefs.to_scipy()[:, columns]  # a row per example: every Fisher here has rank one
    random = np.random.default_rng(seed)
    drawn = A.T @ random.normal(size=(A.shape[0], r)).astype(np.float32)
    chosen = random.choice(A.shape[0], r, replace=False)
    squared_gram = np.square((A @ A.T).toarray())
    controls = control_rankings(pefs, W, activations, seed=seed)
    nmf = sklearn.decomposition.NMF(r, init="nndsvda", random_state=seed, max_iter=400, tol=1e-4)
    return {
        "components, by coefficient": (W, G),
        "components, by gᵀFg": (fit_alone(decomposition, pefs), G),
        "NMF of Q∘Q": (nmf.fit_transform(squared_gram), None),
        "NMF of activations": (_nmf_of_activations(activations, r, seed), None),
        "k-means of activations": (controls["k-means"], None),
        "random directions": (np.square(A @ drawn), drawn.T),
        "random examples": (np.square((A @ A[chosen].T).toarray()), A[chosen].toarray()),
        "permuted coefficients": (controls["permuted"], None),
    }


def _nmf_of_activations(activations: np.ndarray, r: int, seed: int) -> np.ndarray:
    used = np.maximum(activations[:, np.ptp(activations, axis=0) > 1e-6], 0)
    return sklearn.decomposition.NMF(r, init="nndsvda" if r <= min(used.shape) else "random", random_state=seed,
                                     max_iter=400).fit_transform(used)  # fmt: skip


def score(task: Inference, pefs: npeff.Pefs, ranking: np.ndarray, seed: int) -> dict[str, float]:
    """The two counts of shared concepts."""
    has = np.stack(list(task.concepts.values()), axis=1)
    top = min(TOP, len(has) // 4)
    tops = [top_examples(ranking, j, top) for j in range(ranking.shape[1])]
    literal = sum(bool((has[own].all(0) | ~has[own].any(0)).any()) for own in tops)
    predictions = np.asarray(pefs.logits).argmax(1)
    ours = search_concepts(
        ranking, task.concepts, predictions=predictions, max_terms=3, n_top=top, n_permutations=0, seed=seed
    )
    return {"literal": literal, "shared": int(ours.shared.sum()), "different": len(ours.found)}


class Probe:
    """What a small step along a direction does to each variable's read-out at the last token, in float64."""

    def __init__(self, task: Inference, pefs: npeff.Pefs) -> None:
        self.task, read = task, task.model.intermediates_fn
        assert read is not None
        places = np.array(list(task.readouts.values()))
        self._run = jax.jit(jax.vmap(lambda p, x: read(p, x)["output"][places], (None, 0)))
        step = max(1, len(task.examples) // MOVED_EXAMPLES)
        self.examples = np.asarray(task.examples)[::step]
        self.columns = np.unique(pefs.to_scipy().indices)
        with jax.enable_x64(True):
            self.start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), task.model.params)
            self.before = np.asarray(self._run(self.start, self.examples))
        random, A = np.random.default_rng(0), pefs.to_scipy()
        drawn = A.T @ random.normal(size=(A.shape[0], REFERENCES))
        self.unit = np.median([self.effect(direction) for direction in drawn.T], axis=0)

    def effect(self, direction: np.ndarray) -> np.ndarray:
        """The mean absolute change of each read-out, the smaller one of both signs, in read-outs per unit step."""
        space = self.task.model.space
        unit = np.asarray(direction, np.float64) / np.linalg.norm(direction)
        changes = []
        with jax.enable_x64(True):
            for sign in (1.0, -1.0):
                move = space.unravel(sign * STEP * unit)
                moved = jax.tree.map(lambda a, b: a + np.asarray(b), self.start, move)
                changes.append(np.abs(np.asarray(self._run(moved, self.examples)) - self.before).mean(axis=0) / STEP)
        return np.minimum(*changes)

    def score(
        self, matches: ConceptMatches, directions: np.ndarray, lift: dict[int, np.ndarray], seed: int
    ) -> dict[str, float]:
        """Of the variables, how many are moved most by their own match; of those matched at 0.9; with shuffled pairs.

        ``lift`` holds what is known of the directions, and what was measured is added to it.
        """
        m, random = self.task.model.space.size, np.random.default_rng(seed)
        hits, sure, of_sure, shuffled = 0.0, 0.0, 0.0, 0.0
        for component, value in zip(matches.component, matches.score, strict=True):
            largest = np.full(len(component), -1)
            for v in np.flatnonzero(component >= 0):
                j = int(component[v])
                if j not in lift:
                    whole = np.zeros(m)
                    own = directions[j]
                    whole[self.columns if len(own) == len(self.columns) else slice(None)] = own
                    lift[j] = self.effect(whole) / np.maximum(self.unit, 1e-300)
                largest[v] = int(lift[j].argmax())
            hit = largest == np.arange(len(component))
            hits, sure = hits + hit.sum() / 2, sure + (hit & (value >= 0.9)).sum() / 2
            of_sure += (value >= 0.9).sum() / 2
            shuffled += (random.permutation(largest) == np.arange(len(component))).sum() / 2
        found = {"moves most": hits, "of sure": sure, "sure": of_sure, "shuffled": shuffled}
        return {key: float(value) for key, value in found.items()}


def row(quantity: str, r: int, name: str, found: list[dict[str, float]]) -> _harness.Row:
    def text(key: str) -> str:
        return ", ".join(f"{one[key]:g}" for one in found if key in one) or "–"

    paper = ground_truth.PAPER.get(r, "–") if name == "components, by coefficient" else "–"
    note = (
        f"literal {text('literal')}; ours {text('shared')} ({text('different')}); moves most {text('moves most')}; of "
        f"those matched {text('of sure')} of {text('sure')}; shuffled {text('shuffled')}"
    )
    return _harness.Row(quantity, paper, f"matched {text('matched')}", note)


if __name__ == "__main__":
    main()
