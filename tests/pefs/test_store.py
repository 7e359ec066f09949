"""PEFs on disk: readable elsewhere, safe against kills, a second writer, a full disk, a flipped byte."""

import importlib
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import inputs, mlp

import npeff_jax as npeff
from npeff_jax.store import StoredArray, WriterLock

X = inputs(10)
LABELS = np.arange(10) % 5


def compute(path, model=None, x=X, **options):
    options = {"keep": 30, "labels": LABELS, "batch_size": 4, "progress": False} | options
    return npeff.compute_pefs(model or mlp(), x, path=path, **options)


def test_what_is_no_pefs_is_not_overwritten(tmp_path):
    pefs = compute(tmp_path / "p")
    npeff.decompose(pefs, 2, path=tmp_path / "d", progress=False)
    for how in ("resume", "overwrite"):
        with pytest.raises(FileExistsError, match="holds no PEFs, but something else"):
            compute(tmp_path / "d", on_existing=how)
    assert npeff.load_decomposition(tmp_path / "d").n_components == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is a file; choose a path below a folder"):
        compute(tmp_path / "file" / "p")


def test_killed_and_resumed_is_byte_for_byte_the_uninterrupted_run(tmp_path, monkeypatch):
    """In short what benchmarks/kill_store.py does in full."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "benchmarks")
    script = importlib.import_module("kill_store")
    whole = script.finish(tmp_path / "whole")
    count = script.boundaries(tmp_path / "whole")
    # In the making of the store, within a batch's writes, at the rename of its manifest, and at the last boundary.
    assert script.kill_at_boundaries(tmp_path, whole, [2, count // 2, count]) == 3
    path = tmp_path / "random"
    process = script.start(path, pause=0.01)
    while script.committed(path) < script.BATCH:
        assert process.is_alive()
    process.kill()
    process.join()
    assert script.BATCH <= script.committed(path) < script.N
    assert script.finish(path) == whole


def test_plain_zarr_reads_it(tmp_path):
    zarr = pytest.importorskip("zarr")
    pefs = compute(tmp_path / "pefs")
    for name in ("values", "indices", "rows", "norms", "logits"):
        array = zarr.open_array(str(tmp_path / "pefs" / name), mode="r")
        np.testing.assert_array_equal(array[:], getattr(pefs, name)[:])


def test_loaded_equals_computed_in_memory(tmp_path):
    stored, memory = compute(tmp_path / "pefs"), compute(None)
    for name in ("values", "indices", "rows", "n_rows", "norms", "logits", "kept_energy", "fisher_error", "labels"):
        np.testing.assert_array_equal(getattr(stored, name)[:], getattr(memory, name))
    np.testing.assert_array_equal(stored.subset(np.array([7, 2])).values, memory.values[[7, 2]])
    assert not isinstance(stored.values, np.ndarray)  # read as it is used


@pytest.mark.parametrize(("dtype", "precise"), [("bfloat16", 2**-8), ("float16", 2**-11)])
@pytest.mark.parametrize("on_disk", [True, False])
def test_half_precision(tmp_path, dtype, precise, on_disk):
    half = compute(tmp_path / "half" if on_disk else None, dtype=dtype, normalization=npeff.Normalization.NONE)
    full = compute(None, normalization=npeff.Normalization.NONE)
    assert half.values.dtype == np.float32
    np.testing.assert_allclose(half.values[:], full.values, rtol=precise, atol=1e-6 * np.abs(full.values).max())
    np.testing.assert_array_equal(half.values[3], half.values[:][3])
    assert half.schema.dtype == dtype


def test_float16_keeps_tiny_fishers():
    """Raw rows of a confident prediction are far below float16's range: the scale carries them."""
    model = npeff.Model(lambda p, x: jnp.stack([x @ p, -x @ p]), jnp.array([1.0, 2.0]))
    x = np.array([[20.0, 0.5]], np.float32)
    options = {"normalization": npeff.Normalization.NONE, "progress": False}
    half = npeff.compute_pefs(model, x, dtype="float16", **options)
    np.testing.assert_allclose(half.values[:], npeff.compute_pefs(model, x, **options).values, rtol=1e-3)
    assert np.abs(half.values[:]).max() < 1e-6


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(tmp_path):
    compute(tmp_path / "pefs", x=X)
    lock = WriterLock(tmp_path / "pefs")
    with pytest.raises(FileExistsError, match="is being written by another run"):
        compute(tmp_path / "pefs")
    lock.release()
    (tmp_path / "pefs" / ".lock").touch()  # what a killed writer leaves
    compute(tmp_path / "pefs")
    assert not (tmp_path / "pefs" / ".lock").exists()


def test_a_full_disk_leaves_what_is_committed(tmp_path, monkeypatch):
    write, calls = StoredArray.write, []

    def full(self, start, stop, rows):
        calls.append(start)
        if start == 8:
            raise OSError(28, "No space left on device")
        return write(self, start, stop, rows)

    monkeypatch.setattr(StoredArray, "write", full)
    with pytest.raises(OSError, match=r"examples 8 to 10 could not be written.*No space left.*the 8 before them"):
        compute(tmp_path / "pefs")
    monkeypatch.undo()
    resumed = compute(tmp_path / "pefs")
    np.testing.assert_array_equal(resumed.values[:], compute(None).values)


@pytest.mark.parametrize("name", ["values", "indices", "norms"])
def test_a_flipped_byte_is_found(tmp_path, name):
    compute(tmp_path / "pefs")
    chunk = max((f for f in (tmp_path / "pefs" / name / "c").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.* is damaged on disk"):
        npeff.load_pefs(tmp_path / "pefs").to_scipy()


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_version_of_the_schema_is_read(tmp_path, version):
    """Version 1 did not say what the logits mean, version 2 knew no range finder."""
    pefs = compute(tmp_path / "pefs")
    file = tmp_path / "pefs" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["schema"]["version"] = version
    del manifest["schema"]["representation"]["sketch"]
    if version == 1:
        del manifest["schema"]["output"]
    file.write_text(json.dumps(manifest))
    older = npeff.load_pefs(tmp_path / "pefs")
    assert older.schema == pefs.schema
    np.testing.assert_array_equal(compute(tmp_path / "pefs").norms, pefs.norms)  # and is resumed


def test_what_differs_is_named(tmp_path):
    compute(tmp_path / "pefs")
    with pytest.raises(ValueError, match="another labels"):
        compute(tmp_path / "pefs", labels=LABELS[::-1])
    with pytest.raises(ValueError, match="another dtype"):
        compute(tmp_path / "pefs", dtype="float16")
    with pytest.raises(ValueError, match="another normalization"):
        compute(tmp_path / "pefs", normalization=npeff.Normalization.AFTER)
    with pytest.raises(ValueError, match="another representation"):
        compute(tmp_path / "pefs", representation=npeff.LowRank(min_trace=0.9))
    cold = mlp()
    cold = npeff.Model(cold.logits_fn, cold.params, output=npeff.Categorical(temperature=0.5))
    with pytest.raises(ValueError, match="another output"):
        compute(tmp_path / "pefs", cold)
    with pytest.raises(ValueError, match="another layout"):
        compute(tmp_path / "pefs", npeff.Model(cold.logits_fn, cold.params, mask="first"), keep=20)
