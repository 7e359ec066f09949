"""`compute_pefs`: the loop over batches from a model and examples to `Pefs`."""

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
from npeff_jax.pefs._step import SelectOn, selects_on_device
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
    """Compute the per-example Fishers of a model (eq. 1), normalised and sparsified (section 2.2, Preprocessing).

    Args:
        model: the model to explain.
        examples: n examples, a pytree of arrays with a leading axis or a sized source that can be sliced.
        representation: `LowRank`, `Diagonal`, `Sampled` or your own `Representation`; the default is exact for up to 65
            classes, see `default_representation`.
        labels: (n,), labels of the data set, classes of the model, stored with the PEFs.
        keep: K, number of non-zeros kept per example over all its rows; or `PerRow`, `SharedSupport` or your own
            `Selection`; by default all.
        path: directory to write to batch by batch. Existing batches are not computed again.
        on_existing: what to do if there are PEFs at ``path``: "resume" them if model, examples and settings agree,
            raise an "error", or "overwrite" them.
        mesh: devices to use; by default JAX's default device. With several processes of `jax.distributed` and a
            ``path`` that all can reach, each process computes its own batches on its own devices.
        batch_size: examples per batch; by default chosen from the free memory of the devices. Results depend on it only
            by rounding.
        normalization: when Fishers are divided by their norms.
        precision: precision of the matrix products in forward and backward passes.
        dtype: dtype of the stored values, which are read as float32. "float16" is stored with a scale per example.
            `Pefs.kept_energy` and `Pefs.fisher_error` do not include this rounding.
        select_on: where the entries to keep are selected. By default on an accelerator if the rows are there, so that
            only the kept entries are transferred; and on the host for rows on the host, if ``keep`` is a large part of
            them, or if the selection has no device version. Results are the same up to rounding.
        on_failure: whether to stop at an example with non-finite gradients or to skip it. A skipped example has no rows
            and a norm of NaN, and is listed in `Pefs.failed`.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        ValueError: inconsistent arguments, rows or results that do not fit in memory or on disk, non-finite values or
            gradients, or PEFs of another model, examples or settings at ``path``.
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
    """Return the computation of a batch's rows or, if ``at_once`` is given, of their kept entries on the devices."""
    selection = None if at_once is None else keep
    return BatchRows(model, representation, mesh, batch_size, precision, selection, at_once)


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
    """Return the schema of PEFs to be computed.

    ``known`` is the identity of model and examples, which is expensive: it reads all examples and runs the model once.
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
    """Return the given representation, or the default one, and log a large number of backward passes per example.

    Raises:
        TypeError: the argument is not a `Representation`.
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
"""Backward passes per example above which their number is logged: more than ``min_probability=3e-3`` needs."""


def labels_for(representation: Representation, labels: np.ndarray | None) -> np.ndarray | None:
    """Return the labels if the representation uses them, else None.

    Raises:
        ValueError: the representation uses labels, and there are none.
    """
    if representation.needs_labels and labels is None:
        raise ValueError(f"{type(representation).__name__} uses the examples' labels; pass labels=")
    return labels if representation.needs_labels else None


def check_reached(model: Model, examples: Examples) -> None:
    """Warn of explained parameters that no gradient reaches, and raise if none is reached.

    Raises:
        ValueError: the function does not depend on its parameters, so every Fisher would be zero.
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
    """PEFs in memory, with the writing interface of `PefFiles`."""

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
    """Compute, sparsify and write all batches.

    If the devices select, they compute a batch while the host finishes and writes the previous one. If the host
    selects, its threads process the examples of each batch, and writing is asynchronous: the dense rows of one batch,
    and the selected entries of two, are in memory at a time.
    """
    n, failed = sparsify.schema.n_examples, 0
    size, shown = fishers.batch_size, progress if sink.process == 0 else False
    with (
        progress_bar(shown, "PEFs", n, "example", sink.committed) as advance,
        ThreadPoolExecutor(cores()) as threads,
    ):

        def finish(turn: _Turn, entries: Iterable[Any]) -> int:
            """Sparsify the examples of a turn and start writing them; return how many were skipped."""
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
            if turn.start == turn.stop:  # no batch is left for this process
                sink.write(n, n, {}, turn.end)
            else:
                last = turn, entries
        if last is not None:
            failed += finish(*last)


class _Turn(NamedTuple):
    """Examples that all processes compute in one turn (``first`` to ``end``), and the part of this process."""

    first: int
    start: int
    stop: int
    end: int


def _turns(n: int, size: int, sink: Any) -> Iterator[_Turn]:
    for first in range(sink.committed, n, size * sink.processes):
        start = min(first + size * sink.process, n)
        yield _Turn(first, start, min(start + size, n), min(first + size * sink.processes, n))
