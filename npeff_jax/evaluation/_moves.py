"""Side effects of moves of the parameters, such as repairs: accuracy per group of examples, and KL per component.

`compare_moves` computes changes of accuracy in groups of examples, with paired confidence intervals. `collateral`
computes how far the predictions of each component's top examples change, as predicted by equation 5 and as measured.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from npeff_jax._checks import check_integer
from npeff_jax._examples import count_examples, take_examples
from npeff_jax._html import facts_html, table_html
from npeff_jax._types import Examples, PyTree
from npeff_jax.evaluation._prediction import predicted_kl, rank_correlation
from npeff_jax.evaluation._ranking import top_examples
from npeff_jax.factorization import CoefficientFit, Decomposition
from npeff_jax.models import Model, check_model
from npeff_jax.pefs import Pefs
from npeff_jax.perturbation import Passes, check_direction, class_labels, no_move, perturbed_kl, perturbed_predictions

PASSES = Passes()
"""Default settings of forward passes."""


@dataclasses.dataclass(frozen=True, eq=False)
class MoveComparison:
    """Effect of d moves on the predictions of g groups of examples.

    Attributes:
        names: names of the moves.
        groups: names of the groups.
        sizes: number of examples per group.
        before: accuracy of each group without a move.
        change: (d, g), change of accuracy.
        interval: (d, g, 2), 95% confidence intervals of ``change``, from paired differences (normal approximation).
        kl: (d, g), mean KL(p_θ ‖ p_{θ+δ}) in nats.
        norms: (d,), L2 norms of the moves.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    before: Float[np.ndarray, "g"]
    change: Float[np.ndarray, "d g"]
    interval: Float[np.ndarray, "d g 2"]
    kl: Float[np.ndarray, "d g"]
    norms: Float[np.ndarray, "d"]

    def __repr__(self) -> str:
        lines = [f"Accuracy under {len(self.names)} moves, change in points (95% interval), KL in nats:"]
        for i, name in enumerate(self.names):
            cells = [f"{group} {self._cell(i, k)}" for k, group in enumerate(self.groups)]
            lines.append(f"  {name}: " + "; ".join(cells))
        return "\n".join(lines)

    def _cell(self, i: int, k: int) -> str:
        low, high = 100 * self.interval[i, k]
        return f"{100 * self.change[i, k]:+.2f} ({low:+.2f} to {high:+.2f}), KL {self.kl[i, k]:.2g}"

    def _repr_html_(self) -> str:
        facts = [
            (f"accuracy of {group}, before", f"{self.before[k]:.1%} of {self.sizes[k]}")
            for k, group in enumerate(self.groups)
        ]
        rows = [
            (name, f"{self.norms[i]:.3g}", *(self._cell(i, k) for k in range(len(self.groups))))
            for i, name in enumerate(self.names)
        ]
        return facts_html("Changes of accuracy", facts, table_html(("move", "norm", *self.groups), rows, most=40))


def compare_moves(
    model: Model,
    moves: Mapping[str, PyTree],
    examples: Examples,
    labels: Int[np.ndarray, "n"],
    *,
    groups: Mapping[str, Bool[np.ndarray, "n"]] | None = None,
    passes: Passes = PASSES,
) -> MoveComparison:
    """Compute changes of accuracy and KL under moves of the parameters, per group of examples.

    Args:
        model: the model. It is not changed.
        moves: pytrees shaped like the parameters, by name.
        examples: n examples that were not used to choose any of the moves.
        labels: labels of the examples.
        groups: masks of examples by name; a group of all examples is added as the first.
        passes: settings of forward passes.

    Raises:
        TypeError: the model's outputs have no classes, or a group is not a Boolean mask.
        ValueError: no move, no labels, or a group that is empty or of the wrong length.
    """
    check_model(model)
    examples = take_examples(examples)
    n, truth = count_examples(examples), class_labels(model, examples, labels)
    if truth is None:
        raise ValueError("labels is None; pass the class of each example, which accuracy is measured against")
    if not isinstance(moves, Mapping) or not moves:
        raise ValueError("moves is empty or has no names; pass a dict of name to pytree shaped like the parameters")
    for name, move in moves.items():
        check_direction(model, move, f"moves[{name!r}]")
    masks = {"all": np.ones(n, bool)}
    for name, mask in (groups or {}).items():
        masks[name] = check_group(name, mask, n)
    given = list(moves.values())
    options: dict[str, Any] = {"batch_size": passes.batch_size, "mesh": passes.mesh, "precision": passes.precision}
    before = perturbed_predictions(model, examples, [no_move(model)], [0.0], **options)[0, 0] == truth
    after = perturbed_predictions(model, examples, given, [1.0], **options)[:, 0] == truth
    kl = perturbed_kl(model, examples, given, [1.0], **options)[:, 0]
    steps = after.astype(np.float64) - before
    change = np.stack([steps[:, mask].mean(axis=1) for mask in masks.values()], axis=1)
    half = np.stack(
        [
            1.96 * steps[:, mask].std(axis=1, ddof=min(1, mask.sum() - 1)) / np.sqrt(mask.sum())
            for mask in masks.values()
        ],
        axis=1,
    )
    return MoveComparison(
        names=tuple(moves),
        groups=tuple(masks),
        sizes=tuple(int(mask.sum()) for mask in masks.values()),
        before=np.array([before[mask].mean() for mask in masks.values()]),
        change=change,
        interval=change[..., None] + half[..., None] * np.array([-1.0, 1.0]),
        kl=np.stack([kl[:, mask].mean(axis=1) for mask in masks.values()], axis=1),
        norms=np.array([float(np.linalg.norm(np.asarray(model.space.ravel(move)))) for move in given]),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Collateral:
    """Effect of a move of the parameters on the top examples of each component.

    Attributes:
        names: names of named components, by index.
        predicted: (r,), mean KL of each component's top examples predicted by equation 5, in nats.
        measured: (r,), the measured mean KL; NaN for a component without positive coefficients.
        others: measured mean KL of all examples.
        n_top: number of top examples per component.
    """

    names: dict[int, str]
    predicted: Float[np.ndarray, "r"]
    measured: Float[np.ndarray, "r"]
    others: float
    n_top: int

    @property
    def order(self) -> Int[np.ndarray, "r"]:
        """Components by measured KL, largest first."""
        return np.argsort(-np.nan_to_num(self.measured, nan=-1.0), kind="stable")

    @property
    def agreement(self) -> float:
        """Spearman correlation of predicted and measured KL over components."""
        known = ~np.isnan(self.measured)
        return rank_correlation(self.predicted[known], self.measured[known])

    def __repr__(self) -> str:
        first = ", ".join(f"{self._name(int(j))} {self.measured[j]:.2g}" for j in self.order[:5])
        return (
            f"Collateral of a move over {len(self.measured)} components: mean KL of all examples {self.others:.2g}, "
            f"of the top {self.n_top} of components {first}; rank correlation with equation 5 {self.agreement:.2f}"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("mean KL of all examples, nats", self.others),
            ("examples per component", self.n_top),
            ("rank correlation with equation 5", self.agreement),
        ]
        rows = [(self._name(int(j)), self.measured[j], self.predicted[j]) for j in self.order]
        heads = ("component", "KL measured", "KL by equation 5")
        return facts_html("Collateral of a move", facts, table_html(heads, rows, most=20))

    def _name(self, j: int) -> str:
        return f"{j} {self.names[j]}" if j in self.names else str(j)


def collateral(
    model: Model,
    decomposition: Decomposition,
    pefs: Pefs,
    examples: Examples,
    move: PyTree,
    *,
    fit: CoefficientFit | Decomposition,
    n_top: int = 32,
    passes: Passes = PASSES,
) -> Collateral:
    """Compute the mean KL of each component's top examples under a move of the parameters, predicted and measured.

    Args:
        model: the model that was decomposed.
        decomposition: its components.
        pefs: PEFs of ``examples``, whose norms enter equation 5.
        examples: n examples.
        move: a pytree shaped like the parameters.
        fit: coefficients of ``examples``: the result of `fit_coefficients`, or the decomposition itself.
        n_top: number of top examples per component.
        passes: settings of forward passes.

    Raises:
        ValueError: shapes disagree, or a divergence is not finite.
    """
    check_direction(model, move, "move")
    W, n_top = np.asarray(fit.coefficients), check_integer("n_top", n_top)
    examples = take_examples(examples)
    n = count_examples(examples)
    if len(W) != n or pefs.n_examples != n:
        raise ValueError(
            f"there are {n} examples, {pefs.n_examples} PEFs and {len(W)} rows of coefficients; pass the same"
        )
    expected = predicted_kl(model, decomposition, W, np.asarray(pefs.norms), move)
    options: dict[str, Any] = {"batch_size": passes.batch_size, "mesh": passes.mesh, "precision": passes.precision}
    found = perturbed_kl(model, examples, [move], [1.0], **options)[0, 0]
    predicted, measured = np.full((2, W.shape[1]), np.nan)
    for j in range(W.shape[1]):
        top = top_examples(W, j, n_top)
        top = top[W[top, j] > 0]
        if top.size:
            predicted[j], measured[j] = expected[top].mean(), found[top].mean()
    return Collateral(decomposition.names, predicted, measured, float(found.mean()), n_top)


def check_group(name: str, mask: object, n: int) -> Bool[np.ndarray, "n"]:
    """Return a mask of examples as an array, after checking it.

    Raises:
        TypeError: the mask is not Boolean.
        ValueError: the mask has the wrong length, or no example.
    """
    found = np.asarray(mask)
    if found.dtype != bool:
        raise TypeError(f"group {name!r} has dtype {found.dtype}; expected a Boolean mask over the examples")
    if found.shape != (n,) or not found.any():
        raise ValueError(
            f"group {name!r} has shape {found.shape} and {found.sum()} examples; expected ({n},), some true"
        )
    return found
