"""Repair of wrong predictions by moving the parameters along components that represent errors (section 3.5).

A component and sign chosen among many have an optimistically biased accuracy on the examples used for the choice. So
some examples choose the sign and the component, and others measure the accuracy.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from npeff_jax._examples import count_examples, take_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._types import Examples, PyTree
from npeff_jax.models import Model, check_model
from npeff_jax.perturbation import check_positive, class_labels, no_move, perturbed_predictions


@dataclasses.dataclass(frozen=True, eq=False)
class Repairs:
    """Correct predictions under d perturbations, each with both signs.

    Attributes:
        before: (n,), whether each example is predicted correctly by the model.
        after: (d, 2, n), whether it is predicted correctly by the perturbed model; sign + first.
        choosing: (n,), whether each example is used to choose the sign; the others measure the change.
        norm: L2 norm of the perturbations.
    """

    before: Bool[np.ndarray, "n"]
    after: Bool[np.ndarray, "d 2 n"]
    choosing: Bool[np.ndarray, "n"]
    norm: float

    @property
    def choice(self) -> Float[np.ndarray, "d 2"]:
        """Change of accuracy on the examples that choose, per sign."""
        return self.after[:, :, self.choosing].mean(axis=-1) - self.before[self.choosing].mean()

    @property
    def sign(self) -> Int[np.ndarray, "d"]:
        """Sign with the larger `choice`, +1 or −1."""
        return np.where(self.choice[:, 0] >= self.choice[:, 1], 1, -1)

    @property
    def chosen_change(self) -> Float[np.ndarray, "d"]:
        """Change of accuracy with the chosen sign on the examples that choose, which is biased upwards."""
        return self.choice.max(axis=1)

    @property
    def change(self) -> Float[np.ndarray, "d"]:
        """Change of accuracy with the chosen sign, on the examples that did not choose it."""
        return self._steps(self.sign).mean(axis=1)

    def change_with(self, sign: Int[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
        """Return `change` with given signs, such as from `loss_sign`, instead of the chosen ones."""
        return self._steps(sign).mean(axis=1)

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "d 2"]:
        """Return a confidence interval of `change` from paired differences (normal approximation).

        The differences are −1, 0 or 1 per example.
        """
        steps = self._steps(self.sign)
        half = scipy.stats.norm.ppf((1 + level) / 2) * steps.std(axis=1, ddof=1) / np.sqrt(steps.shape[1])
        return self.change[:, None] + half[:, None] * np.array([-1, 1])

    def _steps(self, sign: Int[np.ndarray, "d"]) -> Float[np.ndarray, "d reporting"]:
        after = np.where((sign > 0)[:, None], self.after[:, 0], self.after[:, 1])[:, ~self.choosing]
        return after.astype(np.float64) - self.before[~self.choosing]

    def __repr__(self) -> str:
        best = int(np.argmax(self.chosen_change))
        low, high = 100 * self.interval()[best]
        return (
            f"Repairs by {len(self.after)} perturbations of norm {self.norm:.3g}: accuracy {self.before.mean():.1%}; "
            f"the one chosen as best changes it by {100 * self.change[best]:+.2f} points ({low:+.2f} to {high:+.2f}) "
            f"on {(~self.choosing).sum()} other examples"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("perturbations", f"{len(self.after)} of norm {self.norm:.3g}, both signs"),
            ("accuracy before", f"{self.before.mean():.1%}"),
            ("examples that choose", int(self.choosing.sum())),
            ("examples that report", int((~self.choosing).sum())),
        ]
        intervals = self.interval()
        heads = ("perturbation", "sign", "points where chosen", "points reported", "95% interval")
        rows = [
            (
                int(i),
                f"{self.sign[i]:+d}",
                f"{100 * self.chosen_change[i]:+.2f}",
                f"{100 * self.change[i]:+.2f}",
                "{:+.2f} to {:+.2f}".format(*100 * intervals[i]),
            )
            for i in np.argsort(-self.chosen_change)
        ]
        return facts_html("Repairs: changes of accuracy", facts, table_html(heads, rows))


def find_repairs(
    model: Model,
    directions: Iterable[PyTree],
    examples: Examples,
    labels: Int[np.ndarray, "n"],
    *,
    choosing: Bool[np.ndarray, "n"],
    norm: float = 0.3,
    batch_size: int = 256,
) -> Repairs:
    """Measure accuracy before and after moving the parameters along each direction, with both signs.

    Args:
        model: the model. It is not changed.
        directions: unit-norm directions, such as `perturbation.component_directions` of components that represent
            errors.
        examples: n examples, preferably not among the decomposed ones.
        labels: labels of the examples.
        choosing: (n,), mask of the examples that choose the signs; the others measure the change.
        norm: L2 norm of the perturbations; 0.3 in section 3.5.
        batch_size: examples per forward pass.

    Raises:
        TypeError: the model's outputs have no classes, or ``choosing`` is not a Boolean mask.
        ValueError: wrong number of labels, labels outside the classes, a mask of all or no examples, or no direction.

    Examples:
        >>> directions = component_directions(model, decomposition, [0, 2], reject_below=0.35)
        >>> found = find_repairs(model, directions, examples, labels, choosing=np.arange(12) < 6)
        >>> found.change.shape
        (2,)
    """
    check_model(model)
    examples = take_examples(examples)
    n = count_examples(examples)
    truth, choosing = class_labels(model, examples, labels), np.asarray(choosing)
    norm = check_positive("norm", norm)
    if truth is None:
        raise ValueError("labels is None; pass the class of each example, which accuracy is measured against")
    if choosing.dtype != bool:
        raise TypeError(f"choosing has dtype {choosing.dtype}; expected a Boolean mask of the examples that choose")
    if choosing.shape != (n,) or choosing.all() or not choosing.any():
        raise ValueError(
            f"choosing has shape {choosing.shape} and {choosing.sum()} examples; expected ({n},), true for some and "
            "false for others: a repair is reported on examples that did not choose it"
        )
    before = perturbed_predictions(model, examples, [no_move(model)], [0.0], batch_size=batch_size)[0, 0] == truth
    after = perturbed_predictions(model, examples, directions, [norm, -norm], batch_size=batch_size) == truth
    if not len(after):
        raise ValueError("directions is empty; pass at least one direction")
    return Repairs(before, after, choosing, norm)
