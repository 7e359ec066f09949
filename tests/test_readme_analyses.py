"""The README's analyses "on a model of your own": its code as it stands, on a small model, with smaller numbers."""

import pathlib
import re

import numpy as np
import pytest

import npeff_jax as npeff

pytest.importorskip("flax")
pytest.importorskip("sklearn")

README = pathlib.Path(__file__).parents[1] / "README.md"
SMALLER = {"n_top=128": "n_top=16", "pefs, 32,": "pefs, 6,", "(values, 128)": "(values, 8)", "range(24)": "range(6)"}
SMALLER |= {"n_new=64": "n_new=2", ">= 0.5": ">= 0.1"}


def test_each_analysis_runs_on_a_model_of_ones_own(capsys):
    code = re.search(r"## Each analysis.*?```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    for written, here in SMALLER.items():
        assert written in code
        code = code.replace(written, here)
    task = npeff.tasks.shortcut(n_train=600, n_heldout=400, steps=60, progress=False)
    ours, new = task.heldout.subset(slice(150)), task.heldout.subset(slice(150, None))
    settings = {"keep": 512, "progress": False}
    pefs = npeff.compute_pefs(task.model, ours.examples, labels=ours.labels, **settings)
    heldout = npeff.compute_pefs(task.model, new.examples, labels=new.labels, **settings)
    decomposition = npeff.decompose(pefs, 6, progress=False)
    predictions = heldout.logits.argmax(-1)
    names = {
        "np": np,
        "npeff": npeff,
        "model": task.model,
        "head": task.head,
        "pefs": pefs,
        "heldout": heldout,
        "more": heldout,
        "new_images": new.examples,
        "new_labels": new.labels,
        "decomposition": decomposition,
        "other": npeff.decompose(pefs, 6, seed=1, progress=False),
        "larger": npeff.decompose(pefs, 12, progress=False),
        "fit": npeff.fit_coefficients(decomposition, heldout),
        "predictions": predictions,
        "concepts": {"entailed": predictions == 0, "neutral": predictions == 1},
    }

    exec(compile(code, str(README), "exec"), names)

    assert names["expanded"].n_frozen == 6
    assert names["table"].kl_ratio.shape == (6,)
    assert names["saved"][-1].shape == (150, 6)
    assert "KL ratio" in capsys.readouterr().out
