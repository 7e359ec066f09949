"""Fitting in blocks and chunks is fitting at once; the loss of each example is that of the dense oracle."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize

import npeff_jax as npeff
from npeff_jax.tasks import planted, planted_diagonal

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_blocks_and_chunks_change_nothing(make, monkeypatch, tmp_path):
    problem = make()
    found = npeff.decompose(problem.pefs, 5, progress=False)
    whole = npeff.fit_coefficients(found, problem.pefs)
    found.save(tmp_path / "d")
    monkeypatch.setattr("npeff_jax.factorization._fit.BLOCK_BYTES", 4 * 40 * 2)  # two components at a time, from disk
    parts = npeff.fit_coefficients(npeff.load_decomposition(tmp_path / "d"), problem.pefs, chunk_size=7)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, atol=1e-4)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6)


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_fit_against_dense_nonnegative_least_squares(make):
    problem = make(seed=1)
    found = npeff.decompose(problem.pefs.subset(np.arange(40)), 4, progress=False)
    fit = npeff.fit_coefficients(found, problem.pefs)
    G = np.stack([found.pseudo_fisher(j) for j in range(4)]).astype(np.float64)
    atoms = (np.einsum("ja,jb->jab", G, G) if make is planted else G).reshape(4, -1)
    for i in (0, 17, 59):
        target = problem.fishers[i].ravel()
        expected, error = scipy.optimize.nnls(atoms.T, target)
        np.testing.assert_allclose(fit.coefficients[i], expected, atol=1e-3)
        assert fit.example_loss[i] == pytest.approx(error**2 / (target @ target), abs=1e-4)


def test_an_unreachable_tolerance_is_said_so():
    problem = planted()
    found = npeff.decompose(problem.pefs, 5, progress=False)
    hurried = npeff.fit_coefficients(found, problem.pefs, tolerance=0.0, max_sweeps=4)
    assert hurried.kkt_residual.max() > 0


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_each_component_alone_against_dense_projections(make):
    problem = make(seed=1)
    found = npeff.decompose(problem.pefs.subset(np.arange(40)), 4, progress=False)
    alone = npeff.factorization.fit_alone(found, problem.pefs)
    G = np.stack([found.pseudo_fisher(j) for j in range(4)]).astype(np.float64)
    atoms = (np.einsum("ja,jb->jab", G, G) if make is planted else G).reshape(4, -1)
    targets = problem.fishers.reshape(len(alone), -1)
    np.testing.assert_allclose(alone, targets @ atoms.T / np.sum(atoms**2, axis=1), atol=1e-5)
    one = dataclasses.replace(found, pseudo_fishers=found.pseudo_fishers[:1], coefficients=found.coefficients[:, :1])
    np.testing.assert_allclose(alone[:, :1], npeff.fit_coefficients(one, problem.pefs).coefficients, atol=1e-4)
    dead = dataclasses.replace(found, pseudo_fishers=found.pseudo_fishers * 0)
    assert not npeff.factorization.fit_alone(dead, problem.pefs).any()
