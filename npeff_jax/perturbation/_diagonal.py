"""Edit of the parameters for a component of D-NPEFF (the paper's appendix C).

A diagonal component h gives the importance of each parameter for its examples, but no direction. The signs s come from
the loss gradient on those examples, and the sizes from weighing h against the Fisher f of the data set:

    θ' = (w₁ θ + w₂ (θ − δ s)) / (w₁ + w₂),    w₁ = (1−λ) floored f,    w₂ = λ h.

A parameter moves by up to δ if it is more important to the component than to the data set, and hardly otherwise.
"""

import dataclasses
import enum

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import as_enum, check_numbers, normalise
from npeff_jax._examples import count_examples
from npeff_jax._types import Examples, PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import FisherKind
from npeff_jax.perturbation._arguments import check_component, check_direction, check_positive
from npeff_jax.perturbation._edit import Edit, NoEditError, Subject, find_scale, scaled
from npeff_jax.perturbation._gradients import loss_gradient


class Floor(enum.Enum):
    """How the floor is applied to the Fisher of the data set."""

    RAISED = "raised"
    """max(f, floor), as described: parameters unused by the data set keep a small weight against the component."""
    CAPPED = "capped"
    """min(f, floor), as in the authors' code: almost all weights become small, so that far more parameters move."""


class Targets(enum.Enum):
    """Source of the labels for the loss gradient."""

    LABELS = "labels"
    """Labels of the data set, or the model's predictions if there are none."""
    PREDICTIONS = "predictions"
    """Predictions of the model."""


class UnreachableKLError(NoEditError):
    """No (δ, λ) gives a mean KL in the requested range."""


@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalMove:
    """The move of a diagonal component, and the settings that produced it.

    Attributes:
        change: θ' − θ, a pytree shaped like the parameters.
        delta: δ.
        weight: λ.
        kl: mean KL on the top examples, in nats; NaN if the edit has a given norm instead of a KL range.
    """

    change: PyTree
    delta: float
    weight: float
    kl: float


@dataclasses.dataclass(frozen=True)
class DiagonalEdit(Edit):
    """Move of the parameters that matter more to a diagonal component than to the data set (the paper's appendix C).

    Attributes:
        kl_range: (low, high), range for the mean KL on the component's top examples, in nats. The default is well above
            rounding, and small enough that predictions change only moderately.
        weights: values of λ, tried in this order until one reaches the range.
        max_delta: largest δ tried. Parameters of trained networks have magnitudes from 0.01 to 1, so δ = 1 destroys
            most predictions.
        floor: how the floor is applied.
        floor_value: the floor, for f scaled to unit L2 norm.
        targets: source of the labels for the loss gradient.
        norm: L2 norm of the move, instead of a KL range; λ is then the first of ``weights``.
        fisher: f, diagonal Fisher of the data set (`dataset_fisher`); by default that of the subject's other examples.
    """

    kl_range: tuple[float, float] = (0.05, 0.2)
    weights: tuple[float, ...] = (0.5, 0.1, 0.9)
    max_delta: float = 1.0
    floor: Floor = Floor.RAISED
    floor_value: float = 1e-6
    targets: Targets = Targets.LABELS
    norm: float | None = None
    fisher: PyTree | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_numbers("kl_range", self.kl_range)
        check_numbers("weights", self.weights)
        if np.shape(self.kl_range) != (2,) or not 0 < self.kl_range[0] < self.kl_range[1] < np.inf:
            raise ValueError(f"kl_range={self.kl_range} must be two increasing positive numbers")
        weights = tuple(np.atleast_1d(np.asarray(self.weights, np.float64)).tolist())
        if not weights or not all(0 < weight < 1 for weight in weights):
            raise ValueError(f"weights={self.weights} must be numbers between 0 and 1, both excluded")
        numbers = ("max_delta", "floor_value", *(() if self.norm is None else ("norm",)))
        normalise(
            self,
            kl_range=tuple(float(bound) for bound in self.kl_range),
            weights=weights,
            floor=as_enum("floor", self.floor, Floor),
            targets=as_enum("targets", self.targets, Targets),
            **{name: check_positive(name, getattr(self, name)) for name in numbers},
        )

    def check(self, subject: Subject) -> None:
        if subject.decomposition.kind is not FisherKind.DIAGONAL:
            raise ValueError(
                "a component of low-rank PEFs is a direction; use component_direction, or DirectionEdit in selectivity"
            )
        if self.fisher is not None:
            check_direction(subject.model, self.fisher, "fisher")

    def move(self, subject: Subject, component: int, sign: int) -> PyTree:
        return self.find(subject, component, sign).change

    def find(self, subject: Subject, component: int, sign: int) -> DiagonalMove:
        """Search for the move, and return it with δ, λ and its KL.

        Args:
            subject: model, diagonal components, and the component's top examples.
            component: index j.
            sign: +1 for −δ s, which lowers the examples' loss; −1 for its opposite.

        Raises:
            NoEditError: the component or the data set's Fisher is zero everywhere.
            UnreachableKLError: no (δ, λ) reaches the range.
        """
        space, fisher = subject.model.space, subject.fisher if self.fisher is None else self.fisher
        h, f = subject.decomposition.pseudo_fisher(component), np.asarray(space.ravel(fisher))
        if not (h.any() and f.any()):
            raise NoEditError(f"component {component} or the data set's Fisher is zero everywhere, so it has no edit")
        examples, labels = subject.top_examples(component)
        gradient = loss_gradient(subject.model, examples, labels if self.targets is Targets.LABELS else None)
        signs = np.sign(np.asarray(space.ravel(gradient)))

        def pattern(weight: float) -> PyTree:
            return space.unravel(jnp.asarray(-sign * signs * shares(h, f, weight, self), jnp.float32))

        if self.norm is not None:
            along = pattern(self.weights[0])
            length = float(np.linalg.norm(np.asarray(space.ravel(along), np.float64)))
            if length == 0:
                raise NoEditError(f"component {component}: the loss gradient is zero at all of its parameters")
            return DiagonalMove(scaled(self.norm / length, along), self.norm / length, self.weights[0], float("nan"))
        reached = []
        for weight in self.weights:
            along = pattern(weight)

            def kl_of(deltas: np.ndarray, along: PyTree = along) -> np.ndarray:
                return subject.mean_kl(component, along, deltas)

            delta, kl, _ = find_scale(kl_of, *self.kl_range, self.max_delta)
            if delta is not None:
                return DiagonalMove(scaled(delta, along), delta, weight, kl)
            reached.append(f"{kl:.2g} at λ={weight}")
        raise UnreachableKLError(
            f"component {component}: no δ up to {self.max_delta} gives a mean KL in {self.kl_range} on its top "
            f"examples (the last KL was {', '.join(reached)}); change kl_range, max_delta or the sign"
        )


def diagonal_move(
    model: Model,
    decomposition: Decomposition,
    component: int,
    examples: Examples,
    *,
    fisher: PyTree,
    labels: Int[np.ndarray, "n"] | None = None,
    sign: int = 1,
    edit: DiagonalEdit = DiagonalEdit(),
) -> DiagonalMove:
    """Find the move of a diagonal component whose mean KL on the component's examples is in a given range.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: a decomposition of diagonal PEFs.
        component: index j.
        examples: the component's top examples.
        fisher: f, diagonal Fisher of the data set (`dataset_fisher`).
        labels: labels of the examples; by default the model's predictions.
        sign: +1 for −δ s, which lowers the examples' loss; −1 for its opposite.
        edit: settings, such as the KL range.

    Raises:
        UnreachableKLError: no (δ, λ) reaches the range.
        ValueError: the decomposition is of another model, or of low-rank PEFs.

    Examples:
        >>> f = dataset_fisher(model, examples)
        >>> top = top_examples(diagonal.coefficients, 0, 4)
        >>> found = diagonal_move(model, diagonal, 0, {name: leaf[top] for name, leaf in examples.items()}, fisher=f)
        >>> 0.05 <= found.kl <= 0.2
        True
        >>> moved = perturb(model, found.change)
    """
    top = {component: np.arange(count_examples(examples))}
    subject = Subject(model, decomposition, examples, labels, top)
    component = check_component(decomposition, component)
    edit = dataclasses.replace(edit, fisher=fisher)
    edit.check(subject)
    return edit.find(subject, component, 1 if sign > 0 else -1)


def shares(
    h: Float[np.ndarray, "m"], f: Float[np.ndarray, "m"], weight: float, edit: DiagonalEdit
) -> Float[np.ndarray, "m"]:
    """Compute w₂ / (w₁ + w₂), the fraction of δ by which each parameter moves."""
    f, h = f / np.linalg.norm(f), h / np.linalg.norm(h)
    floored = (np.maximum if edit.floor is Floor.RAISED else np.minimum)(f, edit.floor_value)
    w1, w2 = (1 - weight) * floored, weight * h
    # With a capped floor both weights are zero at parameters that neither f nor h uses; these do not move.
    return np.divide(w2, w1 + w2, out=np.zeros_like(w2), where=w2 > 0)
