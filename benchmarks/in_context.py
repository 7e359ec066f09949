"""In-context learning: do components separate the tasks of a small transformer, and can one task be removed?

    python benchmarks/in_context.py [--fast] [--out in_context.jsonl]

A transformer reads four pairs (x, f(x)) of one of five maps on twelve symbols, then an x, and answers f(x): what to
do is only in its context. It is trained here (two layers of width 32, half a minute). Components are found on sequences
that it was not trained on; of 1,200 others a half chooses and the other half reports.

separate   For each task the component whose coefficients tell its sequences from others best where it is chosen (of a
           free run), and the component that is named from a tenth of the decomposed sequences; AUC where it is
           reported, against the same with permuted tasks.
remove     Along these components, both signs, a move of a stated KL on sequences of the other tasks; the sign is the
           one that costs the task most where it is chosen. Accuracy on the task and on the others, against eight
           other components and eight random directions at that KL, with signs chosen alike.

Five seeds, of training, data and decomposition. Every seed is written as it ends, and not run again.
"""

import argparse
import dataclasses
import functools
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ranges import Kept, print_ranges

import npeff_jax as npeff
from npeff_jax.evaluation import auc, compare_moves
from npeff_jax.factorization import Tuning
from npeff_jax.perturbation import component_directions, scale_to_kl

SYMBOLS, PAIRS, SEEDS = 12, 4, range(5)
TASKS = {
    "same": lambda x: x,
    "next": lambda x: (x + 1) % SYMBOLS,
    "fifth after": lambda x: (x + 5) % SYMBOLS,
    "mirror": lambda x: SYMBOLS - 1 - x,
    "five times": lambda x: (5 * x) % SYMBOLS,
}
NATS = 0.05
"""Of KL on sequences of other tasks."""


class Transformer(nn.Module):
    """Pre-norm, with full attention: the answer is read at the last symbol."""

    width: int = 32
    layers: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(SYMBOLS, self.width)(tokens) + nn.Embed(len(tokens), self.width)(np.arange(len(tokens)))
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.relu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(SYMBOLS)(nn.LayerNorm()(x)[-1])


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequences x₁ y₁ … x₄ y₄ x, what is asked for, and the number of the task."""
    task, x = rng.integers(0, len(TASKS), count), rng.permuted(np.tile(np.arange(SYMBOLS), (count, 1)), axis=1)
    x = x[:, : PAIRS + 1]
    y = np.select([task[:, None] == k for k in range(len(TASKS))], [f(x) for f in TASKS.values()])
    tokens = np.stack([x, y], axis=2).reshape(count, -1)
    return tokens[:, :-1].astype(np.int32), tokens[:, -1], task


def train(seed: int, steps: int) -> npeff.Model:
    """Adam on fresh sequences; smoothed labels, so that predictions are not all certain."""
    net, rng, optimizer = (
        Transformer(),
        np.random.default_rng(seed),
        optax.adam(optax.cosine_decay_schedule(4e-3, steps)),
    )
    params = net.init(jax.random.key(seed), draw(rng, 1)[0][0])["params"]

    def apply(params: object, tokens: jax.Array) -> jax.Array:
        return net.apply({"params": params}, tokens)

    @jax.jit
    def step(params: object, state: object, tokens: jax.Array, labels: jax.Array) -> tuple[object, object]:
        def loss(p: object) -> jax.Array:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, SYMBOLS), 0.1)
            return optax.softmax_cross_entropy(jax.vmap(apply, (None, 0))(p, tokens), targets).mean()

        update, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, update), state

    state = optimizer.init(params)
    for _ in range(steps):
        tokens, labels, _ = draw(rng, 256)
        params, state = step(params, state, tokens, labels)
    return npeff.Model(apply, params, label_names=tuple(str(k) for k in range(SYMBOLS)))


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences that no component was found in, their coefficients, and which half of them chooses."""

    tokens: np.ndarray
    labels: np.ndarray
    task: np.ndarray
    chooses: np.ndarray


def one_seed(seed: int, fast: bool) -> list[dict]:
    """All tasks of one model."""
    model = train(seed, 300 if fast else 2500)
    rng = np.random.default_rng(100 + seed)
    n, n_other, r, keep = (200, 300, 10, 512) if fast else (800, 1200, 24, 2048)
    known, (tokens, labels, task) = draw(rng, n), draw(rng, n_other)
    data = Sequences(tokens, labels, task, np.arange(n_other) < n_other // 2)
    low_rank = npeff.LowRank(max_rows=3)
    pefs, heldout = (npeff.compute_pefs(model, x, low_rank, keep=keep, progress=False) for x in (known[0], data.tokens))
    options = {"seed": seed, "stopping": npeff.Stopping(max_steps=100), "progress": False}
    free = npeff.decompose(pefs, r, **options)
    W = npeff.fit_coefficients(free, heldout).coefficients
    predicted = np.asarray(jax.vmap(model.logits_fn, (None, 0))(model.params, data.tokens)).argmax(1)
    print(f"seed {seed}: {np.mean(predicted == data.labels):.1%} right")
    directions = list(component_directions(model, free, np.arange(r)))
    records = []
    for k, name in enumerate(list(TASKS)[:1] if fast else TASKS):
        y = data.task == k
        marks = np.where(rng.random(n) < 0.1, (known[2] == k) * 1.0, np.nan)
        named = npeff.decompose(pefs, r, tunings=[Tuning(name, marks)], **options)
        V = npeff.fit_coefficients(named, heldout).coefficients[:, 0]
        picked = best(W, y, data.chooses)
        permuted = rng.permutation(y)
        scored = {"free": W[:, picked], "named": V}
        record = {"task": name, "seed": seed, "accuracy": float(np.mean((predicted == data.labels)[y]))}
        record |= {f"AUC, {key}": auc(w[~data.chooses], y[~data.chooses]) for key, w in scored.items()}
        chance = W[:, best(W, permuted, data.chooses)]
        record["AUC, permuted"] = auc(chance[~data.chooses], permuted[~data.chooses])
        drawn = [j for j in rng.permutation(r) if j != picked][:8]
        others = {f"other {j}": directions[j] for j in drawn}
        (own,) = component_directions(model, named, [0])
        flat = rng.normal(size=(8, model.space.size)).astype(np.float32)
        random = {f"random {i}": model.space.unravel(jnp.asarray(v)) for i, v in enumerate(flat)}
        told = removed(model, data, y, {"free": directions[picked], "named": own, **others, **random})
        for key in ("free", "named"):
            record |= {f"task, {key}": told[key][0], f"rest, {key}": told[key][1]}
        for key, words in (("other", "median other component"), ("random", "best random")):
            drops = np.array([value[:2] for which, value in told.items() if which.startswith(key)])
            record[f"task, {words}"] = float(np.median(drops[:, 0]) if key == "other" else drops[:, 0].min())
        records.append(record)
    return records


def best(W: np.ndarray, y: np.ndarray, among: np.ndarray) -> int:
    """The component with the largest AUC."""
    return int(np.argmax([auc(column[among], y[among]) for column in W.T]))


def removed(model: npeff.Model, data: Sequences, y: np.ndarray, directions: dict[str, object]) -> dict[str, tuple]:
    """Change of accuracy, in points, on the task and on the others, where it is reported."""
    others = data.tokens[data.chooses & ~y][:100]
    moves = {}
    for name, direction in directions.items():
        for sign in (1.0, -1.0):
            signed = jax.tree.map(lambda leaf, sign=sign: sign * leaf, direction)
            moves[f"{name} {sign:+.0f}"] = scale_to_kl(model, signed, others, NATS)[0]
    groups = {
        f"{which} {who}": mask & side
        for which, side in (("chooses", data.chooses), ("reports", ~data.chooses))
        for who, mask in (("task", y), ("rest", ~y))
    }
    table = compare_moves(model, moves, data.tokens, data.labels, groups=groups)
    at = {name: i for i, name in enumerate(table.groups)}
    change = dict(zip(table.names, table.change, strict=True))
    found = {}
    for name in directions:
        signs = [change[f"{name} +1"], change[f"{name} -1"]]
        own = min(signs, key=lambda row: row[at["chooses task"]] - row[at["chooses rest"]])
        found[name] = (100 * float(own[at["reports task"]]), 100 * float(own[at["reports rest"]]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one short training, to check that the script runs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("in_context.jsonl"), help="seeds, as they end")
    options = parser.parse_args()
    records, kept = [], Kept(options.out)
    for seed in SEEDS[:1] if options.fast else SEEDS:
        records += kept.once({"fast": options.fast, "seed": seed}, functools.partial(one_seed, seed, options.fast))
    print_ranges("in-context tasks", records, "task")
    print_ranges("all of them", [record | {"task": "all"} for record in records], "task")
    seconds = kept.seconds(fast=options.fast)
    print(f"\n{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {seconds:.0f} s of CPU; written to {options.out}")


if __name__ == "__main__":
    main()
