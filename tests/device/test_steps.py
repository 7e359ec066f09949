"""From example to entries in one program, compiled for accelerators that this machine does not have, and read.

python -m pytest -n0 -m gpu_compile tests/device -k slice    # a minute; without -k the real shapes too
"""

import pytest
from jax.sharding import Mesh
from programs import (
    CALLBACKS,
    COLLECTIVES,
    DEVICE_SHARE,
    MEMORY,
    ForTarget,
    bert,
    compiled_step,
    count,
    figures,
    imprecise_dots,
    longest,
    mesh_of,
    model_of,
    scatters_of_selection,
)

import npeff_jax as npeff
from npeff_jax.pefs._memory import program_bytes

pytestmark = pytest.mark.gpu_compile

KEEP = 2048


def small():
    return model_of(bert(layers=1, width=128, heads=4, tokens=16, vocabulary=1000))


def check(text, keep, parameters, *, precise=True):
    """No sort longer than K, no scatter of m, nothing for the host to do, and every product as precise as it says."""
    assert longest(text, "sort") <= keep
    assert max(scatters_of_selection(text), default=0) < parameters / 100
    assert not CALLBACKS.findall(text)
    assert not precise or not imprecise_dots(text), imprecise_dots(text)[0]


@pytest.mark.parametrize(("target", "devices"), [("h100", 8), ("a100", 1), ("t4", 1)])
def test_a_slice_for_every_target(target, devices):
    model, example = small()
    mesh = mesh_of(target, devices, ("examples",))
    text, memory = compiled_step(model, npeff.LowRank(), KEEP, mesh, 4, example=example)
    check(text, KEEP, model.space.size, precise=target != "t4")
    assert not any(count(text, name) for name in COLLECTIVES), "examples are independent"
    assert memory > 4 * 8 * model.space.size


def test_a_slice_of_memory_is_what_fewer_examples_predict():
    """What `plan` says of more examples from a program for fewer, and that portions take the memory of one."""
    model, example = small()
    mesh = mesh_of("h100", 1, ("examples",))
    few, many = (compiled_step(model, npeff.LowRank(), KEEP, mesh, n, example=example)[1] for n in (4, 16))
    assert 4 * few == pytest.approx(many, rel=0.2)
    portions = ForTarget(model, npeff.LowRank(), KEEP, mesh, 4, shares=4).lowered(example).compile()
    assert program_bytes(portions) == pytest.approx(few, rel=0.2)


def test_a_slice_with_sharded_parameters():
    """On four by two devices the parameters' own collectives cross, and nothing of all rows of a batch."""
    model, example = small()
    mesh: Mesh = mesh_of("h100", 8, ("examples", "model"), (4, 2))

    def axes(leaf):
        return (None, "model") if leaf.ndim == 2 and leaf.shape[1] % 2 == 0 else ()

    text, _ = compiled_step(model, npeff.LowRank(), KEEP, mesh, 4, example=example, axes=axes)
    check(text, KEEP, model.space.size)
    largest = max(leaf.size for leaf in model.space.select(model.params))
    crossing = {name: longest(text, name) for name in COLLECTIVES if count(text, name)}
    assert crossing, "nothing crosses devices: the parameters are not sharded"
    assert max(crossing.values()) <= 4 * 2 * largest, crossing


@pytest.mark.parametrize(
    ("name", "target", "devices"),
    [
        ("bert", "h100", 1),
        ("bert", "h100", 8),
        ("bert", "a100", 1),
        ("bert", "t4", 1),
        ("resnet", "h100", 1),
        ("resnet", "t4", 1),
        ("llama", "h100", 1),
    ],
)
def test_real_shapes_at_the_size_that_is_planned(name, target, devices):
    """BERT-base, ResNet-50 and a Llama of 1.2 G parameters with K = 65,536; minutes each."""
    found = figures(name, target, devices)
    assert found["longest sort"] <= 65_536
    assert found["largest scatter of selection"] < found["parameters"] / 100
    assert found["callbacks"] == 0
    assert not found["collectives"]
    assert target == "t4" or name == "llama" or found["products without precision"] == 0
    assert found["GB per device"] * 1e9 <= DEVICE_SHARE * MEMORY[target]
