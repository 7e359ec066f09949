"""Model and examples to `Pefs`: the loop over batches."""

import functools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, SupportsIndex, get_args

import numpy as np
from jax.sharding import Mesh

from npeff_jax._checks import as_enum, as_instance, check_choice, check_integer, check_labels, check_precision, listing
from npeff_jax._examples import choose_examples, count_examples, first_example, slice_examples, take_examples
from npeff_jax._identity import Identity, check_examples, describe, examples_identity, model_identity
from npeff_jax._machine import cores
from npeff_jax._progress import Progress, check_progress, progress_bar
from npeff_jax._sharding import EXAMPLES, examples_mesh, round_up
from npeff_jax._types import Examples
from npeff_jax._version import __version__
from npeff_jax.models import Model, Output, check_model
from npeff_jax.pefs._batch import BatchRows
from npeff_jax.pefs._files import PefFiles, load_pefs
from npeff_jax.pefs._keep import Keep, Selection, as_selection
from npeff_jax.pefs._memory import check_fits, choose_at_once, choose_batch_size
from npeff_jax.pefs._pefs import Pefs
from npeff_jax.pefs._processes import check_own_devices
from npeff_jax.pefs._rows import unreached
from npeff_jax.pefs._schema import Normalization, Schema
from npeff_jax.pefs._sparsify import NotFiniteError, Sparsifier, blank_arrays, put, skipped
from npeff_jax.pefs._step import SelectOn, entries_of, selects_on_device
from npeff_jax.pefs.representations import FisherKind, LowRank, Representation, default_representation
from npeff_jax.store import WidenedArray, writable_path

_LOG = logging.getLogger("npeff_jax")

OnExisting = Literal["resume", "error", "overwrite"]

DType = Literal["float32", "bfloat16", "float16"]

OnFailure = Literal["stop", "skip"]


def compute_pefs(
    model: Model,
    examples: Examples,
    representation: Representation | type[Representation] | None = None,
    *,
    labels: Any = None,
    keep: Keep = None,
    path: str | os.PathLike[str] | None = None,
    on_existing: OnExisting = "resume",
    mesh: Mesh | None = None,
    batch_size: SupportsIndex | None = None,
    normalization: Normalization | str = Normalization.BEFORE,
    precision: str = "highest",
    dtype: DType = "float32",
    select_on: SelectOn = "auto",
    on_failure: OnFailure = "stop",
    progress: Progress = True,
) -> Pefs:
    """Per-example Fishers of a model (eq. 1), normalised and sparsified (section 2.2, Preprocessing).

    Args:
        model: what to explain.
        examples: n of them, a pytree of arrays with a leading axis or a sized source that can be sliced.
        representation: `LowRank`, `Diagonal`, `Sampled` or an own `Representation`; by default exact for up to 65
            classes, see `default_representation`.
        labels: (n,) of the data set, each one of the model's classes, kept with the PEFs.
        keep: K, non-zeros kept of one example over all its rows; `PerRow`, `SharedSupport` or an own `Selection`; all
            by default.
        path: write to this directory batch by batch; what is there already is not computed again.
        on_existing: what to do with PEFs at ``path``: go on where they stop if they are of the same model, examples and
            settings; refuse; or replace them.
        mesh: devices to use, JAX's default device without one. Where `jax.distributed` runs several processes and
            writes to a ``path`` that all can reach, each does its own batches, on its own devices.
        batch_size: examples at a time, chosen by the free memory of the devices if not given. Results do not depend on
            it beyond rounding.
        normalization: when Fishers are divided by their norms.
        precision: of the matrix products behind the gradients.
        dtype: of the stored values; they are read as float32. "float16" comes with a scale an example. The figures of
            fidelity leave this rounding out.
        select_on: where the entries to keep are selected. By default that is an accelerator if the rows are on one, so
            that only what is stored leaves it, and the host where they are there, or where ``keep`` is most of them or
            has no way on a device. Results are the same to rounding.
        on_failure: what to do with an example whose gradients are not finite: stop, or skip it. A skipped example has
            no rows, a norm of NaN, and is listed by `Pefs.failed`.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        ValueError: arguments that do not fit together, rows or results that do not fit in memory or on disk, values or
            gradients that are not finite, or PEFs of something else at ``path``.
        FileExistsError: there are PEFs at ``path`` and ``on_existing="error"``.
    """
    check_model(model)
    selection = as_selection(keep)
    normalization = Normalization(as_enum("normalization", normalization, Normalization))
    check_progress(progress)
    check_precision(precision)
    check_choice("on_existing", on_existing, get_args(OnExisting))
    check_choice("on_failure", on_failure, get_args(OnFailure))
    check_choice("dtype", dtype, get_args(DType))
    batch_size = None if batch_size is None else check_integer("batch_size", batch_size)
    path = None if path is None else writable_path(path)
    examples = take_examples(examples)
    n = count_examples(examples)
    n_classes = model.n_classes(first_example(examples))
    representation = as_representation(representation, model.output, n_classes)
    labels = check_labels(labels, n, n_classes)
    seen = labels_for(representation, labels)
    mesh = examples_mesh(mesh)
    check_reached(model, examples)
    c = representation.n_rows(model.output, n_classes)
    settings: dict[str, Any] = {"n_classes": n_classes, "keep": selection, "precision": precision, "dtype": dtype}
    schema = describe_run(model, examples, representation, normalization, **settings)
    check_own_devices(mesh)
    row_bytes = 4 * c * model.space.size
    on_device = selects_on_device(select_on, mesh, representation, selection, c, model.space.size)
    size = batch_size or choose_batch_size(row_bytes, n, mesh, on_device)
    size, at_once = round_up(size, mesh.shape[EXAMPLES]), choose_at_once(row_bytes, mesh) if on_device else None
    sparsify = Sparsifier(schema, representation, selection)
    blank = blank_arrays(schema, c)
    if path is None:
        check_fits(sum(array.nbytes for array in blank.values()), None)
    sink: Any = _Memory(blank) if path is None else PefFiles.open(path, schema, blank, labels, size, on_existing)
    with sink as files:
        if path is not None and files.committed:
            check_examples(
                f"the PEFs at {path}", {}, files.logits(), model, choose_examples(examples, slice(0, files.committed))
            )
        if files.committed < n:
            fishers = rows_for(model, representation, selection, mesh, files.batch_size or size, precision, at_once)
            part = blank_arrays(schema, c, fishers.batch_size)
            _run(fishers, sparsify, examples, seen, files, part, on_failure, progress)
    if "scales" in blank:
        blank["values"] = WidenedArray(blank["values"], blank.pop("scales"))  # type: ignore[assignment]
    pefs = Pefs(schema, labels=labels, **blank) if path is None else load_pefs(path)
    found = pefs.norm_summary
    remarkable = found.outliers.size or found.uninformative.size or found.failed.size
    _LOG.log(logging.WARNING if remarkable else logging.INFO, "%s", found)
    return pefs


def rows_for(
    model: Model,
    representation: Representation,
    keep: Selection,
    mesh: Mesh,
    batch_size: int,
    precision: str,
    at_once: int | None,
) -> BatchRows:
    """Return what computes the rows of a batch, or, with ``at_once`` examples at a time on a device, their entries."""
    then = None if at_once is None else functools.partial(entries_of, representation, keep)
    return BatchRows(model, representation, mesh, batch_size, precision, then, at_once)


def describe_run(
    model: Model,
    examples: Examples,
    representation: Representation,
    normalization: Normalization,
    *,
    n_classes: int,
    keep: Selection,
    precision: str,
    dtype: str = "float32",
    known: Identity | None = None,
) -> Schema:
    """Return the schema of PEFs that are to be computed.

    ``known`` is the identity of model and examples: finding it reads all examples and runs the model once.
    """
    diagonal = representation.kind is FisherKind.DIAGONAL
    if known is None:
        known = model_identity(model, examples) | examples_identity(examples)
    return Schema(
        kind=representation.kind,
        representation=representation.recorded | keep.recorded,
        normalization=normalization.value,
        keep=keep.width(1 if diagonal else representation.n_rows(model.output, n_classes), model.space.size),
        model=known.get("parameters", ""),
        constants=known.get("constants"),
        function=known.get("function"),
        examples=known.get("examples", ""),
        layout=model.space.layout,
        n_examples=count_examples(examples),
        n_classes=n_classes,
        precision=precision,
        dtype=dtype,
        output=describe(model.output),
        code_version=__version__,
    )


def as_representation(representation: Any, output: Output, n_classes: int) -> Representation:
    """Return the representation that is meant: `default_representation` where none is given.

    Many backward passes per example are said, as they are what takes the time.

    Raises:
        TypeError: it is none.
    """
    chosen = default_representation(output, n_classes) if representation is None else representation
    found: Representation = as_instance("representation", chosen, Representation, none=True)
    rows = found.n_rows(output, n_classes)
    if representation is None and found != LowRank():
        _LOG.warning("%d classes: representation %r, which is not exact; see its lost_trace", n_classes, found)
    elif rows > MANY_ROWS:
        _LOG.warning(
            "%r takes up to %d backward passes for each example of %d classes; LowRank(max_rows=16, sketch=24), "
            "LowRank(min_probability=3e-3) or Sampled(64) take fewer",
            found,
            rows,
            n_classes,
        )
    return found


MANY_ROWS = 400
"""Backward passes per example that are worth a word: more than ``min_probability=3e-3`` can ask for."""


def labels_for(representation: Representation, labels: np.ndarray | None) -> np.ndarray | None:
    """Return the labels that the representation looks at, None if it looks at none.

    Raises:
        ValueError: it looks at labels, and there are none.
    """
    if representation.needs_labels and labels is None:
        raise ValueError(f"{type(representation).__name__} looks at the examples' labels; pass labels=")
    return labels if representation.needs_labels else None


def check_reached(model: Model, examples: Examples) -> None:
    """Raise where no gradient reaches any explained parameter; warn of those that none reaches.

    Raises:
        ValueError: the function does not depend on its parameters: every Fisher would be zero.
    """
    example = first_example(examples)
    names = [parameter.name for parameter in model.space.layout.parameters]
    never = unreached(model, example)
    if len(never) == len(names):
        raise ValueError(
            f"no gradient reaches any of the explained parameters ({listing(names, 4)}): every Fisher would be zero; "
            "let logits_fn use its argument params, not values from around it, and look for stop_gradient and integers"
        )
    if never:
        _LOG.warning("no gradient ever reaches %d of %d parameters: %s", len(never), len(names), listing(never))


class _Memory:
    """Arrays in memory, written to like `PefFiles`."""

    committed = batch_size = process = 0
    processes = 1

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def write(self, start: int, stop: int, found: dict[str, np.ndarray], end: int) -> None:
        for name, rows in found.items():
            self._arrays[name][start:stop] = rows

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _run(
    fishers: BatchRows,
    sparsify: Sparsifier,
    examples: Examples,
    labels: np.ndarray | None,
    sink: Any,
    blank: dict[str, np.ndarray],
    on_failure: OnFailure,
    progress: Progress,
) -> None:
    """Batch after batch. Where the devices select, they work on one batch while the host finishes and writes the last.

    Where the host selects, its threads follow each batch of gradients, and writing is behind both: dense rows of one
    batch are alive at a time, the selected entries of two.
    """
    n, failed = sparsify.schema.n_examples, 0
    size, shown = fishers.batch_size, progress if sink.process == 0 else False
    with (
        progress_bar(shown, "PEFs", n, "example", sink.committed) as advance,
        ThreadPoolExecutor(cores()) as threads,
    ):

        def finish(turn: _Turn, entries: Iterable[Any]) -> int:
            """Sparsify, and begin to write, the examples of a turn; return how many were skipped."""
            work = [threads.submit(sparsify, one, turn.start + i) for i, one in enumerate(entries)]
            found = {name: np.zeros_like(array[: turn.stop - turn.start]) for name, array in blank.items()}
            skips = 0
            for i, one in enumerate(work):
                try:
                    put(found, i, one.result())
                except NotFiniteError as error:
                    if on_failure == "stop":
                        raise
                    _LOG.warning("skipped: %s", error)
                    put(found, i, skipped(sparsify.schema.n_classes))
                    skips += 1
            sink.write(turn.start, turn.stop, found, turn.end)
            advance(turn.end - turn.first, **({"skipped": failed + skips} if failed + skips else {}))
            return skips

        last: tuple[_Turn, Iterable[Any]] | None = None
        for turn in _turns(n, size, sink):
            if turn.start < turn.stop:
                part = slice_examples(examples, slice(turn.start, turn.stop))
                given = None if labels is None else labels[turn.start : turn.stop]
                entries = fishers.begin(part, turn.start, given)
            if last is not None:
                failed += finish(*last)
                last = None
            if turn.start == turn.stop:  # the last batches were not enough for all
                sink.write(n, n, {}, turn.end)
            else:
                last = turn, entries
        if last is not None:
            failed += finish(*last)


class _Turn(NamedTuple):
    """What all processes do at a time, ``first`` to ``end``, and this one's part of it."""

    first: int
    start: int
    stop: int
    end: int


def _turns(n: int, size: int, sink: Any) -> Iterator[_Turn]:
    for first in range(sink.committed, n, size * sink.processes):
        start = min(first + size * sink.process, n)
        yield _Turn(first, start, min(start + size, n), min(first + size * sink.processes, n))
