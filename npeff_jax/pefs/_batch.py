"""A batch of examples on the devices: the per-example Fisher mapped, sharded, compiled once, and brought to the host.

The form of the mapping is the one that gives right gradients for every architecture: `shard_map` over the examples'
axis, with the check of varying axes off (with it, gradients of replicated parameters are summed over devices), and
not automatic partitioning (which corrupts kernel gradients of convolutions).
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from npeff_jax._checks import check_precision
from npeff_jax._examples import count_examples
from npeff_jax._machine import size_text
from npeff_jax._sharding import EXAMPLES, pad_rows, round_up, sharded
from npeff_jax._types import Examples
from npeff_jax.models import Model
from npeff_jax.pefs._memory import TOO_LARGE, free_on_accelerators, program_bytes
from npeff_jax.pefs._rows import ExampleRows, HostRows, example_key, example_rows
from npeff_jax.pefs._step import ExampleEntries
from npeff_jax.pefs.representations import Representation

_LOG = logging.getLogger("npeff_jax")

Then = Callable[[ExampleRows], Any]
"""What becomes of one example's rows inside the compiled program."""


class BatchRows:
    """``example_rows`` of a batch at a time, padded to one size so that it is compiled once.

    Where classes are dropped, once for each power of two of rows that the batches need.

    Attributes:
        batch_size: examples of a batch, over all devices.
        at_once: examples whose rows a device holds at a time. Where it is less than a device's share of a batch, and
            the rows do not leave the devices, the program goes through the share bit by bit.
    """

    def __init__(
        self,
        model: Model,
        representation: Representation,
        mesh: Mesh,
        batch_size: int,
        precision: str,
        then: Then | None = None,
        at_once: int | None = None,
    ):
        """For batches of ``batch_size`` rounded up to the devices along the examples' axis of ``mesh``.

        With ``then``, of one example's rows, its result takes the rows' place: it is part of the compiled program.
        """
        check_precision(precision)
        self.mesh, self.precision = mesh, precision
        self.batch_size = round_up(batch_size, mesh.shape[EXAMPLES])
        share = self.batch_size // mesh.shape[EXAMPLES]
        self.at_once = share if at_once is None else max(1, min(at_once, share))
        self._reduces = then is not None
        self._checked: set[tuple[int | None, int]] = set()
        self._params, self._seed = self._placed(model.params, np.uint32(representation.seed))

        def rows(room: int | None, params: Any, seed: Any, example: Any, index: Any, label: Any) -> Any:
            most = representation.n_rows(model.output, model.n_classes(example))
            most, key = most if room is None else min(most, room), example_key(seed, index)
            found = example_rows(model, representation, model.space.select(params), params, example, key, label, most)
            return found if then is None else then(found)

        def count(params: Any, seed: Any, example: Any, index: Any, label: Any) -> jax.Array | None:
            logits = model.logits_fn(params, example).astype(jnp.float32)
            return representation.rows_needed(model.output, logits)

        def program(room: int | None, at_once: int, *args: Any) -> Any:
            return self._mapped(functools.partial(rows, room), at_once if then is not None else None)(*args)

        # Products of several cotangents with one activation would be merged, and each gradient copied out of the
        # result: twice the memory of the rows.
        options = {} if mesh.devices.flat[0].platform == "cpu" else {"xla_gpu_dot_merger_threshold_mb": "0"}
        self._rows = jax.jit(program, static_argnums=(0, 1), compiler_options=options)
        self._count = jax.jit(self._mapped(count))
        self._n_classes, self._needed = model.n_classes, functools.partial(representation.rows_needed, model.output)
        self._counts: bool | None = None  # whether examples need different numbers of rows: known once one is seen

    def __call__(self, examples: Examples, start: int, labels: np.ndarray | None = None) -> Any:
        """Return the rows of ``examples``, the first of which is number ``start``, on the devices, padded.

        ``labels`` are those of the examples; they are -1 for the representation without them. What fits in the memory
        of an accelerator is known once the program is compiled: there ``at_once`` is lowered until it does.

        Raises:
            ValueError: not even one example fits.
        """
        # Where jit is switched off to look into logits_fn, a sharded program still has to be one.
        with jax.default_matmul_precision(self.precision), jax.disable_jit(False):
            while True:
                arguments = self._arguments(examples, start, labels)
                room = self._room(examples, arguments)
                if not self._reduces:
                    return self._rows(room, self.at_once, *arguments)
                try:
                    if self._fits(room, arguments):
                        return self._rows(room, self.at_once, *arguments)
                except jax.errors.JaxRuntimeError as error:
                    self._halve(error)

    def begin(self, examples: Examples, start: int, labels: np.ndarray | None = None) -> Iterator[Any]:
        """Begin a batch; return its examples on the host, one by one.

        Where rows do not leave the devices, they start at once, and the caller has time for something else. Where they
        do, they are computed when they are asked for: only then is there room for them.
        """
        if not self._reduces:
            return self._piecewise(examples, start, labels)
        return self._fetched(self(examples, start, labels), examples, start, labels)

    def _fetched(self, batch: Any, examples: Examples, start: int, labels: np.ndarray | None) -> Iterator[Any]:
        """The examples of a batch that was begun, computed again in smaller portions if memory was short meanwhile."""
        while True:
            try:
                jax.block_until_ready(batch)
                break
            except jax.errors.JaxRuntimeError as error:
                self._halve(error)
                batch = self(examples, start, labels)
        yield from on_host(batch, count_examples(examples))

    def _piecewise(self, examples: Examples, start: int, labels: np.ndarray | None) -> Iterator[Any]:
        """The rows of a batch, as many examples at a time as fit."""
        n, first = count_examples(examples), 0
        while first < n:
            last = min(first + self.piece, n)
            part = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], examples)
            try:
                batch = self(part, start + first, None if labels is None else labels[first:last])
                jax.block_until_ready(batch)
            except jax.errors.JaxRuntimeError as error:
                self._halve(error)
                continue
            yield from on_host(batch, last - first)
            first = last

    def compiled(self, examples: Examples, labels: np.ndarray | None = None) -> Any:
        """Return the program for ``examples`` as `jax.stages.Compiled`: what it does and the memory it takes."""
        with jax.default_matmul_precision(self.precision), jax.disable_jit(False):
            arguments = self._arguments(examples, 0, labels)
            return self._rows.lower(self._room(examples, arguments), self.at_once, *arguments).compile()

    @property
    def piece(self) -> int:
        """How many examples one call takes: a batch, or, where rows leave the devices, as many as fit."""
        return self.batch_size if self._reduces else self.at_once * self.mesh.shape[EXAMPLES]

    def _halve(self, error: Exception) -> None:
        """Halve what is computed at once after running out of memory; raise ``error`` if it is something else.

        Raises:
            ValueError: one example at a time was too many.
        """
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise error
        if self.at_once == 1:
            raise ValueError(TOO_LARGE.format(what="not enough memory was free on a device")) from error
        _LOG.warning(
            "a device ran out of memory with the rows of %d examples at once; going on with %d. Results do not change "
            "beyond rounding",
            self.at_once,
            self.at_once // 2,
        )
        self.at_once //= 2

    def _placed(self, params: Any, seed: np.uint32) -> tuple[Any, Any]:
        """What does not change from batch to batch, on the devices."""
        return _place(params, self.mesh), jax.device_put(seed, NamedSharding(self.mesh, PartitionSpec()))

    def _fits(self, room: int | None, arguments: tuple[Any, ...]) -> bool:
        """Whether the compiled program fits in what is free on accelerators; lowers ``at_once`` if not."""
        free = free_on_accelerators(self.mesh)
        if free is None or (room, self.at_once) in self._checked:
            return True
        size = program_bytes(self._rows.lower(room, self.at_once, *arguments).compile())
        if size > free:
            if self.at_once == 1:
                found = f"its program needs {size_text(size)}, and {size_text(free)} may be used on a device"
                raise ValueError(TOO_LARGE.format(what=found))
            self.at_once = max(1, min(self.at_once - 1, int(self.at_once * free / size)))
            return False
        self._checked.add((room, self.at_once))
        return True

    def _arguments(self, examples: Examples, start: int, labels: np.ndarray | None) -> tuple[Any, ...]:
        """What the program is called with: everything on the devices, the examples padded to whole shares."""
        split = sharded(self.mesh, EXAMPLES)
        size = self.mesh.shape[EXAMPLES] * round_up(self.piece // self.mesh.shape[EXAMPLES], self.at_once)
        batch = jax.tree.map(lambda leaf: jax.device_put(pad_rows(leaf, size), split), examples)
        index = jax.device_put(np.arange(start, start + size, dtype=np.int32), split)
        n = len(jax.tree.leaves(examples)[0])
        given = np.full(n, -1, np.int32) if labels is None else labels.astype(np.int32)
        return self._params, self._seed, batch, index, jax.device_put(pad_rows(given, size), split)

    def _room(self, examples: Examples, arguments: tuple[Any, ...]) -> int | None:
        """For how many rows there has to be room, None for all."""
        if self._counts is None:
            logits = jax.ShapeDtypeStruct((self._n_classes(jax.tree.map(lambda leaf: leaf[0], examples)),), jnp.float32)
            self._counts = jax.eval_shape(self._needed, logits) is not None
        if not self._counts:
            return None
        needed = int(np.max(np.asarray(self._count(*arguments))))
        return 1 << (needed - 1).bit_length()

    def _mapped(self, of_one: Callable[..., Any], at_once: int | None = None) -> Callable[..., Any]:
        """``of_one`` for parameters, seed, a batch of examples, their numbers and their labels.

        On each device ``at_once`` of its examples after the other, all by default.
        """
        each, batched = PartitionSpec(EXAMPLES), jax.vmap(of_one, (None, None, 0, 0, 0))
        if at_once is not None and at_once < self.batch_size // self.mesh.shape[EXAMPLES]:

            def batched(params: Any, seed: Any, *examples: Any) -> Any:
                return jax.lax.map(lambda one: of_one(params, seed, *one), examples, batch_size=at_once)

        if self.mesh.size == 1:  # nothing to split, and a cache of JAX would keep what it maps
            return batched
        return jax.shard_map(
            batched,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), each, each, each),
            out_specs=PartitionSpec(EXAMPLES),
            axis_names={EXAMPLES},
            check_vma=False,
        )


def on_host(batch: ExampleRows | ExampleEntries, size: int) -> Iterator[HostRows | ExampleEntries]:
    """The first ``size`` examples of a batch as NumPy, without a copy where the devices share the host's memory."""
    if isinstance(batch, ExampleEntries):
        fields = jax.device_get(batch)
        yield from (jax.tree.map(lambda field, i=i: field[i], fields) for i in range(size))
        return
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
