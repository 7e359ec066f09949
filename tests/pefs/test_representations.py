"""An own representation and an own selection are one class each: selected, stored and planned like the shipped ones."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.pefs import FisherKind, LeafRows, Pullback, Selected, largest, pull_back

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 3)).astype(np.float32)
W = RNG.normal(size=(3, 4)).astype(np.float32)
LABELS = np.arange(10) % 4
MODEL = npeff.Model(lambda p, x: jnp.tanh(x @ p["w"]) + p["b"], {"w": jnp.asarray(W), "b": jnp.zeros(4)})
RAW = {"normalization": npeff.Normalization.NONE, "progress": False}


@dataclasses.dataclass(frozen=True)
class Empirical(npeff.Representation):
    """The empirical Fisher: the gradient of the loss at the label, or at the model's own prediction."""

    at_label: bool = True

    @property
    def needs_labels(self):
        return self.at_label

    def n_rows(self, output, n_classes):
        return 1

    def cotangents(self, at):
        target = at.label if self.at_label else jnp.argmax(at.logits)
        return (jax.nn.softmax(at.logits) - jax.nn.one_hot(target, at.logits.size))[None]


@dataclasses.dataclass(frozen=True)
class SquaredError(npeff.Representation):
    """The Gauss-Newton matrix of a squared error on the probabilities: cotangents are the rows of their Jacobian."""

    scale: float = 1.0

    def n_rows(self, output, n_classes):
        return n_classes

    def cotangents(self, at):
        p = jax.nn.softmax(at.logits)
        return Pullback.of(self.scale * (jnp.diag(p) - jnp.outer(p, p)))


class EmpiricalDiagonal(Empirical):
    kind = FisherKind.DIAGONAL


@dataclasses.dataclass(frozen=True)
class Positive(npeff.Selection):
    """The largest of the positive entries: an own selection."""

    entries: int

    def width(self, n_rows, m):
        return min(self.entries, n_rows * m)

    def select(self, rows):
        found = largest(rows, self.entries)
        return Selected(found.support, found.columns, found.kept & (found.columns[: len(found.kept)] > 0))


def loop(cotangents):
    """Rows of every example by one gradient per cotangent, in float64 where NumPy can."""
    rows, jacobian_fn = [], jax.jit(jax.jacrev(MODEL.logits_fn))
    for i, x in enumerate(X):
        jacobian = jacobian_fn(MODEL.params, x)
        J = np.concatenate([np.asarray(jacobian[name], np.float64).reshape(4, -1) for name in ("b", "w")], axis=1)
        logits = np.asarray(MODEL.logits_fn(MODEL.params, x), np.float64)
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        rows.append(cotangents(p, i) @ J)
    return np.stack(rows)


ONE = np.eye(4)
CASES = {
    "label": (Empirical(), lambda p, i: (p - ONE[LABELS[i]])[None]),
    "prediction": (Empirical(at_label=False), lambda p, i: (p - ONE[p.argmax()])[None]),
    "squared error": (SquaredError(2.0), lambda p, i: 2 * (np.diag(p) - np.outer(p, p))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("devices", [1, 8])
def test_an_own_representation_gives_the_rows_that_it_says(name, devices):
    representation, cotangents = CASES[name]
    mesh = None if devices == 1 else npeff.make_mesh()
    assert jax.device_count() == 8
    pefs = npeff.compute_pefs(MODEL, X, representation, labels=LABELS, mesh=mesh, batch_size=4, **RAW)
    expected = loop(cotangents)
    np.testing.assert_allclose(pefs.to_scipy().toarray().reshape(expected.shape), expected, atol=2e-6)
    np.testing.assert_allclose(pefs.norms, [np.linalg.norm(A @ A.T) for A in expected], rtol=1e-4)
    np.testing.assert_array_equal(pefs.fisher_error, 0)


def test_an_own_representation_is_stored_resumed_planned_and_decomposed(tmp_path):
    options = {"labels": LABELS, "keep": 7, "path": tmp_path / "pefs", "progress": False}
    pefs = npeff.compute_pefs(MODEL, X, Empirical(), **options)
    assert pefs.schema.representation == {"name": "Empirical", "at_label": True}
    np.testing.assert_array_equal(npeff.load_pefs(tmp_path / "pefs").values[:], pefs.values[:])
    with pytest.raises(ValueError, match="another representation"):
        npeff.compute_pefs(MODEL, X, Empirical(at_label=False), **options)
    plan = npeff.plan(MODEL, X, Empirical(), labels=LABELS, n_sampled=4, keep=[7, 16])
    assert plan.n_rows == 1
    assert plan.fisher_error[1] == 0
    assert npeff.decompose(pefs, 2, progress=False).history.loss[-1] < 1
    with pytest.raises(ValueError, match=r"Empirical uses the examples' labels; pass labels="):
        npeff.compute_pefs(MODEL, X, Empirical(), progress=False)


def test_an_own_diagonal_is_the_sum_of_its_squared_rows():
    pefs = npeff.compute_pefs(MODEL, X, EmpiricalDiagonal(), labels=LABELS, **RAW)
    expected = loop(CASES["label"][1])[:, 0] ** 2
    np.testing.assert_allclose(pefs.to_scipy().toarray(), expected, atol=2e-6)
    assert npeff.decompose(pefs, 2, progress=False).kind is FisherKind.DIAGONAL


def test_an_own_selection():
    pefs = npeff.compute_pefs(MODEL, X, keep=Positive(9), **RAW)
    whole = npeff.compute_pefs(MODEL, X, keep=9, **RAW)
    assert (pefs.values >= 0).all()
    np.testing.assert_array_equal((pefs.values > 0).sum(1), (whole.values > 0).sum(1))
    assert pefs.schema.representation["keep"] == {"name": "Positive", "entries": 9}


def test_a_representation_that_breaks_its_word_is_refused():
    @dataclasses.dataclass(frozen=True)
    class TooMany(Empirical):
        def cotangents(self, at):
            return jnp.ones((3, at.logits.size))

    with pytest.raises(ValueError, match=r"TooMany.cotangents returned the shape \(3, 4\); expected \(c, 4\) with c"):
        npeff.compute_pefs(MODEL, X, TooMany(), labels=LABELS, **RAW)


def test_the_shared_pull_back_keeps_confident_fishers():
    """At a margin of 80 the unscaled rows' Gram matrix is zero in float32."""
    model = npeff.Model(lambda p, x: jnp.stack([p @ x, -p @ x]), jnp.asarray([1.0, 2.0]))
    x, p = np.array([38.0, 1.0], np.float32), 1 / (1 + np.exp(-80.0))
    found = pull_back(model, model.space.select(model.params), model.params, x)
    (row,) = np.asarray(found.leaves[0], np.float64) * float(found.scale)
    expected = np.exp(-80.0) * p**2 * 4 * np.outer(x, x).astype(np.float64)
    np.testing.assert_allclose(np.outer(row, row), expected, rtol=1e-4)
    assert np.all(np.asarray(found.leaves[0]) ** 2 > 1e-3)


def test_examples_without_information_are_said(caplog):
    x = X.copy()
    x[3] *= 1000
    linear = npeff.Model(lambda p, x: x @ p, jnp.asarray(W))
    with caplog.at_level(logging.WARNING, logger="npeff_jax"):
        pefs = npeff.compute_pefs(linear, x, progress=False)
    assert "1 without information (a Fisher of exactly zero): examples 3" in caplog.text
    np.testing.assert_array_equal(pefs.uninformative, [3])
    assert np.isnan(pefs.kept_energy[3])
    assert "1 without information" in repr(pefs)
    assert np.nanmin(pefs.kept_energy) == 1


def test_parameters_that_no_gradient_reaches(caplog):
    w = jnp.asarray(W)
    closure = npeff.Model(lambda p, x: x @ w, {"w": w})
    stopped = npeff.Model(lambda p, x: x @ jax.lax.stop_gradient(p["w"]), {"w": w})
    jitted = npeff.Model(jax.jit(lambda p, x: x @ w), {"w": w})
    for model in (closure, stopped, jitted):
        with pytest.raises(ValueError, match=r"no gradient reaches any of the explained parameters \(w\)"):
            npeff.compute_pefs(model, X, progress=False)
    part = npeff.Model(lambda p, x: x @ p["w"], {"w": w, "spare": jnp.ones(3)})
    with caplog.at_level(logging.WARNING, logger="npeff_jax"):
        npeff.compute_pefs(part, X, progress=False)
    assert "no gradient ever reaches 1 of 2 parameters: spare" in caplog.text


def test_nearly_lossless_errors_are_not_rounding():
    """Against a dense float64 oracle where the difference of Gram matrices in float32 is 3e-4 of rounding."""
    m = 400
    A = RNG.normal(size=(3, m)).astype(np.float32)
    A[:, 300:] *= 1e-4
    leaves = LeafRows([[A]], np.array([0, m]))
    from npeff_jax.pefs._sparsify import fidelity

    for keep in (900, 3 * m):
        chosen = largest(leaves, keep)
        gram = (A @ A.T).astype(np.float32).astype(np.float64)
        S = np.zeros(A.shape)
        rows, places, values = chosen.entries
        S[rows, places] = values
        F, G = A.T.astype(np.float64) @ A, S.T @ S
        expected = np.linalg.norm(F - G) / np.linalg.norm(F)
        np.testing.assert_allclose(fidelity(chosen, leaves, gram).error, expected, rtol=1e-3, atol=1e-12)
        assert expected < 1e-4


class TestFromArrays:
    """`Pefs.from_arrays` from dense rows, entries and diagonals."""

    @pytest.mark.parametrize("dtype", ["uint8", "int16"])
    def test_rows_of_narrow_integers_are_the_same_rows(self, dtype):
        pefs = npeff.compute_pefs(MODEL, X, keep=11, progress=False)
        wide, narrow = (
            npeff.Pefs.from_arrays(pefs.values, pefs.indices, np.asarray(pefs.rows).astype(kind), parameters=MODEL)
            for kind in ("int64", dtype)
        )
        for name in ("values", "indices", "rows", "n_rows"):
            np.testing.assert_array_equal(getattr(wide, name), getattr(narrow, name))

    def test_entries_are_those_of_compute_pefs(self):
        pefs = npeff.compute_pefs(MODEL, X, keep=11, progress=False)
        again = npeff.Pefs.from_arrays(pefs.values, pefs.indices, pefs.rows, parameters=MODEL, logits=pefs.logits)
        unit = again.to_scipy().toarray()
        stored = pefs.to_scipy().toarray().reshape(10, -1, MODEL.space.size)
        norms = np.array([np.linalg.norm(A @ A.T) for A in stored])
        np.testing.assert_allclose(unit, (stored / np.sqrt(norms)[:, None, None]).reshape(unit.shape), atol=1e-6)
        np.testing.assert_allclose(again.norms, norms, rtol=1e-5)
        assert again.schema.model == MODEL.fingerprint
        shuffled = RNG.permuted(np.arange(11))
        turned = [np.asarray(a)[:, shuffled] for a in (pefs.values, pefs.indices, pefs.rows)]
        np.testing.assert_array_equal(npeff.Pefs.from_arrays(*turned, parameters=MODEL).values, again.values)

    def test_dense_rows_and_diagonals(self):
        rows = RNG.normal(size=(5, 2, 6)) * (RNG.random((5, 2, 6)) < 0.7)
        pefs = npeff.Pefs.from_arrays(rows, normalization=npeff.Normalization.NONE, labels=np.arange(5))
        np.testing.assert_allclose(pefs.to_scipy().toarray(), rows.reshape(10, 6), rtol=1e-6)
        assert npeff.decompose(pefs, 2, progress=False).history.loss[-1] < 1
        squares = npeff.Pefs.from_arrays(rows[:, 0] ** 2, kind=FisherKind.DIAGONAL)
        np.testing.assert_allclose(np.linalg.norm(squares.to_scipy().toarray(), axis=1), 1, rtol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "options", "sentence"),
        [
            ((np.ones((2, 3)), np.zeros((2, 3), int)), {}, "parameters is missing"),
            ((np.ones((2, 3)), np.zeros((2, 2), int)), {"parameters": 4}, "expected \\(n, K\\) of all three"),
            (
                (np.ones((2, 1)), np.full((2, 1), 4)),
                {"parameters": 4},
                "indices has entries from 4 to 4",
            ),
            ((np.ones((2, 2)), np.zeros((2, 2), int)), {"parameters": 4}, "example 0 has parameter 0 twice in row 0"),
            ((np.full((2, 3), np.nan),), {}, "values of example 0 are not finite"),
            ((-np.ones((2, 3)),), {"kind": FisherKind.DIAGONAL}, "not negative"),
            ((np.ones((2, 3)),), {"labels": np.arange(3)}, "labels has shape"),
            ((np.ones((2, 3)),), {"logits": np.ones((3, 2))}, "logits has shape"),
            ((np.ones(3),), {}, "values has shape"),
            ((np.ones((2, 3)),), {"normalization": npeff.Normalization.AFTER}, "normalization=AFTER"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, arguments, options, sentence):
        with pytest.raises(ValueError, match=sentence):
            npeff.Pefs.from_arrays(*arguments, **options)
