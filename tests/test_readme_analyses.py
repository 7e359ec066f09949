"""The analyses "on a model of your own" of README and guides: their code as it stands, with smaller numbers."""

import pathlib
import re

import numpy as np
import pytest

import npeff_jax as npeff

pytest.importorskip("flax")
pytest.importorskip("sklearn")

ROOT = pathlib.Path(__file__).parents[1]
SMALLER = {
    "n_top=128": "n_top=16",
    "pefs, 32,": "pefs, 6,",
    "(values, 128)": "(values, 8)",
    "range(24)": "range(6)",
    "pefs, 24,": "pefs, 6,",
    ", readable=new_images": "",
}
SMALLER |= {"pefs, 24,": "pefs, 6,", ", readable=new_images": ""}
SMALLER |= {"n_new=64": "n_new=2", ">= 0.5": ">= 0.1"}
SMALLER_GUIDE = {"pefs, 128)": "pefs, 6)", "n_new=64": "n_new=2", ">= 0.5": ">= 0.1", "keep=2048": "keep=512"}


@pytest.fixture(scope="module")
def task():
    return npeff.tasks.shortcut(n_train=600, n_heldout=400, steps=60, progress=False)


def run(page, after, smaller, names):
    """Run the first block of code after some words of a page, with the numbers that make it quick."""
    code = re.search(rf"{after}.*?```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    for written, here in smaller.items():
        assert written in code
        code = code.replace(written, here)
    exec(compile(code, page, "exec"), names)


def test_each_analysis_runs_on_a_model_of_ones_own(task, capsys):
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
        "has_mark": pefs.logits.argmax(-1) == 0,
        "concepts": {"entailed": predictions == 0, "neutral": predictions == 1},
    }

    run("README.md", "## Each analysis", SMALLER, names)

    assert names["expanded"].n_frozen == 6
    assert names["table"].kl_ratio.shape == (6,)
    assert names["saved"][-1].shape == (150, 6)
    assert "KL ratio" in capsys.readouterr().out


def test_the_guide_to_flawed_heuristics_runs(task):
    examples, new = task.heldout.subset(slice(150)), task.heldout.subset(slice(150, None))
    names = {"model": task.model, "examples": examples.examples, "labels": examples.labels}
    names |= {"new_examples": new.examples, "new_labels": new.labels}
    run("docs/guides/flawed-heuristics.md", "# Finding", SMALLER_GUIDE, names)
    assert names["expanded"].n_frozen == 6
    assert names["repairs"].after.shape == (len(names["flawed"]), 2, 250)
    assert "points reported" in names["repairs"]._repr_html_()
