"""Starts: a given one is used, its loss is never exceeded; of several, the best one goes on."""

import dataclasses

import numpy as np
import pytest
from problems import oracle_loss

import npeff_jax as npeff
from npeff_jax.factorization._restarts import check_restarts
from npeff_jax.pefs import FisherKind
from npeff_jax.tasks import pefs_of_rows, planted, planted_diagonal

QUIET = {"progress": False}


class Killed(Exception):
    pass


def kill(iterate):
    raise Killed


def noisy_diagonal(noise=0.5, **options):
    """The planted diagonal problem with every entry multiplied by noise."""
    problem = planted_diagonal(**options)
    spread = 1 + noise * np.random.default_rng(9).uniform(-1, 1, problem.fishers.shape)
    fishers = problem.fishers * spread
    pefs = pefs_of_rows(fishers[:, None, :], FisherKind.DIAGONAL)
    return dataclasses.replace(problem, pefs=pefs, fishers=fishers)


@pytest.mark.parametrize(
    ("make", "solver"),
    [
        (planted, npeff.DampedALS()),
        (planted, npeff.DampedALS(warm_up=0)),
        (planted, npeff.GradientDescent(learning_rate=3e-3, warm_up=0)),
        (noisy_diagonal, npeff.HALS()),
        (noisy_diagonal, npeff.HALS(warm_up=0)),
        (noisy_diagonal, npeff.Multiplicative()),
    ],
    ids=lambda given: given.__name__ if callable(given) else f"{type(given).__name__}-{getattr(given, 'warm_up', '')}",
)
def test_given_coefficients_are_kept_and_vectors_solved_for_them(make, solver):
    """The planted W under noise: a first W-step against random vectors would throw it away and end elsewhere."""
    problem = make(noise=0.5)
    truth = oracle_loss(problem.fishers, problem.coefficients, problem.vectors)
    start = npeff.InitialFactors(coefficients=problem.coefficients)
    stopping = npeff.Stopping(max_steps=260 if isinstance(solver, npeff.GradientDescent) else 60)
    found = npeff.decompose(problem.pefs, 5, solver=solver, start=start, stopping=stopping, **QUIET)
    assert found.loss <= truth * (1 + 1e-5)
    assert found.settings["start"] == ["coefficients"]
    columns = found.coefficients.T @ problem.coefficients
    norms = np.outer(np.linalg.norm(found.coefficients, axis=0), np.linalg.norm(problem.coefficients, axis=0))
    assert (columns / norms).max(axis=0).min() > 0.9, "every given column is still there"


@pytest.mark.parametrize("make", [planted, noisy_diagonal])
def test_a_history_begins_at_the_start_and_never_rises_above_it(make):
    problem = make(noise=0.5)
    rng = np.random.default_rng(0)
    W = (rng.random((60, 5)) * 0.3).astype(np.float32)
    G = problem.vectors + (0.05 * rng.random(problem.vectors.shape)).astype(np.float32)
    given = oracle_loss(problem.fishers, W, G)
    found = npeff.decompose(problem.pefs, 5, start=npeff.InitialFactors(W, G), **QUIET)
    assert found.history.loss.max() <= given * (1 + 1e-5)
    # vectors alone: W is fitted to them, so the history begins below any other W's loss
    found = npeff.decompose(problem.pefs, 5, start=npeff.InitialFactors(pseudo_fishers=G), **QUIET)
    assert found.history.loss.max() < given
    # the end of a run is where another begins, whatever exchanges try
    again = npeff.InitialFactors(found.coefficients, np.stack([found.pseudo_fisher(j) for j in range(5)]))
    further = npeff.decompose(problem.pefs, 5, start=again, **QUIET)
    assert further.history.loss.max() <= found.loss * (1 + 1e-5)


ALONE = npeff.DampedALS(exchanges=0)
ROUGH = npeff.Stopping(tolerance=1e-4)


@pytest.fixture(scope="module")
def noisy():
    """Sixteen components, of which a start without exchanges finds all or not."""
    return planted(0, n=200, m=500, r=16, shared=1.0, noise=0.3)


def test_the_best_of_several_starts_goes_on(noisy):
    options = {"solver": ALONE, "stopping": ROUGH, **QUIET}
    alone = [npeff.decompose(noisy.pefs, 16, seed=seed, **options).loss for seed in range(4)]
    assert alone[0] > 1.2 * min(alone), "the first start is a poor one"
    found = npeff.decompose(noisy.pefs, 16, restarts=4, **options)
    assert found.loss < 1.001 * min(alone)
    tried = found.settings["restarts"]
    assert tried["seeds"] == [0, 1, 2, 3]
    assert (tried["examples"], tried["of"]) == (64, 200), "four examples per component are more than a quarter of all"
    assert len(set(np.round(tried["losses"], 4))) > 1
    assert f"{min(tried['losses']):.4g}" in found.stopped
    assert "; the best of 4 starts, whose losses on 64 of 200 examples were" in found.stopped
    assert found.stopped.startswith("converged: ")


def test_starts_on_all_examples_of_a_problem(noisy):
    """Each is the run of its seed, and the best one goes on from where it stood."""
    problem = npeff.Problem.of(noisy.pefs, rows=npeff.KernelRows())
    options = {"solver": ALONE, "stopping": ROUGH, **QUIET}
    alone = [npeff.decompose(problem, 16, seed=seed, **options).loss for seed in (3, 4, 5)]
    found = npeff.decompose(problem, 16, seed=3, restarts=3, **options)
    assert found.settings["restarts"]["losses"] == pytest.approx(alone, rel=1e-5)
    assert found.settings["restarts"]["examples"] == 200
    assert found.history.loss.max() <= min(alone) * (1 + 1e-5)
    one = npeff.decompose(problem, 16, seed=3, restarts=1, **options)
    assert one.loss == pytest.approx(alone[0], rel=1e-6)
    assert "restarts" not in one.settings


def test_restarts_with_a_path_and_checkpoints(tmp_path):
    problem = noisy_diagonal()
    options = {"restarts": 2, "stopping": npeff.Stopping(max_steps=40), **QUIET}
    whole = npeff.decompose(problem.pefs, 4, path=tmp_path / "d", **options)
    assert npeff.load_decomposition(tmp_path / "d").settings["restarts"] == whole.settings["restarts"]
    checkpoints = npeff.Checkpoints(tmp_path / "c", every=1)
    with pytest.raises(Killed):
        npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, callback=kill, **options)
    resumed = npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, **options)
    np.testing.assert_allclose(resumed.history.loss, whole.history.loss, rtol=1e-5)
    with pytest.raises(ValueError, match=r"are of another run: restarts differ \(restarts was 2, now 3\)"):
        npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, **(options | {"restarts": 3}))


def test_restarts_that_have_no_meaning():
    pefs = planted().pefs
    with pytest.raises(ValueError, match=r"restarts=3 draws starts and start= gives one \(coefficients\)"):
        npeff.decompose(pefs, 5, restarts=3, start=npeff.InitialFactors(coefficients=np.ones((60, 5))), **QUIET)
    with pytest.raises(ValueError, match="restarts=0 is out of range; expected an integer of at least 1"):
        npeff.decompose(pefs, 5, restarts=0, **QUIET)
    with pytest.raises(TypeError, match="restarts"):  # by the types, where they are checked
        npeff.decompose(pefs, 5, restarts=2.5, **QUIET)
    with pytest.raises(TypeError, match="restarts='4' is no whole number"):
        check_restarts("4", npeff.InitialFactors())


def test_components_beside_frozen_ones_end_as_low_as_those_of_a_fresh_run(noisy):
    """Half is frozen, of the fresh run or as planted; the examples need the rest."""
    fresh = npeff.decompose(noisy.pefs, 16, rows=npeff.KernelRows(), **QUIET)
    truth = oracle_loss(noisy.fishers, noisy.coefficients, noisy.vectors)
    assert fresh.loss < truth, "it found what was planted, and fits some of the noise"
    planted_half = noisy.vectors[:8, fresh.parameter_indices].astype(np.float32)
    for vectors, target in ((planted_half, truth), (np.asarray(fresh.pseudo_fishers[::2]), 1.001 * fresh.loss)):
        half = dataclasses.replace(fresh, coefficients=fresh.coefficients[:, :8], pseudo_fishers=vectors)
        assert npeff.fit_coefficients(half, noisy.pefs).loss > 1.5 * truth, "the rest is needed"
        wider = npeff.expand(half, noisy.pefs, 8, seed=7, rows=npeff.KernelRows(), **QUIET)
        assert wider.loss < target
        kept = np.stack([wider.pseudo_fisher(j) for j in range(8)])[:, fresh.parameter_indices]
        np.testing.assert_array_equal(kept, vectors)


def test_diagonal_components_beside_frozen_ones():
    problem = noisy_diagonal(n=200, m=120, r=12)
    fresh = npeff.decompose(problem.pefs, 12, **QUIET)
    half = dataclasses.replace(
        fresh, coefficients=fresh.coefficients[:, ::2], pseudo_fishers=np.asarray(fresh.pseudo_fishers[::2])
    )
    assert npeff.fit_coefficients(half, problem.pefs).loss > 1.5 * fresh.loss
    assert npeff.expand(half, problem.pefs, 6, seed=7, **QUIET).loss < 1.02 * fresh.loss


@pytest.mark.parametrize("seed", range(2))
def test_diagonal_losses_beside_coordinate_descent(seed):
    """scikit-learn's, from two random starts and from the singular vectors: none ends lower by more than a percent."""
    from sklearn.decomposition import NMF

    problem = noisy_diagonal(seed=seed, n=150, m=80, r=10, noise=0.8)
    X = problem.fishers
    found = npeff.decompose(problem.pefs, 10, seed=seed, **QUIET)
    losses = []
    for init, state in (("random", 0), ("random", 1), ("nndsvd", 0)):
        model = NMF(10, init=init, max_iter=2000, tol=1e-6, random_state=state)
        W = model.fit_transform(X)
        losses.append(np.sum((X - W @ model.components_) ** 2) / np.sum(X**2))
    assert found.loss < 1.01 * min(losses)


def test_the_result_says_that_exchanges_were_still_paying():
    """Seven components for twelve: two exchanges reach what a hundred do, and after one the next still pays."""
    problem = planted(r=12, n=120, m=60, noise=0.5)

    def run(exchanges, **stopping):
        solver, options = npeff.DampedALS(exchanges=exchanges, warm_up=0), npeff.Stopping(tolerance=1e-4, **stopping)
        return npeff.decompose(problem.pefs, 7, seed=1, solver=solver, stopping=options, **QUIET)

    none, one, two, enough = run(0), run(1), run(2), run(100)
    assert one.loss > 1.01 * enough.loss
    assert two.loss < 1.001 * enough.loss
    message = "; stopped with exchanges still paying; pass more "
    assert one.stopped.startswith("converged: ")
    assert one.stopped.endswith(message + "(exchanges=1 of DampedALS)")
    exchanged = len(one.history.loss) - 3  # three more steps showed that it had converged
    limited = run(100, max_steps=exchanged)
    assert limited.stopped == f"reached max_steps={exchanged}{message}(max_steps={exchanged})"
    assert len(enough.history.loss) < 40, "an exchange that fails ends before its window does"
    assert "paying" not in none.stopped + two.stopped + enough.stopped, "none was asked for, or nothing is left to gain"
