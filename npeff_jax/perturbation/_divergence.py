"""Predictions of a perturbed model: KL(p_θ ‖ p_{θ+δ}) per example (eq. 2), and predicted classes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from npeff_jax._checks import check_integer, check_numbers, check_precision, normalise
from npeff_jax._examples import count_examples, first_example, slice_examples, take_examples
from npeff_jax._parameters import ParameterSpace, stacked
from npeff_jax._sharding import EXAMPLES, check_mesh, default_mesh, pad_rows, round_up, sharded
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import Model, Output, check_model
from npeff_jax.perturbation._arguments import check_direction, check_directions

Measure = Callable[[Output, jax.Array, jax.Array], jax.Array]
"""Function from ``(output, logits before, logits after)`` to one or several numbers; NaN where undefined."""

CALL_BYTES = 2**28
"""Memory for the directions and logits of one call on the device, in bytes."""

MOST_DIRECTIONS = 16
"""Maximum number of directions per call. The compiled program loops over them: with `vmap`, a convolution took four
times and an attention layer 2.5 times as long (two CPU cores)."""


@dataclasses.dataclass(frozen=True)
class Passes:
    """Settings of forward passes.

    Attributes:
        batch_size: examples per forward pass.
        mesh: devices over which examples are sharded; by default JAX's default device.
        precision: precision of the model's matrix products.
    """

    batch_size: int = 256
    mesh: Mesh | None = None
    precision: str = "highest"

    def __post_init__(self) -> None:
        normalise(self, batch_size=check_integer("batch_size", self.batch_size))
        check_mesh(self.mesh)
        check_precision(self.precision)


def perturbed_kl(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float] | np.ndarray = (1.0,),
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Float[np.ndarray, "directions scales n"]:
    """Compute KL(p_θ ‖ p_{θ + scale · direction}) in nats for every direction, scale and example.

    Both predictions are computed by the same compiled program, in at least float32 whatever the dtype of the
    parameters, so that a scale of zero gives exactly zero.

    Args:
        model: the model. Its parameters are not changed.
        examples: n examples, a pytree or a source.
        directions: pytrees shaped like the parameters; may be a generator.
        scales: signed step sizes along each direction.
        batch_size: examples per forward pass.
        mesh: devices over which examples are sharded; by default JAX's default device.
        precision: precision of the model's matrix products.

    Raises:
        TypeError: ``directions`` is a single direction.
        ValueError: a direction is not shaped like the parameters, or a divergence is not finite.

    Examples:
        >>> direction = component_direction(model, decomposition, 0)
        >>> perturbed_kl(model, examples, [direction], [-0.1, 0.0, 0.1]).shape
        (1, 3, 12)
    """
    steps = _steps(scales)
    found = iterate_perturbed_kl(model, examples, directions, steps, Passes(batch_size, mesh, precision))
    return _stacked(found, steps.size, examples)


def perturbed_kl_error(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float] | np.ndarray = (1.0,),
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Float[np.ndarray, "directions scales n"]:
    """Compute the standard error of each `perturbed_kl`, in nats; zero where the divergence is exact.

    Divergences are estimates if the distribution is known only through samples, as for generated answers. Samples of
    different examples are independent, so the squared error of a sum over examples is the sum of squared errors.
    Arguments and exceptions are those of `perturbed_kl`.
    """
    steps = _steps(scales)
    passes = Passes(batch_size, mesh, precision)
    found = iterate_perturbed_kl(model, examples, directions, steps, passes, errors=True)
    return _stacked((both[..., 1] for both in found), steps.size, examples)


def perturbed_predictions(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float] | np.ndarray = (1.0,),
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    precision: str = "highest",
) -> Int[np.ndarray, "directions scales n"]:
    """Compute the class with the largest logit at θ + scale · direction. Arguments are those of `perturbed_kl`.

    Raises:
        TypeError: ``directions`` is a single direction.
        ValueError: a direction is not shaped like the parameters, or a logit is not finite.
    """
    steps = _steps(scales)
    found = _iterate(model, examples, directions, steps, _largest, Passes(batch_size, mesh, precision))
    return _stacked(map(_finite(steps), itertools.count(), found), steps.size, examples).astype(np.int64)


def iterate_perturbed_kl(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Sequence[float] | np.ndarray = (1.0,),
    passes: Passes = Passes(),
    *,
    finite: bool = True,
    errors: bool = False,
) -> Iterator[Float[np.ndarray, "scales n *both"]]:
    """Yield `perturbed_kl` direction by direction.

    Args:
        model: the model.
        examples: n examples.
        directions: pytrees shaped like the parameters.
        scales: signed step sizes along each direction.
        passes: batch size, devices and precision.
        finite: whether to raise if a divergence is not finite; otherwise it is NaN or infinite.
        errors: whether to also yield `perturbed_kl_error`, along a last axis of size two. It is NaN for a single
            sample.
    """
    steps = _steps(scales)
    found = _iterate(model, examples, directions, steps, kl_with_error if errors else _divergence, passes)
    return map(_finite(steps), itertools.count(), found) if finite else (kl for kl, _ in found)


def _divergence(output: Output, before: jax.Array, after: jax.Array) -> jax.Array:
    return output.kl(before, after)


def kl_with_error(output: Output, before: jax.Array, after: jax.Array) -> jax.Array:
    kl = output.kl(before, after)
    return jnp.stack([kl, jnp.asarray(output.kl_error(before, after), kl.dtype)])


def _largest(output: Output, before: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(after).all(), jnp.argmax(after), jnp.nan)


def _steps(scales: Any) -> Float[np.ndarray, "scales"]:
    check_numbers("scales", scales)
    steps = np.atleast_1d(np.asarray(scales, np.float64))
    if steps.ndim != 1 or not steps.size or not np.isfinite(steps).all():
        raise ValueError(f"scales has shape {np.shape(scales)}; expected a list of finite numbers, such as [-0.1, 0.1]")
    return steps


def _iterate(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Float[np.ndarray, "scales"],
    measure: Measure,
    passes: Passes,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Check the arguments, then yield per direction the measures (scales, n), and whether the logits of each example
    are finite at θ (n,).
    """
    check_model(model)
    check_directions(model, directions)
    examples = take_examples(examples)
    count_examples(examples)
    return _run(model, examples, directions, scales, measure, passes)


def _run(
    model: Model,
    examples: Examples,
    directions: Iterable[PyTree],
    scales: Float[np.ndarray, "scales"],
    measure: Measure,
    passes: Passes,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    mesh = default_mesh(passes.mesh)
    n, m, S = count_examples(examples), model.space.size, len(scales)
    size = round_up(min(passes.batch_size, n), mesh.shape[EXAMPLES])
    params = place(model.params, mesh)
    C = jax.eval_shape(model.logits_fn, model.params, first_example(examples)).shape[0]
    width = max(1, min(MOST_DIRECTIONS, CALL_BYTES // (4 * (m + S * size * C))))
    moved_logits = model.program(_moved_logits, model.logits_fn, model.space, mesh, S)
    references: list[jax.Array] = []
    waiting, position = iter(directions), 0
    while group := list(itertools.islice(waiting, width)):
        for offset, direction in enumerate(group):
            check_direction(model, direction, f"directions[{position + offset}]")
        width = width if references else len(group)  # all calls share one shape
        chosen = [model.space.select(direction) for direction in group]
        chosen += [chosen[-1]] * (width - len(group))
        directions_here = place(stacked(chosen), mesh)
        steps = jnp.asarray(np.concatenate([[0.0], np.tile(scales, width)]))
        first, last = 1 if references else 0, 1 + len(group) * S  # slot 0 is the unperturbed model
        parts = []
        for i, batch in enumerate(batches(examples, size)):
            with jax.default_matmul_precision(passes.precision):  # not across a yield
                logits = moved_logits(params, directions_here, steps, first, last, batch)
            if first == 0:
                references.append(logits[0])
            parts.append(_measured(references[i], logits, model.output, measure))
        values = np.concatenate([np.asarray(part[1:]) for part in parts], axis=1)[:, :n]
        values = values.reshape(width, S, *values.shape[1:])
        before = np.concatenate([np.isfinite(np.asarray(logits)).all(axis=1) for logits in references])[:n]
        position += len(group)
        yield from ((row, before) for row in values[: len(group)])


def _finite(scales: Float[np.ndarray, "scales"]) -> Callable[[int, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Return a function that checks the items of `_iterate`, given their position, and returns the measures."""

    def check(position: int, found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        values, before = found
        measured = values if values.ndim == 2 else values[..., 0]
        if np.isfinite(measured).all():
            return values
        step, example = np.argwhere(~np.isfinite(measured))[0]
        where = f"example {example} has no finite prediction under perturbation {position} at scale {scales[step]}"
        if not before[example]:
            raise ValueError(f"{where}, nor without one; leave it out, or look at the model's logits on it")
        raise ValueError(f"{where}; use a smaller norm")

    return check


def _stacked(found: Iterable[np.ndarray], n_scales: int, examples: Examples) -> np.ndarray:
    rows = list(found)
    return np.stack(rows) if rows else np.zeros((0, n_scales, count_examples(examples)))


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    """Yield batches of exactly ``size`` examples; the last batch is padded with copies of the last example."""
    n = count_examples(examples)
    for start in range(0, n, size):
        batch = slice_examples(examples, slice(start, min(start + size, n)))
        yield jax.tree.map(lambda leaf: pad_rows(leaf, size), batch)


def move(selected: Sequence[jax.Array], direction: Sequence[jax.Array], scale: Any) -> list[jax.Array]:
    """Return θ + scale · δ leaf by leaf, in at least float32, because bfloat16 would lose small perturbations."""

    def moved(leaf: jax.Array, step: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(jnp.promote_types(leaf.dtype, jnp.result_type(step)), jnp.float32)
        return jnp.asarray(leaf, dtype) + jnp.asarray(scale, dtype) * jnp.asarray(step, dtype)

    return [moved(jnp.asarray(leaf), jnp.asarray(step)) for leaf, step in zip(selected, direction, strict=True)]


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicate ``tree`` over ``mesh``; leaves that are already sharded over it keep their sharding."""

    def put(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat)
        return leaf if there else jax.device_put(leaf, sharded(mesh))

    return jax.tree.map(put, tree)


def _moved_logits(
    params: PyTree,
    directions: tuple[jax.Array, ...],
    scales: jax.Array,
    first: jax.Array,
    last: jax.Array,
    batch: Examples,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    mesh: Mesh,
    n_scales: int,
) -> jax.Array:
    """Compute the logits (slots, batch, C) of a batch: slot 0 at θ, then one slot per direction and scale.

    Only slots ``first`` to ``last`` are computed, all by the same loop body, so that equal parameters give identical
    logits.
    """

    def share(batch: Examples, params: PyTree, directions: Any, scales: jax.Array, first: Any, last: Any) -> jax.Array:
        selected = space.select(params)

        def at(slot: jax.Array) -> jax.Array:
            which = jnp.maximum(slot - 1, 0) // n_scales
            moved = move(selected, [leaf[which] for leaf in directions], scales[slot])
            return jax.vmap(logits_fn, (None, 0))(space.join(params, moved), batch)

        shape = jax.eval_shape(at, jnp.int32(0))
        blank = jnp.full((scales.size, *shape.shape), jnp.nan, shape.dtype)
        done = jax.lax.fori_loop(first, last, lambda slot, found: found.at[slot].set(at(slot)), blank)
        return done.swapaxes(0, 1)  # examples first: the sharded axis

    split = (True, False, False, False, False, False)
    found = over_examples(share, mesh, split)(batch, params, directions, scales, first, last)
    return found.swapaxes(0, 1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _measured(before: jax.Array, after: jax.Array, output: Output, measure: Measure) -> jax.Array:
    """Compute the measures (slots, batch) of logits (slots, batch, C)."""
    return jax.vmap(jax.vmap(functools.partial(measure, output)), (None, 0))(before, after)


def over_examples(fn: Any, mesh: Mesh, split: tuple[bool, ...]) -> Any:
    """Wrap ``fn`` in `shard_map`, with its flagged arguments and its result sharded over the examples of ``mesh``."""
    if mesh.size == 1:  # also, outside jit, shard_map does not support partly automatic axes
        return fn
    specs = tuple(PartitionSpec(EXAMPLES) if flag else PartitionSpec() for flag in split)
    return jax.shard_map(
        fn, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(EXAMPLES), axis_names={EXAMPLES}, check_vma=False
    )
