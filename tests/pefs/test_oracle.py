"""Fishers, diagonals, norms and fidelity against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import class_rows, dense, fisher, inputs, mlp, stacked

import npeff_jax as npeff
from npeff_jax import Diagonal, LowRank, Normalization, RowBasis

pytestmark = pytest.mark.fast


def compute(model, x, representation=None, **options):
    return npeff.compute_pefs(model, x, representation, progress=False, **options)


@pytest.mark.parametrize("rows", list(RowBasis))
@pytest.mark.parametrize("n_classes", [2, 5])
def test_rows_multiply_to_the_fisher(rows, n_classes):
    model, x = mlp(n_classes), inputs(7)
    pefs = compute(model, x, LowRank(rows=rows))
    for row, example, norm in zip(stacked(pefs), x, pefs.norms):
        F = fisher(model, example)
        np.testing.assert_allclose(norm, np.linalg.norm(F), rtol=2e-6)
        np.testing.assert_allclose(row.T @ row, F / np.linalg.norm(F), atol=2e-6)
        assert len(row) == (n_classes if rows is RowBasis.CLASSES else n_classes - 1)
    assert pefs.kept_energy.min() > 1 - 1e-6
    assert pefs.fisher_error.max() < 1e-3  # the root of what float32 leaves of a difference


def test_principal_rows_are_the_singular_vectors():
    model, x = mlp(), inputs(5)
    for row, example in zip(stacked(compute(model, x)), x):
        F = fisher(model, example)
        largest = np.linalg.eigvalsh(F)[::-1][: len(row)] / np.linalg.norm(F)
        np.testing.assert_allclose(row @ row.T, np.diag(largest), atol=3e-6)


def test_class_rows_are_those_of_the_paper():
    model, x = mlp(), inputs(5)
    pefs = compute(model, x, LowRank(rows=RowBasis.CLASSES), normalization=Normalization.NONE)
    for row, example in zip(stacked(pefs), x):
        np.testing.assert_allclose(row, class_rows(*dense(model, example)), atol=2e-6)


def test_diagonal():
    model, x = mlp(), inputs(7)
    pefs = compute(model, x, Diagonal())
    for row, example, norm in zip(stacked(pefs), x, pefs.norms):
        f = np.diag(fisher(model, example))
        np.testing.assert_allclose(norm, np.linalg.norm(f), rtol=2e-6)
        np.testing.assert_allclose(row[0], f / np.linalg.norm(f), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("representation", [LowRank(), Diagonal()])
@pytest.mark.parametrize("normalization", list(Normalization))
def test_what_is_kept(representation, normalization):
    """The K largest, their share of the trace and their error, against dense arithmetic."""
    model, x = mlp(), inputs(6)
    whole = stacked(compute(model, x, representation, normalization=Normalization.NONE))
    pefs = compute(model, x, representation, keep=20, normalization=normalization)
    low_rank = isinstance(representation, LowRank)
    for i, (row, all_rows) in enumerate(zip(stacked(pefs), whole)):
        floor = np.sort(np.abs(all_rows), axis=None)[-20]
        kept = np.where(np.abs(all_rows) >= floor, all_rows, 0)
        F, S = (all_rows.T @ all_rows, kept.T @ kept) if low_rank else (all_rows[0], kept[0])
        trace, kept_trace = (np.trace(F), np.trace(S)) if low_rank else (F.sum(), S.sum())
        np.testing.assert_allclose(pefs.kept_energy[i], kept_trace / trace, rtol=1e-5)
        np.testing.assert_allclose(pefs.fisher_error[i], np.linalg.norm(F - S) / np.linalg.norm(F), rtol=1e-4)
        unit = {"before": np.linalg.norm(F), "after": np.linalg.norm(S), "none": 1.0}[normalization.value]
        np.testing.assert_allclose(row, kept / (unit**0.5 if low_rank else unit), rtol=1e-5)


@pytest.mark.parametrize("margin", [8.0, 16.0, 60.0])
def test_confident_predictions(margin):
    """In float32, p − p² loses half the trace at 1 − 1e-7; at a margin of 60 squares of the Fisher underflow."""
    model = npeff.Model(lambda p, x: jnp.stack([x @ p, 0.3 * jnp.sum(p), -x @ p]), jnp.array([1.0, -0.5, 0.25]))
    x = np.array([[margin, 0.0, 0.0]], np.float32)
    pefs = compute(model, x)
    jacobian = np.stack([x[0], np.full(3, 0.3), -x[0]]).astype(np.float64)
    logits = np.array([margin, 0.3 * 0.75, -margin])
    rows = class_rows(jacobian, logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    F = rows.T @ rows
    np.testing.assert_allclose(pefs.norms[0], np.linalg.norm(F), rtol=1e-5)
    (row,) = stacked(pefs)
    np.testing.assert_allclose(row.T @ row, F / np.linalg.norm(F), atol=1e-5)


def test_half_the_quadratic_form_is_the_kl():
    model, x = mlp(), inputs(4)
    direction = np.random.default_rng(5).normal(size=model.space.size)
    direction *= 1e-2 / np.linalg.norm(direction)
    moved = jax.tree.map(jnp.add, model.params, model.space.unravel(jnp.asarray(direction, jnp.float32)))
    pefs = compute(model, x, normalization=Normalization.NONE)
    for row, example in zip(stacked(pefs), x):
        before, after = model.logits_fn(model.params, example), model.logits_fn(moved, example)
        kl = float(model.output.kl(before, after))
        np.testing.assert_allclose(0.5 * np.sum((row @ direction) ** 2), kl, rtol=3e-2)
