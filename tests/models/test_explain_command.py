"""From two folders to a report by one command: a fine-tuned checkpoint as it was saved, and a table of texts."""

import csv
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import run
from huggingface_checkpoints import shallow, torch_model
from tokenizers_for_tests import WORDS, word_tokenizer

import npeff_jax as npeff
from npeff_jax.report import read_report_data

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier and 60 texts with the labels it predicts, one in ten of them wrong; the names in another order."""
    folder = tmp_path_factory.mktemp("explain")
    torch_model(shallow("bert")).save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(60)]
    model = npeff.models.from_huggingface(folder / "model")
    encoded = npeff.models.huggingface_processor(folder / "model")(texts)
    predicted = np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, encoded)).argmax(1)
    labels = np.where(np.arange(60) % 10 == 3, (predicted + 1) % 3, predicted)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *((t, model.label_names[c].upper()) for t, c in zip(texts, labels))])
    return folder, texts, labels


COMMAND = ["explain", "--model", "model", "--examples", "data.csv", "--progress", "none", "--n-components", "3"]


def explain(folder, *more):
    return run([*COMMAND, *more], folder)


def in_a_process(folder, *more):
    code = "import sys; from npeff_jax.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *COMMAND, *more]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_one_command(folder):
    folder, texts, labels = folder
    done = in_a_process(folder, "--out", "run", "--keep", "500")
    assert done.returncode == 0, done.stderr
    assert "data.csv: text from 'text', labels from 'label'" in done.stdout
    assert f"look at {(folder / 'run' / 'report.html').resolve()}" in done.stdout
    with np.load(folder / "run" / "split.npz") as split:
        parts = split["decomposed"], split["heldout"]
    right = np.mean(parts[0] % 10 != 3)  # all but one in ten are labelled as predicted
    assert f"{right:.1%} of 48 examples predicted as labelled; chance" in done.stdout
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    counts = np.bincount(labels, minlength=3)
    held = np.bincount(labels[parts[1]], minlength=3)
    assert held.sum() == 12
    assert (np.abs(held - 0.2 * counts) < 1).all()  # class by class
    assert "on its 2 top examples and 12 random ones, against the moves of 2 other components" in done.stdout
    data = read_report_data(folder / "run" / "report.json")
    assert data.class_names == ("entailment", "neutral", "contradiction")
    assert data.run.n_decomposed == 48
    for example in data.examples.shown:
        assert example.text == (texts[parts[1][example.index]],)
        assert example.label == labels[parts[1][example.index]]
    assert all(component.stability is not None for component in data.components)
    assert any(component.causal is not None for component in data.components)

    made = {path: path.stat().st_mtime_ns for path in (folder / "run").glob("*") if "report" not in path.name}
    (folder / "run" / "selectivity.npz").unlink()  # as if it had been stopped there
    again = explain(folder, "--out", "run", "--keep", "500")
    assert again.returncode == 0, again.stderr
    kept = [path for path, time in made.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert {path.name for path in kept} >= {"components", "other", "fit.npz"}
    other = explain(folder, "--out", "run", "--keep", "400", "--seed", "1")
    assert other.returncode == 2
    assert "was made with another --keep, --seed; choose another --out" in other.stderr


def test_it_stops_where_accuracy_is_chance(folder):
    folder, *_ = folder
    numbered = (folder / "data.csv").read_text()
    for i, name in enumerate(("ENTAILMENT", "NEUTRAL", "CONTRADICTION")):
        numbered = numbered.replace(name, str((i + 1) % 3))
    (folder / "shifted").mkdir()
    (folder / "shifted" / "data.csv").write_text(numbered)
    (folder / "shifted" / "model").symlink_to(folder / "model")
    done = explain(folder / "shifted", "--out", "run")
    assert done.returncode == 2, done.stdout
    assert "labels and model do not seem to mean the same classes" in done.stderr
    assert "With entailment → contradiction" in done.stderr
    assert "--any-accuracy" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "shifted" / "run").exists()
    assert json.loads((folder / "model" / "config.json").read_text())["id2label"]["0"] == "entailment"
