"""PEFs against dense Fishers in float64, and the same whatever the batches, devices and interruptions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from npeff_jax import Diagonal, LowRank, Model, Normalization, RowBasis, compute_pefs, load_pefs, make_mesh, plan
from npeff_jax.pefs import _driver

N, C, FEATURES, HIDDEN = 21, 4, 5, 6
RANDOM = np.random.default_rng(0)
PARAMS = {
    "first": RANDOM.normal(size=(FEATURES, HIDDEN)).astype(np.float32),
    "second": RANDOM.normal(size=(HIDDEN, C)).astype(np.float32),
}
X = RANDOM.normal(size=(N, FEATURES)).astype(np.float32)


def logits_fn(params, x):
    return jax.numpy.tanh(x @ params["first"]) @ params["second"]


MODEL = Model(logits_fn, PARAMS)


def dense_fishers():
    """Jᵀ (diag p − p pᵀ) J for every example, in NumPy and float64."""
    found = []
    first, second = PARAMS["first"].astype(float), PARAMS["second"].astype(float)
    for x in X.astype(float):
        h = np.tanh(x @ first)
        z = h @ second
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        jacobian = np.zeros((C, first.size + second.size))
        for c in range(C):
            jacobian[c, : first.size] = np.outer(x, (1 - h**2) * second[:, c]).ravel()
            own = np.zeros((HIDDEN, C))
            own[:, c] = h
            jacobian[c, first.size :] = own.ravel()
        found.append(jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian)
    return np.array(found)


def of_rows(pefs):
    """Σ a aᵀ of each example's stored rows."""
    A, ends = pefs.to_scipy().toarray().astype(float), np.cumsum(pefs.n_rows)
    return np.array([part.T @ part for part in np.split(A, ends[:-1])])


@pytest.mark.parametrize("rows", list(RowBasis))
def test_all_entries_kept_is_the_fisher(rows):
    pefs = compute_pefs(MODEL, X, LowRank(rows=rows), progress=False)
    fishers = dense_fishers()
    norms = np.linalg.norm(fishers, axis=(1, 2))
    np.testing.assert_allclose(pefs.norms, norms, rtol=1e-5)
    np.testing.assert_allclose(of_rows(pefs), fishers / norms[:, None, None], atol=2e-6)
    np.testing.assert_allclose(pefs.kept_energy, 1, rtol=1e-5)


def test_diagonal():
    pefs = compute_pefs(MODEL, X, Diagonal(), progress=False)
    diagonal = np.array([np.diag(fisher) for fisher in dense_fishers()])
    norms = np.linalg.norm(diagonal, axis=1)
    np.testing.assert_allclose(pefs.norms, norms, rtol=1e-5)
    np.testing.assert_allclose(pefs.to_scipy().toarray(), diagonal / norms[:, None], atol=2e-6)


@pytest.mark.parametrize("keep", [7, 40])
def test_kept_entries_are_the_largest_and_what_is_lost_is_true(keep):
    pefs = compute_pefs(MODEL, X, LowRank(), keep=keep, progress=False)
    whole = compute_pefs(MODEL, X, LowRank(), progress=False)
    A, ends = whole.to_scipy().toarray(), np.cumsum(whole.n_rows)
    kept = pefs.to_scipy().toarray()
    fishers = of_rows(whole)
    for i, (full, sparse) in enumerate(zip(np.split(A, ends[:-1]), np.split(kept, ends[:-1]), strict=True)):
        least = np.sort(np.abs(full).ravel())[-keep]
        np.testing.assert_array_equal(sparse, np.where(np.abs(full) >= least, full, 0))
        F, S = fishers[i], sparse.astype(float).T @ sparse.astype(float)
        np.testing.assert_allclose(pefs.kept_energy[i], np.trace(S) / np.trace(F), rtol=1e-4)
        np.testing.assert_allclose(
            pefs.fisher_error[i], np.linalg.norm(F - S) / np.linalg.norm(F), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 5}, {"mesh": make_mesh}], ids=lambda o: next(iter(o))
)
def test_batches_and_devices_change_nothing(options):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    whole = compute_pefs(MODEL, X, LowRank(), keep=30, progress=False)
    other = compute_pefs(MODEL, X, LowRank(), keep=30, progress=False, **options)
    np.testing.assert_allclose(other.to_scipy().toarray(), whole.to_scipy().toarray(), atol=1e-6)


def test_normalization_after_and_none():
    after = compute_pefs(MODEL, X, LowRank(), keep=20, normalization=Normalization.AFTER, progress=False)
    np.testing.assert_allclose(np.linalg.norm(of_rows(after), axis=(1, 2)), 1, rtol=1e-5)
    raw = compute_pefs(MODEL, X, LowRank(), normalization=Normalization.NONE, progress=False)
    np.testing.assert_allclose(of_rows(raw), dense_fishers(), rtol=1e-4, atol=1e-5)


def test_resumed_is_uninterrupted(tmp_path, monkeypatch):
    whole = compute_pefs(
        MODEL, X, LowRank(), labels=np.arange(N) % C, keep=30, path=tmp_path / "whole", progress=False, batch_size=4
    )
    calls, sparsify = 0, _driver.Sparsifier.__call__

    def killed(*arguments):
        nonlocal calls
        calls += 1
        if calls > 10:
            raise KeyboardInterrupt
        return sparsify(*arguments)

    monkeypatch.setattr(_driver.Sparsifier, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        compute_pefs(
            MODEL, X, LowRank(), labels=np.arange(N) % C, keep=30, path=tmp_path / "two", progress=False, batch_size=4
        )
    with pytest.raises(ValueError, match="holds 8 of 21 examples; run compute_pefs"):
        load_pefs(tmp_path / "two")
    monkeypatch.setattr(_driver.Sparsifier, "__call__", sparsify)
    compute_pefs(MODEL, X, LowRank(), labels=np.arange(N) % C, keep=30, path=tmp_path / "two", progress=False)
    again = load_pefs(tmp_path / "two")
    for field in dataclasses.fields(whole):
        if field.name != "schema":
            np.testing.assert_array_equal(getattr(again, field.name)[:], getattr(whole, field.name)[:])
    assert again.schema == whole.schema


def test_what_is_there_is_checked(tmp_path):
    compute_pefs(MODEL, X, LowRank(), keep=30, path=tmp_path / "pefs", progress=False)
    with pytest.raises(ValueError, match="another keep"):
        compute_pefs(MODEL, X, LowRank(), keep=20, path=tmp_path / "pefs", progress=False)
    with pytest.raises(ValueError, match="another examples"):
        compute_pefs(MODEL, X + 1, LowRank(), keep=30, path=tmp_path / "pefs", progress=False)
    other = Model(logits_fn, {**PARAMS, "second": PARAMS["second"] + 1})
    with pytest.raises(ValueError, match="another model"):
        compute_pefs(other, X, LowRank(), keep=30, path=tmp_path / "pefs", progress=False)
    with pytest.raises(FileExistsError, match="holds PEFs already"):
        compute_pefs(MODEL, X, LowRank(), keep=30, path=tmp_path / "pefs", on_existing="error", progress=False)
    found = compute_pefs(MODEL, X, LowRank(), keep=20, path=tmp_path / "pefs", on_existing="overwrite", progress=False)
    assert found.values.shape == (N, 20)
    manifest = json.loads((tmp_path / "pefs" / "manifest.json").read_text())
    manifest["schema"]["version"] = 99
    (tmp_path / "pefs" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="version 99"):
        load_pefs(tmp_path / "pefs")
    with pytest.raises(ValueError, match="holds no PEFs"):
        load_pefs(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds no PEFs; choose another"):
        compute_pefs(MODEL, X, path=tmp_path / "mine", on_existing="overwrite", progress=False)


def test_bad_input_is_said_before_any_work():
    with pytest.raises(ValueError, match=r"keep=1000 is out of range: an example has 162 entries"):
        compute_pefs(MODEL, X, keep=1000)
    with pytest.raises(ValueError, match="example 3 has a value that is not finite"):
        compute_pefs(MODEL, np.where(np.arange(N)[:, None] == 3, np.nan, X))


def test_a_gradient_that_is_not_finite_is_named():
    def root(params, x):
        return logits_fn({**params, "second": jax.numpy.sqrt(params["second"])}, x)

    bad = Model(root, {**PARAMS, "second": np.abs(PARAMS["second"]) * (np.arange(C) > 0)})
    with pytest.raises(ValueError, match="example 0 has a gradient that is not finite, in parameter 'second'"):
        compute_pefs(bad, X, progress=False)


def test_a_plan_says_what_comes_true():
    found = plan(MODEL, X, keep=(10, 60), n_sampled=N)
    for k, energy, error in zip(found.keep, found.kept_energy, found.fisher_error, strict=True):
        pefs = compute_pefs(MODEL, X, keep=k, progress=False)
        np.testing.assert_allclose(energy, np.median(pefs.kept_energy), rtol=1e-5)
        np.testing.assert_allclose(error, np.median(pefs.fisher_error), rtol=1e-4)
    assert found.kernel_bytes == 4 * (N * 3) ** 2
    for trace, rank in zip(found.min_trace, found.rank, strict=True):
        pefs = compute_pefs(MODEL, X, LowRank(min_trace=trace), keep=10, progress=False)
        np.testing.assert_allclose(rank, pefs.n_rows.mean())
    assert "energy kept" in str(found)
    assert "energy kept" in found._repr_html_()
    assert "suggested keep" in found._repr_html_()
    (axes,) = found.figure().axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.kept_energy)


def test_a_plan_suggests_the_smallest_of_the_choices_that_is_good_enough():
    found = plan(MODEL, X, keep=(5, 20, 80, 160), max_error=0.3)
    good = found.fisher_error <= 0.3
    assert not good[0]
    assert good[-1]
    assert found.suggested_keep == found.keep[int(np.argmax(good))]
    assert plan(MODEL, X, keep=(2, 3), max_error=0.01).suggested_keep == 3
    assert plan(MODEL, X, Diagonal()).rank is None
