"""Loss gradient and diagonal Fisher of a set of examples."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from npeff_jax._checks import as_instance, check_integer, check_precision, normalise
from npeff_jax._examples import count_examples, take_examples
from npeff_jax._parameters import ParameterSpace, joined
from npeff_jax._sharding import EXAMPLES, default_mesh, fetch, pad_rows, round_up, sharded
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
        model: a model with a `Categorical` output.
        examples: n examples, usually a component's top examples.
        labels: y, each in [0, C); by default the model's predictions.
        batch_size: examples per backward pass.
        precision: precision of the model's matrix products.

    Raises:
        TypeError: the model's outputs have no classes.
        ValueError: wrong number of labels, non-integer labels, or a label that is not a class of the model.
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
            total = part if total is None else _added(total, part)
    assert total is not None  # n >= 1
    return model.space.unravel(joined(total))


@jax.jit
def _added(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def loss_sign(model: Model, direction: PyTree, examples: Examples, labels: Int[np.ndarray, "n"] | None = None) -> float:
    """Return +1.0 if a small step along ``direction`` lowers the summed loss of ``examples``, else −1.0.

    The sign of a component's direction is arbitrary. The paper tries both; this function chooses the one that should
    repair the component's examples (section 3.5 leaves this to future work).

    Args:
        model: a model with a `Categorical` output.
        direction: a pytree shaped like the parameters.
        examples: examples, usually a component's top examples.
        labels: labels of the examples, in [0, C); by default the model's predictions.

    Raises:
        TypeError: the model's outputs have no classes.
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
    """Compute the gradient of the summed loss of a batch. A label of −1 stands for the model's prediction."""

    def loss(selected: tuple[jax.Array, ...]) -> jax.Array:
        logits = jax.vmap(logits_fn, (None, 0))(space.join(params, selected), batch)
        y = jnp.where(labels < 0, jnp.argmax(logits, axis=-1), labels)
        log_p = jax.nn.log_softmax(logits / output.temperature)
        return -jnp.sum(jnp.where(valid, jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0], 0.0))

    return jax.grad(loss)(space.select(params))


class Estimate(abc.ABC):
    """How `dataset_fisher` computes the expectation over predictions of an example."""

    @abc.abstractmethod
    def cotangents(self, output: Output, logits: Logits, position: jax.Array) -> Cotangents:
        """Return cotangents on the logits whose squared pull-backs sum to the diagonal Fisher, in expectation.

        Args:
            output: the model's output family.
            logits: logits of the example.
            position: position of the example, so that random draws do not depend on batches.
        """


@dataclasses.dataclass(frozen=True)
class Expectation(Estimate):
    """Exact expectation over the model's predictions, with C−1 backward passes per example."""

    def cotangents(self, output: Output, logits: Logits, position: jax.Array) -> Cotangents:
        return output.factor(logits)


@dataclasses.dataclass(frozen=True)
class Sampling(Estimate):
    """Unbiased estimate from labels sampled from the model's predictions; cheaper for large C.

    Attributes:
        n_samples: sampled labels per example.
        seed: seed, folded with each example's position so that samples do not depend on batches.
    """

    n_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        normalise(self, n_samples=check_integer("n_samples", self.n_samples), seed=check_integer("seed", self.seed, 0))

    def cotangents(self, output: Output, logits: Logits, position: jax.Array) -> Cotangents:
        # Fix the implementation, because draws of others depend on the batch.
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
        examples: n examples.
        estimate: how the expectation over predictions is computed.
        batch_size: examples whose gradients (up to C−1 each) are held at once.
        mesh: devices over which examples are sharded; by default JAX's default device.
        precision: precision of the model's matrix products.

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
    params, summed = place(model.params, mesh), model.program(_sum, model, estimate, mesh)
    blank = np.zeros((mesh.shape[EXAMPLES], model.space.size), np.float32)
    sums: Any = jax.device_put((blank, blank, blank[:, 0]), sharded(mesh, EXAMPLES))
    with jax.default_matmul_precision(precision):
        for i, batch in enumerate(batches(examples, size)):
            sums = summed(params, sums, batch, index[i], valid[i])
    # The Fisher of a confident prediction is quadratic in tiny cotangents, so its scale is restored in float64.
    parts, _, units = (fetch(array).astype(np.float64) for array in sums)
    total = units**2 @ parts
    if not np.isfinite(total).all():
        raise ValueError("a gradient is not finite; leave out the examples whose PEFs failed")
    return model.space.unravel(jnp.asarray(total / n, jnp.float32))


_Sums = tuple[Float[Array, "devices m"], Float[Array, "devices m"], Float[Array, "devices"]]
"""Per device: the sum, its rounding error, and a scale; both are in units of the squared scale."""


def _sum(
    params: PyTree,
    sums: _Sums,
    batch: Examples,
    index: jax.Array,
    valid: jax.Array,
    model: Model,
    estimate: Estimate,
    mesh: Mesh,
) -> _Sums:
    """Add a batch, sharded over the devices, to the sums on the devices."""

    def one(params: PyTree, x: PyTree, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        def cotangents(logits: Logits) -> Cotangents:
            return estimate.cotangents(model.output, logits, position)

        rows = pull_back(model, model.space.select(params), params, x, cotangents)
        squares = [sum(jnp.sum(leaf**2, axis=0) for leaf in parts) for parts in zip(*rows.blocks, strict=True)]
        return jnp.concatenate([jnp.ravel(leaf) for leaf in squares]), rows.scale

    def share(params: PyTree, sums: _Sums, batch: Examples, index: jax.Array, valid: jax.Array) -> _Sums:
        total, lost, unit = (array[0] for array in sums)
        diagonals, scales = jax.vmap(one, (None, 0, 0))(params, batch, index)
        largest = jnp.maximum(unit, jnp.max(jnp.where(valid, scales, 0.0)))
        new = jnp.where(largest > 0, largest, 1.0)
        weights, before = jnp.where(valid, (scales / new) ** 2, 0.0), (unit / new) ** 2
        part = jnp.sum(weights[:, None] * jnp.where(valid[:, None], diagonals, 0.0), axis=0)
        # Kahan summation: after a hundred thousand batches a plain float32 sum has three correct digits
        part = part - before * lost
        added = before * total + part
        return added[None], ((added - before * total) - part)[None], largest[None]

    return over_examples(share, mesh, (False, True, True, True, True))(params, sums, batch, index, valid)
