"""The command line as scripts see it: exit codes, and errors as sentences."""

import pytest

pytest.importorskip("tyro")
from npeff_jax.cli import main

pytestmark = pytest.mark.fast


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


def test_a_wrong_command_is_exit_code_2(capsys):
    assert main(["explode"]) == 2
    assert "explode" in capsys.readouterr().err
