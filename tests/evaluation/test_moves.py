"""Moves held against each other, collateral, steering, repairs from a split: by hand on a linear model."""

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import auc, collateral, compare_moves, repair, steer
from npeff_jax.perturbation import TrustRegion, component_directions, perturbed_kl


@pytest.fixture(scope="module")
def flawed():
    """Two classes by x0, decided by x0 + 0.8 x1: a cue that misleads, and components to move along."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)).astype(np.float32)
    params = {"w": jnp.asarray([[2.0, 0.0], [1.6, 0.0], [0.0, 0.0]])}
    model = npeff.Model(lambda p, e: e @ p["w"], params, label_names=("yes", "no"))
    labels = (x[:, 0] < 0).astype(np.int64)
    pefs = npeff.compute_pefs(model, x[:200], labels=labels[:200], progress=False)
    return model, x, labels, pefs, npeff.decompose(pefs, 3, progress=False)


def test_accuracy_by_group_by_hand(flawed):
    model, x, labels, _, _ = flawed
    mend = {"w": jnp.asarray([[0.0, 0.0], [-1.6, 0.0], [0.0, 0.0]])}
    none = {"w": jnp.zeros((3, 2))}
    misled = np.sign(x[:, 0]) != np.sign(x[:, 0] + 0.8 * x[:, 1])
    found = compare_moves(model, {"mend": mend, "none": none}, x, labels, groups={"misled": misled})
    assert found.groups == ("all", "misled")
    assert found.sizes == (600, misled.sum())
    np.testing.assert_allclose(found.before, [1 - misled.mean(), 0], atol=1e-9)
    np.testing.assert_allclose(found.change, [[misled.mean(), 1], [0, 0]], atol=1e-9)
    steps = misled.astype(float)
    half = 1.96 * steps.std(ddof=1) / np.sqrt(600)
    np.testing.assert_allclose(found.interval[0, 0], misled.mean() + half * np.array([-1, 1]))
    kl = perturbed_kl(model, x, [mend])[0, 0]
    np.testing.assert_allclose(found.kl, [[kl.mean(), kl[misled].mean()], [0, 0]], rtol=1e-5)
    assert "misled" in repr(found)
    assert "mend" in found._repr_html_()
    with pytest.raises(ValueError, match=r"group 'nobody' has shape .* and 0 examples"):
        compare_moves(model, {"mend": mend}, x, labels, groups={"nobody": misled & ~misled})
    with pytest.raises(ValueError, match="moves is empty or has no names"):
        compare_moves(model, {}, x, labels)


def test_a_repair_is_chosen_and_reported_on_different_examples(flawed):
    model, x, labels, _, decomposition = flawed
    found = repair(model, decomposition, x, labels, within=TrustRegion(nats=0.05, ridge=0.01))
    assert found.n_choosing == 240
    assert found.accuracy.sizes[0] == 360
    assert found.accuracy.change[0, 0] > 0.05
    assert found.accuracy.interval[0, 0, 0] > 0
    assert found.by.loss[1] < found.by.loss[0]
    assert 0.045 <= found.by.kl <= 0.05
    w = np.asarray(found.by.move["w"], np.float64)
    before, after = ((x @ (np.asarray(model.params["w"]) + d)).argmax(1) == labels for d in (0, w))
    order = np.random.default_rng(0).permutation(600)
    assert found.accuracy.change[0, 0] == pytest.approx((after * 1.0 - before)[order[240:]].mean(), abs=1e-6)
    logits = x[order[:240]].astype(np.float64) @ np.asarray(model.params["w"], np.float64)
    margin = np.diff(logits, axis=1)[:, 0] * np.where(labels[order[:240]] == 0, 1, -1)
    assert found.by.loss[0] == pytest.approx(np.logaddexp(0, margin).mean(), rel=1e-5)  # of all that choose
    right = (x @ np.asarray(model.params["w"])).argmax(1)
    with pytest.raises(ValueError, match="240 are right; a repair needs both"):
        repair(model, decomposition, x, right)


def test_collateral_by_hand(flawed):
    model, x, _, pefs, decomposition = flawed
    move = next(iter(component_directions(model, decomposition, [0])))
    move = {"w": 0.05 * move["w"]}
    found = collateral(model, decomposition, pefs, x[:200], move, fit=decomposition, n_top=20)
    kl, W = perturbed_kl(model, x[:200], [move])[0, 0], decomposition.coefficients
    for j in range(3):
        top = npeff.top_examples(W, j, 20)
        top = top[W[top, j] > 0]
        assert found.measured[j] == pytest.approx(kl[top].mean(), rel=1e-5)
        expected = npeff.predicted_kl(model, decomposition, W, pefs.norms, move)[top].mean()
        assert found.predicted[j] == pytest.approx(expected, rel=1e-5)
    assert found.others == pytest.approx(kl.mean(), rel=1e-5)
    assert found.order[0] == int(np.nanargmax(found.measured))
    assert "KL by equation 5" in found._repr_html_()
    assert "Collateral" in repr(found)
    with pytest.raises(ValueError, match="200 PEFs and 200 rows"):
        collateral(model, decomposition, pefs, x[:50], move, fit=decomposition)


def test_steering_by_hand(flawed):
    model, x, _, _, _ = flawed
    along = {"w": jnp.asarray([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])}
    other = {"w": jnp.asarray([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])}
    found = steer(model, {"own": along, "other": other}, x[:100], 0, nats=0.05, n_sizes=4)
    own = found.responses["own"]
    assert own.scales.shape == (9,)
    assert own.scales[4] == 0
    assert (np.diff(own.scales) > 0).all()
    for scale, value in zip(own.scales, own.behaviour, strict=True):
        w = np.asarray(model.params["w"], np.float64) + scale * np.asarray(along["w"], np.float64)
        assert value == pytest.approx(np.mean(1 / (1 + np.exp(-(x[:100] @ w) @ [1, -1]))), abs=1e-5)
    np.testing.assert_allclose(own.kl, perturbed_kl(model, x[:100], [along], own.scales)[0].mean(axis=1), rtol=1e-4)
    assert 0.045 <= own.kl[0] <= 0.0501
    assert 0.045 <= own.kl[-1] <= 0.0501
    slope = (own.behaviour[5] - own.behaviour[3]) / (own.scales[5] - own.scales[3])
    assert own.slope == pytest.approx(slope)
    low, high = own.linear_range
    inside = (own.scales >= low) & (own.scales <= high)
    line = own.behaviour[4] + slope * own.scales
    assert (np.abs(own.behaviour - line)[inside] <= 0.1 * np.abs(slope * own.scales)[inside] + 1e-12).all()
    assert found.svg().count("<polyline") == 2
    assert "probability of class yes" in repr(found)
    assert found._repr_html_()
    with pytest.raises(ValueError, match="behaviour=2 is out of range"):
        steer(model, {"own": along}, x, 2)


def test_auc_counts_pairs():
    scores, positive = np.array([0.0, 0.0, 1.0, 2.0, 2.0]), np.array([False, True, False, True, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))
