"""What baselines look at in place of Fishers: activations of one layer, and loss gradients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._examples import count_examples
from npeff_jax._parameters import ParameterSpace
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import IntermediatesFn, Model
from npeff_jax.perturbation import batches

HeadFn = Callable[[PyTree, jax.Array], jax.Array]
"""``(params, activation) -> (C,)``: the rest of the model, from one example's activation to its logits."""


def activations(model: Model, examples: Examples, name: str, *, batch_size: int = 256) -> Float[np.ndarray, "n d"]:
    """One named intermediate of every example, flattened.

    Args:
        model: with an ``intermediates_fn``.
        examples: n of them.
        name: which intermediate.
        batch_size: examples of one forward pass.

    Raises:
        ValueError: the model has no ``intermediates_fn``, or no intermediate of that name.
    """
    if model.intermediates_fn is None:
        raise ValueError(
            "this model exposes no intermediates; give Model(..., intermediates_fn=f) a function (params, example) -> "
            "{name: array}"
        )
    n = count_examples(examples)
    found = []
    for batch in batches(examples, min(batch_size, n)):
        known = jax.eval_shape(model.intermediates_fn, model.params, jax.tree.map(lambda leaf: leaf[0], batch))
        if name not in known:
            raise ValueError(f"no intermediate is named {name!r}; this model has {sorted(known)}")
        found.append(np.asarray(_activations(model.params, batch, model.intermediates_fn, name)))
    return np.concatenate(found)[:n]


def logit_gradients(
    model: Model, values: Float[np.ndarray, "n d"], head: HeadFn, *, batch_size: int = 256
) -> Float[np.ndarray, "n C d"]:
    """∂ logits / ∂ activation of every example: what TCAV asks whether a concept moves.

    Args:
        model: whose parameters ``head`` gets.
        values: activations.
        head: the rest of the model.
        batch_size: examples at once.
    """
    found = [
        np.asarray(_jacobians(model.params, batch, head)) for batch in batches(values, min(batch_size, len(values)))
    ]
    return np.concatenate(found)[: len(values)]


def gradient_features(
    model: Model, examples: Examples, *, n_features: int = 512, seed: int = 0, batch_size: int = 32
) -> Float[np.ndarray, "n f"]:
    """The unit gradient of log p of each example's prediction, projected at random: what gradient clustering clusters.

    A count sketch keeps inner products in expectation, with an error of about 1/sqrt(n_features), and needs no matrix.

    Args:
        model: with more than one logit.
        examples: n of them.
        n_features: length of the projected gradients.
        seed: of the projection.
        batch_size: examples whose gradients are held at once.
    """
    n = count_examples(examples)
    rng = np.random.default_rng(seed)
    bucket = jnp.asarray(rng.integers(0, n_features, model.space.size), jnp.int32)
    sign = jnp.asarray(rng.choice([-1.0, 1.0], model.space.size), jnp.float32)
    found = [
        np.asarray(_sketch(model.params, batch, bucket, sign, model.logits_fn, model.space, n_features))
        for batch in batches(examples, min(batch_size, n))
    ]
    return np.concatenate(found)[:n]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _activations(params: PyTree, batch: Examples, intermediates_fn: IntermediatesFn, name: str) -> jax.Array:
    return jax.vmap(lambda x: jnp.ravel(intermediates_fn(params, x)[name]))(batch)


@functools.partial(jax.jit, static_argnums=2)
def _jacobians(params: PyTree, values: jax.Array, head: HeadFn) -> jax.Array:
    return jax.vmap(jax.jacrev(lambda value: head(params, value)))(values)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _sketch(
    params: PyTree,
    batch: Examples,
    bucket: jax.Array,
    sign: jax.Array,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    n_features: int,
) -> jax.Array:
    def one(x: PyTree) -> jax.Array:
        def log_p(selected: tuple[jax.Array, ...]) -> jax.Array:
            return jnp.max(jax.nn.log_softmax(logits_fn(space.join(params, selected), x)))

        gradient = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.grad(log_p)(space.select(params))])
        unit = gradient / jnp.maximum(jnp.linalg.norm(gradient), jnp.finfo(gradient.dtype).tiny)
        return jax.ops.segment_sum(sign * unit, bucket, n_features)

    return jax.vmap(one)(batch)
