"""The demo of digits leaves its reports, and prints what says how far to trust them. CI runs both demos as commands."""

import io

import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")
from npeff_jax import load_pefs
from npeff_jax.cli._demos import digits_demo


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
