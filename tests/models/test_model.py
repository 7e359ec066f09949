"""`Model` and its adapter from Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff

pytestmark = pytest.mark.fast

LINEAR = {"w": jnp.ones((4, 3))}


def test_classes_are_counted_without_running_the_model():
    model = npeff.Model(lambda p, x: x @ p["w"], LINEAR)
    assert model.n_classes(jnp.ones(4)) == 3


def test_a_batch_axis_is_rejected_with_the_remedy():
    model = npeff.Model(lambda p, x: x[None] @ p["w"], LINEAR)
    with pytest.raises(ValueError, match=r"returned \(1, 3\) for one example; expected one axis.*x\[None\]\)\[0\]"):
        model.n_classes(jnp.ones(4))


@pytest.mark.parametrize(
    ("logits_fn", "output", "sentence"),
    [
        (
            lambda p, x: (x @ p["w"])[:1],
            npeff.Categorical(),
            "returned 1 values of float32; Categorical expects at least 2",
        ),
        (lambda p, x: jnp.argsort(x @ p["w"]), npeff.Categorical(), "3 values of int32"),
        (lambda p, x: {"logits": x @ p["w"]}, npeff.Categorical(), "returned dict for one example"),
    ],
)
def test_outputs_that_are_no_logits_are_rejected(logits_fn, output, sentence):
    with pytest.raises(ValueError, match=sentence):
        npeff.Model(logits_fn, LINEAR, output=output).n_classes(jnp.ones(4))


def test_one_gaussian_output_is_allowed():
    assert npeff.Model(lambda p, x: (x @ p["w"])[:1], LINEAR, output=npeff.Gaussian()).n_classes(jnp.ones(4)) == 1


class TestLinen:
    """`models.from_linen` on a network with batch statistics."""

    @pytest.fixture
    def linen(self):
        nn = pytest.importorskip("flax.linen")

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x))
                return nn.Dense(3)(nn.relu(x))

        net = Net()
        return net, net.init(jax.random.key(0), jnp.ones((1, 4)))

    def test_logits_are_the_modules_and_paths_are_relative_to_the_parameters(self, linen):
        net, variables = linen
        model = npeff.models.from_linen(net, variables)
        x = np.arange(4, dtype=np.float32)
        np.testing.assert_allclose(model.logits_fn(model.params, x), net.apply(variables, x[None])[0], rtol=1e-6)
        assert {p.name for p in model.space.layout.parameters} >= {"Dense_0/kernel", "BatchNorm_0/scale"}
        assert not any("batch_stats" in p.name for p in model.space.layout.parameters)

    def test_the_same_parameters_have_the_same_fingerprint_however_wrapped(self, linen):
        net, variables = linen
        by_hand = npeff.Model(lambda p, x: x, variables["params"])
        assert npeff.models.from_linen(net, variables).fingerprint == by_hand.fingerprint

    def test_parameters_alone_are_rejected(self, linen):
        net, variables = linen
        with pytest.raises(ValueError, match=r"not 'params'; pass what module\.init returned"):
            npeff.models.from_linen(net, variables["params"])

    def test_fields_of_model_pass_through(self, linen):
        net, variables = linen
        model = npeff.models.from_linen(net, variables, mask="Dense_1/*")
        assert model.space.size == 5 * 3 + 3
