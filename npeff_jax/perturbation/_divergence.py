"""What predictions become when the parameters move: KL(p_θ ‖ p_{θ+δ}), example by example (eq. 2), and classes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from npeff_jax._examples import count_examples, slice_examples
from npeff_jax._parameters import ParameterSpace
from npeff_jax._sharding import EXAMPLES, default_mesh, pad_rows, round_up, sharded
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import Model, Output

Measure = Callable[[Output, jax.Array, jax.Array], jax.Array]
"""``(output, logits before, logits after)`` to a number; NaN if they do not allow one."""


def perturbed_kl(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float] = (1.0,),
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Float[np.ndarray, "directions scales n"]:
    """KL(p_θ ‖ p_{θ + scale · direction}) in nats, for every direction, scale and example.

    Args:
        model: the model. Its parameters are never changed, and nothing is drawn.
        examples: n of them, a pytree or a source.
        directions: pytrees shaped like the parameters, taken one at a time: a generator may make them as they are used.
        scales: how far to go along each, with signs.
        batch_size: examples of one forward pass.
        mesh: devices to share the examples; JAX's default device if None.
        precision: of the model's matrix products.

    Raises:
        ValueError: a divergence is not finite.
    """
    return np.stack(list(iterate_perturbed_kl(model, examples, directions, scales, batch_size, mesh, precision)))


def perturbed_predictions(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float] = (1.0,),
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Int[np.ndarray, "directions scales n"]:
    """The class with the largest logit at θ + scale · direction. Arguments as for `perturbed_kl`.

    Raises:
        ValueError: a logit is not finite.
    """
    found = _iterate(model, examples, directions, scales, _largest, batch_size, mesh, precision)
    return np.stack(list(found)).astype(np.int64)


def iterate_perturbed_kl(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float],
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Iterator[Float[np.ndarray, "scales n"]]:
    """`perturbed_kl` a direction at a time."""
    return _iterate(model, examples, directions, scales, _divergence, batch_size, mesh, precision)


def _divergence(output: Output, before: jax.Array, after: jax.Array) -> jax.Array:
    return output.kl(before, after)


def _largest(output: Output, before: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(after).all(), jnp.argmax(after), jnp.nan)


def _iterate(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float],
    measure: Measure,
    batch_size: int,
    mesh: Mesh | None,
    precision: str,
) -> Iterator[Float[np.ndarray, "scales n"]]:
    mesh = default_mesh(mesh)
    n = count_examples(examples)
    size = round_up(min(batch_size, n), mesh.shape[EXAMPLES])
    with jax.default_matmul_precision(precision):
        params = place(model.params, mesh)
        reference = [_logits(params, batch, logits_fn=model.logits_fn, mesh=mesh) for batch in batches(examples, size)]
    steps = jnp.asarray(scales, jnp.float32)
    for position, direction in enumerate(directions):
        with jax.default_matmul_precision(precision):  # inside the loop: a generator must not hold a context open
            selected = place(model.space.select(direction), mesh)
            parts = [
                _measure(
                    params, selected, steps, batch, logits, model.logits_fn, model.output, model.space, mesh, measure
                )
                for batch, logits in zip(batches(examples, size), reference, strict=True)
            ]
        found = np.concatenate([np.asarray(part) for part in parts], axis=1)[:, :n]
        if not np.isfinite(found).all():
            step, example = np.argwhere(~np.isfinite(found))[0]
            raise ValueError(
                f"example {example} has no finite prediction under perturbation {position} at scale {scales[step]}; "
                "use a smaller norm, or look at the model's logits on that example"
            )
        yield found


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    """Batches of exactly ``size`` examples; the last one is filled up with copies of the last example."""
    n = count_examples(examples)
    for start in range(0, n, size):
        batch = slice_examples(examples, slice(start, min(start + size, n)))
        yield jax.tree.map(lambda leaf: pad_rows(leaf, size), batch)


def move(selected: Sequence[jax.Array], direction: Sequence[jax.Array], scale: Any) -> list[jax.Array]:
    """θ + scale · δ, leaf by leaf. Types promote: in bfloat16 a small perturbation would be rounded away."""
    return [leaf + scale * step for leaf, step in zip(selected, direction, strict=True)]


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """``tree`` on every device of ``mesh``; leaves that are sharded over it already stay so."""

    def put(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat)
        return leaf if there else jax.device_put(leaf, sharded(mesh))

    return jax.tree.map(put, tree)


@functools.partial(jax.jit, static_argnames=("logits_fn", "mesh"))
def _logits(params: PyTree, batch: Examples, *, logits_fn: LogitsFn, mesh: Mesh) -> jax.Array:
    return over_examples(jax.vmap(logits_fn, (None, 0)), mesh, (False, True))(params, batch)


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8, 9))
def _measure(
    params: PyTree,
    direction: tuple[jax.Array, ...],
    scales: jax.Array,
    batch: Examples,
    reference: jax.Array,
    logits_fn: LogitsFn,
    output: Output,
    space: ParameterSpace,
    mesh: Mesh,
    measure: Measure,
) -> jax.Array:
    """(scales, batch): the measure of one batch along one direction."""

    def at(params: PyTree, batch: Examples, reference: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, logits: measure(output, logits, logits_fn(params, x)))(batch, reference)

    shared = over_examples(at, mesh, (False, True, True))

    def along(scale: jax.Array) -> jax.Array:
        return shared(space.join(params, move(space.select(params), direction, scale)), batch, reference)

    return jax.lax.map(along, scales)


def over_examples(fn: Any, mesh: Mesh, split: tuple[bool, ...]) -> Any:
    """``fn`` with the flagged arguments, and its result, split over the examples axis of ``mesh``."""
    specs = tuple(PartitionSpec(EXAMPLES) if flag else PartitionSpec() for flag in split)
    return jax.shard_map(
        fn, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(EXAMPLES), axis_names={EXAMPLES}, check_vma=False
    )
