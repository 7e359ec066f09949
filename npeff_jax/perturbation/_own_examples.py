"""`own_perturbed_kl`: KL(p_θ ‖ p_{θ+δ}) of many moves, each on a different subset of the examples."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from npeff_jax._examples import count_examples, first_example, slice_examples, take_examples
from npeff_jax._parameters import ParameterSpace
from npeff_jax._sharding import EXAMPLES, default_mesh, round_up
from npeff_jax._types import Examples, LogitsFn, PyTree
from npeff_jax.models import Model, Output, check_model
from npeff_jax.perturbation._arguments import check_direction
from npeff_jax.perturbation._divergence import (
    CALL_BYTES,
    MOST_DIRECTIONS,
    Passes,
    kl_with_error,
    move,
    over_examples,
    place,
)


def own_perturbed_kl(
    model: Model,
    examples: Examples,
    moves: Iterable[PyTree],
    rows: Sequence[Int[np.ndarray, "_"]],
    passes: Passes = Passes(),  # noqa: B008 (frozen)
) -> Iterator[Float[np.ndarray, "_ 2"]]:
    """Yield per move the KL on its own examples in nats, with the standard error.

    Equals `iterate_perturbed_kl` on these examples up to rounding, without forward passes for other pairs of move and
    example. Several moves share a call; each takes one slot per batch of its examples.

    Args:
        model: the model.
        examples: n examples.
        moves: pytrees shaped like the parameters; may be a generator.
        rows: per move, the positions of its examples, at least one.
        passes: batch size, devices and precision.

    Raises:
        ValueError: a move without examples, positions out of range, or different numbers of moves and lists.
    """
    check_model(model)
    examples = take_examples(examples)
    n = count_examples(examples)
    lists = [np.asarray(chosen, np.int64) for chosen in rows]
    for i, chosen in enumerate(lists):
        if chosen.ndim != 1 or not chosen.size or chosen.min() < 0 or chosen.max() >= n:
            raise ValueError(f"rows[{i}] has shape {chosen.shape}; expected one or more positions below {n}")
    return _run(model, examples, moves, lists, passes)


def _run(
    model: Model, examples: Examples, moves: Iterable[PyTree], rows: list[np.ndarray], passes: Passes
) -> Iterator[np.ndarray]:
    if not rows:
        return
    mesh = default_mesh(passes.mesh)
    longest = max(map(len, rows))
    chunks = -(-longest // passes.batch_size)  # passes per move, of equal size
    size = round_up(-(-longest // chunks), mesh.shape[EXAMPLES])
    one = first_example(examples)
    C = jax.eval_shape(model.logits_fn, model.params, one).shape[0]
    nbytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(one))
    per_move = 4 * model.space.size + chunks * size * (4 * C + nbytes)
    width = max(1, min(MOST_DIRECTIONS, len(rows), CALL_BYTES // per_move))
    params = place(model.params, mesh)
    program = model.program(_logits, model.logits_fn, model.space, mesh)

    def logits(stacked: Any, which: np.ndarray, positions: Int[np.ndarray, "slots size"], scale: float) -> np.ndarray:
        """Compute logits (slots, size, C); slot s is move ``which[s]`` on the examples at ``positions[s]``."""
        used, slots = len(positions), width * chunks
        filled = np.concatenate([positions, np.repeat(positions[-1:], slots - used, axis=0)]).T  # examples first
        batch = jax.tree.map(
            lambda leaf: leaf.reshape(*filled.shape, *leaf.shape[1:]), slice_examples(examples, filled.ravel())
        )
        which = np.concatenate([which, np.zeros(slots - used, which.dtype)])
        with jax.default_matmul_precision(passes.precision):  # not across a yield
            return np.asarray(program(params, stacked, jnp.float32(scale), which, used, batch))[:used]

    before: np.ndarray | None = None
    union = np.unique(np.concatenate(rows))
    waiting, done = iter(moves), 0
    while group := list(itertools.islice(waiting, width)):
        if done + len(group) > len(rows):
            raise ValueError(f"there are more moves than the {len(rows)} lists of examples; expected one list per move")
        for offset, given in enumerate(group):
            check_direction(model, given, f"moves[{done + offset}]")
        chosen = [model.space.select(given) for given in group]
        chosen += [chosen[-1]] * (width - len(group))
        stacked = place(tuple(jnp.stack(leaves) for leaves in zip(*chosen, strict=True)), mesh)
        if before is None:  # same program, at a scale of zero
            padded = np.pad(union, (0, round_up(len(union), size) - len(union)), "edge").reshape(-1, size)
            slots = width * chunks
            parts = [padded[i : i + slots] for i in range(0, len(padded), slots)]
            found = [logits(stacked, np.zeros(len(part), np.int64), part, 0.0) for part in parts]
            before = np.concatenate(found).reshape(padded.size, C)[: len(union)]
        own = rows[done : done + len(group)]
        positions = np.concatenate([np.pad(r, (0, chunks * size - len(r)), "edge").reshape(chunks, size) for r in own])
        after = logits(stacked, np.repeat(np.arange(len(group)), chunks), positions, 1.0)
        values = np.asarray(_measured(before[np.searchsorted(union, positions)], after, model.output))
        values = values.reshape(len(group), chunks * size, 2)
        done += len(group)
        yield from (value[: len(r)] for value, r in zip(values, own, strict=True))
    if done < len(rows):
        raise ValueError(f"there are {done} moves and {len(rows)} lists of examples; expected one list per move")


def _logits(
    params: PyTree,
    moves: tuple[jax.Array, ...],
    scale: jax.Array,
    which: jax.Array,
    used: jax.Array,
    batch: Examples,
    logits_fn: LogitsFn,
    space: ParameterSpace,
    mesh: Mesh,
) -> jax.Array:
    """Compute logits (slots, size, C) of the first ``used`` slots. The leading axes of ``batch`` are (size, slots)."""

    def share(batch: Examples, params: PyTree, moves: Any, scale: Any, which: Any, used: Any) -> jax.Array:
        selected = space.select(params)

        def at(slot: jax.Array) -> jax.Array:
            moved = move(selected, [leaf[which[slot]] for leaf in moves], scale)
            own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, slot, 1, keepdims=False), batch)
            return jax.vmap(logits_fn, (None, 0))(space.join(params, moved), own)

        shape = jax.eval_shape(at, jnp.int32(0))
        blank = jnp.full((which.size, *shape.shape), jnp.nan, shape.dtype)
        done = jax.lax.fori_loop(0, used, lambda slot, found: found.at[slot].set(at(slot)), blank)
        return done.swapaxes(0, 1)  # examples first: the sharded axis

    split = (True, False, False, False, False, False)
    return over_examples(share, mesh, split)(batch, params, moves, scale, which, used).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnums=2)
def _measured(before: jax.Array, after: jax.Array, output: Output) -> jax.Array:
    """Compute the KL and its standard error (slots, size, 2) of logits (slots, size, C)."""
    return jax.vmap(jax.vmap(functools.partial(kl_with_error, output)))(before, after)
