"""Computation of the rows of a batch of examples on the devices, compiled once.

The per-example computation is mapped by `shard_map` over the axis of examples, with the check of varying axes disabled
(with it, gradients of replicated parameters are summed over devices). Automatic partitioning is not used, because it
corrupts the kernel gradients of convolutions.
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
from npeff_jax.pefs._keep import Selection
from npeff_jax.pefs._memory import TOO_LARGE, free_on_accelerators, program_bytes
from npeff_jax.pefs._rows import ExampleRows, HostRows, example_key, example_rows
from npeff_jax.pefs._step import ExampleEntries, entries_of
from npeff_jax.pefs.representations import Representation

_LOG = logging.getLogger("npeff_jax")

CPU_OPTIONS: dict[str, Any] = {}
GPU_OPTIONS: dict[str, Any] = {"xla_gpu_dot_merger_threshold_mb": "0"}
"""Compiler options for a GPU. Otherwise XLA merges the products of several cotangents with one activation, and copies
each gradient out of the result: twice the memory of the rows."""

LIBRARY_PRODUCTS: dict[str, Any] = {"xla_gpu_enable_triton_gemm": "False"}
"""Further ones for products in full float32, where cuBLAS is as fast as the Triton kernels that XLA would compile and
compare for each product: BERT-base compiles in 99 s instead of 198."""


class BatchRows:
    """Compute `example_rows` of batches, padded to one size so that the program is compiled once.

    If classes are dropped, it is compiled once per power of two of the number of rows that a batch needs.

    Attributes:
        batch_size: examples per batch, over all devices.
        at_once: examples whose rows a device holds at a time. If it is less than a device's share of a batch and rows
            stay on the devices, the program loops over the share.
    """

    def __init__(
        self,
        model: Model,
        representation: Representation,
        mesh: Mesh,
        batch_size: int,
        precision: str,
        keep: Selection | None = None,
        at_once: int | None = None,
    ):
        """Prepare batches of ``batch_size`` examples, rounded up to a multiple of the devices.

        With ``keep``, the rows of each example are replaced by the entries that it selects, inside the compiled
        program. The model caches its programs: a second set of examples compiles nothing.
        """
        check_precision(precision)
        self.mesh, self.precision = mesh, precision
        self.batch_size = round_up(batch_size, mesh.shape[EXAMPLES])
        share = self.batch_size // mesh.shape[EXAMPLES]
        self.at_once = share if at_once is None else max(1, min(at_once, share))
        self._reduces = keep is not None
        self._checked: set[tuple[int | None, int]] = set()
        self._params, self._seed = self._placed(model.params, np.uint32(representation.seed))

        options = CPU_OPTIONS if mesh.devices.flat[0].platform == "cpu" else GPU_OPTIONS
        if options is GPU_OPTIONS and precision == "highest":
            options = options | LIBRARY_PRODUCTS
        chosen = model, representation, keep, mesh
        self._made = functools.partial(model.program, _batch_rows, *chosen, compiler_options=options)
        self._count = model.program(_rows_needed, model, representation, mesh)
        self._n_classes, self._needed = model.n_classes, functools.partial(representation.rows_needed, model.output)
        self._counts: bool | None = None  # whether examples need different numbers of rows; known after the first

    def __call__(self, examples: Examples, start: int, labels: np.ndarray | None = None) -> Any:
        """Return the padded rows of ``examples`` on the devices; ``start`` is the position of the first example.

        ``labels`` are the labels of the examples; without them the representation gets -1. On an accelerator,
        ``at_once`` is lowered until the compiled program fits in memory.

        Raises:
            ValueError: not even a single example fits.
        """
        # A sharded program must be compiled even if a user disables jit to debug logits_fn.
        with jax.default_matmul_precision(self.precision), jax.disable_jit(False):
            while True:
                arguments = self._arguments(examples, start, labels)
                room = self._room(examples, arguments)
                if not self._reduces:
                    return self._program(room)(*arguments)
                try:
                    if self._fits(room, arguments):
                        return self._program(room)(*arguments)
                except jax.errors.JaxRuntimeError as error:
                    self._halve(error)

    def begin(self, examples: Examples, start: int, labels: np.ndarray | None = None) -> Iterator[Any]:
        """Start a batch, and return an iterator over its examples on the host.

        If rows stay on the devices, the computation starts immediately and runs asynchronously. Otherwise it starts
        when the iterator is used, because rows of the previous batch must be freed first.
        """
        if not self._reduces:
            return self._piecewise(examples, start, labels)
        return self._fetched(self(examples, start, labels), examples, start, labels)

    def _fetched(self, batch: Any, examples: Examples, start: int, labels: np.ndarray | None) -> Iterator[Any]:
        """Yield the examples of a started batch; if memory ran out, compute it again in smaller portions."""
        while True:
            try:
                jax.block_until_ready(batch)
                break
            except jax.errors.JaxRuntimeError as error:
                self._halve(error)
                batch = self(examples, start, labels)
        yield from on_host(batch, count_examples(examples))

    def _piecewise(self, examples: Examples, start: int, labels: np.ndarray | None) -> Iterator[Any]:
        """Yield the examples of a batch, computed as many at a time as fit."""
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
        """Return the compiled program for ``examples`` as a `jax.stages.Compiled`, which reports its memory."""
        with jax.default_matmul_precision(self.precision), jax.disable_jit(False):
            arguments = self._arguments(examples, 0, labels)
            return self._program(self._room(examples, arguments)).lower(*arguments).compile()

    def _program(self, room: int | None) -> Any:
        return self._made(room, self.at_once if self._reduces else None)

    @property
    def piece(self) -> int:
        """Number of examples per call: a batch, or as many as fit if rows are returned."""
        return self.batch_size if self._reduces else self.at_once * self.mesh.shape[EXAMPLES]

    def _halve(self, error: Exception) -> None:
        """Halve ``at_once`` if ``error`` means that memory ran out; otherwise raise ``error``.

        Raises:
            ValueError: ``at_once`` is already one.
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
        """Place parameters and seed, which are the same for all batches, on the devices."""
        return _place(params, self.mesh), jax.device_put(seed, NamedSharding(self.mesh, PartitionSpec()))

    def _fits(self, room: int | None, arguments: tuple[Any, ...]) -> bool:
        """Return whether the compiled program fits in the free memory of accelerators; if not, lower ``at_once``."""
        free = free_on_accelerators(self.mesh)
        if free is None or (room, self.at_once) in self._checked:
            return True
        size = self._size(room, arguments)
        if size > free:
            if self.at_once == 1:
                found = f"its program needs {size_text(size)}, and {size_text(free)} may be used on a device"
                raise ValueError(TOO_LARGE.format(what=found))
            self.at_once = max(1, min(self.at_once - 1, int(self.at_once * free / size)))
            return False
        self._checked.add((room, self.at_once))
        return True

    def _size(self, room: int | None, arguments: tuple[Any, ...]) -> float:
        """Return the bytes per device that the program uses in addition to its arguments."""
        return program_bytes(self._program(room).lower(*arguments).compile())

    def _arguments(self, examples: Examples, start: int, labels: np.ndarray | None) -> tuple[Any, ...]:
        """Return the arguments of the program on the devices, with examples padded to a multiple of the devices."""
        split = sharded(self.mesh, EXAMPLES)
        size = self.mesh.shape[EXAMPLES] * round_up(self.piece // self.mesh.shape[EXAMPLES], self.at_once)
        batch = jax.tree.map(lambda leaf: jax.device_put(pad_rows(leaf, size), split), examples)
        index = jax.device_put(np.arange(start, start + size, dtype=np.int32), split)
        n = len(jax.tree.leaves(examples)[0])
        given = np.full(n, -1, np.int32) if labels is None else labels.astype(np.int32)
        return self._params, self._seed, batch, index, jax.device_put(pad_rows(given, size), split)

    def _room(self, examples: Examples, arguments: tuple[Any, ...]) -> int | None:
        """Return the number of rows per example that this batch needs room for; None for all."""
        if self._counts is None:
            logits = jax.ShapeDtypeStruct((self._n_classes(jax.tree.map(lambda leaf: leaf[0], examples)),), jnp.float32)
            self._counts = jax.eval_shape(self._needed, logits) is not None
        if not self._counts:
            return None
        needed = int(np.max(np.asarray(self._count(*arguments))))
        return 1 << (needed - 1).bit_length()


def _batch_rows(
    params: Any,
    seed: Any,
    examples: Examples,
    index: Any,
    labels: Any,
    model: Model,
    representation: Representation,
    keep: Selection | None,
    mesh: Mesh,
    room: int | None,
    at_once: int | None,
) -> Any:
    """Compute up to ``room`` rows per example, or the entries that ``keep`` selects from them."""

    def of_one(params: Any, seed: Any, example: Any, index: Any, label: Any) -> Any:
        most = representation.n_rows(model.output, model.n_classes(example))
        most, key = most if room is None else min(most, room), example_key(seed, index)
        found = example_rows(model, representation, model.space.select(params), params, example, key, label, most)
        return found if keep is None else entries_of(representation, keep, found)

    return _mapped(of_one, mesh, at_once)(params, seed, examples, index, labels)


def _rows_needed(
    params: Any,
    seed: Any,
    examples: Examples,
    index: Any,
    labels: Any,
    model: Model,
    representation: Representation,
    mesh: Mesh,
) -> jax.Array:
    """Compute the number of rows that each example of a batch needs."""

    def of_one(params: Any, seed: Any, example: Any, index: Any, label: Any) -> jax.Array | None:
        logits = model.logits_fn(params, example).astype(jnp.float32)
        return representation.rows_needed(model.output, logits)

    return _mapped(of_one, mesh)(params, seed, examples, index, labels)


def _mapped(of_one: Callable[..., Any], mesh: Mesh, at_once: int | None = None) -> Callable[..., Any]:
    """Map ``of_one`` to a function of parameters, seed, a batch of examples, their positions and their labels.

    Each device processes ``at_once`` of its examples at a time, by default all.
    """

    def each(params: Any, seed: Any, *examples: Any) -> Any:
        if at_once is None or at_once >= len(examples[-1]):
            return jax.vmap(of_one, (None, None, 0, 0, 0))(params, seed, *examples)
        return jax.lax.map(lambda one: of_one(params, seed, *one), examples, batch_size=at_once)

    if mesh.size == 1:  # shard_map is not needed, and JAX would cache the function
        return each
    split = PartitionSpec(EXAMPLES)
    return jax.shard_map(
        each,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), split, split, split),
        out_specs=split,
        axis_names={EXAMPLES},
        check_vma=False,
    )


def on_host(batch: ExampleRows | ExampleEntries, size: int) -> Iterator[HostRows | ExampleEntries]:
    """Yield the first ``size`` examples of a batch as NumPy, without a copy if devices share the host's memory."""
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
    """Return the parts of an array on each device, split along the first axis, in order."""
    shape = array.sharding.shard_shape(array.shape)
    if shape[1:] != array.shape[1:]:  # also sharded over another mesh axis: gather it
        return [np.asarray(array)]
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return [np.asarray(shards[start]) for start in sorted(shards)]


def _pick(parts: list[np.ndarray], i: int) -> np.ndarray:
    size = parts[0].shape[0]
    leaf = parts[i // size][i % size]
    return leaf.reshape(leaf.shape[0], -1)


def _place(params: Any, mesh: Mesh) -> Any:
    """Replicate parameters over the mesh, except those that the caller has sharded over it."""

    def place(leaf: Any) -> Any:
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding) and own.device_set == set(mesh.devices.flat) and not own.is_fully_replicated:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(place, params)
