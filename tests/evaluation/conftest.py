"""Planted truth for the tests of selectivity."""

import numpy as np
import pytest

import npeff_jax as npeff
from tests.planted_model import BLOCKS, block_vectors, make_decomposition, make_examples, make_model, make_pefs


@pytest.fixture(scope="session")
def planted():
    """Examples that use one sub-network almost alone, and components that each sit in one."""
    model = make_model()
    examples, block = make_examples(90, leak=0.05)
    rng = np.random.default_rng(1)
    coefficients = np.eye(BLOCKS)[block] * rng.uniform(0.5, 1.0, (90, 1)) + 0.01
    decomposition = make_decomposition(model, block_vectors(), coefficients)
    return model, decomposition, make_pefs(model, examples), examples, block


@pytest.fixture(scope="session")
def table(planted):
    model, decomposition, pefs, examples, _ = planted
    return npeff.selectivity(
        model,
        decomposition,
        pefs,
        examples,
        fit=decomposition,
        n_top=10,
        nulls=npeff.Nulls(n_random_directions=4),
        progress=False,
    )
