"""What fits and what stands out: batches by free memory, results that would not fit, norms, positions beyond 2^31."""

import json
import logging
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import inputs, mlp

import npeff_jax as npeff
from npeff_jax import _machine
from npeff_jax.pefs import LeafRows, NormSummary, _batch, _memory, largest

pytestmark = pytest.mark.fast

MESH = npeff.make_mesh(model=8)  # one device along the examples


def test_a_batch_is_as_large_as_the_free_memory_allows(monkeypatch):
    monkeypatch.setattr(_memory, "free_memory_of", lambda devices: 10.5e6 * _memory.WORKING)
    assert _memory.choose_batch_size(1_000_000, 1000, MESH) == 10
    assert _memory.choose_batch_size(1_000_000, 4, MESH) == 4
    assert _memory.choose_batch_size(8, 1000, MESH) == _memory.MOST_EXAMPLES
    assert _memory.choose_batch_size(8, 12, MESH) == _memory.choose_batch_size(8, 40, MESH)  # one program for both
    assert _memory.choose_batch_size(1_000_000, 1000, npeff.make_mesh()) == 80
    with pytest.raises(ValueError, match=r"rows of one example are 20 MB, .* takes about 60 MB, but 31.5 MB are free"):
        _memory.choose_batch_size(20_000_000, 1000, MESH)


def test_free_memory_is_that_of_the_device_or_of_the_host():
    class Accelerator:
        process_index = 0
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 400}

    class Silent(Accelerator):
        def memory_stats(self):
            return None

    assert _memory.free_memory_of([Accelerator()]) == pytest.approx(_machine.DEVICE_SHARE * 600)
    with pytest.raises(ValueError, match=r"does not report its memory.*pass batch_size"):
        _memory.free_memory_of([Accelerator(), Silent()])  # the host's memory says nothing about it
    assert 0 < _memory.free_memory_of(jax.devices()) < _memory.free_host_memory() / 8


def test_results_that_do_not_fit_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "free_host_memory", lambda: 1000.0)
    monkeypatch.setattr(_memory, "free_memory_of", lambda devices: 1e9)
    with pytest.raises(ValueError, match=r"would take .* but 1 kB are free in memory; write them to a path"):
        npeff.compute_pefs(mlp(), inputs(9), progress=False)
    monkeypatch.setattr(_memory.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 999}))
    with pytest.raises(ValueError, match=r"would take .* but 999 B are free on the disk of"):
        npeff.compute_pefs(mlp(), inputs(9), path=tmp_path / "pefs", progress=False)
    assert not (tmp_path / "pefs").exists()


def test_the_last_batch_is_padded_and_compiled_with_the_others(monkeypatch):
    traced = []
    original = _batch.example_rows
    monkeypatch.setattr(_batch, "example_rows", lambda *args: traced.append(1) or original(*args))
    npeff.compute_pefs(mlp(), inputs(10), keep=5, batch_size=4, progress=False)
    assert len(traced) == 1


def test_norms_that_stand_out_are_listed(tmp_path, caplog):
    norms = np.exp(np.random.default_rng(0).normal(size=500)).astype(np.float32)
    norms[[7, 30]] = 1e4, 1e5
    norms[11] = np.nan
    found = NormSummary.of(norms)
    np.testing.assert_array_equal(found.outliers, [30, 7])
    np.testing.assert_array_equal(found.failed, [11])
    assert found.median == pytest.approx(np.nanmedian(norms))
    assert "2 outliers" in str(found)
    assert "examples 30, 7" in str(found)
    x = inputs(20)
    x[:, 0] = 1.0
    x[13] *= 300.0
    model = npeff.Model(lambda p, x: jnp.stack([p @ x / 100, p @ x / 50]), jnp.ones(4))
    with caplog.at_level(logging.WARNING, logger="npeff_jax"):
        pefs = npeff.compute_pefs(model, x, path=tmp_path / "pefs", batch_size=8, progress=False)
    assert 13 in pefs.norm_summary.outliers
    assert "examples 13" in caplog.text
    manifest = json.loads((tmp_path / "pefs" / "manifest.json").read_text())
    assert manifest["norms"] == pefs.norm_summary.to_json()


def test_all_norms_zero_or_failed():
    for norms in (np.zeros(3, np.float32), np.full(3, np.nan, np.float32)):
        found = NormSummary.of(norms)
        assert found.outliers.size == 0
        json.dumps(found.to_json())
        assert "median" in str(found)


def test_positions_beyond_two_to_the_31_do_not_wrap():
    """One row of 2^31 parameters that are all one number in memory, another whose last entries count."""
    m = 2**31 + 5
    nothing = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2, m - 3), (0, 0))
    last = np.array([[0, 3.0, 1.0], [5.0, 0, 4.0]], np.float32)

    class Sparse(LeafRows):
        """Without the sweep over what is zero."""

        def pieces(self):
            yield m - 3, list(last)

    tracemalloc.start()
    rows, indices, values = largest(Sparse([[nothing, last]], np.array([0, m - 3, m])), 3).entries
    assert tracemalloc.get_traced_memory()[1] < 1e8  # no row is copied
    tracemalloc.stop()
    np.testing.assert_array_equal(rows, [0, 1, 1])
    np.testing.assert_array_equal(indices, [m - 2, m - 3, m - 1])
    np.testing.assert_array_equal(values, [3, 5, 4])
