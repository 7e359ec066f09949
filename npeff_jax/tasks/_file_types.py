"""Files of many types as examples: found on disk, labelled by name, without near-duplicates, read when needed."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt

from npeff_jax.models import Model
from npeff_jax.tasks._dataset import Dataset
from npeff_jax.tasks._file_network import PADDING, file_type_network, package_directory
from npeff_jax.tasks._file_windows import HASHES, FileWindows, printable, read_window, shown, sketch

_LEAST = 64
"""Smallest number of bytes of a file after stripping. The package accepts 8 bytes, but so few say little about a type,
and the network's first normalisation, over positions that are mostly padding, becomes inaccurate."""

_SKIPPED_FOLDERS = frozenset({"__pycache__", ".git", ".hg", ".svn"})
"""Folders of program data. Python creates bytecode files as it runs, so the set of files would not be reproducible."""

_SEVERAL_FORMATS = (".cl", ".gpg", ".h", ".l", ".obj", ".p", ".pro", ".pt", ".pth", ".pub")
"""Extensions without a label, because they are used by several formats: C and C++ share ``.h``, and the package assigns
the others to a single type although they are as often another (OpenCL, lex, Wavefront, Qt projects, Python paths)."""

_MORE_NAMES = {
    **dict.fromkeys((".hpp", ".hh", ".hxx"), "cpp"),
    **dict.fromkeys((".f", ".for", ".f77", ".f08"), "fortran"),
    **dict.fromkeys((".bash", ".zsh"), "shell"),
    **{".jsx": "javascript", ".tsx": "typescript", ".ex": "elixir", ".so": "elf", ".cfg": "ini", ".pm": "perl"},
    **dict.fromkeys(("makefile", "gnumakefile", ".mk"), "makefile"),
    **dict.fromkeys((".gitignore", ".dockerignore", ".npmignore"), "ignorefile"),
    **{"cmakelists.txt": "cmake", "dockerfile": "dockerfile", "gemfile": "gemfile", ".htaccess": "htaccess"},
    **{".gitattributes": "gitattributes", ".gitmodules": "gitmodules", ".bazel": "bazel"},
}
"""Extensions of a single format that the package does not list, and file names that determine the type."""

NEAR_DUPLICATE = 0.6
"""Jaccard index of two windows from which files count as near-duplicates, such as a text with another date or version.
Two files that share only a licence of 1,024 bytes at the start have an index of one third."""


@dataclasses.dataclass(frozen=True, eq=False)
class FileTypes:
    """A network that classifies file types, with files to decompose and held-out files.

    Attributes:
        model: logits of 214 types for one window, (2048,) integers.
        decomposed: files to decompose. ``display`` has three texts per file: its path and the type according to its
            name, its first lines, and its last lines.
        heldout: held-out files, in the same form.
        paths: paths of the decomposed files, then of the held-out ones, relative to the folder they were found in.
        digest: digest of paths, labels and windows; equal for the same set of files.
        left_out: number of files left out, by reason.
    """

    model: Model
    decomposed: Dataset
    heldout: Dataset
    paths: tuple[str, ...]
    digest: str
    left_out: dict[str, int]

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """Type of each file according to its name, in the order of ``paths``."""
        return np.concatenate([np.asarray(self.decomposed.labels), np.asarray(self.heldout.labels)])

    def __str__(self) -> str:
        types = len(set(self.labels.tolist()))
        return (
            f"files: {len(self.decomposed)} to decompose, {len(self.heldout)} held out, of {types} types; digest "
            f"{self.digest}\nleft out: {_told(self.left_out)}"
        )


def file_types(
    folder: str | os.PathLike[str] | None = None, *, n_files: int = 1500, heldout_share: float = 1 / 3
) -> FileTypes:
    """Find files of many types, balanced over types as far as possible, and load the network that classifies them.

    Files are chosen in turn from each type, within a type in the order of a digest of their paths, so that no package
    dominates. The label of a file is the type according to its name; files whose names determine no type, or several,
    are left out. Files are read, never run or unpacked; links are not followed.

    Args:
        folder: folder to search recursively; by default the standard library and the installed packages of this Python,
            and Debian's documentation if present.
        n_files: maximum number of files, including held-out ones.
        heldout_share: fraction of each type that is held out, rounded down.

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
    found = _choose(_by_label(_roots(folder), labels_by_name(names), left_out), n_files, left_out)
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


def labels_by_name(label_names: Sequence[str]) -> dict[str, str | None]:
    """Return the type per extension (with its dot) or file name, in lower case; None if there are several types.

    Args:
        label_names: names of the types.
    """
    text = (package_directory() / "config" / "content_types_kb.min.json").read_text(encoding="utf-8")
    claimed: dict[str, set[str]] = {}
    for label, facts in json.loads(text).items():
        if label in label_names:
            for extension in facts["extensions"]:
                claimed.setdefault(f".{extension.lower()}", set()).add(label)
    found = {extension: min(labels) if len(labels) == 1 else None for extension, labels in claimed.items()}
    more = {name: label for name, label in _MORE_NAMES.items() if label in label_names}
    return found | more | dict.fromkeys(_SEVERAL_FORMATS)


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    name: str
    path: pathlib.Path
    label: str
    window: Int[np.ndarray, "2048"]


def _roots(folder: str | os.PathLike[str] | None) -> list[tuple[str, pathlib.Path]]:
    """Return the folders to search, each with the prefix of its paths."""
    if folder is not None:
        if not pathlib.Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        return [("", pathlib.Path(folder))]
    places = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")] + ["/usr/share/doc"]
    roots = {os.path.realpath(place): pathlib.Path(place) for place in places if os.path.isdir(place)}
    return [(f"{root.name}/", root) for root in roots.values()]


def _by_label(
    roots: list[tuple[str, pathlib.Path]], labels: dict[str, str | None], left_out: collections.Counter[str]
) -> dict[str, list[tuple[str, pathlib.Path]]]:
    """Return name and path of all files with a label, by label, in the order of a digest of the names."""
    found: dict[str, list[tuple[str, pathlib.Path]]] = {}
    visited = {os.path.realpath(root) for _, root in roots}
    for prefix, root in roots:
        for path in _files_below(root, visited, left_out):
            name, extension = path.name.lower(), path.suffix.lower()
            label = labels.get(name) or labels.get(extension)
            if label is None:
                several = extension in labels
                left_out[f"with a name that stands for {'several types' if several else 'no type'}"] += 1
            else:
                found.setdefault(label, []).append((prefix + path.relative_to(root).as_posix(), path))
    for files in found.values():
        files.sort(key=lambda file: (hashlib.blake2b(os.fsencode(file[0]), digest_size=8).digest(), file[0]))
    return found


def _files_below(folder: pathlib.Path, visited: set[str], left_out: collections.Counter[str]) -> Iterator[pathlib.Path]:
    """Yield the regular files in a folder and below it, except in folders in ``visited`` (other roots)."""
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
    """Choose files in turn from each label, without near-duplicates, until there are enough."""
    chosen: list[_File] = []
    sketches = np.empty((n_files, HASHES), np.uint64)
    queues = {label: iter(by_label[label]) for label in sorted(by_label)}
    while queues and len(chosen) < n_files:
        for label in list(queues):
            if len(chosen) == n_files:
                break
            file = next(_usable(label, queues[label], sketches, chosen, left_out), None)
            if file is None:
                del queues[label]
            else:
                sketches[len(chosen)] = sketch(file.window)
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
    """Yield the files that can be read, are long enough, and are not near-duplicates of chosen files."""
    for name, path in files:
        try:
            window = read_window(path)
        except OSError:
            left_out["that cannot be read"] += 1
            continue
        if window[_LEAST - 1] == PADDING:
            left_out[f"of fewer than {_LEAST} bytes"] += 1
        elif np.any(np.mean(sketches[: len(chosen)] == sketch(window), axis=1) >= NEAR_DUPLICATE):
            left_out["nearly the same as another"] += 1
        else:
            yield _File(name, path, label, window)


def _split(files: list[_File], share: float) -> tuple[list[_File], list[_File]]:
    """Split into files to decompose and held-out files.

    The first file of each type is decomposed. Of the others, held-out files are evenly spaced, with a different offset
    per type so that the total share is correct even if types have few files.
    """
    seen: dict[str, int] = {}
    starts: dict[str, float] = {}
    parts: tuple[list[_File], list[_File]] = ([], [])
    for file in files:
        # Offsets are multiples of the golden ratio, which are evenly spread. The tolerance absorbs rounding errors.
        start = starts.setdefault(file.label, (len(starts) * 0.6180339887) % 1 * (1 - share) + 1e-9)
        k = seen.get(file.label, 0)
        seen[file.label] = k + 1
        parts[int(start + (k + 1) * share) > int(start + k * share)].append(file)
    return parts


def _dataset(files: list[_File], label_names: Sequence[str]) -> Dataset:
    number = {name: i for i, name in enumerate(label_names)}
    labels = np.array([number[file.label] for file in files], np.int32)
    display = [(f"{_printable_name(file)} ({file.label} by its name)", *shown(file.window)) for file in files]
    return Dataset(FileWindows([file.path for file in files]), labels, display, tuple(label_names))


def _printable_name(file: _File) -> str:
    return printable(os.fsencode(file.name)).replace("\n", "·")


def _digest(files: list[_File]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        for part in (os.fsencode(file.name), file.label.encode(), file.window.astype("<i4").tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _told(left_out: Mapping[str, int]) -> str:
    """Return how many files were left out, and why, as text."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count) or "none"
