"""Targets to compile for, models of real shapes without a number in them, and what to look for in programs.

python tests/device/programs.py bert:h100:1 resnet:t4:1 ...    # a line of JSON per program, in minutes each
"""

import json
import math
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import npeff_jax as npeff
from npeff_jax._machine import DEVICE_SHARE
from npeff_jax.pefs import BatchRows
from npeff_jax.pefs._keep import as_selection
from npeff_jax.pefs._memory import MOST_EXAMPLES, ON_DEVICE, program_bytes

HERE = pathlib.Path(__file__).parent

MEMORY = {"h100": 80e9, "a100": 40e9, "t4": 15e9}
"""Bytes per device."""


def mesh_of(target, devices, axes=("shards",), shape=None):
    """A mesh of accelerators that this machine does not have."""
    description = (HERE / f"{target}.txtpb").read_text()
    topology = topologies.get_topology_desc(target, "cuda", target_config=description, topology=f"1x1x{devices}")
    found = np.array(topology.devices).reshape(shape or (devices,))
    return Mesh(found, axes, axis_types=(AxisType.Auto,) * len(axes))


def spec(mesh, shape, *axes, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def imprecise_dots(text):
    """Dots that tensor cores may round to TF32: neither a precision nor an algorithm."""
    lines = [line for line in text.splitlines() if re.search(r"= f32\S* (dot|custom-call)\(", line)]
    lines = [line for line in lines if " dot(" in line or "gemm" in line]
    stated = ("operand_precision={high", "algorithm=", '"operand_precision":["HIGHEST","HIGHEST"]')
    return [line for line in lines if not any(word in line for word in stated)]


def count(text, name):
    return len(re.findall(rf" {name}(?:-start)?\(", text))


def longest(text, name):
    """The most elements of any operation of this name, 0 without one."""
    lines = re.findall(rf"= (.*?) {name}(?:-start)?\(", text)
    sizes = [math.prod(map(int, s.split(","))) for line in lines for s in re.findall(r"\w\d+\[([\d,]+)\]", line)]
    return max(sizes, default=0)


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")

CALLBACKS = re.compile(r"callback|infeed|outfeed|SendToHost|RecvFromHost", re.IGNORECASE)


def _dense(p, x):
    return x @ p["kernel"] + p["bias"]


def _linear(n_in, n_out):
    return {"kernel": (n_in, n_out), "bias": (n_out,)}


def _norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def bert(layers=12, width=768, heads=12, tokens=128, vocabulary=30522, classes=3):
    """An encoder of BERT-base's shape: 109 M parameters."""
    names = {name: _linear(width, width) for name in ("query", "key", "value", "out")}
    block = names | {"up": _linear(width, 4 * width), "down": _linear(4 * width, width)}
    block |= {name: {"scale": (width,), "bias": (width,)} for name in ("norm1", "norm2")}
    shapes = {f"layer{i}": block for i in range(layers)} | {"tokens": (vocabulary, width), "positions": (tokens, width)}
    shapes |= {"pooler": _linear(width, width), "head": _linear(width, classes)}

    def logits_fn(params, ids):
        def split(x):
            return x.reshape(tokens, heads, -1).swapaxes(0, 1)

        x = params["tokens"][ids] + params["positions"]
        for i in range(layers):
            p = params[f"layer{i}"]
            q, k, v = (split(_dense(p[name], x)) for name in ("query", "key", "value"))
            weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / (width / heads) ** 0.5)
            x = _norm(p["norm1"], x + _dense(p["out"], (weights @ v).swapaxes(0, 1).reshape(tokens, width)))
            x = _norm(p["norm2"], x + _dense(p["down"], jax.nn.gelu(_dense(p["up"], x))))
        return _dense(params["head"], jnp.tanh(_dense(params["pooler"], x[0])))

    return logits_fn, shapes, ((tokens,), "int32")


def llama(layers=16, width=2048, heads=32, groups=8, hidden=8192, tokens=128, vocabulary=128256, classes=3):
    """A decoder of the shape of a Llama of 1.2 G parameters, in bfloat16, that classifies at its last token."""
    head = width // heads
    block = {"query": (width, width), "key": (width, groups * head), "value": (width, groups * head)}
    block |= {"out": (width, width), "gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    shapes = {f"layer{i}": block | {"norm1": (width,), "norm2": (width,)} for i in range(layers)}
    shapes |= {"tokens": (vocabulary, width), "norm": (width,), "head": (width, classes)}

    def norm(scale, x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale

    def turn(x):
        angles = jnp.arange(tokens)[:, None] * 500_000.0 ** (-jnp.arange(head // 2) / (head // 2))
        a, b = jnp.split(x, 2, axis=-1)
        cosine, sine = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
        return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

    def logits_fn(params, ids):
        x = params["tokens"][ids]
        for i in range(layers):
            p = params[f"layer{i}"]
            y = norm(p["norm1"], x)
            q = turn((y @ p["query"]).reshape(tokens, heads, head))
            k, v = (jnp.repeat((y @ p[n]).reshape(tokens, groups, head), heads // groups, 1) for n in ("key", "value"))
            scores = jnp.einsum("qhd,khd->hqk", q, turn(k)) / head**0.5
            scores = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores, jnp.finfo(scores.dtype).min)
            x = x + jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(tokens, width) @ p["out"]
            y = norm(p["norm2"], x)
            x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return (norm(params["norm"], x)[-1] @ params["head"]).astype(jnp.float32)

    return logits_fn, shapes, ((tokens,), "int32")


def resnet(stages=(3, 4, 6, 3), width=64, size=224, classes=3):
    """A residual network of ResNet-50's shape, its batch statistics folded into scale and bias: 23.5 M parameters."""

    def conv(n_in, n_out, k):
        return {"kernel": (k, k, n_in, n_out), "scale": (n_out,), "bias": (n_out,)}

    shapes, n_in = {"stem": conv(3, width, 7)}, width
    for s, blocks in enumerate(stages):
        inner = width * 2**s
        for b in range(blocks):
            block = {"reduce": conv(n_in, inner, 1), "middle": conv(inner, inner, 3)}
            block["expand"] = conv(inner, 4 * inner, 1)
            shapes[f"block{s}_{b}"] = block | ({"skip": conv(n_in, 4 * inner, 1)} if b == 0 else {})
            n_in = 4 * inner
    shapes["head"] = _linear(n_in, classes)

    def apply(p, x, stride=1):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, p["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
        return x * p["scale"] + p["bias"]

    def logits_fn(params, image):
        x = jax.nn.relu(apply(params["stem"], image[None], 2))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for s, blocks in enumerate(stages):
            for b in range(blocks):
                p, stride = params[f"block{s}_{b}"], 2 if s and not b else 1
                y = jax.nn.relu(apply(p["middle"], jax.nn.relu(apply(p["reduce"], x)), stride))
                x = jax.nn.relu(apply(p["expand"], y) + (apply(p["skip"], x, stride) if "skip" in p else x))
        return _dense(params["head"], x.mean((0, 1, 2)))

    return logits_fn, shapes, ((size, size, 3), "float32")


MODELS = {"bert": bert, "resnet": resnet, "llama": llama}


def model_of(build, dtype="float32"):
    """The model, and the shape of its examples; its parameters are one number each in memory."""
    logits_fn, shapes, example = build
    nothing = np.zeros((), jnp.dtype(dtype))
    params = jax.tree.map(lambda s: np.broadcast_to(nothing, s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    return npeff.Model(logits_fn, params), example


class ForTarget(BatchRows):
    """A step for devices that are not there: shapes are passed where arrays would be placed."""

    def __init__(self, model, representation, keep, mesh, at_once, *, shares=1, precision="highest", axes=None):
        self._axes = axes or (lambda leaf: ())
        chosen, size = None if keep is None else as_selection(keep), at_once * shares * mesh.shape["examples"]
        super().__init__(model, representation, mesh, size, precision, chosen, at_once)

    def _placed(self, params, seed):
        def shape(leaf):
            return spec(self.mesh, leaf.shape, *self._axes(leaf), dtype=leaf.dtype)

        return jax.tree.map(shape, params), spec(self.mesh, (), dtype="uint32")

    def lowered(self, example):
        shape, dtype = example
        size, mesh = self.batch_size, self.mesh
        batch = spec(mesh, (size, *shape), "examples", dtype=dtype)
        numbers = spec(mesh, (size,), "examples", dtype="int32")
        with jax.default_matmul_precision(self.precision):
            return self._program(None).lower(self._params, self._seed, batch, numbers, numbers)


def scatters_of_selection(text):
    """The sizes of scatters that are no part of a gradient."""
    lines = [line for line in text.splitlines() if re.search(r" scatter\(", line) and "jvp" not in line]
    return [longest(line + "\n", "scatter") for line in lines]


def compiled_step(*args, example, **kwargs):
    """The optimised program of a step, and the bytes per device beside its arguments."""
    compiled = ForTarget(*args, **kwargs).lowered(example).compile()
    return compiled.as_text(), program_bytes(compiled)


def planned(target, model, c=2):
    """How many examples a device has room for by the first guess, without having compiled anything."""
    return max(1, min(MOST_EXAMPLES, int(DEVICE_SHARE * MEMORY[target] // (ON_DEVICE * 4 * c * model.space.size))))


def figures(name, target, devices, keep=65_536):
    """What a step of the planned size is once compiled, as a row of a table."""
    model, example = model_of(MODELS[name](), "bfloat16" if name == "llama" else "float32")
    mesh, at_once = mesh_of(target, devices, ("examples",)), planned(target, model)
    began = time.perf_counter()
    text, memory = compiled_step(model, npeff.LowRank(), keep, mesh, at_once, example=example)
    guessed = at_once
    if memory > DEVICE_SHARE * MEMORY[target]:  # as `BatchRows` does
        at_once = max(1, min(at_once - 1, int(at_once * DEVICE_SHARE * MEMORY[target] / memory)))
        text, memory = compiled_step(model, npeff.LowRank(), keep, mesh, at_once, example=example)
    return {
        "model": name,
        "target": target,
        "devices": devices,
        "parameters": model.space.size,
        "examples at once by the first guess": guessed,
        "examples at once": at_once,
        "GB per device": memory / 1e9,
        "over rows": memory / (at_once * 8 * model.space.size),
        "longest sort": longest(text, "sort"),
        "largest scatter of selection": max(scatters_of_selection(text), default=0),
        "callbacks": len(CALLBACKS.findall(text)),
        "collectives": {name: count(text, name) for name in COLLECTIVES if count(text, name)},
        "products without precision": len(imprecise_dots(text)),
        "seconds to compile": time.perf_counter() - began,
    }


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["bert:h100:1", "bert:h100:8", "bert:a100:1", "bert:t4:1"]:
        name, target, devices = argument.split(":")
        print(json.dumps(figures(name, target, int(devices))), flush=True)
