"""A batch of examples on the devices: the per-example Fisher mapped, sharded, compiled once, and brought to the host.

The form of the mapping is the one that gives right gradients for every architecture: `shard_map` over the examples'
axis, with the check of varying axes off (with it, gradients of replicated parameters are summed over devices), and
not automatic partitioning (which corrupts kernel gradients of convolutions).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from npeff_jax._sharding import EXAMPLES, pad_rows, round_up, sharded
from npeff_jax._types import Examples
from npeff_jax.models import Model
from npeff_jax.pefs._cotangents import counts_classes, kept_classes, n_cotangents
from npeff_jax.pefs._representation import Representation
from npeff_jax.pefs._rows import ExampleRows, HostRows, example_rows


def seed_of(representation: Representation) -> int:
    """The seed behind each example's key."""
    return getattr(representation, "seed", 0)


class BatchRows:
    """``example_rows`` of a batch at a time, padded to one size so that it is compiled once.

    Where classes are dropped, once for each power of two of rows that the batches need.
    """

    def __init__(self, model: Model, representation: Representation, mesh: Mesh, batch_size: int, precision: str):
        """For batches of ``batch_size`` rounded up to the devices along the examples' axis of ``mesh``."""
        self.mesh, self.precision = mesh, precision
        self.batch_size = round_up(batch_size, mesh.shape[EXAMPLES])
        self._params = _place(model.params, mesh)
        self._seed = seed_of(representation)

        def rows(room: int | None, params: Any, seed: jax.Array, example: Any, index: jax.Array) -> ExampleRows:
            key = jax.random.fold_in(jax.random.key(seed), index)
            most = n_cotangents(model.output, representation, model.n_classes(example))
            most = most if room is None else min(most, room)
            return example_rows(model, representation, model.space.select(params), params, example, key, most)

        def count(params: Any, seed: jax.Array, example: Any, index: jax.Array) -> jax.Array:
            logits = model.logits_fn(params, example).astype(jnp.float32)
            return jnp.sum(kept_classes(model.output, representation, logits))

        self._rows = jax.jit(lambda room, *args: self._mapped(functools.partial(rows, room))(*args), static_argnums=0)
        self._count = jax.jit(self._mapped(count)) if counts_classes(representation) else None

    def __call__(self, examples: Examples, start: int) -> ExampleRows:
        """The rows of ``examples``, the first of which is number ``start``, on the devices, padded."""
        split = sharded(self.mesh, EXAMPLES)
        size = self.batch_size
        batch = jax.tree.map(lambda leaf: jax.device_put(pad_rows(leaf, size), split), examples)
        index = jax.device_put(np.arange(start, start + size, dtype=np.int32), split)
        with jax.default_matmul_precision(self.precision):
            arguments = (self._params, jnp.uint32(self._seed), batch, index)
            room = None
            if self._count is not None:
                needed = int(np.max(np.asarray(self._count(*arguments))))
                room = 1 << (needed - 1).bit_length()
            return self._rows(room, *arguments)

    def _mapped(self, of_one: Callable) -> Callable:
        """``of_one`` for parameters, seed, a batch of examples and their numbers."""
        return jax.shard_map(
            jax.vmap(of_one, (None, None, 0, 0)),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(EXAMPLES), PartitionSpec(EXAMPLES)),
            out_specs=PartitionSpec(EXAMPLES),
            axis_names={EXAMPLES},
            check_vma=False,
        )


def on_host(batch: ExampleRows, size: int) -> Iterator[HostRows]:
    """The first ``size`` examples of a batch as NumPy, without a copy where the devices share the host's memory."""
    blocks = [[_parts(leaf) for leaf in block] for block in batch.blocks]
    rest = jax.tree.map(np.asarray, batch[1:])
    for i in range(size):
        own = tuple(tuple(_pick(parts, i) for parts in block) for block in blocks)
        yield HostRows(own, *jax.tree.map(lambda field, i=i: field[i], rest))


def _parts(array: jax.Array) -> list[np.ndarray]:
    """An array split by device along its first axis, in order."""
    shape = array.sharding.shard_shape(array.shape)
    if shape[1:] != array.shape[1:]:  # also split over another axis of the mesh: put it together
        return [np.asarray(array)]
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return [np.asarray(shards[start]) for start in sorted(shards)]


def _pick(parts: list[np.ndarray], i: int) -> np.ndarray:
    size = parts[0].shape[0]
    leaf = parts[i // size][i % size]
    return leaf.reshape(leaf.shape[0], -1)


def _place(params: Any, mesh: Mesh) -> Any:
    """Parameters on every device of the mesh, except those that the caller has sharded over it."""

    def place(leaf: Any) -> Any:
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding) and own.device_set == set(mesh.devices.flat) and not own.is_fully_replicated:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(place, params)
