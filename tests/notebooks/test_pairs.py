"""Notebooks as they are kept: paired with a script, without outputs, with a badge. `pytest --nbmake` executes them."""

import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.fast


def cells(notebook):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_script_says_the_same(path):
    jupytext = pytest.importorskip("jupytext")
    assert cells(json.loads(path.read_text())) == cells(jupytext.read(path.with_suffix(".py")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_and_a_badge(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    badge = f"colab.research.google.com/github/npeff-jax/npeff_jax/blob/main/notebooks/{path.name}"
    assert badge in "".join(notebook["cells"][0]["source"])
    install = "".join(code[0]["source"])
    assert '"google.colab" in sys.modules' in install
