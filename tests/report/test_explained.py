"""An example's own view, a written page as an object, and two runs side by side."""

import dataclasses
import pathlib
import pickle

import numpy as np
import pytest

from npeff_jax import explain_example, write_report
from npeff_jax.report import compare_reports, report_data, write_comparison

pytestmark = pytest.mark.fast


def test_an_example_and_its_components(results):
    results.fit.example_loss = np.linspace(0.0, 0.5, 60)
    found = explain_example(
        results.decomposition, 7, results.heldout, results.fit, class_names=("a", "b", "c"), n_components=3
    )
    W = results.fit.coefficients
    assert found.components == tuple(np.argsort(-W[7], kind="stable")[:3].tolist())
    for j, w, rank in zip(found.components, found.coefficients, found.ranks):
        assert w == W[7, j]
        assert rank == 1 + np.sum(W[:, j] > W[7, j])
    logits = results.heldout.logits[7].astype(float)
    p = np.exp(logits) / np.exp(logits).sum()
    assert found.predicted[0][0] == "abc"[p.argmax()]
    np.testing.assert_allclose([value for _, value in found.predicted], np.sort(p)[::-1], rtol=1e-5)
    assert found.label == "abc"[results.heldout.labels[7]]
    assert found.explained == 1 - results.fit.example_loss[7]
    assert found.n_used == np.sum(W[7] > 0)
    assert f"component {found.components[0]:>4}  coefficient" in repr(found)
    assert "Example 7" in found._repr_html_()
    assert explain_example(results.decomposition, -1).index == 89  # those that were decomposed; from the end


@pytest.mark.parametrize("example", [60, -61, 1.5, "3", True, None])
def test_there_is_no_such_example(results, example):
    with pytest.raises((IndexError, TypeError), match=r"example"):
        explain_example(results.decomposition, example, results.heldout, results.fit)


def test_the_table_of_all_examples(results):
    results.fit.example_loss = np.linspace(0.0, 0.5, 60)
    data = report_data(results.decomposition, results.heldout, results.fit)
    table, W = data.examples.table, results.fit.coefficients
    assert table.index == tuple(range(60))
    assert table.label == tuple(results.heldout.labels.tolist())
    assert table.predicted == tuple(results.heldout.logits.argmax(1).tolist())
    np.testing.assert_allclose(table.explained, 1 - results.fit.example_loss)
    for i in range(60):
        order = [j for j in np.argsort(-W[i], kind="stable")[:6] if W[i, j] > 0]
        assert list(table.components[i]) == order
        np.testing.assert_array_equal(table.coefficients[i], W[i, order])


def test_a_written_page_is_a_path_that_shows_itself(results, tmp_path, monkeypatch):
    page = write_report(tmp_path / "report.html", results.decomposition)
    assert isinstance(page, pathlib.Path)
    assert page == tmp_path / "report.html"
    assert page.with_suffix(".json").name == "report.json"
    assert pickle.loads(pickle.dumps(page)) == page
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert str(page) in shown
    monkeypatch.setattr("npeff_jax.report._page._INLINE_BYTES", 10)  # a page too large to be copied into a notebook
    monkeypatch.chdir(tmp_path)
    assert page._repr_html_().startswith('<iframe src="report.html"')
    page.unlink()
    assert "not there any more" in page._repr_html_()


def test_two_runs_side_by_side(tmp_path):
    """By hand: 0 stays, 1 splits into two, 2 and 3 merge, 4 vanishes; the last is new."""
    random = np.random.default_rng(0)
    blocks = np.kron(np.eye(6), np.ones((20, 1))) * (1 + 0.01 * random.random((120, 1)))
    first = np.stack([blocks[:, 0], blocks[:, 1] + blocks[:, 2], blocks[:, 3], blocks[:, 4], blocks[:, 5]], 1)
    second = np.stack([blocks[:, 0], blocks[:, 1], blocks[:, 2], blocks[:, 3] + blocks[:, 4]], 1)
    fresh = np.zeros((120, 1))
    first, second = (np.vstack([a, np.zeros((20, a.shape[1]))]) for a in (first, second))
    fresh = np.vstack([fresh, np.ones((20, 1))])
    found = compare_reports(first, np.hstack([second, fresh]), headlines=(list("abcde"), None), names=("old", "new"))
    assert found.same[0][:2] == (0, 0)
    assert found.split == [(1, (1, 2))] or found.split == [(1, (2, 1))]
    assert [(j, set(parts)) for j, parts in found.merged] == [(3, {2, 3})]
    assert (found.vanished, found.new) == ([4], [4])
    said = repr(found)
    assert "Vanished: 1\n  4 e" in said
    assert max(map(len, said.splitlines())) <= 118
    page = write_comparison(tmp_path / "compare.html", dataclasses.replace(found, names=("<b>", "new")))
    assert "<b>" not in page.read_text()
    assert "Split: 1" in page.read_text()
