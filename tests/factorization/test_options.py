"""Options of the solvers, stopping, callbacks, the guard, checkpoints, pruning."""

import io
import json
import re

import jax
import numpy as np
import pytest
from problems import best_cosines, oracle_loss

import npeff_jax as npeff
from npeff_jax.tasks import pefs_of_rows, planted, planted_diagonal

QUIET = {"progress": False}


@pytest.mark.parametrize(("make", "r"), [(planted, 8), (planted_diagonal, 6)])
def test_planted_components_are_recovered_in_nine_of_ten_seeds(make, r):
    """Non-orthogonal, overlapping, every example's rows rotated at random: the smallest best-matched |cosine|."""
    recovered = 0
    for seed in range(10):
        problem = make(seed, n=120, m=60, r=r, shared=1.0)
        cosines = np.abs(problem.vectors @ problem.vectors.T)[np.triu_indices(r, 1)]
        assert cosines.max() > 0.3, "the components overlap"
        found = npeff.decompose(problem.pefs, r, seed=seed, **QUIET)
        vectors = np.stack([found.pseudo_fisher(j) for j in range(r)])
        recovered += best_cosines(vectors, problem.vectors).min() >= 0.99
    assert recovered >= 9


def test_exchanges_leave_local_minima():
    """Sixteen noisy components: from these starts, steps alone keep one component for two and two for one."""
    for seed in (0, 4):
        problem = planted(seed, n=200, m=500, r=16, shared=1.0, noise=0.3)
        options = {"stopping": npeff.Stopping(tolerance=1e-4), **QUIET}  # no warm-up: it leaves these minima too
        alone = npeff.decompose(problem.pefs, 16, seed=seed, solver=npeff.DampedALS(exchanges=0, warm_up=0), **options)
        helped = npeff.decompose(problem.pefs, 16, seed=seed, solver=npeff.DampedALS(warm_up=0), **options)
        assert helped.history.loss[-1] < 0.8 * alone.history.loss[-1]
        assert (np.diff(helped.history.loss) < 1e-6).all(), "a trial that does not pay is taken back"


def test_stiefel_vectors_are_orthonormal_and_the_loss_descends():
    problem = planted()
    found = npeff.decompose(problem.pefs, 5, solver=npeff.DampedALS(stiefel=True), **QUIET)
    G = found.pseudo_fishers[:]
    np.testing.assert_allclose(G @ G.T, np.eye(5), atol=1e-4)
    full = np.stack([found.pseudo_fisher(j) for j in range(5)])
    loss = oracle_loss(problem.fishers, found.coefficients, full)
    assert found.history.loss[-1] == pytest.approx(loss, rel=1e-3)
    assert (np.diff(found.history.loss) < 1e-5).all()
    free = npeff.decompose(problem.pefs, 5, **QUIET)
    assert free.history.loss[-1] < loss < 0.6


def test_orthogonality_penalty_lowers_cosines():
    problem = planted(shared=1.0)

    def overlap(weight):
        found = npeff.decompose(problem.pefs, 5, solver=npeff.DampedALS(orthogonality=weight), **QUIET)
        G = found.pseudo_fishers[:]
        return np.sum(np.triu(G @ G.T, 1) ** 2)

    plain, weak, strong = overlap(0.0), overlap(0.01), overlap(1.0)
    assert strong < weak < plain
    assert strong < 0.1 * plain


def test_steps_bound_the_indefinite_part_of_a_strong_penalty():
    rng = np.random.default_rng(0)
    true = rng.standard_normal((6, 100)).astype(np.float32)
    active = np.stack([rng.choice(6, 2, replace=False) for _ in range(60)])
    rows = np.sqrt(rng.uniform(0.2, 1, (60, 2, 1))) * true[active] + 0.3 * rng.standard_normal((60, 2, 100))
    pefs = npeff.Pefs.from_arrays(rows.astype(np.float32))
    solver = npeff.DampedALS(orthogonality=3.0, exchanges=0)
    run = {"solver": solver, "stopping": npeff.Stopping(max_steps=100, tolerance=-1.0), **QUIET}
    losses = [npeff.decompose(pefs, 6, seed=seed, **run).history.loss[-1] for seed in range(3)]
    assert np.median(losses) < 0.55  # 0.49; where the row sums are left out of the step's matrix 0.62


def test_warm_up_moves_the_vectors_alone():
    problem = planted()
    W = np.random.default_rng(0).random((60, 5)).astype(np.float32)
    solver = npeff.DampedALS(warm_up=7)
    start, stopping = npeff.InitialFactors(coefficients=W), npeff.Stopping(max_steps=7)
    only = npeff.decompose(problem.pefs, 5, solver=solver, start=start, stopping=stopping, **QUIET)
    # W changes by the scale of unit vectors alone, and by the order of components
    ratio = only.coefficients / only.coefficients[:1]
    matched = [np.abs(ratio[:, [j]] - W / W[:1]).max(axis=0).min() for j in range(5)]
    assert max(matched) < 1e-3
    both = npeff.decompose(problem.pefs, 5, solver=solver, start=start, **QUIET)
    assert both.history.loss[-1] < 0.5 * only.history.loss[-1]


def test_a_given_start_is_where_it_starts():
    problem = planted()
    start = npeff.InitialFactors(problem.coefficients, problem.vectors)
    found = npeff.decompose(problem.pefs, 5, start=start, stopping=npeff.Stopping(max_steps=1), **QUIET)
    assert found.history.loss[-1] < 1e-5
    assert found.settings["start"] == ["coefficients", "pseudo_fishers"]
    with pytest.raises(ValueError, match=r"start.pseudo_fishers has shape \(5, 39\); expected \(5, 40\)"):
        npeff.decompose(problem.pefs, 5, start=npeff.InitialFactors(pseudo_fishers=problem.vectors[:, 1:]), **QUIET)
    with pytest.raises(ValueError, match=r"expected \(60, 5\), non-negative"):
        npeff.decompose(problem.pefs, 5, start=npeff.InitialFactors(coefficients=-problem.coefficients), **QUIET)
    with pytest.raises(ValueError, match="cannot start from given pseudo-Fishers"):
        npeff.decompose(problem.pefs, 5, start=start, rows=npeff.KernelRows(), **QUIET)


def test_why_it_stopped():
    problem = planted(noise=0.5)
    converged = npeff.decompose(problem.pefs, 3, **QUIET)
    over = re.match(
        rf"converged: over the last (\d+) of {len(converged.history.loss)} steps the loss ", converged.stopped
    )
    assert over is not None
    assert 2 <= int(over[1]) <= 10
    limited = npeff.decompose(problem.pefs, 3, stopping=npeff.Stopping(max_steps=13), **QUIET)
    assert limited.stopped == "reached max_steps=13"
    assert len(limited.history.loss) == 13
    seen = []

    def callback(iterate):
        seen.append((iterate.step, iterate.loss, iterate.coefficients.shape))
        return iterate.step >= 40

    ended = npeff.decompose(problem.pefs, 3, callback=callback, stopping=npeff.Stopping(tolerance=-1.0), **QUIET)
    steps = [step for step, _, _ in seen]
    assert ended.stopped == f"the callback ended it after {steps[-1]} steps"
    assert steps[-2] < 40 <= steps[-1] == len(ended.history.loss)
    assert seen[-1][1:] == (ended.history.loss[-1], (60, 3))


def test_a_learning_rate_that_diverges_keeps_the_last_good_state():
    problem = planted()
    found = npeff.decompose(problem.pefs, 3, solver=npeff.GradientDescent(learning_rate=10.0, warm_up=25), **QUIET)
    assert found.stopped.startswith("non-finite: ")
    assert "lower its learning_rate" in found.stopped
    assert np.isfinite(found.coefficients).all()
    assert np.isfinite(found.pseudo_fishers[:]).all()


def test_values_that_are_not_finite_are_refused():
    rows = np.ones((4, 2, 5))
    rows[2, 1, 3] = np.nan
    with pytest.raises(ValueError, match="the PEF of example 2 has a value that is not finite"):
        npeff.decompose(pefs_of_rows(rows), 2, **QUIET)


@pytest.mark.parametrize(("kind", "solver"), [("low_rank", npeff.HALS()), ("diagonal", npeff.DampedALS())])
def test_a_solver_of_the_other_flavour(kind, solver):
    problem = planted() if kind == "low_rank" else planted_diagonal()
    with pytest.raises(ValueError, match=f"solver={type(solver).__name__} does not decompose {kind} PEFs; choose"):
        npeff.decompose(problem.pefs, 3, solver=solver, **QUIET)


def test_pruning_reports_the_energy_it_costs():
    problem = planted(n=10, m=200)
    A = problem.pefs.to_scipy()
    counts = np.bincount(A.indices, minlength=200)
    limit = int(np.median(counts))
    found = npeff.decompose(problem.pefs, 3, min_count=limit, **QUIET)
    np.testing.assert_array_equal(found.parameter_indices, np.flatnonzero(counts >= limit))
    kept = A.toarray()[:, counts >= limit]
    assert found.settings["lost_energy"] == pytest.approx(1 - np.sum(kept**2) / np.sum(A.data**2), rel=1e-4)
    G = np.stack([found.pseudo_fisher(j) for j in range(3)])
    loss = oracle_loss(problem.fishers, found.coefficients, G)
    assert found.history.loss[-1] == pytest.approx(loss, rel=1e-4), "what was pruned counts as unexplained"
    with pytest.raises(ValueError, match="min_count=99 leaves no parameter; the most frequent one has"):
        npeff.decompose(problem.pefs, 3, min_count=99, **QUIET)


def test_components_are_ordered_and_remarks_made():
    problem = planted(r=2, c=2)
    found = npeff.decompose(problem.pefs, 6, stopping=npeff.Stopping(max_steps=30), **QUIET)
    contribution = (found.coefficients.astype(np.float64) ** 2).sum(axis=0)
    assert (np.diff(contribution) <= 1e-6).all()
    assert found.dead or found.duplicates, "six components for two: some must repeat or vanish"
    G = found.pseudo_fishers[:]
    for i, j in found.duplicates:
        assert abs(G[i] @ G[j]) > 0.99
    assert found.settings["seed"] == 0
    assert found.settings["solver"]["name"] == "DampedALS"


def test_bfloat16_products_are_close_and_recorded():
    problem = planted(noise=0.5)
    exact = npeff.decompose(problem.pefs, 3, **QUIET)
    for choice in (npeff.DenseRows(), npeff.KernelRows()):
        found = npeff.decompose(problem.pefs, 3, products=npeff.ProductPrecision.BFLOAT16, rows=choice, **QUIET)
        assert found.settings["products"] == "bfloat16"
        assert found.history.loss[-1] == pytest.approx(exact.history.loss[-1], rel=0.02)
    with pytest.raises(ValueError, match="sparse ones are float32"):
        npeff.decompose(problem.pefs, 3, products=npeff.ProductPrecision.BFLOAT16, rows=npeff.SparseRows(), **QUIET)


def test_progress_as_json_lines():
    stream = io.StringIO()
    npeff.decompose(planted().pefs, 3, stopping=npeff.Stopping(max_steps=50, tolerance=-1.0), progress=stream)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    done = [line["done"] for line in lines]
    assert done[0] == 10
    assert done[-1] == 50
    assert all(1 <= steps <= 10 for steps in np.diff(done)), "a window of at most ten steps each"
    assert lines[-1]["stage"] == "decompose"
    assert 0 <= lines[-1]["loss"] < 1


class Killed(Exception):
    pass


def kill_at(step):
    def callback(iterate):
        if iterate.step >= step:
            raise Killed(iterate.step)

    return callback


@pytest.mark.parametrize("choice", [npeff.DenseRows(), npeff.SparseRows(), npeff.KernelRows()])
def test_killed_and_resumed(tmp_path, choice):
    """The same devices: to 1e-5. Eight instead of one: to 1e-4."""
    assert len(jax.devices()) == 8
    problem = planted(noise=0.5)
    stopping = npeff.Stopping(max_steps=60, window=10, tolerance=-1.0)
    options = {"rows": choice, "stopping": stopping, **QUIET}
    whole = npeff.decompose(problem.pefs, 4, **options)
    for name, mesh, rtol in [("same", None, 1e-5), ("wider", npeff.make_mesh(), 1e-4)]:
        checkpoints = npeff.Checkpoints(tmp_path / name, every=1)
        with pytest.raises(Killed) as killed:
            npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, callback=kill_at(40), **options)
        stream = io.StringIO()
        resumed = npeff.decompose(
            problem.pefs, 4, checkpoints=checkpoints, mesh=mesh, **(options | {"progress": stream})
        )
        done = json.loads(stream.getvalue().splitlines()[0])["done"]
        assert done == killed.value.args[0] < 60, "it went on where it was killed"
        np.testing.assert_allclose(resumed.history.loss, whole.history.loss, rtol=rtol)
        np.testing.assert_allclose(resumed.coefficients, whole.coefficients, atol=1e-3)
    with pytest.raises(ValueError, match="are of another run: seed differ"):
        npeff.decompose(problem.pefs, 4, seed=5, checkpoints=checkpoints, **options)


def test_diagonal_is_resumed_too(tmp_path):
    problem = planted_diagonal()
    options = {"stopping": npeff.Stopping(max_steps=60, window=10, tolerance=-1.0), **QUIET}
    whole = npeff.decompose(problem.pefs, 4, **options)
    checkpoints = npeff.Checkpoints(tmp_path / "c", every=2)
    with pytest.raises(Killed):
        npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, callback=kill_at(50), **options)
    resumed = npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, **options)
    np.testing.assert_allclose(resumed.history.loss, whole.history.loss, rtol=1e-5)
