"""Conversion of examples into pytrees of NumPy arrays, and access to them by position.

Examples are a pytree of arrays that share a leading axis, anything convertible to one (a mapping that is not a JAX
pytree, a pandas table, lists of numbers, torch tensors), or a sized source that is read in parts. Anything else raises,
because a silent conversion that drops a mask or counts keys as examples would give wrong numbers.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._convert import (
    ExampleError,
    arrays_of,
    checked,
    few,
    is_array,
    is_table,
    joined,
    only_iterated,
    plain_array,
)
from npeff_jax._types import Example, Examples

CHUNK = 1024
"""Number of examples that `examples_digest` reads at a time, so that a source is never in memory as a whole."""


class Source:
    """A sized source of examples, read by slices, index arrays, lists or integers, whichever it supports.

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
        """Return the examples at a slice or an integer array, as a pytree of NumPy arrays with that many rows."""
        index = np.arange(len(self))[rows]
        ways: list[Callable[[], Any]] = [
            lambda: self._source[index],
            lambda: self._source[index.tolist()],
            lambda: joined([self._source[int(i)] for i in index], np.stack),
            lambda: joined([arrays_of(self._source[int(i) : int(i) + 1], "examples") for i in index], np.concatenate),
        ]
        consecutive = index.size > 0 and np.array_equal(index, np.arange(index[0], index[0] + index.size))
        if consecutive:
            ways.insert(0, lambda: self._source[int(index[0]) : int(index[0]) + index.size])
        failures: list[Exception] = []
        for way in ways:
            try:
                got = way()  # a list holds examples; as a pytree its entries would be leaves
                found = joined(got, np.stack) if type(got) is list else arrays_of(got, "examples")
                sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(found)}
                if sizes == {(index.size,)}:
                    return found
                raise ValueError(f"{index.size} rows were requested, but leading axes {sorted(sizes)} were returned")
            except Exception as error:  # the source may support another way of indexing
                failures.append(error)
        cause = next((e for e in failures if isinstance(e, ExampleError | OSError)), failures[-2])
        raise ValueError(
            f"examples of type {type(self._source).__name__} could not be read at positions {few(index)}: "
            f"{type(cause).__name__}: {cause}; expected that examples[i] gives one example, or examples[start:stop] "
            "arrays with a leading axis"
        ) from cause


class Chosen:
    """A subset of a source, read on access."""

    def __init__(self, source: "Source | Chosen", rows: np.ndarray) -> None:
        """Select the examples of ``source`` at the positions ``rows``."""
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Examples:
        return self._source[self._rows[rows]]


def take_examples(examples: Examples) -> Examples:
    """Return examples as a pytree of NumPy arrays, or as a sized source that gives such pytrees.

    Args:
        examples: a pytree of arrays that share a leading axis; a mapping, table or lists that stand for one; or an
            object with ``__len__`` and ``__getitem__`` (a Hugging Face or torch map-style data set).

    Raises:
        ValueError: If there are no arrays, or they are texts, masked, sparse, random keys or of unequal row lengths.
        TypeError: If ``examples`` can only be iterated (a generator, a DataLoader).
    """
    if isinstance(examples, Source | Chosen):
        return examples
    if is_table(examples) or isinstance(examples, Mapping) or is_array(examples):
        return arrays_of(examples, "examples")
    if jax.tree_util.all_leaves([examples]):
        if isinstance(examples, str | bytes):
            raise ExampleError("examples is a text; tokenize first, and pass arrays with a leading axis over examples")
        if hasattr(examples, "__getitem__") and hasattr(examples, "__len__"):
            return Source(examples)
        if hasattr(examples, "__iter__"):
            raise TypeError(only_iterated(examples))
    return arrays_of(examples, "examples")


def is_source(examples: Examples) -> bool:
    """Return whether ``examples`` are read from a source in parts rather than held as arrays."""
    return isinstance(take_examples(examples), Source | Chosen)


def count_examples(examples: Examples) -> int:
    """Return n, the leading axis shared by every leaf, or the length of a sized source.

    Raises:
        ValueError: If there are no examples or no leaves, or the leaves do not share a leading axis.
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
    """Return the examples at an array of positions; for a source, a lazy subset that reads nothing yet."""
    taken = take_examples(examples)
    if isinstance(taken, Source | Chosen):
        return Chosen(taken, np.arange(len(taken))[rows])
    return slice_examples(taken, rows)


def first_example(examples: Examples) -> Example:
    """Return the first example, without a batch axis."""
    return jax.tree.map(lambda leaf: leaf[0], slice_examples(examples, slice(0, 1)))


def examples_digest(examples: Examples) -> str:
    """Return a digest of every value, shape and dtype, equal for arrays and sources of the same examples.

    Reads all examples once, and checks that all values are finite before any long work.

    Raises:
        ValueError: If an example contains NaN or infinity; the message says which one, and in which leaf.
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
    if isinstance(taken, Source | Chosen):
        _check_repeatable(taken)
    whole = hashlib.blake2b(str(n).encode(), digest_size=16)
    for name in sorted(digests):
        whole.update(digests[name].digest())
    return whole.hexdigest()


def _check_repeatable(source: "Source | Chosen") -> None:
    """Raise if an example has other values each time it is read, as with random augmentation."""
    first, again = (jax.tree.leaves(source[np.array([len(source) - 1])]) for _ in range(2))
    if len(first) != len(again) or not all(map(np.array_equal, first, again)):
        raise ValueError(
            f"examples has other values for example {len(source) - 1} each time it is read; an example is read more "
            "than once: switch random augmentation off, or pass arrays"
        )


def _read(leaf: Any, rows: Any, name: str) -> np.ndarray:
    """Read rows of one leaf as NumPy, raising if JAX could not take their values unchanged."""
    if not isinstance(leaf, np.ndarray) and np.ndim(rows) == 1:  # some lazy arrays need ascending positions
        positions, inverse = np.unique(np.arange(len(leaf))[rows], return_inverse=True)
        return checked(plain_array(np.asarray(leaf[positions]), name)[inverse], name)
    return checked(leaf[rows] if isinstance(leaf, np.ndarray) else plain_array(np.asarray(leaf[rows]), name), name)


def _named(path: Any) -> str:
    return f"examples{jax.tree_util.keystr(path)}" if path else "examples"
