"""Divergences of perturbed models against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.perturbation import _divergence, perturbed_predictions
from tests.planted_model import logits_fn, make_examples, make_model, oracle_fisher, oracle_kl

pytestmark = pytest.mark.fast

SCALES = (0.3, -0.3, 1.0)


def directions(model, count=2, seed=3):
    keys = jax.random.split(jax.random.key(seed), count)
    vectors = [jax.random.normal(key, (model.space.size,)) for key in keys]
    return [model.space.unravel(vector / jnp.linalg.norm(vector)) for vector in vectors]


@pytest.fixture(scope="module")
def setting():
    model = make_model()
    examples, _ = make_examples(29, leak=0.2)
    return model, examples, directions(model)


def test_kl_is_the_oracles(setting):
    model, examples, along = setting
    before = jax.tree.map(np.array, model.params)
    found = npeff.perturbed_kl(model, examples, along, SCALES)
    assert found.shape == (2, 3, 29)
    for i, direction in enumerate(along):
        for j, scale in enumerate(SCALES):
            delta = jax.tree.map(lambda leaf, scale=scale: scale * leaf, direction)
            expected = oracle_kl(model.params, delta, examples)
            np.testing.assert_allclose(found[i, j], expected, rtol=2e-4, atol=1e-9)
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


def test_predictions_are_the_largest_logits(setting):
    model, examples, along = setting
    found = perturbed_predictions(model, examples, along, (0.0, 3.0, -3.0), batch_size=8)
    assert found.shape == (2, 3, 29)
    for i, direction in enumerate(along):
        for j, scale in enumerate((0.0, 3.0, -3.0)):
            moved = jax.tree.map(lambda leaf, step, scale=scale: leaf + scale * step, model.params, direction)
            expected = [logits_fn(moved, jax.tree.map(lambda leaf, k=k: leaf[k], examples)).argmax() for k in range(29)]
            np.testing.assert_array_equal(found[i, j], expected)
    assert (found[:, 1] != found[:, 0]).any()


def test_small_perturbations_follow_equation_2(setting):
    model, examples, along = setting
    scale = 1e-3
    found = npeff.perturbed_kl(model, examples, along[:1], [scale])[0, 0]
    vector = scale * np.asarray(model.space.ravel(along[0]), np.float64)
    for i in range(29):
        fisher = oracle_fisher(model.params, jax.tree.map(lambda leaf, i=i: leaf[i], examples))
        np.testing.assert_allclose(found[i], vector @ fisher @ vector / 2, rtol=5e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.parametrize("devices", [1, 4, 8])
def test_batches_and_devices_change_nothing(setting, batch_size, devices):
    model, examples, along = setting
    assert len(jax.devices()) >= 8 or devices == 1
    mesh = npeff.make_mesh(jax.devices()[:devices])
    found = npeff.perturbed_kl(model, examples, along, SCALES, batch_size=batch_size, mesh=mesh)
    expected = npeff.perturbed_kl(model, examples, along, SCALES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


def test_a_mesh_that_leaves_an_axis_to_the_model(setting):
    model, examples, along = setting
    found = npeff.perturbed_kl(model, examples, along, SCALES, mesh=npeff.make_mesh(model=2))
    np.testing.assert_allclose(found, npeff.perturbed_kl(model, examples, along, SCALES), rtol=1e-4, atol=1e-8)


def test_parameters_outside_the_mask_stay(setting):
    model, examples, _ = setting
    masked = npeff.Model(model.logits_fn, model.params, mask="block1")
    everything = masked.space.unravel(jnp.ones(masked.space.size))
    moved = npeff.perturbed_kl(masked, examples, [everything])[0, 0]
    delta = jax.tree.map(np.zeros_like, model.params) | {"block1": np.ones((4, 3))}
    np.testing.assert_allclose(moved, oracle_kl(model.params, delta, examples), rtol=2e-4, atol=1e-7)


def test_low_precision_parameters_still_move():
    """In bfloat16 a step of a thousandth would be rounded away at 1.0."""
    model = npeff.Model(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 2), jnp.bfloat16)})
    step = model.space.unravel(jnp.array([1.0, -1.0, 0.5, 0.0]))
    found = npeff.perturbed_kl(model, np.ones((3, 2), np.float32), [step], [1e-3])
    np.testing.assert_allclose(found, (2.5e-3) ** 2 / 8, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_no_move_is_no_divergence_and_a_small_one_is_right(dtype):
    """Stored in few bits, by a model that computes in few bits: against float64 at the stored parameters."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(3, 4)), dtype)
    x = rng.normal(size=(12, 3)).astype(dtype).astype(np.float32)
    model = npeff.Model(lambda p, e: e.astype(dtype) @ p["w"], {"w": w})
    step = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    found = npeff.perturbed_kl(model, x, [step], [0.0, 0.01])[0]
    assert np.all(found[0] == 0.0)

    def log_p(weights):
        z = x.astype(np.float64) @ weights
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    before = log_p(np.asarray(w, np.float64))
    after = log_p(np.asarray(w, np.float64) + 0.01 * np.asarray(step["w"], np.float64))
    np.testing.assert_allclose(found[1], np.sum(np.exp(before) * (before - after), axis=1), rtol=1e-3)


def test_many_directions_are_as_one_after_the_other(setting, monkeypatch):
    """More than one call takes, from a generator, and one at a time: the same bits of zero, the same numbers."""
    model, examples, _ = setting
    rng = np.random.default_rng(7)
    along = [model.space.unravel(jnp.asarray(rng.normal(size=model.space.size), jnp.float32)) for _ in range(19)]
    scales = [0.1, 0.0, -0.2]
    found = npeff.perturbed_kl(model, examples, (direction for direction in along), scales, batch_size=8)
    assert np.all(found[:, 1] == 0.0)
    singles = np.concatenate([npeff.perturbed_kl(model, examples, [direction], scales) for direction in along])
    np.testing.assert_allclose(found, singles, rtol=1e-4, atol=1e-9)
    monkeypatch.setattr(_divergence, "CALL_BYTES", 1)
    np.testing.assert_allclose(npeff.perturbed_kl(model, examples, along[:3], scales), found[:3], rtol=1e-4, atol=1e-9)
    assert npeff.perturbed_kl(model, examples, [], scales).shape == (0, 3, 29)


def test_what_is_no_direction_is_said(setting):
    model, examples, along = setting
    flat = np.zeros(model.space.size, np.float32)
    cases = {
        r"directions\[0\] is a flat vector of shape \(36,\); .*model.space.unravel": [flat],
        r"directions\[1\] has shape \(4, 4\) at 'block1'; expected \(4, 3\)": [
            along[0],
            along[0] | {"block1": np.zeros((4, 4), np.float32)},
        ],
        r"directions\[0\] has a non-finite value at 'block2'": [
            along[0] | {"block2": np.full((4, 3), np.nan, np.float32)}
        ],
        r"directions\[0\] is an array of shape \(3,\)": [np.zeros(3, np.float32)],
    }
    for message, directions in cases.items():
        with pytest.raises(ValueError, match=message) as said:
            npeff.perturbed_kl(model, examples, directions)
        assert len(str(said.value)) < 200
    with pytest.raises(TypeError, match=r"one pytree shaped like the parameters; put it in a list"):
        npeff.perturbed_kl(model, examples, along[0])
    with pytest.raises(ValueError, match="expected a list of finite numbers"):
        npeff.perturbed_kl(model, examples, along, [float("nan")])


def test_what_is_not_finite_is_named(setting):
    model, examples, along = setting
    broken = npeff.Model(lambda p, x: jnp.where(x["x"][0] > 1e3, jnp.nan, 1.0) * model.logits_fn(p, x), model.params)
    examples = jax.tree.map(np.copy, examples)
    examples["x"][17, 0] = 1e4
    with pytest.raises(ValueError, match="example 17 has no finite prediction under perturbation 0 at scale"):
        npeff.perturbed_kl(broken, examples, along, SCALES)
    with pytest.raises(ValueError, match="example 17 has no finite prediction under perturbation 0 at scale"):
        perturbed_predictions(broken, examples, along, SCALES)
    with pytest.raises(ValueError, match="nor without one; leave it out"):
        npeff.perturbed_kl(broken, examples, along, SCALES)
    fragile = npeff.Model(
        lambda p, x: jnp.where(jnp.abs(p["block0"]).max() > 1e3, jnp.nan, 1.0) * model.logits_fn(p, x), model.params
    )
    with pytest.raises(ValueError, match=r"perturbation 1 at scale 100000\.0; use a smaller norm"):
        npeff.perturbed_kl(fragile, examples, [jax.tree.map(jnp.zeros_like, along[0]), along[0]], [1e5])


def test_a_source_is_read_by_slices(setting):
    model, examples, along = setting

    class Source:
        def __len__(self):
            return 29

        def __getitem__(self, rows):
            return jax.tree.map(lambda leaf: leaf[rows], examples)

    found = npeff.perturbed_kl(model, Source(), along, SCALES, batch_size=8)
    np.testing.assert_allclose(found, npeff.perturbed_kl(model, examples, along, SCALES), rtol=1e-4, atol=1e-8)
