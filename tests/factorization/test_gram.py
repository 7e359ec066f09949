"""The Gram matrix against float64 products, for any distribution of entries over columns, in blocks, on any mesh."""

import jax
import numpy as np
import pytest
import scipy.sparse

import npeff_jax as npeff
from npeff_jax._sharding import factorization_mesh
from npeff_jax.factorization.row_spaces import BlockedRows, _device_gram, _kernel, _thin
from npeff_jax.factorization.row_spaces import _gram as module
from npeff_jax.tasks import planted

TOLERANCE = 1e-5
"""Of an entry off the diagonal, relative to the norms of the two rows: what the module states."""


def power_law(rng, N, m):
    return rng.random((N, m)) < np.sort(rng.random(m)) ** 4


def all_alone(rng, N, m):
    return np.arange(N)[:, None] == rng.integers(N, size=m)


def one_full_column(rng, N, m):
    return all_alone(rng, N, m) | (np.arange(m) == m // 2)


def full(rng, N, m):
    return np.ones((N, m), bool)


def empty(rng, N, m):
    return np.zeros((N, m), bool)


def same_columns_within_an_example(rng, N, m):
    """Rows in threes over the same columns: what an example of three rows has."""
    return np.repeat(rng.random((N // 3 + 1, m)) < 0.1, 3, axis=0)[:N]


FILLS = [power_law, all_alone, one_full_column, full, empty, same_columns_within_an_example]


def rows_of(fill, N, m, seed=0, heavy=False):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, size=(N, m)) if heavy else rng.normal(size=(N, m))
    return np.where(fill(rng, N, m), values, 0).astype(np.float32)


def blocked(A, n_blocks=1):
    parts, first = [], 0
    for part in np.array_split(A, n_blocks):
        parts.append((first, scipy.sparse.csr_array(part)))
        first += len(part)
    return BlockedRows(A.shape, np.count_nonzero(A, axis=0), lambda: iter(parts))


def check(Q, A, frozen=None, tolerance=TOLERANCE):
    """Every entry, both triangles, and no trace of the padding."""
    A = A.astype(np.float64)
    A = A if frozen is None else np.concatenate([A, frozen.astype(np.float64)])
    N, norms = len(A), np.linalg.norm(A, axis=1)
    Q = np.asarray(Q)
    assert (np.abs(Q[:N, :N] - A @ A.T) <= tolerance * np.outer(norms, norms)).all()
    np.testing.assert_allclose(np.diagonal(Q)[:N], norms**2, rtol=1e-6)
    np.testing.assert_array_equal(Q, Q.T)
    assert not Q[N:].any()


@pytest.fixture(params=["as it is", "small parts", "small parts, by public functions of SciPy"])
def sizes(request, monkeypatch):
    """Tiles, bands, chunks and groups as they are, and so small that all of them are many."""
    if "public" in request.param:
        monkeypatch.setattr(_thin, "csr_matmat", None)
    if "small parts" in request.param:
        monkeypatch.setattr(module, "TILE_BYTES", 4 * 64 * 64)
        monkeypatch.setattr(_thin, "PRODUCT_BYTES", 8 * 64 * 5)
        monkeypatch.setattr(_thin, "CACHED_ENTRIES", 50)
        monkeypatch.setattr(module, "MIRRORED", 7)
        monkeypatch.setattr("npeff_jax.factorization.row_spaces._blocks.GROUP_BYTES", 8 * 400)


@pytest.mark.parametrize("full_from", [2, 20, 10_000])
@pytest.mark.parametrize("fill", FILLS)
def test_any_distribution_of_entries(sizes, monkeypatch, fill, full_from):
    """All columns as tiles, some, none."""
    monkeypatch.setattr(module, "full_from", lambda N: full_from)
    A = rows_of(fill, 50, 333)
    check(module.gram(blocked(A, 4), factorization_mesh(None)), A)


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("full_from", [2, 20, 10_000])
def test_any_mesh_with_frozen_vectors(sizes, monkeypatch, devices, full_from):
    monkeypatch.setattr(module, "full_from", lambda N: full_from)
    mesh = factorization_mesh(npeff.make_mesh(jax.devices()[:devices]))
    A, frozen = rows_of(power_law, 50, 333), rows_of(full, 3, 333, seed=1)
    Q = module.gram(blocked(A, 3), mesh, frozen)
    assert Q.shape[0] % devices == 0
    assert len(Q.addressable_shards) == devices
    check(Q, A, frozen)


@pytest.mark.parametrize("N", [1, 2])
def test_few_rows(N):
    A = rows_of(full, N, 17)
    check(module.gram(blocked(A), factorization_mesh(None)), A)


def test_entries_of_one_row_and_column_are_summed():
    A = scipy.sparse.csr_array(
        (np.array([1, 2, 3], np.float32), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2)
    )
    check(module.gram(BlockedRows.of(A), factorization_mesh(None)), A.toarray())


def test_long_sums_of_heavy_tailed_values(monkeypatch):
    """65,536 shared columns, two rows nearly equal: the stated error, both ways."""
    A = rows_of(full, 6, 65_536, heavy=True)
    A[1] = 0.9 * A[0]
    for full_from in (2, 100):
        monkeypatch.setattr(module, "full_from", lambda N, least=full_from: least)
        check(module.gram(blocked(A), factorization_mesh(None)), A, tolerance=5e-5)


@pytest.fixture(params=["as it is", "small parts"])
def device_sizes(request, monkeypatch):
    """Tiles, chunks and groups as they are, and so small that all of them are many."""
    if request.param == "small parts":
        monkeypatch.setattr(_device_gram, "TILE_BYTES", 4 * 64 * 64)
        monkeypatch.setattr(_device_gram, "LEAST_CHUNK", 64)
        monkeypatch.setattr(_device_gram, "CHUNK", 256)
        monkeypatch.setattr("npeff_jax.factorization.row_spaces._blocks.GROUP_BYTES", 8 * 1600)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("n_frozen", [0, 3])
@pytest.mark.parametrize("fill", FILLS)
def test_made_on_devices_it_is_that_of_the_host(device_sizes, fill, n_frozen, devices):
    """What accelerators do, on CPU devices; entries within 1e-6 of the norms of their two rows."""
    mesh = factorization_mesh(npeff.make_mesh(jax.devices()[:devices]))
    A = rows_of(fill, 50, 333)
    frozen = rows_of(full, n_frozen, 333, seed=1) if n_frozen else None
    ours, theirs = (make(blocked(A, 3), mesh, frozen) for make in (_device_gram.device_gram, module.gram))
    assert ours.sharding.is_equivalent_to(theirs.sharding, 2)
    norms = np.sqrt(np.diagonal(theirs))
    assert (np.abs(np.asarray(ours) - np.asarray(theirs)) <= 1e-6 * np.outer(norms, norms)).all()
    check(ours, A, frozen)


def test_long_sums_on_devices():
    A = rows_of(full, 6, 65_536, heavy=True)
    A[1] = 0.9 * A[0]
    check(_device_gram.device_gram(blocked(A), factorization_mesh(None)), A, tolerance=5e-5)


def test_a_tile_is_bounded_by_the_memory_of_a_device(monkeypatch):
    mesh, bytes_of = factorization_mesh(None), {}
    for limit in (np.inf, 80e9, 1e9):
        monkeypatch.setattr(_device_gram, "_memory", lambda mesh, limit=limit: limit)
        bytes_of[limit] = 4 * 1000 * _device_gram.tile_width(1000, mesh)
    assert bytes_of[80e9] == bytes_of[np.inf] <= _device_gram.TILE_BYTES
    assert 0.95 * 1e9 / 16 < bytes_of[1e9] <= 1e9 / 16


def test_the_kernel_of_accelerators_is_made_on_them(monkeypatch):
    """No Gram matrix of the host, also with frozen components; the same run."""
    pefs = planted().pefs
    run = {"rows": npeff.KernelRows(), "mesh": npeff.make_mesh(), "progress": False}
    few = run | {"stopping": npeff.Stopping(max_steps=8)}

    def losses():
        found = npeff.decompose(pefs, 3, **few)
        return np.concatenate([found.history.loss, npeff.expand(found, pefs, 2, **few).history.loss])

    by_host = losses()
    monkeypatch.setattr(_kernel, "made_by_host", lambda mesh: False)
    monkeypatch.setattr(_kernel, "gram", None)
    np.testing.assert_allclose(losses(), by_host, rtol=1e-5)
