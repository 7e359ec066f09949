"""The house: imports go downward only, importing the package stays light, and types are checked in tests."""

import ast
import pathlib
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest

import npeff_jax

ROOT = pathlib.Path(npeff_jax.__file__).parent
BASE = "_types _extras _machine _version _checks _html _progress _sharding _parameters _convert _examples _identity"
ORDER = [*BASE.split(), "store", "models", "pefs", "factorization", "perturbation", "evaluation", "report", "cli"]
# tasks stands beside factorization, on models and pefs: nothing of the line may import it but the command line.
MAY_IMPORT = {room: set(ORDER[:place]) for place, room in enumerate(ORDER)}
MAY_IMPORT["tasks"] = set(ORDER[: ORDER.index("factorization")])
MAY_IMPORT["cli"] |= {"tasks"}
FILES = sorted(ROOT.rglob("*.py"))


def imported_rooms(file: pathlib.Path) -> set[str]:
    """The rooms of this package that a file imports, wherever in the file it does."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module] if node.module != "npeff_jax" else [f"npeff_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("npeff_jax.")}
    return rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_downward(file):
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the public names
    assert room in MAY_IMPORT, f"{room} has no place in the house"
    upward = imported_rooms(file) - MAY_IMPORT[room] - {room}
    assert not upward, f"{file.relative_to(ROOT)} imports {sorted(upward)}, which stand above {room}"


def test_rooms_are_entered_by_their_door():
    """Underscore modules of a room are imported by that room alone."""
    for file in FILES:
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("npeff_jax."):
                parts = node.module.split(".")[1:]
                private = [part for part in parts[1:] if part.startswith("_")]
                assert not private or parts[0] == room, f"{file.relative_to(ROOT)} reaches into {node.module}"


def test_import_is_light():
    """The heavy optional parts are imported where they are used."""
    heavy = [
        "transformers",
        "tracr",
        "haiku",
        "flax",
        "matplotlib",
        "sklearn",
        "jinja2",
        "tyro",
        "torch",
        "orbax",
        "equinox",
    ]
    code = f"import sys, npeff_jax; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert loaded.stdout.strip() == "[]"


def test_types_and_shapes_are_checked_while_tests_run():
    """By the hook of `conftest.py`: beartype alone for functions without shapes, and jaxtyping for all others."""
    from npeff_jax.factorization._exchange import best_candidates
    from npeff_jax.report._json import valid_text

    with pytest.raises(TypeError, match="violates type hint"):
        valid_text(3)
    b, P_GC, P_CC, P = (np.ones(shape, np.float32) for shape in ((5, 3), (2, 3), (3, 3), (2, 2)))
    best_candidates(b, P_GC, P_CC, P, 1)
    with pytest.raises(jaxtyping.TypeCheckError):
        best_candidates(b, P_GC.T, P_CC, P, 1)
    with pytest.raises(jaxtyping.TypeCheckError):
        best_candidates(b, P_GC.astype(int), P_CC, P, 1)
