"""Top examples of components."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_integer


def top_examples(coefficients: Float[np.ndarray, "n r"], component: int, k: int) -> Int[np.ndarray, "k"]:
    """Return the indices of the k examples with the highest coefficients of a component, highest first (section 2.2).

    Equal coefficients keep the order of the examples.

    Args:
        coefficients: W, of the decomposed examples or of others (`fit_coefficients`).
        component: index of the component.
        k: number of examples.

    Raises:
        TypeError: ``coefficients`` is not an array (pass `.coefficients` of a fit).
        ValueError: k or the component is out of range, or a coefficient is NaN.

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
    """Compute the fraction of each component's top examples with a property, such as a wrong prediction.

    Args:
        coefficients: W.
        has: whether each example has the property.
        n_top: number of top examples per component; 16 in section 3.5.

    Raises:
        ValueError: ``has`` has the wrong length.

    Examples:
        >>> wrong = pefs.logits.argmax(-1) != labels
        >>> flawed = np.flatnonzero(top_share(fit.coefficients, wrong, n_top=4) >= 0.5)
    """
    coefficients, has = coefficient_array(coefficients), np.asarray(has)
    if has.shape != (len(coefficients),):
        raise ValueError(f"has has shape {has.shape}; expected ({len(coefficients)},), one truth value per example")
    return np.array([has[top_examples(coefficients, j, n_top)].mean() for j in range(coefficients.shape[1])])


def coefficient_array(coefficients: Any) -> Float[np.ndarray, "n r"]:
    """Return coefficients as an array (n, r), after checking them.

    Raises:
        TypeError: the coefficients are not an array.
        ValueError: the array does not have two axes.
    """
    if hasattr(coefficients, "coefficients"):
        raise TypeError(f"coefficients is a {type(coefficients).__name__}; pass its array, .coefficients")
    array = np.asarray(coefficients)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"coefficients is a {type(coefficients).__name__}; expected an array (n, r)")
    if array.ndim != 2 or not array.size:
        raise ValueError(f"coefficients have shape {array.shape}; expected (n, r), a column per component")
    return array
