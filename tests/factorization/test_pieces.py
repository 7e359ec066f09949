"""The solvers' parts against dense float64 oracles: objective, gradient, quartic, non-negative least squares, norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from problems import oracle_loss
from sklearn.decomposition import NMF

import npeff_jax as npeff
from npeff_jax._sharding import factorization_mesh, replicate
from npeff_jax.factorization._nonnegative import hals_sweep, kkt_residual, solve_nonnegative
from npeff_jax.factorization._objective import loss_terms, relative_loss, squared_norms
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization.solvers import Factors
from npeff_jax.factorization.solvers._hals import sweep_vectors
from npeff_jax.factorization.solvers._quartic import minimize_quartic
from npeff_jax.tasks import planted, planted_diagonal

pytestmark = pytest.mark.fast


SOLVER = npeff.DampedALS()
HELD = npeff.DampedALS(warm_up=1_000)  # W stays
step = jax.jit(lambda solver, problem, state: solver.step(problem, state), static_argnums=0)


def state_of(problem, W, G, solver=SOLVER):
    return solver.init(problem, Factors(jnp.asarray(W), problem.rows.coordinates(np.asarray(G)), jnp.int32(0)))


def loss_of(problem, state, solver=SOLVER):
    return relative_loss(np.asarray(solver.loss_terms(problem, state)), problem.origin.squared_norm)


def dense_problem(seed=0):
    problem = planted(seed, n=12, m=15, r=3)
    stacked = stack(problem.pefs)
    rows = npeff.Problem.of(problem.pefs, rows=npeff.DenseRows())
    rng = np.random.default_rng(seed + 1)
    W, G = rng.random((12, 4)), rng.normal(size=(4, stacked.A.shape[1]))
    full = np.zeros((4, 15))
    full[:, stacked.parameter_indices] = G
    return problem, stacked, rows, W.astype(np.float32), G.astype(np.float32), full


def test_objective_from_inner_products():
    planted_problem, stacked, problem, W, G, full = dense_problem()
    state = state_of(problem, W, G)
    assert loss_of(problem, state) == pytest.approx(oracle_loss(planted_problem.fishers, W, full))
    assert stacked.squared_norm == pytest.approx(np.sum(planted_problem.fishers**2))


def test_gradient_is_that_of_finite_differences():
    """4 (B G − Mᵀ A) against central differences of the dense objective, in float64."""
    planted_problem, stacked, problem, W, G, full = dense_problem()
    state = state_of(problem, W, G)
    B = (W.T @ W) * np.asarray(state.GG)
    M = W[stacked.owner] * np.asarray(state.AG)
    gradient = 4 * (B @ G - M.T @ stacked.A.whole)
    total = np.sum(planted_problem.fishers**2)
    for j, k in [(0, 0), (1, 5), (3, 7)]:
        shift = np.zeros_like(full)
        shift[j, stacked.parameter_indices[k]] = 1e-5
        up, down = (oracle_loss(planted_problem.fishers, W, full + s * shift) for s in (1, -1))
        assert gradient[j, k] == pytest.approx((up - down) / 2e-5 * total, rel=1e-4)


def test_the_line_search_finds_the_minimum_on_the_line():
    """One step with W fixed, against a fine search along the same direction on the dense objective."""
    planted_problem, stacked, problem, W, G, full = dense_problem()
    before = state_of(problem, W, G)
    after = step(HELD, problem, before)
    B = (W.T @ W) * np.asarray(before.GG)
    M = W[stacked.owner] * np.asarray(before.AG)
    R = B @ G - M.T @ stacked.A.whole
    d = np.diag(B)
    D = np.zeros_like(full)
    D[:, stacked.parameter_indices] = -np.linalg.solve(B + 1e-2 * np.diag(d + 1e-3 * d.mean()), R)
    best = scipy.optimize.minimize_scalar(lambda t: oracle_loss(planted_problem.fishers, W, full + t * D), (0, 1))
    assert loss_of(problem, after) == pytest.approx(best.fun, rel=1e-4)
    assert best.fun < loss_of(problem, before)
    np.testing.assert_allclose(jnp.linalg.norm(after.G, axis=1), 1, rtol=1e-5)  # the scale went to W
    scale = np.linalg.norm(full + best.x * D, axis=1) ** 2
    np.testing.assert_allclose(after.W, W * scale, rtol=1e-3)


def test_steps_descend_on_a_singular_problem():
    """Twice the same component and a dead one: B is singular, the step still goes down."""
    _, _stacked, problem, W, G, _ = dense_problem()
    G[1], W[:, 2] = G[0], 0
    state = state_of(problem, W, G)
    losses = [loss_of(problem, state)]
    for _ in range(10):
        state = step(HELD, problem, state)
        losses.append(loss_of(problem, state))
    assert (np.diff(losses) < 1e-6).all()
    assert losses[-1] < losses[0]


def test_carried_products_are_those_of_the_vectors():
    _, _stacked, problem, W, G, _ = dense_problem()
    state = state_of(problem, W, G)
    for _ in range(25):
        state = step(SOLVER, problem, state)
    anew = SOLVER.init(problem, Factors(*SOLVER.factors(state), state.steps))
    np.testing.assert_allclose(state.AG, anew.AG, atol=1e-5)
    np.testing.assert_allclose(state.GG, anew.GG, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_quartic_minimum(scale):
    rng = np.random.default_rng(0)
    minimize = jax.jit(minimize_quartic)
    for _ in range(200):
        c = rng.normal(size=4) * [1, 1, 1, 0] + [0, 0, 0, rng.random() + 0.01]
        c *= scale ** -np.arange(1, 5)  # the same quartic in another unit of t
        t = float(minimize(jnp.asarray(c, jnp.float32)))
        powers = np.roots([4 * c[3], 3 * c[2], 2 * c[1], c[0]])
        candidates = powers.real[np.abs(powers.imag) < 1e-6 * np.abs(powers)]
        value = lambda t, c=c: t * (c[0] + t * (c[1] + t * (c[2] + t * c[3])))  # noqa: E731
        assert value(t) == pytest.approx(min(value(x) for x in candidates), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("c", [(0, 0, 0, 0), (0, 1, 0, 1), (-1, 0, 0, 1), (-1, 1, 0, 0)])
def test_quartic_corner_cases(c):
    t = float(minimize_quartic(jnp.asarray(c, jnp.float32)))
    assert t == pytest.approx({(-1, 0, 0, 1): 0.25 ** (1 / 3), (-1, 1, 0, 0): 0.5}.get(c, 0.0), rel=1e-5)


@pytest.mark.parametrize("r", [1, 5, 16, 37])
def test_blocked_sweep_is_the_plain_sweep(r):
    rng = np.random.default_rng(r)
    V, b, root = rng.random((11, r)), rng.normal(size=(11, r)), rng.normal(size=(r, r + 2))
    P = root @ root.T
    expected = V.copy()
    for j in range(r):
        expected[:, j] = np.maximum(0, expected[:, j] + (b[:, j] - expected @ P[:, j]) / P[j, j])
    got = hals_sweep(*(jnp.asarray(x, jnp.float32) for x in (V, b, P)))
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_nonnegative_least_squares_against_scipy():
    rng = np.random.default_rng(0)
    X, targets = rng.random((40, 12)), rng.normal(size=(9, 40))
    expected = np.stack([scipy.optimize.nnls(X, y)[0] for y in targets])
    P, b = (jnp.asarray(x, jnp.float32) for x in (X.T @ X, targets @ X))
    V, residual = solve_nonnegative(jnp.zeros((9, 12)), b, P, 1e-6, 5000)
    assert residual.max() <= 1e-6
    np.testing.assert_allclose(V, expected, atol=1e-4)
    assert kkt_residual(V + 0.1, b, P).min() > 1e-3, "what is not optimal is said so"
    moved = kkt_residual(V + 0.1, b, P)
    np.testing.assert_allclose(kkt_residual(1000 * (V + 0.1), 1000 * b, P), moved, rtol=1e-4, err_msg="no unit")
    assert kkt_residual(jnp.asarray(expected, jnp.float32), b, P).max() < 1e-5


def test_loss_terms_of_a_zero_component():
    assert not np.asarray(loss_terms(jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.ones((2, 2)))).any()


def test_squared_norms_of_uneven_examples():
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(c, 6)) for c in (3, 1, 4)]
    A = np.concatenate(rows).astype(np.float32)
    got = squared_norms(scipy.sparse.csr_array(A), np.array([3, 1, 4]))
    np.testing.assert_allclose(got, [np.sum((x @ x.T) ** 2) for x in rows], rtol=1e-5)


def test_multiplicative_updates_are_those_of_scikit_learn():
    """Same start, 200 iterations, loss to 1e-5."""
    problem = planted_diagonal()
    X = problem.fishers
    rng = np.random.default_rng(0)
    W, H = rng.random((60, 4)), rng.random((4, 40))
    start = npeff.InitialFactors(coefficients=W.astype(np.float32), pseudo_fishers=H.astype(np.float32))
    stopping = npeff.Stopping(max_steps=200, tolerance=-1.0)
    found = npeff.decompose(
        problem.pefs, 4, solver=npeff.Multiplicative(), start=start, stopping=stopping, progress=False
    )
    reference = NMF(4, init="custom", solver="mu", max_iter=200, tol=0)
    theirs = reference.fit_transform(X, W=W.copy(), H=H.copy())
    loss = np.sum((X - theirs @ reference.components_) ** 2) / np.sum(X**2)
    assert found.history.loss[-1] == pytest.approx(loss, rel=1e-5)


def test_papers_algorithm_step_by_step():
    """Against the update equations on dense matrices, in float64."""
    problem, stacked, _, _, _, _ = dense_problem()
    A, owner = stacked.A.whole.toarray().astype(np.float64), stacked.owner
    rng = np.random.default_rng(3)
    W, G = rng.random((12, 3)), rng.normal(size=(3, 15))
    start = npeff.InitialFactors(coefficients=W.astype(np.float32), pseudo_fishers=G.astype(np.float32))
    solver = npeff.GradientDescent(learning_rate=1e-3, warm_up=3)
    stopping = npeff.Stopping(max_steps=10)
    found = npeff.decompose(problem.pefs, 3, solver=solver, start=start, stopping=stopping, progress=False)
    G = G[:, stacked.parameter_indices]
    for k in range(10):
        AG = A @ G.T
        if k >= 3:
            numerator = np.stack([np.sum(AG[owner == i] ** 2, 0) for i in range(12)])
            W = W * numerator / (W @ (G @ G.T) ** 2 + 1e-9)
        G = G - 1e-3 * 4 * ((W.T @ W * (G @ G.T)) @ G - (W[owner] * (A @ G.T)).T @ A)
    full = np.zeros((3, 15))
    full[:, stacked.parameter_indices] = G
    assert found.history.loss[-1] == pytest.approx(oracle_loss(problem.fishers, W, full), rel=1e-4)


def test_replicated_start_is_on_every_device():
    mesh = factorization_mesh(npeff.make_mesh())
    assert replicate(np.ones(3, np.float32), mesh).sharding.is_fully_replicated


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_sweeps_of_vectors_in_parts_are_the_sweeps(monkeypatch, devices):
    """Whole blocks and a rest, on meshes that divide the coordinates and one that does not."""
    monkeypatch.setattr("npeff_jax.factorization.solvers._hals.SWEPT", 7)
    rng = np.random.default_rng(0)
    H, b, W = rng.random((20, 48)), rng.random((20, 48)), rng.random((50, 20)) * (rng.random((50, 20)) < 0.3)
    P = W.T @ W
    P[3] = P[:, 3] = 0  # a component without coefficients
    expected = H.copy()
    for _ in range(2):
        for j in range(20):
            step = expected[j] + (b[j] - P[j] @ expected) / P[j, j] if P[j, j] > 0 else 0
            expected[j] = np.maximum(step, 0)
    mesh = factorization_mesh(npeff.make_mesh(jax.devices()[:devices]))
    found = jax.jit(lambda H, b, P: sweep_vectors(H, b, P, 2, mesh))(*(x.astype(np.float32) for x in (H, b, P)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
