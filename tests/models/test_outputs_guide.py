"""The guide "my model is …": its code runs, and the family of its own is a Poisson distribution."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff

PAGE = (pathlib.Path(__file__).parents[2] / "docs/guides/outputs.md").read_text()


def names():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    found = {"params": params, "apply": lambda p, x: x @ p["w"], "apply_tokens": lambda p, ids: p["w"][ids]}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "outputs.md", "exec"), found)
    return found, rng.normal(size=(6, 3)).astype(np.float32)


def test_every_model_of_the_page_has_fishers():
    found, x = names()
    for name in ("binary", "regression"):
        assert (npeff.compute_pefs(found[name], x, progress=False).norms > 0).all()
    tokens = {"ids": np.array([[0, 1, 2]] * 4), "position": np.array([0, 1, 2, 1])}
    assert (npeff.compute_pefs(found["tokens"], tokens, progress=False).norms > 0).all()


def test_the_poisson_family():
    """S is the variance of the score: λ for the logarithm of a rate. KL against the sum over outcomes, in float64."""
    found, _ = names()
    family, logits, moved = found["Poisson"](), jnp.array([0.3, -1.0]), jnp.array([0.1, -0.6])
    rate, other = np.exp(np.array([0.3, -1.0])), np.exp(np.array([0.1, -0.6]))
    np.testing.assert_allclose(family.factor(logits).T @ family.factor(logits), np.diag(rate), rtol=1e-6)
    drawn = np.asarray(family.sample(jax.random.key(0), logits, 100_000), np.float64)
    np.testing.assert_allclose(drawn.T @ drawn, np.diag(rate), atol=0.03)
    k = np.arange(40)
    log_factorial = np.cumsum(np.log(np.maximum(k, 1)))
    log_p = k[:, None] * np.log(rate) - rate - log_factorial[:, None]
    log_q = k[:, None] * np.log(other) - other - log_factorial[:, None]
    np.testing.assert_allclose(family.kl(logits, moved), np.sum(np.exp(log_p) * (log_p - log_q)), rtol=1e-5)


LOGITS = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)}
X = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (lambda p, x: (x @ p["w"])[:1], r"a single logit of yes or no is output=Bernoulli\(\), a number to predict"),
        (lambda p, x: (x @ p["w"])[0], r"A single number is a vector of one, value\[None\], with output=Bernoulli"),
        (lambda p, x: jnp.stack([x @ p["w"]] * 5), "A prediction per token or pixel wants an example for each"),
        (lambda p, x: (x @ p["w"])[None], r"add it inside: lambda params, x: apply\(params, x\[None\]\)\[0\]"),
    ],
)
def test_an_output_mistaken_for_a_categorical_is_named_with_its_remedy(function, remedy):
    with pytest.raises(ValueError, match=remedy):
        npeff.compute_pefs(npeff.Model(function, LOGITS), X, progress=False)


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (npeff.Bernoulli(), np.ones((6, 2), int)),  # several labels per example
        (npeff.Gaussian(), np.linspace(0, 1, 6)),  # numbers to predict
    ],
)
def test_labels_that_are_no_classes_are_named(output, labels):
    model = npeff.Model(lambda p, x: x @ p["w"], LOGITS, output=output)
    with pytest.raises(ValueError, match=r"output=Bernoulli\(\)\) and numbers to predict \(output=Gaussian\(\)\)"):
        npeff.compute_pefs(model, X, labels=labels, progress=False)
    single = npeff.Model(lambda p, x: (x @ p["w"])[:1], LOGITS, output=npeff.Bernoulli())
    with pytest.raises(ValueError, match="labels has 1, but the model has a single output and no classes"):
        npeff.compute_pefs(single, X, labels=np.array([0, 1, 0, 1, 1, 0]), progress=False)
