"""Directions of low-rank components against least squares in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npeff_jax import FisherKind, Model, component_direction, perturb
from npeff_jax.perturbation import _rejection, component_directions, pseudo_fisher_gram
from tests.planted_model import block_vectors, make_decomposition, make_model

pytestmark = pytest.mark.fast


def correlated_vectors(seed=0, r=9, m=36):
    """Vectors with cosines on both sides of any threshold, and an exact duplicate."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(r, m)) + 0.6 * rng.normal(size=m)
    vectors[4] = vectors[3]
    return vectors


def oracle_direction(vectors, j, threshold):
    """What least squares leaves of g_j, in float64."""
    unit = np.float64(np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    cosines = unit @ unit[j]
    others = [k for k in range(len(unit)) if k != j and abs(cosines[k]) < threshold]
    fitted = np.linalg.lstsq(unit[others].T, unit[j], rcond=1e-9)[0] @ unit[others] if others else 0.0
    return (unit[j] - fitted) / np.linalg.norm(unit[j] - fitted)


@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.999])
@pytest.mark.parametrize("block_bytes", [2**28, 8 * 36 * 2])  # all rows at once; two at a time
def test_rejection_is_least_squares(threshold, block_bytes, monkeypatch):
    monkeypatch.setattr(_rejection, "_BLOCK_BYTES", block_bytes)
    model, vectors = make_model(), correlated_vectors()
    decomposition = make_decomposition(model, vectors, np.ones((2, 9)))
    for j in range(9):
        direction = component_direction(model, decomposition, j, reject_below=threshold)
        vector = np.asarray(model.space.ravel(direction))
        expected = oracle_direction(vectors, j, threshold)
        np.testing.assert_allclose(vector, expected, atol=2e-6)
        assert jax.tree.structure(direction) == jax.tree.structure(model.params)
        np.testing.assert_allclose(np.linalg.norm(vector), 1.0, atol=1e-6)


def test_rejection_goes_through_the_whole_span():
    """Two non-orthogonal vectors: subtracting one after the other would leave a part along the first."""
    rng = np.random.default_rng(1)
    first, second, own = rng.normal(size=(3, 36))
    second = first + 0.3 * second
    model = make_model()
    decomposition = make_decomposition(model, np.stack([own, first, second, second]), np.ones((2, 4)))
    vector = np.asarray(model.space.ravel(component_direction(model, decomposition, 0, reject_below=0.99)))
    np.testing.assert_allclose(decomposition.pseudo_fishers[1:] @ vector, 0.0, atol=1e-6)
    assert abs(decomposition.pseudo_fishers[0] @ vector) > 0.5


def test_plain_direction_is_the_vector_itself_and_pruned_parameters_stay():
    model = make_model()
    indices = np.array([1, 5, 20, 33])
    vectors = np.array([[1.0, 2, 3, 4], [-1, 0, 0, 1]])
    decomposition = make_decomposition(model, vectors, np.ones((2, 2)), indices=indices)
    vector = np.asarray(model.space.ravel(component_direction(model, decomposition, 0)))
    np.testing.assert_allclose(vector[indices], vectors[0] / np.sqrt(30), rtol=1e-6)
    assert np.count_nonzero(vector) == 4


def test_vanishing_remainder_is_an_error():
    rng = np.random.default_rng(2)
    pair = rng.normal(size=(2, 36))
    model = make_model()
    decomposition = make_decomposition(model, np.stack([pair.sum(0), *pair]), np.ones((2, 3)))
    with pytest.raises(ValueError, match="nothing of component 0 remains outside the span of the 2 components"):
        component_direction(model, decomposition, 0, reject_below=0.999)
    component_direction(model, decomposition, 0, reject_below=0.01)


def test_bad_input_is_named():
    model = make_model()
    decomposition = make_decomposition(model, block_vectors(), np.ones((2, 3)))
    with pytest.raises(IndexError, match="component=3 is out of range; this decomposition has 3"):
        component_direction(model, decomposition, 3)
    with pytest.raises(IndexError, match="component=-1"):
        component_direction(model, decomposition, -1)
    with pytest.raises(ValueError, match=r"reject_below=2\.0 is out of range"):
        component_direction(model, decomposition, 0, reject_below=2.0)
    with pytest.raises(ValueError, match="pass the model whose PEFs were decomposed"):
        component_direction(make_model(seed=1), decomposition, 0)
    masked = Model(model.logits_fn, model.params, mask="block0")
    with pytest.raises(ValueError, match="explains 36 parameters, this model's mask 12"):
        component_direction(masked, decomposition, 0)
    zero = make_decomposition(model, np.zeros((1, 36)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="zero pseudo-Fisher vector"):
        component_direction(model, zero, 0)
    diagonal = make_decomposition(model, np.abs(block_vectors()), np.ones((2, 3)), FisherKind.DIAGONAL)
    with pytest.raises(ValueError, match="diagonal_edit"):
        component_direction(model, diagonal, 0)


def test_several_directions_are_the_single_ones_and_are_checked_at_once():
    model = make_model()
    decomposition = make_decomposition(model, correlated_vectors(), np.ones((2, 9)))
    several = list(component_directions(model, decomposition, [5, 2], 0.35))
    for found, j in zip(several, [5, 2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, component_direction(model, decomposition, j, 0.35))
    with pytest.raises(ValueError, match="pass the model whose"):
        component_directions(make_model(seed=1), decomposition, [0])  # before anything is iterated


def test_gram_is_symmetric_float64():
    vectors = correlated_vectors().astype(np.float32)
    np.testing.assert_allclose(pseudo_fisher_gram(vectors), np.float64(vectors) @ np.float64(vectors).T, rtol=1e-14)


def test_perturb_makes_another_model():
    params = {"w": jnp.ones((2, 2)), "steps": jnp.arange(3)}  # an integer leaf is no parameter and stays
    model = Model(lambda p, x: x @ p["w"], params)
    moved = perturb(model, model.space.unravel(jnp.arange(4.0)), -0.5)
    np.testing.assert_allclose(moved.params["w"], 1 - 0.5 * np.arange(4.0).reshape(2, 2))
    assert moved.params["steps"] is params["steps"]
    np.testing.assert_array_equal(model.params["w"], np.ones((2, 2)))
