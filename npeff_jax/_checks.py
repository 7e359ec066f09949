"""Checks of arguments, made before any long work. Messages state what was given, what was expected, and a remedy."""

import dataclasses
import enum
import operator
import pathlib
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

_NOT_CLASSES = (
    ". Several labels per example (output=Bernoulli()) and numbers to predict (output=Gaussian()) are no classes: "
    "leave labels out, and show them in the report's display"
)


def check_labels(labels: Any, n_examples: int, n_classes: int | None = None) -> np.ndarray | None:
    """Return labels as an integer array of shape (n,), or None.

    Args:
        labels: an array, list or column of integers, by position.
        n_examples: n.
        n_classes: C, where labels index the model's classes.

    Raises:
        ValueError: If the length is not n, a label is not an integer, or (with ``n_classes``) it is outside [0, C).
    """
    if labels is None:
        return None
    if isinstance(labels, np.ma.MaskedArray):
        raise ValueError("labels is a masked array; drop the examples without a label, in examples too")
    if hasattr(labels, "detach"):  # a torch tensor
        labels = labels.detach().cpu()
    array = np.asarray(labels.to_numpy() if hasattr(labels, "to_numpy") else labels)
    if array.shape != (n_examples,):
        raise ValueError(
            f"labels has shape {array.shape}, but there are {n_examples} examples; pass one label per example"
            + (_NOT_CLASSES if array.ndim > 1 else "")
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels has dtype {array.dtype}; expected integers, the index of each example's class" + _NOT_CLASSES
        )
    if n_classes is not None:
        bad = np.flatnonzero((array < 0) | (array >= n_classes))
        if bad.size and n_classes == 1:
            raise ValueError(
                f"labels has {array[bad[0]]}, but the model has a single output and no classes{_NOT_CLASSES}"
            )
        if bad.size:
            raise ValueError(
                f"labels has {array[bad[0]]} at example {bad[0]} ({bad.size} such), but the model has the {n_classes} "
                f"classes 0 to {n_classes - 1}; drop these examples or renumber their labels"
            )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return a whole number in [low, high] as Python's ``int``; integer types of NumPy and JAX are accepted.

    Raises:
        TypeError: If ``value`` is not an integer.
        ValueError: If ``value`` is out of range.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} is no whole number; expected an integer of at least {low}") from None
    if found < low or (high is not None and found > high):
        most = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name}={found} is out of range; expected an integer of at least {low}{most}")
    return found


def check_real(
    name: str, value: Any, low: float | int, high: float | int, *, open_low: bool = False, open_high: bool = False
) -> float:
    """Return a number as Python's ``float``, after checking that it lies in the interval from ``low`` to ``high``.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If ``value`` is out of range or not finite.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | complex) or np.ndim(value):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} is no number; expected one from {low} to {high}") from None
    inside = (low < found if open_low else low <= found) and (found < high if open_high else found <= high)
    if not inside:
        less, more = "<" if open_low else "<=", "<" if open_high else "<="
        raise ValueError(f"{name}={found:g} is out of range; expected {low:g} {less} {name} {more} {high:g}")
    return found


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is callable."""
    if not callable(value):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected a function")


def check_numbers(name: str, values: Any) -> None:
    """Raise unless ``values`` is a number or a list of numbers.

    Raises:
        TypeError: If it is something else.
    """
    try:
        fits = np.asarray(values).dtype.kind in "iuf"
    except ValueError:  # a ragged list
        fits = False
    if not fits:
        raise TypeError(f"{name}={values!r} is no list of numbers; expected one, such as (0.1, 0.5)")


def as_instance(name: str, value: Any, base: Any, *, none: bool = False) -> Any:
    """Return ``value`` as an instance of ``base``; a subclass that needs no arguments is instantiated.

    Raises:
        TypeError: If ``value`` is neither; the message lists the possible classes.
    """
    if isinstance(value, type) and issubclass(value, base) and not getattr(value, "__abstractmethods__", None):
        try:
            return value()
        except TypeError as error:
            raise TypeError(
                f"{name}={value.__name__} is a class that needs arguments ({error}); pass an object of it"
            ) from None
    if isinstance(value, base):
        return value
    known = sorted({kind.__name__ for kind in _descendants(base) if not getattr(kind, "__abstractmethods__", None)})
    raise TypeError(
        f"{name}={value!r} is {'a function' if callable(value) else 'a ' + type(value).__name__}; expected a "
        f"{base.__name__}: {', '.join(f'{kind}(...)' for kind in known)}{', or None' if none else ''}"
    )


def is_own(error: BaseException) -> bool:
    """Return whether an error was raised in a file of this package, whose messages say what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and pathlib.Path(frames[-1].filename).is_relative_to(pathlib.Path(__file__).parent)


def as_enum(name: str, value: Any, kind: type[enum.Enum]) -> Any:
    """Return the member of ``kind`` that ``value`` is, or that has it as value or name.

    Raises:
        ValueError: If there is no such member; the message lists all members.
    """
    if isinstance(value, kind):
        return value
    for member in kind:
        if isinstance(value, str) and value.lower() in (str(member.value).lower(), member.name.lower()):
            return member
    known = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
    raise ValueError(f"{name}={value!r} is none of {known}")


def positions(name: str, examples: Any, n: int) -> np.ndarray:
    """Return the non-negative positions of n examples that a slice, indices or a Boolean mask selects.

    Raises:
        IndexError: If they are no positions, or some that there are not.
    """
    if not isinstance(examples, slice):
        examples = np.atleast_1d(np.asarray(examples))
        if examples.size == 0 and examples.dtype != bool:
            examples = examples.astype(int)
        whole = np.issubdtype(examples.dtype, np.integer)
        if examples.ndim != 1 or not (whole or (examples.dtype == bool and examples.shape == (n,))):
            raise IndexError(
                f"{name} of dtype {examples.dtype} and shape {examples.shape} are no positions, and no mask of {n}; "
                "pass a slice, integers or a Boolean mask with an entry per example"
            )
        if whole and examples.size and not (-n <= examples.min() and examples.max() < n):
            raise IndexError(f"{name} has positions from {examples.min()} to {examples.max()}; there are {n}")
    return np.arange(n)[examples]


def normalise(choice: Any, **fields: Any) -> None:
    """Set fields of a frozen dataclass in its ``__post_init__``, to values checked by `check_integer` and the like."""
    assert dataclasses.is_dataclass(choice)
    for name, value in fields.items():
        object.__setattr__(choice, name, value)


def _descendants(base: type) -> set[type]:
    found: set[type] = {base}
    child: type
    for child in base.__subclasses__():
        found |= _descendants(child)
    return found


def check_in_range(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Raise unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range; expected a value from {low} to {high}")


def listing(names: Sequence[str], shown: int = 8) -> str:
    """Return the first ``shown`` names, comma-separated, and the number of the others."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, choices))}")


PRECISIONS = (
    *("default", "high", "highest", "bfloat16", "tensorfloat32", "float32"),
    *("BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6", "TF32_TF32_F32", "TF32_TF32_F32_X3", "F32_F32_F32"),
)
"""Matrix-product precisions of JAX that keep the exponent range of float32."""


def check_precision(precision: Any) -> None:
    """Raise unless ``precision`` is one of `PRECISIONS`."""
    check_choice("precision", precision, PRECISIONS)
