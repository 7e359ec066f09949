"""Traces of each component's direction through the model, on the component's top examples."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from npeff_jax._examples import slice_examples
from npeff_jax._parameters import stacked
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Examples, PyTree
from npeff_jax.evaluation import PerturbationTrace, Tracer, top_examples
from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.perturbation import component_direction
from npeff_jax.report._component import Trace
from npeff_jax.report._places import places_of

_SHOWN_CLASSES = 3

MOST_PAIRS, DIRECTION_BYTES = 16, 1 << 28
"""Maximum number of (component, example) pairs traced in one call, and the memory of their directions."""


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
    tracer, logits_of = Tracer(model, groups), model.program(_logits, model)
    r = decomposition.n_components
    pairs = [(j, int(i)) for j in range(r) for i in np.asarray(top_examples(coefficients, j, n_top))]
    size = max(1, min(len(pairs), MOST_PAIRS, DIRECTION_BYTES // (4 * model.space.size)))
    made: list[list[Trace]] = [[] for _ in range(r)]
    with progress_bar(progress, "traces", len(pairs), "trace") as advance:
        for first in range(0, len(pairs), size):
            part = pairs[first : first + size]
            padded = part + part[-1:] * (size - len(part))  # one compilation
            along = {j: component_direction(model, decomposition, j) for j in dict(part)}
            directions = stacked([along[j] for j, _ in padded])
            taken = slice_examples(examples, np.array([i for _, i in padded]))
            traced, logits = tracer.pairs(directions, taken), np.asarray(logits_of(model.params, taken))
            for (j, i), trace, row in zip(part, traced, logits):
                made[j].append(_shown(trace, row, i, positions))
            advance(len(part))
    return [tuple(of_component) for of_component in made]


def _logits(params: PyTree, examples: Examples, model: Model) -> jax.Array:
    return jax.vmap(model.logits_fn, (None, 0))(params, examples)


def _shown(traced: PerturbationTrace, logits: np.ndarray, i: int, positions: Sequence[Sequence[str]] | None) -> Trace:
    likely = np.argsort(-logits, kind="stable")[:_SHOWN_CLASSES]
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
