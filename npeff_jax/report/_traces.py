"""Traces of each component's direction through the model, on the component's top examples."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from npeff_jax._examples import slice_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Examples
from npeff_jax.evaluation import Tracer, top_examples
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.perturbation import component_direction
from npeff_jax.report._component import Trace
from npeff_jax.report._places import places_of

_SHOWN_CLASSES = 3


def trace_components(
    model: Model,
    decomposition: Decomposition,
    coefficients: Float[np.ndarray, "n r"],
    examples: Examples,
    *,
    n_top: int = 1,
    positions: Sequence[Sequence[str]] | None = None,
    progress: Progress = True,
) -> list[tuple[Trace, ...]]:
    """Trace each component on its top examples, for `write_report`.

    Args:
        model: a model with ``intermediates_fn``.
        decomposition: the decomposition of this model.
        coefficients: (n, r), coefficients of ``examples``.
        examples: the model's inputs.
        n_top: number of top examples to trace per component.
        positions: per example, names of its positions, such as its tokens; numbered by default.
        progress: a bar, a stream for JSON lines, or False.

    Raises:
        ValueError: If the model has no ``intermediates_fn``, or is not the one that was decomposed.
    """
    layout = decomposition.schema.layout
    places = places_of(layout)
    groups: dict[str, list[str]] = {layer: [] for layer in places.layers}
    for parameter, (layer, _) in zip(layout.parameters, places.cells):
        groups[places.layers[layer]].append(parameter.name)
    tracer = Tracer(model, groups)
    made = []
    with progress_bar(progress, "traces", decomposition.n_components, "component") as advance:
        for component in range(decomposition.n_components):
            direction = component_direction(model, decomposition, component)
            top = np.asarray(top_examples(coefficients, component, n_top))
            made.append(tuple(_trace(tracer, model, direction, examples, int(i), positions) for i in top))
            advance(1)
    return made


def _trace(
    tracer: Tracer, model: Model, direction: Any, examples: Examples, i: int, positions: Sequence[Sequence[str]] | None
) -> Trace:
    example = jax.tree.map(lambda leaf: leaf[0], slice_examples(examples, slice(i, i + 1)))
    traced = tracer(direction, example)
    likely = np.argsort(-np.asarray(model.logits_fn(model.params, example)), kind="stable")[:_SHOWN_CLASSES]
    longest = max(len(change) for change in traced.change)
    return Trace(
        example=i,
        stages=traced.stages,
        positions=tuple(str(p) for p in (positions[i] if positions is not None else range(longest)))[:longest],
        change=tuple(tuple(float(v) for v in change) for change in traced.change),
        layers=traced.groups,
        classes=tuple(int(c) for c in likely),
        logits=tuple(tuple(float(v) for v in row[likely]) for row in traced.logits),
    )
