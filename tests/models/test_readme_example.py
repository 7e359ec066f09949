"""The README's example of a checkpoint: its code as it stands, on a tiny model and a tiny file."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from huggingface_checkpoints import shallow, torch_model
from tokenizers_for_tests import WORDS, word_tokenizer

import npeff_jax as npeff

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("jinja2")

README = pathlib.Path(__file__).parents[2] / "README.md"
LABELS = ("entailment", "neutral", "contradiction")


def test_bert_on_snli(tmp_path, monkeypatch, capsys):
    code = re.search(r"## A checkpoint\n.*?```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    for written, here in {"path/or/hub-name": "model", "n_top=128": "n_top=2"}.items():
        assert written in code
        code = code.replace(written, here)
    monkeypatch.chdir(tmp_path)
    torch_model(shallow("bert")).save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    rng = np.random.default_rng(0)
    lines = [
        {"gold_label": label, **{key: " ".join(rng.choice(WORDS[:12], 5)) for key in ("sentence1", "sentence2")}}
        for label in (*LABELS, "-") * 3
    ]
    pathlib.Path("snli_1.0_train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    smaller = {"n_examples": 5, "n_heldout": 4, "n_components": 2, "keep": 900}
    monkeypatch.setattr(npeff.tasks.presets, "NLI", dataclasses.replace(npeff.tasks.presets.NLI, **smaller))

    told = {}
    exec(compile(code, str(README), "exec"), told)

    assert "accuracy with labels as they are" in capsys.readouterr().out
    assert (told["pefs"].n_examples, told["held"].n_examples) == (5, 4)
    assert set(told["pefs"].n_rows) == {3}  # a row a class
    assert told["table"].kl_ratio.shape == (2,)
    page = pathlib.Path("nli.html").read_text()
    for premise, hypothesis in told["heldout"].display:
        assert premise in page
        assert hypothesis in page
