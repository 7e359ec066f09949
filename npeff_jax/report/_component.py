"""The data of one component's card."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Causal:
    """Ratios of means over a component's top examples to means over other examples.

    Attributes:
        kl_ratio: of the KL divergence under a move along the component.
        pef_norm_ratio: of the PEF norms, which measure sensitivity to any move.
        null_kl_ratio: of the KL divergence under moves along *other* components on the same examples; their median.
        null_exceeds: fraction of other components whose ratio on the same examples is at least ``kl_ratio``.
    """

    kl_ratio: float | None
    pef_norm_ratio: float | None
    null_kl_ratio: float | None
    null_exceeds: float | None


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A verdict on whether the model uses a component for its top examples.

    Attributes:
        mark: "used by the model", "weak evidence", "no evidence" or "not measured".
        reason: the measurements behind the mark, as a sentence.
    """

    mark: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Marks:
    """Which parts of an example a component's effect depends on, from `report.mark_examples`.

    Each value is the share of the component's effect on the example's logits that is lost when the part is left out:
    1 if nothing of the effect remains, 0 if the part does not matter, below 0 if the effect becomes larger.

    Attributes:
        example: position in the examples shown from.
        spans: (segment, first letter, letter after the last, value) of words of a text, in UTF-16 code units, as
            JavaScript counts.
        grid: for images, a value per cell, rows from the top. Empty for texts.
    """

    example: int
    spans: tuple[tuple[int, int, int, float], ...] = ()
    grid: tuple[tuple[float, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class AuditCheck:
    """One check of the component's audit. What the checks are stands in the guide "Auditing components".

    Attributes:
        name: "selective", "found again", "held out", "readable" or "predicted".
        result: "passed", "failed" or "not applicable".
        statistic: the measured value.
        null: what chance gives: a quantile or a ratio, by check.
        threshold: the lower threshold.
        at_most: the upper threshold; None without one.
        p_value: adjusted for the number of components; None where the check is of size alone.
        note: why it does not apply, or what was found, such as the rule that was read.
    """

    name: str
    result: str
    statistic: float | None
    null: float | None
    threshold: float | None
    at_most: float | None
    p_value: float | None
    note: str


@dataclasses.dataclass(frozen=True)
class Audited:
    """The component's audit.

    Attributes:
        passed: whether it passes every check that applies.
        verdict: the result in words: "passes all 5", "fails: readable".
        checks: the individual checks.
    """

    passed: bool
    verdict: str
    checks: tuple[AuditCheck, ...]


@dataclasses.dataclass(frozen=True)
class Moved:
    """How far a move of the parameters takes the predictions of the component's top examples, in nats.

    Attributes:
        measured: their mean KL divergence.
        predicted: the same by equation 5.
    """

    measured: float | None
    predicted: float | None


@dataclasses.dataclass(frozen=True)
class Trace:
    """Where a perturbation along the component enters, and how it reaches the output, to first order.

    Attributes:
        example: position in the examples shown from.
        stages: names of the intermediate values, in the order of the computation.
        positions: tokens, or numbers of positions.
        change: for each stage and position, the relative change of the intermediate value, per unit of length.
        layers: the layers whose parameters were moved.
        classes: the classes most probable for the example.
        logits: for each layer and each of these classes, what the layer's parameters alone change of its logit, per
            unit of length; over layers they add up to the whole.
    """

    example: int
    stages: tuple[str, ...]
    positions: tuple[str, ...]
    change: tuple[tuple[float, ...], ...]
    layers: tuple[str, ...]
    classes: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Component:
    """One component's card.

    Attributes:
        index: its number.
        headline: what its top examples are, in a few words.
        frozen: whether it was given rather than learned.
        share: its fraction of Σ W² over all components.
        breadth: fraction of examples whose coefficient is at least a tenth of its largest.
        top: (position in ``Examples.shown``, coefficient), largest coefficient first.
        random: likewise, drawn from all examples.
        near_misses: likewise; of those with hardly any coefficient the ones predicted most like the top examples.
        n_mix: how many top examples the mixes and words below are over.
        predicted_mix: (class, fraction) of the top examples it is predicted for, largest first.
        label_mix: (class, fraction) of the top examples it labels; None without labels.
        wrong: the fraction of the top examples that is predicted otherwise than labelled; None without labels.
        pair_mix: (class, class, fraction of the top examples, fraction of all) whose two likeliest classes these are,
            largest first, at most three; what a prediction's Fisher is mostly about. Empty for two classes.
        tells_apart: whether the first of these pairs says more of it than the classes it is predicted for.
        words: (segment, word, fraction of the top examples, fraction of all) whose texts have the word in that segment,
            the largest difference first.
        decay: at each of ``ReportData.decay_at``, the coefficient as a fraction of the largest, of the examples shown.
        decomposed_decay: likewise of the examples that were decomposed.
        places: its energy's share in each layer and kind; sums to 1.
        parameters: (name, share), the parameter arrays with most of its energy.
        neighbours: (component, similarity), the most similar ones.
        evidence: whether the model uses it, with the reason.
        coherence: how alike its top examples are, from 0 to 1: by how much the fraction of them in one class, with one
            typical word, or with one pair of likeliest classes exceeds that of all examples; the largest of the three.
        causal: measured ratios of the effect of a move along it, if measured.
        audit: its audit, if it was audited.
        stability: similarity with its match in other runs, from 0 to 1, the mean over runs, if given.
        note: a line of text about it, if given.
        traces: traces of some of its top examples, if made.
        marks: which parts of some of its top examples its effect depends on, if made.
        name: what it was asked for as; None for components that were not asked for.
        moved: what a move, such as one that forgets something, does to its top examples, if that was given.
    """

    index: int
    headline: str
    frozen: bool
    share: float
    breadth: float
    top: tuple[tuple[int, float], ...]
    random: tuple[tuple[int, float], ...]
    near_misses: tuple[tuple[int, float], ...]
    n_mix: int
    predicted_mix: tuple[tuple[int, float], ...]
    label_mix: tuple[tuple[int, float], ...] | None
    wrong: float | None
    pair_mix: tuple[tuple[int, int, float, float], ...]
    tells_apart: bool
    words: tuple[tuple[int, str, float, float], ...]
    decay: tuple[float, ...]
    decomposed_decay: tuple[float, ...]
    places: tuple[tuple[float, ...], ...]
    parameters: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    evidence: Evidence
    coherence: float
    causal: Causal | None = None
    audit: Audited | None = None
    stability: float | None = None
    note: str = ""
    traces: tuple[Trace, ...] = ()
    marks: tuple[Marks, ...] = ()
    name: str | None = None
    moved: Moved | None = None
