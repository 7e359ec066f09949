"""A model and examples as a user's file has them, and the command line as a function."""

import pytest

pytest.importorskip("tyro")
from npeff_jax.cli import main

MODEL = '''
"""A linear softmax model of 3 classes on 4 features; where it is undecided its Fishers differ by class pair."""
import numpy as np
import npeff_jax

def _parts():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(4, 3)).astype(np.float32)
    inputs = random.normal(size=(40, 4)).astype(np.float32)
    return kernel, inputs

def network():
    kernel, _ = _parts()
    return npeff_jax.Model(lambda params, x: x @ params["kernel"] + params["bias"],
                           {"kernel": kernel, "bias": np.zeros(3, np.float32)}, label_names=("a", "b", "c"),
                           intermediates_fn=lambda params, x: {"output": x @ params["kernel"] + params["bias"]})

def examples():
    kernel, inputs = _parts()
    labels = (inputs @ kernel).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return inputs, labels, [f"input {i}" for i in range(40)]

def not_a_model():
    return 3
'''


@pytest.fixture(scope="session")
def user_file():
    """The text of the user's file."""
    return MODEL


@pytest.fixture
def here(tmp_path, monkeypatch, user_file):
    """A directory of its own with the user's file in it, and the command line run there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(user_file)
    return tmp_path


@pytest.fixture
def npeff(here, capsys):
    def run(command: str):
        code = main(command.split())
        out, err = capsys.readouterr()
        return code, out, err

    return run
