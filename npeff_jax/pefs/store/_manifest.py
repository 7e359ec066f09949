"""The manifest of a directory of arrays: a small JSON file, renamed into place, that says what can be trusted."""

import json
import os
from pathlib import Path
from typing import Any

NAME = "manifest.json"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest in the directory ``path``, or None if there is none."""
    try:
        return json.loads((path / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest: afterwards it is the new one, or after a crash the old one, never a part."""
    beside = path / f"{NAME}.part"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path / NAME)
    _sync(path)


def _sync(directory: Path) -> None:
    """Make a rename in ``directory`` outlast a loss of power."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
