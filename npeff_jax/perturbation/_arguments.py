"""Checks of the arguments of `perturbation` and `evaluation`, made before any long work."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from npeff_jax._checks import check_integer, check_labels, check_real
from npeff_jax._examples import count_examples, first_example
from npeff_jax._identity import MODEL, check_same
from npeff_jax._types import Examples, PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Categorical, Model, check_model


def check_decomposition(decomposition: Any) -> None:
    """Raise TypeError unless ``decomposition`` is a `Decomposition`."""
    if not isinstance(decomposition, Decomposition):
        raise TypeError(
            f"decomposition is {_described(decomposition)}; expected what decompose, expand or load_decomposition "
            "returns, after the model"
        )


def check_decomposition_of(model: Model, decomposition: Decomposition) -> None:
    """Raise unless the decomposition was computed from this model, with this mask of explained parameters.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: the decomposition is of another model or another mask.
    """
    check_model(model)
    check_decomposition(decomposition)
    layout, expected = decomposition.schema.layout, model.space.layout
    if decomposition.schema.model == model.fingerprint and layout != expected:
        raise ValueError(
            f"the decomposition explains {layout.size} parameters, this model's mask {expected.size} or other ones; "
            "build the model with the mask its PEFs were computed with"
        )
    check_same(
        "the decomposition",
        decomposition.schema.identity,
        "this model's predictions",
        model.identity(),
        MODEL,
        "pass the model whose PEFs were decomposed",
    )


def check_component(decomposition: Decomposition, component: Any) -> int:
    """Return the index of a component as an int. Negative indices are not accepted.

    Raises:
        TypeError: the index is not an integer.
        IndexError: the decomposition has no such component.
    """
    r = decomposition.n_components
    number = check_integer("component", component, -(2**63))
    if not 0 <= number < r:
        raise IndexError(f"component={number} is out of range; this decomposition has {r} components")
    return number


def choose_components(components: Any, n_components: int) -> Int[np.ndarray, "c"]:
    """Return the indices of the chosen components.

    Args:
        components: distinct integers in [0, r), a Boolean mask of length r, or None for all.
        n_components: r.

    Raises:
        TypeError: neither integers nor Booleans.
        ValueError: a mask of the wrong length, no component, or one listed twice.
        IndexError: there is no such component.
    """
    if components is None:
        return np.arange(n_components)
    array = np.atleast_1d(np.asarray(components))
    if array.dtype == bool:
        if array.shape != (n_components,):
            raise ValueError(
                f"components is a Boolean mask of shape {array.shape}; expected ({n_components},), one truth value per "
                "component"
            )
        array = np.flatnonzero(array)
    if array.size and (array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(
            f"components has shape {array.shape} and dtype {array.dtype}; expected a list of component numbers or a "
            "Boolean mask"
        )
    if not array.size:
        raise ValueError("components is empty; name at least one component, or pass None for all")
    outside = array[(array < 0) | (array >= n_components)]
    if outside.size:
        raise IndexError(f"component={outside[0]} is out of range; this decomposition has {n_components} components")
    numbers, counts = np.unique(array, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"components lists component {numbers[counts.argmax()]} twice; list each once")
    return array.astype(np.int64)


def check_direction(model: Model, direction: PyTree, name: str = "direction") -> None:
    """Raise ValueError unless ``direction`` is a finite pytree with the structure and shapes of the parameters."""
    space = model.space
    treedef = jax.tree.structure(direction)
    if treedef != space.treedef:
        flat = np.shape(direction) if hasattr(direction, "shape") else None
        if flat == (space.size,):
            raise ValueError(
                f"{name} is a flat vector of shape {flat}; expected a pytree shaped like the parameters: "
                "model.space.unravel(vector)"
            )
        raise ValueError(
            f"{name} is {_described(direction)}; expected a pytree shaped like the model's parameters, such as "
            "component_direction returns"
        )
    for parameter, leaf in zip(space.layout.parameters, space.select(direction), strict=True):
        if np.shape(leaf) != parameter.shape:
            raise ValueError(
                f"{name} has shape {np.shape(leaf)} at {parameter.name!r}; expected {parameter.shape}, like the "
                "parameters"
            )
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise ValueError(f"{name} has a non-finite value at {parameter.name!r}; check its computation")


def check_directions(model: Model, directions: Any) -> None:
    """Raise TypeError unless ``directions`` is an iterable of directions, rather than a single direction."""
    if isinstance(directions, Iterator):
        return
    single = jax.tree.structure(directions) == model.space.treedef
    if single and not (isinstance(directions, list) and len(directions) and _is_direction(model, directions[0])):
        raise TypeError("directions is one pytree shaped like the parameters; put it in a list: [direction]")
    if isinstance(directions, Mapping | str) or hasattr(directions, "ndim") or not hasattr(directions, "__iter__"):
        raise TypeError(
            f"directions is {_described(directions)}; expected a list of pytrees shaped like the parameters"
        )


def check_positive(name: str, value: Any) -> float:
    """Return a positive, finite number as a float.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is not positive, or not finite.
    """
    return check_real(name, value, 0.0, np.inf, open_low=True, open_high=True)


def class_labels(model: Model, examples: Examples, labels: Any) -> Int[np.ndarray, "n"] | None:
    """Return labels as integers in [0, C), or None if they are None.

    Raises:
        TypeError: the model's outputs have no classes.
        ValueError: wrong number of labels, non-integer labels, or a label that is not a class of the model.
    """
    if not isinstance(model.output, Categorical):
        raise TypeError(f"a loss needs labels, which {type(model.output).__name__} outputs do not have")
    return check_labels(labels, count_examples(examples), model.n_classes(first_example(examples)))


def _is_direction(model: Model, value: Any) -> bool:
    return jax.tree.structure(value) == model.space.treedef


def _described(value: Any) -> str:
    """Describe a value for an error message, without printing arrays."""
    if hasattr(value, "shape"):
        return f"an array of shape {np.shape(value)}"
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    return f"a {type(value).__name__}"
