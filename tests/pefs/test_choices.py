"""Variable rank, classes below a threshold, sampled rows, K by rank or on one support, sources, failures, products."""

import itertools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import class_rows, dense, fisher, inputs, mlp, stacked

import npeff_jax as npeff
from npeff_jax import Diagonal, LowRank, Normalization, PerRow, RowBasis, Sampled, SharedSupport
from npeff_jax._checks import check_choice
from npeff_jax.pefs import LeafRows, largest

pytestmark = pytest.mark.fast

RAW = {"normalization": Normalization.NONE, "progress": False}


@pytest.mark.parametrize("rows", [RowBasis.PRINCIPAL, RowBasis.CLASSES])
def test_improbable_classes_are_dropped_and_counted(rows):
    model, x = mlp(scale=2.0), inputs(8)
    pefs = npeff.compute_pefs(model, x, LowRank(rows=rows, min_probability=0.1), **RAW)
    for i, row in enumerate(stacked(pefs)):
        jacobian, log_p = dense(model, x[i])
        kept = np.exp(log_p) >= 0.1
        expected = class_rows(jacobian, log_p)[kept]
        np.testing.assert_allclose(row.T @ row, expected.T @ expected, atol=3e-6)
        np.testing.assert_allclose(pefs.lost_mass[i], np.exp(log_p)[~kept].sum(), atol=1e-6)
        assert pefs.n_rows[i] == min(kept.sum(), 4 if rows is RowBasis.PRINCIPAL else 5)


def test_lost_trace_is_right_on_average():
    """One random probe an example: unbiased, so right over many draws of the signs."""
    model, x = mlp(scale=2.0), np.repeat(inputs(1), 4000, axis=0)
    representation = LowRank(rows=RowBasis.CLASSES, max_rows=2)
    pefs = npeff.compute_pefs(model, x, representation, keep=5, **RAW)
    jacobian, log_p = dense(model, x[0])
    order = np.argsort(-log_p)
    energy = (class_rows(jacobian, log_p)[order] ** 2).sum(1)
    estimate = pefs.lost_trace / (1 - pefs.lost_trace) * energy[:2].sum()
    np.testing.assert_allclose(estimate.mean(), energy[2:].sum(), rtol=0.05)
    assert estimate.std() > 0  # each example has signs of its own


def test_as_few_principal_rows_as_hold_the_trace():
    model, x = mlp(), inputs(8)
    pefs = npeff.compute_pefs(model, x, LowRank(min_trace=0.9), **RAW)
    capped = npeff.compute_pefs(model, x, LowRank(max_rows=2), **RAW)
    for i, (row, two) in enumerate(zip(stacked(pefs), stacked(capped), strict=True)):
        values = np.linalg.eigvalsh(fisher(model, x[i]))[::-1]
        held = np.cumsum(values) / values.sum()
        assert pefs.n_rows[i] == 1 + np.sum(held < 0.9)
        np.testing.assert_allclose(pefs.kept_energy[i], held[len(row) - 1], rtol=1e-5)
        np.testing.assert_allclose((two**2).sum(), values[:2].sum(), rtol=1e-5)
        rest = np.linalg.norm(values[len(row) :]) / np.linalg.norm(values)
        np.testing.assert_allclose(pefs.fisher_error[i], rest, atol=1e-3)


def test_sampled_rows_average_to_the_fisher():
    model, x = mlp(), inputs(1)
    many = np.repeat(x, 3000, axis=0)
    pefs = npeff.compute_pefs(model, many, Sampled(n_samples=4), **RAW)
    A = pefs.to_scipy().toarray().astype(np.float64)
    F = fisher(model, x[0])
    np.testing.assert_allclose(A.T @ A / 3000, F, atol=0.05 * np.abs(F).max())
    again = npeff.compute_pefs(model, many[:50], Sampled(n_samples=4), batch_size=7, **RAW)
    np.testing.assert_allclose(again.to_scipy().toarray(), A[:200], atol=1e-6)


def test_keep_grows_with_the_rank():
    model, x = mlp(), inputs(8)
    pefs = npeff.compute_pefs(model, x, LowRank(min_trace=0.9), keep=PerRow(6), progress=False)
    np.testing.assert_array_equal((pefs.values != 0).sum(1), 6 * pefs.n_rows)
    assert len(set(pefs.n_rows.tolist())) > 1


def test_one_support_for_all_rows_of_an_example():
    model, x = mlp(), inputs(4)
    pefs = npeff.compute_pefs(model, x, keep=SharedSupport(7), **RAW)
    for row, example in zip(stacked(pefs), x, strict=True):
        F = fisher(model, example)
        support = np.sort(np.argsort(-np.diag(F))[:7])
        np.testing.assert_array_equal(np.flatnonzero(np.any(row != 0, axis=0)), support)
        np.testing.assert_allclose((row.T @ row)[np.ix_(support, support)], F[np.ix_(support, support)], atol=3e-6)


@pytest.mark.parametrize("case", ["normal", "ties", "mostly zero", "heavy tail"])
def test_selection_is_that_of_a_stable_sort(case):
    """Large enough for the sampled threshold; of equals, the lower position wins."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=400_000).astype(np.float32)
    if case == "ties":
        flat = np.round(flat)
    elif case == "mostly zero":
        flat[rng.random(flat.size) < 0.999] = 0
    elif case == "heavy tail":
        flat = flat**9
    sizes, keep = [70_000, 1, 129_999], 5_000
    leaves = np.split(flat.reshape(2, -1), np.cumsum(sizes)[:-1], axis=1)
    rows, indices, values = largest(LeafRows([leaves], np.array([0, 70_000, 70_001, 200_000])), keep).entries
    order = np.argsort(-np.abs(flat), kind="stable")[:keep]
    expected = np.sort(order[flat[order] != 0])
    np.testing.assert_array_equal(rows * 200_000 + indices, expected)
    np.testing.assert_array_equal(values, flat[expected])


@pytest.mark.parametrize("scale", [1.0, 1e-21, 1e21])
@pytest.mark.parametrize("wanted", [1, 3])
def test_selection_of_rotated_rows_is_that_of_rotating_them_first(scale, wanted):
    """The rows in blocks, where squares are in range, underflow and overflow; some are looked at but not selected."""
    rng = np.random.default_rng(1)
    rows = (scale * rng.normal(size=(3, 300_000)) ** 3 * np.array([[1], [0.3], [3]])).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    offsets, keep = np.array([0, 5, 131_080, 300_000]), 4_000
    blocks = [[part[:, a:b] for a, b in itertools.pairwise(offsets)] for part in (rows[:2], rows[2:])]
    selected = largest(LeafRows(blocks, offsets, rotation, wanted), keep)
    turned = rotation @ rows
    order = np.sort(np.argsort(-np.abs(turned[:wanted]).reshape(-1), kind="stable")[:keep])
    found, indices, values = selected.entries
    np.testing.assert_array_equal(found * 300_000 + indices, order)
    np.testing.assert_allclose(values, turned.reshape(-1)[order], rtol=1e-4)
    np.testing.assert_allclose(selected.columns, turned[:, selected.support], rtol=1e-3, atol=1e-5 * scale)


class Source:
    """A sized source that can be sliced."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        return self.x[rows]


def test_a_source_gives_what_its_arrays_give():
    model, x = mlp(), inputs(9)
    source = npeff.compute_pefs(model, Source(x), keep=20, batch_size=4, progress=False)
    arrays = npeff.compute_pefs(model, x, keep=20, batch_size=4, progress=False)
    np.testing.assert_array_equal(source.values, arrays.values)
    assert source.schema == arrays.schema


def test_the_order_of_examples_is_the_order_of_pefs():
    model, x = mlp(), inputs(9)
    order = np.random.default_rng(2).permutation(9)
    one, other = (npeff.compute_pefs(model, y, keep=20, progress=False) for y in (x, x[order]))
    np.testing.assert_allclose(other.values, one.values[order], atol=1e-6)


def test_a_failing_example_is_skipped_and_listed(tmp_path, caplog):
    model = npeff.Model(lambda p, x: jnp.sqrt(x) * p, jnp.ones(4))
    x = np.abs(inputs(5))
    x[3, 1] = -1
    with pytest.raises(ValueError, match="example 3 has logits that are not finite"):
        npeff.compute_pefs(model, x, progress=False)
    with caplog.at_level(logging.WARNING, logger="npeff_jax"):
        pefs = npeff.compute_pefs(model, x, on_failure="skip", path=tmp_path / "pefs", progress=False)
    assert "example 3" in caplog.text
    np.testing.assert_array_equal(pefs.failed, [3])
    assert pefs.n_rows[3] == 0
    whole = npeff.compute_pefs(model, np.delete(x, 3, axis=0), progress=False)
    np.testing.assert_allclose(pefs.to_scipy().toarray(), whole.to_scipy().toarray(), atol=1e-6)


@pytest.mark.parametrize("representation", [LowRank(), Diagonal()])
def test_stored_products(representation):
    model, x = mlp(), inputs(4)
    vector = np.random.default_rng(3).normal(size=model.space.size)
    found = npeff.compute_pefs(model, x, representation, **RAW).fisher_vector_product(vector)
    for product, example in zip(found, x, strict=True):
        F = fisher(model, example)
        F = F if isinstance(representation, LowRank) else np.diag(np.diag(F))
        np.testing.assert_allclose(product, F @ vector, atol=1e-5)


def test_live_products():
    model, x = mlp(), inputs(4)
    vector = np.random.default_rng(3).normal(size=model.space.size).astype(np.float32)
    direction = model.space.unravel(jnp.asarray(vector))
    for example in x:
        product = npeff.fisher_vector_product(model.logits_fn, model.params, example, direction)
        np.testing.assert_allclose(model.space.ravel(product), fisher(model, example) @ vector, atol=1e-5)


def test_pure_rows_can_be_jitted_and_mapped():
    model, x = mlp(), inputs(4)
    found = jax.jit(jax.vmap(lambda x: npeff.pef_rows(model.logits_fn, model.params, x)))(x)
    rows = np.concatenate([np.asarray(leaf).reshape(4, 4, -1) for leaf in found.leaves], axis=2)
    for row, scale, example in zip(rows, found.scale, x, strict=True):
        np.testing.assert_allclose(row.T @ row * float(scale) ** 2, fisher(model, example), atol=3e-6)


def test_progress_as_json_lines(tmp_path):
    with (tmp_path / "lines").open("w") as file:
        npeff.compute_pefs(mlp(), inputs(6), batch_size=4, progress=file)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["done"] for line in lines] == [4, 6]
    assert lines[-1]["seconds_left"] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": 0}, "keep=0 is out of range"),
        ({"keep": PerRow(55)}, r"a row has 54 entries; pass 1 to 54"),
        ({"labels": np.arange(3)}, r"labels has shape \(3,\), but there are 4 examples"),
    ],
)
def test_bad_input(options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        npeff.compute_pefs(mlp(), inputs(4), progress=False, **options)


def test_choices_are_checked_where_types_are_not():
    with pytest.raises(ValueError, match="on_existing='append'; expected one of 'resume', 'error', 'overwrite'"):
        check_choice("on_existing", "append", ("resume", "error", "overwrite"))


def test_bad_models_and_examples():
    batched = npeff.Model(lambda p, x: (x @ p)[None], jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"logits_fn returned \(1, 3\) for one example; expected one axis"):
        npeff.compute_pefs(batched, inputs(4), progress=False)
    with pytest.raises(ValueError, match="different leading axes"):
        npeff.compute_pefs(mlp(), {"a": np.ones((4, 2)), "b": np.ones((5, 2))}, progress=False)
    for wrong in ({"min_probability": 1.5}, {"max_rows": 0}, {"min_trace": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LowRank(**wrong)
