"""Edits of one's own, moves of a stated KL, and components that cannot be moved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import NotLocalWarning
from npeff_jax.perturbation import DiagonalEdit, DirectionEdit, Edit, KLBudget, NoEditError, Subject
from npeff_jax.perturbation._edit import _first_quadratic, find_scale
from tests.planted_model import (
    BLOCKS,
    block_vectors,
    make_decomposition,
    make_examples,
    make_model,
    make_pefs,
    oracle_fisher,
    oracle_kl,
)

pytestmark = pytest.mark.fast


@dataclasses.dataclass(frozen=True)
class ProjectOut(Edit):
    """Take the leading singular directions of a component's vector out of every weight matrix, or add them again."""

    rank: int = 1

    def move(self, subject, component, sign):
        direction = npeff.component_direction(subject.model, subject.decomposition, component)

        def projected(weight, along):
            left = np.linalg.svd(np.asarray(along))[0][:, : self.rank]
            return -sign * left @ (left.T @ np.asarray(weight)) * np.any(along)

        return jax.tree.map(projected, subject.model.params, direction)


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuned(Edit):
    """The difference to parameters that were trained on something, a part of the way."""

    tuned: tuple
    share: float = 0.1

    def move(self, subject, component, sign):
        if self.tuned[component] is None:
            raise NoEditError(f"component {component} was not trained on")
        return jax.tree.map(lambda t, p: sign * self.share * (t - p), self.tuned[component], subject.model.params)


@pytest.fixture(scope="module")
def planted():
    model = make_model()
    examples, block = make_examples(90, leak=0.05)
    rng = np.random.default_rng(1)
    coefficients = np.eye(BLOCKS)[block] * rng.uniform(0.5, 1.0, (90, 1)) + 0.01
    decomposition = make_decomposition(model, block_vectors(), coefficients)
    return model, decomposition, make_pefs(model, examples), examples, block


def table_of(planted, edits, **options):
    model, decomposition, pefs, examples, _ = planted
    options = {"n_top": 10, "progress": False, "nulls": npeff.Nulls(n_random_directions=1)} | options
    return npeff.selectivity(model, decomposition, pefs, examples, fit=decomposition, edits=edits, **options)


def test_an_edit_of_ones_own_is_measured_as_it_is(planted):
    """Weights lose their part along the component's vector: the KL by hand, its norm, and its examples."""
    model, decomposition, _, examples, block = planted
    table = table_of(planted, ProjectOut(rank=1))
    for component in range(BLOCKS):
        name, vector = f"block{component}", decomposition.pseudo_fishers[component].reshape(BLOCKS, 4, 3)[component]
        left = np.linalg.svd(vector.astype(np.float64))[0][:, :1]
        weight = np.asarray(model.params[name], np.float64)
        for position, sign in enumerate((1, -1)):
            delta = {f"block{b}": np.zeros((4, 3)) for b in range(BLOCKS)}
            delta[name] = -sign * left @ left.T @ weight
            kl = oracle_kl(model.params, delta, examples)
            np.testing.assert_allclose(table.kl[component, position], kl, rtol=2e-3, atol=1e-8)
            np.testing.assert_allclose(table.norms[component, position], np.linalg.norm(delta[name]), rtol=1e-5)
        assert kl[block == component].mean() > 20 * kl[block != component].mean()
    moved = ProjectOut(rank=4).apply(Subject(model, decomposition), 1)
    np.testing.assert_allclose(moved.params["block1"], 0, atol=1e-5)  # all of it is gone
    np.testing.assert_array_equal(moved.params["block0"], model.params["block0"])


def test_a_component_without_a_move_stops_no_other(planted):
    model, _, _, examples, _ = planted
    tuned = [make_model(seed=s).params for s in (1, 2)]
    table = table_of(planted, FineTuned((tuned[0], None, tuned[1])))
    for component, other in ((0, tuned[0]), (2, tuned[1])):
        delta = {name: 0.1 * (np.asarray(other[name]) - np.asarray(model.params[name])) for name in other}
        np.testing.assert_allclose(
            table.kl[component, 0], oracle_kl(model.params, delta, examples), rtol=2e-3, atol=1e-8
        )
    assert np.isnan(table.kl_ratios[1]).all()
    assert np.isfinite(table.kl_ratio[[0, 2]]).all()
    assert table.failures[:, 0].tolist() == ["", "component 1 was not trained on", ""]
    assert "1 components not moved" in repr(table)
    with pytest.raises(ValueError, match="no component can be moved; component 0 was not trained on"):
        table_of(planted, FineTuned((None, None, None)))


def test_what_is_left_of_nothing_stops_no_other():
    """A component in the span of two others that it is rejected from has no direction; they have."""
    model, (examples, _) = make_model(), make_examples(30, leak=0.3)
    *pair, other = np.random.default_rng(2).normal(size=(3, 36))
    decomposition = make_decomposition(model, np.stack([sum(pair), *pair, other]), np.ones((30, 4)))
    pefs = make_pefs(model, examples)
    options = {"fit": decomposition, "n_top": 4, "progress": False, "nulls": npeff.Nulls(n_random_directions=0)}
    table = npeff.selectivity(model, decomposition, pefs, examples, reject_below=0.999, **options)
    assert [row[0].split(" remains")[0] for row in table.failures] == [
        f"nothing of component {j}" for j in range(3)
    ] + [""]
    assert np.isfinite(table.kl_ratio).tolist() == [False, False, False, True]
    copies = make_decomposition(model, np.stack([pair[0], pair[1], pair[1]]), np.ones((30, 3)))
    table = npeff.selectivity(model, copies, pefs, examples, **options | {"fit": copies})
    assert (table.failures == "").all()
    np.testing.assert_allclose(table.kl[1], table.kl[2], rtol=1e-4)


def test_a_budget_gives_every_component_its_kl(planted):
    """One norm for both signs; the larger mean KL over the top examples is at most a tenth below the budget."""
    model, decomposition, _, examples, _ = planted
    budget = KLBudget(nats=0.02, max_norm=8.0)
    table = table_of(planted, None, norm=budget, reject_below=None)
    for component in range(BLOCKS):
        unit = npeff.component_direction(model, decomposition, component)
        assert table.norms[component, 0] == table.norms[component, 1]
        means = []
        for sign in (1, -1):
            delta = jax.tree.map(lambda u, s=sign, n=table.norms[component, 0]: s * n * u, unit)
            means.append(oracle_kl(model.params, delta, examples)[table.top[component]].mean())
        assert 0.9 * 0.02 * 0.999 <= max(means) <= 0.02 * 1.001
    assert len(np.unique(table.norms.round(6))) == BLOCKS  # so that no norm is the same by accident
    small = table_of(planted, DirectionEdit(norm=KLBudget(nats=1e6, max_norm=0.25)))
    np.testing.assert_allclose(small.norms, 0.25, rtol=1e-5)  # far below the budget: the largest norm
    # A quadratic KL: a hundredth of the budget is a tenth of the norm.
    tenth = table_of(planted, None, norm=KLBudget(nats=2e-4, max_norm=8.0), reject_below=None)
    np.testing.assert_allclose(tenth.norms / table.norms, 0.1, rtol=0.15)


@pytest.fixture
def confident():
    """Two classes with logits (6, 0): along one sign the KL never exceeds -log p of the prediction, 0.0025 nats."""
    model = npeff.Model(lambda params, x: jnp.array([params["w"] @ x, 0.0]), {"w": jnp.array([6.0, 0.0])})
    x = np.tile(np.float32([[1.0, 0.0]]), (6, 1))
    found = npeff.decompose(npeff.compute_pefs(model, x, keep=None, progress=False), 1, progress=False)
    subject = Subject(model, found, x, top={0: np.arange(6)})

    def moved(budget, sign):
        return np.float64(DirectionEdit(budget, reject_below=None).move(subject, 0, sign)["w"])

    return moved


def kl_of_shift(shift):
    """KL of two classes with logits (6, 0) whose first logit is shifted."""
    p, q = 1 / (1 + np.exp(-6.0)), 1 / (1 + np.exp(-6.0 - shift))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_a_sign_that_makes_a_confident_prediction_more_so_has_the_norm_of_the_other(confident):
    budget = KLBudget(0.01, max_norm=100.0, growth=np.inf)
    along, against = (confident(budget, sign) for sign in (1, -1))
    np.testing.assert_array_equal(along, -against)
    assert 0.009 <= kl_of_shift(-np.linalg.norm(along)) <= 0.01001


def test_a_budget_ends_where_equation_2_does(confident):
    """There 0.01 nats are twice what equation 2 says; the norm is halved until the KL grows fourfold."""
    whole = np.linalg.norm(confident(KLBudget(0.01, max_norm=100.0, growth=np.inf), 1))
    norm = np.linalg.norm(confident(KLBudget(0.01, max_norm=100.0), 1))
    halvings = np.log2(whole / norm)
    assert halvings >= 1
    np.testing.assert_allclose(halvings, round(halvings), atol=1e-5)
    growth = [kl_of_shift(-norm * k) / kl_of_shift(-norm * k / 2) for k in (2, 1, 0.5)]
    assert growth[0] > 5 >= growth[1]
    assert growth[2] <= 5
    p = 1 / (1 + np.exp(-6.0))
    second_order = p * (1 - p) * norm**2 / 2
    assert 0.8 < (kl_of_shift(norm) + kl_of_shift(-norm)) / 2 / second_order < 1.25
    # Within the range of equation 2 the whole budget is used.
    small = [np.linalg.norm(confident(KLBudget(1e-5, 100.0, growth), 1)) for growth in (5.0, np.inf)]
    assert small[0] == small[1]


def test_rounding_errors_are_no_quadratic_range():
    norms = 2.0 ** -np.arange(7)
    quadratic = norms**2
    assert _first_quadratic(quadratic, 5.0) == 0
    fast = np.where(norms > 0.2, norms**8, 0.25**6 * quadratic)  # too fast down to 1/4
    assert _first_quadratic(fast, 5.0) == 2
    noisy = np.where(norms > 0.2, norms**8, 0.25**8 * np.array([0, 0, 0, 1.0, 0.9, 1.1, 1.0]))
    assert _first_quadratic(noisy, 5.0) == 0  # the whole budget rather than rounding errors
    assert _first_quadratic(np.where(norms > 0.2, norms**8, 0.0), 5.0) == 0
    by_accident = np.array([64, 16, 1, 1 / 4, 1 / 16, 1 / 64, 1 / 256])  # fourfold once, then sixteenfold
    assert _first_quadratic(by_accident, 5.0) == 2
    saturated = np.minimum(quadratic, 0.15)
    assert _first_quadratic(saturated, 5.0) == 2


def test_scales_are_found_as_by_trying_all():
    calls = []

    def kl_of(scales):
        calls.append(len(scales))
        return np.where(scales < 3e-5, 0.0, 2e9 * scales**2)

    for low, high in ((1.9, 2.0), (2.0, 2.0001), (1e4, 2e4)):
        scale, kl, below = find_scale(kl_of, low, high, 1.0)
        assert kl_of(np.array([below])) < low
        assert low <= kl <= high
        np.testing.assert_allclose(kl, kl_of(np.array([scale]))[0])
    scale, kl, below = find_scale(kl_of, 1e-3, 1.0, 1.0)  # it jumps from 0 to 1.8
    assert scale is None
    np.testing.assert_allclose([kl, below], [1.8, 3e-5], rtol=1e-4)
    assert find_scale(kl_of, 1e12, 2e12, 1.0) == (None, 2e9, 1.0)
    assert find_scale(lambda s: np.full(s.shape, np.inf), 0.1, 0.2, 1.0)[::2] == (None, 0.0)
    assert max(calls) <= 25


def test_moves_that_are_not_local_are_said(planted):
    model, decomposition, pefs, examples, _ = planted
    assert (table_of(planted, None).kl_excess < 10).all()
    # Logits that jump: what a compiled program's weights do when they leave their grid.
    steep = npeff.Model(
        lambda p, x: model.logits_fn(p, x) + 1e3 * jnp.maximum(p["block0"] - w, 0.0).sum(0), model.params
    )
    w = np.asarray(model.params["block0"]) + 0.02
    made = make_decomposition(steep, block_vectors(), decomposition.coefficients)
    options = {"fit": made, "n_top": 10, "components": [0], "progress": False, "nulls": npeff.Nulls(50, 0)}
    with pytest.warns(
        NotLocalWarning, match=r"for 1 of 1 components the KL measured .* use a smaller norm, or norm=KL"
    ):
        far = npeff.selectivity(steep, made, pefs, examples, **options)
    assert far.kl_excess[0] > 100
    near = npeff.selectivity(steep, made, pefs, examples, norm=KLBudget(1e-4), **options)
    assert near.kl_excess[0] < 10


def test_equation_2_is_what_a_short_move_does(planted):
    """½ δᵀFδ of the top examples in float64 against a move of a small KL."""
    model, decomposition, _, examples, _ = planted
    table = table_of(planted, None, norm=1e-3, reject_below=None)
    delta = 1e-3 * np.asarray(model.space.ravel(npeff.component_direction(model, decomposition, 1)), np.float64)
    for i in table.top[1][:3]:
        fisher = oracle_fisher(model.params, jax.tree.map(lambda leaf, i=i: leaf[i], examples))
        found = table.example_kl(1)[np.flatnonzero(table.evaluated == i)[0]]
        np.testing.assert_allclose(found, delta @ fisher @ delta / 2, rtol=1e-2)


def test_diagonal_moves_of_a_given_norm(planted):
    model, decomposition, _, examples, _ = planted
    diagonal = make_decomposition(model, np.abs(block_vectors()), decomposition.coefficients, npeff.FisherKind.DIAGONAL)
    pefs = make_pefs(model, examples, kind=npeff.FisherKind.DIAGONAL)
    options = {"fit": diagonal, "n_top": 10, "progress": False, "nulls": npeff.Nulls(n_random_directions=0)}
    table = npeff.selectivity(model, diagonal, pefs, examples, norm=0.2, reject_below=None, **options)
    np.testing.assert_allclose(table.norms, 0.2, rtol=1e-5)
    assert (table.kl_ratio > 2).all()
    with pytest.raises(TypeError, match="no setting 'reject_below' for diagonal components"):
        npeff.selectivity(model, diagonal, pefs, examples, reject_below=0.35, **options)
    with pytest.raises(ValueError, match="use DiagonalEdit"):
        npeff.selectivity(model, diagonal, pefs, examples, edits=DirectionEdit(), **options)


def test_settings_are_checked_where_they_are_made(planted):
    model, decomposition, _, _, _ = planted
    with pytest.raises(ValueError, match="norm=0 is out of range"):
        DirectionEdit(norm=0.0)
    with pytest.raises(ValueError, match="reject_below=2 is out of range"):
        DirectionEdit(reject_below=2.0)
    with pytest.raises(ValueError, match="nats=-1 is out of range"):
        KLBudget(nats=-1.0)
    with pytest.raises(ValueError, match="norm=nan is out of range"):
        DiagonalEdit(norm=float("nan"))
    with pytest.raises(TypeError, match="got norm together with edits; set it in the edit: DirectionEdit"):
        table_of(planted, DirectionEdit(), norm=0.1)
    with pytest.raises(
        TypeError, match=r"selectivity has no setting 'nrom' for low-rank components; .* norm, reject_below"
    ):
        table_of(planted, None, nrom=0.1)
    with pytest.raises(ValueError, match="sign=2 is out of range"):
        DirectionEdit().apply(Subject(model, decomposition), 0, 2)
    with pytest.raises(ValueError, match=r"looks at the top examples of component 1; pass Subject\(..., examples=x"):
        DirectionEdit(KLBudget()).apply(Subject(model, decomposition), 1)
    step = DirectionEdit(norm=0.5, reject_below=None).apply(Subject(model, decomposition), 2, -1)
    moved = model.space.ravel(step.params) - model.space.ravel(model.params)
    np.testing.assert_allclose(moved, -0.5 * decomposition.pseudo_fishers[2], atol=1e-6)
