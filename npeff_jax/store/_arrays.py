"""Arrays on disk as zarr3 through TensorStore: preallocated, written by ranges of rows, read by row.

A missing chunk raises instead of reading as zeros; chunks of zeros are therefore stored.
"""

import hashlib
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npeff_jax.store._files import GENERATION, REMEDY, DamageError, Generation

_USED_IN: list[int] = []
"""The process that first used TensorStore, whose threads do not survive a fork."""

METADATA = "zarr.json"


class StoredArray:
    """An array on disk that is read by row, as NumPy."""

    def __init__(self, store: Any, path: Path, generation: Generation | None = None) -> None:
        """Wrap an open TensorStore of the array in the directory ``path``."""
        self._store, self._path, self._generation = store, path, generation

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._store.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._store.dtype.numpy_dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(slice(start, max(start, stop)))
            rows = np.arange(start, stop, step)
        if np.ndim(rows) == 0:
            row = operator.index(rows)
            self._check_range(row, row)
            return self._read(row % len(self))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} is not one of {len(self)} rows")
            return self._read(np.flatnonzero(rows))
        if rows.size == 0:
            return self._read(slice(0, 0))
        self._check_range(rows.min(), rows.max())
        return self._read(rows % len(self))

    def _check_range(self, low: Any, high: Any) -> None:
        if low < -len(self) or high >= len(self):
            raise IndexError(f"row {high if high >= len(self) else low} is out of range; there are {len(self)}")

    def _read(self, rows: Any) -> np.ndarray:
        _check_process(self._path)
        if self._generation is not None:
            self._generation.check()
        try:
            found = np.asarray(self._store[rows].read().result())
        except ValueError as error:
            if self._generation is not None:
                self._generation.check()
            raise DamageError(_damage(self._path, error)) from error
        if self._generation is not None:  # data replaced during a read are inconsistent
            self._generation.check()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __reduce__(self) -> Any:
        return _reopened, (self._path, self._generation)

    def write(self, start: int, stop: int, rows: np.ndarray) -> Any:
        """Start writing ``rows`` to positions ``start`` to ``stop``; return a future, done once they are on disk."""
        _check_process(self._path)
        return self._store[start:stop].write(rows)


class WidenedArray:
    """Rows stored in half precision, read as float32 and multiplied by a scale per row."""

    dtype = np.dtype(np.float32)

    def __init__(self, values: Any, scales: np.ndarray) -> None:
        """Wrap ``values`` (n, K) of a narrow floating-point type and ``scales`` (n,)."""
        self._values, self._scales = values, scales

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = np.asarray(self._values[rows]).astype(np.float32)
        return values * (self._scales[rows] if values.ndim == 1 else self._scales[rows][:, None])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def create_array(path: Path, shape: tuple[int, ...], dtype: Any, chunk_rows: int) -> StoredArray:
    """Create an array at ``path`` with chunks of ``chunk_rows`` rows.

    Writes should cover whole chunks, so that no chunk is read back. Reading a chunk before it is written raises.
    """
    import tensorstore

    _check_process(path)
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if np.issubdtype(dtype, np.integer):  # compression helps for indices, but hardly for floats
        codecs.append({"name": "zstd", "configuration": {"level": 1}})
    codecs.append({"name": "crc32c"})
    chunk = [max(1, min(chunk_rows, shape[0])), *(max(1, size) for size in shape[1:])]
    metadata = {
        "shape": list(shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": codecs,
    }
    spec = _spec(path, strict=True) | {"metadata": metadata}
    return StoredArray(tensorstore.open(spec, create=True, delete_existing=True).result(), path)


def open_array(path: Path, *, manifest: dict[str, Any] | None = None) -> StoredArray:
    """Open an array that exists on disk.

    Args:
        path: directory of the array.
        manifest: manifest of the directory that contains the array. With it, metadata are checked, and reading
            raises once that directory is overwritten. Under a manifest without a generation (an older format that did
            not store zeros), a missing chunk reads as zeros.

    Raises:
        OSError: If the array is missing or damaged; the message names the file.
    """
    import tensorstore

    _check_process(path)
    file = path / METADATA
    known = {} if manifest is None else manifest.get("arrays", {})
    if not isinstance(known, dict):
        raise DamageError(f"{path.parent / 'manifest.json'} is damaged: its arrays are {known!r}; {REMEDY}")
    try:
        found = _metadata_digest(path)
    except OSError as error:
        raise DamageError(f"{file} is missing or cannot be read ({error.strerror}); {REMEDY}") from error
    if known.get(path.name, found) != found:
        raise DamageError(f"{file} is damaged on disk (it is not as it was written); {REMEDY}")
    try:
        store = tensorstore.open(_spec(path, strict=manifest is None or GENERATION in manifest)).result()
    except ValueError as error:
        raise DamageError(_damage(path, error)) from error
    return StoredArray(store, path, None if manifest is None else Generation(path.parent, manifest))


def open_arrays(path: Path, names: Sequence[str], manifest: dict[str, Any]) -> dict[str, StoredArray]:
    """Open the named arrays of the directory ``path``, checked against ``manifest``."""
    return {name: open_array(path / name, manifest=manifest) for name in names}


def describe_arrays(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return a digest of each array's metadata, for the manifest entry ``"arrays"``."""
    return {name: _metadata_digest(path / name) for name in names}


def remove_partial_writes(path: Path) -> None:
    """Remove the lock files of unfinished chunk writes that a killed writer left."""
    for file in path.rglob("*.__lock"):
        file.unlink()


def _spec(path: Path, strict: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return spec | ({"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False} if strict else {})


def _metadata_digest(path: Path) -> str:
    return hashlib.blake2b((path / METADATA).read_bytes(), digest_size=16).hexdigest()


def _reopened(path: Path, generation: Generation | None) -> StoredArray:
    """Reopen an array after unpickling in another process."""
    array = open_array(path)
    array._generation = generation
    return array


def _check_process(path: Path) -> None:
    """Raise in a process forked after TensorStore was used, where reads and writes would block for ever."""
    _USED_IN[:] = _USED_IN or [os.getpid()]
    if _USED_IN[0] != os.getpid():
        raise RuntimeError(
            f"{path} is read or written in a forked process, where TensorStore has no threads; start workers with "
            'multiprocessing.get_context("spawn")'
        )


def _damage(path: Path, error: Exception) -> str:
    """Return a sentence that names the damaged file, from a TensorStore error."""
    text = str(error).split(" [")[0].strip()
    return f"{path} is damaged on disk: {text[:300]}; {REMEDY}"
