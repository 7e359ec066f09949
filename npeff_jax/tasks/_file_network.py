"""The file-type network, which classifies 2,048 bytes of a file into 214 types; trained in Flax, published as ONNX.

The weights are those of the package magika (Apache-2.0). Only two of its files are read; neither magika nor its
dependencies are imported. The model is the graph of the ONNX file, operation by operation, with two changes that
preserve all values: an embedding table instead of one-hot products, and a maximum over positions whose gradient passes
through one window per channel only.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._types import PyTree
from npeff_jax.models import Model

PADDING = 256
"""Token that stands for no byte."""

WINDOW = 1024
"""Number of bytes from the start of a file, and from its end."""

_CONFIG = {
    "beg_size": WINDOW,
    "mid_size": 0,
    "end_size": WINDOW,
    "padding_token": PADDING,
    "block_size": 4096,
    "min_file_size_for_dl": 8,
    "use_inputs_at_offsets": False,
}
"""Values required in the package's configuration for `read_window` to apply."""

_GRAPH = "b507d2448b234919"
"""BLAKE2b digest of the graph's operations in order, which distinguishes other networks with the same shapes."""

_LAYER = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"
_PARAMETERS = {
    "embedding/kernel": ("jax2tf_get_logits_/Const:0", (257, 64)),
    "embedding/bias": (f"{_LAYER}Dense_0/Reshape:0", (64,)),
    "norm_in/scale": (f"{_LAYER}LayerNorm_0/Reshape_2:0", (512,)),
    "norm_in/bias": (f"{_LAYER}LayerNorm_0/Reshape_3:0", (512,)),
    "convolution/kernel": (f"{_LAYER}Conv_0/transpose_3:0", (512, 256, 5)),
    "convolution/bias": ("const_fold_opt__209", (512,)),
    "norm_out/scale": (f"{_LAYER}LayerNorm_1/Reshape_2:0", (512,)),
    "norm_out/bias": (f"{_LAYER}LayerNorm_1/Reshape_3:0", (512,)),
    "classifier/kernel": ("jax2tf_get_logits_/Const_24:0", (512, 214)),
    "classifier/bias": (f"{_LAYER}Dense_1/Reshape:0", (214,)),
}
"""Name and shape (without axes of size 1) in the ONNX file for each of our parameters. Its other initialisers are
constants of the graph."""


def file_type_network(directory: str | os.PathLike[str] | None = None) -> Model:
    """Load the file-type network with its published weights: 784,214 parameters, 214 types.

    An example is a (2048,) integer array as returned by `read_window`: the first and last 1,024 bytes of a file, with
    256 for no byte. ``Model.intermediates_fn`` gives ``"embedded"`` (512, 256), with four bytes per position, and
    ``"pooled"`` (512,), the maximum of each channel over positions.

    Args:
        directory: directory with ``model.onnx`` and ``config.min.json`` of the network ``standard_v3_3``; by default
            that of the installed package magika.

    Raises:
        FileNotFoundError: the package is not installed, or the directory lacks these files.
        ValueError: the files are damaged, or of another network.
    """
    directory = _installed() if directory is None else pathlib.Path(directory)
    for name in ("model.onnx", "config.min.json"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} has no {name}; expected the files of magika's network standard_v3_3")
    names = _label_names(directory / "config.min.json")
    params = _parameters(directory / "model.onnx")
    return Model(_logits, params, intermediates_fn=_intermediates, label_names=names)


def _installed() -> pathlib.Path:
    """Return the directory of the network in the installed package, without importing it (that needs onnxruntime)."""
    return package_directory() / "models" / "standard_v3_3"


def package_directory() -> pathlib.Path:
    """Return the directory of the installed package magika.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec("magika")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "the file-type network is in the package magika, which is not installed; "
            "pip install --no-deps magika==1.0.3 (only its files are read, so nothing it depends on is needed)"
        )
    return pathlib.Path(found.submodule_search_locations[0])


def _label_names(path: pathlib.Path) -> tuple[str, ...]:
    config = json.loads(path.read_text(encoding="utf-8"))
    wrong = [key for key, value in _CONFIG.items() if config.get(key) != value]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path} says {key}={config.get(key)!r}, but this package knows the network with {key}={_CONFIG[key]!r}; "
            "pip install --no-deps magika==1.0.3"
        )
    return tuple(config["target_labels_space"])


def _logits(params: PyTree, window: Int[Array, "2048"]) -> Float[Array, "214"]:
    x = _layer_norm(_pooled(params, _embedded(params, window)), params["norm_out"]["scale"], params["norm_out"]["bias"])
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def _intermediates(params: PyTree, window: Int[Array, "2048"]) -> dict[str, jax.Array]:
    embedded = _embedded(params, window)
    return {"embedded": embedded, "pooled": _pooled(params, embedded)}


def _embedded(params: PyTree, window: Int[Array, "2048"]) -> Float[Array, "512 256"]:
    """Embed each byte as 64 numbers, concatenate four bytes per position, and normalise each position."""
    table = _gelu(params["embedding"]["kernel"] + params["embedding"]["bias"])
    x = table[window].reshape(512, 256)
    return _layer_norm(x, params["norm_in"]["scale"][:, None], params["norm_in"]["bias"][:, None])


def _pooled(params: PyTree, x: Float[Array, "512 256"]) -> Float[Array, "512"]:
    """Compute a convolution of width 5 without padding, GELU, and the maximum of each channel over 508 positions.

    The argmax is computed first, without a gradient, and the value there is computed again from its window. Since the
    gradient of a maximum passes through one position only, it is the same, at 1/500 of the cost.
    """
    kernel, bias = params["convolution"]["kernel"], params["convolution"]["bias"]
    # One matrix product: on a CPU, XLA's convolution is several times slower inside a loop, which measures moves.
    fixed, weights = jax.lax.stop_gradient((x, kernel.reshape(512, 256, 5)))
    flat = jnp.concatenate([fixed[k : k + 508] for k in range(5)], axis=1)
    everywhere = flat @ weights.transpose(2, 1, 0).reshape(1280, 512)
    place = jnp.argmax(_gelu(everywhere + jax.lax.stop_gradient(bias)), axis=0)
    windows = x[place[:, None] + jnp.arange(5)]
    return _gelu(jnp.einsum("okc,ock->o", windows, kernel.reshape(512, 256, 5)) + bias)


def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalise over the first axis, with the variance as E[x²] − E[x]², as in the graph."""
    mean = jnp.mean(x, 0)
    variance = jnp.maximum(jnp.mean(x * x, 0) - mean * mean, 0.0)
    return (x - mean) * (scale / jnp.sqrt(variance + 1e-6)) + bias


def _gelu(x: jax.Array) -> jax.Array:
    """Compute the tanh approximation of GELU; 0.7978846 is sqrt(2/π)."""
    return 0.5 * x * (1.0 + jnp.tanh(0.7978846 * (x + 0.044715 * x * x * x)))


def _parameters(path: pathlib.Path) -> PyTree:
    """Read the parameters from an ONNX file, by layer.

    Raises:
        ValueError: the file is truncated, or its graph, a name, a shape or a dtype differs.
    """
    try:
        operations, tensors = read_onnx(path.read_bytes())
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole ONNX file ({error}); install magika again") from error
    graph = hashlib.blake2b(" ".join(operations).encode(), digest_size=8).hexdigest()
    params: dict[str, dict[str, jax.Array]] = {}
    for ours, (theirs, shape) in _PARAMETERS.items():
        found = tensors.get(theirs)
        got = None if found is None else tuple(size for size in found.shape if size > 1)
        if found is None or got != shape or found.dtype != np.float32 or graph != _GRAPH:
            raise ValueError(
                f"{path} is not the network that this package knows, standard_v3_3 of magika 1.0.3: its graph is "
                f"{graph}, expected {_GRAPH}, and {theirs!r} is {got}, expected {shape} of float32; "
                "pip install --no-deps magika==1.0.3"
            )
        layer, name = ours.split("/")
        params.setdefault(layer, {})[name] = jnp.asarray(found.reshape(shape))
    return params


def read_onnx(content: bytes) -> tuple[list[str], dict[str, np.ndarray]]:
    """Read the operations of an ONNX file in order, and its float32 initialisers.

    An ONNX file is a Protocol Buffers message. These fields are read: the graph (7) of a model; nodes (1) and
    initialisers (5) of a graph; the operation (4) of a node; shape (1), type (2), name (8) and raw data (9) of a
    tensor.

    Raises:
        ValueError: a field is truncated or of an unknown type, or the length of a tensor's data contradicts its shape.
    """
    operations, tensors = [], {}
    graph = next((value for field, value in _fields(memoryview(content)) if field == 7), None)
    if not isinstance(graph, memoryview):
        raise ValueError("it has no graph")
    for field, value in _fields(graph):
        if field == 1 and isinstance(value, memoryview):
            operations += [bytes(v).decode() for f, v in _fields(value) if f == 4 and isinstance(v, memoryview)]
        if field == 5 and isinstance(value, memoryview):
            name, tensor = _tensor(value)
            if tensor is not None:
                tensors[name] = tensor
    return operations, tensors


def _tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    """Return the name and the values of an initialiser; values are None if it is not float32."""
    shape: list[int] = []
    kind, name, data = 0, "", b""
    for field, value in _fields(message):
        if field == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif field == 9 and isinstance(value, memoryview):
            data = bytes(value)
    if kind != 1:  # FLOAT
        return name, None
    if len(data) != 4 * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{name!r} has {len(data)} bytes of raw data for float32 of shape {tuple(shape)}")
    return name, np.frombuffer(data, "<f4").reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field of a message; values are integers or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or (_varint(message, at) if key & 7 == 2 else (-1, at))
        if size < 0 or at + size > len(message):
            raise ValueError(f"field {key >> 3} at byte {at} is cut off or of an unknown kind")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Decode a varint (seven bits per byte, least significant first); return it and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"an integer at byte {at} has no end")


def _varints(message: memoryview) -> list[int]:
    at, found = 0, []
    while at < len(message):
        value, at = _varint(message, at)
        found.append(value)
    return found
