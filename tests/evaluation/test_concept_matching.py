"""Components matched with variables one to one: planted truth, its definition by hand, nulls; and the controls."""

import itertools

import numpy as np
import pytest

from npeff_jax.evaluation import control_rankings, match_concepts
from npeff_jax.tasks import planted

pytestmark = pytest.mark.fast


def correlation(a, b):
    """Matthews' is Pearson's of two Boolean variables."""
    return 0.0 if len(set(a)) == 1 or len(set(b)) == 1 else float(np.corrcoef(a, b)[0, 1])


@pytest.fixture(scope="module")
def noisy():
    """Three variables, a component for each of the first two (one of them for its negation), and one about nothing."""
    random = np.random.default_rng(0)
    has = random.random((300, 3)) < [0.2, 0.5, 0.3]
    W = np.stack(
        [has[:, 0] + 0.3 * random.random(300), ~has[:, 1] + 0.3 * random.random(300), random.random(300)], axis=1
    )
    return W, {"a": has[:, 0], "b": has[:, 1], "c": has[:, 2]}


def test_planted_variables_are_found_and_permuted_ones_are_not(noisy):
    W, variables = noisy
    found = match_concepts(W, variables)
    np.testing.assert_array_equal(found.component, [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(found.score[:, :2], 1.0)
    assert np.abs(found.score[:, 2]).max() < 0.3
    assert found.n_matched() == 2.0
    assert found.permuted.shape == (20, 2, 3)
    assert found.n_matched_permuted().max() == 0
    assert abs(found.permuted.mean()) < 0.05
    assert "2.0 of 3 variables (3 of them distinct)" in repr(found)
    assert "0.0 with permuted coefficients" in repr(found)


def test_scores_are_the_definition(noisy):
    """Every cut of every component, every assignment, on one half; the score on the other half."""
    W, variables = noisy
    W = np.round(W + 0.8 * np.random.default_rng(1).random(W.shape), 1)  # ties, and cuts that are not perfect
    names, has = list(variables), np.stack(list(variables.values()), axis=1)
    found = match_concepts(W, variables, seed=3, n_permutations=0)
    first = np.zeros(300, bool)
    first[np.random.default_rng(3).permutation(300)[:150]] = True
    for fold, choosing in enumerate((~first, first)):
        best, cut = np.zeros((3, 3)), np.zeros((3, 3))
        for j, v in itertools.product(range(3), range(3)):
            values = np.unique(W[choosing, j])
            for low, high in itertools.pairwise(values[::-1]):
                value = correlation(W[choosing, j] >= low, has[choosing, v])
                if abs(value) > abs(best[j, v]) + 1e-12:
                    best[j, v], cut[j, v] = value, (low + high) / 2
        order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(best[p[v], v]) for v in range(3)))
        np.testing.assert_array_equal(found.component[fold], order)
        for v, j in enumerate(order):
            score = np.sign(best[j, v]) * correlation(W[~choosing, j] >= cut[j, v], has[~choosing, v])
            np.testing.assert_allclose(found.score[fold, v], score, atol=1e-12)
    assert names == list(found.names)


def test_a_component_stands_for_one_variable_only():
    """Two copies of a variable and one component: one of them goes without; its complement is no other variable."""
    has = np.arange(40) % 4 == 0
    found = match_concepts(has[:, None] * 1.0, {"a": has, "same": has, "not a": ~has, "never": np.zeros(40, bool)})
    assert (np.sort(found.component, axis=1) == [-1, -1, -1, 0]).all()
    assert sorted(found.score[0]) == [0, 0, 0, 1]
    assert found.distinct.tolist() == [True, False, False, True]


def test_a_constant_component_and_bad_input():
    has = np.arange(40) % 4 == 0
    assert match_concepts(np.ones((40, 1)), {"a": has}, n_permutations=1).n_matched(0.01) == 0
    with pytest.raises(ValueError, match="3 examples; expected four or more"):
        match_concepts(np.ones((3, 1)), {"a": has[:3]})
    with pytest.raises(ValueError, match="variables is empty"):
        match_concepts(np.ones((40, 1)), {})
    with pytest.raises(ValueError, match="not finite; leave examples that failed out"):
        match_concepts(np.full((40, 1), np.nan), {"a": has})
    with pytest.raises(ValueError, match="values other than true and false"):
        match_concepts(np.ones((40, 1)), {"a": np.arange(40)})


def test_k_means_ranks_by_closeness_to_its_centroids():
    """Four blobs far apart: a column's examples of one blob come first, by minus the squared distance to its mean."""
    task = planted(n=40, r=4, c=2)
    random = np.random.default_rng(0)
    blob = np.arange(40) % 4
    activations = 10 * np.eye(4)[blob] + random.normal(size=(40, 4))
    scores = control_rankings(task.pefs, np.ones((40, 4)), activations)["k-means"]
    means = np.stack([activations[blob == b].mean(axis=0) for b in range(4)])
    expected = -np.square(activations[:, None] - means[None]).sum(axis=-1)
    which = np.abs(scores[:, :, None] - expected[:, None]).max(axis=0).argmin(axis=1)
    assert sorted(which) == [0, 1, 2, 3]
    np.testing.assert_allclose(scores, expected[:, which], rtol=1e-6, atol=1e-6)


def test_predicted_classes_are_taken_by_turns():
    task = planted(n=20, r=3, c=2)
    ranking = control_rankings(task.pefs, np.ones((20, 5)))["predicted class"]
    predicted = np.asarray(task.pefs.logits).argmax(axis=1)
    classes = task.pefs.logits.shape[1]
    for j in range(5):
        np.testing.assert_array_equal(ranking[:, j], predicted == j % classes)
