"""Moves in the span of directions: the trust-region step in dense float64, its budget, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.perturbation import Aim, NoEditError, TrustRegion, perturbed_kl, scale_to_kl, span_move


@pytest.fixture(scope="module")
def linear():
    """Logits W x: derivatives, Fishers and losses by hand."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    y = rng.integers(0, 3, 50)
    model = npeff.Model(lambda p, e: e @ p["w"], {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)})
    directions = [{"w": jnp.asarray(v, jnp.float32)} for v in rng.normal(size=(5, 4, 3)) / 3]
    return model, x, y, directions


def by_hand(model, x, y, directions, delta=0.0, aim=Aim.REPAIR):
    """Derivatives of the mean −log p_y, or −log(1 − p_y), the Fisher in the span, and that mean."""
    w = np.asarray(model.params["w"], np.float64) + delta
    logits = x.astype(np.float64) @ w
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    T = np.stack([x.astype(np.float64) @ np.asarray(d["w"], np.float64) for d in directions])  # (d, n, C)
    onehot = np.eye(3)[y]
    own = np.sum(p * onehot, axis=1, keepdims=True)
    by_logits = p - onehot  # of −log p_y
    if aim is Aim.FORGET:  # d(−log(1 − p_y)) = p_y / (1 − p_y) · d log p_y
        by_logits = -own / (1 - own) * by_logits
    v = np.einsum("dnC,nC->d", T, by_logits) / len(x)
    S = np.einsum("nC,CD->nCD", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    M = np.einsum("dnC,nCD,enD->de", T, S, T) / len(x)
    return v, M, -np.mean(np.log(own if aim is Aim.REPAIR else 1 - own))


@pytest.mark.parametrize("aim", list(Aim))
def test_one_step_is_the_natural_gradient_in_the_span(linear, aim):
    model, x, y, directions = linear
    within = TrustRegion(nats=1e-3, steps=1, ridge=0.05)
    found = span_move(model, directions, x[:20], y[:20], x[20:], aim=aim, within=within)
    v, _, loss = by_hand(model, x[:20], y[:20], directions, aim=aim)
    _, M, _ = by_hand(model, x[20:], y[20:], directions)
    ahead = -np.linalg.solve(M + 0.05 * np.trace(M) / 5 * np.eye(5), v)
    assert found.loss[1] < found.loss[0]
    cosine = found.weights @ ahead / np.linalg.norm(found.weights) / np.linalg.norm(ahead)
    assert cosine == pytest.approx(1, abs=1e-5)
    assert found.loss[0] == pytest.approx(loss, rel=1e-5)
    assert 0.9e-3 <= found.kl <= 1e-3
    assert found.predicted_kl == pytest.approx(found.weights @ M @ found.weights / 2, rel=1e-3)
    assert found.kl == pytest.approx(float(perturbed_kl(model, x[20:], [found.move]).mean()), rel=1e-5)
    delta = np.asarray(found.move["w"], np.float64)
    assert found.loss[1] == pytest.approx(by_hand(model, x[:20], y[:20], directions, delta, aim)[2], rel=1e-5)
    assert found.norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)


def test_several_steps_and_more_budget_go_further(linear):
    model, x, y, directions = linear
    losses = []
    for nats, steps in ((1e-3, 1), (0.05, 1), (0.05, 4)):
        found = span_move(model, directions, x[:20], y[:20], x[20:], within=TrustRegion(nats, steps, ridge=0.01))
        assert 0.9 * nats <= found.kl <= nats
        losses.append(found.loss[1])
    start = by_hand(model, x[:20], y[:20], directions)[2]
    assert start > losses[0] > losses[1]
    assert start - losses[2] > 0.98 * (start - losses[1])
    # no unit vector of the span at the same KL does better than several steps
    rng = np.random.default_rng(1)
    for c in rng.normal(size=(20, 5)):
        direction = jax.tree.map(lambda *leaves, c=c: sum(a * b for a, b in zip(c, leaves, strict=True)), *directions)
        move, kl = scale_to_kl(model, direction, x[20:], 0.05)
        assert 0.045 <= kl <= 0.05
        assert by_hand(model, x[:20], y[:20], directions, np.asarray(move["w"]))[2] > losses[2]


def test_copies_of_a_direction_change_nothing(linear):
    model, x, y, directions = linear
    once = span_move(model, directions[:2], x[:20], y[:20], x[20:], within=TrustRegion(ridge=1e-4))
    twice = span_move(model, [*directions[:2], directions[0]], x[:20], y[:20], x[20:], within=TrustRegion(ridge=1e-4))
    np.testing.assert_allclose(twice.move["w"], once.move["w"], atol=2e-3)


def test_a_batch_of_any_size(linear):
    model, x, y, directions = linear
    small = npeff.Passes(batch_size=7)
    whole = span_move(model, directions, x[:20], y[:20], x[20:])
    found = span_move(model, directions, x[:20], y[:20], x[20:], passes=small)
    np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-3, atol=1e-6)


def test_what_is_refused(linear):
    model, x, y, _ = linear
    with pytest.raises(ValueError, match="directions is empty"):
        span_move(model, [], x, y, x)
    nothing = {"w": jnp.ones((4, 3))}  # adds the same to every logit
    with pytest.raises(NoEditError, match="no combination of these directions"):
        span_move(model, [jax.tree.map(jnp.zeros_like, nothing)], x, y, x)
    with pytest.raises(NoEditError, match="direction is zero"):
        scale_to_kl(model, jax.tree.map(jnp.zeros_like, nothing), x, 0.1)
    with pytest.raises(ValueError, match="nats=0 is out of range"):
        TrustRegion(nats=0.0)
