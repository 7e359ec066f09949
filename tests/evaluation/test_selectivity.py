"""Selectivity: planted truth, ratios by hand, predictions, and what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import _selectivity, rank_agreement, rank_correlation
from npeff_jax.perturbation import choose_components
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


@pytest.fixture(scope="module")
def planted():
    """Examples that use one sub-network almost alone, and components that each sit in one."""
    model = make_model()
    examples, block = make_examples(90, leak=0.05)
    rng = np.random.default_rng(1)
    coefficients = np.eye(BLOCKS)[block] * rng.uniform(0.5, 1.0, (90, 1)) + 0.01
    decomposition = make_decomposition(model, block_vectors(), coefficients)
    return model, decomposition, make_pefs(model, examples), examples, block


@pytest.fixture(scope="module")
def table(planted):
    model, decomposition, pefs, examples, _ = planted
    return npeff.selectivity(
        model,
        decomposition,
        pefs,
        examples,
        fit=decomposition,
        n_top=10,
        nulls=npeff.Nulls(n_random_directions=4),
        progress=False,
    )


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
    signs = {}
    for data in (pefs, labelled):
        found = npeff.selectivity(model, decomposition, data, examples, **options)
        y = np.asarray(jax.vmap(model.logits_fn, (None, 0))(model.params, examples)).argmax(-1)
        y = y if data.labels is None else labels
        for component in range(BLOCKS):
            direction = npeff.component_direction(model, decomposition, component, reject_below=0.35)

            def loss(scale, direction=direction, top=found.top[component], y=y):
                moved = jax.tree.map(lambda leaf, step: leaf + scale * step, model.params, direction)
                logits = jax.vmap(model.logits_fn, (None, 0))(moved, examples)
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


def test_bad_input_is_named(planted):
    model, decomposition, pefs, examples, _ = planted
    options = {"fit": decomposition, "n_top": 10, "progress": False}
    with pytest.raises(ValueError, match="n_top=90 is out of range"):
        npeff.selectivity(model, decomposition, pefs, examples, **options | {"n_top": 90})
    with pytest.raises(ValueError, match="90 examples, PEFs of 4 and coefficients of 90"):
        npeff.selectivity(model, decomposition, pefs.subset(np.arange(4)), examples, **options)
    with pytest.raises(ValueError, match="pass the model whose PEFs were decomposed"):
        npeff.selectivity(make_model(seed=1), decomposition, pefs, examples, **options)
    with pytest.raises(IndexError, match="component=7"):
        npeff.selectivity(model, decomposition, pefs, examples, components=[7], **options)
    other = make_decomposition(model, block_vectors()[:2], np.ones((90, 2)))
    with pytest.raises(ValueError, match="the coefficients have 2 components, but the decomposition has 3"):
        npeff.selectivity(model, decomposition, pefs, examples, **options | {"fit": other})


def test_examples_of_others_are_refused(planted):
    """Other values, another order, one changed value; and the subset that the PEFs are of is taken."""
    model, decomposition, pefs, examples, _ = planted
    options = {"fit": decomposition, "n_top": 10, "progress": False, "components": [0]}
    turned = jax.tree.map(lambda leaf: leaf[::-1].copy(), examples)
    with pytest.raises(ValueError, match="the model's logits of example 0 are not those of the PEFs"):
        npeff.selectivity(model, decomposition, pefs, turned, **options)
    half = np.arange(0, 90, 2)
    part = make_decomposition(model, decomposition.pseudo_fishers, decomposition.coefficients[half])
    chosen = jax.tree.map(lambda leaf: leaf[half], examples)
    npeff.selectivity(model, part, pefs.subset(half), chosen, **options | {"fit": part})
    first = jax.tree.map(lambda leaf: leaf[:45], examples)
    with pytest.raises(ValueError, match="the model's logits of example"):
        npeff.selectivity(model, part, pefs.subset(half), first, **options | {"fit": part})
    diagonal = make_pefs(model, examples, kind=npeff.FisherKind.DIAGONAL)
    with pytest.raises(ValueError, match="they differ in: kind of PEFs"):
        npeff.selectivity(model, decomposition, diagonal, examples, **options)


def test_examples_that_failed_are_left_out(planted, caplog):
    """NaN norms, logits or coefficients of some examples: the table of the others, as if they had never been there."""
    model, decomposition, pefs, examples, _ = planted
    norms, logits = pefs.norms.copy(), pefs.logits.copy()
    coefficients = decomposition.coefficients.copy()
    norms[4], logits[17], coefficients[40, 1] = np.nan, np.nan, np.nan
    failed = dataclasses.replace(pefs, norms=norms, logits=logits)
    fit = make_decomposition(model, decomposition.pseudo_fishers, coefficients)
    options = {"n_top": 10, "progress": False, "nulls": npeff.Nulls(n_random_directions=1)}
    found = npeff.selectivity(model, decomposition, failed, examples, fit=fit, **options)
    assert found.left_out.tolist() == [4, 17, 40]
    assert "left out 3 examples of 90" in caplog.text
    assert "3 examples that failed left out" in repr(found)
    kept = np.setdiff1d(np.arange(90), [4, 17, 40])
    part = make_decomposition(model, decomposition.pseudo_fishers, decomposition.coefficients[kept])
    rest = jax.tree.map(lambda leaf: leaf[kept], examples)
    expected = npeff.selectivity(model, part, pefs.subset(kept), rest, fit=part, **options)
    np.testing.assert_array_equal(found.top, kept[expected.top])
    for name in ("kl_ratio", "null_kl_ratio", "random_kl_ratio", "pef_norm_ratio", "prediction_correlation", "ceiling"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3)
    gone = dataclasses.replace(pefs, norms=np.full(90, np.nan, np.float32))
    with pytest.raises(ValueError, match="all 90 examples failed"):
        npeff.selectivity(model, decomposition, gone, examples, fit=decomposition, **options)


def test_components_are_numbers_or_a_mask(planted, table):
    model, decomposition, pefs, examples, _ = planted
    options = {"fit": decomposition, "n_top": 10, "progress": False, "nulls": npeff.Nulls(n_random_directions=4)}
    found = npeff.selectivity(model, decomposition, pefs, examples, components=np.array([True, False, True]), **options)
    assert found.components.tolist() == [0, 2]
    np.testing.assert_allclose(found.kl_ratio, table.kl_ratio[[0, 2]], rtol=1e-3)
    assert choose_components(None, 3).tolist() == [0, 1, 2]
    assert choose_components([2, 0], 3).tolist() == [2, 0]
    for bad, error, message in (
        ([True, False], ValueError, r"Boolean mask of shape \(2,\); expected \(3,\)"),
        ([0.0, 1.0], TypeError, "dtype float64; expected a list of component numbers"),
        ([1, 1], ValueError, "lists component 1 twice"),
        ([-1], IndexError, "component=-1 is out of range"),
        ([3], IndexError, "component=3 is out of range"),
        ([], ValueError, "components is empty"),
        ([[0, 1]], TypeError, r"shape \(1, 2\)"),
        (np.zeros(3, bool), ValueError, "components is empty"),
    ):
        with pytest.raises(error, match=message):
            choose_components(bad, 3)


def test_few_examples_get_fewer_top_ones(planted, caplog):
    model, decomposition, pefs, examples, _ = planted
    options = {"progress": False, "components": [0], "nulls": npeff.Nulls(n_random_directions=0)}
    found = npeff.selectivity(model, decomposition, pefs, examples, fit=decomposition, **options)
    assert found.top.shape == (1, 22)
    assert "n_top=22: a quarter of the 90 examples" in caplog.text
    adapted = _selectivity._number_of_top_examples
    assert [adapted(None, n) for n in (2, 3, 8, 128, 129, 500)] == [1, 1, 2, 32, 128, 128]
    with pytest.raises(ValueError, match="1 example is left; expected two or more"):
        adapted(None, 1)


def test_a_prediction_that_breaks_is_left_out(planted):
    """A move after which an example has no finite logits: its component fails, the others are as without it."""
    model, decomposition, pefs, examples, _ = planted
    limit = float(jnp.max(model.params["block1"])) + 0.01
    broken = npeff.Model(
        lambda p, x: jnp.where(jnp.max(p["block1"]) > limit, jnp.nan, 1.0) * model.logits_fn(p, x), model.params
    )
    options = {"fit": decomposition, "n_top": 10, "progress": False, "nulls": npeff.Nulls(n_random_directions=0)}
    found = npeff.selectivity(broken, decomposition, pefs, examples, norm=0.3, **options)
    expected = npeff.selectivity(model, decomposition, pefs, examples, norm=0.3, **options)
    failed = found.failures != ""
    assert failed[1].any()
    assert not failed[[0, 2]].any()
    assert "component 1: predictions are not finite after a move of norm 0.3" in found.failures[failed][0]
    np.testing.assert_allclose(found.kl_ratio[[0, 2]], expected.kl_ratio[[0, 2]], rtol=1e-3)


def test_top_examples_are_stable():
    coefficients = np.array([[1.0], [3.0], [1.0], [3.0], [0.0]])
    assert npeff.top_examples(coefficients, component=0, k=4).tolist() == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="k=6"):
        npeff.top_examples(coefficients, component=0, k=6)
    with pytest.raises(ValueError, match="component=1"):
        npeff.top_examples(coefficients, component=1, k=1)


def test_what_is_tied_is_not_predicted():
    """`rank_agreement` is Spearman's correlation averaged over all orders of the tied predictions."""
    rng = np.random.default_rng(0)
    measured = rng.permutation(7).astype(float)
    predicted = np.array([0, 0, 0, 1.0, 2.0, 2.0, 3.0])
    orders = [
        np.array(order) for order in itertools.permutations(range(7)) if np.all(np.diff(predicted[list(order)]) >= 0)
    ]
    correlations = []
    for order in orders:
        ranks = np.empty(7)
        ranks[order] = np.arange(7)
        correlations.append(np.corrcoef(ranks, measured)[0, 1])
    np.testing.assert_allclose(rank_agreement(predicted, measured), np.mean(correlations))
    assert abs(rank_agreement(predicted, measured)) < abs(rank_correlation(predicted, measured))
    assert np.isnan(rank_agreement(np.zeros(7), measured))
    np.testing.assert_allclose(rank_agreement(measured, 2 * measured), 1.0)


def test_rank_correlation_is_spearmans():
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, 40).astype(float), rng.normal(size=40)
    np.testing.assert_allclose(rank_correlation(first, second), scipy_stats.spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
