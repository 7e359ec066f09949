"""The demos leave reports, and print what says how far to trust them."""

import io
import re

import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")
from npeff_jax import load_pefs
from npeff_jax.cli._demos import digits_demo, tracr_demo


def test_digits(tmp_path, capsys):
    report = digits_demo(tmp_path, progress=io.StringIO())
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"look at {report.resolve()}")
    assert "KL ratio" in printed[2]
    assert report.stat().st_size > 50_000
    assert (tmp_path / "report_diagonal.html").exists()
    pefs = load_pefs(tmp_path / "lowrank_decomposed")
    assert pefs.n_examples == 1200
    assert np.median(pefs.kept_energy) > 0.9


def test_tracr(tmp_path, capsys):
    pytest.importorskip("tracr")
    report = tracr_demo(tmp_path, progress=io.StringIO())
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"look at {report.resolve()}"
    found = re.fullmatch(r"(\d+) of 32 components share a concept .*; ([\d.]+) with permuted coefficients", printed[-2])
    assert int(found[1]) >= 20
    assert float(found[2]) < 1
