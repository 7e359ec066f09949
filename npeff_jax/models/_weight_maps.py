"""Maps from a checkpoint's names to a parameter pytree, by regular expressions, one map per architecture."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from npeff_jax._checks import listing
from npeff_jax._types import Example, PyTree
from npeff_jax.models._checkpoint import Tensors

NOTHING = r"(?!)"
"""A pattern that matches no name."""


def keep(tensor: np.ndarray) -> np.ndarray:
    """Return a weight as it is stored."""
    return tensor


def transpose(tensor: np.ndarray) -> np.ndarray:
    """Convert the weight of a linear layer from PyTorch's (out, in) to Flax's (in, out)."""
    return tensor.T


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """Convert a convolution kernel from PyTorch's (out, in, height, width) to Flax's (height, width, in, out)."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


@dataclasses.dataclass(frozen=True)
class Rule:
    """A map from a name in a checkpoint to a variable.

    Attributes:
        pattern: a regular expression that matches the whole name in the checkpoint.
        path: path of the variable, separated by slashes, with groups of the pattern as in `re.Match.expand`.
        convert: function that converts the layout of the array.
    """

    pattern: str
    path: str
    convert: Callable[[np.ndarray], np.ndarray] = keep


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Hugging Face model class for one configuration.

    Attributes:
        module: the Linen module. It maps an example, or examples with leading batch axes, to logits; intermediate
            values are sown into ``"intermediates"`` at the top level.
        rules: rules from a checkpoint's names to the module's variables.
        example: an example with arbitrary values, for shapes.
        ignored: patterns of names that a checkpoint may contain and the module does not need.
        head: pattern of the paths of variables that belong to the classification head.
        base_prefix: prefix of the base model's names in a checkpoint with a head; absent in one without a head.
        is_language_model: whether its classes are tokens rather than the configuration's labels.
    """

    module: Any
    rules: tuple[Rule, ...]
    example: Example
    ignored: tuple[str, ...] = ()
    head: str = r"params/classifier/.*"
    base_prefix: str = ""
    is_language_model: bool = False


def linear(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Return the rules for the weight and bias of a linear layer."""
    kernel = Rule(rf"{pattern}\.weight", f"params/{path}/kernel", transpose)
    return kernel, Rule(rf"{pattern}\.bias", f"params/{path}/bias")


def layer_norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Return the rules for a LayerNorm, whose weights are named gamma and beta in checkpoints from TensorFlow."""
    scale = Rule(rf"{pattern}\.(?:weight|gamma)", f"params/{path}/scale")
    return scale, Rule(rf"{pattern}\.(?:bias|beta)", f"params/{path}/bias")


def map_weights(
    tensors: Tensors, rules: Sequence[Rule], expected: PyTree, *, ignored: Sequence[str] = (), absent: str = NOTHING
) -> dict[str, Any]:
    """Map the weights of a checkpoint to the variables of a Flax module.

    Args:
        tensors: weights of the checkpoint, by name.
        rules: rules of the architecture; the first that matches a name applies.
        expected: shapes of the module's variables, from ``jax.eval_shape`` of its ``init``.
        ignored: patterns of names that a checkpoint may contain and the model does not need.
        absent: pattern of paths that may be missing from the checkpoint (a new head); they are left out of the result.

    Returns:
        Nested dictionaries like ``expected``, of NumPy arrays with the checkpoint's dtypes.

    Raises:
        ValueError: weights are missing, unknown or of the wrong shape; the message names them.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_paths(expected).items()}
    found: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    unknown, misshapen = [], []
    for name, tensor in tensors.items():
        path, convert = _target(name, rules)
        if path in shapes and not re.fullmatch(absent, path):
            converted = convert(tensor)
            if path in found and not _same(found[path], converted):
                raise ValueError(
                    f"the checkpoint has {path} twice, as {sources[path]} and as {name}, with different values; "
                    "remove the one that is not the model's"
                )
            found[path], sources[path] = converted, name
            if found[path].shape != shapes[path]:
                misshapen.append(f"{name} is {found[path].shape} as {path}, expected {shapes[path]}")
        elif path not in shapes and not any(re.fullmatch(pattern, name) for pattern in ignored):
            unknown.append(name)
    missing = [path for path in shapes if path not in found and not re.fullmatch(absent, path)]
    problems = [("missing", missing), ("not part of the model", unknown), ("of another shape", misshapen)]
    if any(names for _, names in problems):
        told = "; ".join(f"{len(names)} {what}: {listing(names)}" for what, names in problems if names)
        raise ValueError(f"the checkpoint does not fit its configuration: weights {told}")
    return nest_paths(found)


def without_prefix(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """Remove ``prefix`` from the names of weights that have it.

    Raises:
        ValueError: two weights of different values would have the same name.
    """
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        if short in found and not _same(found[short], tensor):
            raise ValueError(
                f"the checkpoint has both {prefix}{short} and {short}, with different values; remove the one that is "
                "not the model's"
            )
        found[short] = tensor
    return found


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b))


def _target(name: str, rules: Sequence[Rule]) -> tuple[str | None, Callable[[np.ndarray], np.ndarray]]:
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return match.expand(rule.path), rule.convert
    return None, keep


def flatten_paths(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by path, separated by slashes."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten_paths(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nest_paths(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries from leaves by path; the inverse of `flatten_paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
