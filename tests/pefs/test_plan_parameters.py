"""What represents a Fisher by default, and what each choice of parameters would take."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.pefs import default_representation, parameter_choices, plan_parameters


def network(n_classes=3):
    rng = np.random.default_rng(0)
    params = {
        f"layer_{i}": {"attention": rng.normal(size=(4, 4)), "mlp": rng.normal(size=(4, 4))} for i in range(4)
    } | {"head": rng.normal(size=(4, n_classes))}
    params = jax.tree.map(jnp.float32, params)

    def logits(params, x):
        for i in range(4):
            x = jnp.tanh(x @ params[f"layer_{i}"]["attention"] + x) @ params[f"layer_{i}"]["mlp"]
        return x @ params["head"]

    return npeff.Model(logits, params)


EXAMPLES = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)


def test_groups_of_parameters_by_name():
    model = network()
    choices = parameter_choices(model)
    assert list(choices) == ["all", "attention", "feed-forward", "head", "last layer", "last half of the layers"]
    assert choices["last layer"] == ("layer_3/attention", "layer_3/mlp")
    assert len(choices["last half of the layers"]) == 4
    torchlike = npeff.Model(lambda p, x: x, {"h.0.attn.lora_A": jnp.ones(2), "h.1.attn.q_proj": jnp.ones(3)})
    assert parameter_choices(torchlike) == {
        "all": ("h.0.attn.lora_A", "h.1.attn.q_proj"),
        "LoRA": ("h.0.attn.lora_A",),
        "last layer": ("h.1.attn.q_proj",),
    }


def test_a_plan_for_each_choice():
    model = network()
    plans = plan_parameters(model, EXAMPLES, choices={"all": None, "attention": "*attention"})
    assert plans.n_parameters == {"all": 140, "attention": 64}
    for name, mask in plans.choices.items():
        alone = npeff.plan(npeff.Model(model.logits_fn, model.params, mask=mask), EXAMPLES, n_sampled=2)
        assert plans.plans[name].keep == alone.keep
        np.testing.assert_allclose(plans.plans[name].fisher_error, alone.fisher_error, rtol=1e-4, atol=1e-5)
        assert plans.plans[name].memory_bytes == alone.memory_bytes
    lines = str(plans).splitlines()
    assert lines[0].split() == ["parameters", "m", "memory", "time", "keep", "error"]
    assert lines[2].startswith("attention  ")
    with pytest.raises(ValueError, match="leaves no floating-point parameter"):
        plan_parameters(model, EXAMPLES, choices={"none": "nothing*"})


def test_what_does_not_fit_is_a_line_of_the_table(monkeypatch):
    monkeypatch.setattr("npeff_jax.pefs._memory.free_memory_of", lambda devices: 3 * 2 * 4 * 100.0)
    plans = plan_parameters(network(), EXAMPLES, choices={"all": None, "attention": "*attention"})
    assert list(plans.plans) == ["attention"]
    assert "does not fit" in str(plans)
    assert "dense rows of one example are" in plans.refused["all"]


def test_many_classes_do_not_take_a_pass_each_unawares(caplog):
    assert default_representation(npeff.Categorical(), 65) == npeff.LowRank()
    large = default_representation(npeff.Categorical(), 66)
    assert large == npeff.LowRank(max_rows=16, sketch=24)
    assert default_representation(npeff.Generated(), 8) == npeff.LowRank()
    assert default_representation(npeff.Categorical(), 256_000).n_rows(npeff.Categorical(), 256_000) == 24
    with caplog.at_level(logging.WARNING, "npeff_jax"):
        pefs = npeff.compute_pefs(network(70), EXAMPLES[:2], progress=False)
    assert "70 classes: representation LowRank" in caplog.text
    assert pefs.schema.representation["sketch"] == 24
    exact = npeff.compute_pefs(network(70), EXAMPLES[:2], npeff.LowRank(), progress=False)
    np.testing.assert_allclose(pefs.norms, exact.norms, rtol=0.02)  # sixteen rows hold nearly all of it
    caplog.clear()
    with caplog.at_level(logging.WARNING, "npeff_jax"):
        npeff.plan(network(500), EXAMPLES, npeff.LowRank(), n_sampled=1, keep=[8])
    assert "takes up to 499 backward passes for each example of 500 classes" in caplog.text
