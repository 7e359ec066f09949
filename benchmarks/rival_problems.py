"""Models and examples, and planted Fishers, that NPEFF and its rivals are held against each other on."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import file_set
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from planted import BASE
from rival_methods import Side, first_rows, unit_rows

import npeff_jax as npeff
from npeff_jax._types import PyTree
from npeff_jax.pefs import RowBasis
from npeff_jax.perturbation import Subject
from npeff_jax.perturbation._edit import larger_kl

FILES = npeff.tasks.presets.FILES

NATS = 0.01
"""Mean KL on the top examples of every move."""

LONGEST = 1e3


@dataclasses.dataclass(frozen=True)
class QuickBudget(npeff.KLBudget):
    """The same budget with fewer passes: each guess takes the KL to be quadratic in the norm.

    It ends at a norm that uses three quarters of the budget or more, where `KLBudget` tries all norms from small to
    large and ends at nine tenths. The first guess is the norm of the component before.
    """

    def largest_norm(self, subject: Subject, component: int, direction: PyTree) -> float:
        norm, low, high = subject.memo.get("norm", 0.05), 0.0, self.max_norm
        for _ in range(16):
            kl = float(larger_kl(subject, component, direction, np.array([norm]))[0])
            if 0.75 * self.nats <= kl <= self.nats:
                subject.memo["norm"] = norm
                return norm
            low, high = (low, norm) if kl > self.nats else (norm, high)
            factor = np.sqrt(0.88 * self.nats / kl) if 0 < kl < np.inf else (8.0 if kl <= 0 else 0.125)
            guess = norm * float(np.clip(factor, 0.125, 8.0))
            norm = guess if low < guess < high else (low + high) / 2
        return super().largest_norm(subject, component, direction)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model, its examples in two parts, and the model of shifted activations.

    Attributes:
        name: of the problem, with what identifies its examples.
        model: what is explained.
        shifted: the model whose only parameters are a shift of the activations.
        decomposed: the examples that methods learn from.
        heldout: those that the audit is of.
        budget: how far each direction is moved.
        n_top: top examples of a direction.
        n_random: random examples that they are compared with, if there are as many.
        variables: what a compiled program computes of the held-out examples, by name; otherwise empty.
    """

    name: str
    model: npeff.Model
    shifted: npeff.Model
    decomposed: Side
    heldout: Side
    budget: npeff.KLBudget
    n_top: int = 16
    n_random: int = 10_000
    variables: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


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
    parts = [(x, y, x, np.asarray(map_of(x))) for x, y in halves]
    budget = npeff.KLBudget(NATS, max_norm=LONGEST)
    return _problem("digits", task.model, head, parts, budget, npeff.LowRank(), 2048)


def file_pefs(
    folder: pathlib.Path, n_files: int = 800, heldout_share: float = 0.2
) -> tuple[npeff.tasks.FileTypes, npeff.Pefs, npeff.Pefs]:
    """Files of pinned packages in two parts, and the PEFs of both, kept in the folder."""
    task = npeff.tasks.file_types(file_set.packages(folder), n_files=n_files, heldout_share=heldout_share)
    pefs, heldout = (
        npeff.compute_pefs(
            task.model, part.examples, FILES.representation, labels=part.labels, keep=FILES.keep, progress=False,
            path=_kept_in(folder, task) / f"{side}-pefs", on_existing="resume",
        )
        for side, part in (("decomposed", task.decomposed), ("heldout", task.heldout))
    )  # fmt: skip
    return task, pefs, heldout


def _kept_in(folder: pathlib.Path, task: npeff.tasks.FileTypes) -> pathlib.Path:
    return folder / f"pefs-{task.digest[:8]}"


def files(folder: pathlib.Path, n_files: int = 4500) -> Problem:
    """The file-type network on files of pinned packages, every second one held out.

    Its activations are what it has of a file behind the maximum over positions: 512 numbers.
    """
    task, _, _ = file_pefs(folder, n_files, heldout_share=0.5)
    model = task.model
    norm, last = model.params["norm_out"], model.params["classifier"]

    def head(params: Any, activation: jax.Array) -> jax.Array:
        x = activation + params["shift"]
        variance = jnp.maximum(jnp.mean(x * x) - jnp.mean(x) ** 2, 0.0)
        x = (x - jnp.mean(x)) * (norm["scale"] / jnp.sqrt(variance + 1e-6)) + norm["bias"]
        return x @ last["kernel"] + last["bias"]

    parts = [
        (part.examples, part.labels, part.display, npeff.evaluation.activations(model, part.examples, "pooled"))
        for part in (task.decomposed, task.heldout)
    ]
    budget, kept = QuickBudget(NATS, LONGEST), _kept_in(folder, task)
    found = _problem(f"files {task.digest}", model, head, parts, budget, FILES.representation, FILES.keep, kept)
    return dataclasses.replace(found, n_random=250)  # a forward pass takes a gigaflop


def program() -> Problem:
    """The compiled program of the demo, on the most pairs of sentences that can be balanced: two of three to decompose.

    Its activations are the last residual stream at the last token, where each variable has a dimension of its own. The
    budget is that of the demo: weights lie on ReLU kinks, so that moves have to be shorter than on trained networks.
    All parameters are in one array: operations on 150 small ones one by one took much of the time of a move.
    """
    task = npeff.tasks.inference(n_examples=1200)
    flat, tree_of = jax.flatten_util.ravel_pytree(task.model.params)
    logits_of, names = task.model.logits_fn, {"output": task.model.output, "label_names": task.model.label_names}
    model = npeff.Model(lambda params, x: logits_of(tree_of(params["all"]), x), {"all": flat}, **names)
    unembedding = task.model.constants["unembedding"]

    def head(params: Any, activation: jax.Array) -> jax.Array:
        return (activation + params["shift"]) @ unembedding

    stream = npeff.evaluation.activations(task.model, task.examples, "output")
    decomposed, heldout = slice(0, 800), slice(800, None)
    parts = [(task.examples[own], task.labels[own], task.texts[own], stream[own]) for own in (decomposed, heldout)]
    budget = QuickBudget(1e-6, LONGEST)
    found = _problem(f"program {task.digest}", model, head, parts, budget, npeff.LowRank(), 8192)
    return dataclasses.replace(found, variables={name: has[heldout] for name, has in task.concepts.items()})


SIGNED = ", with signs"


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """Planted Fishers, and what methods see of them.

    Attributes:
        name: of the world, the same for all seeds.
        world: Fishers with their planted vectors and coefficients.
        side: an example's gradient is its first row. Rows are rotated at random, as a Fisher does not say which they
            were, nor their signs.
        signed: an example's gradient is the sum of its planted rows, as they were before the rotation, without noise
            and with all entries: more than a network gives.
    """

    name: str
    world: npeff.tasks.PlantedFishers
    side: Side
    signed: Side


def planted(seed: int) -> Planted:
    """The base world of `planted.py`."""
    world = npeff.tasks.planted_fishers(seed=seed, **BASE)
    rows = scipy.sparse.csr_array(world.pefs.to_scipy())
    owner = np.repeat(np.arange(world.pefs.n_examples), np.asarray(world.pefs.n_rows))
    side = Side(world.pefs, rows, owner, unit_rows(rows[first_rows(owner)]))
    summed = scipy.sparse.csr_array(np.sqrt(world.coefficients)) @ world.vectors
    return Planted(f"planted {BASE}", world, side, dataclasses.replace(side, gradients=unit_rows(summed)))


def _problem(
    name: str,
    model: npeff.Model,
    head: Callable,
    parts: list,
    budget: npeff.KLBudget,
    representation: npeff.LowRank,
    keep: int,
    folder: pathlib.Path | None = None,
) -> Problem:
    width = parts[0][3].shape[1]
    names = {"output": model.output, "label_names": model.label_names}
    shifted = npeff.Model(head, {"shift": jnp.zeros(width, jnp.float32)}, **names)
    predicted = npeff.LowRank(rows=RowBasis.CLASSES, max_rows=1)  # the likeliest class's row: its gradient, scaled
    sides = []
    for side, (examples, labels, readable, activations) in zip(("decomposed", "heldout"), parts, strict=True):

        def kept(what: str, side: str = side) -> dict[str, Any]:
            """Where PEFs are kept, so that a later run finds them."""
            return {} if folder is None else {"path": folder / f"{side}-{what}", "on_existing": "resume"}

        options = {"labels": labels, "progress": False}
        pefs = npeff.compute_pefs(model, examples, representation, keep=keep, **options, **kept("pefs"))
        one = {"keep": min(keep, model.space.size)} | options
        gradients = npeff.compute_pefs(model, examples, predicted, **one, **kept("gradients"))
        of_shift = functools.partial(
            npeff.compute_pefs, shifted, activations, representation, keep=None, **options, **kept("shifted")
        )
        owner = np.repeat(np.arange(pefs.n_examples), np.asarray(pefs.n_rows))
        rows = scipy.sparse.csr_array(pefs.to_scipy())
        unit = unit_rows(scipy.sparse.csr_array(gradients.to_scipy()))
        sides.append(Side(pefs, rows, owner, unit, activations, of_shift, examples, readable))
    return Problem(name, model, shifted, *sides, budget)
