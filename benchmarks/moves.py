"""Moves along components with a purpose: forgetting with its collateral, and steering.

    python benchmarks/moves.py [--fast] [--only forgetting steering] [--cache moves-cache] [--out moves.jsonl]

The model and its components are those of `repairs.py`, which shares the cache.

forgetting A class of one polarity is to be forgotten: by the span of its components, and of random directions, which
           lower −log(1 − p_y); by gradient ascent on −log p_y, by gradient steps on the loss of the span, one or many.
           Each is scaled to a mean KL of 0.02 nats on all other examples that report. Accuracy on the concept and
           elsewhere, how well equation 5 predicts who else moves, and accuracy after a few steps of fine-tuning on 32
           examples of the concept. Five splits.
steering   The probability of a class along one component, other components and random directions, at the same KL.
"""

import dataclasses
import functools
import os

import flawed_model
import jax
import numpy as np
from flawed_model import OPTIMIZER, SPLITS, Goal, Stage, fine_tune, gradient_step, random_directions
from ranges import Kept, print_ranges

import npeff_jax as npeff
from npeff_jax.evaluation import collateral, compare_moves, steer
from npeff_jax.perturbation import Aim, TrustRegion, component_directions, perturb, scale_to_kl, span_move

NATS, N_SPAN = 0.02, 16
N_MARKED, N_OTHERS, N_RELEARN = 150, 600, 32
"""Examples of choosing ones, the same in every split, so that programs are compiled once."""


def forgetting(given: Stage, fast: bool, kept: Kept) -> list[dict]:
    """A kind of pair: contradictions with two affirmed sentences."""
    data, records = given.heldout, []
    tokens = np.asarray(data.examples)
    concept = (data.labels == 0) & (tokens[:, 0] == 0) & (tokens[:, 3] == 0) & (given.predicted == 0)
    print(f"{concept.sum()} of {len(data)} examples are to be forgotten")
    for split in SPLITS[:1] if fast else SPLITS:
        key = {"part": "forgetting", "fast": fast, "split": split}
        records += kept.once(key, functools.partial(forgetting_of, given, concept, split))
    return records


def forgetting_moves(given: Stage, concept: np.ndarray, split: int) -> dict[str, object]:
    """Moves of every method from the examples that choose, scaled on those that report; and each after relearning."""
    model, data, chooses = given.model, given.heldout, given.chooses(split)
    marked = data.subset(np.flatnonzero(chooses & concept)[:N_MARKED])
    others = data.subset(np.flatnonzero(chooses & ~concept)[:N_OTHERS]).examples
    held = data.subset(np.flatnonzero(~chooses & ~concept)).examples
    known = chooses[: given.pefs.n_examples]
    W = given.fit.coefficients[known]
    lift = (W[concept[: len(known)][known]] ** 2).mean(axis=0) / ((W**2).mean(axis=0) + 1e-9)
    components = list(component_directions(model, given.expanded, np.argsort(-lift)[:N_SPAN]))

    def moved_by(directions: list[object]) -> object:
        within = TrustRegion(NATS)
        return span_move(model, directions, marked.examples, marked.labels, others, aim=Aim.FORGET, within=within).move

    moves = {
        "span of its components": moved_by(components),
        "gradient ascent": fine_tune(given, marked, others, NATS, Goal.ASCEND),
        "one step of gradient ascent": gradient_step(model, marked, Goal.ASCEND),
        "gradient steps, loss of the span": fine_tune(given, marked, others, NATS, Goal.FORGET),
        "one gradient step, loss of the span": gradient_step(model, marked, Goal.FORGET),
        "span of random directions": moved_by(random_directions(model, N_SPAN, split)),
    }
    moves = {name: scale_to_kl(model, move, held, NATS)[0] for name, move in moves.items()}
    relearn, again = marked.subset(np.arange(min(N_RELEARN, len(marked)))), {}
    for name, move in moves.items():
        params, state = perturb(model, move).params, OPTIMIZER.init(model.params)
        for step in range(1, 11):
            params, state = given.adam(params, state, relearn.examples, relearn.labels, goal=Goal.LEARN)
            if step in (2, 10):
                again[f"{name} {step}"] = jax.tree.map(lambda a, b: a - b, params, model.params)
    return moves | again


def forgetting_of(given: Stage, concept: np.ndarray, split: int) -> list[dict]:
    """Every method on one split."""
    model, data, chooses = given.model, given.heldout, given.chooses(split)
    moves = forgetting_moves(given, concept, split)
    rest, held = data.subset(np.flatnonzero(~chooses)), concept[~chooses]
    groups = {"concept": held, "others": ~held}
    table = compare_moves(model, moves, rest.examples, rest.labels, groups=groups)
    with_pefs = np.flatnonzero(~chooses[: given.pefs.n_examples])
    pefs, seen = given.pefs.subset(with_pefs), data.subset(with_pefs).examples
    fit = dataclasses.replace(given.fit, coefficients=given.fit.coefficients[with_pefs])
    at, records = {name: i for i, name in enumerate(table.names)}, []
    for name in [name for name in moves if f"{name} 2" in moves]:
        i, told = at[name], collateral(model, given.expanded, pefs, seen, moves[name], fit=fit)
        if not records:
            print(told, flush=True)
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
    return records


def steering(given: Stage, fast: bool, kept: Kept) -> list[dict]:
    """On the top examples of the strongest components, the class that they are most predicted as."""
    records = []
    for j in np.argsort(-np.sum(given.fit.coefficients**2, axis=0))[: 1 if fast else 5].tolist():
        key = {"part": "steering", "fast": fast, "component": j}
        records += kept.once(key, functools.partial(steering_of, given, j, 2 if fast else 8))
    return records


def steering_of(given: Stage, j: int, n_null: int) -> list[dict]:
    """One component, against as many others and random directions as stated."""
    model, W = given.model, given.fit.coefficients
    top = npeff.top_examples(W, j, 64)
    target = int(np.bincount(given.predicted[top], minlength=3).argmax())
    others = [k for k in np.argsort(-np.sum(W**2, axis=0))[: n_null + 4].tolist() if k != j][:n_null]
    made = component_directions(model, given.expanded, [j, *others])
    chosen = dict(zip(["own", *(f"component {k}" for k in others)], made, strict=True))
    chosen |= {f"random {i}": d for i, d in enumerate(random_directions(model, n_null, j))}
    found = steer(model, chosen, given.heldout.subset(top).examples, target, nats=0.1, n_sizes=5)
    print(found, flush=True)
    reach, own = found.reach, found.responses["own"]
    low, high = own.linear_range
    at = dict(zip(own.scales.tolist(), own.kl.tolist(), strict=True))
    record = {"component": "all", "number": j, "reach, own": float(reach["own"])}
    for kind, word in (("component", "other components"), ("random", "random directions")):
        values = [value for name, value in reach.items() if name.startswith(kind)]
        record |= {f"reach, {word}": float(np.median(values)), f"most of {word}": float(max(values))}
    return [record | {"KL at the ends of the linear range": float(max(at[low], at[high]))}]


def main() -> None:
    options, sizes = flawed_model.parse(__doc__.splitlines()[0], "moves.jsonl", ("forgetting", "steering"))
    given, kept = flawed_model.stage(sizes, options.cache), Kept(options.out)
    for name, run, by in (("forgetting", forgetting, "method"), ("steering", steering, "component")):
        if name in options.only:
            records = run(given, options.fast, kept)
            print_ranges(f"{name} ({kept.seconds(part=name, fast=options.fast):.0f} s of CPU)", records, by)
    print(f"\n{jax.devices()[0].device_kind}, {os.cpu_count()} cores; written to {options.out}")


if __name__ == "__main__":
    main()
