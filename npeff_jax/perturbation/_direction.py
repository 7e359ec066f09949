"""A component of LRM-NPEFF as a direction in parameter space (section 2.3)."""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from npeff_jax._checks import check_in_range
from npeff_jax._types import Components, PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind
from npeff_jax.perturbation._divergence import move
from npeff_jax.perturbation._rejection import combine, direction_weights, pseudo_fisher_gram

PAPER_THRESHOLD = 0.35
"""The threshold on |cos| that section 2.3 found to work well."""


def component_direction(
    model: Model, decomposition: Decomposition, component: int, reject_below: float | None = None
) -> PyTree:
    """The direction δ of a low-rank component: a pytree shaped like the parameters, of unit L2 norm.

    Moving the parameters by ``±norm * direction`` should change the predictions of the examples that the component
    stands for, and few others. The sign means nothing: g_j and −g_j have the same pseudo-Fisher matrix.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: of low-rank PEFs.
        component: j.
        reject_below: None for δ ∝ g_j; else the orthogonal rejection of g_j from the span of every g_k with
            |cos(g_j, g_k)| below this threshold (0.35 in the paper).

    Raises:
        ValueError: the decomposition is of another model or of diagonal PEFs, or nothing of g_j remains.
        IndexError: there is no such component.

    Examples:
        >>> direction = component_direction(model, decomposition, 0, reject_below=0.35)  # doctest: +SKIP
        >>> moved = perturb(model, direction, 0.1)  # doctest: +SKIP
    """
    check_component(decomposition, component)
    return next(component_directions(model, decomposition, [component], reject_below))


def component_directions(
    model: Model, decomposition: Decomposition, components: Components, reject_below: float | None = None
) -> Iterator[PyTree]:
    """`component_direction` of several components, one at a time. Everything is checked before the first."""
    check_decomposition_of(model, decomposition)
    if decomposition.kind is not FisherKind.LOW_RANK:
        raise ValueError(
            "a component of diagonal PEFs is no direction but a weight for every parameter; use diagonal_edit"
        )
    weights = all_direction_weights(decomposition, components, reject_below)
    return (_unravel(model, decomposition, row) for row in weights)


def all_direction_weights(
    decomposition: Decomposition, components: Components, reject_below: float | None
) -> np.ndarray:
    """M, (len(components), r): each direction as a combination of the pseudo-Fisher vectors."""
    if reject_below is None:  # a plain direction needs no other component
        norms = [np.linalg.norm(np.asarray(decomposition.pseudo_fishers[j], np.float64)) for j in components]
        gram = np.zeros((decomposition.n_components,) * 2)
        gram[components, components] = np.square(norms)
    else:
        check_in_range("reject_below", reject_below, 0.0, 1.0)
        gram = pseudo_fisher_gram(decomposition.pseudo_fishers)
    weights = [direction_weights(gram, int(j), reject_below) for j in components]
    return np.reshape(weights, (len(components), decomposition.n_components))


def perturb(model: Model, direction: PyTree, scale: float = 1.0) -> Model:
    """A model whose explained parameters are θ + scale · direction. The given model stays as it is.

    Args:
        model: the model.
        direction: a pytree shaped like its parameters.
        scale: how far to go, with its sign.
    """
    space = model.space
    moved = move(space.select(model.params), space.select(direction), scale)
    return dataclasses.replace(model, params=space.join(model.params, moved))


def check_decomposition_of(model: Model, decomposition: Decomposition) -> None:
    """Raise unless the decomposition is of this model and of the parameters its mask explains."""
    schema = decomposition.schema
    if schema.model != model.fingerprint:
        raise ValueError(
            f"the decomposition is of a model with fingerprint {schema.model}, this one has {model.fingerprint}; "
            "pass the model whose PEFs were decomposed"
        )
    if schema.layout != model.space.layout:
        raise ValueError(
            f"the decomposition explains {schema.layout.size} parameters, this model's mask {model.space.size} or "
            "other ones; build the model with the mask its PEFs were computed with"
        )


def check_component(decomposition: Decomposition, component: int) -> None:
    """Raise unless the decomposition has this component; negative numbers do not count from the end."""
    if not 0 <= component < decomposition.n_components:
        raise IndexError(
            f"component={component} is out of range; this decomposition has {decomposition.n_components} components"
        )


def _unravel(model: Model, decomposition: Decomposition, weights: np.ndarray) -> PyTree:
    vector = np.zeros(decomposition.schema.layout.size, np.float32)
    vector[decomposition.parameter_indices] = combine(weights[None], decomposition.pseudo_fishers)[0]
    return model.space.unravel(jnp.asarray(vector))
