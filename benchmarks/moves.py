"""Moves along components with a purpose: repairs by the loss gradient, forgetting with its collateral, steering.

    python benchmarks/moves.py [--fast] [--cache moves-cache] [--out moves.json]

The model is `npeff_jax.tasks.shortcut`: a transformer trained on inference with a planted flaw. Components are found on
one set, and more on the wrong predictions of a pool; everything below is chosen and reported on held-out examples of
neither. Five splits into 40% that choose and 60% that report.

repairs    The span of components of errors by the loss gradient (`span_move`), against the best of these components and
           its sign by accuracy (plain, and after rejection), one gradient step, a fine-tune on the wrong examples, and
           the spans of other components and of random directions: at a KL budget that every method picks from two by
           accuracy on the examples that choose, and at the paper's norm of 0.3.
forgetting A class of one polarity is to be forgotten at a KL budget on all others: by the span of its components, by
           gradient ascent, one step or many, by the span of random directions. Accuracy on the concept and elsewhere,
           how well equation 5 predicts who else moves, and accuracy after a few steps of fine-tuning on 32 examples.
steering   The probability of a class along one component, other components and random directions, at the same KL.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import pickle
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ranges import print_ranges

import npeff_jax as npeff
from npeff_jax.evaluation import collateral, compare_moves, steer, top_share
from npeff_jax.perturbation import (
    Aim,
    TrustRegion,
    component_directions,
    loss_gradient,
    perturb,
    perturbed_kl,
    scale_to_kl,
    span_move,
)

SPLITS = range(5)
BUDGETS = (0.01, 0.03)
"""Of KL on the right examples that choose."""

N_SPAN, N_SINGLE = 16, 8
"""Components that spans combine, and that are tried one by one: those with most errors among their top examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The model, its components, and examples that neither was made from."""

    model: npeff.Model
    base: npeff.Decomposition
    expanded: npeff.Decomposition
    heldout: npeff.tasks.Dataset
    misled: np.ndarray
    pefs: npeff.Pefs
    fit: npeff.CoefficientFit
    predicted: np.ndarray
    adam: Callable[..., tuple[object, object]]


def stage(fast: bool, folder: pathlib.Path) -> Stage:
    """Train, decompose, expand; kept in a folder, because it takes most of the time."""
    n, n_pool, n_heldout, r, n_new, keep = (200, 600, 600, 12, 8, 512) if fast else (800, 3000, 2000, 40, 24, 2048)
    options = {"n_train": 2000 if fast else 10_000, "n_heldout": n_pool + n_heldout, "counterexamples": 0.02}
    options |= {"progress": False} | ({} if fast else {"width": 64, "layers": 4})
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"parameters{'-fast' if fast else ''}.pickle"
    if not kept.exists():
        trained = npeff.tasks.shortcut(steps=300 if fast else 3000, **options)
        kept.write_bytes(pickle.dumps(jax.tree.map(np.asarray, trained.model.params)))
    task = npeff.tasks.shortcut(steps=0, **options)
    model = dataclasses.replace(task.model, params=pickle.loads(kept.read_bytes()))
    pool, heldout = task.heldout.subset(slice(n_pool)), task.heldout.subset(slice(n_pool, None))
    predict = jax.jit(jax.vmap(model.logits_fn, (None, 0)))

    def compute(data: npeff.tasks.Dataset, name: str) -> npeff.Pefs:
        place = folder / f"{name}{'-fast' if fast else ''}"
        return npeff.compute_pefs(model, data.examples, labels=data.labels, keep=keep, path=place, progress=False)

    wrong = np.asarray(predict(model.params, pool.examples)).argmax(-1) != pool.labels
    places = [folder / f"{name}{'-fast' if fast else ''}" for name in ("base", "expanded")]
    if not places[0].exists():
        npeff.decompose(compute(pool.subset(slice(n)), "pefs"), r, progress=False).save(places[0])
    base = npeff.load_decomposition(places[0])
    if not places[1].exists():
        errors = pool.subset(np.flatnonzero(wrong)[: 2 * n])
        npeff.expand(base, compute(errors, "errors"), n_new, progress=False).save(places[1])
    expanded = npeff.load_decomposition(places[1])
    pefs = compute(heldout, "heldout")
    predicted = np.asarray(predict(model.params, heldout.examples)).argmax(-1)
    fit = npeff.fit_coefficients(expanded, pefs)
    return Stage(model, base, expanded, heldout, task.misled[n_pool:], pefs, fit, predicted, adam_of(model))


def times(scale: float, direction: object) -> object:
    """A direction, scaled."""
    return jax.tree.map(lambda leaf: scale * leaf, direction)


def gradient_step(model: npeff.Model, examples: object, labels: np.ndarray, sign: float = -1.0) -> object:
    """The direction of one step down (or up) the loss."""
    return times(sign, loss_gradient(model, examples, labels))


OPTIMIZER = optax.adam(1e-4)


def adam_of(model: npeff.Model) -> Callable[..., tuple[object, object]]:
    """One step of Adam down the loss times a sign, compiled once per number of examples."""

    @jax.jit
    def step(params: object, state: object, examples: object, labels: object, sign: float) -> tuple[object, object]:
        def loss(p: object) -> jax.Array:
            log_p = jax.nn.log_softmax(jax.vmap(model.logits_fn, (None, 0))(p, examples))
            return -sign * jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

        update, state = OPTIMIZER.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, update), state

    return step


def fine_tune(given: Stage, data: npeff.tasks.Dataset, others: object, nats: float, sign: float = 1.0) -> object:
    """Adam on the examples until the KL elsewhere reaches the budget; part of the last step, to end within it."""
    model = given.model

    def kl(move: object) -> float:
        return float(perturbed_kl(model, others, [move]).mean())

    def between(part: float) -> object:
        return jax.tree.map(lambda a, b: (1 - part) * a + part * b, last, move)

    params, state = model.params, OPTIMIZER.init(model.params)
    move = jax.tree.map(jnp.zeros_like, params)
    for _ in range(200):
        params, state = given.adam(params, state, data.examples, data.labels, sign)
        last, move = move, jax.tree.map(lambda a, b: a - b, params, model.params)
        if kl(move) > nats:
            low, high = 0.0, 1.0
            for _ in range(6):
                middle = (low + high) / 2
                low, high = (low, middle) if kl(between(middle)) > nats else (middle, high)
            return between(low)
    return move


def random_directions(model: npeff.Model, count: int, seed: int) -> list[object]:
    """Unit vectors, uniform on the sphere."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, model.space.size)).astype(np.float32)
    return [model.space.unravel(jnp.asarray(v / np.linalg.norm(v))) for v in drawn]


def at_norm(model: npeff.Model, direction: object, norm: float) -> object:
    """A direction, scaled to a norm."""
    return times(norm / float(np.linalg.norm(np.asarray(model.space.ravel(direction)))), direction)


def repairs(given: Stage, fast: bool) -> list[dict]:
    """Every method on every split."""
    model, data = given.model, given.heldout
    right = given.predicted == data.labels
    count = given.expanded.n_components
    share = top_share(given.fit.coefficients, ~right, n_top=16)
    order = np.argsort(-share, kind="stable")
    flawed = order[share[order] >= 0.5][:N_SPAN]
    other = np.random.default_rng(0).permutation(np.setdiff1d(order, order[share[order] >= 0.5]))[: len(flawed)]
    print(f"{model.space.size:,} parameters; {right.mean():.1%} right, {given.misled.mean():.1%} misled")
    print(f"{(share >= 0.5).sum()} of {count} stand for errors; {len(flawed)} are combined, {N_SINGLE} tried alone")
    plain = {
        int(j): d for j, d in zip([*flawed, *other], component_directions(model, given.expanded, [*flawed, *other]))
    }
    rejected = list(component_directions(model, given.expanded, flawed[:N_SINGLE], reject_below=0.35))
    spans = {"components of errors": [plain[j] for j in flawed], "other components": [plain[j] for j in other]}
    records = []
    for split in SPLITS[:1] if fast else SPLITS:
        spans["random directions"] = random_directions(model, len(flawed), split)
        records += repairs_of(given, spans, rejected, split)
    return records


def repairs_of(given: Stage, spans: dict[str, list[object]], rejected: list[object], split: int) -> list[dict]:
    """Every method on one split."""
    model, data = given.model, given.heldout
    n, right, records = len(data), given.predicted == data.labels, []
    chooses = np.random.default_rng(split).permutation(n) < 0.4 * n
    size = min(300, int((~right).sum() * 0.3))  # the same in every split: programs are compiled once
    wrong = data.subset(np.flatnonzero(chooses & ~right)[:size])
    others = data.subset(np.flatnonzero(chooses & right)[:size]).examples
    part, rest = data.subset(np.flatnonzero(chooses)), data.subset(np.flatnonzero(~chooses))
    plain = spans["components of errors"][:N_SINGLE]

    def span(directions: list[object], nats: float) -> object:
        within = TrustRegion(nats, steps=2)
        return span_move(model, directions, wrong.examples, wrong.labels, others, within=within).move

    def best(moves: list[object]) -> tuple[object, float]:
        named = {str(k): move for k, move in enumerate(moves)}
        change = compare_moves(model, named, part.examples, part.labels).change[:, 0]
        return moves[int(np.argmax(change))], float(change.max())

    def single(directions: list[object], nats: float) -> object:
        both = [times(sign, d) for d in directions for sign in (1.0, -1.0)]
        return best([scale_to_kl(model, d, others, nats)[0] for d in both])[0]

    g = gradient_step(model, wrong.examples, wrong.labels)
    methods = {
        **{f"span of {name}": functools.partial(span, directions) for name, directions in spans.items()},
        "best component of errors": functools.partial(single, plain),
        "best component of errors, rejected": functools.partial(single, rejected),
        "one gradient step": lambda nats: scale_to_kl(model, g, others, nats)[0],
        "fine-tune on the wrong ones": lambda nats: fine_tune(given, wrong, others, nats),
    }
    chosen = {}
    for name, method in methods.items():
        chosen[f"{name}, by KL"] = best([method(nats) for nats in BUDGETS])
    for name, directions in spans.items():
        chosen[f"span of {name}, norm 0.3"] = best([at_norm(model, span(directions, BUDGETS[0]), 0.3)])
    for name, directions in (("", plain), (", rejected", rejected)):
        both = [at_norm(model, times(sign, d), 0.3) for d in directions for sign in (1.0, -1.0)]
        chosen[f"best component of errors{name}, norm 0.3"] = best(both)
    chosen["one gradient step, norm 0.3"] = best([at_norm(model, g, 0.3)])
    misled = given.misled[~chooses]
    moves = {name: move for name, (move, _) in chosen.items()}
    groups = {"misled": misled, "others": ~misled}
    table = compare_moves(model, moves, rest.examples, rest.labels, groups=groups)
    for i, name in enumerate(table.names):
        records.append(
            {
                "method": name,
                "split": split,
                "where chosen": 100 * chosen[name][1],
                "all": 100 * float(table.change[i, 0]),
                "low": 100 * float(table.interval[i, 0, 0]),
                "high": 100 * float(table.interval[i, 0, 1]),
                "misled": 100 * float(table.change[i, 1]),
                "others": 100 * float(table.change[i, 2]),
                "KL": float(table.kl[i, 0]),
                "norm": float(table.norms[i]),
            }
        )
        print(records[-1], flush=True)
    return records


def forgetting(given: Stage, fast: bool) -> list[dict]:
    """A kind of pair: contradictions with two affirmed sentences."""
    data, W = given.heldout, given.fit.coefficients
    tokens = np.asarray(data.examples)
    concept = (data.labels == 0) & (tokens[:, 0] == 0) & (tokens[:, 3] == 0) & (given.predicted == 0)
    print(f"{concept.sum()} of {len(data)} examples are to be forgotten")
    records = []
    for split in SPLITS[:1] if fast else SPLITS:
        chooses = np.random.default_rng(split).permutation(len(data)) < 0.4 * len(data)
        lift = (W[chooses & concept] ** 2).mean(axis=0) / ((W[chooses] ** 2).mean(axis=0) + 1e-9)
        own = np.argsort(-lift)[:N_SPAN]
        directions = list(component_directions(given.model, given.expanded, own))
        records += forgetting_of(given, directions, concept, chooses, split)
    return records


def forgetting_of(
    given: Stage, components: list[object], concept: np.ndarray, chooses: np.ndarray, split: int
) -> list[dict]:
    """Every method on one split."""
    model, data, records = given.model, given.heldout, []
    size = min(60, int(concept.sum() * 0.3))
    marked = data.subset(np.flatnonzero(chooses & concept)[:size])
    others = data.subset(np.flatnonzero(chooses & ~concept)[: 5 * size]).examples
    rest = data.subset(np.flatnonzero(~chooses))
    held = concept[~chooses]
    nats = 0.02

    def moved_by(directions: list[object]) -> object:
        within = TrustRegion(nats)
        return span_move(model, directions, marked.examples, marked.labels, others, aim=Aim.FORGET, within=within).move

    ascent = gradient_step(model, marked.examples, marked.labels, 1.0)
    moves = {
        "span of its components": moved_by(components),
        "gradient ascent": fine_tune(given, marked, others, nats, sign=-1.0),
        "one step of gradient ascent": scale_to_kl(model, ascent, others, nats)[0],
        "span of random directions": moved_by(random_directions(model, len(components), split)),
    }
    groups = {"concept": held, "others": ~held}
    relearn = marked.subset(np.arange(min(32, size)))
    again = {}
    for name, move in moves.items():
        params, state = perturb(model, move).params, OPTIMIZER.init(model.params)
        for step in range(1, 11):
            params, state = given.adam(params, state, relearn.examples, relearn.labels, 1.0)
            if step in (2, 10):
                again[f"{name} {step}"] = jax.tree.map(lambda a, b: a - b, params, model.params)
    table = compare_moves(model, moves | again, rest.examples, rest.labels, groups=groups)
    pefs = given.pefs.subset(np.flatnonzero(~chooses))
    fit = dataclasses.replace(given.fit, coefficients=given.fit.coefficients[~chooses])
    at = {name: i for i, name in enumerate(table.names)}
    for i, (name, move) in enumerate(moves.items()):
        told = collateral(model, given.expanded, pefs, rest.examples, move, fit=fit)
        records.append(
            {
                "method": name,
                "split": split,
                "concept, points": 100 * float(table.change[i, 1]),
                "low": 100 * float(table.interval[i, 1, 0]),
                "high": 100 * float(table.interval[i, 1, 1]),
                "others, points": 100 * float(table.change[i, 2]),
                "KL of the concept": float(table.kl[i, 1]),
                "KL of others": float(table.kl[i, 2]),
                "rank agreement with eq. 5": float(told.agreement),
                "concept after 2 steps on 32": 100 * float(table.change[at[f"{name} 2"], 1]),
                "after 10": 100 * float(table.change[at[f"{name} 10"], 1]),
            }
        )
        print(records[-1], flush=True)
    print(told, flush=True)
    return records


def steering(given: Stage, fast: bool) -> list[dict]:
    """On the top examples of the five strongest components, the class that they are most predicted as."""
    model, data = given.model, given.heldout
    records = []
    W = given.fit.coefficients
    for j in np.argsort(-np.sum(W**2, axis=0))[: 1 if fast else 5]:
        top = npeff.top_examples(W, int(j), 64)
        target = int(np.bincount(given.predicted[top], minlength=3).argmax())
        others = [k for k in np.argsort(-np.sum(W**2, axis=0))[:12] if k != j][: 2 if fast else 8]
        chosen = dict(
            zip(["own", *(f"component {k}" for k in others)], component_directions(model, given.expanded, [j, *others]))
        )
        chosen |= {f"random {i}": d for i, d in enumerate(random_directions(model, 2 if fast else 8, int(j)))}
        found = steer(model, chosen, data.subset(top).examples, target, nats=0.1, n_sizes=5)
        print(found, flush=True)
        reach = found.reach
        own = found.responses["own"]
        low, high = own.linear_range
        at = dict(zip(own.scales.tolist(), own.kl.tolist(), strict=True))
        records.append(
            {
                "component": "all",
                "number": int(j),
                "reach, own": reach["own"],
                "reach, other components": float(np.median([v for k, v in reach.items() if k.startswith("component")])),
                "reach, random directions": float(np.median([v for k, v in reach.items() if k.startswith("random")])),
                "KL at the ends of the linear range": float(max(at[low], at[high])),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="smaller model and data, to check that the script runs")
    parser.add_argument("--only", nargs="*", default=["repairs", "forgetting", "steering"])
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("moves-cache"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("moves.json"))
    options = parser.parse_args()
    begin = time.process_time()
    given = stage(options.fast, options.cache)
    print(f"model and components: {time.process_time() - begin:.0f} s of CPU")
    results: dict[str, object] = {
        "fast": options.fast,
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
    }
    for name, run, by in (
        ("repairs", repairs, "method"),
        ("forgetting", forgetting, "method"),
        ("steering", steering, "component"),
    ):
        if name not in options.only:
            continue
        begin = time.process_time()
        records = run(given, options.fast)
        results[name] = {"records": records, "cpu_seconds": round(time.process_time() - begin, 1)}
        print_ranges(name, records, by)
        options.out.write_text(json.dumps(results, indent=1))
    print(f"\n{results['device']}; written to {options.out}")


if __name__ == "__main__":
    main()
