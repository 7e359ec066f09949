"""The three getting-started pages, from folders that the test writes: their code and commands as they stand."""

import csv
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from huggingface_checkpoints import shallow, torch_model
from tokenizers_for_tests import WORDS, word_tokenizer

import npeff_jax as npeff

for package in ("torch", "transformers", "jinja2", "flax", "PIL"):
    pytest.importorskip(package)

DOCS = pathlib.Path(__file__).parents[2] / "docs/start"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def command(line, folder, *more):
    code = "import sys; from npeff_jax.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    run = [sys.executable, "-c", code, *shlex.split(line)[1:], *more]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hugging_face_classifier_and_a_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch_model(shallow("bert")).save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(60)]
    model = npeff.models.from_huggingface("model")
    encoded = npeff.models.huggingface_processor("model")(texts)
    predicted = np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, encoded)).argmax(1)
    with pathlib.Path("data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((t, model.label_names[c]) for t, c in zip(texts, predicted))])
    names = {}
    for code in blocks("huggingface.md", "python"):
        exec(compile(code, "huggingface.md", "exec"), names)
    assert pathlib.Path("report.html").stat().st_size > 50_000
    assert any(own and own[0].spans for own in names["marks"])
