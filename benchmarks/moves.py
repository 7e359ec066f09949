"""Moves along components with a purpose: repairs by the loss gradient, forgetting with its collateral, steering.

    python benchmarks/moves.py [--fast] [--cache moves-cache] [--out moves.json]

The model is `npeff_jax.tasks.shortcut`: a transformer trained on inference with a planted flaw. Components are found on
one set, and more on the wrong predictions of a pool; everything below is chosen and reported on held-out examples of
neither. Five splits into 40% that choose and 60% that report.

repairs    The span of components by the loss gradient (`span_move`), against the best component of all and its sign by
           accuracy (plain and after rejection, at the same KL and at the paper's norm of 0.3), one gradient step, a
           fine-tune on the wrong examples, and the span of random directions. Every method picks its KL budget on the
           examples that choose, by accuracy.
forgetting A class of one polarity is to be forgotten at a KL budget on all others: by the span of components, by
           gradient ascent with as many derivatives, by the span of random directions. Loss of the concept, collateral,
           how well equation 5 predicts who else moves, and the loss after a few steps of fine-tuning on 32 examples.
steering   The probability of a class along one component, other components and random directions, at the same KL.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ranges import print_ranges

import npeff_jax as npeff
from npeff_jax.evaluation import collateral, compare_moves, find_repairs, steer, top_share
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


def stage(fast: bool, folder: pathlib.Path) -> Stage:
    """Train, decompose, expand; kept in a folder, because it takes most of the time."""
    n, n_pool, n_heldout, r, n_new, keep = (200, 600, 600, 12, 8, 512) if fast else (1200, 5000, 3000, 64, 32, 2048)
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
    return Stage(
        model, base, expanded, heldout, task.misled[n_pool:], pefs, npeff.fit_coefficients(expanded, pefs), predicted
    )


def times(scale: float, direction: object) -> object:
    """A direction, scaled."""
    return jax.tree.map(lambda leaf: scale * leaf, direction)


def gradient_step(model: npeff.Model, examples: object, labels: np.ndarray, sign: float = -1.0) -> object:
    """The direction of one step down (or up) the loss."""
    return times(sign, loss_gradient(model, examples, labels))


def fine_tune(
    model: npeff.Model, examples: object, labels: np.ndarray, others: object, nats: float, sign: float = 1.0
) -> object:
    """Adam on the examples until the KL elsewhere reaches the budget; the last move within it."""
    optimizer = optax.adam(1e-4)

    @jax.jit
    def step(params: object, state: object) -> tuple[object, object]:
        def loss(p: object) -> jax.Array:
            log_p = jax.nn.log_softmax(jax.vmap(model.logits_fn, (None, 0))(p, examples))
            return -sign * jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

        update, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, update), state

    params, state = model.params, optimizer.init(model.params)
    last = jax.tree.map(jnp.zeros_like, params)
    for _ in range(400):
        params, state = step(params, state)
        move = jax.tree.map(lambda a, b: a - b, params, model.params)
        if float(perturbed_kl(model, others, [move]).mean()) > nats:
            # the rest of the way to the budget along the last step
            break
        last = move
    return last


def random_directions(model: npeff.Model, count: int, seed: int) -> list[object]:
    """Unit vectors, uniform on the sphere."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, model.space.size)).astype(np.float32)
    return [model.space.unravel(jnp.asarray(v / np.linalg.norm(v))) for v in drawn]


def repairs(given: Stage, fast: bool) -> list[dict]:
    """Every method on every split."""
    model, data = given.model, given.heldout
    right = given.predicted == data.labels
    count = given.expanded.n_components
    everything = list(component_directions(model, given.expanded, np.arange(count)))
    rejected = list(component_directions(model, given.expanded, np.arange(count), reject_below=0.35))
    share = top_share(given.fit.coefficients, ~right, n_top=16)
    flawed = np.flatnonzero(share >= 0.5)
    flawed = flawed[np.argsort(-share[flawed], kind="stable")][:16]
    print(f"{model.space.size:,} parameters; {right.mean():.1%} right; {len(flawed)} of {count} looked at, of errors")
    records = []
    for split in SPLITS:
        records += repairs_of(given, everything, rejected, flawed, split)
    return records


def repairs_of(
    given: Stage, everything: list[object], rejected: list[object], flawed: np.ndarray, split: int
) -> list[dict]:
    """Every method on one split."""
    model, data = given.model, given.heldout
    n, right, count, records = len(data), given.predicted == data.labels, len(everything), []
    chooses = np.random.default_rng(split).permutation(n) < 0.4 * n
    wrong = data.subset(np.flatnonzero(chooses & ~right))
    good = data.subset(np.flatnonzero(chooses & right)[:400])
    part, rest = data.subset(np.flatnonzero(chooses)), data.subset(np.flatnonzero(~chooses))
    others = good.examples

    def span(directions: list[object], nats: float) -> object:
        return span_move(model, directions, wrong.examples, wrong.labels, others, within=TrustRegion(nats)).move

    def best_single(directions: list[object], nats: float) -> object:
        moves = {}
        for j in flawed:
            for sign in (1.0, -1.0):
                move, _ = scale_to_kl(model, times(sign, directions[j]), others, nats)
                moves[f"{j} {sign:+.0f}"] = move
        change = compare_moves(model, moves, part.examples, part.labels).change[:, 0]
        return list(moves.values())[int(np.argmax(change))]

    g = gradient_step(model, wrong.examples, wrong.labels)
    noise = random_directions(model, count, split)
    methods = {
        "span of components, loss gradient": lambda nats: span(everything, nats),
        "span of components of errors, loss gradient": lambda nats: span([everything[j] for j in flawed], nats),
        "best component, plain": lambda nats: best_single(everything, nats),
        "best component, rejected": lambda nats: best_single(rejected, nats),
        "one gradient step": lambda nats: scale_to_kl(model, g, others, nats)[0],
        "fine-tune on the wrong ones": lambda nats: fine_tune(model, wrong.examples, wrong.labels, others, nats),
        "span of random directions, loss gradient": lambda nats: span(noise, nats),
    }
    chosen = {}
    for name, method in methods.items():
        tried = {f"{nats:g}": method(nats) for nats in BUDGETS}
        change = compare_moves(model, tried, part.examples, part.labels).change[:, 0]
        chosen[name] = BUDGETS[int(np.argmax(change))], tried[f"{BUDGETS[int(np.argmax(change))]:g}"], change.max()
    for name, directions in (("plain", everything), ("rejected", rejected)):
        found = find_repairs(
            model, [directions[j] for j in flawed], data.examples, data.labels, choosing=chooses, norm=0.3
        )
        best = int(np.argmax(found.chosen_change))
        step = times(0.3 * float(found.sign[best]), directions[flawed[best]])
        chosen[f"best component, {name}, norm 0.3"] = np.nan, step, found.chosen_change[best]
    misled = given.misled[~chooses]
    table = compare_moves(
        model,
        {name: move for name, (_, move, _) in chosen.items()},
        rest.examples,
        rest.labels,
        groups={"misled": misled, "others": ~misled},
    )
    for i, name in enumerate(table.names):
        records.append(
            {
                "method": name,
                "split": split,
                "budget": float(chosen[name][0]),
                "where chosen": 100 * float(chosen[name][2]),
                "all": 100 * float(table.change[i, 0]),
                "low": 100 * float(table.interval[i, 0, 0]),
                "high": 100 * float(table.interval[i, 0, 1]),
                "misled": 100 * float(table.change[i, 1]),
                "others": 100 * float(table.change[i, 2]),
                "KL": float(table.kl[i, 0]),
            }
        )
        print(records[-1], flush=True)
    return records


def forgetting(given: Stage, fast: bool) -> list[dict]:
    """A kind of pair: contradictions with two affirmed sentences."""
    model, data = given.model, given.heldout
    tokens = np.asarray(data.examples)
    concept = (data.labels == 0) & (tokens[:, 0] == tokens[0, 0]) & (given.predicted == 0)
    components = list(component_directions(model, given.expanded, np.arange(given.expanded.n_components)))
    records = []
    for split in SPLITS:
        records += forgetting_of(given, components, concept, split)
    return records


def forgetting_of(given: Stage, components: list[object], concept: np.ndarray, split: int) -> list[dict]:
    """Every method on one split."""
    model, data, count, records = given.model, given.heldout, len(components), []
    n = len(data)
    chooses = np.random.default_rng(split).permutation(n) < 0.4 * n
    marked, others = data.subset(np.flatnonzero(chooses & concept)), data.subset(np.flatnonzero(chooses & ~concept))
    rest = data.subset(np.flatnonzero(~chooses))
    held = concept[~chooses]
    relearn = data.subset(np.flatnonzero(chooses & concept)[:32])
    nats = 0.02
    forget = {"aim": Aim.FORGET, "within": TrustRegion(nats)}

    def moved_by(directions: list[object]) -> object:
        return span_move(model, directions, marked.examples, marked.labels, others.examples, **forget).move

    moves = {
        "span of components": moved_by(components),
        "gradient ascent": fine_tune(model, marked.examples, marked.labels, others.examples, nats, sign=-1.0),
        "one step of gradient ascent": scale_to_kl(
            model, gradient_step(model, marked.examples, marked.labels, 1.0), others.examples, nats
        )[0],
        "span of random directions": moved_by(random_directions(model, count, split)),
    }
    table = compare_moves(model, moves, rest.examples, rest.labels, groups={"concept": held, "others": ~held})
    pefs = given.pefs.subset(np.flatnonzero(~chooses))
    fit = npeff.fit_coefficients(given.expanded, pefs)
    for i, (name, move) in enumerate(moves.items()):
        told = collateral(model, given.expanded, pefs, rest.examples, move, fit=fit)
        after = perturb(model, move)
        recovered = fine_tune_steps(after, relearn.examples, relearn.labels, 20)
        again = compare_moves(
            model,
            {"again": jax.tree.map(lambda a, b: a - b, recovered, model.params)},
            rest.examples,
            rest.labels,
            groups={"concept": held},
        )
        records.append(
            {
                "method": name,
                "split": split,
                "concept, points": 100 * float(table.change[i, 1]),
                "others, points": 100 * float(table.change[i, 2]),
                "KL of the concept": float(table.kl[i, 1]),
                "KL of others": float(table.kl[i, 2]),
                "rank agreement with eq. 5": float(told.agreement),
                "concept after 20 steps on 32": 100 * float(again.change[0, 1]),
            }
        )
        print(records[-1], flush=True)
    return records


def fine_tune_steps(model: npeff.Model, examples: object, labels: np.ndarray, steps: int) -> object:
    """Parameters after a few steps of Adam on examples."""
    optimizer = optax.adam(1e-4)

    @jax.jit
    def step(params: object, state: object) -> tuple[object, object]:
        def loss(p: object) -> jax.Array:
            log_p = jax.nn.log_softmax(jax.vmap(model.logits_fn, (None, 0))(p, examples))
            return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

        update, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, update), state

    params, state = model.params, optimizer.init(model.params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def steering(given: Stage, fast: bool) -> list[dict]:
    """On the top examples of the five strongest components, the class that they are most predicted as."""
    model, data = given.model, given.heldout
    records = []
    W = given.fit.coefficients
    for j in np.argsort(-np.sum(W**2, axis=0))[:5]:
        top = npeff.top_examples(W, int(j), 64)
        target = int(np.bincount(given.predicted[top], minlength=3).argmax())
        others = [k for k in np.argsort(-np.sum(W**2, axis=0))[:12] if k != j][:8]
        chosen = dict(
            zip(["own", *(f"component {k}" for k in others)], component_directions(model, given.expanded, [j, *others]))
        )
        chosen |= {f"random {i}": d for i, d in enumerate(random_directions(model, 8, int(j)))}
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
