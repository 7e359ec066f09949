"""Arrays as zarr3 through TensorStore, preallocated, written in stretches of rows, read by row."""

import operator
from pathlib import Path
from typing import Any

import numpy as np


class StoredArray:
    """An array on disk that is read by row, as NumPy."""

    def __init__(self, store: Any) -> None:
        """Wrap an open TensorStore."""
        self._store = store

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
            if not -len(self) <= row < len(self):
                raise IndexError(f"row {row} is out of range; there are {len(self)}")
            return self._read(row % len(self))
        rows = np.asarray(rows)
        return self._read(np.flatnonzero(rows) if rows.dtype == bool else rows % max(len(self), 1))

    def _read(self, rows: Any) -> np.ndarray:
        try:
            return np.asarray(self._store[rows].read().result())
        except ValueError as error:
            raise ValueError(
                f"{self._store.kvstore.path} is damaged on disk ({_first_sentence(error)}); copy it again from where "
                "it came, or compute it anew"
            ) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def write(self, start: int, stop: int, rows: np.ndarray) -> Any:
        """Begin to write rows ``start`` to ``stop``: a future, done when they are on disk and synced."""
        return self._store[start:stop].write(rows)


class WidenedArray:
    """Rows kept in half precision, read as float32, each multiplied by its scale."""

    dtype = np.dtype(np.float32)

    def __init__(self, values: Any, scales: np.ndarray) -> None:
        """``values`` (n, K) in a narrow type and ``scales`` (n,)."""
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
    """A new array of zeros at ``path``, in chunks of ``chunk_rows`` rows: shaped like the writes, so that none is read
    back.
    """
    import tensorstore

    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if np.issubdtype(dtype, np.integer):  # compression helps indices, hardly floats
        codecs.append({"name": "zstd", "configuration": {"level": 1}})
    codecs.append({"name": "crc32c"})
    chunk = [max(1, min(chunk_rows, shape[0])), *(max(1, size) for size in shape[1:])]
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "shape": list(shape),
            "data_type": np.dtype(dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": codecs,
        },
    }
    return StoredArray(tensorstore.open(spec, create=True, delete_existing=True).result())


def open_array(path: Path) -> StoredArray:
    """An array that is there."""
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return StoredArray(tensorstore.open(spec).result())


def remove_partial_writes(path: Path) -> None:
    """Remove what a killed writer left of chunks that it had not finished."""
    for file in path.rglob("*.__lock"):
        file.unlink()


def _first_sentence(error: Exception) -> str:
    return str(error).split("[")[0].split(": Error")[0].strip()[:200]
