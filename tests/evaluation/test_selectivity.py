"""Selectivity: planted truth, ratios by hand, and predictions."""

import dataclasses

import jax
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import rank_agreement
from tests.planted_model import (
    BLOCKS,
    block_vectors,
    make_decomposition,
    make_examples,
    make_model,
    make_pefs,
    oracle_fisher,
    oracle_kl,
)

pytestmark = pytest.mark.fast


def test_a_component_moves_the_examples_that_use_it(planted, table):
    _, _, _, _, block = planted
    for component in range(BLOCKS):
        assert (block[table.top[component]] == component).all()
        kl = table.example_kl(component)
        own = block[table.evaluated] == component
        assert kl[own].mean() > 100 * kl[~own].mean()
    assert (table.kl_ratio > 2).all()
    assert (table.null_kl_ratio < 0.1).all()
    assert (table.null_exceeds == 0).all()


def test_random_directions_repeat_the_pef_norms(planted):
    """They favour no example, so that their ratio is the ratio of sensitivities: why they prove little."""
    model, decomposition, pefs, examples, _ = planted
    options = {"fit": decomposition, "n_top": 10, "nulls": npeff.Nulls(n_random_directions=100), "progress": False}
    found = npeff.selectivity(model, decomposition, pefs, examples, **options)
    assert found.random_kl_ratios.shape == (BLOCKS, 100)
    np.testing.assert_allclose(found.random_kl_ratio, found.pef_norm_ratio, rtol=0.35)


def test_ratios_by_hand(planted, table):
    model, decomposition, pefs, examples, _ = planted
    for component in range(BLOCKS):
        direction = npeff.component_direction(model, decomposition, component, reject_below=0.35)
        top = np.argsort(-decomposition.coefficients[:, component], kind="stable")[:10]
        others = np.setdiff1d(np.arange(90), top)
        ratios = []
        for position, sign in enumerate([1, -1]):
            delta = jax.tree.map(lambda leaf, sign=sign: 0.1 * sign * leaf, direction)
            kl = oracle_kl(model.params, delta, examples)
            np.testing.assert_allclose(table.kl[component, position], kl, rtol=2e-3, atol=1e-9)
            ratios.append(kl[top].mean() / kl[others].mean())
        np.testing.assert_allclose(table.kl_ratio[component], max(ratios), rtol=2e-3)
        assert table.sign[component] == (1 if ratios[0] >= ratios[1] else -1)
        np.testing.assert_allclose(
            table.pef_norm_ratio[component], pefs.norms[top].mean() / pefs.norms[others].mean(), rtol=1e-5
        )
        null = []
        for other in range(BLOCKS):
            kl = table.kl[other][:, np.searchsorted(table.evaluated, np.arange(90))]
            null.append(max(kl[s][top].mean() / kl[s][others].mean() for s in range(2)))
        np.testing.assert_allclose(table.null_kl_ratios[component], null, rtol=1e-5)
        np.testing.assert_allclose(table.null_kl_ratio[component], np.median(np.delete(null, component)), rtol=1e-5)
    assert table.ceiling == 9.0


def test_the_loss_sign_lowers_the_loss_of_the_top_examples(planted):
    """Chosen by a gradient at θ, judged by the loss after a small step."""
    model, decomposition, pefs, examples, _ = planted
    labels = np.random.default_rng(3).integers(0, 3, 90)
    labelled = dataclasses.replace(pefs, labels=labels)
    options = {
        "fit": decomposition,
        "n_top": 10,
        "nulls": npeff.Nulls(n_random_directions=0),
        "norm": 1e-3,
        "progress": False,
    }
    signs, logits_of = {}, jax.jit(jax.vmap(model.logits_fn, (None, 0)))
    for data in (pefs, labelled):
        found = npeff.selectivity(model, decomposition, data, examples, **options)
        y = np.asarray(logits_of(model.params, examples)).argmax(-1)
        y = y if data.labels is None else labels
        for component in range(BLOCKS):
            direction = npeff.component_direction(model, decomposition, component, reject_below=0.35)

            def loss(scale, direction=direction, top=found.top[component], y=y):
                moved = jax.tree.map(lambda leaf, step: leaf + scale * step, model.params, direction)
                logits = logits_of(moved, examples)
                return -np.asarray(jax.nn.log_softmax(logits))[top, y[top]].sum()

            assert loss(0.05 * found.loss_sign[component]) < loss(-0.05 * found.loss_sign[component])
        signs[data is pefs] = found.loss_sign.tolist()
    assert signs[True] != signs[False]


def test_equation_5_by_hand(planted, table):
    model, decomposition, pefs, _, _ = planted
    direction = npeff.component_direction(model, decomposition, 1)
    delta = 0.1 * np.asarray(model.space.ravel(direction), np.float64)
    vectors = np.asarray(decomposition.pseudo_fishers, np.float64)
    pseudo = np.einsum("rm,rk->rmk", vectors, vectors)
    expected = pefs.norms / 2 * np.einsum("nr,m,rmk,k->n", decomposition.coefficients, delta, pseudo, delta)
    found = npeff.predicted_kl(model, decomposition, decomposition.coefficients, pefs.norms, direction, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(table.predicted_kl[1, 0], expected[table.evaluated], rtol=1e-4)
    raw = make_decomposition(model, vectors, decomposition.coefficients, normalization="none")
    np.testing.assert_allclose(
        npeff.predicted_kl(model, raw, raw.coefficients, pefs.norms, direction, 0.1),
        expected / pefs.norms,
        rtol=1e-4,
    )


def test_exact_coefficients_predict_the_kl():
    """Components that reproduce the Fishers exactly, and a small step: eq. 5 is then the measured KL."""
    model = make_model()
    examples, _ = make_examples(6)
    fishers = [oracle_fisher(model.params, jax.tree.map(lambda leaf, i=i: leaf[i], examples)) for i in range(6)]
    vectors, coefficients = [], np.zeros((6, 12))
    for i, fisher in enumerate(fishers):  # every example brings its own two eigenvectors as components
        values, basis = np.linalg.eigh(fisher)
        for k in (1, 2):
            coefficients[i, len(vectors)] = values[-k] / np.linalg.norm(fisher)
            vectors.append(basis[:, -k])
    decomposition = make_decomposition(model, vectors, coefficients)
    norms = np.array([np.linalg.norm(fisher) for fisher in fishers])
    direction = npeff.component_direction(model, decomposition, 3)
    predicted = npeff.predicted_kl(model, decomposition, coefficients, norms, direction, 1e-2)
    measured = npeff.perturbed_kl(model, examples, [direction], [1e-2])[0, 0]
    np.testing.assert_allclose(predicted, measured, rtol=0.03, atol=1e-9)


def test_order_batches_and_devices_change_nothing(planted, table):
    model, decomposition, pefs, examples, _ = planted
    order = np.random.default_rng(5).permutation(90)
    shuffled = make_decomposition(model, decomposition.pseudo_fishers, decomposition.coefficients[order])
    found = npeff.selectivity(
        model,
        shuffled,
        pefs.subset(order),
        jax.tree.map(lambda leaf: leaf[order], examples),
        fit=shuffled,
        n_top=10,
        nulls=npeff.Nulls(n_random_directions=4),
        passes=npeff.Passes(16, npeff.make_mesh()),
        progress=False,
    )
    for name in ("kl_ratio", "null_kl_ratio", "random_kl_ratio", "pef_norm_ratio", "prediction_correlation"):
        np.testing.assert_allclose(getattr(found, name), getattr(table, name), rtol=1e-3)
    np.testing.assert_array_equal(np.sort(order[found.top]), np.sort(table.top))


@pytest.mark.parametrize("batch_size", [256, 4])
def test_a_move_is_measured_where_it_is_tried_alone(planted, table, batch_size):
    """With some other components, the same numbers as in the whole table, and NaN for what was not measured."""
    model, decomposition, pefs, examples, _ = planted
    rng = np.random.default_rng(2)
    vectors = np.concatenate([block_vectors(), rng.normal(size=(4, model.space.size)), np.zeros((1, model.space.size))])
    coefficients = np.concatenate([decomposition.coefficients, rng.uniform(size=(90, 5))], axis=1)
    more = make_decomposition(model, vectors, coefficients)
    options = {"fit": more, "n_top": 5, "progress": False, "reject_below": None}
    whole = npeff.selectivity(model, more, pefs, examples, nulls=npeff.Nulls(20, 2), **options)
    passes = npeff.Passes(batch_size, npeff.make_mesh())
    part = npeff.selectivity(model, more, pefs, examples, nulls=npeff.Nulls(20, 2, 2), passes=passes, **options)
    np.testing.assert_array_equal(part.evaluated, whole.evaluated)
    measured = ~np.isnan(part.kl)
    assert 0.2 < measured.mean() < 0.8
    np.testing.assert_allclose(part.kl[measured], whole.kl[measured], rtol=1e-3, atol=1e-8)
    for name in ("kl_ratios", "random_kl_ratios", "pef_norm_ratio", "predicted_kl", "norms", "kl_excess", "loss_sign"):
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name), rtol=1e-3)
    assert (part.tried.sum(axis=0) == 3).all()
    assert (part.tried.sum(axis=1) == 3).all()
    assert part.tried.diagonal().all()
    np.testing.assert_allclose(
        part.null_kl_ratios, np.where(part.tried, whole.null_kl_ratios, np.nan), rtol=1e-3, equal_nan=True
    )
    assert part.failures[-1].all()  # it has no direction: neither a ratio nor a part in the others' null
    assert np.isnan(part.kl_ratio[-1])
    for j in range(7):
        others = [k for k in range(8) if part.tried[j, k] and k != j]
        exceeded = np.mean([whole.null_kl_ratios[j, k] >= whole.kl_ratio[j] for k in others])
        assert part.null_exceeds[j] == exceeded
        own = part.is_random | np.isin(part.evaluated, part.top[list(np.flatnonzero(part.tried[:, j]))])
        np.testing.assert_array_equal(own, measured[j, 0])
        found = rank_agreement(part.predicted_kl[j, 0][own], part.example_kl(j)[own])
        np.testing.assert_allclose(part.prediction_correlation[j], found, rtol=1e-2)


def test_fewer_random_examples_and_components(planted):
    model, decomposition, pefs, examples, _ = planted
    options = {"fit": decomposition, "n_top": 5, "nulls": npeff.Nulls(20, 0), "progress": False}
    found = npeff.selectivity(model, decomposition, pefs, examples, components=[2], **options)
    assert found.components.tolist() == [2]
    assert found.is_random.sum() == 20
    assert np.isnan(found.null_kl_ratio).all()
    assert np.isnan(found.random_kl_ratio).all()
    again = npeff.selectivity(model, decomposition, pefs, examples, components=[2], **options)
    np.testing.assert_array_equal(found.kl, again.kl)
    other = npeff.selectivity(model, decomposition, pefs, examples, components=[2], seed=1, **options)
    assert set(found.evaluated) != set(other.evaluated)
    with pytest.raises(ValueError, match="component 0 was not perturbed"):
        found.example_kl(0)


@pytest.mark.parametrize("kind", list(npeff.FisherKind))
def test_a_dead_component_spoils_no_other(planted, kind):
    model, decomposition, _, examples, _ = planted
    pefs = make_pefs(model, examples, kind=kind)
    vectors = np.abs(np.concatenate([block_vectors(), np.zeros((1, model.space.size))]))
    coefficients = np.concatenate([decomposition.coefficients, np.zeros((90, 1))], axis=1)
    with_dead = make_decomposition(model, vectors, coefficients, kind)
    found = npeff.selectivity(model, with_dead, pefs, examples, fit=with_dead, n_top=10, progress=False)
    assert np.isnan(found.kl_ratio[3])
    assert (found.kl_ratio[:3] > found.null_kl_ratio[:3]).all()
    assert np.isfinite(found.null_kl_ratio[:3]).all()
    assert "nan" not in repr(found)


def test_it_can_be_read(table):
    assert "KL ratio" in repr(table)
    assert "ceiling with the top examples left in 9" in repr(table)
    lines = str(table).splitlines()
    assert len(lines) == 1 + BLOCKS + 1
    assert all(f"{table.kl_ratio[j]:.2f}" in lines[1 + j] for j in range(BLOCKS))
    logs = table.log2_ratios()
    np.testing.assert_allclose(2 ** logs["KL"], table.kl_ratio)
