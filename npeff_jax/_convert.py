"""Conversion of users' examples (arrays, mappings, tables, nested lists) into NumPy arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np


class ExampleError(ValueError):
    """Examples cannot be converted without a decision by the user."""


def arrays_of(value: Any, name: str) -> Any:
    """Convert ``value`` into a pytree of NumPy arrays; ``name`` is its name in error messages."""
    if is_table(value):
        value = _columns(value)
    if isinstance(value, Mapping) and jax.tree_util.all_leaves([value]):
        value = dict(value.items())  # JAX treats UserDict, BatchEncoding and subclasses of dict as leaves
    if type(value) is dict:
        if len({type(key) for key in value}) > 1:
            raise ExampleError(f"{name} has keys of different types ({few(list(value))}); name all its columns by text")
        return {key: arrays_of(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if value and all(_is_plain(entry) for entry in value):
            return _from_lists(value, name)
        if isinstance(value, list) and value and all(isinstance(e, Mapping) and _is_plain_row(e) for e in value):
            return joined([dict(entry) for entry in value], np.stack)
        return type(value)(arrays_of(entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if jax.tree_util.all_leaves([value]):
        return _array(value, name)
    nested = (list, tuple, dict)
    found, tree = jax.tree_util.tree_flatten_with_path(value, lambda v: v is not value and isinstance(v, nested))
    return jax.tree.unflatten(tree, [arrays_of(leaf, name + jax.tree_util.keystr(path)) for path, leaf in found])


def _array(value: Any, name: str) -> Any:
    """Convert one leaf to NumPy in native byte order; lazy arrays of other libraries are returned unchanged."""
    kind = type(value)
    origin = kind.__module__.split(".")[0]
    if isinstance(value, np.ma.MaskedArray):
        raise ExampleError(f"{name} is a masked array; fill it (.filled(value)), or pass its mask as an own leaf")
    if isinstance(value, str | bytes) or origin == "PIL":
        what = "an image" if origin == "PIL" else "text"
        raise ExampleError(f"{name} is {what}; encode it first with the model's tokenizer or image processor")
    if kind.__module__.startswith("scipy.sparse"):
        raise ExampleError(f"{name} is a sparse matrix; pass .toarray(), or a source that gives dense slices")
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise ExampleError(f"{name} holds random keys; pass what they are to draw, or jax.random.key_data of them")
    if hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise TypeError(only_iterated(value, name))
    if origin == "torch":
        return plain_array(_from_torch(value, name), name)
    if isinstance(value, jax.Array):
        return np.asarray(jax.device_get(value))
    if isinstance(value, bool | int | float | complex):
        return _narrowed(np.asarray(value), name)
    if hasattr(value, "to_numpy"):  # a pandas or polars column, by position
        return plain_array(np.asarray(value.to_numpy()), name)
    if isinstance(value, np.ndarray | np.generic):
        return plain_array(np.asarray(value), name)
    if not is_array(value):
        raise ExampleError(f"{name} is of type {kind.__name__}, which is no array; pass arrays, or one sized source")
    lazy = hasattr(value, "__getitem__") and hasattr(value, "__len__") and np.ndim(value) > 0
    return value if lazy else plain_array(np.asarray(value), name)


def plain_array(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of numbers in native byte order, or raise if JAX could not take its values unchanged."""
    if array.dtype.kind == "O":
        entries = array.tolist() if array.ndim else [array.item()]
        if all(_is_plain(entry) or isinstance(entry, np.ndarray) for entry in entries):
            return _from_lists(entries, name)
        if any(entry is None for entry in entries):
            raise ExampleError(f"{name} has empty entries (None); fill or drop them")
        texts = any(isinstance(entry, str) for entry in entries)
        what = "texts; tokenize first, and leave this out" if texts else "Python objects; pass arrays of numbers"
        raise ExampleError(f"{name} holds {what}")
    if array.dtype.kind in "US":
        raise ExampleError(f"{name} holds texts; tokenize first, and leave this out")
    if array.dtype.kind in "Mm" or array.dtype.names is not None:
        raise ExampleError(f"{name} has dtype {array.dtype}; convert it to numbers, an array for each field")
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        raise ExampleError(f"{name} has dtype {array.dtype}, which JAX does not know; convert it to float32 or float64")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _from_lists(rows: Sequence[Any], name: str) -> np.ndarray:
    """Convert nested lists of numbers to an array of the dtype that JAX would give them."""
    try:
        array = np.asarray(rows)
    except (ValueError, OverflowError) as error:
        raise ExampleError(f"{name} has rows of different lengths, or integers beyond 64 bits; pad them") from error
    if array.dtype.kind == "O":
        raise ExampleError(f"{name} has integers beyond 64 bits; shrink them")
    return _narrowed(array, name)


def _from_torch(tensor: Any, name: str) -> np.ndarray:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ExampleError(
            f"{name} is a {type(tensor).__name__}, which is no tensor; pass tensors or a map-style data set"
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ExampleError(f"{name} is a sparse or quantized tensor; pass .to_dense() or .dequantize() of it")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:  # not in NumPy: reinterpret the bits as JAX's bfloat16
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def joined(rows: list[Any], join: Callable[[list[Any]], np.ndarray]) -> Any:
    """Join the pytrees of several examples, or parts, into one pytree, with ``join`` applied to each leaf."""
    taken = [arrays_of(row, "an example") for row in rows]
    trees = {jax.tree.structure(row) for row in taken}
    if len(trees) > 1:
        raise ExampleError("the examples of this source have different fields; give each the same")
    try:
        return jax.tree.map(lambda *leaves: checked(join(list(leaves)), "examples"), *taken)
    except ValueError as error:
        raise ExampleError(f"the examples of this source have different shapes ({error}); pad them to one") from error


def checked(array: np.ndarray, name: str) -> np.ndarray:
    """Return the array after checking that its 64-bit integers fit into 32 bits, to which JAX narrows them."""
    wide: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size and not wide:
        limits = np.iinfo(np.int32 if array.dtype.kind == "i" else np.uint32)
        if array.max() > limits.max or array.min() < limits.min:
            raise ExampleError(
                f"{name} has integers beyond 32 bits ({array.min()} to {array.max()}), which JAX would cut off; shrink "
                "them, or set jax_enable_x64"
            )
    return array


def _narrowed(array: np.ndarray, name: str) -> np.ndarray:
    """Return the array in the dtype that JAX would give its values."""
    array = checked(array, name)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)) if array.dtype.kind in "iuf" else array


def _columns(table: Any) -> dict[Any, Any]:
    """Return the columns of a pandas, polars or Arrow table as a mapping from names to NumPy arrays."""
    names = list(table.column_names if hasattr(table, "column_names") else table.columns)
    if len(set(names)) < len(names):
        raise ExampleError(f"the table has columns of the same name ({few(names)}); rename them")
    if not hasattr(table, "iloc"):
        exact = {"zero_copy_only": False} if type(table).__name__ == "RecordBatch" else {}
        return {name: table[name].to_numpy(**exact) for name in names}
    return {name: table.iloc[:, i].to_numpy() for i, name in enumerate(names)}


def is_table(value: Any) -> bool:
    origin = type(value).__module__.split(".")[0]
    return origin in ("pandas", "polars", "pyarrow") and type(value).__name__ in ("DataFrame", "Table", "RecordBatch")


def is_array(value: Any) -> bool:
    """Return whether ``value`` is an array of any library, lazy arrays included."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_plain(value: Any) -> bool:
    """Return whether ``value`` is a number, or a non-empty list of numbers at any depth."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(_is_plain(entry) for entry in value)
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _is_plain_row(row: Mapping[Any, Any]) -> bool:
    return len(row) > 0 and all(_is_plain(entry) for entry in row.values())


def only_iterated(value: Any, name: str = "examples") -> str:
    kind = type(value).__name__
    remedy = "its data set (loader.dataset), or " if hasattr(value, "dataset") else ""
    return (
        f"{name} is a {kind}, which can only be iterated, but examples are read by position and more than once; pass "
        f"{remedy}arrays: np.stack of examples, or jax.tree.map(lambda *a: np.concatenate(a), *batches)"
    )


def few(values: Any) -> str:
    shown = [str(value) for value in list(values[:4])]
    return ", ".join(shown) + (", …" if len(values) > 4 else "")
