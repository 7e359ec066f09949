"""Files of many types as examples: found, labelled by their names, near-duplicates left out, read when needed."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from npeff_jax.models import Model
from npeff_jax.tasks._dataset import Dataset
from npeff_jax.tasks._file_network import PADDING, WINDOW, file_type_network, package_directory

_BLOCK = 4096
"""Bytes read at either end, of which white space is stripped before the window is taken."""

_LEAST = 64
"""Files with fewer bytes after stripping are left out. The package gives the network 8 and more, but so few bytes say
little of a type, and the network's first normalisation, over positions that are nearly all padding, loses digits."""

_SKIPPED_FOLDERS = frozenset({"__pycache__", ".git", ".hg", ".svn"})
"""What programs keep for themselves. Compiled bytecode comes and goes as Python runs: the list would not stay."""

_SEVERAL_FORMATS = frozenset(("cl", "gpg", "h", "l", "obj", "p", "pro", "pt", "pth", "pub"))
"""Extensions that have no label: C and C++ share ``.h``, and the package gives the others to one type although they are
as often something else (OpenCL, lex, Wavefront, Qt's projects, Python's path files)."""

_MORE_EXTENSIONS = {
    **dict.fromkeys(("hpp", "hh", "hxx"), "cpp"),
    **dict.fromkeys(("f", "for", "f77", "f08"), "fortran"),
    **dict.fromkeys(("bash", "zsh"), "shell"),
    **{"jsx": "javascript", "tsx": "typescript", "ex": "elixir", "so": "elf", "cfg": "ini", "pm": "perl"},
    **{"mk": "makefile", "bazel": "bazel"},
}
"""Extensions of one format that the package does not list."""

_NAMES = {
    **dict.fromkeys(("makefile", "gnumakefile"), "makefile"),
    **dict.fromkeys((".gitignore", ".dockerignore", ".npmignore"), "ignorefile"),
    **{"cmakelists.txt": "cmake", "dockerfile": "dockerfile", "gemfile": "gemfile", ".htaccess": "htaccess"},
    **{".gitattributes": "gitattributes", ".gitmodules": "gitmodules"},
}
"""Whole names that tell the type, in lower case."""

_SHINGLE = 8
"""Bytes of a shingle: two files are compared by the sets of their shingles."""

_HASHES = 64
"""Least hash values per file. A Jaccard index of 0.6 is then estimated with a standard error of 0.06."""

NEAR_DUPLICATE = 0.6
"""Files whose windows have a Jaccard index of at least this are near-duplicates: the same text with another date or
version. Two files that share only a licence of 1,024 bytes at their start have one third."""

_LINES, _COLUMNS = 6, 100
"""Lines shown of either end of a file, and characters of a line."""


@dataclasses.dataclass(frozen=True, eq=False)
class FileTypes:
    """A network that tells file types, and the files it is explained on.

    Attributes:
        model: logits of 214 types for one window, (2048,) integers.
        decomposed: the files to decompose. ``display`` has three texts per file: its path and the type that its name
            stands for, its first lines, its last lines.
        heldout: the other files, in the same form.
        paths: of the decomposed files, then of the held-out ones, relative to the folder they were found in.
        digest: of paths, labels and windows; the same wherever the same files are found.
        left_out: how many files were left out, by reason.
    """

    model: Model
    decomposed: Dataset
    heldout: Dataset
    paths: tuple[str, ...]
    digest: str
    left_out: dict[str, int]

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """The type that each name stands for, in the order of ``paths``."""
        return np.concatenate([np.asarray(self.decomposed.labels), np.asarray(self.heldout.labels)])

    def __str__(self) -> str:
        return (
            f"files: {len(self.decomposed)} to decompose, {len(self.heldout)} held out, of {len(set(self.labels))} types; "
            f"digest {self.digest}\nleft out: {_told(self.left_out)}"
        )


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


def file_types(
    folder: str | os.PathLike[str] | None = None, *, n_files: int = 1500, heldout_share: float = 1 / 3
) -> FileTypes:
    """Find files of many types, evenly over the types as far as there are any, and the network that tells the types.

    Within a type files are taken in the order of a digest of their paths, so that no package comes first, and one of
    each type after the other until there are enough. The label of a file is the type that its name stands for; a file
    whose name tells none, or one of several, is left out. Files are read, never run or unpacked; links are not
    followed.

    Args:
        folder: to look in, with all folders below it; by default the standard library and the installed packages of
            this Python, and Debian's documentation if it is there.
        n_files: at most so many, held-out ones included.
        heldout_share: the fraction of each type that is held out, rounded down.

    Raises:
        FileNotFoundError: there is no such folder, or the package magika is not installed.
        ValueError: an argument is out of range, or there are too few files for both sets.
    """
    if n_files < 2 or not 0 < heldout_share < 1:
        raise ValueError(
            f"n_files={n_files}, heldout_share={heldout_share}: expected at least two files and a fraction between 0 "
            "and 1, so that some are decomposed and some held out"
        )
    model = file_type_network()
    names = model.label_names or ()
    left_out: collections.Counter[str] = collections.Counter()
    found = _choose(_by_label(_roots(folder), labels_by_extension(names), left_out), n_files, left_out)
    parts = _split(found, heldout_share)
    if not parts[0] or not parts[1]:
        where = "this Python's folders" if folder is None else str(folder)
        raise ValueError(
            f"{where} has {len(found)} usable files (left out: {_told(left_out)}), too few to hold out a fraction of "
            f"{heldout_share:.3g}; name a folder with more files"
        )
    decomposed, heldout = (_dataset(part, names) for part in parts)
    return FileTypes(
        model,
        decomposed,
        heldout,
        tuple(file.name for part in parts for file in part),
        _digest([file for part in parts for file in part]),
        dict(left_out.most_common()),
    )


def labels_by_extension(label_names: Sequence[str]) -> dict[str, str]:
    """The type that each extension stands for, in lower case without its dot; those of several types are left out.

    Args:
        label_names: the types there are.
    """
    text = (package_directory() / "config" / "content_types_kb.min.json").read_text(encoding="utf-8")
    claimed: dict[str, set[str]] = {}
    for label, facts in json.loads(text).items():
        if label in label_names:
            for extension in facts["extensions"]:
                claimed.setdefault(extension.lower(), set()).add(label)
    found = {extension: min(labels) for extension, labels in claimed.items() if len(labels) == 1}
    return {e: label for e, label in (found | _MORE_EXTENSIONS).items() if e not in _SEVERAL_FORMATS}


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    name: str
    path: pathlib.Path
    label: str
    window: Int[np.ndarray, "2048"]


def _roots(folder: str | os.PathLike[str] | None) -> list[tuple[str, pathlib.Path]]:
    """Folders to look in, and what the paths in each begin with."""
    if folder is not None:
        if not pathlib.Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        return [("", pathlib.Path(folder))]
    places = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")] + ["/usr/share/doc"]
    roots = {os.path.realpath(place): pathlib.Path(place) for place in places if os.path.isdir(place)}
    return [(f"{root.name}/", root) for root in roots.values()]


def _by_label(
    roots: list[tuple[str, pathlib.Path]], labels: dict[str, str], left_out: collections.Counter[str]
) -> dict[str, list[tuple[str, pathlib.Path]]]:
    """Name and path of all files whose names tell a type, by label, in the order of a digest of the names."""
    found: dict[str, list[tuple[str, pathlib.Path]]] = {}
    visited = {os.path.realpath(root) for _, root in roots}
    for prefix, root in roots:
        for path in _files_below(root, visited, left_out):
            label = _NAMES.get(path.name.lower()) or labels.get(path.suffix.lower()[1:])
            if label is None:
                several = path.suffix.lower()[1:] in _SEVERAL_FORMATS
                left_out[
                    "with a name that stands for several types" if several else "with a name that stands for no type"
                ] += 1
            else:
                found.setdefault(label, []).append((prefix + path.relative_to(root).as_posix(), path))
    for files in found.values():
        files.sort(key=lambda file: (hashlib.blake2b(os.fsencode(file[0]), digest_size=8).digest(), file[0]))
    return found


def _files_below(folder: pathlib.Path, visited: set[str], left_out: collections.Counter[str]) -> Iterator[pathlib.Path]:
    """Regular files in a folder and below it; not in ``visited``, which are other roots."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        left_out["folders that cannot be read"] += 1
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_FOLDERS and os.path.realpath(entry.path) not in visited:
                yield from _files_below(pathlib.Path(entry.path), visited, left_out)
        elif entry.is_file(follow_symlinks=False):
            yield pathlib.Path(entry.path)
        else:
            left_out["links or devices"] += 1


def _choose(
    by_label: dict[str, list[tuple[str, pathlib.Path]]], n_files: int, left_out: collections.Counter[str]
) -> list[_File]:
    """One file of each label after the other, without near-duplicates, until there are enough."""
    chosen: list[_File] = []
    sketches = np.empty((n_files, _HASHES), np.uint64)
    queues = {label: iter(by_label[label]) for label in sorted(by_label)}
    while queues and len(chosen) < n_files:
        for label in list(queues):
            file = next(_usable(label, queues[label], sketches, chosen, left_out), None)
            if file is None:
                del queues[label]
            elif len(chosen) < n_files:
                sketches[len(chosen)] = _sketch(file.window)
                chosen.append(file)
    left_out["more than needed"] += sum(1 for queue in queues.values() for _ in queue)
    return chosen


def _usable(
    label: str,
    files: Iterator[tuple[str, pathlib.Path]],
    sketches: UInt[np.ndarray, "n hashes"],
    chosen: list[_File],
    left_out: collections.Counter[str],
) -> Iterator[_File]:
    """The files that can be read, are long enough, and are not nearly one of those chosen."""
    for name, path in files:
        try:
            window = read_window(path)
        except OSError:
            left_out["that cannot be read"] += 1
            continue
        if window[_LEAST - 1] == PADDING:
            left_out[f"of fewer than {_LEAST} bytes"] += 1
        elif np.any(np.mean(sketches[: len(chosen)] == _sketch(window), axis=1) >= NEAR_DUPLICATE):
            left_out["nearly the same as another"] += 1
        else:
            yield _File(name, path, label, window)


def _sketch(window: Int[np.ndarray, "2048"]) -> UInt[np.ndarray, "hashes"]:
    """The least value of each hash function over the shingles of a window: two files' agree in the fraction that is the
    Jaccard index of their sets of shingles, in expectation.
    """
    random = np.random.default_rng(0)
    flip = random.integers(0, 2**64, _HASHES, np.uint64)
    odd = random.integers(0, 2**64, _HASHES, np.uint64) | np.uint64(1)
    parts = [part[part != PADDING].astype(np.uint8) for part in (window[:WINDOW], window[WINDOW:])]
    parts = [part for part in parts if len(part) >= _SHINGLE]
    views = [np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(part, _SHINGLE)) for part in parts]
    shingles = np.unique(np.concatenate([view.view("<u8")[:, 0] for view in views]))
    for constant in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # the finalizer of SplitMix64: nearby shingles part
        shingles = (shingles ^ (shingles >> np.uint64(30))) * np.uint64(constant)
    mixed = shingles ^ (shingles >> np.uint64(31))
    return np.min((mixed ^ flip[:, None]) * odd[:, None], axis=1)


def _split(files: list[_File], share: float) -> tuple[list[_File], list[_File]]:
    """Files to decompose and files held out: of each type the first is decomposed, and of the others every so-manieth
    is held out, beginning elsewhere in each type so that the share is right where a type has few.
    """
    seen: dict[str, float] = {}
    parts: tuple[list[_File], list[_File]] = ([], [])
    for file in files:
        start = (len(seen) * 0.6180339887) % 1 * (1 - share)  # multiples of the golden ratio spread evenly
        at = seen.setdefault(file.label, start)
        seen[file.label] = at + share
        parts[int(at + share) > int(at)].append(file)
    return parts


def _dataset(files: list[_File], label_names: Sequence[str]) -> Dataset:
    number = {name: i for i, name in enumerate(label_names)}
    labels = np.array([number[file.label] for file in files], np.int32)
    display = [_shown(file) for file in files]
    return Dataset(FileWindows([file.path for file in files]), labels, display, tuple(label_names))


def _shown(file: _File) -> tuple[str, str, str]:
    """Path and type, first lines, last lines."""
    first, last = (
        part[part != PADDING].astype(np.uint8).tobytes() for part in (file.window[:WINDOW], file.window[WINDOW:])
    )
    lines, end = printable(first).split("\n"), printable(last).split("\n")
    return (
        f"{printable(os.fsencode(file.name))} ({file.label} by its name)",
        "\n".join(line[:_COLUMNS] for line in lines[:_LINES]),
        "\n".join(line[-_COLUMNS:] for line in end[-_LINES:]),
    )


def printable(content: bytes) -> str:
    """Bytes as text of printable characters, spaces and line breaks: a middle dot for anything else.

    Control characters, invalid UTF-8, and marks that turn the direction of writing are such.
    """
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").expandtabs(4)
    return "".join(c if c == "\n" or (c.isprintable() and c != "\ufffd") else "·" for c in text)


def _digest(files: list[_File]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        for part in (os.fsencode(file.name), file.label.encode(), file.window.astype("<i4").tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _told(left_out: Mapping[str, int]) -> str:
    """How many files were left out, and why."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count) or "none"
