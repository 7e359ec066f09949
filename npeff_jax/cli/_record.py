"""Records of the command that made each result, by which a result is skipped, checked, or made again."""

import dataclasses
import datetime
import enum
import functools
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npeff_jax.cli._options import Flag, MaybePath

VERSION = 1
STAGES: dict[str, Callable[..., None]] = {}
"""Commands that write a result, by name; ``npeff rerun`` can run them."""


def stage(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that its result at ``out`` is written once, with a record of how it was made.

    Run again with the same arguments and inputs, it does nothing; with others it raises, unless ``overwrite`` is set.
    The record is written beside the result once that is complete.
    """

    @functools.wraps(command)
    def run(*positional: Any, **named: Any) -> None:
        bound = inspect.signature(command).bind(*positional, **named)
        bound.apply_defaults()
        arguments = bound.arguments
        out = arguments["out"] = local_place(arguments["out"])
        record = record_of(command.__name__, arguments)
        if out.exists() and record_path(out).exists():
            before = json.loads(record_path(out).read_text())
            differ = differences(before, record)
            if not differ and not arguments.get("overwrite"):
                print(f"{out} is there already, made by this very command")
                return
            if not arguments.get("overwrite"):
                raise FileExistsError(f"{out} was made with another {differ}; choose another --out, or --overwrite it")
            _remove(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        command(**arguments)
        record["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        record_path(out).write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {out}")

    STAGES[command.__name__] = run
    return run


def local_place(out: Path) -> Path:
    """Return ``out`` as a local path with ``~`` expanded.

    Raises:
        ValueError: If ``out`` is a URL.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(out)):  # Path collapses "//" to "/"
        raise ValueError(f"--out {out} is a URL; expected a path on this machine")
    return Path(out).expanduser()


def record_path(out: Path) -> Path:
    """Return the path of the record of the result ``out``."""
    return out.with_name(out.name + ".record.json")


def rerun(record: Path, out: MaybePath = None, overwrite: Flag = False) -> None:
    """Run a recorded command again, where and as it was run.

    Args:
        record: a file RESULT.record.json that a command wrote beside its result.
        out: another path to write to, relative to the directory in which the command was run.
        overwrite: replace existing results.
    """
    try:
        entry = json.loads(record.read_text())
        command, arguments = STAGES[entry["command"]], entry["arguments"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{record} is not the record of a command; expected RESULT.record.json") from None
    decoded = _arguments(command, arguments) | {"overwrite": overwrite} | ({"out": out} if out is not None else {})
    os.chdir(entry["directory"])
    command(**decoded)


def record_of(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    import jax

    from npeff_jax._version import __version__

    return {
        "version": VERSION,
        "command": name,
        "arguments": {key: _encode(value) for key, value in flat_arguments(arguments).items() if key != "overwrite"},
        "inputs": {
            key: _digest(value)
            for key, value in arguments.items()
            if isinstance(value, Path) and key != "out" and value.exists()
        },
        "directory": os.getcwd(),
        "npeff_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def flat_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a command's arguments by option name; a dataclass of options is replaced by its fields."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if dataclasses.is_dataclass(value):
            flat |= {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        else:
            flat[name] = value
    return flat


def default_arguments(command: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a command by option name, as in `flat_arguments`; options without one are left out."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(command)
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= default_arguments(hint)
        elif parameter.default is not inspect.Parameter.empty:
            found[name] = parameter.default
    return found


def _arguments(command: Callable[..., Any], flat: dict[str, Any]) -> dict[str, Any]:
    """Rebuild a command's arguments from `flat_arguments`, dropping names that the command does not have."""
    made = {}
    for name, hint in typing.get_type_hints(command).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            made[name] = hint(**_arguments(hint, flat))
        elif name in flat:
            made[name] = _decode(hint, flat[name])
    return made


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the options and inputs in which two records differ, as text; progress and devices are not compared."""
    silent = {"progress", "all_devices"}
    names = [name for name in now["arguments"] if name not in silent]
    # options missing in records of earlier versions had their defaults
    defaults = default_arguments(STAGES[now["command"]])
    then = {name: _encode(default) for name, default in defaults.items()} | before["arguments"]
    differ = [name for name in names if then.get(name) != now["arguments"][name]]
    told = [f"--{name.replace('_', '-')}" for name in differ]
    told += [f"content of --{key}" for key in now["inputs"] if before["inputs"].get(key) != now["inputs"][key]]
    return ", ".join((["command"] if before["command"] != now["command"] else []) + told)


def _digest(path: Path) -> str:
    """Return a digest that identifies an input's content: of its record, else of its manifest or modification time."""
    stands = record_path(path)
    if stands.exists():
        return hashlib.blake2b(stands.read_bytes(), digest_size=12).hexdigest()
    return f"changed {path.stat().st_mtime_ns}"


def _remove(out: Path) -> None:
    """Remove a result and its record, or raise if there is no record, so that other files are never removed."""
    record_path(out).unlink()
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink()


def _encode(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_encode(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _decode(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is typing.Annotated:
        return _decode(typing.get_args(hint)[0], value)
    if isinstance(value, list):
        return tuple(value)
    return hint(value) if inspect.isclass(hint) and issubclass(hint, enum.Enum | Path) else value


def save_arrays(path: Path, result: Any) -> None:
    """Save a dataclass of arrays as an .npz file with one array per field."""
    beside = path.with_name(path.name + ".part.npz")
    import numpy as np

    np.savez_compressed(beside, **{f.name: getattr(result, f.name) for f in dataclasses.fields(result)})
    beside.replace(path)


def load_arrays(path: Path, kind: type) -> Any:
    """Load an object of type ``kind`` that `save_arrays` wrote.

    Raises:
        ValueError: If the file holds other arrays.
    """
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        fields = dataclasses.fields(kind)
        names = {field.name for field in fields}
        needed = {field.name for field in fields if field.default_factory is dataclasses.MISSING}
        if not needed <= set(arrays.files) <= names:
            raise ValueError(f"{path} holds {sorted(arrays.files)}; expected {kind.__name__}, {sorted(names)}")
        return kind(**{n: arrays[n].item() if arrays[n].ndim == 0 else arrays[n] for n in arrays.files})
