"""Row spaces against dense float64 products, against each other along a run, and on one device against eight."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from problems import best_cosines, oracle_loss

import npeff_jax as npeff
from npeff_jax._sharding import factorization_mesh, replicate
from npeff_jax.factorization._stack import stack
from npeff_jax.factorization.row_spaces import BlockedRows, _model
from npeff_jax.factorization.row_spaces._sparse import deal
from npeff_jax.factorization.solvers import Factors
from npeff_jax.tasks import planted, planted_diagonal

CHOICES = [npeff.DenseRows(), npeff.SparseRows(), npeff.KernelRows()]


def meshes():
    assert len(jax.devices()) == 8, "these tests need eight devices"
    return [factorization_mesh(None), factorization_mesh(npeff.make_mesh())]


def matrix(N=37, m=101, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, m)) * (rng.random((N, m)) < rng.random(m) ** 2)


def blocked(A):
    """In three blocks of rows, one of them empty."""
    A = scipy.sparse.csr_array(A.astype(np.float32))
    parts = [(0, A[:10]), (10, A[10:10]), (10, A[10:])]
    return BlockedRows(A.shape, np.bincount(A.indices, minlength=A.shape[1]), lambda: iter(parts))


@pytest.mark.parametrize("devices", [0, 1])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_three_questions(choice, devices):
    A, mesh = matrix(), meshes()[devices]
    rows = choice.of(blocked(A), mesh)
    M, V = np.random.default_rng(1).normal(size=(2, 37, 3)).astype(np.float32)
    G, D = M.T @ A, V.T @ A  # in the span of the rows, which the kernel stands for
    g, d = rows.pull_back(replicate(M, mesh)), rows.pull_back(replicate(V, mesh))
    np.testing.assert_allclose(rows.expand(g), G, rtol=1e-4, atol=1e-4)
    for got, expected in zip(rows.inner(g, d), (A @ D.T, G @ D.T, D @ D.T), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(rows.expand(rows.from_host(rows.to_host(g))), G, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", CHOICES[:2])
def test_coordinates_and_back(choice):
    rows = choice.of(blocked(matrix()), meshes()[1])
    V = np.random.default_rng(2).normal(size=(3, 101)).astype(np.float32)
    np.testing.assert_array_equal(rows.expand(rows.coordinates(V)), V)


@pytest.mark.parametrize("n_blocks", [1, 3, 8])
def test_columns_are_dealt_evenly(n_blocks):
    """Zipf-like counts: every shard has the same number of columns, and non-zeros within 1%."""
    counts = np.minimum(20_000, 3e7 / np.arange(1, 200_001)).astype(int)
    dealt = deal(np.random.default_rng(0).permutation(counts), n_blocks)
    assert sorted(dealt[dealt >= 0]) == list(range(len(counts)))
    shuffled = np.random.default_rng(0).permutation(counts)
    load = np.where(dealt >= 0, shuffled[dealt], 0).reshape(n_blocks, -1).sum(axis=1)
    assert load.max() <= 1.01 * load.min()


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_every_row_space_and_device_count_has_the_same_losses(make):
    problem = make(noise=0.5) if make is planted else make()
    runs = {}
    for choice in CHOICES[: 3 if make is planted else 2]:
        for mesh in (None, npeff.make_mesh()):
            found = npeff.decompose(
                problem.pefs, 4, rows=choice, mesh=mesh, progress=False, stopping=npeff.Stopping(max_steps=50)
            )
            assert type(choice).__name__ in found.settings["row_space"]
            runs[type(choice).__name__, mesh is None] = found
    reference = runs["DenseRows", True]
    for (name, alone), found in runs.items():
        losses, expected = found.history.loss, reference.history.loss
        both = min(len(losses), len(expected))
        assert max(len(losses), len(expected)) <= both + 10, (
            "once converged, rounding decides in which step windows end"
        )
        rtol = 1e-5 if alone else 1e-4
        np.testing.assert_allclose(losses[:both], expected[:both], rtol=rtol, err_msg=name)
        np.testing.assert_allclose(losses[-1], expected[-1], rtol=rtol, err_msg=name)
        cosines = best_cosines(found.pseudo_fishers[:], reference.pseudo_fishers[:])
        assert cosines.min() > 0.9999, name


@pytest.mark.parametrize("devices", [3, 7])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_mesh_that_divides_neither_rows_nor_parameters(choice, devices):
    """Padded with zeros, which change no product: the same losses and no trace of the padding."""
    problem = planted(noise=0.5)
    options = {"rows": choice, "progress": False, "stopping": npeff.Stopping(max_steps=20)}
    assert 180 % 7, "what should not divide"
    assert 40 % devices
    alone = npeff.decompose(problem.pefs, 4, **options)
    found = npeff.decompose(problem.pefs, 4, mesh=npeff.make_mesh(jax.devices()[:devices]), **options)
    np.testing.assert_allclose(found.history.loss, alone.history.loss, rtol=1e-4)
    assert found.pseudo_fishers.shape == alone.pseudo_fishers.shape
    np.testing.assert_allclose(found.pseudo_fishers, alone.pseudo_fishers, atol=1e-3)


def compiled_step(choice, mesh):
    problem = npeff.Problem.of(planted(m=96).pefs, rows=choice, mesh=mesh)
    line, solver = problem.rows.mesh, npeff.DampedALS()
    W = replicate(np.ones((60, 5), np.float32), line)
    G = problem.rows.pull_back(replicate(np.ones((180, 5), np.float32), line))
    step = jax.jit(lambda problem, W, G: solver.step(problem, solver.init(problem, Factors(W, G, 0))))
    return step.lower(problem, W, G).compile().as_text()


@pytest.mark.parametrize("choice", CHOICES)
def test_collectives_carry_nothing_of_the_size_of_the_parameters(choice):
    """Read from the compiled program: only N×r and r×r products cross devices."""
    assert len(jax.devices()) == 8, "these tests need eight devices"
    text = compiled_step(choice, npeff.make_mesh())
    pattern = r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    shapes = [s for line in re.findall(pattern, text) for s in re.findall(r"f32\[([\d,]*)\]", line)]
    assert shapes, "nothing crosses devices: this is not a sharded program"
    sizes = {tuple(int(d) for d in shape.split(",")) for shape in shapes}
    n_rows = 184 if choice == npeff.KernelRows() else 180  # the kernel pads its rows to a multiple of the devices
    assert sizes <= {(180, 5), (n_rows, 5), (5, 5), (23, 5)}, sizes


def test_sketched_kernel_reports_its_error_and_the_exact_loss():
    problem = planted(m=200, r=4, noise=0.3)
    exact = npeff.decompose(problem.pefs, 4, progress=False)
    errors = []
    for size in (64, 1024):
        found = npeff.decompose(problem.pefs, 4, rows=npeff.KernelRows(sketch=size), progress=False)
        G = np.stack([found.pseudo_fisher(j) for j in range(4)])
        loss = oracle_loss(problem.fishers, found.coefficients, G)
        assert found.settings["loss"] == pytest.approx(loss, rel=1e-3)
        errors.append(found.settings["sketch_error"])
    assert errors[1] < 0.5 * errors[0]
    assert loss < exact.history.loss[-1] * 1.1
    A = stack(problem.pefs).A
    S = npeff.KernelRows(sketch=1024).of(A, meshes()[0])
    Q = (A.whole @ A.whole.T).toarray()
    assert S.notes["sketch_error"] == pytest.approx(
        np.linalg.norm(np.asarray(S.S) @ np.asarray(S.S).T - Q) / np.linalg.norm(Q), rel=1e-3
    )


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        return nn.Dense(4)(x.mean((-3, -2)))


@pytest.mark.parametrize("devices", [0, 1])
def test_the_model_itself_as_rows(devices):
    """Exact Fishers by an unvmapped loop, in float64, against the kernel by blocks of backward passes."""
    x = np.random.default_rng(0).normal(size=(13, 5, 5, 1)).astype(np.float32) * 3
    net = Net()
    model = npeff.Model(lambda p, x: net.apply(p, x[None])[0], net.init(jax.random.key(0), x[:1]))
    tight = 4 * 3 * model.space.size * 8  # two blocks of rows
    mesh = (None, npeff.make_mesh())[devices]
    rows = npeff.model_rows(model, x, batch_size=4, block_bytes=tight)
    found = npeff.decompose(rows, 5, mesh=mesh, progress=False, stopping=npeff.Stopping(max_steps=50))
    fishers = []
    logits_fn, jacobian_fn = jax.jit(model.logits_fn), jax.jit(jax.jacobian(model.logits_fn))
    for example in x:
        p = np.asarray(jax.nn.softmax(logits_fn(model.params, example)), np.float64)
        jacobian = jacobian_fn(model.params, example)
        J = np.concatenate([np.asarray(leaf).reshape(4, -1) for leaf in jax.tree.leaves(jacobian)], 1)
        F = J.T.astype(np.float64) @ (np.diag(p) - np.outer(p, p)) @ J
        fishers.append(F / np.linalg.norm(F))
    G = np.stack([found.pseudo_fisher(j) for j in range(5)])
    loss = oracle_loss(np.stack(fishers), found.coefficients, G)
    assert found.history.loss[-1] == pytest.approx(loss, rel=1e-3)
    assert found.history.loss[-1] < 0.2


@pytest.mark.parametrize("devices", [0, 1])
def test_what_a_model_pulls_back_is_its_rows_combined(devices):
    """Weights of both signs over many batches, by blocks of components: U A in float64, A from the rows themselves."""
    rng, mesh = np.random.default_rng(1), meshes()[devices]
    x = rng.normal(size=(21, 5)).astype(np.float32)
    params = {"kernel": rng.normal(size=(5, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    model = npeff.Model(lambda p, x: x @ p["kernel"] + p["bias"], params)
    source = npeff.model_rows(model, x, batch_size=2, block_bytes=4 * 18 * 3)
    passes = _model._Passes(source, mesh)
    batches = [passes.rows(first) for first in range(0, 21, passes.size)]
    A = np.concatenate([np.concatenate(leaves, axis=2).reshape(-1, 18) for leaves in batches])[:42].astype(np.float64)
    U = rng.normal(size=(4, 42)).astype(np.float32)
    found = passes.pull(U)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, U @ A, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("devices", [0, 1])
@pytest.mark.parametrize("block_bytes", [4 * 18 * 3, 1 << 20])
def test_the_kernel_of_a_model_made_on_devices_is_that_of_the_host(monkeypatch, block_bytes, devices):
    """Bit for bit, with a last batch that is not full; and against float64 products of the rows.

    On one device and eight, with all rows in memory and with rows that are computed again.
    """
    rng, mesh = np.random.default_rng(1), meshes()[devices]
    x = rng.normal(size=(21, 5)).astype(np.float32)
    x[7] *= 1000  # saturated: a Fisher of zero
    params = {"kernel": rng.normal(size=(5, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    model = npeff.Model(lambda p, x: x @ p["kernel"] + p["bias"], params)
    source = npeff.model_rows(model, x, batch_size=2, block_bytes=block_bytes)
    by_host, norms = _model.kernel_of_model(source, mesh, False)
    monkeypatch.setattr(_model, "made_by_host", lambda mesh: False)
    monkeypatch.setattr(_model, "GramOnHost", None)
    by_devices, same_norms = _model.kernel_of_model(source, mesh, False)
    np.testing.assert_array_equal(np.asarray(by_devices.Q), np.asarray(by_host.Q))
    np.testing.assert_array_equal(same_norms, norms)
    assert by_devices.Q.sharding.is_equivalent_to(by_host.Q.sharding, 2)
    assert len(by_devices.Q.addressable_shards) == mesh.size

    passes = _model._Passes(source, mesh)
    batches = [passes.rows(first) for first in range(0, 21, passes.size)]
    A = np.concatenate([np.concatenate(leaves, axis=2).reshape(-1, 18) for leaves in batches])[:42].astype(np.float64)
    exact = A @ A.T
    assert norms[7] == 0
    own = np.sqrt([(exact[i : i + 2, i : i + 2] ** 2).sum() for i in range(0, 42, 2)])
    scale = np.repeat(np.where(own > 0, own, 1) ** -0.5, 2)
    np.testing.assert_allclose(np.asarray(by_devices.Q)[:42, :42], exact * np.outer(scale, scale), atol=1e-5)
    assert not np.asarray(by_devices.Q)[42:].any()


def test_a_sum_of_two_numbers_keeps_what_float32_loses():
    parts = np.random.default_rng(2).normal(size=(3000, 50)).astype(np.float32) * 10.0 ** np.arange(3)[:, None].repeat(
        1000, axis=0
    ).astype(np.float32)
    parts = np.concatenate([parts, np.float32(1e-3) - parts[::-1]])  # what remains is far below the terms
    exact = parts.astype(np.float64).sum(axis=0)

    @jax.jit
    def summed(parts):
        start = (jnp.zeros(50), jnp.zeros(50))
        return jax.lax.scan(lambda sums, part: (_model._added(*sums, part), None), start, parts)[0]

    total, lost = summed(parts)
    np.testing.assert_allclose(np.asarray(total + lost), exact, rtol=1e-5)
    assert np.abs(np.asarray(total) / exact - 1).max() > 1e-4, "the plain sum would do: this test shows nothing"


@pytest.mark.parametrize("choice", CHOICES)
def test_expansion_is_the_same_in_every_row_space(choice):
    problem = planted(noise=0.5)
    found = npeff.decompose(problem.pefs.subset(np.arange(30)), 2, progress=False)
    stopping = npeff.Stopping(max_steps=50, tolerance=-1.0)
    wider = npeff.expand(found, problem.pefs, 3, rows=choice, stopping=stopping, mesh=npeff.make_mesh(), progress=False)
    for j in range(2):
        np.testing.assert_array_equal(wider.pseudo_fisher(j), found.pseudo_fisher(j))
    G = np.stack([wider.pseudo_fisher(j) for j in range(5)])
    loss = oracle_loss(problem.fishers, wider.coefficients, G)
    assert wider.history.loss[-1] == pytest.approx(loss, rel=1e-4)
    reference = npeff.expand(found, problem.pefs, 3, rows=npeff.DenseRows(), stopping=stopping, progress=False)
    # the kernel of [A; G_frozen] spans what the dense start may use: the same minimum
    np.testing.assert_allclose(wider.history.loss, reference.history.loss, rtol=1e-4)


def test_a_kernel_that_does_not_fit(monkeypatch):
    monkeypatch.setattr("npeff_jax.factorization.row_spaces._choose.memory_limit", lambda devices: 1e5)
    problem = planted(m=30, n=80)
    with pytest.raises(ValueError, match=r"KernelRows\(\) needs .* for 240 rows, but 100 kB are there; DenseRows\(\)"):
        npeff.decompose(problem.pefs, 3, rows=npeff.KernelRows(), progress=False)


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr("npeff_jax.factorization.row_spaces._choose.memory_limit", lambda devices: 1e3)
    with pytest.raises(ValueError, match=r"no row space fits 1 kB .*use more devices"):
        npeff.decompose(planted().pefs, 3, progress=False)


def test_kernel_is_for_low_rank():
    with pytest.raises(ValueError, match="is for low-rank PEFs"):
        npeff.decompose(planted_diagonal().pefs, 3, rows=npeff.KernelRows(), progress=False)


@pytest.mark.parametrize("devices", [0, 1])
def test_a_combination_and_its_products_in_one_pass(devices):
    A, mesh = matrix(), meshes()[devices]
    rows, rng = npeff.SparseRows().of(blocked(A), mesh), np.random.default_rng(3)
    G, C, M = rng.normal(size=(4, 101)), rng.normal(size=(3, 4)), rng.normal(size=(37, 3))
    D = C @ G + M.T @ A
    given = (rows.coordinates(G.astype(np.float32)), C.astype(np.float32), M.astype(np.float32))
    found, inner = jax.jit(lambda rows, *given: rows.combine(*given))(rows, *given)
    np.testing.assert_allclose(rows.expand(found), D, rtol=1e-4, atol=1e-4)
    for got, expected in zip(inner, (A @ D.T, G @ D.T, D @ D.T), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
