"""A function of a user's is let go with the model that holds it, whatever was computed with it.

Caches of compiled programs that are keyed on the function would keep it, its constants and a program for each fresh
lambda: the reason why a long session grew by 7 MB a round.
"""

import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax import evaluation, models, perturbation

EXAMPLES = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
PARAMS = {
    name: np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for name, shape in [("a", (4, 3)), ("b", (3, 3))]
}


def fresh():
    """A model over functions that nothing else holds, and weak references to them."""
    hidden = lambda params, x: {"hidden": jnp.tanh(x @ params["a"])}  # noqa: E731
    logits = lambda params, x: hidden(params, x)["hidden"] @ params["b"]  # noqa: E731
    return npeff.Model(logits, PARAMS, intermediates_fn=hidden), [weakref.ref(f) for f in (hidden, logits)]


def pefs_of(model, representation=None):
    return npeff.compute_pefs(model, EXAMPLES, representation, keep=12, progress=False)


def select(model):
    pefs = pefs_of(model)
    found = npeff.decompose(pefs, 2, progress=False)
    fit = npeff.fit_coefficients(found, pefs)
    npeff.selectivity(model, found, pefs, EXAMPLES, fit=fit, n_top=3, progress=False)


def decompose_model_rows(model):
    npeff.decompose(npeff.model_rows(model, EXAMPLES), 2, progress=False)


def direction(model):
    return {name: np.ones_like(value) for name, value in model.params.items()}


USES = {
    "low rank": pefs_of,
    "diagonal": lambda model: pefs_of(model, npeff.Diagonal()),
    "sampled": lambda model: pefs_of(model, npeff.Sampled(2)),
    "plan": lambda model: npeff.plan(model, EXAMPLES, npeff.LowRank(), keep=[12]),
    "selectivity": select,
    "rows of the model": decompose_model_rows,
    "divergence": lambda model: npeff.perturbed_kl(model, EXAMPLES, [direction(model)]),
    "data-set Fisher": lambda model: npeff.dataset_fisher(model, EXAMPLES),
    "gradient of the loss": lambda model: perturbation.loss_gradient(model, EXAMPLES),
    "activations": lambda model: evaluation.activations(model, EXAMPLES, "hidden"),
    "gradient features": lambda model: evaluation.gradient_features(model, EXAMPLES, n_features=8),
    "tracing": lambda model: evaluation.Tracer(model)(direction(model), EXAMPLES[0]),
    "one example": lambda model: npeff.pef_rows(model.logits_fn, model.params, EXAMPLES[0]),
}


@pytest.mark.parametrize("use", USES)
def test_the_functions_of_a_model_are_released_with_it(use):
    model, functions = fresh()
    USES[use](model)
    del model
    gc.collect()
    assert [f() for f in functions] == [None, None]


def test_the_head_of_a_model_is_released_too():
    model, functions = fresh()
    head = lambda params, value: value @ params["b"]  # noqa: E731
    functions.append(weakref.ref(head))
    evaluation.logit_gradients(model, np.ones((4, 3), np.float32), head)
    del model, head
    gc.collect()
    assert [f() for f in functions] == [None, None, None]


def test_a_model_compiles_once_however_often_it_is_used():
    model, _ = fresh()
    traced = []

    def logits_fn(params, x):
        traced.append(x)
        return jnp.tanh(x @ params["a"]) @ params["b"]

    model = models.Model(logits_fn, PARAMS)
    npeff.perturbed_kl(model, EXAMPLES, [direction(model)])
    first = len(traced)
    for _ in range(3):
        npeff.perturbed_kl(model, EXAMPLES, [direction(model)])
    assert first > 0
    assert len(traced) == first
