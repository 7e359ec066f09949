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
from npeff_jax.pefs import DeviceRows, LeafRows, _batch, _device_rows, _memory, largest, largest_on_device
from npeff_jax.pefs._selection import shared_support
from npeff_jax.pefs.representations._eigenvectors import by_rotations, principal_vectors

SIZES = (4000, 37, 1, 900, 300)
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
    yield np.where(np.arange(M) < 4000, 1e-3 * x, x)  # nearly all of the largest in few leaves


@pytest.mark.parametrize(
    ("c", "keep", "turn", "shared", "small"),
    [
        (1, 50, False, False, 1),
        (2, 50, False, False, 1 << 16),
        (3, 50, True, False, 100),
        (3, 3 * M, True, False, 100),
        (3, 40, True, True, 1000),
        (6, 200, True, False, 1),
        (6, 40, False, True, 1),
    ],
)
def test_the_entries_are_those_of_the_host(c, keep, turn, shared, small, monkeypatch):
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

    found = jax.device_get(jax.jit(jax.vmap(of_one))(leaves, matrices, wanted))
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
    leaves = [[x[i, a : a + s] for i in range(2)] for a, s in zip(OFFSETS, SIZES)]
    rows, indices, values = largest(LeafRows([[x]], np.array([0, M])), 60).entries
    for factor in (0.0, 1e3):
        monkeypatch.setattr(
            DeviceRows,
            "sample",
            lambda self, number, f=factor: jax.lax.bitcast_convert_type(
                jnp.linspace(f, 2 * f, 5000, dtype=jnp.float32), jnp.int32
            ),
        )
        found = jax.jit(lambda leaves: largest_on_device(DeviceRows(leaves), 60, 60))(leaves)
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
    V = np.asarray(jax.jit(jax.vmap(by_rotations))(grams), np.float64)
    np.testing.assert_allclose(V @ V.transpose(0, 2, 1), np.broadcast_to(np.eye(c), V.shape), atol=2e-6)
    turned = V @ grams.astype(np.float64) @ V.transpose(0, 2, 1)
    values = np.diagonal(turned, axis1=1, axis2=2)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(grams.astype(np.float64))[:, ::-1], rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(turned - values[..., None] * np.eye(c), 0, atol=3e-6)
    for gram in grams[:3]:
        alike = np.abs(np.sum(np.asarray(principal_vectors(jnp.asarray(gram), jnp)) * principal_vectors(gram, np), 1))
        np.testing.assert_allclose(alike, 1, atol=1e-2)


def fishers(pefs):
    rows = pefs.to_scipy().toarray().astype(np.float64)
    bounds = np.cumsum([0, *pefs.n_rows])
    return [rows[a:b].T @ rows[a:b] for a, b in itertools.pairwise(bounds)]


def assert_same(host, device):
    """The agreement asked for: sets that differ only next to the threshold, figures to 1e-5."""
    np.testing.assert_array_equal(host.n_rows, device.n_rows)
    np.testing.assert_allclose(device.norms, host.norms, rtol=1e-5)
    for name in ("fisher_error", "kept_energy", "lost_mass", "lost_trace"):
        np.testing.assert_allclose(getattr(device, name), getattr(host, name), atol=1e-5, err_msg=name)
    for ours, theirs in zip(fishers(device), fishers(host), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1e-30))


MESHES = {"one": lambda: None, "eight": npeff.make_mesh, "four by two": lambda: npeff.make_mesh(model=2)}


@pytest.mark.parametrize(
    ("representation", "keep", "mesh"),
    [
        (npeff.LowRank(rows=npeff.RowBasis.CLASSES, min_probability=0.02), npeff.PerRow(9), "eight"),
        (npeff.LowRank(min_trace=0.99), 25, "one"),
        (npeff.LowRank(), 25, "four by two"),
        (npeff.Sampled(6), npeff.SharedSupport(9), "eight"),
        (npeff.Diagonal(), 25, "one"),
    ],
    ids=str,
)
def test_pefs_are_those_of_the_host(representation, keep, mesh):
    model, x, devices = mlp(), inputs(19), MESHES[mesh]()
    run = {"keep": keep, "mesh": devices, "batch_size": 16, "progress": False}
    host = npeff.compute_pefs(model, x, representation, select_on="host", **run)
    assert_same(host, npeff.compute_pefs(model, x, representation, select_on="device", **run))


@pytest.mark.parametrize("normalization", list(npeff.Normalization))
def test_margins_from_0_to_80_and_every_normalization(normalization):
    """Norms down to 1e-35, whose squares no float32 holds."""
    model = npeff.Model(lambda p, x: jnp.stack([x[0] + 1e-2 * p @ x[1:], x[0] * 0, -x[0] + p @ x[1:]]), jnp.ones(64))
    x = np.random.default_rng(0).normal(size=(17, 65)).astype(np.float32)
    x[:, 0] = np.linspace(0, 80, 17)
    run = {"keep": 20, "normalization": normalization, "progress": False}
    host = npeff.compute_pefs(model, x, select_on="host", **run)
    assert host.norms[host.norms > 0].min() < 1e-30
    device = npeff.compute_pefs(model, x, select_on="device", **run)
    assert_same(host, device)
    np.testing.assert_array_equal(host.norms == 0, device.norms == 0)


def test_a_model_in_bfloat16():
    model, x = mlp(), inputs(9)
    half = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))
    run = {"keep": 25, "progress": False}
    assert_same(npeff.compute_pefs(half, x, **run), npeff.compute_pefs(half, x, select_on="device", **run))


def test_parameters_sharded_over_a_second_axis():
    model, x, mesh = mlp(), inputs(9), npeff.make_mesh(model=2)

    def place(leaf):
        axes = ("model",) if leaf.shape and leaf.shape[0] % 2 == 0 else ()
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    placed = dataclasses.replace(model, params=jax.tree.map(place, model.params))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed.params))
    host = npeff.compute_pefs(model, x, keep=25, progress=False)
    assert_same(host, npeff.compute_pefs(placed, x, keep=25, mesh=mesh, select_on="device", progress=False))


def test_rows_of_a_few_examples_at_a_time(monkeypatch):
    """A share of a batch goes through in portions, the last one padded; nothing but rounding changes."""
    model, x = mlp(), inputs(11)
    run = {"keep": 25, "batch_size": 8, "select_on": "device", "progress": False}
    whole = npeff.compute_pefs(model, x, **run)
    monkeypatch.setattr(_memory, "CPU_BATCH_BYTES", 3 * 4 * 2 * model.space.size)
    assert_same(whole, npeff.compute_pefs(model, x, **run))


def test_running_out_of_memory_halves_the_portion(monkeypatch, caplog):
    model, x = mlp(), inputs(11)
    run = {"keep": 25, "batch_size": 8, "progress": False}
    whole = npeff.compute_pefs(model, x, **run)
    asked = []
    original = _batch.BatchRows._fits

    def short(self, room, arguments):
        asked.append(self.at_once)
        if self.at_once > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        return original(self, room, arguments)

    limit = 2
    monkeypatch.setattr(_batch.BatchRows, "_fits", short)
    assert_same(whole, npeff.compute_pefs(model, x, select_on="device", **run))
    assert asked[:3] == [8, 4, 2]
    assert set(asked[3:]) == {2}
    assert "ran out of memory with the rows of 8 examples at once; going on with 4" in caplog.text
    limit = 0
    with pytest.raises(ValueError, match="one example does not fit: not enough memory was free"):
        npeff.compute_pefs(model, x, select_on="device", **run)


def test_a_program_too_large_for_an_accelerator_is_compiled_for_fewer(monkeypatch):
    """The portion by the compiled program's own account."""
    model, x = mlp(), inputs(6)
    run = {"keep": 25, "batch_size": 6, "progress": False}
    sizes = {6: 180.0, 3: 90.0}
    monkeypatch.setattr(_batch, "free_on_accelerators", lambda mesh: 90.0)
    monkeypatch.setattr(_batch, "program_bytes", lambda compiled: sizes[rows.at_once])
    rows = None
    original = _batch.BatchRows.__init__

    def keep_hold(self, *args, **kwargs):
        nonlocal rows
        rows = self
        original(self, *args, **kwargs)

    monkeypatch.setattr(_batch.BatchRows, "__init__", keep_hold)
    npeff.compute_pefs(model, x, select_on="device", **run)
    assert rows.at_once == 3
    monkeypatch.setattr(_batch, "program_bytes", lambda compiled: 91.0 if rows.at_once == 1 else 1e4)
    with pytest.raises(ValueError, match="one example does not fit: its program needs 91 B, and 90 B may be used"):
        npeff.compute_pefs(model, x, select_on="device", **run)


def test_what_cannot_be_selected_on_a_device_says_so():
    @dataclasses.dataclass(frozen=True)
    class Own(npeff.PerRow):
        def select(self, rows):
            return largest(rows, 3)

    @dataclasses.dataclass(frozen=True)
    class Untraceable(npeff.LowRank):
        def rotation(self, gram, n_rows, xp):
            return super().rotation(gram, int(n_rows), xp)

    model, x = mlp(), inputs(3)
    with pytest.raises(ValueError, match="not possible: Own has no select_on_device of its own"):
        npeff.compute_pefs(model, x, keep=Own(3), select_on="device", progress=False)
    with pytest.raises(ValueError, match=r"not possible: Untraceable.rotation cannot be traced"):
        npeff.compute_pefs(model, x, Untraceable(), keep=3, select_on="device", progress=False)
    assert npeff.compute_pefs(model, x, keep=Own(3), progress=False).values.any()


def test_an_own_selection_with_a_way_on_the_device():
    """The guide's: more per row, up to a limit."""

    @dataclasses.dataclass(frozen=True)
    class Capped(npeff.PerRow):
        most: int = 11

        def select(self, rows):
            return largest(rows, min(self.entries * rows.wanted, self.most))

        def select_on_device(self, rows):
            return largest_on_device(rows, jnp.minimum(self.entries * rows.wanted, self.most), self.most)

    model, x = mlp(), inputs(5)
    run = {"keep": Capped(5), "progress": False}
    host, device = (npeff.compute_pefs(model, x, select_on=where, **run) for where in ("host", "device"))
    assert_same(host, device)
    np.testing.assert_array_equal(np.count_nonzero(device.values, axis=1), 11)


def test_examples_that_are_not_finite_are_skipped():
    model, x = npeff.Model(lambda p, x: jnp.stack([p @ jnp.log(x), p[0]]), jnp.ones(40)), np.ones((9, 40), np.float32)
    x[4] = -1.0
    run = {"keep": 25, "select_on": "device", "progress": False}
    np.testing.assert_array_equal(npeff.compute_pefs(model, x, on_failure="skip", **run).failed, [4])
    with pytest.raises(ValueError, match="example 4 has logits that are not finite"):
        npeff.compute_pefs(model, x, **run)
