"""A transformer with a planted flaw, its components, held-out examples, and moves to hold components against.

For `repairs.py` and `moves.py`. The model is `npeff_jax.tasks.shortcut`. Components are found on one set, and more on
the wrong predictions of a pool; all else is chosen and reported on examples of neither, split into 40% that choose and
60% that report.
"""

import argparse
import dataclasses
import enum
import functools
import pathlib
import pickle
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import npeff_jax as npeff
from npeff_jax.perturbation import perturbed_kl

SPLITS = range(5)


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The model, its components, and examples that neither was made from.

    Attributes:
        model: of the flaw.
        expanded: components of a training-like sample, and those that were added for errors.
        heldout: examples.
        misled: where the shortcut is wrong about a held-out example.
        pefs: of the first ``n_pefs`` held-out examples.
        fit: coefficients of these.
        predicted: classes of all held-out examples.
        adam: a step (parameters, state, examples, labels, goal=) of Adam, compiled once per number of examples.
    """

    model: npeff.Model
    expanded: npeff.Decomposition
    heldout: npeff.tasks.Dataset
    misled: np.ndarray
    pefs: npeff.Pefs
    fit: npeff.CoefficientFit
    predicted: np.ndarray
    adam: Callable[..., tuple[object, object]]

    def chooses(self, split: int) -> np.ndarray:
        """Which held-out examples choose."""
        n = len(self.heldout)
        return np.random.default_rng(split).permutation(n) < 0.4 * n


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of data and factorizations. The methods' settings were tried on a model of seed 0; another one is reported."""

    n: int = 800
    n_pool: int = 3000
    n_heldout: int = 8000
    n_pefs: int = 2000
    r: int = 40
    n_new: int = 24
    keep: int = 2048
    steps: int = 3000
    seed: int = 1
    training: tuple[tuple[str, int], ...] = (("n_train", 10_000), ("width", 64), ("layers", 4))


FULL = Sizes()
FAST = Sizes(200, 600, 600, 300, 12, 8, 512, 300, training=(("n_train", 2000),))


def parse(description: str, out: str, parts: tuple[str, ...] = ()) -> tuple[argparse.Namespace, Sizes]:
    """The arguments that both scripts take; ``parts`` may be run alone."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fast", action="store_true", help="smaller model and data, to check that the script runs")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("moves-cache"), help="model and components")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help="runs, as they end")
    if parts:
        parser.add_argument("--only", nargs="*", default=parts, choices=parts)
    options = parser.parse_args()
    options.cache = options.cache / ("fast" if options.fast else "full")
    options.cache.mkdir(parents=True, exist_ok=True)
    return options, FAST if options.fast else FULL


def stage(sizes: Sizes, folder: pathlib.Path) -> Stage:
    """Train, decompose, expand; kept in a folder, because it takes most of the time."""
    options = {**dict(sizes.training), "n_heldout": sizes.n_pool + sizes.n_heldout, "counterexamples": 0.02}
    options["seed"] = sizes.seed
    kept = folder / "parameters.pickle"
    if not kept.exists():
        trained = npeff.tasks.shortcut(steps=sizes.steps, progress=False, **options)
        kept.write_bytes(pickle.dumps(jax.tree.map(np.asarray, trained.model.params)))
    task = npeff.tasks.shortcut(steps=0, progress=False, **options)
    model = dataclasses.replace(task.model, params=pickle.loads(kept.read_bytes()))
    pool, heldout = task.heldout.subset(slice(sizes.n_pool)), task.heldout.subset(slice(sizes.n_pool, None))

    def compute(data: npeff.tasks.Dataset, name: str) -> npeff.Pefs:
        options = {"keep": sizes.keep, "path": folder / name, "progress": False}
        return npeff.compute_pefs(model, data.examples, labels=data.labels, **options)

    if not (folder / "base").exists():
        base_pefs = compute(pool.subset(slice(sizes.n)), "pefs")
        npeff.decompose(base_pefs, sizes.r, progress=False).save(folder / "base")
    if not (folder / "expanded").exists():
        wrong = np.flatnonzero(predictions(model, pool.examples) != pool.labels)[: 2 * sizes.n]
        errors = compute(pool.subset(wrong), "errors")
        base = npeff.load_decomposition(folder / "base")
        npeff.expand(base, errors, sizes.n_new, progress=False).save(folder / "expanded")
    expanded = npeff.load_decomposition(folder / "expanded")
    pefs = compute(heldout.subset(slice(sizes.n_pefs)), "heldout")
    fit = npeff.fit_coefficients(expanded, pefs)
    predicted, misled = predictions(model, heldout.examples), task.misled[sizes.n_pool :]
    print(
        f"{model.space.size:,} parameters; {np.mean(predicted == heldout.labels):.1%} right, {misled.mean():.1%} misled"
    )
    return Stage(model, expanded, heldout, misled, pefs, fit, predicted, adam_of(model))


def predictions(model: npeff.Model, examples: np.ndarray) -> np.ndarray:
    """The class with the largest logit."""
    return np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, examples)).argmax(-1)


OPTIMIZER = optax.adam(1e-4)


class Goal(enum.Enum):
    """What gradient steps lower: −log p_y, log p_y, or −log(1 − p_y)."""

    LEARN = "learn"
    ASCEND = "ascend"
    FORGET = "forget"


def loss_of(model: npeff.Model, params: object, examples: jax.Array, labels: jax.Array, goal: Goal) -> jax.Array:
    """The mean over examples of what the goal lowers."""
    log_p = jax.nn.log_softmax(jax.vmap(model.logits_fn, (None, 0))(params, examples))
    own = jax.nn.one_hot(labels, log_p.shape[-1], dtype=bool)
    if goal is Goal.FORGET:
        return -jax.nn.logsumexp(log_p, axis=-1, where=~own).mean()
    return (-1.0 if goal is Goal.LEARN else 1.0) * jnp.sum(log_p * own, axis=-1).mean()


def gradient_step(model: npeff.Model, data: npeff.tasks.Dataset, goal: Goal) -> object:
    """The direction of one step."""
    gradient = jax.jit(jax.grad(functools.partial(loss_of, model, goal=goal)))
    return times(-1.0, gradient(model.params, data.examples, data.labels))


def adam_of(model: npeff.Model) -> Callable[..., tuple[object, object]]:
    """One step of Adam towards a goal."""

    @functools.partial(jax.jit, static_argnames="goal")
    def step(params: object, state: object, examples: object, labels: object, goal: Goal) -> tuple[object, object]:
        gradient = jax.grad(functools.partial(loss_of, model, goal=goal))(params, examples, labels)
        update, state = OPTIMIZER.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    return step


def fine_tune(given: Stage, data: npeff.tasks.Dataset, others: object, nats: float, goal: Goal = Goal.LEARN) -> object:
    """Adam on the examples until the KL elsewhere reaches the budget; part of the last step, to end within it."""
    model = given.model

    def kl(move: object) -> float:
        return float(perturbed_kl(model, others, [move]).mean())

    def between(part: float) -> object:
        return jax.tree.map(lambda a, b: (1 - part) * a + part * b, last, move)

    params, state = model.params, OPTIMIZER.init(model.params)
    move = jax.tree.map(jnp.zeros_like, params)
    for _ in range(200):
        params, state = given.adam(params, state, data.examples, data.labels, goal=goal)
        last, move = move, jax.tree.map(lambda a, b: a - b, params, model.params)
        if kl(move) > nats:
            low, high = 0.0, 1.0
            for _ in range(6):
                middle = (low + high) / 2
                low, high = (low, middle) if kl(between(middle)) > nats else (middle, high)
            return between(low)
    return move


def times(scale: float, direction: object) -> object:
    """A direction, scaled."""
    return jax.tree.map(functools.partial(jnp.multiply, scale), direction)


def random_directions(model: npeff.Model, count: int, seed: int) -> list[object]:
    """Unit vectors, uniform on the sphere."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, model.space.size)).astype(np.float32)
    return [model.space.unravel(jnp.asarray(v / np.linalg.norm(v))) for v in drawn]


def at_norm(model: npeff.Model, direction: object, norm: float) -> object:
    """A direction, scaled to a norm."""
    return times(norm / float(np.linalg.norm(np.asarray(model.space.ravel(direction)))), direction)
