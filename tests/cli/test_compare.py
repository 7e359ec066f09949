"""``npeff scan`` and ``npeff compare``: the library's numbers by commands, and what they refuse."""

import json

import numpy as np
import pytest

import npeff_jax

MODEL = "--model mine.py:network --examples mine.py:examples"
EXPLAIN = f"explain {MODEL} --progress none --n-components 3 --keep 12 --any-accuracy"


@pytest.fixture
def runs(npeff, here):
    for name, seed in (("one", 0), ("two", 0)):
        code, _, err = npeff(f"{EXPLAIN} --seed {seed} --out {name}" + (" --norm 0.05" if name == "two" else ""))
        assert code == 0, err
    return here


def test_scan_and_compare(npeff, runs):
    code, out, err = npeff("scan --pefs one/pefs --n-components 2 3 --out scan.svg --progress none")
    assert code == 0, err
    expected = npeff_jax.scan(npeff_jax.load_pefs(runs / "one/pefs"), [2, 3], progress=False)
    assert expected.advice in out
    assert "<svg" in (runs / "scan.svg").read_text()
    code, out, err = npeff("compare one two --out both.html")
    assert code == 0, err
    assert "The same in both: 3 of 3 and 3" in out  # the same seed: the same components
    assert "Vanished: 0" in out
    headlines = [c["headline"] for c in json.loads((runs / "one/report.json").read_text())["components"]]
    assert any(headline in out for headline in headlines)
    assert "The same in both" in (runs / "both.html").read_text()


def test_what_was_run_is_in_the_report(runs):
    about = json.loads((runs / "one/report.json").read_text())["about"]
    assert about["model"] == "mine.py:network"
    assert about["data"] == "mine.py:examples"
    assert about["command"].startswith("npeff explain --model mine.py:network --examples mine.py:examples")
    assert "--n-components 3" in about["command"]
    assert "--norm" not in about["command"]  # at its default
    with np.load(runs / "one/split.npz") as split:
        assert about["split"].startswith(f"{len(split['decomposed'])} decomposed, {len(split['heldout'])} held out")


def test_what_scan_and_compare_refuse(npeff, here):
    code, _, err = npeff("compare one two")
    assert (code, err) == (2, "npeff: one is no directory; expected one that npeff explain or npeff decompose wrote\n")
    code, _, err = npeff("scan --pefs nowhere --out scan.txt")
    assert code == 2
    assert "--out scan.txt ends in '.txt'; expected .svg, .png or .pdf" in err
    code, _, err = npeff("scan --pefs nowhere --out scan.svg")
    assert code == 2
    assert err.count("\n") == 1


def test_inputs_that_are_no_images_are_shown_by_number():
    """A table of numbers without a display used to end the command after all its work."""
    from npeff_jax.cli._explain import _shown
    from npeff_jax.tasks import Dataset

    for shape, images in (((5, 7), False), ((5, 7, 7), True), ((5, 7, 7, 3), True), ((5, 7, 7, 9), False)):
        data = Dataset(np.zeros(shape, np.float32), None)
        assert (_shown(data) is data.examples) == images
        assert images or _shown(data) is None
