"""The cards of a report: per component its examples, what they have in common, its parameters, and the evidence."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from npeff_jax.evaluation import Audit, Collateral, Selectivity
from npeff_jax.factorization import Decomposition
from npeff_jax.report._anatomy import Anatomy
from npeff_jax.report._component import AuditCheck, Audited, Causal, Component, Marks, Moved, Trace
from npeff_jax.report._evidence import evidence_of
from npeff_jax.report._examples import Shown, mix_of, near_misses_of, pair_mix_of, random_of, top_of
from npeff_jax.report._places import Places
from npeff_jax.report._shelf import Shelf

_DECAY_POINTS = 40
_NEIGHBOURS = 5
_LARGEST_ARRAYS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Extras:
    """Optional contents of the cards; arrays and sequences have one entry per component.

    Attributes:
        selectivity: result of `selectivity`, for all components or some.
        stability: (r,) or (runs, r), similarity with the matched component of other runs.
        notes: one string per component.
        traces: per component, traces of some examples.
        marks: per component, marked examples.
        audit: result of `audit`, for all components or some.
        collateral: result of `collateral`, predicted and measured mean KL per component.
    """

    selectivity: Selectivity | None = None
    stability: Any = None
    notes: Sequence[str] | None = None
    traces: Sequence[Sequence[Trace]] | None = None
    marks: Sequence[Sequence[Marks]] | None = None
    audit: Audit | None = None
    collateral: Collateral | None = None


@dataclasses.dataclass(eq=False)
class Cards:
    """Builder of cards; it numbers the examples that cards show, each once.

    Attributes:
        decomposition: the components.
        shelf: the examples to choose from.
        shown: how many examples a card shows.
        anatomy: energy and similarity of the components.
        places: rows and columns of the table "where it lives".
        extras: optional contents.
        class_names: C names of the classes.
        segment_names: names of the segments of a text; may be empty.
        numbers: position in the report of each example shown so far.
    """

    decomposition: Decomposition
    shelf: Shelf
    shown: Shown
    anatomy: Anatomy
    places: Places
    extras: Extras
    class_names: tuple[str, ...]
    segment_names: tuple[str, ...] = ()
    numbers: dict[int, int] = dataclasses.field(default_factory=dict)

    def all(self) -> tuple[Component, ...]:
        """Return the card of every component."""
        squared = np.square(self.decomposition.coefficients, dtype=float).sum(0)
        share = squared / (squared.sum() or 1.0)
        return tuple(self._card(j, float(share[j])) for j in range(self.decomposition.n_components))

    @functools.cached_property
    def rates(self) -> Float[np.ndarray, "C"]:
        """Return, per class, the fraction of usable examples that are predicted as that class."""
        chosen = self.shelf.predicted[self.shelf.usable]
        return np.bincount(chosen, minlength=self.shelf.n_classes) / max(len(chosen), 1)

    @functools.cached_property
    def causals(self) -> dict[int, Causal]:
        """Return the measured ratios by component."""
        return _causals(self.extras.selectivity)

    @property
    def decay_at(self) -> Float[np.ndarray, "points"]:
        """Return logarithmically spaced ranks from 1 to n, as fractions of n."""
        n = len(self.shelf.coefficients)
        return np.unique(np.round(np.geomspace(1, n, _DECAY_POINTS)).astype(int)) / n

    def _card(self, j: int, share: float) -> Component:
        shelf, shown, extras = self.shelf, self.shown, self.extras
        column = np.asarray(shelf.coefficients[:, j], float)
        n = len(column)
        top = top_of(column, shown.top)
        near = (
            near_misses_of(column, shelf.probabilities, top, shown.near_misses, shelf.usable)
            if shelf.n_classes
            else top[:0]
        )
        most = top_of(column, min(shown.mix, max(n // 10, shown.top)))
        with_classes = shelf.n_classes > 0 and len(most) > 0
        stability = None if extras.stability is None else np.atleast_2d(np.asarray(extras.stability, float))[:, j]
        energy = self.anatomy.energy[j]
        predicted = mix_of(shelf.predicted[most]) if with_classes else ()
        pairs = pair_mix_of(shelf.pairs, most) if shelf.pairs is not None and len(most) else ()
        words = () if shelf.words is None else shelf.words.typical(most)
        note = "" if extras.notes is None or extras.notes[j] is None else str(extras.notes[j])
        causal, audited = self.causals.get(j), _audited(extras.audit, j)
        largest = [a for a in np.argsort(-energy, kind="stable")[:_LARGEST_ARRAYS] if energy[a] > 0]
        return Component(
            index=j,
            name=self.decomposition.names.get(j),
            headline=note or self._headline(len(top), predicted, pairs, words),
            frozen=j < self.decomposition.n_frozen,
            share=share,
            breadth=float(np.mean(column >= 0.1 * column.max())) if column.max() > 0 else 0.0,
            top=self._listed(column, top),
            random=self._listed(column, random_of(shelf.usable, shown.random, shown.seed, j)),
            near_misses=self._listed(column, near),
            n_mix=len(most),
            predicted_mix=predicted,
            label_mix=mix_of(shelf.labels[most]) if shelf.labels is not None and len(most) else None,
            wrong=float(np.mean(shelf.labels[most] != shelf.predicted[most]))
            if shelf.labels is not None and len(most)
            else None,
            pair_mix=pairs,
            tells_apart=_tells_apart(pairs, predicted),
            words=words,
            decay=_decay(column, self.decay_at),
            decomposed_decay=_decay(np.asarray(self.decomposition.coefficients[:, j], float), self.decay_at),
            places=as_rows(self.places.table(energy)),
            parameters=tuple((self.decomposition.schema.layout.parameters[a].name, float(energy[a])) for a in largest),
            neighbours=self._neighbours(j),
            evidence=evidence_of(causal, audited),
            coherence=_coherence(predicted, self.rates, pairs, words),
            causal=causal,
            audit=audited,
            moved=_moved(extras.collateral, j),
            stability=None if stability is None else float(stability.mean()),
            note=note,
            traces=() if extras.traces is None else tuple(extras.traces[j]),
            marks=() if extras.marks is None else tuple(extras.marks[j]),
        )

    def _headline(
        self,
        n_top: int,
        predicted: tuple[tuple[int, float], ...],
        pairs: tuple[tuple[int, int, float, float], ...],
        words: tuple[tuple[int, str, float, float], ...],
    ) -> str:
        """Return a headline for the top examples: their likeliest pair of classes or predicted classes, and a word."""
        if not n_top:
            return "no example uses it"
        name, said = self.class_names, []
        if _tells_apart(pairs, predicted):
            a, b, fraction, _ = pairs[0]
            said.append(f"“{name[a]}” or “{name[b]}” {fraction:.0%}")
        elif predicted:
            classes = [f"“{name[k]}” {fraction:.0%}" for k, fraction in predicted[:3] if fraction >= 0.1]
            said.append(", ".join(classes) or "many classes")
        if words and words[0][2] >= 0.5:
            segment, word, fraction, _ = words[0]
            where = f" in the {self.segment_names[segment]}" if segment < len(self.segment_names) else ""
            said.append(f"“{word}”{where} {fraction:.0%}")
        return " · ".join(said) or f"{n_top} top example{'s' if n_top > 1 else ''}"

    def _listed(self, column: Float[np.ndarray, "n"], examples: Int[np.ndarray, "k"]) -> tuple[tuple[int, float], ...]:
        return tuple((self.numbers.setdefault(int(i), len(self.numbers)), float(column[i])) for i in examples)

    def _neighbours(self, j: int) -> tuple[tuple[int, float], ...]:
        alike = self.anatomy.similarity[j]
        others = [int(k) for k in np.argsort(-alike, kind="stable") if k != j]
        return tuple((k, float(alike[k])) for k in others[:_NEIGHBOURS])


def _tells_apart(pairs: tuple[tuple[int, int, float, float], ...], predicted: tuple[tuple[int, float], ...]) -> bool:
    """Return whether a pair of classes describes the top examples better than their predicted class.

    It does if most of them are undecided between these two classes, clearly more than all examples are, and no class is
    predicted for nearly all of them.
    """
    if not pairs or not predicted:
        return False
    _, _, own, of_all = pairs[0]
    return own >= 0.6 and own >= 1.5 * of_all and predicted[0][1] < 0.9


def _coherence(
    predicted: tuple[tuple[int, float], ...],
    rates: Float[np.ndarray, "C"],
    pairs: tuple[tuple[int, int, float, float], ...],
    words: tuple[tuple[int, str, float, float], ...],
) -> float:
    """Return the largest excess of a class, pair of classes or word among top examples over its base rate."""
    classes = (fraction - float(rates[k]) for k, fraction in predicted)
    return max([0.0, *classes, *(own - base for _, _, own, base in pairs), *(own - base for _, _, own, base in words)])


def as_rows(table: Float[np.ndarray, "a b"]) -> tuple[tuple[float, ...], ...]:
    """Return a table as tuples of floats, the form of report data."""
    return tuple(tuple(float(v) for v in row) for row in table)


def _causals(table: Selectivity | None) -> dict[int, Causal]:
    """Return the ratios by measured component, computing the medians over null moves once for all of them."""
    if table is None:
        return {}
    columns = (table.kl_ratio, table.pef_norm_ratio, table.null_kl_ratio, table.null_exceeds)
    rows = zip(*(np.asarray(column, float).tolist() for column in columns))
    measured = (Causal(*(value if math.isfinite(value) else None for value in row)) for row in rows)
    return dict(zip(np.asarray(table.components).tolist(), measured))


def _audited(audit: Audit | None, j: int) -> Audited | None:
    place = None if audit is None else audit.place(j)
    if audit is None or place is None:
        return None

    def finite(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    checks = tuple(
        AuditCheck(
            name=check.name,
            result=check.result(place),
            statistic=finite(check.statistic[place]),
            null=finite(check.null[place]),
            threshold=finite(check.at_least[place]),
            at_most=finite(check.at_most[place]),
            p_value=finite(check.p_value[place]),
            note=check.not_applicable or (check.notes[place] if check.notes else ""),
        )
        for check in audit.checks
    )
    return Audited(bool(audit.passed[place]), audit.verdict(j), checks)


def _moved(collateral: Collateral | None, j: int) -> Moved | None:
    if collateral is None:
        return None
    found = (float(collateral.measured[j]), float(collateral.predicted[j]))
    return Moved(*(value if math.isfinite(value) else None for value in found))


def _decay(column: Float[np.ndarray, "n"], at: Float[np.ndarray, "points"]) -> tuple[float, ...]:
    """Return sorted coefficients at the ranks ``at`` (fractions of n), as fractions of the largest."""
    descending = np.sort(column)[::-1]
    ranks = np.clip(np.ceil(at * len(column)).astype(int), 1, len(column)) - 1
    largest = descending[0] if descending[0] > 0 else 1.0
    return tuple(float(v) for v in descending[ranks] / largest)
