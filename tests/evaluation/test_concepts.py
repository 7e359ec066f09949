"""Concept search on coefficients that were made from concepts, and on noise."""

import itertools

import numpy as np
import pytest

from npeff_jax.evaluation import control_rankings, negations, search_concepts
from npeff_jax.tasks import planted

pytestmark = pytest.mark.fast


def test_planted_concepts_are_found_and_permuted_ones_are_not():
    random = np.random.default_rng(0)
    concepts = {f"c{j}": random.random(400) < 0.2 for j in range(5)} | {"common": np.ones(400, bool)}
    W = np.stack([concepts[f"c{j}"] + 0.1 * random.random(400) for j in range(5)], axis=1)
    W = np.concatenate([W, random.random((400, 1))], axis=1)  # the last component is about nothing
    found = search_concepts(W, concepts, n_top=16)
    assert [found.names[j] for j in found.best[:5]] == [f"c{j}" for j in range(5)]
    assert found.shared.tolist() == [True] * 5 + [False]
    assert found.permuted_shared.mean() < 0.01
    assert "5 of 6 components share a concept in all of their top 16 examples, 5 different ones; 0.0 with permuted" in (
        str(found)
    )
    assert "common" not in found.names
    lines = str(found).splitlines()
    assert lines[0] == "component 0: 1 shared, permuted 0.0: c0"
    assert lines[5].startswith("component 5: 0 shared, permuted 0.0: none; nearest c")
    np.testing.assert_allclose(found.best_average_precision[:5], 1)
    assert found.best_average_precision[5] < 0.4


def test_permuted_counts_are_what_chance_gives():
    """Two concepts that half of the examples have, one top example: each is shared by chance half of the time."""
    half = np.arange(100) % 2 == 0
    found = search_concepts(np.ones((100, 1)).cumsum(0), {"a": half, "b": ~half}, n_top=1, n_permutations=500)
    assert found.n_shared.tolist() == [1]
    assert np.all(found.permuted_n_shared == 1)
    found = search_concepts(np.ones((100, 1)).cumsum(0), {"a": half}, n_top=1, n_permutations=500)
    assert 0.4 < found.permuted_shared.mean() < 0.6
    assert found.shared_names(0) == ()


def test_shares_are_counted():
    W = np.array([[5.0], [4.0], [3.0], [2.0], [1.0], [0.0]])
    found = search_concepts(W, {"a": [True, True, False, False, False, False]}, n_top=4)
    assert found.share.tolist() == [[0.5]]
    assert found.note(0) == "a: 50% of its top 4 examples, 33% of all"
    assert found.n_positive.tolist() == [5]
    found = search_concepts(W, {"a": [False, True, False, True, False, False]}, n_top=4)  # hits at ranks 2 and 4
    assert found.average_precision.tolist() == [[0.5 * (1 / 2 + 2 / 4)]]


def test_ands_are_found_as_by_trying_all():
    """Against every AND of up to three, example by example, with labels and shares from the definition."""
    random = np.random.default_rng(1)
    n, k = 200, 6
    variables = {name: random.random(n) < 0.55 for name in "abcd"}
    predictions = np.where(variables["a"], 0, 1 + (random.random(n) < 0.5))
    W = random.random((n, 8)) + sum(0.2 * random.random(8) * has[:, None] for has in variables.values())
    found = search_concepts(W, variables, predictions=predictions, max_terms=3, n_top=k, n_permutations=0)
    for j in range(8):
        top = sorted(range(n), key=lambda i: -W[i, j])[:k]
        labels = {predictions[i] for i in top}
        expected = set()
        for terms in itertools.chain.from_iterable(itertools.combinations("abcd", size) for size in (1, 2, 3)):
            has = [all(variables[name][i] for name in terms) for i in range(n)]
            implied = all(has[i] for i in range(n) if predictions[i] in labels)
            if sum(has) <= n / 2 and all(has[i] for i in top) and not implied:
                expected.add(" & ".join(terms))
        assert set(found.shared_names(j)) == expected
    assert found.shared.any()
    assert not found.shared.all()
    assert found.found.total() == found.shared.sum()


def test_what_the_label_implies_does_not_count():
    predictions = np.repeat([0, 1, 2], 20)
    variables = {"is label 0": predictions == 0, "first half of it": np.arange(60) < 10}
    W = np.stack([np.arange(60.0)[::-1], np.roll(np.arange(60.0), 11)], axis=1)  # tops 0, 1, 2 and 10, 9, 8
    found = search_concepts(W, variables, predictions=predictions, n_top=3)
    assert [found.shared_names(j) for j in (0, 1)] == [("first half of it",), ()]
    assert search_concepts(W, variables, n_top=3).shared_names(1) == ("is label 0",)


def test_what_one_of_two_labels_implies_still_counts():
    """All examples of label 0 have it, of label 1 only some: that a component's top examples of both have it says a
    lot. What both labels imply says nothing.
    """
    predictions = np.repeat([0, 1, 2], 20)
    has = (predictions == 0) | ((predictions == 1) & (np.arange(60) % 4 == 0))
    W = np.where(np.arange(60) < 3, 60.0, 0) + np.where(has & (predictions == 1), 50.0, 0) - np.arange(60) / 100
    found = search_concepts(W[:, None], {"mixed": has}, predictions=predictions, n_top=6)
    assert found.eligible.tolist() == [[True]]
    assert found.shared_names(0) == ("mixed",)
    first = search_concepts(W[:, None], {"mixed": has}, predictions=predictions, n_top=3)
    assert first.eligible.tolist() == [[False]]


def test_same_examples_are_one_concept_and_negations_are_asked_for():
    a, b = np.arange(10) < 3, np.arange(10) < 5
    found = search_concepts(np.arange(10.0)[:, None], {"a": a, "b": b}, max_terms=2, n_top=2)
    assert found.names == ("a", "b")  # a & b has the examples of a
    assert not found.shared.any()
    found = search_concepts(np.arange(10.0)[:, None], {"b": b} | negations({"b": b}), n_top=2)
    assert found.shared_names(0) == ("not b",)
    assert found.found == {"not b": 1}


def test_controls_are_rankings_of_the_same_size():
    task = planted(n=40)
    W = task.coefficients
    rankings = control_rankings(task.pefs, W, activations=np.random.default_rng(0).normal(size=(40, 4)))
    assert set(rankings) == {"permuted", "random directions", "random examples", "predicted class", "k-means"}
    assert all(ranking.shape == W.shape for ranking in rankings.values())
    np.testing.assert_array_equal(np.sort(rankings["permuted"], axis=0), np.sort(W, axis=0))
    assert not np.array_equal(rankings["permuted"], W)


def test_random_directions_are_in_the_span_and_scored_by_each_fisher():
    """With one component the span is a line: every direction is ±its vector, and scores are W but for a scale."""
    task = planted(n=20, r=1, c=1)
    scores = control_rankings(task.pefs, task.coefficients)["random directions"]
    np.testing.assert_allclose(scores / scores.sum(), task.coefficients / task.coefficients.sum(), rtol=1e-4)


def test_random_examples_rank_by_the_inner_product_of_fishers():
    """Drawn without repeats: with as many columns as examples all of ⟨F_i, F_e⟩ is there, in some order."""
    task = planted(n=20, r=3, c=2)
    fishers = task.fishers.reshape(20, -1)
    expected = fishers @ fishers.T
    scores = control_rankings(task.pefs, np.ones((20, 20)))["random examples"]
    which = np.abs(scores[:, :, None] - expected[:, None, :]).max(axis=0).argmin(axis=1)
    np.testing.assert_allclose(scores, expected[:, which], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.sum(axis=1), expected.sum(axis=1), rtol=1e-4)


def test_bad_input_is_said():
    with pytest.raises(ValueError, match=r"variable 'a' has shape \(3,\); expected \(4,\)"):
        search_concepts(np.ones((4, 1)), {"a": [True] * 3})
    with pytest.raises(ValueError, match="every concept holds for more than half"):
        search_concepts(np.ones((4, 1)), {"a": [True] * 4})
