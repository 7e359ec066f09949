"""The examples in docstrings run, on a small model whose components are known."""

import dataclasses
import doctest
import importlib.util
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax
from tests.planted_model import (
    BLOCKS,
    block_vectors,
    logits_fn,
    make_decomposition,
    make_examples,
    make_model,
    make_pefs,
)

pytestmark = pytest.mark.fast


EXTRAS = {"npeff_jax.models._torch": ("torch", "torchax"), "npeff_jax.models._tracr": ("tracr",)}
"""What examples import beside the package's own dependencies."""


def modules():
    found = pkgutil.walk_packages(npeff_jax.__path__, "npeff_jax.")
    return ["npeff_jax", *(module.name for module in found if not module.name.endswith("__main__"))]


@pytest.fixture(scope="module")
def names():
    """What examples may use without saying where it is from: the public names, and the things that they name."""
    examples, block = make_examples(12, leak=0.05)
    params = make_model().params
    hidden = lambda params, x: {"hidden": jnp.outer(x["gate"], x["x"])}  # noqa: E731
    model = npeff_jax.Model(logits_fn, params, intermediates_fn=hidden)
    coefficients = np.eye(BLOCKS)[block] + 0.01
    decomposition = make_decomposition(model, block_vectors(), coefficients)
    labels = block.astype(np.int64)
    known = {"np": np, "jnp": jnp, "jax": jax, "dataclasses": dataclasses, "npeff_jax": npeff_jax}
    for room in (npeff_jax, *(getattr(npeff_jax, name) for name in ("pefs", "factorization", "perturbation"))):
        known |= {name: value for name, value in vars(room).items() if not name.startswith("_")}
    known |= {name: value for name, value in vars(npeff_jax.evaluation).items() if not name.startswith("_")}
    return known | {
        "model": model,
        "examples": examples,
        "example": jax.tree.map(lambda leaf: leaf[0], examples),
        "labels": labels,
        "pefs": make_pefs(model, examples, labels),
        "decomposition": decomposition,
        "fit": decomposition,
        "diagonal": make_decomposition(model, np.abs(block_vectors()), coefficients, npeff_jax.FisherKind.DIAGONAL),
    }


def examples_of(name):
    module = importlib.import_module(name)
    return module, [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


def test_examples_in_docstrings(names):
    attempted = 0
    for name in modules():
        if any(importlib.util.find_spec(extra) is None for extra in EXTRAS.get(name, ())):
            continue  # not installed with the subset that other interpreters run
        module, tests = examples_of(name)
        for test in tests:
            attempted += run(test, vars(module) | names)
    assert attempted >= 40, "too few: have the docstrings been found?"


def run(test, known):
    said: list[str] = []
    test.globs = known
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
    skipped = [example for example in test.examples if example.options.get(doctest.SKIP)]
    assert not skipped, f"{test.name}: run the example or write it as text"
    return result.attempted
