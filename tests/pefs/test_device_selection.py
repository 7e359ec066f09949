"""Selecting inside a compiled program against selecting on the host: the same entries to the bit, the same PEFs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import inputs, mlp
from jax.sharding import NamedSharding, PartitionSpec

import npeff_jax as npeff
from npeff_jax.factorization._compile import compiler_options
from npeff_jax.pefs import DeviceRows, LeafRows, _batch, _device_rows, _memory, largest, largest_on_device
from npeff_jax.pefs._selection import shared_support
from npeff_jax.pefs.representations._eigenvectors import principal_vectors

QUICK = compiler_options() | {"xla_backend_optimization_level": 0}
"""Of the compiler: a sixth of the time to compile. What the optimiser may not change is tested without."""

SIZES = (4000, 37, 1, 600)
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
M = int(OFFSETS[-1])


def families(c, rng):
    """Rows that are hard to select from, one family each."""
    x = rng.standard_normal((c, M))
    yield x
    yield x**5
    yield np.round(x)  # ties and zeros
    yield np.full((c, M), -0.25)
    yield np.zeros((c, M))
    yield x * (rng.random((c, M)) < 0.002)  # fewer non-zeros than are wanted
    yield np.exp(8 * x)
    yield np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    yield 1e-12 * x
    yield np.where(np.arange(M) < SIZES[0], 1e-3 * x, x)  # nearly all of the largest in few leaves


@pytest.mark.parametrize(
    ("c", "keep", "turn", "shared", "small", "options"),
    [
        (1, 50, False, False, 1, QUICK),
        (2, 50, False, False, 1 << 16, QUICK),
        (3, 50, True, False, 100, QUICK),
        (2, 2 * M, True, False, 100, QUICK),
        (3, 40, True, True, 1 << 16, {}),  # row by row and as a matrix, what an optimiser would contract
        (6, 200, True, False, 1 << 16, {}),
        (6, 40, False, True, 1, QUICK),
    ],
)
def test_the_entries_are_those_of_the_host(c, keep, turn, shared, small, options, monkeypatch):
    """A batch of all families, with one to c rows wanted: bit-equal entries, and products against dense ones."""
    monkeypatch.setattr(_device_rows, "SMALL", small)
    rng = np.random.default_rng(c)
    cases = [np.asarray(x, np.float32) for x in families(c, rng)]
    wanted = rng.integers(1, c + 1, len(cases))
    matrices = np.stack([np.linalg.qr(rng.standard_normal((c, c)))[0] for _ in cases]).astype(np.float32)
    leaves = [[np.stack([x[i, a : a + s] for x in cases]) for i in range(c)] for a, s in zip(OFFSETS, SIZES)]

    def of_one(leaves, matrix, wanted):
        rows = DeviceRows(leaves, matrix if turn else None, wanted)
        return largest_on_device(rows.by_parameter() if shared else rows, keep, min(keep, c * M))

    found = jax.device_get(jax.jit(jax.vmap(of_one), compiler_options=options)(leaves, matrices, wanted))
    for i, x in enumerate(cases):
        one = jax.tree.map(lambda field, i=i: field[i], found)
        blocks = [[np.ascontiguousarray(x[:, a : a + s]) for a, s in zip(OFFSETS, SIZES)]]
        rows = LeafRows(blocks, OFFSETS, matrices[i] if turn else None, int(wanted[i]))
        expected = (shared_support if shared else largest)(rows, keep).entries
        for ours, theirs in zip((one.rows, one.indices, one.values), expected, strict=True):
            np.testing.assert_array_equal(ours[: one.n_kept], theirs, err_msg=f"family {i}")
        assert not one.values[one.n_kept :].any()
        A = rows.rotated(x).astype(np.float64)
        S = np.zeros_like(A)
        S[expected[0], expected[1]] = expected[2]
        D = np.where(S != 0, 0, A)
        unit = np.trace(A @ A.T) or 1.0
        for ours, theirs in ((one.own, S @ S.T), (one.cross, D @ S.T), (one.rest, D @ D.T)):
            np.testing.assert_allclose(ours / unit, theirs / unit, atol=3e-6)
        assert one.whole <= (np.count_nonzero(D) == 0)


def test_a_sample_that_misleads_costs_time_alone(monkeypatch):
    """Thresholds far too high and far too low at first."""
    x = np.random.default_rng(0).standard_normal((2, M)).astype(np.float32)
    rows, indices, values = largest(LeafRows([[x]], np.array([0, M])), 60).entries

    def find(x, factor):
        sample = jax.lax.bitcast_convert_type(jnp.linspace(factor, 2 * factor, 5000, dtype=jnp.float32), jnp.int32)
        monkeypatch.setattr(DeviceRows, "sample", lambda self, number: sample)
        return largest_on_device(DeviceRows([list(x)]), 60, 60)

    compiled = jax.jit(find, compiler_options=QUICK)
    for factor in (0.0, 1e3):
        found = compiled(x, factor)
        assert 1 < found.passes < 32
        np.testing.assert_array_equal(found.indices, indices)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize("c", [1, 2, 7, 16])
def test_eigenvectors_by_rotations(c):
    """Orthonormal, diagonalising, ordered; also of degenerate and of graded matrices."""
    rng = np.random.default_rng(c)
    A = rng.standard_normal((20, c, 3 * c)) * 10.0 ** -rng.uniform(0, 3, (20, c, 1))
    grams = np.concatenate([A @ A.transpose(0, 2, 1), np.stack([np.eye(c), np.ones((c, c)), np.zeros((c, c))])])
    grams /= np.maximum(np.trace(grams, axis1=1, axis2=2), 1e-30)[:, None, None]
    grams = grams.astype(np.float32)
    of_all = jax.jit(jax.vmap(lambda gram: principal_vectors(gram, jnp)), compiler_options=QUICK)
    V = np.asarray(of_all(grams), np.float64)
    np.testing.assert_allclose(V @ V.transpose(0, 2, 1), np.broadcast_to(np.eye(c), V.shape), atol=2e-6)
    turned = V @ grams.astype(np.float64) @ V.transpose(0, 2, 1)
    values = np.diagonal(turned, axis1=1, axis2=2)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(grams.astype(np.float64))[:, ::-1], rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(turned - values[..., None] * np.eye(c), 0, atol=3e-6)
    for gram, ours in zip(grams[:3], V, strict=False):
        np.testing.assert_allclose(np.abs(np.sum(ours * principal_vectors(gram, np), 1)), 1, atol=1e-2)


def fishers(pefs):
    rows = pefs.to_scipy().toarray().astype(np.float64)
    bounds = np.cumsum([0, *pefs.n_rows])
    return [rows[a:b].T @ rows[a:b] for a, b in itertools.pairwise(bounds)]


def assert_same(host, device, within=1e-5):
    """The agreement asked for: sets that differ only next to the threshold, figures to 1e-5."""
    np.testing.assert_array_equal(host.n_rows, device.n_rows)
    np.testing.assert_allclose(device.norms, host.norms, rtol=within)
    for name in ("fisher_error", "kept_energy", "lost_mass", "lost_trace"):
        np.testing.assert_allclose(getattr(device, name), getattr(host, name), atol=within, err_msg=name)
    for ours, theirs in zip(fishers(device), fishers(host), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=within * max(np.abs(theirs).max(), 1e-30))


MESHES = {"one": lambda: None, "eight": npeff.make_mesh, "four by two": lambda: npeff.make_mesh(model=2)}

even = pytest.mark.skipif(jax.device_count() % 2 == 1, reason="an accelerator alone cannot be shared by two axes")


@pytest.fixture
def quick(monkeypatch):
    """Programs of PEFs that are compiled quickly."""
    monkeypatch.setattr(_batch, "CPU_OPTIONS", QUICK)


THREE, TWO = mlp(3), mlp(2)
"""Models of three classes and of two, for all tests: they keep their programs, and compiling is what takes the time."""


@pytest.fixture
def three(quick):
    return THREE


@pytest.fixture
def two(quick):
    """One row: for tests of what is around the selection."""
    return TWO


@pytest.mark.parametrize(
    ("representation", "keep", "mesh"),
    [
        (npeff.LowRank(rows=npeff.RowBasis.CLASSES, min_probability=0.1), npeff.PerRow(9), "eight"),
        pytest.param(npeff.LowRank(min_trace=0.99), 25, "four by two", marks=even),
        (npeff.LowRank(), 25, "one"),
        (npeff.Sampled(6), npeff.SharedSupport(9), "eight"),
        (npeff.Diagonal(), 25, "one"),
    ],
    ids=str,
)
def test_pefs_are_those_of_the_host(three, representation, keep, mesh):
    x, devices = inputs(19), MESHES[mesh]()
    run = {"keep": keep, "mesh": devices, "batch_size": 16, "progress": False}
    host = npeff.compute_pefs(three, x, representation, select_on="host", **run)
    assert_same(host, npeff.compute_pefs(three, x, representation, select_on="device", **run))


@pytest.fixture(scope="module")
def graded():
    """Examples with margins from 0 to 80: norms down to 1e-35, whose squares no float32 holds."""
    x = np.random.default_rng(0).normal(size=(17, 65)).astype(np.float32)
    x[:, 0] = np.linspace(0, 80, 17)
    return npeff.Model(lambda p, x: jnp.stack([x[0] + 1e-2 * p @ x[1:], x[0] * 0, -x[0] + p @ x[1:]]), jnp.ones(64)), x


@pytest.mark.parametrize("normalization", list(npeff.Normalization))
def test_margins_from_0_to_80_and_every_normalization(quick, graded, normalization):
    model, x = graded
    run = {"keep": 20, "normalization": normalization, "progress": False}
    host = npeff.compute_pefs(model, x, select_on="host", **run)
    assert host.norms[host.norms > 0].min() < 1e-30
    device = npeff.compute_pefs(model, x, select_on="device", **run)
    assert_same(host, device)
    np.testing.assert_array_equal(host.norms == 0, device.norms == 0)


def test_examples_that_are_not_finite_are_skipped(quick, graded):
    model, x = graded[0], graded[1].copy()
    x[4] = 3e38
    run = {"keep": 20, "select_on": "device", "progress": False}
    np.testing.assert_array_equal(npeff.compute_pefs(model, x, on_failure="skip", **run).failed, [4])
    with pytest.raises(ValueError, match="example 4 has logits that are not finite"):
        npeff.compute_pefs(model, x, **run)


def test_a_model_in_bfloat16(two):
    """On an accelerator the two programs are fused differently and round to bfloat16 at different places."""
    half = dataclasses.replace(two, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), two.params))
    run = {"keep": 25, "progress": False}
    x = inputs(9)
    host, device = npeff.compute_pefs(half, x, **run), npeff.compute_pefs(half, x, select_on="device", **run)
    assert_same(host, device, within=1e-5 if jax.default_backend() == "cpu" else 2.0**-7)


@even
def test_parameters_sharded_over_a_second_axis(three):
    x, mesh = inputs(16), npeff.make_mesh(model=2)

    def place(leaf):
        axes = ("model",) if leaf.shape and leaf.shape[0] % 2 == 0 else ()
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    placed = dataclasses.replace(three, params=jax.tree.map(place, three.params))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed.params))
    host = npeff.compute_pefs(three, x, keep=25, batch_size=16, progress=False)
    assert_same(host, npeff.compute_pefs(placed, x, keep=25, mesh=mesh, select_on="device", progress=False))


@pytest.fixture
def portions(two):
    """Eleven examples, how they are computed on a device, and their PEFs from the host.

    Tests that use it go through a batch of eight in portions of two: one program for all.
    """
    x, run = inputs(11), {"keep": 25, "batch_size": 8, "progress": False}
    return x, {**run, "select_on": "device"}, npeff.compute_pefs(two, x, select_on="host", **run)


def test_rows_of_a_few_examples_at_a_time(two, portions, monkeypatch):
    """A share of a batch goes through in portions, the last one padded; nothing but rounding changes."""
    x, run, whole = portions
    monkeypatch.setattr(_memory, "CPU_BATCH_BYTES", 2 * 4 * two.space.size)
    assert_same(whole, npeff.compute_pefs(two, x, **{**run, "batch_size": 7}))


def test_running_out_of_memory_halves_the_portion(two, portions, monkeypatch, caplog):
    x, run, whole = portions
    asked = []
    original = _batch.BatchRows._fits

    def short(self, room, arguments):
        asked.append(self.at_once)
        if self.at_once > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        return original(self, room, arguments)

    limit = 2
    monkeypatch.setattr(_batch.BatchRows, "_fits", short)
    assert_same(whole, npeff.compute_pefs(two, x, **run))
    assert asked[:3] == [8, 4, 2]
    assert set(asked[3:]) == {2}
    assert "ran out of memory with the rows of 8 examples at once; going on with 4" in caplog.text
    limit = 0
    with pytest.raises(ValueError, match="one example does not fit: not enough memory was free"):
        npeff.compute_pefs(two, x, **run)


def test_a_program_too_large_for_an_accelerator_is_compiled_for_fewer(two, portions, monkeypatch):
    """The portion by the compiled program's own account, which is believed for two and made up for others."""
    x, run, whole = portions
    found, own = [], _batch.BatchRows._size

    def account(self, room, arguments):
        found.append((self.at_once, own(self, room, arguments) if self.at_once == 2 else sizes[self.at_once]))
        return found[-1][1]

    monkeypatch.setattr(_batch.BatchRows, "_size", account)
    monkeypatch.setattr(_batch, "free_on_accelerators", lambda mesh: 1e6)
    sizes = {8: 4e6}
    assert_same(whole, npeff.compute_pefs(two, x, **run))
    assert [at_once for at_once, _ in found] == [8, 2]
    assert 25 * 8 < found[-1][1] < 1e6
    sizes = {8: 1e8, 1: 1.1e6}
    with pytest.raises(ValueError, match=r"one example does not fit: its program needs 1.1 MB, and 1 MB may be used"):
        npeff.compute_pefs(two, x, **run)


def test_what_cannot_be_selected_on_a_device_says_so(three):
    @dataclasses.dataclass(frozen=True)
    class Own(npeff.PerRow):
        def select(self, rows):
            return largest(rows, 3)

    @dataclasses.dataclass(frozen=True)
    class Untraceable(npeff.LowRank):
        def rotation(self, gram, n_rows, xp):
            return super().rotation(gram, int(n_rows), xp)

    x = inputs(3)
    with pytest.raises(ValueError, match="not possible: Own has no select_on_device of its own"):
        npeff.compute_pefs(three, x, keep=Own(3), select_on="device", progress=False)
    with pytest.raises(ValueError, match=r"not possible: Untraceable.rotation cannot be traced"):
        npeff.compute_pefs(three, x, Untraceable(), keep=3, select_on="device", progress=False)
    assert npeff.compute_pefs(three, x, keep=Own(3), progress=False).values.any()


def test_an_own_selection_with_a_way_on_the_device(three):
    """The guide's: more per row, up to a limit."""

    @dataclasses.dataclass(frozen=True)
    class Capped(npeff.PerRow):
        most: int = 7

        def select(self, rows):
            return largest(rows, min(self.entries * rows.wanted, self.most))

        def select_on_device(self, rows):
            return largest_on_device(rows, jnp.minimum(self.entries * rows.wanted, self.most), self.most)

    x, run = inputs(5), {"keep": Capped(5), "progress": False}
    host, device = (npeff.compute_pefs(three, x, select_on=where, **run) for where in ("host", "device"))
    assert_same(host, device)
    np.testing.assert_array_equal(np.count_nonzero(device.values, axis=1), 7)
