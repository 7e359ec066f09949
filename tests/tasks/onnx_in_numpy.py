"""An ONNX graph evaluated node by node in float64: the oracle of networks that come as ONNX files."""

import numpy as np
import onnx
from onnx import numpy_helper

_ELEMENTWISE = {
    **{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Max": np.maximum, "Equal": np.equal},
    **{"Tanh": np.tanh, "Sqrt": np.sqrt, "Exp": np.exp, "Reciprocal": np.reciprocal, "MatMul": np.matmul},
}
_TYPES = {1: np.float64, 6: np.int64, 7: np.int64}  # FLOAT widened, INT32 widened, INT64


def evaluate(path, inputs):
    """The graph's outputs by name, every floating-point value in float64."""
    graph = onnx.load(path).graph
    values = {tensor.name: _wide(numpy_helper.to_array(tensor)) for tensor in graph.initializer} | inputs
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        (output,) = node.output
        values[output] = _apply(node.op_type, [values[name] for name in node.input], attributes)
    return {output.name: values[output.name] for output in graph.output}


def _wide(array):
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def _apply(operation, inputs, attributes):
    x, *rest = inputs
    if operation in _ELEMENTWISE:
        return _ELEMENTWISE[operation](*inputs)
    if operation == "Reshape":
        return x.reshape(rest[0])
    if operation == "Shape":
        return np.array(x.shape)
    if operation == "Cast":
        return x.astype(_TYPES[attributes["to"]])
    if operation == "Concat":
        return np.concatenate(inputs, attributes["axis"])
    if operation == "Expand":
        return x * np.ones(rest[0], x.dtype)
    if operation == "ReduceSum":
        return x.sum(tuple(rest[0]), keepdims=bool(attributes["keepdims"]))
    if operation == "ReduceMax":
        return x.max(tuple(attributes["axes"]), keepdims=bool(attributes["keepdims"]))
    if operation == "GlobalMaxPool":
        return x.max(tuple(range(2, x.ndim)), keepdims=True)
    if operation == "Transpose":
        return x.transpose(attributes["perm"])
    if operation == "Unsqueeze":
        return np.expand_dims(x, tuple(rest[0]))
    if operation == "Squeeze":
        return np.squeeze(x, tuple(rest[0]))
    if operation == "Slice":
        return x[_slices(x.ndim, *rest)]
    if operation == "Conv":
        return _convolve(x, rest[0])
    raise NotImplementedError(operation)


def _slices(ndim, starts, ends, axes=None, steps=None):
    chosen = [slice(None)] * ndim
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen[axis] = slice(start, end, step)
    return tuple(chosen)


def _convolve(x, kernel):
    """Without padding or strides, along the first of two spatial axes; the second has length one."""
    width = kernel.shape[2]
    length = x.shape[2] - width + 1
    return sum(
        np.einsum("ncls,ocs->nols", x[:, :, k : k + length], kernel[:, :, k], optimize=True) for k in range(width)
    )
