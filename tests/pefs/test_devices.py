"""Per-example rows on eight devices, over several mesh shapes, against a Python loop that maps nothing.

Automatic partitioning gives wrong kernel gradients of convolutions without an error on some of these meshes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_problems import stacked
from jax.sharding import NamedSharding, PartitionSpec

import npeff_jax as npeff

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def convolution():
    params = {"kernel": normal(3, 3, 2, 8), "head": normal(8, 4)}

    def logits_fn(p, x):
        layout = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(x[None], p["kernel"], (1, 1), "SAME", dimension_numbers=layout)
        return jax.nn.relu(hidden).mean((0, 1, 2)) @ p["head"]

    return npeff.Model(logits_fn, params), RNG.normal(size=(19, 6, 6, 2)).astype(np.float32)


def attention():
    params = {name: normal(8, 8) for name in ("query", "key", "value")} | {"table": normal(11, 8), "head": normal(8, 3)}

    def logits_fn(p, tokens):
        x = p["table"][tokens]
        weights = jax.nn.softmax((x @ p["query"]) @ (x @ p["key"]).T)
        hidden = x + weights @ (x @ p["value"])
        hidden = (hidden - hidden.mean(-1, keepdims=True)) / jnp.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
        return jax.nn.gelu(hidden, approximate=False)[0] @ p["head"]

    return npeff.Model(logits_fn, params), RNG.integers(0, 11, (19, 5))


@functools.cache
def tracr():
    """A compiled program, reversing its input in two layers."""
    pytest.importorskip("tracr")
    from tracr.compiler import compiling, lib
    from tracr.rasp import rasp

    compiled = compiling.compile_rasp_to_model(lib.make_reverse(rasp.tokens), {"a", "b", "c"}, max_seq_len=4)
    tokens = [list(RNG.choice(list("abc"), 4)) for _ in range(11)]
    # Compiled weights saturate attention and most gradients vanish: smaller ones with noise make every parameter count.
    model = npeff.models.from_tracr(compiled, position=1, temperature=0.5)
    noisy = jax.tree.map(lambda leaf: leaf * 0.2 + 0.1 * RNG.normal(size=leaf.shape).astype(np.float32), model.params)
    return dataclasses.replace(model, params=noisy), np.asarray(npeff.models.encode_tokens(compiled, tokens))


def looped(model, x):
    """Normalised Fishers by reverse-mode Jacobians, one example after the other."""
    jacobian_fn, logits_fn, fishers = jax.jit(jax.jacrev(model.logits_fn)), jax.jit(model.logits_fn), []
    for example in x:
        jacobian = jacobian_fn(model.params, example)
        J = np.concatenate(
            [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)], 1
        )
        p = np.asarray(jax.nn.softmax(logits_fn(model.params, example)), np.float64)
        F = J.T @ (np.diag(p) - np.outer(p, p)) @ J
        fishers.append(F / np.linalg.norm(F))
    return np.array(fishers)


@pytest.mark.parametrize("build", [convolution, attention])
@pytest.mark.parametrize("model_axis", [1, 2, 4])
@pytest.mark.parametrize("shard_parameters", [False, True])
def test_every_mesh_gives_the_rows_of_a_loop(build, model_axis, shard_parameters):
    assert jax.device_count() == 8
    model, x = build()
    mesh = npeff.make_mesh(model=model_axis)
    expected = looped(model, x)
    if shard_parameters:
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * (model.params["head"].ndim - 2), "model", None))
        params = model.params | {"head": jax.device_put(model.params["head"], sharding)}
        model = npeff.Model(model.logits_fn, params)
    pefs = npeff.compute_pefs(model, x, mesh=mesh, progress=False)
    found = np.array([rows.T @ rows for rows in stacked(pefs)])
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("model_axis", [1, 2, 4])
def test_every_mesh_gives_the_rows_of_a_compiled_program(model_axis):
    model, x = tracr()
    pefs = npeff.compute_pefs(model, x, mesh=npeff.make_mesh(model=model_axis), progress=False)
    assert pefs.kept_energy.min() > 0.9999
    jacobian_fn = jax.jit(jax.jacrev(model.logits_fn))
    probabilities_fn = jax.jit(lambda params, x: model.output.probabilities(model.logits_fn(params, x)))
    probes = np.random.default_rng(1).normal(size=(model.space.size, 3))
    for rows, norm, example in zip(stacked(pefs), pefs.norms, x, strict=True):
        jacobian = jacobian_fn(model.params, example)
        J = np.concatenate(
            [np.asarray(leaf, float).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)], 1
        )
        p = np.asarray(probabilities_fn(model.params, example), np.float64)
        S = (np.diag(p) - np.outer(p, p)) / model.output.temperature**2
        expected = J.T @ (S @ (J @ probes))
        found = norm * (rows.T.astype(float) @ (rows.astype(float) @ probes))
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
