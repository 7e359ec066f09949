"""The one way in for examples: what people have, turned into pytrees of NumPy arrays, by position.

Examples are a pytree of arrays that share a leading axis, anything that stands for one (a mapping that JAX does not
know, a pandas table, lists of numbers, torch tensors), or a sized source that is read a part at a time. Everything else
is refused by name: a silent conversion that drops a mask or counts keys as examples gives wrong numbers.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from npeff_jax._types import Example, Examples

CHUNK = 1024
"""Examples read together by `examples_digest`: a source is never in memory as a whole."""


class Source:
    """A sized source, read by position: whatever of slices, index arrays, lists and integers it takes.

    Examples:
        >>> read = Source([{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}])
        >>> read[0:2]["x"].shape
        (2, 2)
    """

    def __init__(self, source: Any) -> None:
        """Wrap an object with ``__len__`` and ``__getitem__``."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: Any) -> Examples:
        """The examples at a slice or an integer array, as a pytree of NumPy arrays with that many rows."""
        index = np.arange(len(self))[rows]
        ways: list[Callable[[], Any]] = [
            lambda: self._source[index],
            lambda: self._source[index.tolist()],
            lambda: _joined([self._source[int(i)] for i in index], np.stack),
            lambda: _joined([_arrays(self._source[int(i) : int(i) + 1], "examples") for i in index], np.concatenate),
        ]
        consecutive = index.size > 0 and np.array_equal(index, np.arange(index[0], index[0] + index.size))
        if consecutive:
            ways.insert(0, lambda: self._source[int(index[0]) : int(index[0]) + index.size])
        failures: list[Exception] = []
        for way in ways:
            try:
                got = way()  # a list is one of examples: as a pytree its entries would be leaves
                found = _joined(got, np.stack) if type(got) is list else _arrays(got, "examples")
                sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(found)}
                if sizes == {(index.size,)}:
                    return found
                raise ValueError(f"{index.size} rows were asked for, and leading axes {sorted(sizes)} came")
            except Exception as error:  # the next way may be the one that this source knows
                failures.append(error)
        cause = next((e for e in failures if isinstance(e, ExampleError | OSError)), failures[-2])
        raise ValueError(
            f"examples of type {type(self._source).__name__} could not be read at positions {_few(index)}: "
            f"{type(cause).__name__}: {cause}; expected that examples[i] gives one example, or examples[start:stop] "
            "arrays with a leading axis"
        ) from cause


class Chosen:
    """Some examples of a source, read when they are needed."""

    def __init__(self, source: "Source | Chosen", rows: np.ndarray) -> None:
        """The examples of ``source`` at the positions ``rows``."""
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Examples:
        return self._source[self._rows[rows]]


class ExampleError(ValueError):
    """Examples of a kind that no conversion makes right without the user's decision."""


def take_examples(examples: Examples) -> Examples:
    """Return examples as a pytree of NumPy arrays, or as a sized source that gives such pytrees.

    Args:
        examples: a pytree of arrays that share a leading axis; a mapping, table or lists that stand for one; or an
            object with ``__len__`` and ``__getitem__`` (a Hugging Face or torch map-style data set).

    Raises:
        ValueError: nothing in it, texts, masked or sparse arrays, random keys, rows of different lengths.
        TypeError: it can only be iterated (a generator, a DataLoader).
    """
    if isinstance(examples, Source | Chosen):
        return examples
    if _is_table(examples) or isinstance(examples, Mapping) or _is_array(examples):
        return _arrays(examples, "examples")
    if jax.tree_util.all_leaves([examples]):
        if isinstance(examples, str | bytes):
            raise ExampleError("examples is a text; tokenize first, and pass arrays with a leading axis over examples")
        if hasattr(examples, "__getitem__") and hasattr(examples, "__len__"):
            return Source(examples)
        if hasattr(examples, "__iter__"):
            raise TypeError(_only_iterated(examples))
    return _arrays(examples, "examples")


def is_source(examples: Examples) -> bool:
    """Whether ``examples`` is read a part at a time rather than held as arrays."""
    return isinstance(take_examples(examples), Source | Chosen)


def count_examples(examples: Examples) -> int:
    """Return n, the leading axis shared by every leaf, or the length of a sized source.

    Raises:
        ValueError: no examples, no leaf, a leaf without a leading axis, or leaves that disagree.
    """
    taken = take_examples(examples)
    if isinstance(taken, Source | Chosen):
        if len(taken) == 0:
            raise ValueError(f"there are no examples in this source ({type(examples).__name__}); pass at least one")
        return len(taken)
    leaves = jax.tree_util.tree_leaves_with_path(taken)
    if not leaves:
        raise ValueError("examples has no arrays; pass a pytree of arrays that share a leading axis")
    sizes = {_named(path): np.shape(leaf)[:1] for path, leaf in leaves}
    if () in sizes.values():
        name = next(name for name, size in sizes.items() if size == ())
        raise ValueError(f"{name} is a scalar; every leaf of examples needs a leading axis over examples")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} has {size[0]}" for name, size in sizes.items())
        raise ValueError(f"the leaves of examples have different leading axes ({shown}); they must share one")
    n = next(iter(sizes.values()))[0]
    if n == 0:
        raise ValueError("there are no examples in this pytree: its leading axis is 0; pass at least one")
    return n


def slice_examples(examples: Examples, rows: Any) -> Examples:
    """Return the examples at ``rows`` (a slice, an integer array or a Boolean mask), as a pytree of NumPy arrays."""
    taken = take_examples(examples)
    if isinstance(taken, Source | Chosen):
        return taken[rows]
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _read(leaf, rows, _named(path)), taken)


def choose_examples(examples: Examples, rows: Any) -> Examples:
    """Return the examples at an array of positions: of a source another source, which has read nothing yet."""
    taken = take_examples(examples)
    if isinstance(taken, Source | Chosen):
        return Chosen(taken, np.arange(len(taken))[rows])
    return slice_examples(taken, rows)


def first_example(examples: Examples) -> Example:
    """Return the first example, without a batch axis."""
    return jax.tree.map(lambda leaf: leaf[0], slice_examples(examples, slice(0, 1)))


def examples_digest(examples: Examples) -> str:
    """Return a digest of every value, shape and type, the same whether they come as arrays or from a source.

    Reads all examples once, and checks what would otherwise be found an hour late: that all values are finite.

    Raises:
        ValueError: an example has NaN or infinity in it; says which one, and where.
    """
    taken = take_examples(examples)
    n = count_examples(taken)
    digests: dict[str, Any] = {}
    for start in range(0, n, CHUNK):
        batch = slice_examples(taken, slice(start, min(start + CHUNK, n)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
                bad = start + int(np.flatnonzero(~np.isfinite(leaf).reshape(len(leaf), -1).all(1))[0])
                where = f" in leaf {name!r}" if name else ""
                raise ValueError(f"example {bad} has a value that is not finite{where}; clean or drop it")
            if name not in digests:
                digests[name] = hashlib.blake2b(f"{name}{leaf.shape[1:]}{leaf.dtype}".encode(), digest_size=16)
            digests[name].update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    whole = hashlib.blake2b(str(n).encode(), digest_size=16)
    for name in sorted(digests):
        whole.update(digests[name].digest())
    return whole.hexdigest()


def _arrays(value: Any, name: str) -> Any:
    """A pytree of NumPy arrays from whatever stands for one; ``name`` is where it stands, for errors."""
    if _is_table(value):
        value = _columns(value)
    if isinstance(value, Mapping) and jax.tree_util.all_leaves([value]):
        value = dict(value.items())  # a mapping that JAX takes for a leaf: UserDict, BatchEncoding, a subclass of dict
    if type(value) is dict:
        if len({type(key) for key in value}) > 1:
            raise ExampleError(
                f"{name} has keys of different types ({_few(list(value))}); name all its columns by text"
            )
        return {key: _arrays(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if value and all(_is_plain(entry) for entry in value):
            return _from_lists(value, name)
        if isinstance(value, list) and value and all(isinstance(e, Mapping) and _is_plain_row(e) for e in value):
            return _joined([dict(entry) for entry in value], np.stack)
        return type(value)(_arrays(entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if jax.tree_util.all_leaves([value]):
        return _array(value, name)
    nested = (list, tuple, dict)
    found, tree = jax.tree_util.tree_flatten_with_path(value, lambda v: v is not value and isinstance(v, nested))
    return tree.unflatten([_arrays(leaf, name + jax.tree_util.keystr(path)) for path, leaf in found])


def _array(value: Any, name: str) -> Any:
    """One leaf as NumPy, in native byte order; an array of another library that is read when it is sliced, as it is."""
    kind = type(value)
    origin = kind.__module__.split(".")[0]
    if isinstance(value, np.ma.MaskedArray):
        raise ExampleError(f"{name} is a masked array; fill it (.filled(value)), or pass its mask as an own leaf")
    if isinstance(value, str | bytes) or origin == "PIL":
        what = "an image" if origin == "PIL" else "text"
        raise ExampleError(f"{name} is {what}; encode it first with the model's tokenizer or image processor")
    if kind.__module__.startswith("scipy.sparse"):
        raise ExampleError(f"{name} is a sparse matrix; pass .toarray(), or a source that gives dense slices")
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise ExampleError(f"{name} holds random keys; pass what they are to draw, or jax.random.key_data of them")
    if hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise TypeError(_only_iterated(value, name))
    if origin == "torch":
        return _plain_array(_from_torch(value, name), name)
    if isinstance(value, jax.Array):
        return np.asarray(jax.device_get(value))
    if isinstance(value, bool | int | float | complex):
        return _narrowed(np.asarray(value), name)
    if hasattr(value, "to_numpy"):  # a pandas or polars column: by position, whatever its index says
        return _plain_array(np.asarray(value.to_numpy()), name)
    if isinstance(value, np.ndarray | np.generic):
        return _plain_array(np.asarray(value), name)
    if not _is_array(value):
        raise ExampleError(f"{name} is of type {kind.__name__}, which is no array; pass arrays, or one sized source")
    lazy = hasattr(value, "__getitem__") and hasattr(value, "__len__") and np.ndim(value) > 0
    return value if lazy else _plain_array(np.asarray(value), name)


def _plain_array(array: np.ndarray, name: str) -> np.ndarray:
    """An array that JAX takes as it is: numbers in native byte order, none of which a narrower type would change."""
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
    """An array from nested lists of numbers, in the types JAX would give them."""
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
    if tensor.dtype is torch.bfloat16:  # NumPy has no such type of its own: the same bits under JAX's
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _joined(rows: list[Any], join: Callable[[list[Any]], np.ndarray]) -> Any:
    """One pytree from those of several examples, or of several parts."""
    taken = [_arrays(row, "an example") for row in rows]
    trees = {jax.tree.structure(row) for row in taken}
    if len(trees) > 1:
        raise ExampleError("the examples of this source have different fields; give each the same")
    try:
        return jax.tree.map(lambda *leaves: _checked(join(list(leaves)), "examples"), *taken)
    except ValueError as error:
        raise ExampleError(f"the examples of this source have different shapes ({error}); pad them to one") from error


def _read(leaf: Any, rows: Any, name: str) -> np.ndarray:
    """Rows of one leaf, read now if it is lazy, none of which a narrower type would change."""
    if not isinstance(leaf, np.ndarray) and np.ndim(rows) == 1:  # some lazy arrays want ascending positions
        positions, inverse = np.unique(np.arange(len(leaf))[rows], return_inverse=True)
        return _checked(_plain_array(np.asarray(leaf[positions]), name)[inverse], name)
    return _checked(leaf[rows] if isinstance(leaf, np.ndarray) else _plain_array(np.asarray(leaf[rows]), name), name)


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    """The array, if its 64-bit integers fit into the 32 bits that JAX makes of them."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size and not jax.config.jax_enable_x64:
        limits = np.iinfo(np.int32 if array.dtype.kind == "i" else np.uint32)
        if array.max() > limits.max or array.min() < limits.min:
            raise ExampleError(
                f"{name} has integers beyond 32 bits ({array.min()} to {array.max()}), which JAX would cut off; shrink "
                "them, or set jax_enable_x64"
            )
    return array


def _narrowed(array: np.ndarray, name: str) -> np.ndarray:
    """Python's numbers in the types JAX gives them."""
    array = _checked(array, name)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)) if array.dtype.kind in "iuf" else array


def _columns(table: Any) -> dict[Any, Any]:
    """The columns of a pandas, polars or Arrow table."""
    names = list(table.column_names if hasattr(table, "column_names") else table.columns)
    if len(set(names)) < len(names):
        raise ExampleError(f"the table has columns of the same name ({_few(names)}); rename them")
    if not hasattr(table, "iloc"):
        return {name: table[name].to_numpy() for name in names}
    return {name: table.iloc[:, i].to_numpy() for i, name in enumerate(names)}


def _is_table(value: Any) -> bool:
    origin = type(value).__module__.split(".")[0]
    return origin in ("pandas", "polars", "pyarrow") and type(value).__name__ in ("DataFrame", "Table")


def _is_array(value: Any) -> bool:
    """Whether ``value`` is an array, of whatever library, or a lazy one that is read when it is sliced."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a number, or a list of numbers of any depth."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(_is_plain(entry) for entry in value)
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _is_plain_row(row: Mapping) -> bool:
    return len(row) > 0 and all(_is_plain(entry) for entry in row.values())


def _named(path: Any) -> str:
    return f"examples{jax.tree_util.keystr(path)}" if path else "examples"


def _few(values: Any) -> str:
    shown = [str(value) for value in list(values[:4])]
    return ", ".join(shown) + (", …" if len(values) > 4 else "")


def _only_iterated(value: Any, name: str = "examples") -> str:
    kind = type(value).__name__
    remedy = "its data set (loader.dataset), or " if hasattr(value, "dataset") else ""
    return (
        f"{name} is a {kind}, which can only be iterated, but examples are read by position and more than once; pass "
        f"{remedy}arrays: np.stack of examples, or jax.tree.map(lambda *a: np.concatenate(a), *batches)"
    )
