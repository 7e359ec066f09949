"""Direction in parameter space of a component of LRM-NPEFF, plain or after orthogonal rejection (section 2.3).

Each direction is a linear combination M_j G of the pseudo-Fisher vectors, and M (r, r) follows from the Gram matrix
Γ = G Gᵀ in float64. So G is read in two passes: one for Γ, and one for M G.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from npeff_jax._checks import check_real, normalise
from npeff_jax._types import Components, PyTree, RowArray
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind
from npeff_jax.perturbation._arguments import check_component, check_decomposition_of, check_positive, choose_components
from npeff_jax.perturbation._edit import Edit, KLBudget, NoEditError, Subject, scaled

PAPER_THRESHOLD = 0.35
"""Threshold on |cos| recommended in section 2.3."""

MINIMUM_REMAINDER = 1e-3
"""Smallest norm of the remainder after rejection, as a fraction of ‖g_j‖. Below it, rounding errors of float32 vectors
exceed 1e-4 of the remainder."""

_BLOCK_BYTES = 2**28
"""Size in bytes of a float64 block of rows: large enough for efficient matrix products, small relative to G."""


def component_direction(
    model: Model, decomposition: Decomposition, component: int, reject_below: float | None = None
) -> PyTree:
    """Compute the direction δ of a low-rank component: a pytree shaped like the parameters, of unit L2 norm.

    Moving the parameters by ``±norm * direction`` should change the predictions of the component's top examples and few
    others. The sign is arbitrary: g_j and −g_j have the same pseudo-Fisher matrix.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: a decomposition of low-rank PEFs.
        component: index j.
        reject_below: None for δ ∝ g_j; else the threshold (0.35 in the paper) for orthogonal rejection: δ is the part
            of g_j orthogonal to every g_k with |cos(g_j, g_k)| below it.

    Raises:
        ValueError: the decomposition is of another model or of diagonal PEFs, or rejection leaves nothing of g_j.
        IndexError: there is no such component.

    Examples:
        >>> direction = component_direction(model, decomposition, 0, reject_below=0.35)
        >>> moved = perturb(model, direction, 0.1)
        >>> print(f"{np.linalg.norm(model.space.ravel(direction)):.3f}")
        1.000
    """
    check_decomposition_of(model, decomposition)
    component = check_component(decomposition, component)
    return next(component_directions(model, decomposition, [component], reject_below))


def component_directions(
    model: Model, decomposition: Decomposition, components: Components, reject_below: float | None = None
) -> Iterator[PyTree]:
    """Yield the `component_direction` of several components. All arguments are checked before the first is computed.

    Args:
        model: the model that was decomposed.
        decomposition: a decomposition of low-rank PEFs.
        components: indices or a Boolean mask; may be empty.
        reject_below: as for `component_direction`.
    """
    check_decomposition_of(model, decomposition)
    _check_low_rank(decomposition)
    chosen = choose_components(components, decomposition.n_components) if np.size(components) else np.zeros(0, int)
    reject_below = _threshold(reject_below)
    gram = _gram(decomposition, chosen, reject_below)
    weights = [direction_weights(gram, int(j), reject_below) for j in chosen]
    return (_unravel(model, decomposition, row) for row in weights)


@dataclasses.dataclass(frozen=True)
class DirectionEdit(Edit):
    """A step of ±norm along a low-rank component's direction (section 2.3).

    Attributes:
        norm: L2 norm of the move (0.1 in the paper), or a `KLBudget` that chooses it per component.
        reject_below: threshold of the orthogonal rejection (`component_direction`); None for the plain direction.
    """

    norm: float | KLBudget = 0.1
    reject_below: float | None = PAPER_THRESHOLD

    def __post_init__(self) -> None:
        normalise(self, reject_below=_threshold(self.reject_below))
        if not isinstance(self.norm, KLBudget):
            normalise(self, norm=check_positive("norm", self.norm))

    def check(self, subject: Subject) -> None:
        _check_low_rank(subject.decomposition)

    def move(self, subject: Subject, component: int, sign: int) -> PyTree:
        direction, norm = _unit_direction(subject, component, self.reject_below), self.norm
        if isinstance(norm, KLBudget):  # the same for both signs
            key = "norm", component, self
            if key not in subject.memo:
                subject.memo[key] = norm.norm_of(subject, component, direction)
            norm = subject.memo[key]
        return scaled(sign * norm, direction)


def _unit_direction(subject: Subject, component: int, reject_below: float | None) -> PyTree:
    """Return `component_direction`, caching the Gram matrix and directions.

    Both signs need the same direction, and rejection needs a pass over G, which a block of components shares.
    """
    kept, decomposition = subject.memo, subject.decomposition
    if ("direction", component, reject_below) not in kept:
        if ("gram", reject_below) not in kept:
            kept["gram", reject_below] = _gram(decomposition, np.arange(decomposition.n_components), reject_below)
        weights = {component: direction_weights(kept["gram", reject_below], component, reject_below)}
        order = list(subject.top)  # components whose moves follow
        start = order.index(component) + 1 if component in order else len(order)
        for other in order[start : start + _rows_in_a_block(decomposition.pseudo_fishers.shape[1]) - 1]:
            with contextlib.suppress(NoEditError):  # raised when this component's move is computed
                weights[other] = direction_weights(kept["gram", reject_below], other, reject_below)
        for key in [key for key in kept if key[0] == "direction"]:
            del kept[key]
        rows = combine(np.stack(list(weights.values())), decomposition.pseudo_fishers)
        kept |= {("direction", j, reject_below): row.astype(np.float32) for j, row in zip(weights, rows, strict=True)}
    return _embed(subject.model, decomposition, kept["direction", component, reject_below])


def _threshold(reject_below: float | None) -> float | None:
    return None if reject_below is None else check_real("reject_below", reject_below, 0.0, 1.0)


def _check_low_rank(decomposition: Decomposition) -> None:
    if decomposition.kind is not FisherKind.LOW_RANK:
        raise ValueError(
            "a component of diagonal PEFs has no direction, only a weight per parameter; use DiagonalEdit or "
            "diagonal_move"
        )


def _gram(decomposition: Decomposition, components: Components, reject_below: float | None) -> np.ndarray:
    """Return Γ, or only its diagonal at ``components`` for plain directions."""
    if reject_below is not None:
        return pseudo_fisher_gram(decomposition.pseudo_fishers)
    gram = np.zeros((decomposition.n_components,) * 2)
    for j in components:
        gram[j, j] = np.sum(np.square(np.asarray(decomposition.pseudo_fishers[j], np.float64)))
    return gram


def _unravel(model: Model, decomposition: Decomposition, weights: np.ndarray) -> PyTree:
    return _embed(model, decomposition, combine(weights[None], decomposition.pseudo_fishers)[0])


def _embed(model: Model, decomposition: Decomposition, kept: np.ndarray) -> PyTree:
    """Return a vector over the decomposition's m' parameters as a pytree shaped like the model's parameters."""
    vector = np.zeros(decomposition.schema.layout.size, np.float32)
    vector[decomposition.parameter_indices] = kept
    return model.space.unravel(jnp.asarray(vector))


def pseudo_fisher_gram(vectors: RowArray) -> Float[np.ndarray, "r r"]:
    """Compute Γ = G Gᵀ in float64, by pairs of row blocks."""
    r, width = vectors.shape
    block = _rows_in_a_block(width)
    gram = np.zeros((r, r))
    for i in range(0, r, block):
        left = np.asarray(vectors[i : i + block], np.float64)
        gram[i : i + block, i : i + block] = left @ left.T
        for j in range(i + block, r, block):
            gram[i : i + block, j : j + block] = left @ np.asarray(vectors[j : j + block], np.float64).T
            gram[j : j + block, i : i + block] = gram[i : i + block, j : j + block].T
    return gram


def direction_weights(
    gram: Float[np.ndarray, "r r"], component: int, reject_below: float | None
) -> Float[np.ndarray, "r"]:
    """Compute M_j, the unit direction of a component as a linear combination of the pseudo-Fisher vectors.

    Without a threshold it is g_j / ‖g_j‖. With one, it is the normalised part of g_j orthogonal to every g_k with
    |cos(g_j, g_k)| below the threshold. The basis of their span consists of the singular vectors above rounding,
    because the vectors are neither orthogonal (so subtracting projections one by one is not a rejection) nor
    independent (so QR would reject noise directions).

    Args:
        gram: Γ.
        component: index j.
        reject_below: the threshold, or None for the plain direction.

    Raises:
        NoEditError: g_j is zero, or rejection leaves nothing of it.
    """
    norm = np.sqrt(gram[component, component])
    if not norm > 0:
        raise NoEditError(f"component {component} has a zero pseudo-Fisher vector, so it has no direction")
    weights = np.zeros(len(gram))
    weights[component] = 1 / norm
    if reject_below is None:
        return weights
    norms = np.sqrt(np.diag(gram))
    alive = norms > 0
    scaled = gram / np.where(alive, norms, 1.0) / np.where(alive, norms, 1.0)[:, None]  # cosines
    others = np.flatnonzero(alive & (np.abs(scaled[component]) < reject_below) & (np.arange(len(gram)) != component))
    if others.size == 0:
        return weights
    eigenvalues, basis = np.linalg.eigh(scaled[np.ix_(others, others)])
    # Eigenvalues are squared singular values, which are rounding noise below float32 eps times the largest.
    kept = eigenvalues > (others.size * np.finfo(np.float32).eps) ** 2 * eigenvalues[-1]
    projection = basis[:, kept] @ ((basis[:, kept].T @ scaled[others, component]) / eigenvalues[kept])
    weights[others] = -projection / norms[others]
    remainder = np.sqrt(max(weights @ gram @ weights, 0.0))
    if remainder < MINIMUM_REMAINDER:
        raise NoEditError(
            f"nothing of component {component} remains outside the span of the {others.size} components it was "
            f"rejected from (norm {remainder:.1e} of 1); use a smaller reject_below than {reject_below}, or None"
        )
    return weights / remainder


def combine(weights: Float[np.ndarray, "d r"], vectors: RowArray) -> Float[np.ndarray, "d m_kept"]:
    """Compute M G by blocks of rows, in float64 because rejection cancels leading digits."""
    used = np.flatnonzero(np.any(weights != 0, axis=0))
    total = np.zeros((len(weights), vectors.shape[1]))
    block = _rows_in_a_block(vectors.shape[1])
    for i in range(0, used.size, block):
        rows = used[i : i + block]
        total += weights[:, rows] @ np.asarray(vectors[rows], np.float64)
    return total


def _rows_in_a_block(width: int) -> int:
    return max(1, _BLOCK_BYTES // (8 * max(width, 1)))
