"""Model and examples to `Pefs`: the loop over batches."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
from jax.sharding import Mesh

from npeff_jax._checks import check_choice, check_labels
from npeff_jax._examples import (
    choose_examples,
    count_examples,
    examples_digest,
    first_example,
    slice_examples,
    take_examples,
)
from npeff_jax._identity import check_examples, describe
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._sharding import EXAMPLES, default_mesh, round_up
from npeff_jax._types import Examples
from npeff_jax._version import __version__
from npeff_jax.models import Model, check_model
from npeff_jax.pefs._batch import BatchRows, on_host
from npeff_jax.pefs._cotangents import n_cotangents
from npeff_jax.pefs._files import PefFiles, load_pefs
from npeff_jax.pefs._memory import check_fits, choose_batch_size
from npeff_jax.pefs._pefs import Pefs
from npeff_jax.pefs._processes import check_own_devices
from npeff_jax.pefs._representation import Diagonal, Keep, LowRank, Normalization, Representation
from npeff_jax.pefs._schema import FisherKind, Schema
from npeff_jax.pefs._sparsify import NotFiniteError, Sparsifier, blank_arrays, put, skipped, width
from npeff_jax.store import WidenedArray, absolute_path

_LOG = logging.getLogger("npeff_jax")

OnExisting = Literal["resume", "error", "overwrite"]

DType = Literal["float32", "bfloat16", "float16"]

OnFailure = Literal["stop", "skip"]


def compute_pefs(
    model: Model,
    examples: Examples,
    representation: Representation | None = None,
    *,
    labels: Any = None,
    keep: Keep = None,
    path: str | os.PathLike[str] | None = None,
    on_existing: OnExisting = "resume",
    mesh: Mesh | None = None,
    batch_size: int | None = None,
    normalization: Normalization = Normalization.BEFORE,
    precision: str = "highest",
    dtype: DType = "float32",
    on_failure: OnFailure = "stop",
    progress: Progress = True,
) -> Pefs:
    """Per-example Fishers of a model (eq. 1), normalised and sparsified (section 2.2, Preprocessing).

    Args:
        model: what to explain.
        examples: n of them, a pytree of arrays with a leading axis or a sized source that can be sliced.
        representation: `LowRank` (the default), `Diagonal` or `Sampled`.
        labels: (n,) of the data set, kept with the PEFs.
        keep: K, non-zeros kept of one example over all its rows; `PerRow` or `SharedSupport`; all by default.
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
        on_failure: what to do with an example whose gradients are not finite: stop, or skip it. A skipped example has
            no rows, a norm of NaN, and is listed by `Pefs.failed`.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        ValueError: arguments that do not fit together, rows or results that do not fit in memory or on disk, values or
            gradients that are not finite, or PEFs of something else at ``path``.
        FileExistsError: there are PEFs at ``path`` and ``on_existing="error"``.
    """
    representation = representation or LowRank()
    check_choice("on_existing", on_existing, get_args(OnExisting))
    check_choice("on_failure", on_failure, get_args(OnFailure))
    check_choice("dtype", dtype, get_args(DType))
    check_model(model)
    path = None if path is None else absolute_path(path)
    examples = take_examples(examples)
    n = count_examples(examples)
    n_classes = model.n_classes(first_example(examples))
    labels = check_labels(labels, n, n_classes)
    c = n_cotangents(model.output, representation, n_classes)
    settings: dict[str, Any] = {"n_classes": n_classes, "keep": keep, "precision": precision, "dtype": dtype}
    schema = describe_run(model, examples, representation, normalization, **settings)
    mesh = default_mesh(mesh)
    check_own_devices(mesh)
    size = round_up(batch_size or choose_batch_size(4 * c * model.space.size, n, mesh), mesh.shape[EXAMPLES])
    sparsify = Sparsifier(schema, representation, keep)
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
            fishers = BatchRows(model, representation, mesh, files.batch_size or size, precision)
            _run(fishers, sparsify, examples, files, blank_arrays(schema, c, fishers.batch_size), on_failure, progress)
    if "scales" in blank:
        blank["values"] = WidenedArray(blank["values"], blank.pop("scales"))  # type: ignore[assignment]
    pefs = Pefs(schema, labels=labels, **blank) if path is None else load_pefs(path)
    found = pefs.norm_summary
    _LOG.log(logging.WARNING if found.outliers.size else logging.INFO, "%s", found)
    return pefs


def describe_run(
    model: Model,
    examples: Examples,
    representation: Representation,
    normalization: Normalization,
    *,
    n_classes: int,
    keep: Keep,
    precision: str,
    dtype: str = "float32",
    digest: str | None = None,
) -> Schema:
    """The schema of PEFs that are to be computed. The digest of the examples reads all of them, unless it is given."""
    choices = {} if keep is None or isinstance(keep, int) else {"keep": describe(keep)}
    return Schema(
        kind=FisherKind.DIAGONAL if isinstance(representation, Diagonal) else FisherKind.LOW_RANK,
        representation=describe(representation) | choices,
        normalization=normalization.value,
        keep=width(keep, model, representation, n_cotangents(model.output, representation, n_classes)),
        model=model.fingerprint,
        constants=model.constants_digest,
        function=model.probe(first_example(examples)),
        examples=examples_digest(examples) if digest is None else digest,
        layout=model.space.layout,
        n_examples=count_examples(examples),
        n_classes=n_classes,
        precision=precision,
        dtype=dtype,
        output=describe(model.output),
        code_version=__version__,
    )


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
    sink: Any,
    blank: dict[str, np.ndarray],
    on_failure: OnFailure,
    progress: Progress,
) -> None:
    """Batch after batch: gradients on the devices, selection on the host's threads, writing behind both.

    Dense rows of one batch are alive at a time; the selected entries of two are, one being written.
    """
    n, failed = sparsify.schema.n_examples, 0
    size, shown = fishers.batch_size, progress if sink.process == 0 else False
    with (
        progress_bar(shown, "PEFs", n, "example", sink.committed) as advance,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        for first in range(sink.committed, n, size * sink.processes):
            end = min(first + size * sink.processes, n)  # of what all processes do in this turn
            start = min(first + size * sink.process, n)
            stop = min(start + size, n)
            if start == stop:  # the last batches were not enough for all
                sink.write(n, n, {}, end)
                continue
            batch = on_host(fishers(slice_examples(examples, slice(start, stop)), start), stop - start)
            work = [threads.submit(sparsify, one, start + i) for i, one in enumerate(batch)]
            found = {name: np.zeros_like(array[: stop - start]) for name, array in blank.items()}
            for i, one in enumerate(work):
                try:
                    put(found, i, one.result())
                except NotFiniteError as error:
                    if on_failure == "stop":
                        raise
                    _LOG.warning("skipped: %s", error)
                    put(found, i, skipped(sparsify.schema.n_classes))
                    failed += 1
            del batch, work, one
            sink.write(start, stop, found, end)
            advance(end - first, **({"skipped": failed} if failed else {}))
