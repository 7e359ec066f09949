"""Traces against finite differences in float64, on a small attention model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npeff_jax import Model
from npeff_jax.evaluation import Tracer

TOKENS, WIDTH, CLASSES = 5, 6, 3


def stages(params, x):
    """One attention layer and one feed-forward layer, residual, read at the last position."""
    embedded = x @ params["embed"]
    scores = (embedded @ params["query"]) @ (embedded @ params["key"]).T / jnp.sqrt(WIDTH)
    attended = embedded + jax.nn.softmax(scores) @ (embedded @ params["value"])
    transformed = attended + jnp.tanh(attended @ params["up"]) @ params["down"]
    return {"embedded": embedded, "attended": attended, "transformed": transformed}


def logits(params, x):
    return stages(params, x)["transformed"][-1] @ params["head"]


@pytest.fixture
def params():
    random = np.random.default_rng(0)
    shapes = dict.fromkeys(("query", "key", "value", "up", "down"), (WIDTH, WIDTH))
    shapes |= {"embed": (4, WIDTH), "head": (WIDTH, CLASSES)}
    return {name: random.normal(size=shape) for name, shape in shapes.items()} | {"steps": np.arange(3)}


GROUPS = {"attention": ("query", "key", "value"), "mlp": ("up", "down"), "ends": ("embed", "head")}


def moved(params, direction, t):
    return {name: value + t * direction[name] if name in direction else value for name, value in params.items()}


def test_against_finite_differences(params):
    random = np.random.default_rng(1)
    x = random.normal(size=(TOKENS, 4))
    floats = {name: value for name, value in params.items() if name != "steps"}
    direction = {name: random.normal(size=value.shape) for name, value in floats.items()}
    with jax.enable_x64(True):
        trace = Tracer(Model(logits, params, intermediates_fn=stages), GROUPS)(direction | {"steps": np.zeros(3)}, x)
        step = 1e-6
        plus, minus = (jax.tree.map(np.asarray, stages(moved(params, direction, t), x)) for t in (step, -step))
        here = jax.tree.map(np.asarray, stages(params, x))
        assert trace.stages == tuple(here)
        for name, change in zip(trace.stages, trace.change, strict=True):
            numeric = np.linalg.norm((plus[name] - minus[name]) / (2 * step), axis=1) / np.linalg.norm(
                here[name], axis=1
            )
            np.testing.assert_allclose(change, numeric, rtol=1e-6)
        for row, members in zip(trace.logits, GROUPS.values(), strict=True):
            own = {name: direction[name] for name in members}
            numeric = (logits(moved(params, own, step), x) - logits(moved(params, own, -step), x)) / (2 * step)
            np.testing.assert_allclose(row, numeric, rtol=1e-6)
        whole = (logits(moved(params, direction, step), x) - logits(moved(params, direction, -step), x)) / (2 * step)
        np.testing.assert_allclose(trace.logits.sum(0), whole, rtol=1e-6)


def test_nothing_moves_before_what_was_moved(params):
    x = np.random.default_rng(1).normal(size=(TOKENS, 4)).astype(np.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    zero = jax.tree.map(np.zeros_like, params)
    trace = Tracer(Model(logits, params, intermediates_fn=stages, mask=["[a-r]*", "up", "value"]))(
        zero | {"down": np.ones((WIDTH, WIDTH), np.float32)}, x
    )
    assert not trace.change[0].any()
    assert not trace.change[1].any()
    assert trace.change[2].all()
    assert np.flatnonzero(np.abs(trace.logits).sum(1)).tolist() == [trace.groups.index("down")]


def test_bad_input_is_said(params):
    with pytest.raises(ValueError, match="exposes no intermediate values"):
        Tracer(Model(logits, params))
    with pytest.raises(ValueError, match=r"no partition of the model's 7 explained parameters \(look at embed, head"):
        Tracer(Model(logits, params, intermediates_fn=stages), {"a": ("query", "key", "value", "up", "down")})
    twice = GROUPS | {"again": ("up",)}
    with pytest.raises(ValueError, match=r"no partition of the model's 7 explained parameters \(look at up\)"):
        Tracer(Model(logits, params, intermediates_fn=stages), twice)
