"""PEFs on disk: written batch by batch while the next is computed, resumed where the manifest says, read lazily.

Arrays are preallocated to n examples and a batch is one chunk of each. A batch counts once a manifest that says so has
been renamed into place, after its chunks are synced: whatever is killed when, what is committed is whole.
"""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from npeff_jax.pefs._memory import check_fits
from npeff_jax.pefs._norms import NormSummary
from npeff_jax.pefs._pefs import Pefs
from npeff_jax.pefs._schema import READABLE_VERSIONS, SCHEMA_VERSION, Schema
from npeff_jax.pefs.store import (
    StoredArray,
    WidenedArray,
    WriterLock,
    create_array,
    open_array,
    read_manifest,
    remove_partial_writes,
    write_manifest,
)

WIDE = ("values", "indices", "rows")
"""What stays on disk when PEFs are loaded: these have K columns."""


class PefFiles:
    """PEFs that are being written. A context: leaving it waits for the last batch and lets go of the directory."""

    def __init__(self, path: Path, manifest: dict[str, Any], arrays: dict[str, StoredArray], lock: WriterLock) -> None:
        """With open arrays and the manifest that describes them."""
        self._path, self._manifest, self._arrays, self._lock = path, manifest, arrays, lock
        self.committed: int = manifest["committed"]
        self._writer = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

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
        manifest = read_manifest(path)
        strangers = [] if not path.is_dir() else [entry for entry in path.iterdir() if entry.name not in _names(blank)]
        if manifest is None and path.exists() and (not path.is_dir() or strangers):
            raise FileExistsError(f"{path} exists and holds no PEFs; choose another path")
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
                return cls(path, manifest, {name: open_array(path / name) for name in blank}, lock)
            return cls(path, *_create(path, schema, blank, labels, batch_size), lock)
        except BaseException:
            lock.release()
            raise

    def write(self, start: int, stop: int, found: dict[str, np.ndarray]) -> None:
        """Begin to write and commit examples ``start`` to ``stop``; waits for those before.

        Raises:
            OSError: those before could not be written.
        """
        self._wait()
        self._last = self._writer.submit(self._write, start, stop, found)

    def __enter__(self) -> "PefFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._writer.shutdown()
            self._lock.release()

    def _summary(self) -> dict[str, Any]:
        return {"norms": NormSummary.of(self._arrays["norms"][:]).to_json()}

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def _write(self, start: int, stop: int, found: dict[str, np.ndarray]) -> None:
        try:
            for write in [self._arrays[name].write(start, stop, rows) for name, rows in found.items()]:
                write.result()
            done = {} if stop < len(self._arrays["norms"]) else self._summary()
            write_manifest(self._path, self._manifest | {"committed": stop} | done)
        except (OSError, ValueError) as error:
            raise OSError(
                f"examples {start} to {stop} could not be written to {self._path} ({error}); the {self.committed} "
                "before them are intact. Make room, and call compute_pefs again to go on"
            ) from error
        self.committed = stop


def load_pefs(path: Any) -> Pefs:
    """PEFs that `compute_pefs` wrote to the directory ``path``. Their non-zeros stay on disk and are read as used.

    Raises:
        ValueError: there are none, they are unfinished, or of another version.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is None or manifest.get("format") != "npeff-pefs":
        raise ValueError(f"{path} holds no PEFs; pass the path that compute_pefs was given")
    _check_version(path, manifest)
    schema = Schema.from_json(manifest["schema"])
    if manifest["committed"] < schema.n_examples:
        raise ValueError(
            f"{path} holds {manifest['committed']} of {schema.n_examples} examples; run compute_pefs with this path "
            "again to finish them"
        )
    names = [name for name in Pefs.__dataclass_fields__ if name not in ("schema", "labels", "failed")]
    arrays: dict[str, Any] = {name: open_array(path / name) for name in names}
    arrays = {name: array if name in WIDE else array[:] for name, array in arrays.items()}
    if schema.dtype != "float32":
        arrays["values"] = WidenedArray(arrays["values"], open_array(path / "scales")[:])
    return Pefs(schema, **arrays, labels=open_array(path / "labels")[:] if manifest["labels"] else None)


def _create(
    path: Path, schema: Schema, blank: dict[str, np.ndarray], labels: np.ndarray | None, batch_size: int
) -> tuple[dict[str, Any], dict[str, StoredArray]]:
    """Empty arrays, in place of whatever PEFs were there, and then the manifest that makes them PEFs."""
    (path / "manifest.json").unlink(missing_ok=True)
    for name in (*blank, "labels", "scales"):
        shutil.rmtree(path / name, ignore_errors=True)
    arrays = {name: create_array(path / name, a.shape, a.dtype, batch_size) for name, a in blank.items()}
    if labels is not None:
        create_array(path / "labels", labels.shape, labels.dtype, len(labels)).write(0, len(labels), labels).result()
    manifest = {"format": "npeff-pefs", "schema": schema.to_json(), "committed": 0, "batch_size": batch_size}
    manifest["labels"] = labels is not None
    write_manifest(path, manifest)
    return manifest, arrays


def _names(blank: dict[str, np.ndarray]) -> set[str]:
    """What a run that was killed while it began may have left."""
    return {*blank, "labels", "scales", ".lock", "manifest.json.part"}


def _check(path: Path, manifest: dict[str, Any], schema: Schema, labels: np.ndarray | None) -> None:
    _check_version(path, manifest)
    differ = Schema.from_json(manifest["schema"]).differences(schema)
    if manifest["labels"] != (labels is not None) or (
        labels is not None and not np.array_equal(open_array(path / "labels")[:], labels)
    ):
        differ.append("labels")
    if differ:
        raise ValueError(
            f'{path} holds PEFs with another {", ".join(differ)}; choose another path, or on_existing="overwrite"'
        )


def _check_version(path: Path, manifest: dict[str, Any]) -> None:
    version = manifest.get("schema", {}).get("version")
    if version not in READABLE_VERSIONS:
        raise ValueError(
            f"{path} was written with version {version} of the schema, this code reads up to version {SCHEMA_VERSION}; "
            "update the package, or compute the PEFs again"
        )
