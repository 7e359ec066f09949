"""Top examples, and rank correlations with ties."""

import itertools

import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import rank_agreement, rank_correlation

pytestmark = pytest.mark.fast


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
