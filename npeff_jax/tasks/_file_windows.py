"""The input of the file-type network, a window at either end of a file: reading, comparison, display."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from npeff_jax.tasks._file_network import PADDING, WINDOW

_BLOCK = 4096
"""Bytes read at either end; white space is stripped from them before taking the window."""

_SHINGLE = 8
"""Bytes per shingle; two files are compared by their sets of shingles."""

HASHES = 64
"""Number of minimum hash values per file. A Jaccard index of 0.6 is then estimated with a standard error of 0.06."""

_LINES, _COLUMNS = 6, 100
"""Lines shown of either end of a file, and characters per line."""


class FileWindows:
    """Windows of files as a sized source of examples; files are read when it is sliced."""

    def __init__(self, files: Sequence[pathlib.Path]) -> None:
        self._files = np.empty(len(files), object)
        self._files[:] = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: Any) -> Int[np.ndarray, "rows 2048"]:
        """Return the windows of the files in a slice or integer array."""
        return np.stack([read_window(file) for file in self._files[rows]])


def read_window(file: str | os.PathLike[str]) -> Int[np.ndarray, "2048"]:
    """Read the first and last 1,024 bytes of a file as integers, in the same way as the package magika.

    Leading white space is stripped from the first 4,096 bytes, and trailing white space from the last 4,096. A shorter
    file is padded with 256, after its first and before its last bytes.
    """
    with open(file, "rb") as stream:
        first = stream.read(_BLOCK)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - _BLOCK, 0))
        last = stream.read(_BLOCK)
    window = np.full(2 * WINDOW, PADDING, np.int32)
    first, last = first.lstrip()[:WINDOW], last.rstrip()[-WINDOW:]
    window[: len(first)] = np.frombuffer(first, np.uint8)
    window[2 * WINDOW - len(last) :] = np.frombuffer(last, np.uint8)
    return window


def sketch(window: Int[np.ndarray, "2048"]) -> UInt[np.ndarray, "hashes"]:
    """Return the minimum of each hash function over the shingles of a window (MinHash).

    The expected fraction of equal values of two files is the Jaccard index of their sets of shingles.
    """
    random = np.random.default_rng(0)
    flip = random.integers(0, 2**64, HASHES, np.uint64)
    odd = random.integers(0, 2**64, HASHES, np.uint64) | np.uint64(1)
    parts = [np.frombuffer(part, np.uint8) for part in ends(window) if len(part) >= _SHINGLE]
    views = [np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(part, _SHINGLE)) for part in parts]
    shingles = np.unique(np.concatenate([view.view("<u8")[:, 0] for view in views]))
    for constant in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # SplitMix64 finalizer, separates similar shingles
        shingles = (shingles ^ (shingles >> np.uint64(30))) * np.uint64(constant)
    mixed = shingles ^ (shingles >> np.uint64(31))
    return np.min((mixed ^ flip[:, None]) * odd[:, None], axis=1)


def ends(window: Int[np.ndarray, "2048"]) -> tuple[bytes, bytes]:
    """Return the bytes at the start and at the end of a file."""
    first, last = (part[part != PADDING].astype(np.uint8).tobytes() for part in (window[:WINDOW], window[WINDOW:]))
    return first, last


def shown(window: Int[np.ndarray, "2048"]) -> tuple[str, str]:
    """Return the first and the last lines as printable text, with long lines truncated."""
    first, last = (printable(part).split("\n") for part in ends(window))
    return (
        "\n".join(line[:_COLUMNS] for line in first[:_LINES]),
        "\n".join(line[-_COLUMNS:] for line in last[-_LINES:]),
    )


def printable(content: bytes) -> str:
    """Decode bytes as printable text; other characters than spaces and line breaks are replaced by a middle dot.

    Replaced are control characters, invalid UTF-8, and marks that change the direction of writing.
    """
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").expandtabs(4)
    return "".join(c if c == "\n" or (c.isprintable() and c != "\ufffd") else "·" for c in text)
