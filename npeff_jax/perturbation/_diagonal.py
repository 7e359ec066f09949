"""A component of D-NPEFF as an edit of the parameters (the paper's appendix C).

A diagonal component says how much each parameter matters to its examples, not which way to move it. The way comes from
the loss gradient's signs on those examples, how far from weighing the component h against the data set's Fisher f:

    θ' = (w₁ θ + w₂ (θ − δ s)) / (w₁ + w₂),    w₁ = (1−λ) floored f,    w₂ = λ h,

so that a parameter moves by up to δ where the component needs it more than the data set does, and hardly otherwise.
"""

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._types import Examples, PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind
from npeff_jax.perturbation._direction import check_component, check_decomposition_of
from npeff_jax.perturbation._divergence import perturbed_kl
from npeff_jax.perturbation._loss import loss_gradient


class Floor(enum.Enum):
    """What the floor does to the data set's Fisher."""

    RAISED = "raised"
    """max(f, floor), as meant: parameters that the data set ignores keep a little weight against the component."""
    CAPPED = "capped"
    """min(f, floor), as the authors' code has it: hardly any parameter keeps weight, so that far more of them move."""


class Targets(enum.Enum):
    """Whose labels the loss gradient is taken with."""

    LABELS = "labels"
    """The data set's; the model's predictions where it has none."""
    PREDICTIONS = "predictions"
    """The model's own."""


@dataclasses.dataclass(frozen=True)
class DiagonalPerturbation:
    """How diagonal components perturb.

    Attributes:
        kl_range: (low, high) for the mean KL on the component's top examples, in nats. The default is large enough to
            stand out of rounding, and small enough for predictions to keep their character.
        weights: λ, tried in this order until one reaches the range.
        max_delta: the largest δ tried; parameters of trained networks are of size 0.01 to 1, so 1 destroys most.
        floor: what is done with the floor.
        floor_value: the floor, against an f of unit L2 norm.
        targets: whose labels the loss gradient is taken with.
    """

    kl_range: tuple[float, float] = (0.05, 0.2)
    weights: tuple[float, ...] = (0.5, 0.1, 0.9)
    max_delta: float = 1.0
    floor: Floor = Floor.RAISED
    floor_value: float = 1e-6
    targets: Targets = Targets.LABELS

    def __post_init__(self) -> None:
        low, high = self.kl_range
        if not 0 < low < high:
            raise ValueError(f"kl_range={self.kl_range} must be two increasing positive numbers")
        if not self.weights or not all(0 < weight < 1 for weight in self.weights):
            raise ValueError(f"weights={self.weights} must be numbers between 0 and 1, both excluded")
        if not (self.max_delta > 0 and self.floor_value > 0):
            raise ValueError(f"max_delta={self.max_delta} and floor_value={self.floor_value} must be positive")


@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalEdit:
    """What the search found.

    Attributes:
        change: θ' − θ, a pytree shaped like the parameters.
        delta: δ.
        weight: λ.
        kl: the mean KL on the top examples, inside the asked range.
    """

    change: PyTree
    delta: float
    weight: float
    kl: float


class UnreachableKLError(ValueError):
    """No (δ, λ) brought the mean KL into the range."""


def diagonal_edit(
    model: Model,
    decomposition: Decomposition,
    component: int,
    examples: Examples,
    *,
    fisher: PyTree,
    labels: Int[np.ndarray, "n"] | None = None,
    sign: float = 1.0,
    settings: DiagonalPerturbation = DiagonalPerturbation(),
) -> DiagonalEdit:
    """The edit of a diagonal component that moves its examples by a mean KL in the asked range.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: of diagonal PEFs.
        component: j.
        examples: the component's top examples.
        fisher: f, the data set's diagonal Fisher (`dataset_fisher`).
        labels: of the examples; the model's predictions if None.
        sign: +1 for −δ s, which lowers the examples' loss; −1 for its opposite.
        settings: range, λ, floor.

    Raises:
        UnreachableKLError: no (δ, λ) reaches the range.
        ValueError: the decomposition is of another model, or of low-rank PEFs.

    Examples:
        >>> f = dataset_fisher(model, examples)  # doctest: +SKIP
        >>> edit = diagonal_edit(model, decomposition, 0, examples[top], fisher=f)  # doctest: +SKIP
        >>> moved = perturb(model, edit.change)  # doctest: +SKIP
    """
    check_decomposition_of(model, decomposition)
    check_component(decomposition, component)
    if decomposition.kind is not FisherKind.DIAGONAL:
        raise ValueError("a component of low-rank PEFs is a direction; use component_direction")
    h, f = decomposition.pseudo_fisher(component), np.asarray(model.space.ravel(fisher))
    if not (h.any() and f.any()):
        raise ValueError(
            f"component {component} or the data set's Fisher is zero everywhere; there is nothing to weigh"
        )
    targets = labels if settings.targets is Targets.LABELS else None
    signs = np.sign(np.asarray(model.space.ravel(loss_gradient(model, examples, targets))))
    reached = []
    for weight in settings.weights:
        share = shares(h, f, weight, settings)
        pattern = model.space.unravel(jnp.asarray(-sign * signs * share, jnp.float32))
        delta, kl = _search(model, examples, pattern, settings)
        if delta is not None:
            change = jax.tree.map(lambda leaf, delta=delta: delta * leaf, pattern)
            return DiagonalEdit(change, delta, weight, kl)
        reached.append(kl)
    last = ", ".join(f"{kl:.2g} at λ={weight}" for kl, weight in zip(reached, settings.weights, strict=True))
    raise UnreachableKLError(
        f"component {component}: no δ up to {settings.max_delta} gives a mean KL in {settings.kl_range} on its top "
        f"examples (the last KL was {last}); change kl_range, max_delta or the sign"
    )


def shares(
    h: Float[np.ndarray, "m"], f: Float[np.ndarray, "m"], weight: float, settings: DiagonalPerturbation
) -> Float[np.ndarray, "m"]:
    """w₂ / (w₁ + w₂): the part of δ that each parameter moves by, from 0 to 1."""
    f, h = f / np.linalg.norm(f), h / np.linalg.norm(h)
    floored = (np.maximum if settings.floor is Floor.RAISED else np.minimum)(f, settings.floor_value)
    w1, w2 = (1 - weight) * floored, weight * h
    # A capped floor leaves both at zero where neither the data set nor the component needs a parameter: it stays.
    return np.divide(w2, w1 + w2, out=np.zeros_like(w2), where=w2 > 0)


def _search(
    model: Model, examples: Examples, pattern: PyTree, settings: DiagonalPerturbation
) -> tuple[float | None, float]:
    """δ with a mean KL in the range, by doubling and then bisecting its logarithm; (None, last KL) if there is none."""
    low, high = settings.kl_range

    def mean_kl(delta: float) -> float:
        return float(perturbed_kl(model, examples, [pattern], [delta]).mean())

    below, delta = 0.0, settings.max_delta * 2.0**-20
    kl = mean_kl(delta)
    while kl < low and delta < settings.max_delta:
        below, delta = delta, 2 * delta
        kl = mean_kl(delta)
    if kl < low:
        return None, kl
    above = delta
    for _ in range(30):  # bisection to a billionth: past it the KL jumps over the range
        if low <= kl <= high:
            return delta, kl
        below, above = (delta, above) if kl < low else (below, delta)
        delta = math.sqrt(below * above) if below > 0 else above / 2
        kl = mean_kl(delta)
    return None, kl
