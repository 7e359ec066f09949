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
                return np.asarray(self._store[start : max(start, stop)].read().result())
            rows = np.arange(start, stop, step)
        if np.ndim(rows) == 0:
            row = operator.index(rows)
            if not -len(self) <= row < len(self):
                raise IndexError(f"row {row} is out of range; there are {len(self)}")
            return np.asarray(self._store[row % len(self)].read().result())
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows % max(len(self), 1)
        return np.asarray(self._store[rows].read().result())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def write(self, start: int, stop: int, rows: np.ndarray) -> None:
        """Write rows ``start`` to ``stop``; returns when they are on disk."""
        self._store[start:stop].write(rows).result()


def create_array(path: Path, shape: tuple[int, ...], dtype: Any, chunk_rows: int) -> StoredArray:
    """A new array of zeros at ``path``, in chunks of ``chunk_rows`` rows: shaped like the writes, so that none is read
    back.
    """
    import tensorstore

    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if np.issubdtype(dtype, np.integer):  # compression helps indices, hardly floats
        codecs.append({"name": "zstd", "configuration": {"level": 1}})
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
