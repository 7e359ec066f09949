"""Section 3.2: do a compiled program's components stand for its own Boolean variables?

A component counts at k if its k top examples share a variable, or an AND of two or three, that at most half of the
examples have and that their predicted labels do not imply. An AND is shared exactly if its terms are, so the AND of the
shared variables, three at most, is looked for among them. The program is smaller than the paper's; its size and
a digest of its examples are in the JSON.
"""

import hashlib
import itertools

import _harness
import numpy as np

import npeff_jax as npeff


def finds(ranked: np.ndarray, has: np.ndarray, predicted: np.ndarray) -> bool:
    """Whether the examples ``ranked`` share a concept, as defined above."""
    shared = np.flatnonzero(has[ranked].all(0))
    own_labels = np.isin(predicted, predicted[ranked])
    for terms in itertools.chain.from_iterable(itertools.combinations(shared, size) for size in (1, 2, 3)):
        concept = has[:, terms].all(1)
        if concept.mean() <= 0.5 and not concept[own_labels].all():
            return True
    return False


def count(W: np.ndarray, has: np.ndarray, predicted: np.ndarray, k: int, random: np.random.Generator) -> int:
    """How many components find a concept; examples with equal coefficients are in random order."""
    shuffled = random.permutation(len(W))
    tops = shuffled[np.argsort(-W[shuffled], axis=0, kind="stable")[:k]]
    return sum(finds(tops[:, j], has, predicted) for j in range(W.shape[1]))


def main() -> None:
    script = _harness.Script(__doc__.splitlines()[0])
    task = npeff.tasks.inference(n_examples=300 if script.fast else 1616)
    has = np.stack(list(task.concepts.values()), axis=1)
    pefs = npeff.compute_pefs(task.model, task.examples, npeff.LowRank(), labels=task.labels, keep=8192, progress=False)
    predicted = np.asarray(pefs.logits).argmax(-1)
    rows, details = [], {"parameters": task.model.space.size, "examples": len(predicted)}
    details["digest"] = hashlib.sha256(np.ascontiguousarray(task.examples).tobytes()).hexdigest()
    for r, paper in ((8, "-"),) if script.fast else ((32, "30/32"), (128, "92/128")):
        script.log(f"r = {r}")
        random = np.random.default_rng(0)
        W = npeff.decompose(pefs, r, seed=0, progress=False).coefficients
        classes = np.eye(int(predicted.max()) + 1)[predicted][:, np.arange(r) % (int(predicted.max()) + 1)]
        rankings = {"components": W, "permuted": random.permuted(W, axis=0), "predicted class": classes}
        details[f"r={r}, non-zero"] = (W > 0).sum(0).tolist()
        for k in (16, 32, 64, 128):
            found = {name: count(V, has, predicted, k, random) for name, V in rankings.items()}
            details[f"r={r}, k={k}"] = found
            note = f"permuted {found['permuted']}, predicted class {found['predicted class']}"
            rows.append(_harness.Row(f"r={r}, top {k}", paper if k == 128 else "-", f"{found['components']}/{r}", note))
    script.finish(rows, details)


if __name__ == "__main__":
    main()
