"""Results to report data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from npeff_jax.factorization import Decomposition
from npeff_jax.models import Gaussian, Model
from npeff_jax.pefs import Pefs
from npeff_jax.report import _data as data
from npeff_jax.report._anatomy import anatomy, layout_by_similarity
from npeff_jax.report._display import Display, Images, Texts, sheets_of
from npeff_jax.report._examples import Shown, mix_of, near_misses_of, pair_mix_of, random_of, top_of
from npeff_jax.report._places import Places, places_of

_DECAY_POINTS = 40
_NEIGHBOURS = 5
_LARGEST_ARRAYS = 6
_SMALLEST = 1e-8
"""Coefficients below are drawn as this: solvers leave positive dust that says nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Extras:
    """What a report may show besides, each optional; arrays have one entry a component.

    Attributes:
        selectivity: with ``kl_ratio``, ``pef_norm_ratio``, ``null_kl_ratio`` and ``ceiling``.
        stability: (r,) or (runs, r), similarity with the matched component of other runs.
        notes: r strings.
        traces: for each component its traces.
    """

    selectivity: Any = None
    stability: Any = None
    notes: Sequence[str] | None = None
    traces: Sequence[Sequence[data.Trace]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Shelf:
    """The examples to choose from, all n of them, with what is known of each."""

    coefficients: Float[np.ndarray, "n r"]
    probabilities: Float[np.ndarray, "n C"]
    outputs: Float[np.ndarray, "n C"] | None
    predicted: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"] | None
    held_out: bool
    pefs: Pefs | None


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
) -> data.ReportData:
    """Everything that a report shows. Arguments as in `write_report`, checked there."""
    shelf = _shelf(decomposition, heldout, None if fit is None else np.asarray(fit.coefficients), model)
    n, r = shelf.coefficients.shape
    bones = anatomy(decomposition)
    places = places_of(decomposition.schema.layout)
    register = _Register()
    decay_at = _decay_ranks(n)
    squared = np.square(decomposition.coefficients, dtype=float).sum(0)
    share = squared / (squared.sum() or 1.0)
    components = tuple(
        _component(j, float(share[j]), decomposition, shelf, shown, bones, places, decay_at, register.add, extras)
        for j in range(r)
    )
    table = np.array([component.places for component in components])
    positive = np.maximum(shelf.coefficients[shelf.coefficients > 0], _SMALLEST)
    ceiling = getattr(extras.selectivity, "ceiling", None)
    return data.ReportData(
        title=title,
        run=_run(decomposition),
        class_names=_class_names(class_names, model, decomposition.schema.n_classes),
        examples=_examples(shelf, register, display, getattr(fit, "loss", None)),
        coefficients=_histogram(np.log10(positive)) or data.Histogram((0.0, 1.0), (0,)),
        zero_coefficients=float(np.mean(shelf.coefficients == 0)),
        decay_at=tuple(float(rank) for rank in decay_at / n),
        places=data.Places(places.layers, places.kinds, _rows(places.sizes), _rows(table.mean(0))),
        map=tuple((float(x), float(y)) for x, y in layout_by_similarity(bones.similarity)),
        selectivity_ceiling=None if ceiling is None else float(np.max(ceiling)),
        components=components,
    )


def _shelf(
    decomposition: Decomposition,
    pefs: Pefs | None,
    coefficients: Float[np.ndarray, "n r"] | None,
    model: Model | None,
) -> Shelf:
    held_out = coefficients is not None
    coefficients = np.asarray(decomposition.coefficients if coefficients is None else coefficients)
    if pefs is None:
        n = len(coefficients)
        return Shelf(coefficients, np.zeros((n, 0)), None, np.zeros(n, int), None, held_out, None)
    logits = np.asarray(pefs.logits, np.float32)
    output = model.output if model is not None else None
    if isinstance(output, Gaussian) or logits.shape[1] < 2:
        return Shelf(coefficients, np.zeros((len(logits), 0)), logits, np.zeros(len(logits), int), None, held_out, pefs)
    probabilities = jax.vmap(output.probabilities if output is not None else jax.nn.softmax)(jax.numpy.asarray(logits))
    labels = None if pefs.labels is None else np.asarray(pefs.labels)
    return Shelf(coefficients, np.asarray(probabilities), None, logits.argmax(-1), labels, held_out, pefs)


class _Register:
    """Numbers examples as components show them, each once."""

    def __init__(self) -> None:
        self.place: dict[int, int] = {}

    def add(self, examples: Int[np.ndarray, "k"]) -> list[int]:
        return [self.place.setdefault(int(i), len(self.place)) for i in examples]


def _component(
    j: int,
    share: float,
    decomposition: Decomposition,
    shelf: Shelf,
    shown: Shown,
    bones: Any,
    places: Places,
    decay_at: Int[np.ndarray, "points"],
    register: Callable[[Int[np.ndarray, "k"]], list[int]],
    extras: Extras,
) -> data.Component:
    column = np.asarray(shelf.coefficients[:, j], float)
    n = len(column)
    top = top_of(column, shown.top)
    with_predictions = shelf.probabilities.shape[1] > 0
    near = near_misses_of(column, shelf.probabilities, top, shown.near_misses) if with_predictions else top[:0]

    def listed(examples: Int[np.ndarray, "k"]) -> tuple[tuple[int, float], ...]:
        return tuple((place, float(column[i])) for place, i in zip(register(examples), examples))

    most = top_of(column, min(shown.mix, max(n // 10, shown.top)))
    largest = np.argsort(-bones.energy[j], kind="stable")[:_LARGEST_ARRAYS]
    alike = bones.similarity[j].copy()
    alike[j] = -1.0
    neighbours = np.argsort(-alike, kind="stable")[: min(_NEIGHBOURS, len(alike) - 1)]
    stability = None if extras.stability is None else np.atleast_2d(np.asarray(extras.stability, float))[:, j].mean()
    return data.Component(
        index=j,
        frozen=j < decomposition.n_frozen,
        share=share,
        breadth=float(np.mean(column >= 0.1 * column.max())) if column.max() > 0 else 0.0,
        top=listed(top),
        random=listed(random_of(n, shown.random, shown.seed, j)),
        near_misses=listed(near),
        n_mix=len(most),
        predicted_mix=mix_of(shelf.predicted[most]) if with_predictions and len(most) else (),
        label_mix=mix_of(shelf.labels[most]) if shelf.labels is not None and len(most) else None,
        pair_mix=pair_mix_of(shelf.probabilities[most]),
        decay=_decay(column, decay_at / n),
        decomposed_decay=_decay(np.asarray(decomposition.coefficients[:, j], float), decay_at / n),
        places=_rows(places.table(bones.energy[j])),
        parameters=tuple(
            (decomposition.schema.layout.parameters[a].name, float(bones.energy[j, a]))
            for a in largest
            if bones.energy[j, a] > 0
        ),
        neighbours=tuple((int(k), float(alike[k])) for k in neighbours),
        causal=_causal(extras.selectivity, j),
        stability=None if stability is None else float(stability),
        note="" if extras.notes is None else str(extras.notes[j]),
        traces=() if extras.traces is None else tuple(extras.traces[j]),
    )


def _causal(selectivity: Any, j: int) -> data.Causal | None:
    if selectivity is None:
        return None

    def entry(name: str) -> float | None:
        values = getattr(selectivity, name, None)
        return None if values is None or not np.isfinite(np.asarray(values)[j]) else float(np.asarray(values)[j])

    return data.Causal(entry("kl_ratio"), entry("pef_norm_ratio"), entry("null_kl_ratio"))


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


def _examples(shelf: Shelf, register: _Register, display: Display | None, loss: float | None) -> data.Examples:
    positions = list(register.place)
    n_classes = shelf.probabilities.shape[1]
    count = len(shelf.coefficients)

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
        return tuple(float(v) for v in np.bincount(classes, minlength=n_classes) / max(count, 1))

    labels, pefs = shelf.labels, shelf.pefs
    return data.Examples(
        source="held out" if shelf.held_out else "decomposed",
        count=count,
        shown=tuple(example(i) for i in positions),
        image_sheets=sheets_of(display, positions) if isinstance(display, Images) and positions else (),
        segment_names=display.names if isinstance(display, Texts) else (),
        predicted_rate=rate(shelf.predicted) if n_classes else (),
        label_rate=rate(labels) if labels is not None and labels.min(initial=0) >= 0 else None,
        accuracy=float(np.mean(labels == shelf.predicted)) if labels is not None else None,
        explained=None if loss is None else 1.0 - loss,
        kept_energy=None if pefs is None else _histogram(pefs.kept_energy, 0.0, 1.0),
        fisher_error=None if pefs is None else _histogram(pefs.fisher_error, 0.0, 1.0),
    )


def _class_names(names: Sequence[str] | None, model: Model | None, n_classes: int) -> tuple[str, ...]:
    if names is None and model is not None:
        names = model.label_names
    return tuple(str(name) for name in names) if names is not None else tuple(str(c) for c in range(n_classes))


def _decay_ranks(n: int) -> Int[np.ndarray, "points"]:
    """Ranks from the first to the last, evenly in their logarithm."""
    return np.unique(np.round(np.geomspace(1, n, _DECAY_POINTS)).astype(int))


def _decay(column: Float[np.ndarray, "n"], at: Float[np.ndarray, "points"]) -> tuple[float, ...]:
    """Coefficients in descending order at given fractions of their number, as fractions of the largest."""
    descending = np.sort(column)[::-1]
    ranks = np.clip(np.ceil(at * len(column)).astype(int), 1, len(column)) - 1
    largest = descending[0] if descending[0] > 0 else 1.0
    return tuple(float(v) for v in descending[ranks] / largest)


def _histogram(values: Any, low: float | None = None, high: float | None = None) -> data.Histogram | None:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    counts, edges = np.histogram(np.clip(values, low, high), bins=30, range=(low, high if high > low else low + 1))
    return data.Histogram(tuple(float(e) for e in edges), tuple(int(c) for c in counts))


def _rows(table: Float[np.ndarray, "a b"]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in table)
