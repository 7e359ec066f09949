"""What the file-type network sees of a file: a window at either end. Read, compared, and shown."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from npeff_jax.tasks._file_network import PADDING, WINDOW

_BLOCK = 4096
"""Bytes read at either end, of which white space is stripped before the window is taken."""

_SHINGLE = 8
"""Bytes of a shingle: two files are compared by the sets of their shingles."""

HASHES = 64
"""Least hash values per file. A Jaccard index of 0.6 is then estimated with a standard error of 0.06."""

_LINES, _COLUMNS = 6, 100
"""Lines shown of either end of a file, and characters of a line."""


class FileWindows:
    """Files as the network takes them, read when they are sliced."""

    def __init__(self, files: Sequence[pathlib.Path]) -> None:
        self._files = np.empty(len(files), object)
        self._files[:] = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: Any) -> Int[np.ndarray, "rows 2048"]:
        """The windows of a slice or an integer array of files."""
        return np.stack([read_window(file) for file in self._files[rows]])


def read_window(file: str | os.PathLike[str]) -> Int[np.ndarray, "2048"]:
    """The first 1,024 bytes of a file and the last 1,024 as integers, as the package magika reads them.

    Of the first 4,096 bytes the white space before is stripped, of the last 4,096 the white space after; a shorter file
    is padded by 256, after its first bytes and before its last.
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
    """The least value of each hash function over the shingles of a window: two files' agree in the fraction that is the
    Jaccard index of their sets of shingles, in expectation.
    """
    random = np.random.default_rng(0)
    flip = random.integers(0, 2**64, HASHES, np.uint64)
    odd = random.integers(0, 2**64, HASHES, np.uint64) | np.uint64(1)
    parts = [np.frombuffer(part, np.uint8) for part in ends(window) if len(part) >= _SHINGLE]
    views = [np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(part, _SHINGLE)) for part in parts]
    shingles = np.unique(np.concatenate([view.view("<u8")[:, 0] for view in views]))
    for constant in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # the finalizer of SplitMix64: nearby shingles part
        shingles = (shingles ^ (shingles >> np.uint64(30))) * np.uint64(constant)
    mixed = shingles ^ (shingles >> np.uint64(31))
    return np.min((mixed ^ flip[:, None]) * odd[:, None], axis=1)


def ends(window: Int[np.ndarray, "2048"]) -> tuple[bytes, bytes]:
    """The bytes at the start of a file and those at its end."""
    first, last = (part[part != PADDING].astype(np.uint8).tobytes() for part in (window[:WINDOW], window[WINDOW:]))
    return first, last


def shown(window: Int[np.ndarray, "2048"]) -> tuple[str, str]:
    """The first lines and the last lines as printable text, long ones cut."""
    first, last = (printable(part).split("\n") for part in ends(window))
    return (
        "\n".join(line[:_COLUMNS] for line in first[:_LINES]),
        "\n".join(line[-_COLUMNS:] for line in last[-_LINES:]),
    )


def printable(content: bytes) -> str:
    """Bytes as text of printable characters, spaces and line breaks: a middle dot for anything else.

    Control characters, invalid UTF-8, and marks that turn the direction of writing are such.
    """
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").expandtabs(4)
    return "".join(c if c == "\n" or (c.isprintable() and c != "\ufffd") else "·" for c in text)
