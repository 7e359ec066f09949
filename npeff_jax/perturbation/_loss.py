"""The loss gradient on some examples: which way along a direction makes a model better or worse on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from npeff_jax._checks import check_labels
from npeff_jax._examples import count_examples
from npeff_jax._parameters import ParameterSpace
from npeff_jax._sharding import pad_rows
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import Categorical, Model
from npeff_jax.perturbation._divergence import batches


def loss_gradient(
    model: Model,
    examples: Examples,
    labels: Int[np.ndarray, "n"] | None = None,
    *,
    batch_size: int = 32,
    precision: str = "highest",
) -> PyTree:
    """∇_θ Σ_i −log p_θ(y_i | x_i): a pytree shaped like the parameters, zero outside the model's mask.

    Args:
        model: with a `Categorical` output.
        examples: n of them, usually a component's top examples.
        labels: y; the model's own predictions if None.
        batch_size: examples of one backward pass.
        precision: of the model's matrix products.

    Raises:
        TypeError: the model's output has no labels.
        ValueError: labels of another length, or not integers.
    """
    if not isinstance(model.output, Categorical):
        raise TypeError(f"a loss needs labels, which {type(model.output).__name__} outputs do not have")
    n = count_examples(examples)
    known = check_labels(labels, n)
    size = min(batch_size, n)
    y = pad_rows(np.full(n, -1) if known is None else known, -(-n // size) * size).reshape(-1, size)
    valid = (np.arange(y.size) < n).reshape(y.shape)
    total = None
    with jax.default_matmul_precision(precision):
        for i, batch in enumerate(batches(examples, size)):
            part = _gradient(model.params, batch, y[i], valid[i], model.logits_fn, model.space, model.output)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
    assert total is not None  # n >= 1: count_examples and min reject nothing smaller
    return model.space.unravel(jnp.concatenate([jnp.ravel(leaf) for leaf in total]))


def loss_sign(model: Model, direction: PyTree, examples: Examples, labels: Int[np.ndarray, "n"] | None = None) -> float:
    """+1.0 if a small step along ``direction`` lowers the summed loss of ``examples``, else −1.0.

    A component's direction has no sign of its own. The paper tries both; this picks the one that should repair its
    examples (section 3.5 leaves it to future work).
    """
    gradient = model.space.ravel(loss_gradient(model, examples, labels))
    return -1.0 if float(jnp.vdot(gradient, model.space.ravel(direction))) > 0 else 1.0


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
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
