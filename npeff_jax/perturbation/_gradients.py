"""What gradients say about sets of examples: which way lowers their loss, and how much each parameter matters."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from npeff_jax._checks import as_instance, check_integer, check_precision, normalise
from npeff_jax._examples import count_examples, take_examples
from npeff_jax._parameters import ParameterSpace
from npeff_jax._sharding import EXAMPLES, default_mesh, pad_rows, round_up
from npeff_jax._types import Cotangents, Examples, Logits, LogitsFn, PyTree
from npeff_jax.models import Categorical, Model, Output, check_model
from npeff_jax.pefs import pull_back
from npeff_jax.perturbation._arguments import check_direction, class_labels
from npeff_jax.perturbation._divergence import batches, over_examples, place


def loss_gradient(
    model: Model,
    examples: Examples,
    labels: Int[np.ndarray, "n"] | None = None,
    *,
    batch_size: int = 32,
    precision: str = "highest",
) -> PyTree:
    """Compute ∇_θ Σ_i −log p_θ(y_i | x_i): a pytree shaped like the parameters, zero outside the model's mask.

    Args:
        model: with a `Categorical` output.
        examples: n of them, usually a component's top examples.
        labels: y, each in [0, C); the model's own predictions if None.
        batch_size: examples of one backward pass.
        precision: of the model's matrix products.

    Raises:
        TypeError: the model's output has no labels.
        ValueError: another number of labels, not integers, or one that is no class of the model.
    """
    check_model(model)
    examples = take_examples(examples)
    n = count_examples(examples)
    known = class_labels(model, examples, labels)
    check_precision(precision)
    size = min(check_integer("batch_size", batch_size), n)
    y = pad_rows(np.full(n, -1) if known is None else known, -(-n // size) * size).reshape(-1, size)
    valid = (np.arange(y.size) < n).reshape(y.shape)
    total, gradient = None, model.program(_gradient, model.logits_fn, model.space, model.output)
    with jax.default_matmul_precision(precision):
        for i, batch in enumerate(batches(examples, size)):
            part = gradient(model.params, batch, y[i], valid[i])
            total = part if total is None else jax.tree.map(jnp.add, total, part)
    assert total is not None  # n >= 1: count_examples and min reject nothing smaller
    return model.space.unravel(jnp.concatenate([jnp.ravel(leaf) for leaf in total]))


def loss_sign(model: Model, direction: PyTree, examples: Examples, labels: Int[np.ndarray, "n"] | None = None) -> float:
    """Return +1.0 if a small step along ``direction`` lowers the summed loss of ``examples``, else −1.0.

    A component's direction has no sign of its own. The paper tries both; this picks the one that should repair its
    examples (section 3.5 leaves it to future work).

    Args:
        model: with a `Categorical` output.
        direction: a pytree shaped like the parameters.
        examples: usually a component's top examples.
        labels: of each example, in [0, C); the model's predictions if None.

    Raises:
        TypeError: the model's output has no labels.
        ValueError: the direction is not shaped like the parameters, or labels are not classes of the model.
    """
    check_model(model)
    check_direction(model, direction)
    gradient = model.space.ravel(loss_gradient(model, examples, labels))
    return -1.0 if float(jnp.vdot(gradient, model.space.ravel(direction))) > 0 else 1.0


def _gradient(
    params: PyTree,
    batch: Examples,
    labels: jax.Array,
    valid: jax.Array,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    output: Categorical,
) -> tuple[jax.Array, ...]:
    """The gradient of one batch's summed loss. A label of −1 stands for the model's prediction."""

    def loss(selected: tuple[jax.Array, ...]) -> jax.Array:
        logits = jax.vmap(logits_fn, (None, 0))(space.join(params, selected), batch)
        y = jnp.where(labels < 0, jnp.argmax(logits, axis=-1), labels)
        log_p = jax.nn.log_softmax(logits / output.temperature)
        return -jnp.sum(jnp.where(valid, jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0], 0.0))

    return jax.grad(loss)(space.select(params))


class Estimate(abc.ABC):
    """How an example's expectation over predictions is taken in `dataset_fisher`."""

    @abc.abstractmethod
    def cotangents(self, output: Output, logits: Logits, position: jax.Array) -> Cotangents:
        """Return rows on the logits whose pull-backs' squares average to the diagonal Fisher.

        Args:
            output: the model's output family.
            logits: of the example.
            position: of the example, so that what is drawn does not depend on batches.
        """


@dataclasses.dataclass(frozen=True)
class Expectation(Estimate):
    """The expectation over the model's predictions, exactly: C−1 backward passes per example."""

    def cotangents(self, output: Output, logits: Logits, position: jax.Array) -> Cotangents:
        return output.factor(logits)


@dataclasses.dataclass(frozen=True)
class Sampling(Estimate):
    """Labels drawn from the model's predictions: unbiased, and cheaper where C is large.

    Attributes:
        n_samples: draws per example.
        seed: folded with each example's index, so that batches do not matter.
    """

    n_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        normalise(self, n_samples=check_integer("n_samples", self.n_samples), seed=check_integer("seed", self.seed, 0))

    def cotangents(self, output: Output, logits: Logits, position: jax.Array) -> Cotangents:
        # A stated implementation: others draw by the batch.
        key = jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), position)
        return output.sample(key, logits, self.n_samples)


def dataset_fisher(
    model: Model,
    examples: Examples,
    estimate: Estimate = Expectation(),
    *,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> PyTree:
    """Compute 1/n Σ_i diag F(x_i) (eq. 3, averaged): a pytree shaped like the parameters, zero outside the mask.

    Args:
        model: the model.
        examples: n of them.
        estimate: how each example's expectation over predictions is taken.
        batch_size: examples whose gradients are held at once, each with up to C−1 of them.
        mesh: devices to share the examples; JAX's default device if None.
        precision: of the model's matrix products.

    Raises:
        ValueError: a gradient is not finite.

    Examples:
        >>> fisher = dataset_fisher(model, examples)
        >>> bool((model.space.ravel(fisher) >= 0).all())
        True
    """
    check_model(model)
    estimate = as_instance("estimate", estimate, Estimate)
    mesh, examples = default_mesh(mesh), take_examples(examples)
    n = count_examples(examples)
    check_precision(precision)
    size = round_up(min(check_integer("batch_size", batch_size), n), mesh.shape[EXAMPLES])
    index = pad_rows(np.arange(n), round_up(n, size)).reshape(-1, size)
    valid = (np.arange(index.size) < n).reshape(index.shape)
    params, total = place(model.params, mesh), np.zeros(model.space.size)
    summed = model.program(_sum, model, estimate, mesh)
    with jax.default_matmul_precision(precision):
        for i, batch in enumerate(batches(examples, size)):
            parts, scales = summed(params, batch, index[i], valid[i])
            # Fishers of confident predictions are of second order in their tiny cotangents: float64 puts them back.
            total += np.asarray(scales, np.float64) ** 2 @ np.asarray(parts, np.float64)
    if not np.isfinite(total).all():
        raise ValueError("a gradient is not finite; leave out the examples whose PEFs failed")
    return model.space.unravel(jnp.asarray(total / n, jnp.float32))


def _sum(
    params: PyTree,
    batch: Examples,
    index: jax.Array,
    valid: jax.Array,
    model: Model,
    estimate: Estimate,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """(devices, m): each device's sum over its share of a batch, in units of the squares of (devices,) scales."""

    def one(params: PyTree, x: PyTree, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        def cotangents(logits: Logits) -> Cotangents:
            return estimate.cotangents(model.output, logits, position)

        rows = pull_back(model, model.space.select(params), params, x, cotangents)
        squares = [sum(jnp.sum(leaf**2, axis=0) for leaf in parts) for parts in zip(*rows.blocks, strict=True)]
        return jnp.concatenate([jnp.ravel(leaf) for leaf in squares]), rows.scale

    def share(params: PyTree, batch: Examples, index: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        diagonals, scales = jax.vmap(one, (None, 0, 0))(params, batch, index)
        unit = jnp.max(jnp.where(valid, scales, 0.0))
        weights = jnp.where(valid, (scales / jnp.where(unit > 0, unit, 1.0)) ** 2, 0.0)
        diagonals = jnp.where(valid[:, None], diagonals, 0.0)
        return jnp.sum(weights[:, None] * diagonals, axis=0, keepdims=True), unit[None]

    return over_examples(share, mesh, (False, True, True, True))(params, batch, index, valid)
