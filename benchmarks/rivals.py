"""NPEFF's components and those of its rivals through the same audit, at the same number and the same KL of every move.

    python benchmarks/rivals.py [--seeds 5] [--components 32] [--out rivals.json]

Every method gives r directions, and a coefficient per example and direction; `npeff.audit` asks the same five things of
them: the same held-out examples, 16 top examples each, plain moves (without the rejection that `audit` has by default)
up to a mean KL of 0.01 nats on these, two further seeds and a run of the held-out examples alone. Directions of
activations are moved in the space of activations: as parameters of a model that adds a shift to them, so that equation
5 holds for them as well. What a rival's directions predict is computed with coefficients fitted to the Fishers, which
have the scale that the prediction needs.

The model is the network of `tasks.digits`: the audit's thresholds were fixed on it, for components of NPEFF, before any
rival was looked at.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
import scipy.sparse.linalg
import sklearn.cluster
import sklearn.decomposition

import npeff_jax as npeff
from npeff_jax.factorization import CoefficientFit, Decomposition, History
from npeff_jax.pefs import RowBasis

N_FEATURES = 512
CHECKS = ("selective", "found again", "held out", "readable", "predicted")


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """What methods see of some examples.

    Attributes:
        pefs: what NPEFF decomposes.
        rows: (N, m), the PEFs' rows.
        owner: (N,), the example of each row.
        gradients: (n, m), unit gradients of the log-probability of the predicted class.
        activations: (n, d).
        shifted: PEFs of the model that adds a shift to the activations.
        examples: of the model.
        readable: what a person can read off them.
    """

    pefs: npeff.Pefs
    rows: scipy.sparse.csr_array
    owner: np.ndarray
    gradients: scipy.sparse.csr_array
    activations: np.ndarray
    shifted: npeff.Pefs
    examples: Any
    readable: Any

    def effects(self, directions: np.ndarray) -> np.ndarray:
        """Compute dᵀF_i d of each example and direction."""
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        return np.add.reduceat(np.square(np.asarray(self.rows @ directions.T)), starts, axis=0)

    def features(self, scale: np.ndarray | None = None) -> np.ndarray:
        """Gradients, scaled per parameter if asked to, at unit norm, in a random projection."""
        gradients = self.gradients if scale is None else _unit_rows(self.gradients.multiply(scale).tocsr())
        m, random = gradients.shape[1], np.random.default_rng(0)  # the same projection for all examples and seeds
        signs, places = random.choice([-1.0, 1.0], m), random.integers(0, N_FEATURES, m)
        sketch = scipy.sparse.csr_array((signs, (np.arange(m), places)), shape=(m, N_FEATURES))
        return np.asarray((gradients @ sketch).toarray(), np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a method found in some examples: a coefficient of any example for each direction, and the directions."""

    encode: Callable[[Side], np.ndarray]
    directions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model, its examples in two halves, and the model of shifted activations."""

    model: npeff.Model
    shifted: npeff.Model
    decomposed: Side
    heldout: Side


def npeff_components(side: Side, r: int, seed: int) -> Found:
    found = npeff.decompose(side.pefs, r, seed=seed, progress=False)
    directions = np.zeros((r, side.rows.shape[1]), np.float32)
    directions[:, found.parameter_indices] = found.pseudo_fishers
    return Found(lambda other: npeff.fit_coefficients(found, other.pefs).coefficients, directions)


def kmeans_gradients(side: Side, r: int, seed: int) -> Found:
    found = sklearn.cluster.KMeans(r, n_init=4, random_state=seed).fit(side.features())
    return Found(lambda other: _closeness(found, other.features()), _means(side.gradients, found.labels_, r))


def nmf_gradients(side: Side, r: int, seed: int) -> Found:
    """Of the positive and the negative parts of projected gradients."""

    def parts(other: Side) -> np.ndarray:
        features = other.features()
        return np.maximum(np.concatenate([features, -features], axis=1), 0)

    # With a random start, or "found again" would compare a method without a seed with itself.
    found = sklearn.decomposition.NMF(r, init="nndsvdar", random_state=seed, max_iter=300)
    weights = found.fit_transform(parts(side))
    return Found(lambda other: found.transform(parts(other)), np.asarray((side.gradients.T @ weights).T))


def dictionary(side: Side, r: int, seed: int) -> Found:
    """Gradients preconditioned by the diagonal Fisher, in a sparse dictionary, as gradient atoms are."""
    fisher = np.asarray(side.rows.multiply(side.rows).sum(axis=0)).ravel() / len(side.activations)
    scale = 1 / np.sqrt(fisher + 0.1 * fisher[fisher > 0].mean())
    found = sklearn.decomposition.MiniBatchDictionaryLearning(
        r, alpha=0.1, positive_code=True, fit_algorithm="cd", transform_algorithm="lasso_cd", random_state=seed,
        max_iter=30,
    )  # fmt: skip
    codes = found.fit_transform(side.features(scale))
    directions = np.asarray((side.gradients.T @ codes).T) * scale**2
    return Found(lambda other: np.maximum(found.transform(other.features(scale)), 0), directions)


def pca(side: Side, r: int, seed: int) -> Found:
    """The leading eigenvectors of the sum of all Fishers."""
    start = np.random.default_rng(seed).normal(size=min(side.rows.shape))
    directions = scipy.sparse.linalg.svds(side.rows.astype(np.float64), r, v0=start)[2]
    return Found(lambda other: other.effects(directions), directions)


def class_means(side: Side, r: int, seed: int) -> Found:
    """As many directions as there are classes."""
    predicted = np.asarray(side.pefs.logits).argmax(axis=1)
    directions = _means(side.gradients, predicted, np.asarray(side.pefs.logits).shape[1])
    return Found(lambda other: np.maximum(np.asarray(other.gradients @ directions.T), 0), directions)


def random_directions(side: Side, r: int, seed: int) -> Found:
    """Combinations of all rows: in the span in which the components lie."""
    random = np.random.default_rng(seed)
    directions = np.asarray(side.rows.T @ random.normal(size=(side.rows.shape[0], r))).T
    return Found(lambda other: other.effects(directions), directions)


def kmeans_activations(side: Side, r: int, seed: int) -> Found:
    found = sklearn.cluster.KMeans(r, n_init=4, random_state=seed).fit(side.activations)
    directions = found.cluster_centers_ - side.activations.mean(axis=0)
    return Found(lambda other: _closeness(found, other.activations), directions)


def nmf_activations(side: Side, r: int, seed: int) -> Found:
    """Of activations after a ReLU, which are not negative."""
    rank = min(r, int(np.linalg.matrix_rank(side.activations)))
    found = sklearn.decomposition.NMF(r, init="nndsvdar" if r <= rank else "random", random_state=seed, max_iter=300)
    found.fit(side.activations)
    return Found(lambda other: found.transform(other.activations), found.components_)


def sae_activations(side: Side, r: int, seed: int) -> Found:
    """A sparse autoencoder with an L1 penalty, 3,000 full-batch steps of Adam."""
    mean, scale = side.activations.mean(axis=0), max(float(side.activations.std()), 1e-6)
    x = jnp.asarray((side.activations - mean) / scale, jnp.float32)
    key = jax.random.key(seed)
    decoder = jax.random.normal(key, (r, x.shape[1])) / np.sqrt(x.shape[1])
    params = {"decoder": decoder, "encoder": decoder.T, "bias": jnp.zeros(r), "offset": jnp.zeros(x.shape[1])}

    def code(params: dict, x: jax.Array) -> jax.Array:
        return jax.nn.relu((x - params["offset"]) @ params["encoder"] + params["bias"])

    def loss(params: dict) -> jax.Array:
        unit = params["decoder"] / jnp.linalg.norm(params["decoder"], axis=1, keepdims=True)
        codes = code(params, x)
        error = jnp.square(x - params["offset"] - codes @ unit).sum(axis=1)
        return (error + 0.3 * codes.sum(axis=1)).mean()

    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params: dict) -> dict:
        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 3000)[0][0]

    params = train(params)
    return Found(
        lambda other: np.asarray(code(params, jnp.asarray((other.activations - mean) / scale, jnp.float32))),
        np.asarray(params["decoder"]),
    )


METHODS: dict[str, Callable[[Side, int, int], Found]] = {
    "NPEFF": npeff_components,
    "k-means of gradients": kmeans_gradients,
    "NMF of gradients": nmf_gradients,
    "dictionary of preconditioned gradients": dictionary,
    "PCA of Fishers": pca,
    "class-wise mean gradients": class_means,
    "random directions in the span": random_directions,
    "k-means of activations": kmeans_activations,
    "NMF of activations": nmf_activations,
    "sparse autoencoder of activations": sae_activations,
}


def run(problem: Problem, name: str, r: int, seed: int) -> dict[str, Any]:
    """One method through the audit."""
    method, start = METHODS[name], time.perf_counter()
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
        model, components, heldout, examples, n_top=16, norm=npeff.KLBudget(0.01, max_norm=1e3), reject_below=None,
        nulls=npeff.Nulls(n_random_directions=0), **options,
    )  # fmt: skip
    if method is not npeff_components:
        table = dataclasses.replace(table, predicted_kl=_predicted(components, heldout, table))
    audit = npeff.audit(
        model, components, heldout, examples, table=table, runs=runs, readable=problem.heldout.readable, **options
    )
    passed = {check.name: None if check.not_applicable else int(check.passed.sum()) for check in audit.checks}
    return {
        "method": name,
        "seed": seed,
        "components": W.shape[1],
        "passed": passed,
        "all": int(audit.passed.sum()),
        "median": {check.name: float(np.nanmedian(check.statistic)) for check in audit.applicable},
        "seconds": time.perf_counter() - start,
    }


def digits() -> Problem:
    """The network of the demo. Its last feature map is the activation: 256 numbers that are not negative."""
    task = npeff.tasks.digits(progress=False)
    params = task.model.params

    def features(params: Any, x: jax.Array) -> jax.Array:
        for name, stride in (("Conv_0", 1), ("Conv_1", 2)):
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            x = jax.lax.conv_general_dilated(
                x[None], kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )[0]
            x = jax.nn.relu(x + bias)
        return x

    inner = params.get("params", params)
    map_of = jax.jit(jax.vmap(lambda x: features(inner, x).ravel()))
    last = inner["Dense_0"]

    def head(params: Any, activation: jax.Array) -> jax.Array:
        shifted = (activation + params["shift"]).reshape(-1, last["kernel"].shape[0])
        return shifted.mean(axis=0) @ last["kernel"] + last["bias"]

    halves = ((task.train_images, task.train_labels), (task.heldout_images, task.heldout_labels))
    return _problem(task.model, head, [(x, y, x, np.asarray(map_of(x))) for x, y in halves], npeff.LowRank(), 2048)


def _problem(model: npeff.Model, head: Callable, halves: list, representation: Any, keep: int) -> Problem:
    width = halves[0][3].shape[1]
    names = {"output": model.output, "label_names": model.label_names}
    shifted = npeff.Model(head, {"shift": jnp.zeros(width, jnp.float32)}, **names)
    predicted = npeff.LowRank(rows=RowBasis.CLASSES, max_rows=1)  # the likeliest class's row: its gradient, scaled
    sides = []
    for examples, labels, readable, activations in halves:
        options = {"labels": labels, "progress": False}
        pefs = npeff.compute_pefs(model, examples, representation, keep=keep, **options)
        gradients = npeff.compute_pefs(model, examples, predicted, keep=min(keep, model.space.size), **options)
        other = npeff.compute_pefs(shifted, activations, npeff.LowRank(), keep=None, **options)
        owner = np.repeat(np.arange(pefs.n_examples), np.asarray(pefs.n_rows))
        rows = scipy.sparse.csr_array(pefs.to_scipy())
        unit = _unit_rows(scipy.sparse.csr_array(gradients.to_scipy()))
        sides.append(Side(pefs, rows, owner, unit, activations, other, examples, readable))
    return Problem(model, shifted, *sides)


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
    return np.square(table.norms)[:, :, None] * curvature.T[:, None, :]


def _closeness(found: sklearn.cluster.KMeans, features: np.ndarray) -> np.ndarray:
    """1 / (1 + distance) inside a cluster and 0 outside."""
    distances = found.transform(features)
    return np.eye(distances.shape[1])[distances.argmin(axis=1)] / (1 + distances)


def _means(gradients: scipy.sparse.csr_array, groups: np.ndarray, k: int) -> np.ndarray:
    return np.asarray((gradients.T @ np.eye(k)[groups]).T)


def _unit_rows(rows: Any) -> scipy.sparse.csr_array:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return scipy.sparse.csr_array(scipy.sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ rows)


def table(rows: list[dict]) -> str:
    """Means over seeds of how many pass, with the smallest and the largest, as Markdown."""
    heads = ["method", "r", *CHECKS, "all that apply", "median KL ratio", "median AUC"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]

    def cell(values: list) -> str:
        if any(value is None for value in values):
            return "–"
        spread = "" if len(values) == 1 else f" ({min(values)} to {max(values)})"
        return f"{np.mean(values):.3g}{spread}"

    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = [cell([row["passed"][check] for row in own]) for check in CHECKS]
        ratio, auc = (np.mean([row["median"].get(key, np.nan) for row in own]) for key in ("selective", "readable"))
        all_five = cell([row["all"] for row in own])
        lines.append(
            f"| {name} | {own[0]['components']} | {' | '.join(cells)} | {all_five} | {ratio:.3g} | {auc:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("rivals.json"))
    options = parser.parse_args()
    rows: list[dict] = []
    problem = digits()
    for seed in range(options.seeds):
        for name in METHODS:
            rows.append(run(problem, name, options.components, seed))
            print(json.dumps(rows[-1]), flush=True)
            options.out.write_text(json.dumps({"problem": "digits", "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
