"""Selectivity: invalid input, and examples and components that are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import _selectivity
from npeff_jax.perturbation import choose_components
from tests.planted_model import block_vectors, make_decomposition, make_model, make_pefs

pytestmark = pytest.mark.fast


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
