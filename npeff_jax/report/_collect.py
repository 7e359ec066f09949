"""Collection of results into report data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from npeff_jax.factorization import Decomposition
from npeff_jax.models import Model
from npeff_jax.pefs import Pefs
from npeff_jax.report import _data as data
from npeff_jax.report._anatomy import anatomy, layout_by_similarity
from npeff_jax.report._cards import Cards, Extras, as_rows
from npeff_jax.report._display import Display, Images, Texts, sheets_of
from npeff_jax.report._examples import Shown
from npeff_jax.report._places import places_of
from npeff_jax.report._shelf import Shelf, shelf_of

_SMALLEST = 1e-8
"""Smaller positive coefficients are drawn as this value: they are rounding residue of the solvers."""

_TABLE_EXAMPLES = 20_000
"""Largest number of examples that are all listed in the table: about 100 bytes each, 2 MB together."""

_TABLE_COMPONENTS = 6
"""Number of coefficients listed per example, largest first; further ones explain little of its Fisher."""


def collect(
    decomposition: Decomposition,
    heldout: Pefs | None,
    fit: Any,
    display: Display | None,
    model: Model | None,
    title: str,
    class_names: Sequence[str] | None,
    shown: Shown,
    extras: Extras,
    about: data.About,
) -> data.ReportData:
    """Collect all contents of a report into `ReportData`, from the checked arguments of `report_data`."""
    shelf = shelf_of(decomposition, heldout, None if fit is None else np.asarray(fit.coefficients), model, display)
    bones, places = anatomy(decomposition), places_of(decomposition.schema.layout)
    names = _class_names(class_names, model, decomposition.schema.n_classes)
    segments = tuple(display.names) if isinstance(display, Texts) else ()
    cards = Cards(decomposition, shelf, shown, bones, places, extras, names, segments)
    components = cards.all()
    mean_places = np.array([component.places for component in components]).mean(0)
    positive = np.maximum(shelf.coefficients[shelf.coefficients > 0], _SMALLEST)
    return data.ReportData(
        title=title,
        run=_run(decomposition),
        class_names=names,
        examples=_examples(shelf, list(cards.numbers), display, fit),
        coefficients=_histogram(np.log10(positive)) or data.Histogram((0.0, 1.0), (0,)),
        zero_coefficients=float(np.mean(shelf.coefficients == 0)),
        decay_at=tuple(float(rank) for rank in cards.decay_at),
        places=data.Places(places.layers, places.kinds, as_rows(places.sizes), as_rows(mean_places)),
        map=tuple((float(x), float(y)) for x, y in layout_by_similarity(bones.similarity)),
        selectivity_ceiling=None if extras.selectivity is None else float(extras.selectivity.ceiling),
        components=components,
        moved_all=None if extras.collateral is None else float(extras.collateral.others),
        about=about,
    )


def _run(decomposition: Decomposition) -> data.Run:
    schema, history = decomposition.schema, decomposition.history
    return data.Run(
        flavour=decomposition.kind.value,
        n_components=decomposition.n_components,
        n_frozen=decomposition.n_frozen,
        n_decomposed=len(decomposition.coefficients),
        n_classes=schema.n_classes,
        n_parameters=schema.layout.size,
        n_kept_parameters=len(decomposition.parameter_indices),
        model=schema.model,
        settings=dict(decomposition.settings),
        pefs={
            "representation": schema.representation,
            "normalization": schema.normalization,
            "keep": schema.keep,
            "dtype": schema.dtype,
            "precision": schema.precision,
        },
        stopped=decomposition.stopped,
        steps=tuple(int(step) for step in history.step),
        losses=tuple(float(loss) for loss in history.loss),
        seconds=tuple(float(second) for second in history.seconds),
        code_version=schema.code_version,
    )


def _examples(shelf: Shelf, positions: list[int], display: Display | None, fit: Any) -> data.Examples:
    count, loss = len(shelf.coefficients), getattr(fit, "loss", None)

    def example(i: int) -> data.Example:
        likely = np.argsort(-shelf.probabilities[i], kind="stable")[:3]
        return data.Example(
            index=i,
            predicted=tuple((int(c), float(shelf.probabilities[i, c])) for c in likely),
            label=None if shelf.labels is None else int(shelf.labels[i]),
            text=tuple(display.segments[i]) if isinstance(display, Texts) else None,
            output=None if shelf.outputs is None else tuple(float(v) for v in shelf.outputs[i]),
        )

    def rate(classes: Int[np.ndarray, "n"]) -> tuple[float, ...]:
        usable = classes[shelf.usable]
        return tuple(float(v) for v in np.bincount(usable, minlength=shelf.n_classes) / max(len(usable), 1))

    labels, pefs = shelf.labels, shelf.pefs
    right = None if labels is None else (labels == shelf.predicted)[shelf.usable]
    return data.Examples(
        source="held out" if shelf.held_out else "decomposed",
        count=count,
        shown=tuple(example(i) for i in positions),
        table=_table(shelf, positions, getattr(fit, "example_loss", None)),
        image_sheets=sheets_of(display, positions) if isinstance(display, Images) and positions else (),
        segment_names=tuple(display.names) if isinstance(display, Texts) else (),
        predicted_rate=rate(shelf.predicted) if shelf.n_classes else (),
        label_rate=rate(labels) if labels is not None else None,
        accuracy=None if right is None or not len(right) else float(np.mean(right)),
        explained=None if loss is None else 1.0 - loss,
        kept_energy=None if pefs is None else _histogram(pefs.kept_energy, 0.0, 1.0),
        fisher_error=None if pefs is None else _histogram(pefs.fisher_error, 0.0, 1.0),
    )


def _table(shelf: Shelf, positions: list[int], losses: Any) -> data.ExampleTable:
    """Return the table of all examples, or of those shown if there are more than `_TABLE_EXAMPLES`."""
    n, r = shelf.coefficients.shape
    rows = np.arange(n) if n <= _TABLE_EXAMPLES else np.array(sorted(positions), int)
    W = shelf.coefficients[rows]
    order = np.argsort(-W, axis=1, kind="stable")[:, : min(r, _TABLE_COMPONENTS)]
    largest = np.take_along_axis(W, order, axis=1)
    n_used = (largest > 0).sum(axis=1)
    classes = shelf.n_classes > 0
    probability = shelf.probabilities[rows, shelf.predicted[rows]] if classes else ()
    return data.ExampleTable(
        index=tuple(int(i) for i in rows),
        predicted=tuple(int(c) for c in shelf.predicted[rows]) if classes else (),
        probability=tuple(float(p) if np.isfinite(p) else None for p in probability),
        label=() if shelf.labels is None else tuple(int(c) for c in shelf.labels[rows]),
        explained=() if losses is None else tuple(1.0 - float(loss) for loss in np.asarray(losses)[rows]),
        components=tuple(tuple(int(j) for j in js[:k]) for js, k in zip(order, n_used)),
        coefficients=tuple(tuple(float(w) for w in ws[:k]) for ws, k in zip(largest, n_used)),
    )


def _class_names(names: Sequence[str] | None, model: Model | None, n_classes: int) -> tuple[str, ...]:
    if names is None and model is not None:
        names = model.label_names
    return tuple(str(name) for name in names) if names is not None else tuple(str(c) for c in range(n_classes))


def _histogram(values: Any, low: float | None = None, high: float | None = None) -> data.Histogram | None:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    counts, edges = np.histogram(np.clip(values, low, high), bins=30, range=(low, high if high > low else low + 1))
    return data.Histogram(tuple(float(e) for e in edges), tuple(int(c) for c in counts))
