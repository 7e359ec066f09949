"""The command line as scripts see it: exit codes, and errors as sentences."""

import re

import pytest

import npeff_jax
from npeff_jax._extras import needs
from npeff_jax._progress import progress_bar

pytest.importorskip("tyro")
from npeff_jax.cli import main
from npeff_jax.cli._options import Show, progress_of

pytestmark = pytest.mark.fast


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


def test_a_wrong_command_is_exit_code_2(capsys):
    assert main(["explode"]) == 2
    assert "explode" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"npeff {npeff_jax.__version__} (jax ")


@pytest.mark.parametrize("command", ["", "plan", "pefs", "decompose", "perturb", "report", "demo digits"])
def test_help_fits_a_terminal_and_has_no_python_in_it(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if re.search(r"\b(None|True|False|STR)\b", line)]


def raise_inside(error):
    """Raise ``error`` as a file of the package does."""
    exec(compile("raise error", npeff_jax.cli._main.__file__, "exec"), {"error": error})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "run/pefs"),
            2,
            "npeff: run/pefs: no such file or directory",
        ),
        (ModuleNotFoundError("No module named 'jinja2'", name="jinja2"), 2, "needs jinja2, which is not installed"),
        (RuntimeError("one sentence of ours"), 1, "npeff: one sentence of ours"),
        (KeyError("x"), 1, "npeff: unforeseen: 'x' (KeyError); run again with --debug to see where"),
    ],
)
def test_errors_without_pythons_words(error, code, said, monkeypatch, capsys):
    monkeypatch.setattr(npeff_jax.cli._main, "_run", lambda words: raise_inside(error))
    assert main(["pefs"]) == code
    assert said in capsys.readouterr().err


def test_what_is_told_of_a_missing_extra():
    told = r"a report needs jinja2, .* pip install jinja2 .* '\.\[report\]'"
    with pytest.raises(ImportError, match=told), needs("a report"):
        raise ModuleNotFoundError("No module named 'jinja2.ext'", name="jinja2.ext")
    with pytest.raises(ModuleNotFoundError, match="a package of the user"), needs("a report"):
        raise ModuleNotFoundError("a package of the user's", name="mine")


def test_a_program_without_a_console(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert progress_of(Show.JSON) is False
    with progress_bar(True, "work", 2, "piece") as advance:
        advance(1)
