"""Which examples a component stands for."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_integer


def top_examples(coefficients: Float[np.ndarray, "n r"], component: int, k: int) -> Int[np.ndarray, "k"]:
    """Return the indices of the k examples with a component's highest coefficients, the highest first (section 2.2).

    Equal coefficients keep the order of the examples.

    Args:
        coefficients: W, of the examples the decomposition was found in or of others (`fit_coefficients`).
        component: which.
        k: how many.

    Raises:
        TypeError: ``coefficients`` is not an array, but for example the fit that holds it.
        ValueError: k or the component is out of range, or a coefficient is not a number.

    Examples:
        >>> top_examples(np.array([[0.1, 2.0], [0.7, 0.0], [0.4, 1.0]]), component=0, k=2).tolist()
        [1, 2]
    """
    coefficients = coefficient_array(coefficients)
    n, r = coefficients.shape
    component, k = check_integer("component", component, 0, r - 1), check_integer("k", k, 1, n)
    column = coefficients[:, component]
    if np.isnan(column).any():
        raise ValueError(
            f"coefficient {int(np.flatnonzero(np.isnan(column))[0])} of component {component} is NaN; leave examples "
            "that failed out"
        )
    return np.argsort(-column, kind="stable")[:k]


def top_share(
    coefficients: Float[np.ndarray, "n r"], has: Bool[np.ndarray, "n"], *, n_top: int = 16
) -> Float[np.ndarray, "r"]:
    """Compute the fraction of each component's top examples that has something, such as being predicted wrongly.

    Args:
        coefficients: W.
        has: whether each example has it.
        n_top: top examples of each component, 16 in section 3.5.

    Raises:
        ValueError: ``has`` is given for another number of examples.

    Examples:
        >>> wrong = pefs.logits.argmax(-1) != labels
        >>> flawed = np.flatnonzero(top_share(fit.coefficients, wrong, n_top=4) >= 0.5)
    """
    coefficients, has = coefficient_array(coefficients), np.asarray(has)
    if has.shape != (len(coefficients),):
        raise ValueError(f"has has shape {has.shape}; expected ({len(coefficients)},), one truth value per example")
    return np.array([has[top_examples(coefficients, j, n_top)].mean() for j in range(coefficients.shape[1])])


def coefficient_array(coefficients: Any) -> Float[np.ndarray, "n r"]:
    """Return coefficients as an array (n, r).

    Raises:
        TypeError: they are not an array.
        ValueError: they do not have two axes.
    """
    if hasattr(coefficients, "coefficients"):
        raise TypeError(f"coefficients is a {type(coefficients).__name__}; pass its array, .coefficients")
    array = np.asarray(coefficients)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"coefficients is a {type(coefficients).__name__}; expected an array (n, r)")
    if array.ndim != 2 or not array.size:
        raise ValueError(f"coefficients have shape {array.shape}; expected (n, r), a column per component")
    return array
