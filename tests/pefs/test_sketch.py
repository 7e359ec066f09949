"""Principal rows of many classes from a few gradients, against all of them in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import class_rows, dense, fisher, inputs, mlp, stacked

import npeff_jax as npeff
from npeff_jax import LowRank, Normalization, RowBasis

pytestmark = pytest.mark.fast

C = 60
RAW = {"normalization": Normalization.NONE, "progress": False}


def confident(scale=1.5):
    return mlp(n_classes=C, n_inputs=8, width=12, scale=scale), inputs(6, 8)


@pytest.mark.parametrize("rank", [3, 10])
def test_few_gradients_hold_nearly_what_the_exact_principal_rows_hold(rank):
    model, x = confident()
    representation = LowRank(max_rows=rank, sketch=rank + 8)
    pefs = npeff.compute_pefs(model, x, representation, **RAW)
    assert (pefs.n_rows == rank).all()
    for rows, example in zip(stacked(pefs), x, strict=True):
        F = fisher(model, example)
        values = np.linalg.eigvalsh(F)[::-1]
        squares = (rows**2).sum(1)
        np.testing.assert_allclose(rows @ rows.T, np.diag(squares), atol=1e-5 * values[0])  # orthogonal
        assert (np.diff(squares) <= 0).all()
        assert (squares <= values[:rank] * (1 + 1e-5)).all()  # no more than there is, direction by direction
        best = values[rank:].sum()
        assert np.trace(F) - squares.sum() < 1.1 * best
        assert np.linalg.eigvalsh(F - rows.T @ rows)[0] > -1e-5 * values[0]  # a part of F, nothing that is not in it


def test_a_span_as_large_as_the_rank_is_exact():
    """The Jacobian of a linear map of 12 numbers has rank 12 at most, whatever the classes."""
    rng = np.random.default_rng(0)
    low = rng.normal(size=(12, C)).astype(np.float32)
    model = npeff.Model(lambda p, x: jnp.tanh(x * p) @ low, jnp.asarray(rng.normal(size=12).astype(np.float32)))
    x = inputs(4, 12)
    sketched = npeff.compute_pefs(model, x, LowRank(sketch=20), **RAW)
    exact = npeff.compute_pefs(model, x, LowRank(), **RAW)
    for rows, others in zip(stacked(sketched), stacked(exact), strict=True):
        F = others.T @ others
        np.testing.assert_allclose(rows.T @ rows, F, atol=2e-6 * np.linalg.norm(F))
    np.testing.assert_allclose(sketched.norms, exact.norms, rtol=1e-4)
    assert (sketched.lost_trace < 1e-4).all()


def test_the_lost_trace_is_right_on_average():
    """Outside the span, and of the classes below the threshold: one probe each, unbiased."""
    model, x = confident()
    many = np.repeat(x[:1], 400, axis=0)
    pefs = npeff.compute_pefs(model, many, LowRank(sketch=5, min_probability=0.01), **RAW)
    jacobian, log_p = dense(model, x[0])
    rows = class_rows(jacobian, log_p)
    whole = (rows**2).sum()
    kept = np.array([(row**2).sum() for row in stacked(pefs)])
    estimate = pefs.lost_trace / (1 - pefs.lost_trace) * kept
    spread = (estimate - (whole - kept)).std() / np.sqrt(len(kept))
    assert abs((estimate - (whole - kept)).mean()) < 4 * spread
    assert estimate.mean() > 0.005 * whole
    assert spread < 0.1 * estimate.mean()
    np.testing.assert_allclose(pefs.lost_mass, np.exp(log_p)[np.exp(log_p) < 0.01].sum(), rtol=1e-4)


def test_it_does_not_depend_on_batches_and_falls_back_to_all_rows_where_these_are_fewer():
    model, x = confident()
    one, other = (
        npeff.compute_pefs(model, x, LowRank(max_rows=4, sketch=12), keep=50, batch_size=size, **RAW) for size in (2, 6)
    )
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-5)
    small = mlp()
    same = [npeff.compute_pefs(small, inputs(4), rep, **RAW).values for rep in (LowRank(), LowRank(sketch=9))]
    np.testing.assert_array_equal(*same)


def test_neither_the_cotangents_nor_the_rows_are_as_many_as_the_classes():
    """A thousand classes and more are never written out against the parameters, nor against each other."""
    many = 5000
    model = npeff.Model(lambda p, x: jnp.outer(x, p).reshape(-1)[:many] * 3, jnp.ones(100))
    for representation in (
        LowRank(sketch=10),
        LowRank(rows=RowBasis.CLASSES, max_rows=6),
        LowRank(rows=RowBasis.CLASSES, min_probability=0.1),
    ):
        assert representation.n_rows(model.output, many) <= 11
        pure = lambda x, rep=representation: npeff.pef_rows(model.logits_fn, model.params, x, rep)  # noqa: E731
        sizes = [
            variable.aval.size
            for equation in jax.make_jaxpr(pure)(jnp.ones(50)).jaxpr.eqns
            for variable in equation.outvars
        ]
        assert max(sizes) < 25 * many


def test_only_as_many_classes_are_pulled_back_as_a_batch_needs(monkeypatch):
    """Of 60 classes up to 50 could pass; here two do."""
    calls = []
    from npeff_jax.pefs import _batch

    original = _batch.example_rows
    monkeypatch.setattr(_batch, "example_rows", lambda *args: calls.append(args[-1]) or original(*args))
    model, x = confident(scale=6.0)
    pefs = npeff.compute_pefs(model, x, LowRank(rows=RowBasis.CLASSES, min_probability=0.02), batch_size=3, **RAW)
    assert max(calls) < 2 * pefs.n_rows.max()
    assert pefs.n_rows.max() < 17
    for rows, example in zip(stacked(pefs), x, strict=True):
        jacobian, log_p = dense(model, example)
        kept = np.argsort(-log_p)[: len(rows)]
        np.testing.assert_allclose(rows, class_rows(jacobian, log_p)[kept], rtol=1e-4, atol=3e-6)


def test_choices_that_do_not_fit():
    with pytest.raises(ValueError, match="sketch=4 cannot hold 6 rows; use max_rows"):
        LowRank(max_rows=6, sketch=4)
    assert LowRank(max_rows=4, sketch=4).sketch == 4
    with pytest.raises(ValueError, match="sketch finds principal rows"):
        LowRank(rows=RowBasis.CLASSES, sketch=4)
