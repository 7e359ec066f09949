"""The parameter space: names, offsets, masks, shared leaves, and the way to a vector and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax._identity import tree_digest as fingerprint
from npeff_jax._parameters import ParameterLayout, ParameterSpace

pytestmark = pytest.mark.fast

PARAMS = {
    "embed": {"table": jnp.arange(6.0).reshape(3, 2)},
    "head": {"kernel": jnp.arange(10.0, 14.0).reshape(2, 2), "bias": jnp.array([20.0, 21.0])},
    "steps": jnp.array(3),
}


def test_vector_lists_the_leaves_in_the_order_of_the_tree():
    space = ParameterSpace.of(PARAMS)
    assert [p.name for p in space.layout.parameters] == ["embed/table", "head/bias", "head/kernel"]
    np.testing.assert_array_equal(space.ravel(PARAMS), [0, 1, 2, 3, 4, 5, 20, 21, 10, 11, 12, 13])


def test_unravel_is_shaped_like_the_parameters_and_inverts_ravel():
    space = ParameterSpace.of(PARAMS)
    back = space.unravel(space.ravel(PARAMS))
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, PARAMS)
    np.testing.assert_array_equal(back["head"]["kernel"], PARAMS["head"]["kernel"])
    assert back["steps"] == 0  # an integer is no parameter to move


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        ("head/*", ["head/bias", "head/kernel"]),
        (("*/table", "*/bias"), ["embed/table", "head/bias"]),
        (lambda path, leaf: leaf.ndim == 2, ["embed/table", "head/kernel"]),
    ],
)
def test_mask(mask, names):
    space = ParameterSpace.of(PARAMS, mask)
    assert [p.name for p in space.layout.parameters] == names
    inside = space.unravel(jnp.ones(space.size))
    assert sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(inside)) == space.size


def test_mask_that_leaves_nothing():
    with pytest.raises(ValueError, match=r"mask='decoder/\*' leaves no floating-point parameter; the parameters are"):
        ParameterSpace.of(PARAMS, "decoder/*")


def test_locate_names_every_index():
    layout = ParameterSpace.of(PARAMS).layout
    assert layout.locate(0) == ("embed/table", (0, 0))
    assert layout.locate(5) == ("embed/table", (2, 1))
    assert layout.locate(6) == ("head/bias", (0,))
    assert layout.locate(11) == ("head/kernel", (1, 1))
    with pytest.raises(IndexError, match="12 is out of range; this model has 12"):
        layout.locate(12)


def test_layout_survives_json():
    layout = ParameterSpace.of(PARAMS).layout
    assert ParameterLayout.from_json(layout.to_json()) == layout


def test_a_shared_leaf_counts_once_and_its_gradient_is_the_sum():
    table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    params = {"encoder": table, "decoder": table}
    model = npeff.Model(lambda p, x: p["decoder"] @ (p["encoder"] @ x), params)
    assert model.space.size == 4
    assert model.space.layout.parameters[0].aliases == ("encoder",)
    x = jnp.array([1.0, -1.0])
    (gradient,) = jax.grad(lambda s: model.selected_logits(s, params, x).sum())(model.space.select(params))
    expected = jax.grad(lambda t: (t @ (t @ x)).sum())(table)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_fingerprint_depends_on_values_and_names_alone():
    same = jax.tree.map(np.asarray, PARAMS)
    assert fingerprint(PARAMS) == fingerprint(same)
    assert fingerprint(PARAMS) != fingerprint(PARAMS | {"steps": jnp.array(4)})
    assert fingerprint({"a": jnp.ones(2)}) != fingerprint({"b": jnp.ones(2)})


def test_unravel_rejects_a_vector_of_another_length():
    with pytest.raises(ValueError, match=r"expected a vector of shape \(12,\).*got \(3,\)"):
        ParameterSpace.of(PARAMS).unravel(jnp.ones(3))
