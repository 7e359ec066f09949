"""Edits of diagonal components: the formula by hand, the search, and the sub-network they stay in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.perturbation import (
    DiagonalPerturbation,
    Floor,
    Targets,
    UnreachableKLError,
    dataset_fisher,
    diagonal_edit,
    loss_gradient,
    shares,
)
from tests.planted_model import (
    BLOCKS,
    block_vectors,
    make_decomposition,
    make_examples,
    make_model,
    make_pefs,
    oracle_kl,
)

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def setting():
    model = make_model()
    examples, block = make_examples(60, leak=0.05)
    coefficients = np.eye(BLOCKS)[block] + 0.01
    decomposition = make_decomposition(model, np.abs(block_vectors()), coefficients, npeff.FisherKind.DIAGONAL)
    labels = np.random.default_rng(0).integers(0, 3, 60)
    return model, decomposition, examples, block, labels, dataset_fisher(model, examples)


def top_of(examples, block, component):
    return jax.tree.map(lambda leaf: leaf[block == component], examples)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("floor", list(Floor))
@pytest.mark.parametrize("targets", list(Targets))
def test_edit_is_the_formula_and_reaches_the_range(setting, sign, floor, targets):
    model, decomposition, examples, block, labels, fisher = setting
    settings = DiagonalPerturbation(floor=floor, targets=targets, floor_value=0.05)
    top = top_of(examples, block, 1)
    before = jax.tree.map(np.array, model.params)
    edit = diagonal_edit(
        model, decomposition, 1, top, fisher=fisher, labels=labels[block == 1], sign=sign, settings=settings
    )
    jax.tree.map(np.testing.assert_array_equal, model.params, before)

    used = labels[block == 1] if targets is Targets.LABELS else None
    s = np.sign(np.asarray(model.space.ravel(loss_gradient(model, top, used)), np.float64))
    theta = np.asarray(model.space.ravel(model.params), np.float64)
    f = np.asarray(model.space.ravel(fisher), np.float64)
    f, h = f / np.linalg.norm(f), decomposition.pseudo_fisher(1).astype(np.float64)
    w1 = (1 - edit.weight) * (np.maximum(f, 0.05) if floor is Floor.RAISED else np.minimum(f, 0.05))
    w2 = edit.weight * h
    expected = (w1 * theta + w2 * (theta - sign * edit.delta * s)) / (w1 + w2)
    moved = npeff.perturb(model, edit.change)
    np.testing.assert_allclose(model.space.ravel(moved.params), expected, rtol=1e-4, atol=1e-6)

    measured = oracle_kl(model.params, edit.change, top).mean()
    np.testing.assert_allclose(edit.kl, measured, rtol=1e-3)
    assert settings.kl_range[0] <= measured <= settings.kl_range[1]
    # h is zero outside its sub-network, so nothing there moves.
    assert np.count_nonzero(edit.change["block0"]) == np.count_nonzero(edit.change["block2"]) == 0


def test_edit_moves_its_own_examples(setting):
    model, decomposition, examples, block, labels, fisher = setting
    top = top_of(examples, block, 2)
    edit = diagonal_edit(model, decomposition, 2, top, fisher=fisher, labels=labels[block == 2])
    kl = npeff.perturbed_kl(model, examples, [edit.change])[0, 0]
    assert kl[block == 2].mean() > 50 * kl[block != 2].mean()


def test_sign_lowers_or_raises_the_loss(setting):
    model, decomposition, examples, block, labels, fisher = setting
    top, y = top_of(examples, block, 0), labels[block == 0]

    def loss(params):
        logits = jax.vmap(model.logits_fn, (None, 0))(params, top)
        return float(-jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).sum())

    options = {"fisher": fisher, "labels": y, "settings": DiagonalPerturbation(kl_range=(0.001, 0.002))}
    lower = diagonal_edit(model, decomposition, 0, top, sign=1.0, **options)
    higher = diagonal_edit(model, decomposition, 0, top, sign=-1.0, **options)
    assert loss(npeff.perturb(model, lower.change).params) < loss(model.params)
    assert loss(npeff.perturb(model, higher.change).params) > loss(model.params)


def test_a_capped_floor_moves_far_more_parameters():
    """Heavy-tailed Fishers, as trained networks have: the floor's two readings are far apart."""
    rng = np.random.default_rng(0)
    f, h = np.exp(3 * rng.normal(size=(2, 20_000)))
    found = {}
    for floor in Floor:
        found[floor] = np.mean(shares(h, f, 0.5, DiagonalPerturbation(floor=floor)) > 0.5)
    assert found[Floor.CAPPED] > 1.5 * found[Floor.RAISED]
    np.testing.assert_array_equal(shares(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.5, DiagonalPerturbation())[0], 0)


def test_what_cannot_be_reached_says_so(setting):
    model, decomposition, examples, block, labels, fisher = setting
    top, y = top_of(examples, block, 0), labels[block == 0]
    settings = DiagonalPerturbation(kl_range=(50.0, 60.0), max_delta=0.1)
    with pytest.raises(UnreachableKLError, match=r"component 0: no δ up to 0.1 gives a mean KL in \(50.0, 60.0\)"):
        diagonal_edit(model, decomposition, 0, top, fisher=fisher, labels=y, settings=settings)


def test_narrow_ranges_are_found_by_bisection(setting):
    model, decomposition, examples, block, labels, fisher = setting
    top, y = top_of(examples, block, 0), labels[block == 0]
    settings = DiagonalPerturbation(kl_range=(0.1, 0.1001))
    edit = diagonal_edit(model, decomposition, 0, top, fisher=fisher, labels=y, settings=settings)
    assert 0.1 <= edit.kl <= 0.1001


def test_bad_input_is_named(setting):
    model, decomposition, examples, block, _, fisher = setting
    top = top_of(examples, block, 0)
    with pytest.raises(IndexError, match="component=9"):
        diagonal_edit(model, decomposition, 9, top, fisher=fisher)
    low_rank = make_decomposition(model, block_vectors(), np.ones((2, 3)))
    with pytest.raises(ValueError, match="use component_direction"):
        diagonal_edit(model, low_rank, 0, top, fisher=fisher)
    with pytest.raises(ValueError, match="zero everywhere"):
        diagonal_edit(model, decomposition, 0, top, fisher=jax.tree.map(jnp.zeros_like, fisher))
    with pytest.raises(ValueError, match="two increasing positive"):
        DiagonalPerturbation(kl_range=(0.2, 0.1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        DiagonalPerturbation(weights=(1.0,))
    with pytest.raises(ValueError, match="must be positive"):
        DiagonalPerturbation(max_delta=0.0)


def test_selectivity_of_diagonal_components(setting):
    model, decomposition, examples, block, labels, fisher = setting
    pefs = make_pefs(model, examples, labels, npeff.FisherKind.DIAGONAL)
    options = {"fit": decomposition, "n_top": 8, "progress": False}
    table = npeff.selectivity(model, decomposition, pefs, examples, fisher=fisher, **options)
    assert (table.kl_ratio > 3).all()  # 12 of the 52 others are of the same sub-network: at most about 4.3
    assert (table.null_kl_ratio < 0.2).all()
    for component in range(BLOCKS):
        kl = table.kl[component][:, np.isin(table.evaluated, table.top[component])].mean(axis=1)
        assert ((kl >= 0.05) & (kl <= 0.2)).all()
        assert (block[table.top[component]] == component).all()
    # Eq. 5 with Diag(h_j), by hand.
    edit = diagonal_edit(
        model,
        decomposition,
        0,
        jax.tree.map(lambda leaf: leaf[table.top[0]], examples),
        fisher=fisher,
        labels=labels[table.top[0]],
    )
    step = np.asarray(model.space.ravel(edit.change), np.float64)
    expected = pefs.norms / 2 * (decomposition.coefficients @ (decomposition.pseudo_fishers @ step**2))
    np.testing.assert_allclose(table.predicted_kl[0, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(table.norms[0, 0], np.linalg.norm(step), rtol=1e-5)
    computed = npeff.selectivity(model, decomposition, pefs, examples, **options)  # f of the random examples
    np.testing.assert_allclose(computed.kl_ratio, table.kl_ratio, rtol=1e-3)


def test_a_sign_out_of_reach_leaves_the_other(setting):
    """A model that is right and certain cannot be made more so; raising its loss still moves it."""
    model, decomposition, examples, _, _, _ = setting
    certain = npeff.Model(model.logits_fn, jax.tree.map(lambda leaf: 4 * leaf, model.params))
    decomposition = make_decomposition(
        certain, np.abs(block_vectors()), decomposition.coefficients, npeff.FisherKind.DIAGONAL
    )
    pefs = make_pefs(certain, examples, kind=npeff.FisherKind.DIAGONAL)
    settings = DiagonalPerturbation(kl_range=(0.2, 0.4), max_delta=1.0)
    table = npeff.selectivity(
        certain, decomposition, pefs, examples, fit=decomposition, n_top=8, diagonal=settings, progress=False
    )
    assert np.isnan(table.kl_ratios[:, 0]).any()
    assert np.isfinite(table.kl_ratio).all()
    assert (table.sign[np.isnan(table.kl_ratios[:, 0])] == -1).all()
