"""The paths, writer lock and manifest of a stored directory."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

NAME, LOCK = "manifest.json", ".lock"

PREFIX = '{\n "checksum": "'
"""Start of a manifest, followed by the digest of the rest, which detects any changed byte."""

WITHOUT_CHECKSUM = ("format", "version")
"""First keys of manifests written by versions without a checksum."""

GENERATION = "generation"
"""Key of the generation, which changes when the contents of a directory are replaced."""

REMEDY = "copy it again from where it came, or compute it anew"

PATIENCE = 0.2
"""Seconds to retry taking a lock, because its last holder may just be removing the file."""


def absolute_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return ``path`` as an absolute local path, with ``~`` expanded, so that a later ``chdir`` does not change it.

    Raises:
        ValueError: If ``path`` is empty or a URL.
        TypeError: If ``path`` is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}={path!r} is a {type(path).__name__}; expected a local path")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name}={text!r} is no path; expected a local one")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/", text)  # at least two letters: C:/ is a drive
    if scheme:
        raise ValueError(
            f"{name}={text!r} has the scheme {scheme[1]}://; only local files are written and read: pass a local path, "
            "and copy what is there"
        )
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError as error:
        raise ValueError(f"{name}={text!r} names a home directory that does not exist; write it out") from error


def writable_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return the absolute path, as `absolute_path` does, after checking that it can be written to.

    Raises:
        ValueError, TypeError: As `absolute_path`.
        OSError: If a folder above is a file, or may not be written to.
    """
    target = absolute_path(path, name)
    above = next(folder for folder in (target, *target.parents) if folder.exists())
    if above != target and not above.is_dir():
        raise NotADirectoryError(f"{name}={target} cannot be made: {above} is a file; choose a path below a folder")
    if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}={target} cannot be written: {above} may only be read; choose another path")
    return target


def read_manifest(path: Path, oldest: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any] | None:
    """Return the manifest in the directory ``path``, or None if there is none.

    Args:
        path: the directory.
        oldest: predicate on the parsed manifest, called before its checksum is compared: True for a version that had no
            checksum. It may raise for a version that cannot be read.

    Raises:
        OSError: If the manifest cannot be read, is damaged, or is not a JSON object; the message names the file.
    """
    file = path / NAME
    try:
        text = file.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DamageError(f"{file} cannot be read ({error}); {REMEDY}") from error
    try:
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or not manifest:
            raise ValueError(f"it holds {type(manifest).__name__}")
    except (ValueError, RecursionError) as error:
        what = "is empty" if not text.strip() else f"is damaged ({error})"
        raise DamageError(f"{file} {what}; {REMEDY}") from error
    old = (
        oldest(manifest)
        if oldest is not None
        else next(iter(manifest)) in WITHOUT_CHECKSUM and GENERATION not in manifest
    )
    if not old:
        checksum, separator, body = text.removeprefix(PREFIX).partition('",\n')
        if not text.startswith(PREFIX) or not separator or checksum != _digest(body):
            raise DamageError(f"{file} is damaged (its checksum does not agree); {REMEDY}")
    return {key: value for key, value in manifest.items() if key != "checksum"}


def write_manifest(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Replace the manifest atomically: after a crash, the file holds either the old or the new manifest.

    Returns:
        The manifest as written, with a generation (a digest of its content) added where ``manifest`` has none.
    """
    manifest = {GENERATION: _digest(json.dumps(manifest))} | manifest
    body = json.dumps(manifest, indent=1).removeprefix("{\n")
    beside = path / f"{NAME}.part"
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{PREFIX}{_digest(body)}",\n{body}')
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path / NAME)
    _sync(path)
    return manifest


class DamageError(OSError, ValueError):
    """A file of a stored directory is missing, damaged or replaced."""


class Generation:
    """The generation of a directory, by which a reader detects that its contents were replaced."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Record the generation of the directory ``path``, taken from ``manifest``."""
        self._path, self._expected, self._seen = path, manifest.get(GENERATION), _signature(path / NAME)

    def check(self) -> None:
        """Raise if the directory was overwritten or removed since this object was made.

        Raises:
            OSError: If it was overwritten or removed.
        """
        now = _signature(self._path / NAME)
        if now is not None and now == self._seen:
            return
        manifest = None if now is None else read_manifest(self._path)
        if manifest is None or manifest.get(GENERATION) != self._expected:
            what = f"removed ({NAME} is missing)" if manifest is None else "overwritten"
            raise DamageError(f"{self._path} was {what} since it was opened; load it again")
        self._seen = now


class WriterLock:
    """A lock of a directory against a second writer, released by the operating system when the process ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock of the directory ``path``.

        Raises:
            FileExistsError: If another process, or another run of this one, is writing there.
        """
        self._file = path / LOCK
        self._lock = filelock.FileLock(self._file, timeout=PATIENCE, poll_interval=0.02)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise FileExistsError(
                f"{path} is being written by another run; wait for it, or choose another path"
            ) from None

    def release(self) -> None:
        """Remove the lock file, then release the lock, so that no other process can hold a removed file."""
        with contextlib.suppress(OSError):  # some systems cannot remove open files
            self._file.unlink(missing_ok=True)
        self._lock.release()


def _signature(file: Path) -> tuple[int, int, int] | None:
    """Return modification time, inode and size of a file, which change when it is replaced; None if it is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sync(directory: Path) -> None:
    """Flush a directory entry to disk (fsync), so that a rename survives a power loss."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
