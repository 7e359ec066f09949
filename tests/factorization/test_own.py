"""What a researcher writes: own solvers, an own row space, a Problem in an own ``jit``."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from problems import best_cosines, oracle_loss

import npeff_jax as npeff
from npeff_jax.factorization import BlockedRows, Cost, RowChoice, RowSpace
from npeff_jax.pefs import FisherKind
from npeff_jax.tasks import pefs_of_rows, planted, planted_diagonal

QUIET = {"progress": False}


@dataclasses.dataclass(frozen=True)
class ProjectedGradient(npeff.Solver):
    rate: float = 0.3
    kind = FisherKind.DIAGONAL

    def init(self, problem, start):
        return start.W, start.G

    def step(self, problem, state):
        gradients = problem.gradient(*state)
        size = problem.squared_norm / problem.n_examples
        return tuple(jnp.maximum(x - self.rate * size * g, 0) for x, g in zip(state, gradients, strict=True))

    def factors(self, state):
        return state


@dataclasses.dataclass(frozen=True)
class SparseCoefficients(npeff.DampedALS):
    """L1 on W, by a proximal step after each step of the shipped solver."""

    threshold: float = 0.05

    def step(self, problem, state):
        state = super().step(problem, state)
        return state._replace(W=jnp.maximum(state.W - self.threshold * jnp.max(state.W), 0))


@dataclasses.dataclass(frozen=True)
class Momentum(ProjectedGradient):
    """Its state is more than its factors."""

    rate: float = 0.1

    def init(self, problem, start):
        return start.W, start.G, jnp.zeros_like(start.W), jnp.zeros_like(start.G)

    def step(self, problem, state):
        W, H, v, u = state
        by_W, by_H = problem.gradient(W, H)
        v, u = 0.8 * v + by_W, 0.8 * u + by_H
        size = self.rate * problem.squared_norm / problem.n_examples
        return jnp.maximum(W - size * v, 0), jnp.maximum(H - size * u, 0), v, u

    def factors(self, state):
        return state[:2]


@pytest.mark.parametrize("mesh", [None, "all"])
@pytest.mark.parametrize("rows", [npeff.DenseRows(), npeff.SparseRows()])
def test_a_projected_gradient(rows, mesh):
    problem = planted_diagonal()
    mesh = npeff.make_mesh() if mesh else None
    stopping = npeff.Stopping(max_steps=200, tolerance=-1.0)
    found = npeff.decompose(
        problem.pefs, 5, solver=ProjectedGradient(), rows=rows, mesh=mesh, stopping=stopping, **QUIET
    )
    G = np.stack([found.pseudo_fisher(j) for j in range(5)])
    assert found.loss == pytest.approx(oracle_loss(problem.fishers, found.coefficients, G), rel=1e-3)
    assert found.loss < 0.4 * found.history.loss[0]
    assert found.settings["solver"] == {"name": "ProjectedGradient", "rate": 0.3}


def test_a_subclass_runs_its_own_step():
    problem = planted(noise=0.3)
    stopping = npeff.Stopping(max_steps=60, tolerance=-1.0)
    plain = npeff.decompose(problem.pefs, 6, stopping=stopping, **QUIET)
    sparse = npeff.decompose(problem.pefs, 6, solver=SparseCoefficients(), stopping=stopping, **QUIET)
    assert np.mean(sparse.coefficients == 0) > np.mean(plain.coefficients == 0) + 0.1
    G = np.stack([sparse.pseudo_fisher(j) for j in range(6)])
    assert sparse.loss == pytest.approx(oracle_loss(problem.fishers, sparse.coefficients, G), rel=1e-3)


class Killed(Exception):
    pass


def test_a_state_with_more_than_factors_is_resumed_whole(tmp_path):
    problem = planted_diagonal()
    options = {"solver": Momentum(), "stopping": npeff.Stopping(max_steps=60, tolerance=-1.0), **QUIET}
    whole = npeff.decompose(problem.pefs, 4, **options)

    def kill(iterate):
        if iterate.step >= 30:
            raise Killed

    checkpoints = npeff.Checkpoints(tmp_path / "c", every=1)
    with pytest.raises(Killed):
        npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, callback=kill, **options)
    resumed = npeff.decompose(problem.pefs, 4, checkpoints=checkpoints, **options)
    np.testing.assert_allclose(resumed.history.loss, whole.history.loss, rtol=1e-6)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["S"], meta_fields=["mesh", "A", "omega"])
@dataclasses.dataclass(frozen=True, eq=False)
class CountSketchSpace(RowSpace):
    S: object
    mesh: object
    A: object
    omega: object

    @property
    def n_rows(self):
        return self.S.shape[0]

    def inner(self, G, D):
        GS, DS = G @ self.S, D @ self.S
        return self.S @ DS.T, GS @ DS.T, DS @ DS.T

    def pull_back(self, M):
        return M.T

    def expand(self, vectors):
        return self.A.pull(np.asarray(vectors))

    def from_host(self, saved):
        return jnp.asarray(saved)


@dataclasses.dataclass(frozen=True)
class CountSketchRows(RowChoice):
    size: int = 256
    kinds = (FisherKind.LOW_RANK,)
    exact = False

    def cost(self, A, n_components, mesh):
        return Cost(4.0 * A.shape[0] * self.size, 1.0)

    def of(self, A, mesh, *, n_components=64, products=npeff.ProductPrecision.FLOAT32, frozen=None):
        rng = np.random.default_rng(0)
        m = A.shape[1]
        signs, columns = rng.choice([-1.0, 1.0], m), rng.integers(self.size, size=m)
        omega = scipy.sparse.csr_array((signs, columns, np.arange(m + 1)), shape=(m, self.size))
        S = np.concatenate([(block @ omega).toarray() for _, block in A.read()])
        return CountSketchSpace(jnp.asarray(S, jnp.float32), mesh, A, None)


def test_an_own_row_space():
    problem = planted(noise=0.2, m=60)
    found = npeff.decompose(problem.pefs, 5, rows=CountSketchRows(), **QUIET)
    assert found.settings["row_space"].startswith("CountSketchRows")
    G = np.stack([found.pseudo_fisher(j) for j in range(5)])
    assert found.loss == pytest.approx(oracle_loss(problem.fishers, found.coefficients, G), rel=1e-3)
    assert found.settings["sketched_loss"] == found.history.loss[-1] != found.loss
    with pytest.raises(ValueError, match=r"rows=CountSketchRows\(\) is for low-rank PEFs, these are diagonal"):
        npeff.decompose(planted_diagonal().pefs, 3, rows=CountSketchRows(), **QUIET)
    with pytest.raises(ValueError, match=r"rows=CountSketchRows\(size=10000000000000\) needs .* would fit"):
        npeff.decompose(problem.pefs, 5, rows=CountSketchRows(10**13), **QUIET)


@pytest.mark.parametrize("rows", [npeff.DenseRows(), npeff.SparseRows(), npeff.KernelRows()])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_loss_and_gradient_against_dense_differences(make, rows, devices):
    """Eq. 4 with every matrix formed, in float64, and central differences of it; automatic differentiation agrees."""
    if make is planted_diagonal and rows == npeff.KernelRows():
        return
    made = make(n=9, m=24, r=3)
    problem = npeff.Problem.of(made.pefs, rows=rows, mesh=npeff.make_mesh(jax.devices()[:devices]))
    rng = np.random.default_rng(1)
    W = jnp.asarray(rng.random((9, 2)), jnp.float32)
    M = rng.random((problem.rows.n_rows, 2)).astype(np.float32)
    G = problem.rows.pull_back(jnp.asarray(M))
    columns = problem.origin.parameter_indices
    full = np.zeros((2, 24))
    full[:, columns] = problem.rows.expand(G)
    assert float(problem.loss(W, G)) == pytest.approx(oracle_loss(made.fishers, W, full), rel=1e-4)
    value, (by_W, by_G) = jax.jit(jax.value_and_grad(type(problem).loss, argnums=(1, 2)))(problem, W, G)
    assert float(value) == pytest.approx(float(problem.loss(W, G)), rel=1e-5)
    own_W, own_G = jax.jit(type(problem).gradient)(problem, W, G)
    np.testing.assert_allclose(own_W, by_W, rtol=1e-3, atol=1e-5)
    for j, k in [(0, 0), (1, 7)]:
        shift = np.zeros_like(full)
        shift[j, columns[k]] = 1e-5
        up, down = (oracle_loss(made.fishers, W, full + s * shift) for s in (1, -1))
        assert problem.rows.expand(own_G)[j, k] == pytest.approx((up - down) / 2e-5, rel=2e-3, abs=1e-5)
    if rows != npeff.KernelRows():
        np.testing.assert_allclose(problem.rows.expand(own_G), problem.rows.expand(by_G), rtol=1e-3, atol=1e-5)


def test_a_problem_with_optax_and_back():
    made = planted(noise=0.3)
    problem = npeff.Problem.of(made.pefs, n_components=5)
    start = npeff.DampedALS(warm_up=1).start(problem, 5, 0, npeff.InitialFactors())
    optimizer = optax.adam(0.03)

    @jax.jit
    def steps(problem, W, G):
        def step(carry, _):
            factors, state = carry
            loss, gradient = jax.value_and_grad(lambda f: problem.loss(*f))(factors)
            update, state = optimizer.update(gradient, state)
            W, G = optax.apply_updates(factors, update)
            return ((jnp.maximum(W, 0), G), state), loss

        factors = (W, G)
        return jax.lax.scan(step, (factors, optimizer.init(factors)), None, length=300)

    ((W, G), _), losses = steps(problem, start.W, start.G)
    assert losses[-1] < 0.3 * losses[0]
    found = npeff.Decomposition.from_factors(problem, W, G, settings={"by": "adam"})
    full = np.stack([found.pseudo_fisher(j) for j in range(5)])
    assert found.loss == pytest.approx(oracle_loss(made.fishers, found.coefficients, full), rel=1e-3)
    np.testing.assert_allclose(np.linalg.norm(full, axis=1), 1, rtol=1e-5)
    fit = npeff.fit_coefficients(found, made.pefs)
    assert fit.loss <= found.loss + 1e-6
    with pytest.raises(ValueError, match=r"W has shape \(60, 5\) and G \(5, 3\); expected \(60, r\) and \(r, "):
        npeff.Decomposition.from_factors(problem, W, G[:, :3])
    with pytest.raises(ValueError, match="negative or not finite"):
        npeff.Decomposition.from_factors(problem, -W, G)


def test_a_problem_of_rows_is_that_of_pefs():
    made = planted(noise=0.4)
    A = made.pefs.to_scipy()
    owner = np.repeat(np.arange(60), made.pefs.n_rows)
    options = {"rows": npeff.DenseRows(), "n_components": 4}
    own = npeff.decompose(npeff.Problem.from_rows(A, owner, **options), 4, **QUIET)
    pefs = npeff.decompose(made.pefs, 4, rows=npeff.DenseRows(), **QUIET)
    np.testing.assert_allclose(own.history.loss, pefs.history.loss, rtol=1e-4)
    with pytest.raises(ValueError, match="ascending; sort the rows"):
        npeff.Problem.from_rows(A, owner[::-1].copy())
    with pytest.raises(ValueError, match="has 3 rows; a diagonal Fisher is one row"):
        npeff.Problem.from_rows(A, owner, kind=FisherKind.DIAGONAL)


@pytest.mark.parametrize("counts", [(2, 0, 1), (1, 0, 2), (0, 3, 0), (1, 1, 1), (3, 1, 40)])
def test_examples_with_different_numbers_of_rows(counts):
    """As many rows as examples, but not one each; one example with most rows; an example without any."""
    rng = np.random.default_rng(0)
    rows = np.zeros((3, max(counts), 9))
    for i, c in enumerate(counts):
        rows[i, :c] = rng.normal(size=(c, 9))
    pefs = pefs_of_rows(rows)
    problem = npeff.Problem.of(pefs)
    W, M = rng.random((3, 2)), rng.normal(size=(problem.rows.n_rows, 2)).astype(np.float32)
    G = problem.rows.pull_back(jnp.asarray(M))
    fishers = np.einsum("icj,ick->ijk", rows, rows)
    full = np.zeros((2, 9))
    full[:, problem.origin.parameter_indices] = problem.rows.expand(G)
    loss = float(problem.loss(jnp.asarray(W, jnp.float32), G))
    assert loss == pytest.approx(oracle_loss(fishers, W, full), rel=1e-4)
    sums = np.asarray(problem.sum_over_rows(jnp.asarray(M)))
    np.testing.assert_allclose(sums, [M[problem.origin.owner == i].sum(0) for i in range(3)], rtol=1e-5, atol=1e-5)


def test_a_diagonal_example_without_entries():
    rows = np.random.default_rng(0).random((7, 1, 5))
    rows[3] = 0
    found = npeff.decompose(pefs_of_rows(rows, FisherKind.DIAGONAL), 2, **QUIET)
    assert not found.coefficients[3].any()
    G = np.stack([found.pseudo_fisher(j) for j in range(2)])
    assert found.loss == pytest.approx(oracle_loss(rows[:, 0], found.coefficients, G), rel=1e-4)


def test_parts_that_a_solver_does_not_support_are_refused_by_name():
    made = planted_diagonal()
    problem = npeff.Problem.of(made.pefs)
    named = problem.with_tunings([npeff.Tuning("first", np.arange(60) < 9)])
    with pytest.raises(ValueError, match="solver=ProjectedGradient does not support the tunings of this problem"):
        npeff.decompose(named, 3, solver=ProjectedGradient(), **QUIET)
    found = npeff.decompose(made.pefs, 3, **QUIET)
    with pytest.raises(ValueError, match="solver=ProjectedGradient does not support the frozen"):
        npeff.expand(found, made.pefs, 2, solver=ProjectedGradient(), **QUIET)


def test_protected_components_of_a_problem():
    made = planted(noise=0.2)
    first = npeff.decompose(made.pefs, 2, **QUIET)
    problem = npeff.Problem.of(made.pefs, protected=first, n_components=4, rows=npeff.SparseRows())
    found = npeff.decompose(problem, 4, **QUIET)
    np.testing.assert_array_equal(found.pseudo_fishers[:2], first.pseudo_fishers[:])
    assert found.n_frozen == 2
    assert best_cosines(found.pseudo_fishers[:], first.pseudo_fishers[:]).min() > 0.999
    with pytest.raises(ValueError, match="n_components=2 counts the 2 protected ones"):
        npeff.decompose(problem, 2, **QUIET)


def test_the_blocks_of_an_own_problem():
    A = scipy.sparse.csr_array(np.eye(3, dtype=np.float32))
    assert BlockedRows.of(A).nnz == 3
