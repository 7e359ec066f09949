"""Concept search on coefficients that were made from concepts, and on noise."""

import numpy as np
import pytest

from npeff_jax.evaluation import search_concepts

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
    assert "5 of 6 components share a concept in all of their top 16 examples; 0.0 with permuted" in str(found)
    assert "common" not in found.names
    lines = str(found).splitlines()
    assert lines[0] == "component 0: 1 shared, permuted 0.0: c0"
    assert lines[5].startswith("component 5: 0 shared, permuted 0.0: none; nearest c")


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


def test_bad_input_is_said():
    with pytest.raises(ValueError, match=r"concept 'a' has shape \(3,\); expected \(4,\)"):
        search_concepts(np.ones((4, 1)), {"a": [True] * 3})
    with pytest.raises(ValueError, match="every concept holds for more than half"):
        search_concepts(np.ones((4, 1)), {"a": [True] * 4})
