"""Comparing runs: hand-made coefficients whose matches, splits and similarities are known."""

import itertools

import numpy as np
import pytest

from npeff_jax.evaluation import compare_runs, find_splits, similarity_to_final, stability
from tests.planted_model import block_vectors, make_decomposition, make_model

pytestmark = pytest.mark.fast


def random_coefficients(n=40, r=5, seed=0):
    return np.random.default_rng(seed).exponential(size=(n, r)) ** 2


def test_similarities_by_hand():
    first, second = random_coefficients(r=3), random_coefficients(r=4, seed=1)
    comparison = compare_runs(first, second)
    for i, j in itertools.product(range(3), range(4)):
        a, b = first[:, i], second[:, j]
        assert comparison.similarities[i, j] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    np.testing.assert_array_equal(comparison.forward, comparison.similarities.max(1))
    np.testing.assert_array_equal(comparison.backward, comparison.similarities.max(0))
    assert comparison.forward.shape == (3,)
    assert comparison.backward.shape == (4,)


def test_matching_is_the_best_of_all_assignments():
    comparison = compare_runs(random_coefficients(), random_coefficients(seed=1))
    totals = [comparison.similarities[np.arange(5), p].sum() for p in itertools.permutations(range(5))]
    assert comparison.matched.sum() == pytest.approx(max(totals))


def test_order_and_scale_of_components_are_undone():
    coefficients = random_coefficients()
    order = np.array([3, 0, 4, 1, 2])
    comparison = compare_runs(coefficients, coefficients[:, order] * np.arange(1, 6))
    np.testing.assert_allclose(comparison.matched, 1.0)
    np.testing.assert_array_equal(order[comparison.pairs[:, 1]], comparison.pairs[:, 0])
    assert "matched one to one 1.000" in repr(comparison)


def test_a_maximum_can_hide_what_matching_shows():
    """Two copies of one component are both like the original; one to one, only one of them is."""
    base = np.eye(3)
    copies = base[:, [0, 0, 1]]
    comparison = compare_runs(copies, base)
    np.testing.assert_allclose(comparison.forward, 1.0)
    assert comparison.matched.sum() == pytest.approx(2.0)
    np.testing.assert_allclose(comparison.backward, [1, 1, 0])


def test_decompositions_are_taken_as_they_are():
    model, coefficients = make_model(), random_coefficients(r=3).astype(np.float32)
    decomposition = make_decomposition(model, block_vectors(), coefficients)
    np.testing.assert_allclose(compare_runs(decomposition, coefficients).matched, 1.0, rtol=1e-6)


def test_splits_of_planted_parents():
    parents = np.array([0, 2, 0, 1, 2, 2])
    base = np.kron(np.eye(3), np.ones((30, 1)))
    rng = np.random.default_rng(0)
    larger = np.stack([base[:, p] * (rng.uniform(size=90) < 0.5) for p in parents] + [np.zeros(90)], axis=1)
    splits = find_splits(base, larger)
    np.testing.assert_array_equal(splits.parents, [*parents, -1])
    np.testing.assert_array_equal(splits.counts, [2, 1, 3])
    assert set(splits.of(2)) == {1, 4, 5}
    assert (np.diff(splits.similarities[2, splits.of(2)]) <= 0).all()
    assert "100.0% have one or more" in repr(splits)
    with pytest.raises(ValueError, match="swap them"):
        find_splits(larger, base)


def test_similarity_to_final():
    final = random_coefficients()
    steps = [random_coefficients(seed=1), 0.5 * final + 0.1, 3.0 * final]
    found = similarity_to_final(steps)
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found[-1], 1.0)
    a, b = steps[1][:, 2], final[:, 2]
    assert found[1, 2] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    assert (found[0] < found[1]).all()


def test_stability_over_seeds():
    base = random_coefficients()
    runs = [base, base[:, [1, 0, 2, 3, 4]], np.where(np.arange(5) == 4, random_coefficients(seed=9), base)]
    found = stability(runs)
    np.testing.assert_allclose(found.mean_max[0, 1], 1.0)
    np.testing.assert_allclose(found.matched[0, :4], 1.0)
    assert found.matched[0, 4] < 0.95
    np.testing.assert_allclose(found.matched[2], np.mean([compare_runs(runs[2], r).matched for r in runs[:2]], axis=0))
    with pytest.raises(ValueError, match="two or more runs of one shape"):
        stability([base])
    with pytest.raises(ValueError, match="two or more runs of one shape"):
        stability([base, base[:, :3]])


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="coefficients of 40 and of 30 examples"):
        compare_runs(random_coefficients(), random_coefficients(n=30))
