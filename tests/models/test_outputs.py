"""Output families against float64 written out in NumPy: factors, class rows, samples and divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from npeff_jax.models import Bernoulli, Categorical, Gaussian

pytestmark = pytest.mark.fast


def fisher_of_logits(logits, temperature=1.0):
    """S = diag p − p pᵀ over the squared temperature, its diagonal from the other classes' mass, in float64."""
    p = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))
    others = np.array([np.delete(p, j).sum() for j in range(p.size)])
    fisher = -np.outer(p, p)
    np.fill_diagonal(fisher, p * others)
    return fisher / temperature**2


MARGINS = [0.0, 1.0, 5.0, 16.1, 30.0, 60.0]  # 16.1: a probability of 1 − 1e-7


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_factor_has_one_row_less_than_classes_and_is_exact_for_confident_predictions(margin, n_classes):
    rng = np.random.default_rng(n_classes)
    logits = rng.normal(size=n_classes).astype(np.float32)
    logits[rng.integers(n_classes)] += np.float32(margin)
    rows = np.asarray(Categorical().factor(jnp.asarray(logits)), np.float64)
    expected = fisher_of_logits(logits)
    assert rows.shape == (n_classes - 1, n_classes)
    assert np.linalg.norm(rows.T @ rows - expected) < 3e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("margin", MARGINS)
def test_class_rows_are_the_papers_and_give_the_same_fisher(margin):
    logits = np.array([0.3, -1.0, margin, 0.1], np.float32)
    rows = np.asarray(Categorical().class_rows(jnp.asarray(logits)), np.float64)
    expected = fisher_of_logits(logits)
    assert np.linalg.norm(rows.T @ rows - expected) < 3e-6 * np.linalg.norm(expected)
    p = np.exp(log_softmax(logits.astype(np.float64)))
    # Σ_j sqrt(p_j) a_j = 0 (DESIGN, "PEF"): what makes the rank C − 1.
    assert np.abs(np.sqrt(p) @ rows).max() < 1e-6 * np.abs(rows).max()


def test_naive_factor_would_lose_the_trace_that_this_one_keeps():
    """The reason for the closed form: once p rounds to 1, p − p² loses half of the trace."""
    logits = jnp.array([18.0, 0.0])
    p = jax.nn.softmax(logits)
    naive, exact = float(jnp.sum(p - p**2)), np.trace(fisher_of_logits(logits))
    assert naive == pytest.approx(exact / 2, rel=1e-4)
    assert abs(float(jnp.sum(Categorical().factor(logits) ** 2)) / exact - 1) < 1e-5


def test_ties_and_permutations_change_nothing():
    logits = jnp.array([1.0, 1.0, 1.0, 0.5])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        rows = Categorical().factor(logits[jnp.array(order)])
        expected = fisher_of_logits(logits)[np.ix_(order, order)]
        np.testing.assert_allclose(rows.T @ rows, expected, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_temperature(temperature):
    logits = jnp.array([0.5, -0.5, 2.0])
    output = Categorical(temperature)
    for rows in (output.factor(logits), output.class_rows(logits)):
        np.testing.assert_allclose(rows.T @ rows, fisher_of_logits(logits, temperature), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("output", [Categorical(), Categorical(0.5), Gaussian(0.7), Bernoulli()], ids=str)
def test_sampled_rows_average_to_the_fisher(output):
    logits = jnp.array([1.0, 0.0, -0.5])
    expected = np.asarray(output.factor(logits))
    rows = np.asarray(output.sample(jax.random.key(0), logits, 200_000), np.float64)
    np.testing.assert_allclose(rows.T @ rows, expected.T @ expected, atol=6 * expected.max() ** 2 / np.sqrt(200_000))


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 0.09, 0.11, 1.0, 8.0])
def test_kl_is_exact_for_small_and_large_changes(size):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=5).astype(np.float32) * 2
    perturbed = (logits + size * rng.normal(size=5)).astype(np.float32)
    log_p, log_q = (log_softmax(x.astype(np.float64)) for x in (logits, perturbed))
    d = log_q - log_p
    expected = np.sum(np.exp(log_p) * (np.expm1(d) - d))
    assert np.isclose(expected, np.sum(np.exp(log_p) * (log_p - log_q)), rtol=1e-3, atol=1e-15)
    # d itself is a float32 difference: its rounding is what is left for the smallest changes.
    assert float(Categorical().kl(jnp.asarray(logits), jnp.asarray(perturbed))) == pytest.approx(
        expected, rel=1e-4 + 4e-7 / size
    )


def test_kl_of_a_reversed_certainty_is_finite():
    """p_j underflows to 0 where e^d overflows: their product must not become NaN."""
    assert float(Categorical().kl(jnp.array([0.0, -200.0]), jnp.array([-200.0, 0.0]))) == pytest.approx(200.0)
    assert float(Categorical().kl(jnp.array([0.0, -9.0]), jnp.array([0.0, 9.0]))) == pytest.approx(
        9 * np.tanh(4.5), rel=1e-5
    )


def test_kl_is_in_the_order_of_equation_2():
    p, q = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    assert float(Categorical().kl(p, q)) == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2), rel=1e-5)


def test_gaussian():
    output, logits = Gaussian(2.0), jnp.array([1.0, -1.0])
    np.testing.assert_allclose(output.factor(logits).T @ output.factor(logits), np.eye(2) / 4)
    assert float(output.kl(logits, logits + 2.0)) == pytest.approx(2 * 4 / 8)


@pytest.mark.parametrize("margin", [*MARGINS, 88.0])
def test_bernoulli_fisher_is_exact_for_confident_labels(margin):
    logits = np.array([0.3, -margin, margin, 2.0], np.float32)
    p, q = (1 / (1 + np.exp(sign * logits.astype(np.float64))) for sign in (-1, 1))
    for rows in (Bernoulli().factor(jnp.asarray(logits)), Bernoulli().class_rows(jnp.asarray(logits))):
        fisher = np.asarray(rows, np.float64).T @ np.asarray(rows, np.float64)
        np.testing.assert_allclose(np.diagonal(fisher), p * q, rtol=1e-5)
        assert np.count_nonzero(fisher - np.diag(np.diagonal(fisher))) == 0


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 20.0])
def test_bernoulli_kl(size):
    logits, change = np.array([0.4, -3.0, 5.0], np.float32), np.array([1.0, -0.5, -1.0], np.float32)
    perturbed = (logits + np.float32(size) * change).astype(np.float32)
    x, y = logits.astype(np.float64), perturbed.astype(np.float64)
    log_yes, log_no = (lambda v: -np.logaddexp(0, -v)), (lambda v: -np.logaddexp(0, v))
    p = np.exp(log_yes(x))
    expected = np.sum(p * (log_yes(x) - log_yes(y)) + (1 - p) * (log_no(x) - log_no(y)))
    assert float(Bernoulli().kl(jnp.asarray(logits), jnp.asarray(perturbed))) == pytest.approx(expected, rel=1e-3)


def test_one_logit_is_a_binary_classifier_with_two():
    """The same Fisher of the parameters and the same divergence as a softmax over (x, 0)."""
    x = jnp.array([1.7])
    both = Categorical().factor(jnp.array([1.7, 0.0]))[:, :1]
    np.testing.assert_allclose(Bernoulli().factor(x) ** 2, both**2, rtol=1e-5)
    np.testing.assert_allclose(
        Bernoulli().kl(x, x - 3), Categorical().kl(jnp.array([1.7, 0.0]), jnp.array([-1.3, 0.0])), rtol=1e-6
    )


@pytest.mark.parametrize("make", [lambda: Categorical(0.0), lambda: Gaussian(-1.0)])
def test_scales_must_be_positive(make):
    with pytest.raises(ValueError, match="is out of range; expected 0 <"):
        make()
