"""Exports: what is written is what the report says, whatever letters are in it."""

import csv

import numpy as np
import pytest

from npeff_jax import report
from npeff_jax.report import Texts, report_data

pytestmark = pytest.mark.fast


@pytest.fixture
def data(results, hostile):
    display = Texts([(hostile[i % 4] + "\n,\"'", "h") for i in range(60)], ("premise", "hypothesis"))
    return report_data(
        results.decomposition, results.heldout, results.fit, display=display, class_names=("a", "b", "c")
    )


def test_csv_read_back(data, tmp_path):
    with report.write_table(tmp_path / "top.csv", data, n_top=3).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for row, expected in zip(rows, report.top_table(data, 3), strict=True):
        assert {name: str(value) for name, value in expected.items()} == row
    first = data.components[0].top[0]
    assert rows[0]["premise"] == data.examples.shown[first[0]].text[0]
    assert float(rows[0]["coefficient"]) == pytest.approx(first[1])


def test_parquet_is_the_same_table(data, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.read_parquet(report.write_table(tmp_path / "top.parquet", data))
    assert table.to_dict("records") == report.top_table(data)


def test_coefficients_read_back(results, tmp_path):
    W = results.fit.coefficients
    with report.write_coefficients(tmp_path / "w.csv", W).open(newline="") as file:
        rows = list(csv.DictReader(file))
    again = np.zeros_like(W)
    for row in rows:
        again[int(row["example"]), int(row["component"])] = float(row["coefficient"])
    np.testing.assert_array_equal(again, W)


def test_latex_escapes_everything(data, tmp_path):
    text = report.write_table(tmp_path / "top.tex", data).read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == 6 == text.count(r"\end{table}")
    cells = [line for line in text.splitlines() if r"\textless{}script" in line or r"\% raw \%" in line]
    assert cells
    for line in cells:
        assert line.replace(r"\&", "").count("&") == 4  # five columns: nothing in a cell split it
        assert not set("<>#") & set(line)


def test_other_endings_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"expected \.csv, \.parquet or \.tex"):
        report.write_table(tmp_path / "top.xls", data)
