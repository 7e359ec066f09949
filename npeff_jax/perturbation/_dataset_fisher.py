"""The diagonal Fisher of a whole data set: how much each parameter matters to predictions at large."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from npeff_jax._examples import count_examples
from npeff_jax._parameters import ParameterSpace
from npeff_jax._sharding import EXAMPLES, default_mesh, pad_rows, round_up
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import Model, Output
from npeff_jax.perturbation._divergence import batches, over_examples, place


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The expectation over the model's predictions, exactly: C−1 backward passes an example."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Labels drawn from the model's predictions: unbiased, and cheaper where C is large.

    Attributes:
        n_samples: draws an example.
        seed: folded with each example's index, so that batches do not matter.
    """

    n_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ValueError(f"n_samples={self.n_samples} must be at least 1")


Estimate = Expectation | Sampling


def dataset_fisher(
    model: Model,
    examples: Examples,
    estimate: Estimate = Expectation(),
    *,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> PyTree:
    """1/n Σ_i diag F(x_i): a pytree shaped like the parameters, zero outside the model's mask (eq. 3, averaged).

    Args:
        model: the model.
        examples: n of them.
        estimate: how each example's expectation over predictions is taken.
        batch_size: examples whose gradients are held at once, each with up to C−1 of them.
        mesh: devices to share the examples; JAX's default device if None.
        precision: of the model's matrix products.
    """
    mesh = default_mesh(mesh)
    n = count_examples(examples)
    size = round_up(min(batch_size, n), mesh.shape[EXAMPLES])
    index = pad_rows(np.arange(n), round_up(n, size)).reshape(-1, size)
    valid = (np.arange(index.size) < n).reshape(index.shape)
    params, total = place(model.params, mesh), np.zeros(model.space.size)
    with jax.default_matmul_precision(precision):
        for i, batch in enumerate(batches(examples, size)):
            part = _sum(params, batch, index[i], valid[i], model.logits_fn, model.output, model.space, estimate, mesh)
            total += np.asarray(part, np.float64).sum(axis=0)
    return model.space.unravel(jnp.asarray(total / n, jnp.float32))


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _sum(
    params: PyTree,
    batch: Examples,
    index: jax.Array,
    valid: jax.Array,
    logits_fn: LogitsFn,
    output: Output,
    space: ParameterSpace,
    estimate: Estimate,
    mesh: Mesh,
) -> jax.Array:
    """(devices, m): each device's sum over its share of a batch."""

    def one(params: PyTree, x: PyTree, position: jax.Array) -> jax.Array:
        def logits_of(selected: tuple[jax.Array, ...]) -> jax.Array:
            return logits_fn(space.join(params, selected), x)

        logits, pull_back = jax.vjp(logits_of, space.select(params))
        if isinstance(estimate, Sampling):
            key = jax.random.fold_in(jax.random.key(estimate.seed), position)
            cotangents = output.sample(key, logits, estimate.n_samples)
        else:
            cotangents = output.factor(logits)
        (rows,) = jax.vmap(pull_back)(cotangents.astype(logits.dtype))
        return jnp.concatenate([jnp.ravel(jnp.sum(jnp.square(row), axis=0)) for row in rows])

    def share(params: PyTree, batch: Examples, index: jax.Array, valid: jax.Array) -> jax.Array:
        diagonals = jax.vmap(one, (None, 0, 0))(params, batch, index)
        return jnp.sum(jnp.where(valid[:, None], diagonals, 0.0), axis=0, keepdims=True)

    return over_examples(share, mesh, (False, True, True, True))(params, batch, index, valid)
