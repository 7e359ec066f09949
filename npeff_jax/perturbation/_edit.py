"""`Edit`, the protocol of moves of the parameters along a component; and the search for moves of a given KL."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax._examples import choose_examples, slice_examples
from npeff_jax._types import Examples, PyTree
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model, check_model
from npeff_jax.perturbation._arguments import check_component, check_decomposition_of, check_direction, check_positive
from npeff_jax.perturbation._divergence import Passes, iterate_perturbed_kl, move
from npeff_jax.perturbation._gradients import dataset_fisher

_HALVINGS = 24
"""Halvings of the scale in the first call, down to 6e-8 of the largest. Weights on ReLU kinks leave the quadratic range
at 1e-5 of the norm that suits a trained network."""

_INSIDE = 7
"""Scales tried inside the bracket per call, which narrows it by a factor of eight."""

_ROUNDS = 10
"""Maximum number of such calls, which narrow the bracket to 1e-9; if they fail, the KL jumps over the range."""

_SHORTER = 6
"""Halvings of a norm that are tried to find one in the range of equation 2: enough for probabilities of 1e-30. Further
ones would reach the KL's rounding errors."""


class NoEditError(ValueError):
    """A component has no edit of the requested kind or size. `selectivity` leaves it out and reports the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """Input of an edit: a model, its components, and the top examples of each component.

    Attributes:
        model: the model that was decomposed.
        decomposition: its components.
        examples: n examples; None for edits that use no examples.
        labels: labels of the examples; None for the model's predictions.
        top: per component, the indices of its top examples.
        others: indices of a representative sample of the examples; None for all.
        passes: settings of forward passes.
        memo: cache of an edit between its moves, under keys of its own.
    """

    model: Model
    decomposition: Decomposition
    examples: Examples | None = None
    labels: Int[np.ndarray, "n"] | None = None
    top: Mapping[int, Int[np.ndarray, "k"]] = dataclasses.field(default_factory=dict)
    others: Int[np.ndarray, "o"] | None = None
    passes: Passes = dataclasses.field(default_factory=Passes)
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_decomposition_of(self.model, self.decomposition)

    def top_examples(self, component: int) -> tuple[Examples, Int[np.ndarray, "k"] | None]:
        """Return the top examples of a component and their labels.

        Raises:
            ValueError: the subject has no examples, or no top examples of this component.
        """
        if self.examples is None or component not in self.top:
            raise ValueError(
                f"this edit looks at the top examples of component {component}; pass Subject(..., examples=x, "
                f"top={{{component}: indices}})"
            )
        rows = np.asarray(self.top[component])
        return slice_examples(self.examples, rows), None if self.labels is None else self.labels[rows]

    @functools.cached_property
    def fisher(self) -> PyTree:
        """Diagonal Fisher of the examples ``others`` (`dataset_fisher`)."""
        if self.examples is None:
            raise ValueError("this edit needs the data set's Fisher; pass Subject(..., examples=x), or the Fisher")
        chosen = self.examples if self.others is None else choose_examples(self.examples, self.others)
        return dataset_fisher(self.model, chosen, mesh=self.passes.mesh)

    def mean_kl(self, component: int, direction: PyTree, scales: np.ndarray) -> np.ndarray:
        """Compute the mean KL over the component's top examples at each scale, in nats; infinite where it overflows."""
        examples, _ = self.top_examples(component)
        (kl,) = iterate_perturbed_kl(self.model, examples, [direction], scales, self.passes, finite=False)
        mean = np.asarray(kl, np.float64).mean(axis=1)
        return np.where(np.isfinite(mean), mean, np.inf)


class Edit(abc.ABC):
    """Protocol of moves of the parameters along a component. A subclass is a frozen dataclass of its settings.

    `selectivity` calls `move` with both signs and does the rest: KL, nulls of the same norm, predictions, tables.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Decay(Edit):
        ...     '''Shrink the parameters that a component uses.'''
        ...     share: float = 0.1
        ...     def move(self, subject, component, sign):
        ...         direction = component_direction(subject.model, subject.decomposition, component)
        ...         return jax.tree.map(lambda p, d: -sign * self.share * p * (d != 0), subject.model.params, direction)
        >>> selectivity(model, decomposition, pefs, examples, fit=fit, edits=Decay(), n_top=3, progress=False).kl.shape
        (3, 2, 12)
    """

    @abc.abstractmethod
    def move(self, subject: Subject, component: int, sign: int) -> PyTree:
        """Compute the move δ = θ' − θ.

        Args:
            subject: model, components and examples.
            component: index of the component.
            sign: +1 or −1, with a meaning defined by the edit.

        Returns:
            A pytree shaped like the parameters. Entries outside the model's mask are ignored.

        Raises:
            NoEditError: this component has no such move; others may.
        """

    def check(self, subject: Subject) -> None:  # noqa: B027 (nothing to refuse by default)
        """Raise if this edit suits no component of the subject. Called before any long work."""

    def apply(self, subject: Subject, component: int, sign: int = 1) -> Model:
        """Return a model with moved parameters; the given model is not changed."""
        if check_integer("sign", sign, -1, 1) == 0:
            raise ValueError(f"sign={sign}; expected +1 or -1")
        self.check(subject)
        component = check_component(subject.decomposition, component)
        return perturb(subject.model, self.move(subject, component, sign))


@dataclasses.dataclass(frozen=True)
class KLBudget:
    """Choose the norm of a component's moves by their mean KL on its top examples.

    The norm up to which equation 2 holds differs by orders of magnitude between models, so moves are better compared at
    equal KL than at equal norm. Both signs have the same norm, the largest at which neither exceeds the budget. If
    predictions are confident, one sign often makes them more so, which hardly changes them at any norm; a norm of its
    own would be far outside the range of equation 2.

    The budget itself can be outside that range: a class of probability 1e-6 has to become a thousand times as likely
    before the KL is 0.01 nats. So the norm is halved until doubling it multiplies the KL by about four, as equation 2
    says, and such components are moved by less KL than the budget.

    Attributes:
        nats: the budget, in nats. The sign with the larger KL uses at least nine tenths of it, unless ``max_norm`` or
            ``growth`` gives less or the KL jumps over that range.
        max_norm: the largest L2 norm to consider.
        growth: largest factor by which the KL may grow when the norm is doubled, up to this norm and up to half of it;
            16 / ``growth`` is the smallest. It is 4 in the range of equation 2. Infinity uses the whole budget, as
            does a component whose KL grows otherwise at all norms.
    """

    nats: float = 0.05
    max_norm: float = 1.0
    growth: float = 5.0

    def __post_init__(self) -> None:
        normalise(
            self,
            nats=check_positive("nats", self.nats),
            max_norm=check_positive("max_norm", self.max_norm),
            growth=check_real("growth", self.growth, 4.0, np.inf, open_low=True),
        )

    def norm_of(self, subject: Subject, component: int, direction: PyTree) -> float:
        """Find the norm of the moves along and against a unit direction.

        Raises:
            NoEditError: no norm keeps the KL within the budget.
        """
        norm = self.largest_norm(subject, component, direction)
        if np.isinf(self.growth):
            return norm
        norms = norm * 2.0 ** -np.arange(_SHORTER + 1)
        return float(norms[_first_quadratic(larger_kl(subject, component, direction, norms), self.growth)])

    def largest_norm(self, subject: Subject, component: int, direction: PyTree) -> float:
        """Find the largest norm whose KL is within the budget, whether or not equation 2 holds there.

        Raises:
            NoEditError: no norm keeps the KL within the budget.
        """
        kl_of = functools.partial(larger_kl, subject, component, direction)
        found = find_scale(kl_of, 0.9 * self.nats, self.nats, self.max_norm)
        if found.scale is not None:
            return found.scale
        if found.below > 0:  # the largest norm, or the last before a jump
            return found.below
        raise NoEditError(
            f"component {component}: no norm up to {self.max_norm:g} keeps the mean KL on its top examples within "
            f"{self.nats:.2g} nats (the smallest one tried gave {found.kl:.2g})"
        )


def _first_quadratic(kl: Float[np.ndarray, "k"], growth: float) -> int:
    """Return the first position from which the KL shrinks about fourfold twice, at halved norms; 0 if there is none.

    Below the range of equation 2 the KL consists of rounding errors, which do not shrink, or of nothing.
    """
    about_four = (kl[:-1] <= growth * kl[1:]) & (kl[:-1] >= 16 / growth * kl[1:]) & (kl[1:] > 0)
    return int(np.argmax(about_four[:-1] & about_four[1:]))


def larger_kl(subject: Subject, component: int, direction: PyTree, scales: np.ndarray) -> np.ndarray:
    """Compute `Subject.mean_kl` along and against a direction, and return the larger one at each scale."""
    return subject.mean_kl(component, direction, np.concatenate([scales, -scales])).reshape(2, -1).max(axis=0)


class FoundScale(NamedTuple):
    """Result of `find_scale`.

    Attributes:
        scale: a scale whose KL is in the range, or None.
        kl: KL at that scale, or at the last one tried.
        below: largest scale tried up to which all KLs are below the range; 0 if there is none.
    """

    scale: float | None
    kl: float
    below: float


def find_scale(kl_of: Callable[[np.ndarray], np.ndarray], low: float, high: float, largest: float) -> FoundScale:
    """Find the smallest scale at which a KL enters [low, high], starting from zero.

    Args:
        kl_of: function from several scales to their KLs.
        low: lower end of the range.
        high: upper end of the range.
        largest: largest scale; it is halved until the KL is below ``low``.
    """
    scales = largest * 2.0 ** -np.arange(_HALVINGS, -1, -1)
    below = 0.0
    for _ in range(_ROUNDS):
        kl = kl_of(scales)
        reached = np.flatnonzero(kl >= low)
        if not reached.size:
            return FoundScale(None, float(kl[-1]), float(scales[-1]))
        first = int(reached[0])
        below = float(scales[first - 1]) if first else below
        if kl[first] <= high:
            return FoundScale(float(scales[first]), float(kl[first]), below)
        above = float(scales[first])
        inside = np.arange(1, _INSIDE + 1) / (_INSIDE + 1)
        between = below * (above / below) ** inside if below else above * inside
        scales = np.append(between, above)
    return FoundScale(None, float(kl[first]), below)


def scaled(scale: float | int, direction: PyTree) -> PyTree:
    """Return ``scale * direction``, leaf by leaf: NumPy arrays on the host, JAX's in one program."""
    on_host = not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(direction))
    return (_times if on_host else _times_compiled)(scale, direction)


def _times(scale: float | int | jax.Array, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: scale * leaf, direction)


_times_compiled = jax.jit(_times)


def perturb(model: Model, direction: PyTree, scale: float | int = 1.0) -> Model:
    """Return a model whose explained parameters are θ + scale · direction. The given model is not changed.

    Args:
        model: the model.
        direction: a pytree shaped like its parameters.
        scale: signed step size.

    Raises:
        TypeError: ``scale`` is not a number.
        ValueError: the direction is not shaped like the parameters, or a value is not finite.
    """
    space = check_model(model).space
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((direction, scale))):
        check_direction(model, direction)
        scale = check_real("scale", scale, -np.inf, np.inf, open_low=True, open_high=True)
    moved = move(space.select(model.params), space.select(direction), scale)
    return dataclasses.replace(model, params=space.join(model.params, moved))


def no_move(model: Model) -> PyTree:
    """Return a move of zeros."""
    return model.space.unravel(jnp.zeros(model.space.size))
