"""A component of D-NPEFF as an edit of the parameters (the paper's appendix C).

A diagonal component says how much each parameter matters to its examples, not which way to move it. The way comes from
the loss gradient's signs on those examples, how far from weighing the component h against the data set's Fisher f:

    θ' = (w₁ θ + w₂ (θ − δ s)) / (w₁ + w₂),    w₁ = (1−λ) floored f,    w₂ = λ h,

so that a parameter moves by up to δ where the component needs it more than the data set does, and hardly otherwise.
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


class UnreachableKLError(NoEditError):
    """No (δ, λ) brought the mean KL into the range."""


@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalMove:
    """The move of a diagonal component, and the settings that gave it.

    Attributes:
        change: θ' − θ, a pytree shaped like the parameters.
        delta: δ.
        weight: λ.
        kl: the mean KL on the top examples; NaN where the norm was given instead of a range of it.
    """

    change: PyTree
    delta: float
    weight: float
    kl: float


@dataclasses.dataclass(frozen=True)
class DiagonalEdit(Edit):
    """A move of the parameters that a diagonal component needs more than the data set does (the paper's appendix C).

    Attributes:
        kl_range: (low, high) for the mean KL on the component's top examples, in nats. The default is large enough to
            stand out of rounding, and small enough for predictions to keep their character.
        weights: λ, tried in this order until one reaches the range.
        max_delta: the largest δ tried; parameters of trained networks are of size 0.01 to 1, so 1 destroys most.
        floor: what is done with the floor.
        floor_value: the floor, against an f of unit L2 norm.
        targets: whose labels the loss gradient is taken with.
        norm: L2 norm of the move, in place of a range of the KL; the first of ``weights`` is then used.
        fisher: f, the data set's diagonal Fisher (`dataset_fisher`); that of the subject's other examples if None.
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
        """Find the move, with δ, λ and its KL.

        Args:
            subject: model, diagonal components, and the component's top examples.
            component: j.
            sign: +1 for −δ s, which lowers the examples' loss; −1 for its opposite.

        Raises:
            NoEditError: the component or the data set's Fisher is zero everywhere.
            UnreachableKLError: no (δ, λ) reaches the range.
        """
        space, fisher = subject.model.space, subject.fisher if self.fisher is None else self.fisher
        h, f = subject.decomposition.pseudo_fisher(component), np.asarray(space.ravel(fisher))
        if not (h.any() and f.any()):
            raise NoEditError(
                f"component {component} or the data set's Fisher is zero everywhere; there is nothing to weigh"
            )
        examples, labels = subject.top_examples(component)
        gradient = loss_gradient(subject.model, examples, labels if self.targets is Targets.LABELS else None)
        signs = np.sign(np.asarray(space.ravel(gradient)))

        def pattern(weight: float) -> PyTree:
            return space.unravel(jnp.asarray(-sign * signs * shares(h, f, weight, self), jnp.float32))

        if self.norm is not None:
            along = pattern(self.weights[0])
            length = float(np.linalg.norm(np.asarray(space.ravel(along), np.float64)))
            if length == 0:
                raise NoEditError(f"component {component}: no parameter that it needs has a loss gradient to follow")
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
    """Find the move of a diagonal component that changes its examples by a mean KL in the asked range.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: of diagonal PEFs.
        component: j.
        examples: the component's top examples.
        fisher: f, the data set's diagonal Fisher (`dataset_fisher`).
        labels: of the examples; the model's predictions if None.
        sign: +1 for −δ s, which lowers the examples' loss; −1 for its opposite.
        edit: range, λ, floor.

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
    """Compute w₂ / (w₁ + w₂): the part of δ that each parameter moves by, from 0 to 1."""
    f, h = f / np.linalg.norm(f), h / np.linalg.norm(h)
    floored = (np.maximum if edit.floor is Floor.RAISED else np.minimum)(f, edit.floor_value)
    w1, w2 = (1 - weight) * floored, weight * h
    # A capped floor leaves both at zero where neither the data set nor the component needs a parameter: it stays.
    return np.divide(w2, w1 + w2, out=np.zeros_like(w2), where=w2 > 0)
