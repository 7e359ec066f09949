"""Repairs: errors that one direction mends, counted by hand, and a choice that does not report on itself."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import npeff_jax as npeff
from npeff_jax.evaluation import find_repairs, top_share

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def flawed():
    """A linear model whose threshold is off: along −b it repairs, along w it does nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    params = {"w": jnp.array([3.0, 0.0]), "b": jnp.array(1.0)}
    model = npeff.Model(lambda p, x: jnp.stack([jnp.vdot(p["w"], x) + p["b"], jnp.float32(0)]), params)
    labels = (x[:, 0] < 0).astype(np.int64)
    directions = [{"w": jnp.zeros(2), "b": jnp.array(1.0)}, {"w": jnp.array([1.0, 0.0]), "b": jnp.array(0.0)}]
    return model, x, labels, directions


def test_repairs_by_hand(flawed):
    model, x, labels, directions = flawed
    choosing = np.arange(400) < 150
    found = find_repairs(model, directions, x, labels, choosing=choosing, norm=0.5, batch_size=64)

    def right(w, b):
        return ((w * x[:, 0] + b) <= 0) == labels

    before = right(3.0, 1.0)
    np.testing.assert_array_equal(found.before, before)
    for sign, position in ((1, 0), (-1, 1)):
        np.testing.assert_array_equal(found.after[0, position], right(3.0, 1.0 + sign * 0.5))
        np.testing.assert_array_equal(found.after[1, position], right(3.0 + sign * 0.5, 1.0))
    assert found.sign.tolist() == [-1, 1]
    steps = right(3.0, 0.5)[~choosing].astype(float) - before[~choosing]
    np.testing.assert_allclose(found.change[0], steps.mean())
    assert found.change[0] > 0.03
    expected = scipy.stats.t.interval(0.9, 10**6, steps.mean(), scipy.stats.sem(steps))
    np.testing.assert_allclose(found.interval(0.9)[0], expected, rtol=1e-4)
    np.testing.assert_allclose(found.chosen_change[0], (right(3.0, 0.5)[choosing].mean() - before[choosing].mean()))
    assert found.change_with(np.array([1, 1]))[0] < 0
    assert "250 other examples" in repr(found)


def test_a_choice_by_chance_is_not_reported_as_a_gain():
    """Labels at random: some direction always looks good where it was chosen, none does elsewhere."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 6)).astype(np.float32)
    model = npeff.Model(lambda p, x: jnp.stack([jnp.vdot(p, x), jnp.float32(0)]), jnp.asarray(rng.normal(size=6)))
    directions = [jnp.asarray(v / np.linalg.norm(v), jnp.float32) for v in rng.normal(size=(60, 6))]
    labels = rng.integers(0, 2, 2000)
    found = find_repairs(model, directions, x, labels, choosing=np.arange(2000) < 100, norm=4.0)
    assert found.chosen_change.max() > 0.05
    assert abs(found.change[found.chosen_change > 0.03].mean()) < 0.02
    low, high = found.interval().T
    assert ((low <= 0) & (high >= 0)).mean() > 0.85


def test_what_cannot_be_reported_is_refused(flawed):
    model, x, labels, directions = flawed
    with pytest.raises(ValueError, match=r"choosing has shape \(400,\) and 400 examples; expected \(400,\), true for"):
        find_repairs(model, directions, x, labels, choosing=np.ones(400, bool))
    with pytest.raises(ValueError, match="labels"):
        find_repairs(model, directions, x, labels[:-1], choosing=np.arange(399) < 9)


def test_share_of_wrong_examples_among_the_top():
    W = np.array([[5.0, 0.0], [4.0, 1.0], [3.0, 2.0], [0.0, 3.0]])
    np.testing.assert_allclose(top_share(W, np.array([True, False, False, True]), n_top=2), [0.5, 0.5])
    np.testing.assert_allclose(top_share(W, np.array([True, True, False, False]), n_top=3), [2 / 3, 1 / 3])
