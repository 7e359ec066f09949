"""Which components stand for a model's errors, and whether moving the parameters along them repairs any (section 3.5).

A component and a sign that are chosen among many look better than they are on the examples that chose them. So some
examples choose the sign and the components, and others report what became of the accuracy.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_labels
from npeff_jax._examples import count_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._types import Examples, PyTree
from npeff_jax.evaluation._edits import SIGNS, nothing
from npeff_jax.evaluation._ranking import top_examples
from npeff_jax.models import Model
from npeff_jax.perturbation import perturbed_predictions


def top_share(
    coefficients: Float[np.ndarray, "n r"], has: Bool[np.ndarray, "n"], *, k: int = 16
) -> Float[np.ndarray, "r"]:
    """The fraction of each component's k top examples that has something, such as being predicted wrongly.

    Args:
        coefficients: W.
        has: whether each example has it.
        k: top examples, 16 in section 3.5.

    Examples:
        >>> wrong = pefs.logits.argmax(-1) != pefs.labels  # doctest: +SKIP
        >>> flawed = np.flatnonzero(top_share(fit.coefficients, wrong) >= 0.5)  # doctest: +SKIP
    """
    return np.array([has[top_examples(coefficients, j, k)].mean() for j in range(coefficients.shape[1])])


@dataclasses.dataclass(frozen=True, eq=False)
class Repairs:
    """Accuracies under d perturbations, each with both signs.

    Attributes:
        before: (n,), which examples the model predicts right.
        after: (d, 2, n), which it predicts right once perturbed; sign + first.
        choosing: (n,), which examples choose the sign; the others report.
        norm: of the perturbations.
    """

    before: Bool[np.ndarray, "n"]
    after: Bool[np.ndarray, "d 2 n"]
    choosing: Bool[np.ndarray, "n"]
    norm: float

    @property
    def choice(self) -> Float[np.ndarray, "d 2"]:
        """The change of accuracy on the examples that choose."""
        return self.after[:, :, self.choosing].mean(axis=-1) - self.before[self.choosing].mean()

    @property
    def sign(self) -> Int[np.ndarray, "d"]:
        """The better sign there, +1 or −1."""
        return np.where(self.choice[:, 0] >= self.choice[:, 1], 1, -1)

    @property
    def chosen_change(self) -> Float[np.ndarray, "d"]:
        """The change of accuracy that chose the sign: too good an estimate of what it does elsewhere."""
        return self.choice.max(axis=1)

    @property
    def change(self) -> Float[np.ndarray, "d"]:
        """The change of accuracy on the examples that report, with the chosen sign."""
        return self._steps(self.sign).mean(axis=1)

    def change_with(self, sign: Int[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
        """The same with signs that are chosen in another way, such as `loss_sign`."""
        return self._steps(sign).mean(axis=1)

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "d 2"]:
        """A confidence interval of `change`, from the same examples before and after (normal approximation).

        The variance is that of the differences −1, 0 and 1: examples that stay right or wrong add nothing to it.
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
    """Move the parameters along each direction, both ways, and count what is predicted right before and after.

    Args:
        model: the model. It is not changed.
        directions: of unit norm, such as `perturbation.component_directions` of components that stand for errors.
        examples: n, best ones that no component was found in.
        labels: theirs.
        choosing: which of them choose the signs; the others report.
        norm: L2 norm of the perturbations, 0.3 in section 3.5.
        batch_size: examples of one forward pass.

    Raises:
        ValueError: labels of another number of examples, all or no examples choose, or there is no direction.

    Examples:
        >>> directions = component_directions(model, expanded, flawed, reject_below=0.35)  # doctest: +SKIP
        >>> found = find_repairs(model, directions, examples, labels, choosing=np.arange(n) < n // 2)  # doctest: +SKIP
    """
    n = count_examples(examples)
    truth = check_labels(labels, n)
    if choosing.shape != (n,) or choosing.all() or not choosing.any():
        raise ValueError(
            f"choosing has shape {choosing.shape} and {choosing.sum()} examples; expected ({n},), true for some and "
            "false for others: a repair is reported on examples that did not choose it"
        )
    before = perturbed_predictions(model, examples, [nothing(model)], batch_size=batch_size)[0, 0] == truth
    scales = [sign * norm for sign in SIGNS]
    after = perturbed_predictions(model, examples, directions, scales, batch_size=batch_size) == truth
    return Repairs(before, after, choosing, norm)
