"""PEFs on disk: written batch by batch while the next is computed, resumable, read lazily.

Arrays are preallocated to n examples, and a batch is one chunk of each array. A batch is committed by renaming a new
manifest into place after its chunks are synced, so committed batches are complete whenever a process is killed.
"""

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from npeff_jax._checks import check_integer
from npeff_jax._identity import differences, tree_digest
from npeff_jax.pefs import _processes
from npeff_jax.pefs._memory import check_fits
from npeff_jax.pefs._pefs import NormSummary, Pefs
from npeff_jax.pefs._schema import READABLE_VERSIONS, SCHEMA_VERSION, Schema
from npeff_jax.store import (
    DamageError,
    StoredArray,
    WidenedArray,
    WriterLock,
    absolute_path,
    create_array,
    describe_arrays,
    open_array,
    open_arrays,
    read_manifest,
    remove_partial_writes,
    write_manifest,
)

_LOG = logging.getLogger("npeff_jax")

_NAMED = {
    "parameters": "model (parameter values)",
    "constants": "model (constants: batch statistics, keyword arguments or static fields)",
    "function": "model (function: other logits for the same input)",
}

WIDE = ("values", "indices", "rows")
"""Arrays with K columns, which stay on disk when PEFs are loaded."""


class PefFiles:
    """Writer of PEFs. A context manager: on exit it waits for the last batch and releases the directory."""

    def __init__(
        self, path: Path, manifest: dict[str, Any], arrays: dict[str, StoredArray], lock: WriterLock | None
    ) -> None:
        """Wrap open arrays, their manifest, and (in the first process) the lock of the directory."""
        self._path, self._manifest, self._arrays, self._lock = path, manifest, arrays, lock
        self.committed: int = manifest["committed"]
        self.process, self.processes = _processes.index(), _processes.count()
        self._writer = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._end = self.committed

    @property
    def batch_size(self) -> int:
        """Batch size of the first run. A resumed run uses it too, which gives bit-identical results."""
        return self._manifest["batch_size"]

    @classmethod
    def open(
        cls,
        path: Path,
        schema: Schema,
        blank: dict[str, np.ndarray],
        labels: np.ndarray | None,
        batch_size: int,
        on_existing: str,
    ) -> "PefFiles":
        """Create PEFs at ``path``, or resume existing ones.

        Args:
            path: a directory, created if it does not exist.
            schema: schema of the PEFs.
            blank: an array per field, which gives its shape and dtype.
            labels: labels of the data set.
            batch_size: examples written at a time.
            on_existing: "resume", "error" or "overwrite".

        Raises:
            FileExistsError: ``path`` must not be overwritten, or another run is writing there.
            ValueError: the existing PEFs differ in model, examples or settings.
        """
        lock = cls._prepare(path, schema, blank, labels, batch_size, on_existing) if _processes.index() == 0 else None
        _processes.wait_for_all("PEFs are there")
        manifest = _manifest(path)
        assert manifest is not None
        return cls(path, manifest, open_arrays(path, list(blank), manifest), lock)

    def logits(self) -> np.ndarray:
        """Return the logits of the committed examples."""
        return self._arrays["logits"][: self.committed]

    @staticmethod
    def _prepare(
        path: Path,
        schema: Schema,
        blank: dict[str, np.ndarray],
        labels: np.ndarray | None,
        batch_size: int,
        on_existing: str,
    ) -> WriterLock:
        """Lock the directory, and create PEFs there unless existing ones can be resumed."""
        manifest = _manifest(path)
        strangers = [] if not path.is_dir() else [entry for entry in path.iterdir() if entry.name not in _names(blank)]
        if manifest is None and path.exists() and (not path.is_dir() or strangers):
            raise FileExistsError(f"{path} exists and holds no PEFs; choose another path: it has no manifest.json")
        if manifest is not None and "committed" not in manifest:
            raise FileExistsError(f"{path} holds no PEFs, but something else; choose another path")
        if manifest is not None and on_existing == "error":
            raise FileExistsError(f'{path} holds PEFs already; choose another path, or on_existing="resume"')
        if manifest is not None and on_existing == "resume":
            _check(path, manifest, schema, labels)
        if manifest is None:
            check_fits(sum(array.nbytes for array in blank.values()), path)
        path.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path)
        try:
            if manifest is not None and on_existing == "resume":
                remove_partial_writes(path)
            else:
                _create(path, schema, blank, labels, batch_size)
        except BaseException:
            lock.release()
            raise
        return lock

    def write(self, start: int, stop: int, found: dict[str, np.ndarray], end: int) -> None:
        """Start writing examples ``start`` to ``stop``, after waiting for the previous batch and committing it.

        ``end`` is the end of the batches that all processes write in this turn; a process may have no batch.

        Raises:
            OSError: the previous batch could not be written.
        """
        self._settle()
        self._last, self._end = self._writer.submit(self._write, start, stop, found, end), end

    def __enter__(self) -> "PefFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._settle()
                _processes.wait_for_all("PEFs are written")
        finally:
            self._writer.shutdown()
            if self._lock is not None:
                self._lock.release()

    def _settle(self) -> None:
        """Wait until the current batch is written by all processes, then commit it."""
        if self._last is None:
            return
        self._last.result()
        self._last = None
        if self.processes > 1:
            _processes.wait_for_all(f"PEFs to {self._end}")
            if self.process == 0:
                self._commit(self._end)

    def _write(self, start: int, stop: int, found: dict[str, np.ndarray], end: int) -> None:
        try:
            for write in [self._arrays[name].write(start, stop, rows) for name, rows in found.items()]:
                write.result()
            if self.processes == 1:
                self._commit(end)
        except (OSError, ValueError) as error:
            raise OSError(
                f"examples {start} to {stop} could not be written to {self._path} ({error}); the {self.committed} "
                "before them are intact. Make room, and call compute_pefs again to go on"
            ) from error

    def _commit(self, end: int) -> None:
        whole = end == len(self._arrays["norms"])
        norms = {"norms": NormSummary.of(self._arrays["norms"][:]).to_json()} if whole else {}
        write_manifest(self._path, self._manifest | {"committed": end} | norms)
        self.committed = end


def load_pefs(path: Any) -> Pefs:
    """Load PEFs that `compute_pefs` wrote to the directory ``path``. Their non-zeros stay on disk and are read lazily.

    Raises:
        ValueError: there are no PEFs at ``path``, they are unfinished, or have another version.
    """
    path = absolute_path(path)
    manifest = _manifest(path)
    if manifest is None or manifest.get("format") != "npeff-pefs":
        raise ValueError(f"{path} holds no PEFs (manifest.json); pass the path that compute_pefs was given")
    schema = _schema_of(path, manifest)
    if manifest["committed"] < schema.n_examples:
        raise ValueError(
            f"{path} holds {manifest['committed']} of {schema.n_examples} examples; run compute_pefs with this path "
            "again to finish them"
        )
    names = [name for name in Pefs.__dataclass_fields__ if name not in ("schema", "labels", "failed")]
    names += [name for name, there in (("scales", schema.dtype != "float32"), ("labels", manifest["labels"])) if there]
    if manifest["schema"]["version"] < 4:
        _LOG.warning("%s is of an older version, in which a missing file cannot be told from zeros", path)
    arrays: dict[str, Any] = dict(open_arrays(path, names, manifest))
    arrays = {name: array if name in WIDE else array[:] for name, array in arrays.items()}
    if "scales" in arrays:
        arrays["values"] = WidenedArray(arrays["values"], arrays.pop("scales"))
    return Pefs(schema, **arrays)


def _create(
    path: Path, schema: Schema, blank: dict[str, np.ndarray], labels: np.ndarray | None, batch_size: int
) -> None:
    """Replace any existing PEFs by empty arrays, then write their manifest."""
    (path / "manifest.json").unlink(missing_ok=True)
    for name in (*blank, "labels", "scales"):
        shutil.rmtree(path / name, ignore_errors=True)
    for name, array in blank.items():
        create_array(path / name, array.shape, array.dtype, batch_size)
    if labels is not None:
        create_array(path / "labels", labels.shape, labels.dtype, len(labels)).write(0, len(labels), labels).result()
    manifest = {"format": "npeff-pefs", "schema": schema.to_json(), "committed": 0, "batch_size": batch_size}
    manifest["labels"] = None if labels is None else tree_digest(labels)
    manifest["arrays"] = describe_arrays(path, [*blank, *(["labels"] if labels is not None else [])])
    write_manifest(path, manifest)


def _names(blank: dict[str, np.ndarray]) -> set[str]:
    """Return the names of files that a run killed at its start may have left."""
    return {*blank, "labels", "scales", ".lock", "manifest.json.part"}


def _check(path: Path, manifest: dict[str, Any], schema: Schema, labels: np.ndarray | None) -> None:
    there, remedy = _schema_of(path, manifest), 'choose another path, or on_existing="overwrite"'
    differ = [_NAMED.get(part, part) for part in differences(there.identity, schema.identity)]
    if differ:
        raise ValueError(f"{path} holds PEFs with another {', '.join(differ)}; {remedy}")
    if manifest["schema"]["version"] < SCHEMA_VERSION and manifest["committed"] < there.n_examples:
        raise ValueError(f"{path} was begun by an older version and is unfinished; {remedy}")
    found = open_array(path / "labels", manifest=manifest)[:] if manifest["labels"] else None
    if (found is None) != (labels is None) or (labels is not None and not np.array_equal(np.asarray(found), labels)):
        raise ValueError(f"{path} holds PEFs with another labels; {remedy}")


def _schema_of(path: Path, manifest: dict[str, Any]) -> Schema:
    """Return the schema in a manifest, converted to this version."""
    try:
        for key, low in (("committed", 0), ("batch_size", 1)):
            check_integer(key, manifest.get(key), low)
        return Schema.from_json(manifest["schema"])
    except (TypeError, ValueError) as error:
        raise DamageError(f"{path / 'manifest.json'} is damaged: {error}") from error


def _manifest(path: Path) -> dict[str, Any] | None:
    """Read the manifest of PEFs; raise if its version is not supported."""

    def oldest(manifest: dict[str, Any]) -> bool:
        if manifest.get("format") != "npeff-pefs":
            return "format" not in manifest
        _check_version(path, manifest)
        return manifest["schema"]["version"] < 4  # versions without a checksum

    return read_manifest(path, oldest)


def _check_version(path: Path, manifest: dict[str, Any]) -> None:
    fields = manifest.get("schema")
    version = fields.get("version") if isinstance(fields, dict) else None
    if version not in READABLE_VERSIONS:
        raise ValueError(
            f"{path} (manifest.json) was written with version {version} of the schema, this code reads up to version "
            f"{SCHEMA_VERSION}; "
            "update the package, or compute the PEFs again"
        )
