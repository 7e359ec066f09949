"""Prices of an exchange against explicit refits in float64, and a run's judgement of trials."""

import jax.numpy as jnp
import numpy as np
import pytest

from npeff_jax.factorization._driver import Limits, _decided
from npeff_jax.factorization._exchange import PATIENCE, Offer, Search, best_candidates, least_missed
from npeff_jax.factorization._run import Run, Stopping


def unexplained(X, H):
    """‖X − W H‖² with the best W, of any sign."""
    return float(np.sum((X - np.linalg.lstsq(H.T, X.T, rcond=None)[0].T @ H) ** 2))


@pytest.mark.parametrize("n_frozen", [0, 2])
def test_what_components_cost(n_frozen):
    """Near copies, of which one costs nothing however large its coefficients, and after it what both explain."""
    rng = np.random.default_rng(0)
    H = rng.gamma(1.0, size=(7, 40))
    H[5] = H[3] + 0.03 * rng.normal(size=40)
    W = rng.random((30, 7)) * [1.0, 0.3, 0.5, 3.0, 0.4, 3.0, 0.2]
    dropped, costs = least_missed(W, H @ H.T, 4, n_frozen=n_frozen)
    left, before = list(range(7)), 0.0
    for component, cost in zip(dropped, costs, strict=True):
        allowed = [j for j in left if j >= n_frozen]
        after = {j: unexplained(W @ H, H[[k for k in left if k != j]]) for j in allowed}
        assert component == min(after, key=after.get)
        assert cost == pytest.approx(after[component] - before, rel=2e-2), "up to the ridge, of 1% here"
        left.remove(component)
        before = after[component]
    assert {3, 5} & set(dropped[:1].tolist()), "a copy is missed least"
    assert not {3, 5} <= set(dropped.tolist()), "both together are not"


def test_what_candidates_gain():
    """Two candidates that are copies of each other, and one of a component, are worth one place."""
    rng = np.random.default_rng(1)
    H, C = rng.gamma(1.0, size=(4, 60)), rng.gamma(1.0, size=(6, 60))
    C[3] = C[0] + 1e-3 * rng.normal(size=60)
    C[4] = H[1]
    residual = rng.random((50, 6)) * [3.0, 1.0, 2.0, 0.0, 0.0, 0.5] @ C
    X = residual + rng.random((50, 4)) @ H
    rest = X - np.linalg.lstsq(H.T, X.T, rcond=None)[0].T @ H  # what the best fit leaves
    chosen, gains = best_candidates(rest @ C.T, H @ C.T, C @ C.T, H @ H.T, 3)
    directions = C - np.linalg.lstsq(H.T, C.T, rcond=None)[0].T @ H  # of each candidate, what H does not span
    taken: list[int] = []
    for candidate, gain in zip(chosen, gains, strict=True):
        size = np.sum(directions**2, axis=1)
        free = [k for k in range(6) if k not in taken and size[k] > 1e-3 * np.sum(C[k] ** 2)]
        worth = {k: np.sum(np.maximum(rest @ directions[k], 0) ** 2) / size[k] for k in free}
        assert candidate == max(worth, key=worth.get)
        assert gain == pytest.approx(worth[candidate], rel=1e-2)
        own = directions[candidate]
        rest = rest - np.outer(np.maximum(rest @ own, 0) / (own @ own), own)
        directions = directions - np.outer(directions @ own / (own @ own), own)
        taken.append(int(candidate))
    assert 4 not in taken, "it is a component already"
    assert not {0, 3} <= set(taken)


def offer(gains, costs):
    k = len(gains)
    return Offer(jnp.zeros((k, 1)), np.arange(k), np.array(gains, float), 10 + np.arange(k), np.array(costs, float))


def test_as_many_as_pay_are_exchanged_at_once():
    search = Search(offer=offer([9.0, 5.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]))
    assert search.replacements(40) == {10: 0, 11: 1}
    assert search.replacements(4) == {10: 0}, "at most one in four"
    search.judge(2, paid=False)
    assert search.replacements(40) == {10: 0}, "half as many"
    search.judge(1, paid=False)
    assert search.replacements(40) == {10: 1}, "another candidate, for the component that is missed least"
    search.judge(1, paid=True)
    assert (search.failures, search.passed, search.offer, search.over) == (0, 0, None, False)
    hopeless = Search(offer=offer([0.2], [1.0]))
    assert hopeless.replacements(40) == {}
    assert hopeless.over
    for _ in range(PATIENCE):
        assert not search.over
        search.judge(1, paid=False)
    assert search.over


def test_a_trial_is_kept_where_the_loss_fell_and_taken_back_where_not():
    run = Run("start")
    run.record("first", np.array([0.5, 0.4]), 1.0)
    run.record("worse", np.array([0.6, 0.41]), 2.0, replaced=1)
    assert run.best == "first"
    assert run.losses == [0.5, 0.4, 0.4, 0.4]
    run.record("hardly better", np.array([0.6, 0.39999]), 3.0, replaced=1)
    assert run.best == "first"
    run.record("better", np.array([0.6, 0.3]), 4.0, replaced=1)
    assert run.best == "better"
    assert run.losses[-2:] == [0.4, 0.3]
    run.record("broken", np.array([0.3, np.nan]), 5.0, replaced=1)
    assert run.best == "better"
    assert run.trials == 4
    assert run.stands_still(Stopping(max_steps=10, window=2), 0) == "reached max_steps=10"


def clear(losses, count, target, floor):
    """The rule in float64: no step is left that could bring the loss below the target, or the loss stands still."""
    now, fell, before = losses[-1], losses[-2] - losses[-1], losses[-3] - losses[-2]
    return now - 1.5 * max(fell, 0) * (count - len(losses)) >= target or max(fell, before) < floor * now


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_when_the_outcome_of_a_window_is_clear(scale):
    """Terms of components that nearly cancel: losses near 0.01 of ‖F‖², decreases of 1e-5 of themselves."""
    rng, outcomes = np.random.default_rng(0), []
    for _ in range(200):
        losses = 0.01 + np.cumsum(10.0 ** rng.uniform(-9, -4, 6))[::-1]
        target = rng.choice([np.inf, losses[3] - 10.0 ** rng.uniform(-7, -4)])
        floor = rng.choice([-np.inf, 1e-4, 1e-3])
        cross = np.sort(rng.random((6, 8)))  # Σ (own − 2 cross) = loss − 1, in units of ‖F‖²
        terms = np.stack([cross, 2 * cross + (losses[:, None] - 1) / 8], axis=1) * scale
        kept = terms.astype(np.float32).astype(np.float64) / scale
        exact = 1 + np.sum(kept[:, 1] - 2 * kept[:, 0], axis=1)
        fell = exact[2] - exact[3]
        margin = abs(exact[3] - 9 * max(fell, 0) - target), abs(fell - floor * exact[3])
        if min(margin) < 1e-6:
            continue  # rounding decides
        limits = Limits(jnp.int32(10), jnp.float32(target), jnp.float32(floor))
        found = bool(_decided(jnp.asarray(terms, jnp.float32), jnp.int32(4), limits, jnp.float32(scale)))
        assert found == clear(exact[:4], 10, target, floor)
        outcomes.append(found)
    assert 20 < sum(outcomes) < len(outcomes) - 20, "both occur"
