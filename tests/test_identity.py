"""One identity: whatever changes numbers changes it, and nothing else does."""

import dataclasses
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax._checks import as_instance
from npeff_jax._identity import check_examples, check_same, constants_digest, differences

pytestmark = pytest.mark.fast

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


def model(scale=1.0, w=W, **options):
    return npeff.Model(lambda p, x: scale * (x @ p["w"]), {"w": w}, **options)


def other_part(other):
    return differences(model().identity(X), other.identity(X))


def test_each_part_is_told_apart():
    assert other_part(model()) == []
    assert other_part(model(scale=1.1)) == ["function"]
    assert other_part(model(w=W + 1e-6)) == ["parameters"]
    assert other_part(model(output=npeff.Categorical(temperature=0.5))) == ["output"]
    assert other_part(npeff.Model(model().logits_fn, {"w": W}, constants={"eps": 1e-3})) == []  # not known of both
    assert differences(model(constants={"eps": 1e-3}).identity(), model(constants={"eps": 1e-5}).identity()) == [
        "constants"
    ]


def test_parameters_changed_in_place_are_other_parameters():
    w = W.copy()
    changed = model(w=w)
    before = changed.fingerprint
    w[0, 0] += 1
    assert changed.fingerprint != before


def test_the_message_names_the_part_and_both_values():
    pefs = npeff.compute_pefs(model(), X, progress=False)
    raw = npeff.compute_pefs(model(), X, normalization=npeff.Normalization.NONE, progress=False)
    sentence = r"these PEFs do not belong to the decomposition.*normalization \(normalization: before and none\); again"
    with pytest.raises(ValueError, match=sentence):
        check_same("the decomposition", pefs.schema.identity, "these PEFs", raw.schema.identity, remedy="again")


@pytest.mark.parametrize("subset", [False, True])
def test_shuffled_examples_are_not_those_of_the_pefs(subset):
    pefs, x = npeff.compute_pefs(model(), X, progress=False), X
    if subset:  # its digest cannot be compared: the logits are
        pefs, x = pefs.subset(slice(2, 9)), X[2:9]
    check_examples("the PEFs", pefs.schema.identity, pefs.logits, model(), x)
    with pytest.raises(ValueError, match=r"another example|same order"):
        check_examples("the PEFs", pefs.schema.identity, pefs.logits, model(), x[::-1].copy())
    with pytest.raises(ValueError, match="another function"):
        check_examples("the PEFs", pefs.schema.identity, pefs.logits, model(scale=1.1), x)
    with pytest.raises(ValueError, match="3 examples were given"):
        check_examples("the PEFs", pefs.schema.identity, pefs.logits, model(), x[:3])


def test_subsets_have_identities_of_their_own():
    pefs = npeff.compute_pefs(model(), X, progress=False)
    parts = [pefs.subset(rows).schema.identity for rows in (slice(0, 3), [0, 1, 2], [0, 2, 1], slice(3, 6))]
    assert differences(parts[0], parts[1]) == []
    assert "examples" in differences(parts[0], parts[2])
    assert "examples" in differences(parts[0], parts[3])
    assert pefs.subset(slice(None)).schema == pefs.schema


CONSTANTS = """
import jax, numpy as np, functools, dataclasses
from npeff_jax._checks import as_instance
from npeff_jax._identity import constants_digest
@dataclasses.dataclass
class Layer:
    width: int = 3
    activation: object = jax.nn.relu
print(constants_digest({"a": {1, "x", 2.5}, "f": functools.partial(jax.nn.gelu, approximate=True), "l": [Layer()],
                        "s": np.arange(3), "n": None, "k": jax.random.key(0), "fn": lambda x: x}))
"""


def test_constants_have_the_same_digest_in_another_process():
    done = [subprocess.run([sys.executable, "-c", CONSTANTS], capture_output=True, text=True, check=True) for _ in "ab"]
    assert done[0].stdout == done[1].stdout != ""


def test_constants_differ_where_they_say_something_else():
    @dataclasses.dataclass
    class Layer:
        width: int = 3

    def enclosing(value):
        return lambda x: x + value

    different = [
        {"a": 1}, {"a": 1.0}, {"a": "1"}, {"b": 1}, [1], np.float32(1), np.ones(1), jnp.ones(2), Layer(), Layer(4),
        jax.nn.relu, jax.nn.gelu, enclosing(1), enclosing(2), Layer, None, {1}, {2},
    ]  # fmt: skip
    assert len({constants_digest(value) for value in different}) == len(different)
    own = []
    own.append(own)
    assert constants_digest(own)


def test_a_model_is_a_pytree_of_its_parameters():
    shared = jnp.asarray(W)
    tied = npeff.Model(lambda p, x: x @ p["a"] + x @ p["b"], {"a": shared, "b": shared})

    @jax.jit
    def loss(model, x):
        assert model.space.size == 12  # counted once, also where tracers stand for the shared array
        return jnp.sum(model.logits_fn(model.params, x) ** 2)

    gradient = jax.grad(loss)(tied, X[0])
    assert isinstance(gradient, npeff.Model)
    expected = jax.grad(lambda p: jnp.sum(tied.logits_fn(p, X[0]) ** 2))(tied.params)
    np.testing.assert_allclose(gradient.params["a"], expected["a"], rtol=1e-6)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, tied)
    assert doubled.fingerprint != tied.fingerprint
    traced = []
    jitted = jax.jit(lambda model: traced.append(model) or model.space.ravel(model.params))
    jitted(tied), jitted(doubled)
    assert len(traced) == 1


class TestAdapters:
    """What an adapter holds besides the parameters is part of the model."""

    def test_linen(self):
        nn = pytest.importorskip("flax.linen")

        class Net(nn.Module):
            epsilon: float = 1e-5

            @nn.compact
            def __call__(self, x, scale=1.0):
                return scale * nn.Dense(3)(nn.BatchNorm(use_running_average=True, epsilon=self.epsilon)(x))

        variables = Net().init(jax.random.key(0), X[:1])
        base = npeff.models.from_linen(Net(), variables)
        shifted = variables | {"batch_stats": jax.tree.map(lambda s: s + 3, variables["batch_stats"])}
        others = [
            npeff.models.from_linen(Net(), shifted),
            npeff.models.from_linen(Net(), variables, kwargs={"scale": 2.0}),
            npeff.models.from_linen(Net(epsilon=1e-4), variables),
        ]
        assert differences(base.identity(X), npeff.models.from_linen(Net(), variables).identity(X)) == []
        assert all("constants" in differences(base.identity(), other.identity()) for other in others)

    def test_equinox(self):
        eqx = pytest.importorskip("equinox")

        class Net(eqx.Module):
            layer: eqx.nn.Linear
            power: int = eqx.field(static=True)

            def __call__(self, x):
                return self.layer(x) ** self.power

        layer = eqx.nn.Linear(3, 4, key=jax.random.key(0))
        one, two = (npeff.models.from_equinox(Net(layer, power)) for power in (1, 2))
        assert differences(one.identity(), two.identity()) == ["constants"]
        assert differences(one.identity(X), npeff.models.from_equinox(Net(layer, 1)).identity(X)) == []

    def test_nnx(self):
        nnx = pytest.importorskip("flax.nnx")

        class Net(nnx.Module):
            def __init__(self, power):
                self.layer, self.power = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), power
                self.shift = nnx.BatchStat(jnp.zeros(4))

            def __call__(self, x):
                return self.layer(x) ** self.power + self.shift[...]

        shifted = Net(1)
        shifted.shift[...] = jnp.ones(4)
        base = npeff.models.from_nnx(Net(1))
        for other in (npeff.models.from_nnx(Net(2)), npeff.models.from_nnx(shifted)):
            assert differences(base.identity(), other.identity()) == ["constants"]
        assert differences(base.identity(X), npeff.models.from_nnx(Net(1)).identity(X)) == []

        class Counting(Net):
            def __call__(self, x):
                self.shift[...] += 1
                return super().__call__(x)

        with pytest.raises(ValueError, match="Counting changes itself"):
            npeff.models.from_nnx(Counting(1)).n_classes(X[0])


def frameworks():
    eqx, torch = pytest.importorskip("equinox"), pytest.importorskip("torch")
    linen, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    yield "from_equinox", eqx.nn.Linear(3, 4, key=jax.random.key(0))
    yield "from_torch", torch.nn.Linear(3, 4)
    yield "from_linen", linen.Dense(3)
    yield "from_nnx", nnx.Linear(3, 4, rngs=nnx.Rngs(0))


def test_modules_are_sent_to_their_adapter():
    compute_pefs = inspect.unwrap(npeff.compute_pefs)  # without the type checks that only the tests have
    for adapter, module in frameworks():
        with pytest.raises(TypeError, match=adapter):
            compute_pefs(module, X)
        with pytest.raises(TypeError, match=adapter):
            npeff.Model(module, {"w": W})
    with pytest.raises(TypeError, match=r"npeff_jax\.Model\(logits_fn, params\)"):
        compute_pefs(lambda p, x: x, X)
    with pytest.raises(TypeError, match=r"output=.* is a function; expected a Output: Bernoulli.*, Gaussian"):
        as_instance("output", jax.nn.softmax, npeff.models.Output)
    assert as_instance("output", npeff.Gaussian, npeff.models.Output) == npeff.Gaussian()
