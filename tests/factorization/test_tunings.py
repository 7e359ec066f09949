"""Named components: the objective against dense float64, planted truth, every row space, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from problems import oracle_loss

import npeff_jax as npeff
from npeff_jax.factorization import KernelRows, SparseRows, Tuning, read_tunings
from npeff_jax.factorization._tunings import Ties, tie_penalty, tied_column, tied_sweep
from npeff_jax.tasks import planted, planted_diagonal

QUIET = {"progress": False}
SHORT = npeff.Stopping(max_steps=40, tolerance=-1.0)


def vectors_of(found):
    return np.stack([found.pseudo_fisher(j) for j in range(found.n_components)])


def oracle_penalty(W, tuning):
    """Minimize Σ λ (W − s m)² over s ≥ 0, over the examples that are tied but not fixed, by a search in float64."""
    m = np.nan_to_num(tuning.marks) / np.nanmax(tuning.marks)
    a = np.where(np.isnan(tuning.marks), 0, np.where(tuning.marks > 0, tuning.follow, tuning.avoid))
    tied = (a > 0) & (a < 1)
    lam = a[tied] / (1 - a[tied])
    f = lambda s: np.sum(lam * (W[tied] - s * m[tied]) ** 2)  # noqa: E731
    return min(f(0.0), scipy.optimize.minimize_scalar(f, bounds=(0, 10), method="bounded", options={"xatol": 1e-9}).fun)


@pytest.mark.parametrize("seed", range(4))
def test_one_column_against_a_search_over_its_scale(seed):
    """The exact joint minimum over the column and its scale, with examples held at zero, fixed, free and half-tied."""
    rng = np.random.default_rng(seed)
    n = 40
    u, m = rng.normal(0.1, 0.5, n), rng.gamma(1.0, size=n) * (rng.random(n) < 0.6)
    a = rng.choice([0.0, 0.3, 0.9, 1.0] if seed % 2 else [0.0, 0.3, 0.9], n)
    lam = np.where(a < 1, a / np.maximum(1 - a, 1e-9), 0)

    def best(s):
        w = np.maximum(np.where(a < 1, (u + lam * s * m) / (1 + lam), s * m), 0)
        return w, np.sum((w - u) ** 2 + np.where(a < 1, lam * (w - s * m) ** 2, 0))

    options = {"xatol": 1e-10}
    found = scipy.optimize.minimize_scalar(lambda s: best(s)[1], bounds=(0, 5), method="bounded", options=options)
    w = np.asarray(tied_column(*(jnp.asarray(x, jnp.float32) for x in (u, m, a))))
    np.testing.assert_allclose(w, best(found.x)[0], atol=2e-4)


def test_a_sweep_lowers_the_tied_objective():
    rng = np.random.default_rng(0)
    n, r, t, f = 30, 5, 2, 1
    G = rng.normal(size=(r, 8))
    P, b, W = (G @ G.T) ** 2, rng.random((n, r)) * 9, rng.random((n, r))
    marks = np.where(rng.random((n, t)) < 0.3, np.nan, rng.random((n, t)) < 0.5)
    tunings = [Tuning(str(k), marks[:, k], 0.4, 0.7) for k in range(t)]
    tie = np.where(np.isnan(marks), 0, np.where(marks > 0, 0.4, 0.7))
    ties = Ties(jnp.asarray(np.nan_to_num(marks), jnp.float32), jnp.asarray(tie, jnp.float32))

    def objective(W):
        penalty = sum(P[f + k, f + k] * oracle_penalty(W[:, f + k], tunings[k]) for k in range(t))
        return np.einsum("ij,jk,ik->", W, P, W) - 2 * np.sum(W * b) + penalty

    before = objective(W)
    for _ in range(3):
        W = np.asarray(tied_sweep(*(jnp.asarray(x, jnp.float32) for x in (W, b, P)), ties, f), np.float64)
        after = objective(W)
        assert after < before + 1e-3
        before = after
    own = np.asarray(tie_penalty(jnp.asarray(W[:, f : f + t], jnp.float32), ties))
    np.testing.assert_allclose(own, [oracle_penalty(W[:, f + k], tunings[k]) for k in range(t)], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_the_history_is_the_objective_and_never_rises(make):
    made = make(seed=1)
    rng = np.random.default_rng(0)
    marks = np.where(rng.random(60) < 0.3, np.nan, made.coefficients[:, 1] > 0.05)
    tunings = [Tuning("first", made.coefficients[:, 0], 0.5, 0.5), Tuning("second", marks, 0.3, 0.8)]
    kind = npeff.DampedALS if make is planted else npeff.HALS
    found = npeff.decompose(made.pefs, 4, tunings=tunings, solver=kind(exchanges=0), stopping=SHORT, **QUIET)
    G, W = vectors_of(found), found.coefficients.astype(np.float64)
    loss = oracle_loss(made.fishers, W, G)
    penalty = sum(oracle_penalty(W[:, k], tunings[k]) for k in range(2)) / np.sum(made.fishers**2)
    assert found.loss == pytest.approx(loss, rel=1e-3)
    assert found.history.loss[-1] == pytest.approx(loss + penalty, rel=1e-3)
    assert penalty > 1e-4
    assert (np.diff(found.history.loss[12:]) < 1e-6).all()
    assert found.settings["history"] == "with the term of the tunings"


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_marks_hold_to_the_bit_where_they_are_fixed(make):
    made = make(seed=2)
    marks = np.full(60, np.nan)
    marks[:20], marks[20:30] = 0, np.linspace(0.5, 2, 10)
    found = npeff.decompose(made.pefs, 4, tunings=[Tuning("a", marks, follow=1.0)], stopping=SHORT, **QUIET)
    W = found.coefficients[:, 0]
    assert not W[:20].any()
    assert W[20:30].all()
    assert W[30:].any()
    np.testing.assert_allclose(W[20:30] / W[20], marks[20:30] / marks[20], rtol=1e-4)


SPACES = {
    "dense, 8 devices": {"rows": npeff.DenseRows(), "mesh": 8},
    "sparse": {"rows": SparseRows()},
    "sparse, 8 devices": {"rows": SparseRows(), "mesh": 8},
    "kernel": {"rows": KernelRows()},
    "kernel, 8 devices": {"rows": KernelRows(), "mesh": 8},
}


@pytest.fixture(scope="module")
def dense():
    found = {}
    for make in (planted, planted_diagonal):
        made = make(seed=3)
        tunings = [Tuning("a", made.coefficients[:, 2] > 0.05), Tuning("b", made.coefficients[:, 0] > 0.05, 0.0)]
        options = {"tunings": tunings, "stopping": npeff.Stopping(max_steps=30, tolerance=-1.0), **QUIET}
        found[make] = made, options, npeff.decompose(made.pefs, 4, rows=npeff.DenseRows(), **options)
    return found


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_every_row_space_and_number_of_devices(dense, make, space):
    made, options, expected = dense[make]
    where = dict(SPACES[space])
    if make is planted_diagonal and isinstance(where["rows"], KernelRows):
        return
    if "mesh" in where:
        where["mesh"] = npeff.make_mesh(jax.devices()[: where["mesh"]])
    found = npeff.decompose(made.pefs, 4, **where, **options)
    np.testing.assert_allclose(found.history.loss, expected.history.loss, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(found.coefficients[:, :2], expected.coefficients[:, :2], atol=2e-3)
    assert found.names == {0: "a", 1: "b"}


@pytest.mark.parametrize("make", [planted, planted_diagonal])
def test_the_planted_component_where_a_free_run_mixes(make):
    """Two components too few: a free run merges the one asked for with others (median over its seeds)."""
    made = planted(seed=11, n=120, m=60, r=8, shared=1.0) if make is planted else planted_diagonal(11, 120, 60, 8)
    target = int(np.argmin(np.sum(made.coefficients**2, axis=0)))  # what a fit of too few components gives up first
    mask = made.coefficients[:, target] > 0.02
    free = npeff.decompose(made.pefs, 6, stopping=npeff.Stopping(max_steps=150), **QUIET)
    named = npeff.decompose(made.pefs, 6, tunings=[Tuning("it", mask)], stopping=npeff.Stopping(max_steps=150), **QUIET)
    truth = made.vectors[target]
    assert np.abs(vectors_of(free) @ truth).max() < 0.95
    assert np.abs(named.pseudo_fisher(0) @ truth) >= 0.99
    assert named.component_named("it") == 0
    assert "it (0)" in named._repr_html_()


def test_exchanges_keep_named_components():
    """Few marks and many components: named ones are missed least, and stay."""
    made = planted(seed=4)
    marks = np.zeros(60)
    marks[[3, 5]] = 1
    found = npeff.decompose(
        made.pefs, 5, tunings=[Tuning("rare", marks)], stopping=npeff.Stopping(max_steps=200), **QUIET
    )
    W = found.coefficients[:, 0]
    assert not np.delete(W, [3, 5]).any()
    assert W[[3, 5]].any()
    contribution = np.sum(found.coefficients[:, 1:] ** 2, axis=0)
    assert (np.diff(contribution) <= 1e-5).all()
    assert np.sum(W**2) < contribution[0]


def test_only_named_components():
    made = planted(seed=5, r=4)
    marks = [Tuning(str(k), made.coefficients[:, k] > 0) for k in range(4)]
    found = npeff.decompose(made.pefs, 4, tunings=marks, stopping=SHORT, **QUIET)
    assert (np.abs(np.sum(vectors_of(found) * made.vectors, axis=1)) > 0.999).all()


def test_expansion_by_name_and_what_is_stored(tmp_path):
    made = planted(seed=6)
    tuning = Tuning("first", made.coefficients[:, 0] > 0)
    base = npeff.decompose(made.pefs, 2, tunings=[tuning], stopping=SHORT, **QUIET)
    more = npeff.expand(
        base, made.pefs, 2, tunings=[Tuning("third", made.coefficients[:, 2] > 0)], stopping=SHORT, **QUIET
    )
    assert more.names == {0: "first", 2: "third"}
    np.testing.assert_array_equal(more.pseudo_fishers[:2], base.pseudo_fishers[:2])
    assert not more.coefficients[made.coefficients[:, 2] == 0, 2].any()
    more.save(tmp_path / "d")
    again = npeff.load_decomposition(tmp_path / "d")
    assert again.names == more.names
    assert again.settings["tunings"][0]["marked"] == (made.coefficients[:, 2] > 0).sum()
    plain = npeff.expand(base, made.pefs, 1, stopping=SHORT, **QUIET)
    assert plain.names == {0: "first"}
    with pytest.raises(ValueError, match="two components are named 'first'"):
        npeff.expand(base, made.pefs, 2, tunings=[tuning], **QUIET)
    with pytest.raises(ValueError, match="there are 2 tunings and n_new=1"):
        npeff.expand(base, made.pefs, 1, tunings=[Tuning("a", marks_of(60)), Tuning("b", marks_of(60))], **QUIET)


def test_a_sketch_is_refitted_under_the_ties():
    made = planted(seed=7)
    mask = made.coefficients[:, 1] > 0
    found = npeff.decompose(
        made.pefs, 4, tunings=[Tuning("one", mask)], rows=KernelRows(sketch=256), stopping=SHORT, **QUIET
    )
    assert not found.coefficients[~mask, 0].any()
    assert found.loss == pytest.approx(oracle_loss(made.fishers, found.coefficients, vectors_of(found)), rel=1e-3)
    assert found.names == {0: "one"}


def test_a_resumed_run_must_have_the_same_marks(tmp_path):
    made = planted(seed=8)
    checkpoints = npeff.Checkpoints(tmp_path / "c")
    mask = made.coefficients[:, 1] > 0
    npeff.decompose(made.pefs, 3, tunings=[Tuning("x", mask)], stopping=SHORT, checkpoints=checkpoints, **QUIET)
    with pytest.raises(ValueError, match="tunings"):
        npeff.decompose(made.pefs, 3, tunings=[Tuning("x", ~mask)], stopping=SHORT, checkpoints=checkpoints, **QUIET)


def marks_of(n):
    return np.arange(n) < 5


def test_picked_examples_and_masks_in_any_form():
    picked = Tuning.of_examples("p", 6, yes=[1, 2], no=np.array([4]), follow=0.2)
    np.testing.assert_array_equal(picked.marks, [np.nan, 1, 1, np.nan, 0, np.nan])
    assert picked.follow == 0.2
    for marks in (
        [True, None, False],
        np.array([1, np.nan, 0]),
        np.ma.masked_array([1, 7, 0], [False, True, False]),
        np.array([True, None, False], object),
    ):
        np.testing.assert_array_equal(Tuning("m", marks).marks, [1, np.nan, 0])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Tuning("", [1]), "expected a name"),
        (lambda: Tuning("a", [0, 0]), "positive for no example"),
        (lambda: Tuning("a", [1, -1]), r"have -1.0 at example 1"),
        (lambda: Tuning("a", [[1, 0]]), r"shape \(1, 2\)"),
        (lambda: Tuning("a", ["x", "y"]), "expected Booleans or numbers"),
        (lambda: Tuning("a", [1, 0], follow=1.5), "follow=1.5 is out of range"),
        (lambda: Tuning.of_examples("a", 3, [5]), "not from 0 to 2"),
        (lambda: Tuning.of_examples("a", 3, [1], [1]), "marked both ways"),
    ],
)
def test_marks_that_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_tunings_that_are_refused():
    made = planted()
    with pytest.raises(ValueError, match="are 5, but 60 examples are decomposed"):
        npeff.decompose(made.pefs, 3, tunings=[Tuning("a", marks_of(5) > -1)], **QUIET)
    with pytest.raises(TypeError, match="tunings"):
        npeff.decompose(made.pefs, 3, tunings={"a": marks_of(60)}, **QUIET)
    with pytest.raises(ValueError, match=r"solver=GradientDescent does not support the tunings"):
        npeff.decompose(made.pefs, 3, tunings=[Tuning("a", marks_of(60))], solver=npeff.GradientDescent(), **QUIET)
    both = [Tuning("a", marks_of(60)), Tuning("b", marks_of(60))]
    with pytest.raises(ValueError, match="2 tunings and n_components=1"):
        npeff.decompose(made.pefs, 1, tunings=both, **QUIET)
    problem = npeff.Problem.of(made.pefs).with_tunings(both)
    assert problem.parts == ("tunings",)
    assert dataclasses.replace(problem, ties=None).parts == ()
    with pytest.raises(ValueError, match="has tunings of its own"):
        npeff.decompose(problem, 3, tunings=both, **QUIET)


def test_a_table_of_marks(tmp_path):
    file = tmp_path / "marks.csv"
    file.write_text("licence, weight\nyes,0.5\n0,?\n,2\n")
    first, second = read_tunings(file, follow=0.25)
    np.testing.assert_array_equal(first.marks, [1, 0, np.nan])
    np.testing.assert_array_equal(second.marks, [0.5, np.nan, 2])
    assert (second.name, second.follow, second.avoid) == ("weight", 0.25, 1.0)
    for text, match in (
        ("a\nmaybe\n", "line 2 has the mark 'maybe'"),
        ("a,a\n1,1\n", "a name of its own"),
        ("a,b\n1\n", "line 2 has 1 cells; expected 2"),
        ("a\n", "has 1 lines"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=match):
            read_tunings(file)
