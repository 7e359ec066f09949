"""PEFs and pseudo-Fishers read and formed in blocks: the same result, never more than a block at a time."""

import dataclasses

import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.store import StoredArray
from npeff_jax.tasks import planted, planted_diagonal

pytestmark = pytest.mark.fast

SHORT = {"stopping": npeff.Stopping(max_steps=20), "progress": False}


class Counted:
    """Rows as they would be on disk, with what was read of them."""

    def __init__(self, array):
        self._array, self.reads = array, []
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self):
        return len(self._array)

    def __getitem__(self, rows):
        found = self._array[rows]
        self.reads.append(np.shape(found)[0])
        return found


def counted(pefs):
    return dataclasses.replace(pefs, **{name: Counted(getattr(pefs, name)) for name in ("values", "indices", "rows")})


@pytest.fixture
def small_blocks(monkeypatch):
    """Seven examples, a third of the columns, two components at a time, for a full planted problem."""
    values = planted(noise=0.5).pefs.values
    monkeypatch.setattr("npeff_jax.factorization._stack.BLOCK_BYTES", 7 * 32 * values.shape[1])
    monkeypatch.setattr("npeff_jax.factorization.row_spaces._blocks.GROUP_BYTES", 8 * np.count_nonzero(values) // 3)
    monkeypatch.setattr("npeff_jax.factorization._decomposition.BLOCK_BYTES", 4 * 40 * 2)


def test_a_kernel_of_rows_that_are_never_in_memory_together(small_blocks, tmp_path):
    problem = planted(noise=0.5)
    pefs = counted(problem.pefs)
    found = npeff.decompose(pefs, 4, rows=npeff.KernelRows(), path=tmp_path / "d", **SHORT)
    assert max(pefs.values.reads) == 7
    # the two passes of `stack`, one a group of columns, one a block of components
    passes = sum(pefs.values.reads) / len(pefs)
    assert 7 <= passes <= 8, passes
    whole = npeff.decompose(problem.pefs, 4, rows=npeff.DenseRows(), **SHORT)
    np.testing.assert_allclose(found.history.loss, whole.history.loss, rtol=1e-5)
    assert isinstance(found.pseudo_fishers, StoredArray)
    np.testing.assert_allclose(found.pseudo_fishers[:], whole.pseudo_fishers, atol=1e-3)
    np.testing.assert_allclose(found.coefficients, whole.coefficients, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found.pseudo_fishers[2]), 1, rtol=1e-5)


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_every_row_space_reads_blocks(small_blocks, monkeypatch, make):
    problem = make()
    spaces = (npeff.DenseRows(), npeff.SparseRows()) + (
        (npeff.KernelRows(), npeff.KernelRows(sketch=64)) if make is planted else ()
    )
    blocked = {rows: npeff.decompose(counted(problem.pefs), 4, rows=rows, min_count=5, **SHORT) for rows in spaces}
    fits = {rows: npeff.fit_coefficients(found, counted(problem.pefs)) for rows, found in blocked.items()}
    monkeypatch.undo()
    for rows, found in blocked.items():
        whole = npeff.decompose(problem.pefs, 4, rows=rows, min_count=5, **SHORT)
        # The first steps show the products alone; after them the steep descent magnifies how sums were rounded.
        np.testing.assert_allclose(found.history.loss[:10], whole.history.loss[:10], rtol=1e-5, err_msg=str(rows))
        np.testing.assert_allclose(found.history.loss, whole.history.loss, rtol=1e-4, err_msg=str(rows))
        assert found.settings["lost_energy"] == pytest.approx(whole.settings["lost_energy"])
        fit = npeff.fit_coefficients(found, problem.pefs)
        np.testing.assert_allclose(fits[rows].coefficients, fit.coefficients, atol=1e-4)


def test_an_expansion_beside_frozen_components(small_blocks, tmp_path):
    problem = planted(noise=0.5)
    found = npeff.decompose(problem.pefs, 3, **SHORT)
    pefs = counted(problem.pefs)
    wider = npeff.expand(found, pefs, 2, rows=npeff.KernelRows(), path=tmp_path / "wider", **SHORT)
    assert max(pefs.values.reads) == 7
    np.testing.assert_array_equal(wider.pseudo_fishers[:3], found.pseudo_fishers)
    same = npeff.expand(found, problem.pefs, 2, rows=npeff.DenseRows(), **SHORT)
    np.testing.assert_allclose(wider.history.loss, same.history.loss, rtol=1e-4)


def test_a_taken_path_is_refused_before_anything_is_read(tmp_path):
    pefs = counted(planted().pefs)
    with pytest.raises(FileExistsError, match="choose another path"):
        npeff.decompose(pefs, 4, path=tmp_path, progress=False)
    assert not pefs.values.reads


def test_vectors_that_do_not_fit(monkeypatch, tmp_path):
    monkeypatch.setattr("npeff_jax.factorization._arguments.usable_on_host", lambda: 500)
    with pytest.raises(ValueError, match=r"4 pseudo-Fishers over \d+ parameters are 592 B .* pass path="):
        npeff.decompose(planted().pefs, 4, progress=False)
    assert npeff.decompose(planted().pefs, 4, path=tmp_path / "d", progress=False).n_components == 4
