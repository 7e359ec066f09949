"""Baselines on planted features: clusters, concept vectors, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import activations, cluster, gradient_features, logit_gradients, tcav
from npeff_jax.evaluation._tcav import concept_vector
from tests.planted_model import BLOCKS, FEATURES, logits_fn, make_examples, make_model

pytestmark = pytest.mark.fast


def hidden(params, example):
    return {"gated": jnp.outer(example["gate"], example["x"]), "gate": example["gate"]}


def head(params, activation):
    weights = jnp.stack([params[f"block{b}"] for b in range(BLOCKS)])
    return jnp.einsum("bf,bfc->c", activation.reshape(BLOCKS, FEATURES), weights)


@pytest.fixture(scope="module")
def model():
    return npeff.Model(logits_fn, make_model().params, intermediates_fn=hidden)


@pytest.mark.parametrize("batch_size", [7, 100])
def test_activations_are_the_intermediates(model, batch_size):
    examples, _ = make_examples(20, leak=0.1)
    found = activations(model, examples, "gated", batch_size=batch_size)
    expected = examples["gate"][:, :, None] * examples["x"][:, None, :]
    np.testing.assert_allclose(found, expected.reshape(20, -1), rtol=1e-6)


def test_activations_say_what_is_missing(model):
    examples, _ = make_examples(4)
    with pytest.raises(ValueError, match="exposes no intermediates"):
        activations(make_model(), examples, "gated")
    with pytest.raises(ValueError, match=r"no intermediate is named 'pooled'; this model has \['gate', 'gated'\]"):
        activations(model, examples, "pooled")


def test_logit_gradients_of_a_linear_head(model):
    examples, _ = make_examples(5)
    values = activations(model, examples, "gated")
    found = logit_gradients(model, values, head, batch_size=2)
    weights = np.concatenate([np.asarray(model.params[f"block{b}"]) for b in range(BLOCKS)])
    np.testing.assert_allclose(found, np.broadcast_to(weights.T, (5, 3, 12)), rtol=1e-6)


def test_clusters_of_planted_blobs():
    rng = np.random.default_rng(0)
    centres, block = 10 * np.eye(4), np.arange(80) % 4
    features = centres[block] + rng.normal(size=(80, 4))
    clusters = cluster(features, 4)
    comparison = npeff.compare_runs(clusters.membership, np.eye(4)[block])
    np.testing.assert_allclose(comparison.matched, 1.0)
    for k in range(4):
        members = np.flatnonzero(clusters.assignment == k)
        by_hand = members[np.argsort(np.linalg.norm(features[members] - features[members].mean(0), axis=1))]
        np.testing.assert_array_equal(npeff.top_examples(clusters.coefficients, k, 5), by_hand[:5])
    np.testing.assert_array_equal(cluster(features, 4).assignment, clusters.assignment)
    with pytest.raises(ValueError, match="n_clusters=81"):
        cluster(features, 81)


def test_gradient_features_keep_inner_products_and_find_sub_networks(model):
    examples, block = make_examples(60)

    def log_p(params, example):
        return jnp.max(jax.nn.log_softmax(logits_fn(params, example)))

    exact, gradient_fn = [], jax.jit(jax.grad(log_p))
    for i in range(60):
        gradient = gradient_fn(model.params, jax.tree.map(lambda leaf, i=i: leaf[i], examples))
        vector = np.asarray(model.space.ravel(gradient))
        exact.append(vector / np.linalg.norm(vector))
    exact = np.stack(exact)
    # The sketch is unbiased: over many projections its inner products average to the exact ones.
    sketches = [gradient_features(model, examples, n_features=64, seed=seed) for seed in range(40)]
    averaged = np.mean([s @ s.T for s in sketches], axis=0)
    np.testing.assert_allclose(averaged, exact @ exact.T, atol=6 / np.sqrt(64 * 40))
    np.testing.assert_allclose(
        gradient_features(model, examples, n_features=64, batch_size=7), sketches[0], rtol=1e-4, atol=1e-6
    )
    # Gradients of different sub-networks share no parameter: clusters hardly mix them.
    assignment = cluster(gradient_features(model, examples, n_features=4096), 12).assignment
    assert sum(np.bincount(block[assignment == k]).max() for k in range(12)) >= 55


@pytest.mark.parametrize("shape", [(30, 6), (5, 40)])  # primal and dual
def test_concept_vector_is_ridge_regression(shape):
    rng = np.random.default_rng(0)
    concept, counterpart = rng.normal(size=(2, *shape)) + np.array([[[0.5]], [[0.0]]])
    x = np.concatenate([concept, counterpart])
    y = np.concatenate([np.ones(shape[0]), -np.ones(shape[0])])
    x = x - x.mean(0)
    stacked = np.concatenate([x, np.eye(shape[1])])
    expected = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros(shape[1])]), rcond=None)[0]
    np.testing.assert_allclose(concept_vector(concept, counterpart), expected, rtol=1e-8, atol=1e-12)


def test_tcav_finds_the_planted_relation_and_no_other():
    """A logit that reads one feature: examples high in it are related to the class, those high in others are not."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(600, 8))
    gradients = 0.1 * rng.normal(size=(600, 2, 8))
    gradients[:, 0, 3] += 4.0  # the first logit rises along feature 3
    gradients[:, :, 5] = 0  # and none along feature 5
    predictions = (values[:, 3] < 0).astype(int)
    order = np.argsort(-values[:, 3])
    found = tcav(values, gradients, predictions, [order[:50], order[-50:], np.argsort(values[:, 5])[:40]])
    assert found.scores.shape == found.effects.shape == found.p_values.shape == (3, 2)
    assert found.scores[0, 0] > 0.99
    assert found.scores[1, 0] < 0.01
    np.testing.assert_array_equal(np.sign(found.effects[:2, 0]), [1, -1])
    np.testing.assert_allclose(found.p_values[:2, 0], 1 / 200)
    assert found.significant().tolist() == [True, True, False]


@pytest.mark.parametrize("head", ["linear", "varying"])
def test_tcav_calls_random_sets_significant_as_often_as_it_says(head):
    """A test that takes one concept's counterparts for independent draws calls more than half of them significant."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    gradients = np.broadcast_to(rng.normal(size=(1, 3, 6)), (400, 3, 6))
    gradients = gradients if head == "linear" else gradients * rng.uniform(-1, 2, (400, 1, 1))
    sets = [rng.choice(400, 30, replace=False) for _ in range(400)]
    p_values = tcav(values, gradients, rng.integers(0, 3, 400), sets, n_counterparts=2).p_values.min(axis=1)
    for level in (0.05, 0.2, 0.5):  # three standard errors: of 400 sets, and of the 199 they are all held against
        spread = np.sqrt(level * (1 - level) * (1 / 400 + 1 / 199))
        assert abs((p_values <= level).mean() - level) < 3 * spread


def test_a_class_without_examples_has_no_effect():
    rng = np.random.default_rng(0)
    values, gradients = rng.normal(size=(40, 3)), rng.normal(size=(40, 4, 3))
    found = tcav(values, gradients, np.arange(40) % 3, [np.arange(8)])
    assert (found.scores[0, 3], found.effects[0, 3], found.p_values[0, 3]) == (0.5, 0.0, 1.0)


def test_tcav_scores_and_p_values_by_the_definition():
    """Scores over a class's own examples; where no logit reacts to anything, every random concept does as well."""
    rng = np.random.default_rng(1)
    values, gradients = rng.normal(size=(60, 3)), np.zeros((60, 2, 3))
    predictions = np.arange(60) % 2
    gradients[predictions == 0, 0, 1] = 1.0  # only examples of class 0 react, and only to feature 1
    gradients[predictions == 1, 0, 1] = -1.0
    concept = np.argsort(-values[:, 1])[:10]
    found = tcav(values, gradients, predictions, [concept], n_random_concepts=19)
    assert found.scores[0, 0] == 1.0
    assert found.scores[0, 1] == 0.0  # the second logit of class 1's examples never rises
    still = tcav(values, 0 * gradients, predictions, [concept], n_random_concepts=19)
    np.testing.assert_array_equal(still.p_values, 1.0)


def test_tcav_refuses_what_it_cannot_test():
    values, gradients, predictions = np.zeros((10, 2)), np.zeros((10, 2, 2)), np.zeros(10, int)
    with pytest.raises(ValueError, match="concepts is empty"):
        tcav(values, gradients, predictions, [])
    with pytest.raises(ValueError, match="number of examples of a concept=6 is out of range"):
        tcav(values, gradients, predictions, [np.arange(6)])
