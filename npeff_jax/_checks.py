"""Errors at the boundary: what was got, what was expected, what to do. Each raises before any long work."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from npeff_jax._types import Examples


def count_examples(examples: Examples) -> int:
    """The number of examples n: the leading axis shared by every leaf, or the length of a sized source.

    Raises:
        ValueError: no leaf, a leaf without a leading axis, or leaves that disagree.
    """
    if is_source(examples):
        return len(examples)
    leaves = jax.tree_util.tree_leaves_with_path(examples)
    if not leaves:
        raise ValueError("examples has no arrays; pass a pytree of arrays that share a leading axis")
    sizes = {jax.tree_util.keystr(path) or "examples": np.shape(leaf)[:1] for path, leaf in leaves}
    if () in sizes.values():
        name = next(name for name, size in sizes.items() if size == ())
        raise ValueError(f"{name} is a scalar; every leaf of examples needs a leading axis over examples")
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{name} has {size[0]}" for name, size in sizes.items())
        raise ValueError(f"the leaves of examples have different leading axes ({listing}); they must share one")
    return next(iter(sizes.values()))[0]


def is_source(examples: Examples) -> bool:
    """Whether ``examples`` is a sized source to be sliced rather than a pytree of arrays."""
    return (
        hasattr(examples, "__getitem__")
        and hasattr(examples, "__len__")
        and not hasattr(examples, "shape")
        and jax.tree_util.all_leaves([examples])
    )


def slice_examples(examples: Examples, rows: Any) -> Examples:
    """Examples at ``rows`` (a slice or an integer array), as a pytree of NumPy arrays."""
    if is_source(examples):
        return jax.tree.map(np.asarray, examples[rows])
    return jax.tree.map(lambda leaf: np.asarray(leaf[rows]), examples)


class _Chosen:
    """Some examples of a source, read when they are needed."""

    def __init__(self, source: Examples, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Examples:
        return slice_examples(self._source, self._rows[rows])


def choose_examples(examples: Examples, rows: np.ndarray) -> Examples:
    """Examples at an integer array of ``rows``: of a source another source, which has read nothing yet."""
    return _Chosen(examples, rows) if is_source(examples) else slice_examples(examples, rows)


def check_labels(labels: Any, n_examples: int) -> np.ndarray | None:
    """Labels as an integer array of shape (n,), or None.

    Raises:
        ValueError: another length, or labels that are not integers.
    """
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (n_examples,):
        raise ValueError(
            f"labels has shape {array.shape}, but there are {n_examples} examples; pass one label an example"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels has dtype {array.dtype}; expected integers, the index of each example's class")
    return array


def check_in_range(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Raise unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range; expected a value from {low} to {high}")


def listing(names: Sequence[str], shown: int = 8) -> str:
    """The first names, and how many more there are, for a sentence."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, choices))}")
