"""Identities of models, examples and PEFs, and their comparison.

An identity is a dictionary of parts, each a JSON value. A part that is None is unknown (for arrays passed by a user, or
stores written before the part was recorded) and agrees with everything.
"""

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._examples import count_examples, examples_digest, first_example, slice_examples, take_examples
from npeff_jax._types import Example, Examples, PyTree

Identity = dict[str, Any]

PARTS = {
    "parameters": "parameter values",
    "constants": "constants of the model (batch statistics, keyword arguments or static fields)",
    "function": "function (other logits for the same input)",
    "output": "output family or temperature",
    "layout": "mask or parameter shapes",
    "kind": "kind of PEFs",
    "normalization": "normalization",
    "representation": "representation",
    "keep": "keep",
    "dtype": "dtype",
    "precision": "precision",
    "examples": "examples",
    "n_examples": "number of examples",
    "n_classes": "number of classes",
}
"""The parts of an identity, and their names in messages."""

MODEL = ("parameters", "constants", "function", "output", "layout")
"""Parts that are equal for two objects of the same model."""

FISHERS = (*MODEL, "kind", "normalization")
"""Parts that PEFs of different examples must share to be combined, as checked by `fit_coefficients` and `expand`."""

EVERYTHING = tuple(PARTS)
"""Parts that a run must share with one that it resumes."""

PROBED = 8
"""Number of examples whose logits are compared with stored ones; evenly spaced, so that permutations are detected."""

TOLERANCE, TOLERANCE_16 = 1e-3, 3e-2
"""Tolerances of logits, relative to the largest: differences between devices and batch sizes in 32-bit and in 16-bit
arithmetic. Smaller changes are detected by the digests."""

SUBSET = "subset:"


def check_same(
    what_a: str,
    a: Mapping[str, Any],
    what_b: str,
    b: Mapping[str, Any],
    parts: Sequence[str] = FISHERS,
    remedy: str = "",
) -> None:
    """Raise unless two identities agree in ``parts``.

    Args:
        what_a: name of the first object in the message, such as "the decomposition".
        a: its identity: `Schema.identity` or `Model.identity`.
        what_b: name of the second object, such as "these PEFs".
        b: its identity.
        parts: parts to compare; a part unknown on either side is skipped.
        remedy: what to do, as the end of the message.

    Raises:
        ValueError: If they differ; the message names the parts, with both values where they are short.
    """
    differ = differences(a, b, parts)
    if not differ:
        return
    shown = "; ".join(f"{PARTS[part]} ({part}{_values(a[part], b[part])})" for part in differ)
    remedy = remedy or f"use {what_a} with what it was computed from"
    raise ValueError(f"{what_b} do not belong to {what_a}, they differ in: {shown}; {remedy}")


def differences(a: Mapping[str, Any], b: Mapping[str, Any], parts: Sequence[str] = EVERYTHING) -> list[str]:
    """Return the parts in which two identities differ; parts unknown on either side are skipped."""
    return [part for part in parts if not _agree(part, a.get(part), b.get(part))]


def model_identity(model: Any, examples: Examples | None = None) -> Identity:
    """Return the identity of a model: parameters, constants, output family, layout and, given examples, its function.

    Args:
        model: a `Model`.
        examples: examples of the model; only their shapes and dtypes are used.
    """
    return {
        "parameters": model.fingerprint,
        "constants": model.constants_digest,
        "function": None if examples is None else model.probe(first_example(examples)),
        "output": describe(model.output),
        "layout": model.space.layout.to_json(),
    }


def examples_identity(examples: Examples) -> Identity:
    """Return the identity of examples: a digest of all their values, and their number."""
    return {"examples": examples_digest(examples), "n_examples": count_examples(examples)}


def subset_digest(digest: str, rows: np.ndarray) -> str:
    """Return the digest of a subset (``rows``) of a set with a known digest; comparable only to other such digests."""
    if digest == "":
        return ""
    mixed = hashlib.blake2b(digest.encode(), digest_size=16)
    mixed.update(np.ascontiguousarray(rows, np.int64).data)
    return SUBSET + mixed.hexdigest()


def check_examples(what: str, identity: Mapping[str, Any], logits: np.ndarray, model: Any, examples: Examples) -> None:
    """Raise unless ``examples`` are those that PEFs of ``model`` were computed from, in the same order.

    It compares the digests, if known, and the model's logits of some examples with those stored with the PEFs. The
    logits are the only check for a subset of PEFs, and they detect a changed function with the same parameters.

    Args:
        what: name of the PEFs in the message, such as "the PEFs".
        identity: `Schema.identity` of the PEFs.
        logits: (n, C), logits stored with the PEFs.
        model: the `Model`.
        examples: examples to check.

    Raises:
        ValueError: If the number of examples, their values, their order or the logits differ.
    """
    taken = take_examples(examples)
    n = count_examples(taken)
    if n != len(logits):
        raise ValueError(f"{n} examples were given, but {what} are of {len(logits)} examples; pass those they are of")
    expected = identity.get("examples")
    digest = None if not expected or str(expected).startswith(SUBSET) else examples_digest(taken)
    if digest not in (None, expected):
        raise ValueError(
            f"the examples are not those that {what} are of (other values, another order or another type); pass the "
            "same examples in the same order"
        )
    rows = np.unique(np.linspace(0, n - 1, min(n, PROBED if digest else 8 * PROBED)).astype(int))
    rows = rows[np.isfinite(logits[rows]).all(axis=1)]
    found = _logits(model, slice_examples(taken, rows)) if rows.size else np.zeros((0, 0))
    for i, own in zip(rows, found):
        if own.shape != logits[i].shape or not _close(own, logits[i], _tolerance(model.params)):
            raise ValueError(
                f"the model's logits of example {i} are not those of {what}: another function or another example; pass "
                "the model and the examples they were computed with"
            )


def probe(model: Any, example: Example) -> list[float] | None:
    """Return a model's logits of a fixed input that depends only on the example's shapes and dtypes.

    Floating-point leaves are drawn with a fixed seed; integers and Booleans are 1, a valid index into any table.
    Returns None if the logits are not finite.
    """
    rng = np.random.default_rng(0)

    def standard(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return rng.uniform(-1.0, 1.0, np.shape(leaf)).astype(leaf.dtype)
        return np.ones(np.shape(leaf), leaf.dtype)

    example = jax.tree.map(lambda leaf: standard(np.asarray(leaf))[None], example)
    (logits,) = _logits(model, example)
    if not np.isfinite(logits).all():
        return None
    places = np.unique(np.linspace(0, logits.size - 1, min(logits.size, 64)).astype(int))
    return [float(f"{value:.6g}") for value in (*logits[places], np.linalg.norm(logits))] + [_tolerance(model.params)]


def describe(choice: Any) -> dict[str, Any]:
    """Return a configuration object as JSON: its fields, and its class name under ``"name"``."""
    if not dataclasses.is_dataclass(choice):
        return {"name": type(choice).__name__} | {k: _plain(v) for k, v in sorted(vars(choice).items())}
    fields = {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice)}
    return {"name": type(choice).__name__} | {name: _plain(value) for name, value in fields.items()}


def constants_digest(constants: Any) -> str:
    """Return a digest of what a model's function holds besides its parameters: arrays, settings, modules, functions.

    The digest is the same in another process: memory addresses and the order of sets do not enter. Functions enter by
    name and by the contents of their closures.
    """
    digest = hashlib.blake2b(digest_size=16)
    _absorb(digest.update, constants, ())
    return digest.hexdigest()


def tree_digest(tree: PyTree) -> str:
    """Return a digest of every leaf's path, shape, dtype and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path, simple=True, separator='/')}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _absorb(update: Callable[[bytes], None], value: Any, within: tuple[int, ...]) -> None:
    """Feed ``value``, of any type, to a digest; ``within`` holds the ids of enclosing objects, to detect cycles."""
    if id(value) in within or len(within) > 50:
        return update(b"<cycle>")
    within = (*within, id(value))
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return update(tree_digest(value).encode())
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | enum.Enum | np.dtype):
        return update(f"{name}:{value!r};".encode())
    if isinstance(value, type):
        return update(f"type {value.__module__}.{value.__qualname__};".encode())
    if isinstance(value, set | frozenset):
        return update(f"{name}:{sorted(constants_digest(entry) for entry in value)};".encode())
    parts: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        parts = sorted(((str(key), entry) for key, entry in value.items()), key=lambda part: part[0])
    elif isinstance(value, list | tuple):
        parts = [(str(i), entry) for i, entry in enumerate(value)]
    elif isinstance(value, functools.partial):
        parts = [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    elif dataclasses.is_dataclass(value):
        parts = [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value) if f.name != "parent"]
    elif callable(value) and hasattr(value, "__qualname__"):
        name = f"function {getattr(value, '__module__', '')}.{value.__qualname__}"
        parts = [("closure", _enclosed(value)), ("defaults", getattr(value, "__defaults__", None))]
    elif hasattr(value, "__wrapped__"):
        parts = [("wrapped", value.__wrapped__)]
    else:
        parts = [("leaves", jax.tree.leaves(value))] if not jax.tree_util.all_leaves([value]) else []
    update(f"{name}({len(parts)}:".encode())
    for key, entry in parts:
        update(f"{key}=".encode())
        _absorb(update, entry, within)
    update(b")")


def _enclosed(function: Any) -> list[Any]:
    """Return the contents of a function's closure, without variables that are not bound yet."""
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


def without_addresses(text: str) -> str:
    """Return ``text`` (a ``repr``) without memory addresses, which differ between processes."""
    return re.sub(r"0x[0-9a-fA-F]+", "", text)


def _logits(model: Any, examples: Examples) -> np.ndarray:
    """Compute logits of a few examples one at a time in the highest matmul precision, as for PEFs."""
    n = count_examples(examples)
    one = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), examples) for i in range(n)]
    with jax.default_matmul_precision("highest"), jax.disable_jit(False):
        found = [jax.device_get(model.compiled(model.params, example)) for example in one]
    return np.stack(found).astype(np.float64)


def _tolerance(params: PyTree) -> float:
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    narrow = any(jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4 for kind in types)
    return TOLERANCE_16 if narrow else TOLERANCE


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(np.all(np.abs(a - b) <= tolerance * max(float(np.abs(a).max(initial=0.0)), 1e-3)))


def _agree(part: str, a: Any, b: Any) -> bool:
    if a is None or b is None or (part == "examples" and "" in (a, b)):
        return True
    if part == "function":
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return x.shape == y.shape and _close(x[:-1], y[:-1], max(x[-1], y[-1]))
    return bool(a == b)


def _values(a: Any, b: Any) -> str:
    """Return both values as the end of a message, or an empty text if they are too long to read."""
    texts = [
        a["name"] + str({k: v for k, v in a.items() if k != "name"}) if isinstance(a, dict) else str(a) for a in (a, b)
    ]
    return f": {texts[0]} and {texts[1]}" if max(map(len, texts)) <= 120 else ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, jax.Array | np.ndarray):
        return constants_digest(value)
    return value if value is None or isinstance(value, bool | int | float | str) else constants_digest(value)
