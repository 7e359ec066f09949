"""The loss gradient and the data set's Fisher against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.perturbation import Estimate, Expectation, Sampling, dataset_fisher, loss_gradient, loss_sign
from tests.planted_model import BLOCKS, CLASSES, make_examples, make_model, oracle_fisher

pytestmark = pytest.mark.fast


def oracle_gradient(params, examples, labels, temperature=1.0):
    """Σ_i ∇(−log p(y_i)) as one vector, by hand: the input times (p − onehot)."""
    weights = np.stack([np.asarray(params[f"block{b}"], np.float64) for b in range(BLOCKS)])
    inputs = np.einsum("nb,nf->nbf", examples["gate"], examples["x"]).astype(np.float64)
    z = np.einsum("nbf,bfc->nc", inputs, weights) / temperature
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = p.argmax(1) if labels is None else labels
    return np.einsum("nbf,nc->bfc", inputs, p - np.eye(CLASSES)[labels]).ravel() / temperature


@pytest.fixture(scope="module")
def setting():
    examples, _ = make_examples(23, leak=0.2)
    return make_model(), examples, np.random.default_rng(0).integers(0, CLASSES, 23)


@pytest.mark.parametrize("batch_size", [5, 32])
@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_gradient_is_the_oracles(setting, batch_size, with_labels, temperature):
    model, examples, labels = setting
    model = npeff.Model(model.logits_fn, model.params, output=npeff.Categorical(temperature))
    labels = labels if with_labels else None
    found = loss_gradient(model, examples, labels, batch_size=batch_size)
    expected = oracle_gradient(model.params, examples, labels, temperature)
    np.testing.assert_allclose(model.space.ravel(found), expected, rtol=1e-4, atol=1e-5)


def test_sign_lowers_the_loss(setting):
    model, examples, labels = setting
    gradient = oracle_gradient(model.params, examples, labels)
    for seed in range(5):
        vector = np.random.default_rng(seed).normal(size=model.space.size)
        sign = loss_sign(model, model.space.unravel(jnp.asarray(vector, jnp.float32)), examples, labels)
        assert sign == -np.sign(gradient @ vector)


def test_loss_wants_labels(setting):
    model, examples, _ = setting
    with pytest.raises(ValueError, match="labels has shape"):
        loss_gradient(model, examples, np.zeros(4, int))
    with pytest.raises(TypeError, match="Gaussian outputs do not have"):
        loss_gradient(npeff.Model(model.logits_fn, model.params, output=npeff.Gaussian()), examples)


@pytest.mark.parametrize("batch_size", [1, 6, 64])
@pytest.mark.parametrize("devices", [1, 8])
def test_dataset_fisher_is_the_mean_diagonal(setting, batch_size, devices):
    model, examples, _ = setting
    one = [oracle_fisher(model.params, jax.tree.map(lambda leaf, i=i: leaf[i], examples)) for i in range(23)]
    mesh = npeff.make_mesh(jax.devices()[:devices])
    found = dataset_fisher(model, examples, Expectation(), batch_size=batch_size, mesh=mesh)
    np.testing.assert_allclose(model.space.ravel(found), np.mean([np.diag(f) for f in one], axis=0), rtol=1e-4)


def test_sampled_fisher_is_unbiased_and_ignores_batches(setting):
    model, examples, _ = setting
    exact = np.asarray(model.space.ravel(dataset_fisher(model, examples)))
    found = model.space.ravel(dataset_fisher(model, examples, Sampling(2000), batch_size=23))
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=1e-3)  # 2,000 draws: a standard error of 2 to 3%
    one = [dataset_fisher(model, examples, Sampling(3), batch_size=size) for size in (4, 23)]
    np.testing.assert_allclose(model.space.ravel(one[0]), model.space.ravel(one[1]), rtol=1e-4, atol=1e-7)
    other = dataset_fisher(model, examples, Sampling(3, seed=1))
    assert not np.allclose(model.space.ravel(one[0]), model.space.ravel(other))
    with pytest.raises(ValueError, match="n_samples=0"):
        Sampling(0)


def test_labels_are_classes_of_the_model(setting):
    model, examples, labels = setting
    for bad in (-100, -1, CLASSES):
        wrong = labels.copy()
        wrong[5] = bad
        with pytest.raises(ValueError, match=rf"labels has {bad} at example 5 \(1 such\), but the model has"):
            loss_gradient(model, examples, wrong)
        with pytest.raises(ValueError, match="labels has"):
            loss_sign(model, model.params, examples, wrong)
    with pytest.raises(ValueError, match="direction is a flat vector"):
        loss_sign(model, np.zeros(36, np.float32), examples, labels)


@pytest.mark.parametrize("margin", [0.0, 40.0, 80.0])
def test_confident_predictions_have_a_fisher(margin):
    """Float64 of a linear model: p(1 − p) of the likelier of two classes, times the squared input."""
    x = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    model = npeff.Model(
        lambda p, e: jnp.stack([p["w"] @ e + p["b"], 0.0]), {"w": jnp.zeros(2), "b": jnp.float32(margin)}
    )
    found = dataset_fisher(model, x)
    weight = np.exp(-margin) / (1 + np.exp(-margin)) ** 2
    np.testing.assert_allclose(found["w"], weight * np.square(x, dtype=np.float64).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["b"], weight, rtol=1e-4)


def test_small_fishers_after_a_large_one_are_counted():
    """3,000 batches whose every addition float32 would round away, larger units coming in on the way."""
    x = np.full((3000, 1), np.sqrt(3e-8), np.float32)
    x[100], x[2000] = 1.0, 1.5
    model = npeff.Model(lambda p, e: jnp.stack([p["w"] @ e, 0.0]), {"w": jnp.zeros(1)})
    expected = 0.25 * np.square(x, dtype=np.float64).mean()
    np.testing.assert_allclose(dataset_fisher(model, x, batch_size=1)["w"], expected, rtol=1e-6)


def test_an_estimate_of_ones_own(setting):
    """Class rows in place of the factor: another root of the same Fisher, so the same diagonal."""
    model, examples, _ = setting

    @dataclasses.dataclass(frozen=True)
    class ClassRows(Estimate):
        def cotangents(self, output, logits, position):
            return output.class_rows(logits)

    exact = model.space.ravel(dataset_fisher(model, examples))
    np.testing.assert_allclose(model.space.ravel(dataset_fisher(model, examples, ClassRows())), exact, rtol=1e-4)
    broken = npeff.Model(lambda p, x: jnp.where(x["x"][0] > 1e3, jnp.nan, 1.0) * model.logits_fn(p, x), model.params)
    examples = jax.tree.map(np.copy, examples)
    examples["x"][17, 0] = 1e4
    with pytest.raises(ValueError, match="a gradient is not finite"):
        dataset_fisher(broken, examples)
