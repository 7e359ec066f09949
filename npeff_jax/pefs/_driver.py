"""Model and examples to `Pefs`: the loop over batches."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from npeff_jax._checks import check_labels, count_examples, slice_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._sharding import EXAMPLES, default_mesh
from npeff_jax._types import Examples
from npeff_jax.models import Model
from npeff_jax.pefs._batch import BatchRows, on_host
from npeff_jax.pefs._cotangents import n_cotangents
from npeff_jax.pefs._digest import examples_digest
from npeff_jax.pefs._fidelity import fidelity
from npeff_jax.pefs._files import PefFiles, load_pefs
from npeff_jax.pefs._memory import choose_batch_size
from npeff_jax.pefs._pefs import Pefs
from npeff_jax.pefs._representation import Diagonal, LowRank, Normalization, Representation, describe
from npeff_jax.pefs._rows import HostRows, principal
from npeff_jax.pefs._schema import Kind, Schema
from npeff_jax.pefs._selection import Selector

OnExisting = Literal["resume", "error", "overwrite"]


def compute_pefs(
    model: Model,
    examples: Examples,
    representation: Representation | None = None,
    *,
    labels: Any = None,
    keep: int | None = None,
    path: str | os.PathLike[str] | None = None,
    on_existing: OnExisting = "resume",
    mesh: Mesh | None = None,
    batch_size: int | None = None,
    normalization: Normalization = Normalization.BEFORE,
    precision: str = "highest",
    progress: Progress = True,
) -> Pefs:
    """Per-example Fishers of a model (eq. 1), normalised and sparsified (section 2.2, Preprocessing).

    Args:
        model: what to explain.
        examples: n of them, a pytree of arrays with a leading axis or a sized source that can be sliced.
        representation: `LowRank` (the default), `Diagonal` or `Sampled`.
        labels: (n,) of the data set, kept with the PEFs.
        keep: K, non-zeros kept of one example over all its rows; all of them by default.
        path: write to this directory batch by batch; what is there already is not computed again.
        on_existing: what to do with PEFs at ``path``: go on where they stop if they are of the same model, examples and
            settings; refuse; or replace them.
        mesh: devices to use, JAX's default device without one.
        batch_size: examples at a time, chosen by size if not given. Results do not depend on it beyond rounding.
        normalization: when Fishers are divided by their norms.
        precision: of the matrix products behind the gradients.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Raises:
        ValueError: arguments that do not fit together, values or gradients that are not finite, or PEFs of something
            else at ``path``.
        FileExistsError: there are PEFs at ``path`` and ``on_existing="error"``.
    """
    representation = representation or LowRank()
    if on_existing not in ("resume", "error", "overwrite"):
        raise ValueError(f"on_existing={on_existing!r}; expected 'resume', 'error' or 'overwrite'")
    n = count_examples(examples)
    labels = check_labels(labels, n)
    n_classes = model.n_classes(jax.tree.map(lambda leaf: leaf[0], slice_examples(examples, slice(0, 1))))
    c = n_cotangents(model.output, representation, n_classes)
    width = _kept(keep, model, representation, c)
    schema = describe_run(model, examples, representation, normalization, n_classes, width, precision)
    mesh = default_mesh(mesh)
    size = batch_size or choose_batch_size(c * model.space.size, n, mesh.shape[EXAMPLES])
    blank, done, files = _arrays(schema, c), 0, None
    if path is not None:
        files = PefFiles.open(path, schema, blank, labels, size, on_existing)
        done, size = files.committed, files.batch_size
    if done < n:
        fishers = BatchRows(model, representation, mesh, size, precision)
        select = Selector([p.size for p in model.space.layout.parameters], c)
        with (
            progress_bar(progress, "PEFs", n, "example", done) as advance,
            ThreadPoolExecutor(os.cpu_count()) as threads,
        ):
            for start in range(done, n, fishers.batch_size):
                stop = min(start + fishers.batch_size, n)
                batch = on_host(fishers(slice_examples(examples, slice(start, stop)), start), stop - start)
                work = [
                    threads.submit(sparsify, one, representation, schema, select, start + i)
                    for i, one in enumerate(batch)
                ]
                found = {name: np.zeros((stop - start, *a.shape[1:]), a.dtype) for name, a in blank.items()}
                for i, sparse in enumerate(work):
                    _put(found, i, sparse.result())
                if files is None:
                    for name, array in found.items():
                        blank[name][start:stop] = array
                else:
                    files.write(start, stop, found)
                advance(stop - start)
    return load_pefs(path) if path is not None else Pefs(schema, labels=labels, **blank)


def _kept(keep: int | None, model: Model, representation: Representation, c: int) -> int:
    most = (1 if isinstance(representation, Diagonal) else c) * model.space.size
    if keep is not None and not 0 < keep <= most:
        raise ValueError(f"keep={keep} is out of range: an example has {most} entries; pass 1 to {most}, or None")
    return most if keep is None else int(keep)


def describe_run(
    model: Model,
    examples: Examples,
    representation: Representation,
    normalization: Normalization,
    n_classes: int,
    keep: int,
    precision: str,
    digest: str | None = None,
) -> Schema:
    """The schema of PEFs that are to be computed. The digest of the examples reads all of them, unless it is given."""
    from npeff_jax import __version__

    return Schema(
        kind=Kind.DIAGONAL if isinstance(representation, Diagonal) else Kind.LOW_RANK,
        representation=describe(representation),
        normalization=normalization.value,
        model=model.fingerprint,
        examples=examples_digest(examples) if digest is None else digest,
        layout=model.space.layout,
        n_examples=count_examples(examples),
        n_classes=n_classes,
        keep=keep,
        precision=precision,
        code_version=__version__,
    )


def _arrays(schema: Schema, c: int) -> dict[str, Any]:
    """One zero array a field of `Pefs`. Zeros are not touched until they are written, so they take no memory."""
    n, keep = schema.n_examples, schema.keep
    index = np.int32 if schema.layout.size < 2**31 else np.int64
    wide = {"values": np.float32, "indices": index, "rows": np.min_scalar_type(c)}
    narrow = ("norms", "kept_energy", "fisher_error", "lost_mass", "lost_trace")
    return (
        {name: np.zeros((n, keep), dtype) for name, dtype in wide.items()}
        | {name: np.zeros(n, np.float32) for name in narrow}
        | {"n_rows": np.zeros(n, np.int32), "logits": np.zeros((n, schema.n_classes), np.float32)}
    )


def _put(arrays: dict[str, Any], i: int, found: dict[str, Any]) -> None:
    for name, value in found.items():
        if np.ndim(value):
            arrays[name][i, : len(value)] = value
        else:
            arrays[name][i] = value


def sparsify(
    one: HostRows, representation: Representation, schema: Schema, select: Selector, number: int
) -> dict[str, Any]:
    """The kept entries of one example's rows, scaled, and what is known of the whole."""
    _check_finite(one, schema, number)
    one = principal(one._replace(gram=one.gram.astype(np.float64)), representation, np)
    normalization = Normalization(schema.normalization)
    n_rows = int(one.n_rows)
    chosen = select([leaf[:n_rows] for leaf in one.leaves], schema.keep)
    gathered = select.gather(one.leaves, chosen)
    held = fidelity(schema.kind, chosen, gathered, one.gram, n_rows, select.size)
    whole = float(np.linalg.norm(one.gram))
    norm = whole if schema.kind is Kind.LOW_RANK else whole**0.5
    unit = {Normalization.BEFORE: norm, Normalization.AFTER: held.kept_norm, Normalization.NONE: 1.0}[normalization]
    scale = float(one.scale)
    if normalization is Normalization.NONE:
        divide = 1 / scale if schema.kind is Kind.LOW_RANK else 1 / scale**2
    else:
        divide = unit**0.5 if schema.kind is Kind.LOW_RANK else unit
    trace = float(one.trace)
    return {
        "values": chosen.values / np.float32(divide) if divide else chosen.values,
        "indices": chosen.indices,
        "rows": chosen.rows,
        "n_rows": n_rows,
        "norms": norm * scale**2,
        "logits": one.logits,
        "kept_energy": held.kept_trace / trace if trace else 1.0,
        "fisher_error": held.error,
        "lost_mass": one.lost_mass,
        "lost_trace": one.lost_trace,
    }


def _check_finite(one: HostRows, schema: Schema, number: int) -> None:
    bad = np.flatnonzero(~np.isfinite(one.leaf_norms))
    if not np.isfinite(one.logits).all():
        raise ValueError(f"example {number} has logits that are not finite; look at the model on this example")
    if bad.size:
        name = schema.layout.parameters[int(bad[0])].name
        raise ValueError(
            f"example {number} has a gradient that is not finite, in parameter {name!r} first; look at the model there"
        )
