"""Repairs in the span of components: some examples choose the move, the others measure its effect."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from npeff_jax._checks import check_integer, check_real
from npeff_jax._examples import choose_examples, count_examples, take_examples
from npeff_jax._html import facts_html
from npeff_jax._types import Components, Examples
from npeff_jax.evaluation._moves import MoveComparison, compare_moves
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.perturbation import (
    Passes,
    SpanMove,
    TrustRegion,
    check_decomposition_of,
    choose_components,
    class_labels,
    component_directions,
    no_move,
    perturbed_predictions,
    span_move,
)

WITHIN, PASSES = TrustRegion(), Passes()
"""Default settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class Repair:
    """A move that repairs wrong predictions, and the change of accuracy on examples that did not choose it.

    Attributes:
        by: the move, its weights per component and its KL where it was chosen.
        components: that were combined.
        accuracy: on the examples that report: all, those predicted wrongly and those predicted right before.
        n_choosing: examples that chose.
    """

    by: SpanMove
    components: Int[np.ndarray, "c"]
    accuracy: MoveComparison
    n_choosing: int

    def __repr__(self) -> str:
        low, high = 100 * self.accuracy.interval[0, 0]
        parts = ", ".join(
            f"{name} {100 * change:+.2f}"
            for name, change in zip(self.accuracy.groups[1:], self.accuracy.change[0, 1:], strict=True)
        )
        return (
            f"Repair along {len(self.components)} components, norm {self.by.norm:.3g}: accuracy "
            f"{self.accuracy.before[0]:.1%} changes by {100 * self.accuracy.change[0, 0]:+.2f} points ({low:+.2f} to "
            f"{high:+.2f}) on {self.accuracy.sizes[0]} examples that did not choose it; {parts}"
        )

    def _repr_html_(self) -> str:
        facts = [("components", len(self.components)), ("examples that choose", self.n_choosing)]
        return facts_html("Repair in the span of components", facts, self.by._repr_html_(), self.accuracy._repr_html_())


def repair(
    model: Model,
    decomposition: Decomposition,
    examples: Examples,
    labels: Int[np.ndarray, "n"],
    *,
    choosing: float = 0.4,
    components: Components | None = None,
    within: TrustRegion = WITHIN,
    seed: int = 0,
    passes: Passes = PASSES,
) -> Repair:
    """Find a move in the span of components that repairs wrong predictions, and measure it on other examples.

    A random part of the examples chooses the move: all of them give the loss gradient, and those predicted correctly
    the KL that the budget constrains (`span_move`). The loss of the wrong predictions alone was found to repair fewer.

    Args:
        model: the model that was decomposed. It is not changed.
        decomposition: a decomposition of low-rank PEFs.
        examples: n examples, preferably not decomposed.
        labels: labels of the examples.
        choosing: fraction of the examples that choose the move; the others measure its effect.
        components: indices or a Boolean mask of the components to combine; by default all.
        within: KL budget and settings.
        seed: seed of the split.
        passes: settings of forward passes.

    Raises:
        TypeError: the model's outputs have no classes.
        ValueError: no labels, diagonal PEFs, or among the examples that choose, or report, all or none are predicted
            right.
    """
    check_decomposition_of(model, decomposition)
    examples = take_examples(examples)
    n, truth = count_examples(examples), class_labels(model, examples, labels)
    if truth is None:
        raise ValueError("labels is None; a repair mends predictions that differ from the label")
    choosing = check_real("choosing", choosing, 0.0, 1.0, open_low=True, open_high=True)
    chosen = choose_components(components, decomposition.n_components)
    directions = component_directions(model, decomposition, chosen)
    order = np.random.default_rng(check_integer("seed", seed, 0)).permutation(n)
    chooses = np.zeros(n, bool)
    chooses[order[: round(choosing * n)]] = True
    options: dict[str, Any] = {"batch_size": passes.batch_size, "mesh": passes.mesh, "precision": passes.precision}
    right = perturbed_predictions(model, examples, [no_move(model)], [0.0], **options)[0, 0] == truth
    for mask, name in ((chooses, "choose"), (~chooses, "report")):
        if not mask.any() or right[mask].all() or not right[mask].any():
            raise ValueError(
                f"of the {mask.sum()} examples that {name}, {int(right[mask].sum())} are right; a repair needs "
                "both right and wrong ones: pass more examples, or another fraction"
            )
    all_ones, right_ones = np.flatnonzero(chooses), np.flatnonzero(chooses & right)
    found = span_move(
        model,
        directions,
        choose_examples(examples, all_ones),
        truth[all_ones],
        choose_examples(examples, right_ones),
        within=within,
        passes=passes,
    )
    rest = np.flatnonzero(~chooses)
    table = compare_moves(
        model,
        {"repair": found.move},
        choose_examples(examples, rest),
        truth[rest],
        groups={"wrong before": ~right[rest], "right before": right[rest]},
        passes=passes,
    )
    return Repair(found, chosen, table, int(chooses.sum()))
