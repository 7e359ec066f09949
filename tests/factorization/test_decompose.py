"""Decompositions of planted problems: what is recovered, what is reported, what is refused."""

import numpy as np
import pytest
from problems import best_cosines, oracle_loss

import npeff_jax as npeff
from npeff_jax.tasks import pefs_of_rows, planted, planted_diagonal

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_planted_components_are_recovered(make):
    problem = make()
    found = npeff.decompose(problem.pefs, 5, seed=1, progress=False, stopping=npeff.Stopping(tolerance=1e-4))
    G = np.stack([found.pseudo_fisher(j) for j in range(5)])
    assert best_cosines(G, problem.vectors).min() > 0.99
    assert (found.coefficients >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(G, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_the_reported_loss_is_that_of_the_result(make):
    problem = make()
    found = npeff.decompose(problem.pefs, 4, progress=False, stopping=npeff.Stopping(max_steps=30))
    G = np.stack([found.pseudo_fisher(j) for j in range(4)])
    assert found.history.loss[-1] == pytest.approx(oracle_loss(problem.fishers, found.coefficients, G), rel=1e-4)
    assert found.history.step.tolist() == list(range(1, found.history.step.size + 1))
    assert (np.diff(found.history.loss) < 1e-6).all(), "every step descends"


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_fit_of_the_same_examples(make):
    problem = make()
    found = npeff.decompose(problem.pefs, 5, progress=False)
    fit = npeff.fit_coefficients(found, problem.pefs)
    assert fit.kkt_residual.max() < 1e-5
    G = np.stack([found.pseudo_fisher(j) for j in range(5)])
    assert fit.loss == pytest.approx(oracle_loss(problem.fishers, fit.coefficients, G), rel=1e-3, abs=1e-6)
    assert fit.loss < found.history.loss[-1] + 1e-6


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_expansion_keeps_the_old_to_the_bit(make):
    problem = make()
    found = npeff.decompose(problem.pefs, 3, progress=False)
    wider = npeff.expand(found, problem.pefs, 2, progress=False)
    assert wider.n_components == 5
    assert wider.n_frozen == 3
    for j in range(3):
        np.testing.assert_array_equal(wider.pseudo_fisher(j), found.pseudo_fisher(j))
    assert wider.history.loss[-1] < 0.7 * found.history.loss[-1]


def test_saved_and_loaded(tmp_path):
    found = npeff.decompose(planted().pefs, 3, progress=False)
    found.save(tmp_path / "d")
    back = npeff.load_decomposition(tmp_path / "d")
    np.testing.assert_array_equal(back.coefficients, found.coefficients)
    np.testing.assert_array_equal(back.pseudo_fishers[1:], found.pseudo_fishers[1:])
    assert back.schema == found.schema
    assert back.settings == found.settings
    with pytest.raises(FileExistsError, match="choose another path"):
        found.save(tmp_path / "d")
    with pytest.raises(ValueError, match=r"holds no decomposition"):
        npeff.load_decomposition(tmp_path / "nothing")


def test_more_components_than_rows():
    with pytest.raises(ValueError, match=r"n_components=181 is not from 1 to the \d+ rows of A"):
        npeff.decompose(planted().pefs, 181, progress=False)


def test_an_empty_selection():
    with pytest.raises(ValueError, match="there are no examples"):
        npeff.decompose(planted().pefs.subset(np.array([], int)), 3, progress=False)


def test_fit_of_another_model():
    found = npeff.decompose(planted().pefs, 3, progress=False)
    with pytest.raises(ValueError, match="parameter values"):
        npeff.fit_coefficients(found, pefs_of_rows(np.ones((2, 3, 40)), model="another"))
    with pytest.raises(ValueError, match=r"kind of PEFs.*low_rank and diagonal|kind of PEFs.*diagonal and low_rank"):
        npeff.fit_coefficients(found, planted_diagonal().pefs)
