"""Adapters for Linen, NNX, Haiku and Equinox (convolution, BatchNorm, dropout) against a loop, on eight devices too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff

IMAGES = np.random.default_rng(0).normal(size=(11, 6, 6, 2)).astype(np.float32)  # 11: no multiple of eight devices
STATISTICS = np.array([0.5, -0.3, 0.2, 0.1], np.float32), np.array([0.6, 1.5, 2.0, 0.8], np.float32)


def test_what_is_no_module_of_the_framework():
    """A class, or a module of another framework: which adapter takes it."""
    linen, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    eqx, models = pytest.importorskip("equinox"), npeff.models
    for call, message in (
        (lambda: models.from_nnx(nnx.Linear), r"from_nnx takes an instance of it, Linear\(...\)"),
        (lambda: models.from_nnx(linen.Dense(3)), "make a model of it with npeff_jax.models.from_linen"),
        (lambda: models.from_linen(linen.Dense, {"params": {}}), "from_linen takes an instance of it"),
        (lambda: models.from_linen({"params": {}}, linen.Dense(3)), "module is of type dict, not flax's Module"),
        (lambda: models.from_equinox({"w": np.ones(3)}), "module is of type dict, not equinox's Module"),
        (lambda: models.from_equinox(eqx.nn.Linear), "from_equinox takes an instance of it"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    assert "without explained parameters" in repr(npeff.Model(lambda p, x: x, {}))


def linen(training=False):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, training):
            x = nn.BatchNorm(use_running_average=not training)(nn.Conv(4, (3, 3))(x))
            x = nn.Dropout(0.5, deterministic=not training)(nn.relu(x))
            return nn.Dense(3)(x.mean((-3, -2)))

    variables = Net().init(jax.random.key(0), IMAGES[:1], False)
    variables["batch_stats"]["BatchNorm_0"] = dict(zip(("mean", "var"), map(jnp.asarray, STATISTICS)))
    return npeff.models.from_linen(Net(), variables, kwargs={"training": training})


def nnx(training=False):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            x = self.dropout(nnx.relu(self.norm(self.conv(x))))
            return self.head(x.mean((-3, -2)))

    net = Net(nnx.Rngs(0))
    net.norm.mean[...], net.norm.var[...] = STATISTICS
    net.train() if training else net.eval()
    return npeff.models.from_nnx(net)


def haiku(training=False):
    hk = pytest.importorskip("haiku")

    def net(x, training=training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training=training)
        return hk.Linear(3)(jax.nn.relu(x).mean((-3, -2)))

    transformed = hk.transform_with_state(net)
    params, state = transformed.init(jax.random.key(0), IMAGES[:1], training=True)
    for name, value in zip(("mean_ema", "var_ema"), STATISTICS):
        state[f"batch_norm/~/{name}"]["average"] = jnp.asarray(value.reshape(1, 1, 1, 4))
    return npeff.models.from_haiku(transformed, params, state)


def equinox(training=False):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layers: list
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __init__(self, key):
            self.layers = [eqx.nn.Conv2d(2, 4, 3, padding=1, key=key)]
            self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
            self.head = eqx.nn.Linear(4, 3, key=key)
            self.dropout = eqx.nn.Dropout(0.5)

        def __call__(self, x, state):
            x, state = self.norm(self.layers[0](x.transpose(2, 0, 1)), state)
            return self.head(self.dropout(jax.nn.relu(x)).mean((-2, -1))), state

    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    net = net if training else eqx.nn.inference_mode(net)
    return npeff.models.from_equinox(net, state)


FRAMEWORKS = [linen, nnx, haiku, equinox]


def loop_rows(model):
    """Class rows by one gradient a class and example, with nothing batched."""
    log_p = jax.jit(lambda params, image: jax.nn.log_softmax(model.logits_fn(params, image)))
    gradient = jax.jit(jax.grad(lambda params, image, j: log_p(params, image)[j]))
    rows = []
    for image in IMAGES:
        p = np.exp(log_p(model.params, image))
        rows += [np.sqrt(p[j]) * np.asarray(model.space.ravel(gradient(model.params, image, j))) for j in range(3)]
    return np.stack(rows).reshape(len(IMAGES), 3, -1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_pefs_on_one_device_and_on_eight_agree_with_a_loop(framework):
    model = framework()
    expected = loop_rows(model)
    assert jax.device_count() == 8
    for mesh in (None, npeff.make_mesh()):
        pefs = npeff.compute_pefs(
            model,
            IMAGES,
            npeff.LowRank(rows=npeff.RowBasis.CLASSES),
            keep=None,
            normalization=npeff.Normalization.NONE,
            mesh=mesh,
        )
        rows = pefs.to_scipy().toarray().reshape(expected.shape)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_in_training_mode_is_refused(framework):
    with pytest.raises(ValueError, match=r"training mode|updates its state"):
        framework(training=True).n_classes(IMAGES[0])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_names_are_those_of_the_parts(framework):
    names = [p.name for p in framework().space.layout.parameters]
    assert len(names) == 6
    assert not [name for name in names if "value" in name or "[" in name or name.startswith(".")], names


def test_haiku_dropout_is_refused():
    hk = pytest.importorskip("haiku")
    transformed = hk.transform(lambda x: hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.5, x.mean((-3, -2)))))
    params = transformed.init(jax.random.key(0), IMAGES[:1])
    with pytest.raises(ValueError, match="without dropout"):
        npeff.models.from_haiku(transformed, params).n_classes(IMAGES[0])
