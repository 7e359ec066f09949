"""PEFs on disk: written batch by batch while the next is computed, resumed where the manifest says, read lazily.

Arrays are preallocated to n examples and a batch is one chunk of each. A batch counts once a manifest that says so has
been renamed into place, after its chunks are synced: whatever is killed when, what is committed is whole.
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
"""What stays on disk when PEFs are loaded: these have K columns."""


class PefFiles:
    """PEFs that are being written. A context: leaving it waits for the last batch and lets go of the directory."""

    def __init__(
        self, path: Path, manifest: dict[str, Any], arrays: dict[str, StoredArray], lock: WriterLock | None
    ) -> None:
        """With open arrays, the manifest that describes them, and, in the first process, the lock."""
        self._path, self._manifest, self._arrays, self._lock = path, manifest, arrays, lock
        self.committed: int = manifest["committed"]
        self.process, self.processes = _processes.index(), _processes.count()
        self._writer = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._end = self.committed

    @property
    def batch_size(self) -> int:
        """Of the run that began it: a resumed one computes the same batches, and so the same bits."""
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
        """Begin PEFs at ``path``, or go on with those that are there.

        Args:
            path: a directory, made if it is not there.
            schema: of the PEFs.
            blank: an array for each field, for its shape and type.
            labels: of the data set.
            batch_size: examples written at a time.
            on_existing: "resume", "error" or "overwrite".

        Raises:
            FileExistsError: there is something, and it is not to be touched, or another run is writing there.
            ValueError: what is there are PEFs of something else.
        """
        lock = cls._prepare(path, schema, blank, labels, batch_size, on_existing) if _processes.index() == 0 else None
        _processes.wait_for_all("PEFs are there")
        manifest = _manifest(path)
        assert manifest is not None
        return cls(path, manifest, open_arrays(path, list(blank), manifest), lock)

    def logits(self) -> np.ndarray:
        """Those of the committed examples."""
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
        """See that PEFs to go on with are there."""
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
        """Begin to write examples ``start`` to ``stop``; waits for those before, and commits these.

        ``end`` is where the batches end that all processes write in this turn: one that has none writes none.

        Raises:
            OSError: those before could not be written.
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
        """Wait for what was begun to be written, here and, before it is committed, by all processes."""
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
    """PEFs that `compute_pefs` wrote to the directory ``path``. Their non-zeros stay on disk and are read as used.

    Raises:
        ValueError: there are none, they are unfinished, or of another version.
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
    """Empty arrays, in place of whatever PEFs were there, and then the manifest that makes them PEFs."""
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
    """What a run that was killed while it began may have left."""
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
    """The schema in a manifest, as of this version."""
    try:
        for key, low in (("committed", 0), ("batch_size", 1)):
            check_integer(key, manifest.get(key), low)
        return Schema.from_json(manifest["schema"])
    except (TypeError, ValueError) as error:
        raise DamageError(f"{path / 'manifest.json'} is damaged: {error}") from error


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of PEFs, of a version that this code reads."""

    def oldest(manifest: dict[str, Any]) -> bool:
        if manifest.get("format") != "npeff-pefs":
            return "format" not in manifest
        _check_version(path, manifest)
        return manifest["schema"]["version"] < 4  # before there was a checksum

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
