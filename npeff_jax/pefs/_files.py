"""PEFs on disk: written batch by batch, resumed where their manifest says, read lazily."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from npeff_jax.pefs._pefs import Pefs
from npeff_jax.pefs._schema import SCHEMA_VERSION, Schema
from npeff_jax.pefs.store import StoredArray, create_array, open_array, read_manifest, write_manifest

WIDE = ("values", "indices", "rows")
"""What stays on disk when PEFs are loaded: these have K columns."""


class PefFiles:
    """PEFs that are being written."""

    def __init__(self, path: Path, manifest: dict[str, Any], arrays: dict[str, StoredArray]) -> None:
        """With open arrays and the manifest that describes them."""
        self._path, self._manifest, self._arrays = path, manifest, arrays

    @property
    def committed(self) -> int:
        """Examples that are written for good."""
        return self._manifest["committed"]

    @property
    def batch_size(self) -> int:
        """Of the run that began it: a resumed one computes the same batches, and so the same bits."""
        return self._manifest["batch_size"]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        schema: Schema,
        blank: dict[str, Any],
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
            FileExistsError: there is something, and it is not to be touched.
            ValueError: what is there are PEFs of something else.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"{path} exists and holds no PEFs; choose another path")
        if manifest is not None and on_existing == "error":
            raise FileExistsError(f'{path} holds PEFs already; choose another path, or on_existing="resume"')
        if manifest is not None and on_existing == "overwrite":
            shutil.rmtree(path)
            manifest = None
        if manifest is not None:
            _check(path, manifest, schema)
            return cls(path, manifest, {name: open_array(path / name) for name in blank})
        path.mkdir(parents=True, exist_ok=True)
        arrays = {name: create_array(path / name, a.shape, a.dtype, batch_size) for name, a in blank.items()}
        if labels is not None:
            create_array(path / "labels", labels.shape, labels.dtype, len(labels)).write(0, len(labels), labels)
        manifest = {"format": "npeff-pefs", "schema": schema.to_json(), "committed": 0, "batch_size": batch_size}
        manifest["labels"] = labels is not None
        write_manifest(path, manifest)
        return cls(path, manifest, arrays)

    def write(self, start: int, stop: int, found: dict[str, np.ndarray]) -> None:
        """Write examples ``start`` to ``stop`` and commit them."""
        for name, rows in found.items():
            self._arrays[name].write(start, stop, rows)
        self._manifest["committed"] = stop
        write_manifest(self._path, self._manifest)


def load_pefs(path: str | os.PathLike[str]) -> Pefs:
    """PEFs that `compute_pefs` wrote to ``path``. Their non-zeros stay on disk and are read as they are used.

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
    names = [name for name in Pefs.__dataclass_fields__ if name not in ("schema", "labels")]
    arrays: dict[str, Any] = {name: open_array(path / name) for name in names}
    arrays = {name: array if name in WIDE else array[:] for name, array in arrays.items()}
    return Pefs(schema, **arrays, labels=open_array(path / "labels")[:] if manifest["labels"] else None)


def _check(path: Path, manifest: dict[str, Any], schema: Schema) -> None:
    _check_version(path, manifest)
    differ = Schema.from_json(manifest["schema"]).differences(schema)
    if differ:
        raise ValueError(
            f'{path} holds PEFs with another {", ".join(differ)}; choose another path, or on_existing="overwrite"'
        )


def _check_version(path: Path, manifest: dict[str, Any]) -> None:
    version = manifest.get("schema", {}).get("version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written with version {version} of the schema, this code reads version {SCHEMA_VERSION}; "
            "compute the PEFs again"
        )
