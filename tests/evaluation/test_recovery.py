"""The planted world and its measures: exact on the truth, worse on what is wrong, by an oracle in dense float64."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import f1_score

import npeff_jax as npeff

WORLD = npeff.tasks.planted_fishers(n=300, r=12, m=4000, support=64, keep=600, noise=0.1, seed=3)


def as_decomposition(vectors, coefficients):
    """The planted truth, or something else, in the form of a result."""
    one = npeff.decompose(WORLD.pefs.subset(np.arange(20)), 2, progress=False)
    return dataclasses.replace(
        one,
        coefficients=coefficients.astype(np.float32),
        pseudo_fishers=vectors.astype(np.float32),
        parameter_indices=np.arange(vectors.shape[1]),
    )


def test_fishers_are_the_planted_ones():
    """Without noise and with every entry kept, F_i = Σ_j W_ij g_j g_jᵀ at unit norm."""
    world = npeff.tasks.planted_fishers(n=40, r=8, m=300, support=20, keep=4 * 300, noise=0.0)
    A, G = world.pefs.to_scipy().toarray().astype(np.float64), world.vectors.toarray().astype(np.float64)
    first = np.concatenate([[0], np.cumsum(world.pefs.n_rows)])
    for i in range(40):
        rows = A[first[i] : first[i + 1]]
        planted = (G.T * world.coefficients[i]) @ G
        np.testing.assert_allclose(rows.T @ rows, planted, atol=2e-6)
        assert np.linalg.norm(planted) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(world.pefs.kept_energy, 1, atol=1e-6)
    assert world.pefs.fisher_error.max() < 1e-3


def test_hierarchy_and_frequencies():
    active = WORLD.coefficients > 0
    for child, parent in enumerate(WORLD.parents):
        if parent >= 0:
            assert active[active[:, child], parent].mean() > 0.95
            shared = np.intersect1d(WORLD.vectors[[child]].indices, WORLD.vectors[[parent]].indices)
            assert 32 <= shared.size <= 40
    assert 1 <= active.sum(axis=1).min() <= active.sum(axis=1).max() <= 4
    counts = np.sort(
        npeff.tasks.planted_fishers(n=2000, r=40, m=500, support=8, keep=8).coefficients.astype(bool).sum(0)
    )
    assert counts[-1] > 4 * counts[0]


def test_the_truth_scores_best():
    found = npeff.evaluation.recovery(
        as_decomposition(WORLD.vectors.toarray(), WORLD.coefficients), WORLD.vectors, WORLD.coefficients
    )
    assert found.mean_max_cosine == pytest.approx(1, abs=1e-6)
    assert found.uniqueness == 1.0
    assert found.mean_f1 > 0.99  # not 1: a threshold of one half can miss the smallest coefficient of the other
    np.testing.assert_array_equal(found.pairs[:, 0], found.pairs[:, 1])


def test_duplicates_shuffles_and_dead_components_are_seen():
    G, W = WORLD.vectors.toarray(), WORLD.coefficients.copy()
    G[1], W[:, 2] = G[0], 0
    found = npeff.evaluation.recovery(as_decomposition(G, W), WORLD.vectors, WORLD.coefficients)
    assert found.dead.sum() == 1
    assert found.uniqueness < 1
    assert found.matched[1] < 0.9
    assert found.f1[2] == 0
    shuffled = np.random.default_rng(0).permutation(WORLD.coefficients)
    null = npeff.evaluation.recovery(
        as_decomposition(WORLD.vectors.toarray(), shuffled), WORLD.vectors, WORLD.coefficients
    )
    assert null.mean_f1 < 0.6


def test_f1_against_scikit_learn():
    """The mean of both halves' F1, each at the threshold that is best on the other half."""
    rng = np.random.default_rng(0)
    W = np.maximum(WORLD.coefficients + 0.2 * rng.normal(size=WORLD.coefficients.shape), 0)
    found = npeff.evaluation.recovery(as_decomposition(WORLD.vectors.toarray(), W), WORLD.vectors, WORLD.coefficients)
    even = np.arange(300) % 2 == 0
    W = W.astype(np.float32)
    for j in range(12):
        scores = []
        for half in (even, ~even):
            values = np.unique(np.append(W[half, j], 0))
            between = ((values[:-1] + values[1:]) / 2)[::-1]
            best = max(between, key=lambda t: f1_score(WORLD.coefficients[half, j] > 0, W[half, j] >= t))
            scores.append(f1_score(WORLD.coefficients[~half, j] > 0, W[~half, j] >= best))
        assert found.f1[j] == pytest.approx(np.mean(scores), abs=1e-9)


def test_a_decomposition_recovers_the_world():
    decomposition = npeff.decompose(WORLD.pefs, 12, progress=False)
    found = npeff.evaluation.recovery(decomposition, WORLD.vectors, WORLD.coefficients)
    assert found.mean_f1 > 0.85
    assert "planted components by 12" in repr(found)


def test_refused():
    with pytest.raises(ValueError, match="do not belong"):
        npeff.evaluation.recovery(as_decomposition(WORLD.vectors.toarray(), WORLD.coefficients), np.eye(3), np.eye(3))
    with pytest.raises(ValueError, match="four components or more"):
        npeff.tasks.planted_fishers(r=2)
