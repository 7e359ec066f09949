"""Conversion of labels to class numbers: reading of cells, checks, and matching by name to a model's classes."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from npeff_jax._checks import listing

Processor = Callable[..., Any]
"""Encoder of texts or images: a `models.TextProcessor`, a `models.ImageProcessor`, or a user's function."""

_MOST_CLASSES = 2**20
"""Upper bound on C if there is no model. A label above a million is an identifier or a damaged value rather than a
class, and tables of C rows would not fit in memory."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}
_GENERIC = re.compile(r"label[ _-]?(\d+)", re.IGNORECASE)


def check_class_numbers(labels: Any, n_examples: int, n_classes: int | None = None) -> Int[np.ndarray, "n"]:
    """Return ``labels`` as class numbers, an integer array of shape (n,).

    Args:
        labels: one number per example. Floating-point numbers with integer values are converted.
        n_examples: n.
        n_classes: C, if known.

    Raises:
        ValueError: wrong length, non-integer values, or a label outside 0 to C − 1.
    """
    if np.ma.is_masked(labels):
        raise ValueError("labels is a masked array with masked entries; leave out the examples without a label")
    array = np.asarray(labels)
    if array.shape != (n_examples,):
        raise ValueError(f"labels has shape {array.shape}; expected ({n_examples},), one label per example")
    if array.dtype == bool:
        array = array.astype(np.int32)
    if np.issubdtype(array.dtype, np.floating):
        wrong = np.flatnonzero(~np.isfinite(array) | (array != np.floor(array)))
        if wrong.size:
            raise ValueError(f"labels[{wrong[0]}] is {array[wrong[0]]}; expected the number of a class, 0 to C − 1")
    elif not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels has dtype {array.dtype}; expected integers, the number of the class of each example")
    most = _MOST_CLASSES if n_classes is None else n_classes
    wrong = np.flatnonzero((array < 0) | (array >= most))
    if wrong.size:
        raise ValueError(f"labels[{wrong[0]}]: {_out_of_range(int(array[wrong[0]]), n_classes)}")
    return array.astype(np.int32)


def number_labels(
    cells: Sequence[tuple[str, Any]],
    names: Sequence[str] | None,
    model_names: Sequence[str] | None,
    source: Any,
    known: Iterable[Any] = (),
) -> tuple[Int[np.ndarray, "n"], tuple[str, ...] | None]:
    """Convert a column of labels to class numbers. Names are numbered; integers are kept.

    Args:
        cells: per example, its location in the file ("row 3") and the cell of its label.
        names: class names in the order of their numbers, as spelled in the column; by default sorted.
        model_names: class names of the model, which names are matched to.
        source: the file, for error messages.
        known: cells of further rows, so that sorted names do not depend on the number of rows read.

    Returns:
        Class numbers (the model's, if names were matched), and the class names in that order, if any.

    Raises:
        ValueError: a cell without a label, a number out of range, or names that cannot be matched.
    """
    names = None if names is None else tuple(map(str, names))
    values = [(place, _label(cell, f"{source}, {place}", names or ())) for place, cell in cells]
    texts = [(place, value) for place, value in values if isinstance(value, str)]
    if texts and len(texts) < len(values) and names is None:
        number = next(place for place, value in values if isinstance(value, int))
        raise ValueError(
            f"{source}, {texts[0][0]} has the label {texts[0][1]!r} and {number} a number; expected names or numbers, "
            "or Columns(label_names=...) with all of them"
        )
    given, numbered = names is not None, not texts
    if names is None and texts:
        rest = (value for value in map(_quiet_label, known) if isinstance(value, str))
        names = tuple(sorted({text for _, text in texts} | set(rest)))
    n_classes = len(names) if names else len(model_names) if model_names else None
    numbers = np.zeros(len(values), np.int64)
    for i, (place, value) in enumerate(values):
        if isinstance(value, str):
            if value not in (names or ()):
                expected = listing(list(names or ()), 20)
                raise ValueError(f"{source}, {place} has the label {value!r}; expected one of {expected}")
            numbers[i] = (names or ()).index(value)
        elif not 0 <= value < (n_classes or _MOST_CLASSES):
            raise ValueError(f"{source}, {place} has the {_out_of_range(value, n_classes)}")
        else:
            numbers[i] = value
    if numbered and not given:
        return numbers.astype(np.int32), None if generic(model_names) else tuple(model_names or ())
    return match_names(numbers.astype(np.int32), names or (), model_names, str(source), given=given)


def match_names(
    labels: Int[np.ndarray, "n"], names: Sequence[str], model_names: Sequence[str] | None, source: str, *, given: bool
) -> tuple[Int[np.ndarray, "n"], tuple[str, ...]]:
    """Replace class numbers of a data set by those of the model's classes with the same names.

    Names are compared without regard to case, spaces, hyphens and underscores. A model's class may have several names,
    separated by commas.

    Args:
        labels: (n,), numbers of the classes ``names``.
        names: class names of the data set.
        model_names: class names of the model; without them nothing is changed.
        source: source of the data set, for error messages.
        given: whether the user specified ``names`` in this order. If so, and no name matches the model's or the model
            has generic names, ``names`` are taken as the model's classes in order.

    Raises:
        ValueError: names that cannot be matched; the message lists both.
    """
    if model_names is None:
        return labels, tuple(names)
    places = _places(model_names)
    found = [places.get(_plain(name)) for name in names]
    matched = [place for place in found if place is not None]
    if len(matched) == len(names) and len(set(matched)) == len(names):
        return np.array(matched, np.int32)[labels], tuple(map(str, model_names))
    if given and not matched and labels.max(initial=0) < len(model_names):
        return labels, tuple(names)
    raise ValueError(
        f"{source}: the classes of the data set ({listing(list(names), 12)}) cannot be matched to the model's "
        f"({listing(list(map(str, model_names)), 12)}) by name; pass label_names, the data set's names in the order of "
        "the model's classes"
    )


def generic(names: Sequence[str] | None) -> bool:
    """Return whether class names are missing or generic: LABEL_0, LABEL_1, …, the default of configurations."""
    return not names or all((found := _GENERIC.fullmatch(str(n))) and int(found[1]) == i for i, n in enumerate(names))


def _label(cell: Any, place: str, names: Sequence[str]) -> int | str:
    """Return the class in a cell, as a name or an integer."""
    text = str(cell).strip()
    if text in names:
        return text
    if (isinstance(cell, float) and math.isnan(cell)) or (
        (cell is None or isinstance(cell, str)) and _is_missing(text)
    ):
        raise ValueError(
            f"{place} has no label ({text!r}); fill it in, or leave such rows out with Columns(skip=({text!r},))"
        )
    if isinstance(cell, bool | np.bool_):
        return int(cell)
    if isinstance(cell, str) and not _NUMBER.fullmatch(text):
        return text
    if not isinstance(cell, str | int | float | np.integer | np.floating):
        raise ValueError(f"{place} has a label of type {type(cell).__name__}; expected a name or the number of a class")
    whole, _, fraction = text.partition(".")
    if _NUMBER.fullmatch(text) and not fraction.strip("0"):
        return int(whole)
    if isinstance(cell, float) and math.isfinite(cell) and cell == math.floor(cell):
        return int(cell)
    raise ValueError(f"{place} has the label {text}; expected a name, or the number of a class: 0, 1, 2, …")


def _quiet_label(cell: Any) -> int | str | None:
    try:
        return _label(cell, "", ())
    except ValueError:
        return None  # reported when its row is read


def _is_missing(text: str) -> bool:
    return text.casefold() in _MISSING


def cell_text(cell: Any) -> str:
    """Return a cell as text, as in `Columns.skip`: empty for a missing value, "0" for 0.0."""
    text = "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else str(cell).strip()
    return text.partition(".")[0] if _NUMBER.fullmatch(text) and not text.partition(".")[2].strip("0") else text


def _out_of_range(label: int, n_classes: int | None) -> str:
    if n_classes is not None:
        expected = f"expected 0 to {n_classes - 1}"
    elif label < 0:
        expected = "labels must not be negative"
    else:
        expected = "expected the number of a class: 0, 1, 2, …"
    unlabelled = "; leave out examples that are marked as unlabelled" if label < 0 else ""
    return f"label {label}; {expected}{unlabelled}"


def _places(names: Sequence[str]) -> dict[str, int]:
    """Return the class number for each name, including each of several names if no other class has it."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for i, name in enumerate(map(str, names)):
        whole.setdefault(_plain(name), []).append(i)
        for part in name.split(","):
            parts.setdefault(_plain(part), []).append(i)
    return {name: places[0] for name, places in (parts | whole).items() if len(places) == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", str(name).strip()).casefold()
