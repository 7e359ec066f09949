"""Predicted times: the counts of work that they are made of, exactly, and how they grow. No time is asserted."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.sparse

import npeff_jax as npeff
from npeff_jax._machine import cores
from npeff_jax._sharding import factorization_mesh
from npeff_jax.factorization.row_spaces import BlockedRows, DenseRows, KernelRows, SparseRows, _gram, _rates, _thin

MESH = factorization_mesh(None)


def rows(N, m, seed=0):
    """Sparse rows, with columns of one entry, of some and of many."""
    rng = np.random.default_rng(seed)
    return (rng.random((N, m)) < np.concatenate([[0.6, 0.5], 0.03 * rng.random(m - 2)])).astype(np.float32)


@pytest.fixture
def counted(monkeypatch):
    """A list, to which every product of sparse rows adds its pairs of entries and the entries of its left matrix."""
    found, multiply = [], _thin.csr_matmat

    def count(n, size, starts, indices, data, split, *rest):
        visited = indices[starts[0] : starts[n]]
        found.append(((split[visited + 1] - split[visited]).sum(), len(visited)))  # appending is safe in threads
        multiply(n, size, starts, indices, data, split, *rest)

    monkeypatch.setattr(_thin, "csr_matmat", count)
    return found


def test_counts_of_the_gram_matrix(counted):
    """Pairs of rows that meet in thin columns, by a dense product. They are multiplied, and some more in each band."""
    A = rows(320, 500)
    of = BlockedRows(A.shape, np.count_nonzero(A, axis=0), lambda: iter([(0, scipy.sparse.csr_array(A))]))
    full = of.counts >= _gram.full_from(len(A))
    thin = A[:, ~full & (of.counts > 1)]
    meeting = (thin @ thin.T).astype(int)
    pairs, visits, n_full = _gram.work(of.counts, len(A))
    assert (pairs, visits, n_full) == (np.triu(meeting).sum(), np.count_nonzero(thin), np.count_nonzero(full))
    assert 2 <= n_full < 20
    _gram.gram(of, MESH)
    edges = np.linspace(0, len(A), _thin.BANDS + 1).astype(int)
    multiplied = sum(meeting[first:stop, first:].sum() for first, stop in itertools.pairwise(edges))
    assert np.sum(counted, axis=0).tolist() == [multiplied, visits]
    assert multiplied == pytest.approx(pairs * (1 + 1 / _thin.BANDS), rel=0.05)


def test_cost_per_pair_and_per_entry_come_apart(counted):
    """A machine that takes 2 ns per pair and 50 ns per entry is measured as such."""

    def together(function):
        counted.clear()
        for k in range(2):
            function(k)
        return float(np.sum(counted, axis=0) @ (2e-9, 5e-8))

    np.testing.assert_allclose(_rates._of_pairs(together, 2), (2e-9, 5e-8), rtol=1e-2)


def test_twice_the_examples(monkeypatch):
    """Pairs that meet become four times as many, non-zeros twice; with the same kept parameters the vectors stay."""
    monkeypatch.setitem(_rates._MEASURED, MESH.local_devices[0], _rates.TYPICAL["cpu"])
    counts = np.random.default_rng(0).integers(2, 40, size=100_000)
    small, large = (BlockedRows((N, len(counts)), k * counts, lambda: iter(())) for N, k in ((3000, 1), (6000, 2)))
    gram = [_gram.gram_seconds(A, MESH) for A in (small, large)]
    assert 2 < gram[1] / gram[0] < 4
    for choice, step in ((KernelRows(), (3.5, 4)), (SparseRows(), (1.2, 2)), (DenseRows(), (1.5, 2))):
        one, two = (choice.cost(A, 32, MESH) for A in (small, large))
        assert step[0] < two.step / one.step < step[1]
        assert 1 < two.once / one.once < 4


@pytest.mark.parametrize("busy", ["pair", "visit", "product", "gather", "sort", "touch"])
def test_each_slower_part_of_the_host_makes_the_kernel_or_sparse_rows_later(monkeypatch, busy):
    """No measured rate is unused."""
    A = BlockedRows((3000, 1000), np.full(1000, 30), lambda: iter(()))
    once = []
    for factor in (1, 10):
        slower = {busy: factor * getattr(_rates.TYPICAL["cpu"], busy)}
        speed = dataclasses.replace(_rates.TYPICAL["cpu"], **slower)
        monkeypatch.setitem(_rates._MEASURED, MESH.local_devices[0], speed)
        once.append(sum(choice.cost(A, 8, MESH).once for choice in (KernelRows(), SparseRows())))
    assert once[1] > once[0]


def test_measured_rates(monkeypatch):
    """Positive, and never more cores than there are; measured once."""
    monkeypatch.setattr(_rates, "_MEASURED", {})
    _rates.measure(MESH)
    found = _rates.rates(MESH)
    assert all(value > 0 for value in dataclasses.asdict(found).values())
    assert found.cores <= cores()
    _rates.measure(MESH)
    assert _rates.rates(MESH) == found


def test_the_median_of_a_measurement_counts(monkeypatch):
    """A run of which most repetitions are disturbed is measured as disturbed: other programs slow the work as well."""
    clock = iter([0.0, 1.0, 10.0, 14.0, 20.0, 25.0])
    monkeypatch.setattr(_rates.time, "perf_counter", lambda: next(clock))
    assert _rates._usual(lambda: npeff.__name__) == 4.0
