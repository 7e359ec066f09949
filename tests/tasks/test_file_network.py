"""The file-type network: its graph in float64, its gradients, and files that are not it."""

import dataclasses
import importlib.util
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npeff_jax.tasks import file_type_network
from npeff_jax.tasks._file_network import package_directory, read_onnx

needs_package = pytest.mark.skipif(importlib.util.find_spec("magika") is None, reason="magika is not installed")


@pytest.fixture(scope="module")
def model():
    return file_type_network()


@pytest.fixture(scope="module")
def windows():
    """Text, bytes of all values, a short file with padding in its middle, and repetition."""
    random = np.random.default_rng(0)
    text = np.frombuffer((b"def f(x):\n    return {'a': x + 1}\n" * 61)[:2048], np.uint8).astype(np.int32)
    noise = random.integers(0, 256, 2048).astype(np.int32)
    short = np.full(2048, 256, np.int32)
    short[:300], short[-300:] = noise[:300] // 2, noise[:300] // 2
    return np.stack([text, noise, short, text % 50])


@needs_package
def test_probabilities_are_the_graphs_in_float64(model, windows):
    pytest.importorskip("onnx")
    from onnx_in_numpy import evaluate

    path = package_directory() / "models" / "standard_v3_3" / "model.onnx"
    (expected,) = evaluate(path, {"bytes": windows}).values()
    logits = jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, windows)
    found = np.asarray(jax.nn.softmax(logits))
    assert found.shape == (4, 214)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert len(set(expected.argmax(1))) > 1


def plain_logits(params, window):
    """The same network with one-hot products and an ordinary maximum, as it was trained."""

    def norm(x, layer, axes):
        scale, bias = (jnp.expand_dims(layer[name], axes) for name in ("scale", "bias"))
        return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-6) * scale + bias

    x = jax.nn.one_hot(window, 257) @ params["embedding"]["kernel"] + params["embedding"]["bias"]
    x = norm(jax.nn.gelu(x, approximate=True).reshape(512, 256), params["norm_in"], (1,))
    kernel = jnp.moveaxis(params["convolution"]["kernel"], 0, 2)  # (channels in, width, channels out)
    x = sum(x[k : k + 508] @ kernel[:, k] for k in range(5)) + params["convolution"]["bias"]
    x = jax.nn.gelu(x, approximate=True).max(0)
    return norm(x, params["norm_out"], ()) @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@needs_package
def test_gradients_are_those_of_the_plain_network(model, windows):
    cotangent = np.random.default_rng(1).normal(size=214).astype(np.float32)

    def gradients(logits_fn):
        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.vmap(jax.grad(lambda p, x: logits_fn(p, x) @ cotangent), (None, 0)))(
                model.params, windows[:3]
            )

    found, expected = gradients(model.logits_fn), gradients(plain_logits)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)):
        error = np.linalg.norm((ours - theirs).reshape(3, -1), axis=1) / np.linalg.norm(theirs.reshape(3, -1), axis=1)
        assert (error < 1e-3).all(), (path, error)


@needs_package
def test_every_trained_value_is_a_parameter_and_no_constant_is(model):
    # 257 × 64 + 64, twice 512 + 512, 512 × 256 × 5 + 512, 512 × 214 + 214
    assert model.space.size == 784_214
    assert len(model.label_names) == 214
    assert set(model.intermediates_fn(model.params, jnp.full(2048, 256))) == {"embedded", "pooled"}


@needs_package
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is not a whole ONNX file"),
        (lambda content: content.replace(b"GlobalMaxPool", b"GlobalAvePool"), "is not the network .* its graph is"),
        (
            lambda content: content.replace(b"const_fold_opt__209", b"const_fold_opt__2o9"),
            "'const_fold_opt__209' is None",
        ),
        (lambda content: b"", "it has no graph"),
    ],
)
def test_other_and_damaged_networks_are_refused(tmp_path, damage, message):
    original = package_directory() / "models" / "standard_v3_3"
    shutil.copy(original / "config.min.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes(damage((original / "model.onnx").read_bytes()))
    with pytest.raises(ValueError, match=message):
        file_type_network(tmp_path)


@needs_package
def test_another_preprocessing_is_refused(tmp_path):
    original = package_directory() / "models" / "standard_v3_3"
    shutil.copy(original / "model.onnx", tmp_path)
    config = (original / "config.min.json").read_text()
    (tmp_path / "config.min.json").write_text(config.replace('"padding_token":256', '"padding_token":0'))
    with pytest.raises(ValueError, match=r"says padding_token=0, but this package knows the network with .*=256"):
        file_type_network(tmp_path)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps magika"):
        file_type_network()


def test_a_directory_without_the_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.onnx"):
        file_type_network(tmp_path)


def varint(value):
    head = bytes([value & 127 | 128]) if value > 127 else b""
    return head + varint(value >> 7) if head else bytes([value])


def field(number, content):
    """One field of a message, as the specification of Protocol Buffers has it."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


@dataclasses.dataclass
class Tensor:
    name: str
    values: np.ndarray
    packed: bool = True

    def encoded(self):
        shape = self.values.shape
        sizes = field(1, b"".join(map(varint, shape))) if self.packed else b"".join(field(1, size) for size in shape)
        kind = 1 if self.values.dtype == np.float32 else 7
        return sizes + field(2, kind) + field(8, self.name.encode()) + field(9, self.values.tobytes())


@pytest.mark.fast
def test_a_hand_made_file_is_read():
    tensors = [
        Tensor("a", np.arange(600, dtype=np.float32).reshape(300, 2)),
        Tensor("b", np.ones((2, 1, 3), np.float32), packed=False),
        Tensor("sizes", np.arange(2)),
        Tensor("scalar", np.float32(3.5).reshape(())),
    ]
    nodes = [field(1, b"x") + field(2, b"y") + field(4, name) for name in (b"MatMul", b"Add")]
    graph = b"".join(field(1, node) for node in nodes) + b"".join(field(5, tensor.encoded()) for tensor in tensors)
    content = field(1, 8) + field(2, b"producer") + varint(20 << 3 | 5) + b"1234" + field(7, graph)
    operations, found = read_onnx(content)
    assert operations == ["MatMul", "Add"]
    assert list(found) == ["a", "b", "scalar"]  # others than float32 are constants of the graph
    for tensor in tensors:
        if tensor.name in found:
            np.testing.assert_array_equal(found[tensor.name], tensor.values)
    for end in range(len(content) - len(field(7, graph)) + 3, len(content)):
        with pytest.raises((ValueError, IndexError)):
            read_onnx(content[:end])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (field(7, field(5, field(1, 3) + field(2, 1) + field(9, b"1234"))), "4 bytes of raw data for float32 of shape"),
        (varint(7 << 3 | 3), "of an unknown kind"),
        (b"\xff" * 12, "has no end"),
    ],
)
def test_what_a_message_cannot_be(content, message):
    with pytest.raises(ValueError, match=message):
        read_onnx(content)
