"""The data of one component's card."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Causal:
    """Ratios of means over a component's top examples to means over other examples.

    Attributes:
        kl_ratio: ratio of the KL divergence when the parameters move along the component.
        pef_norm_ratio: ratio of the PEF norms, which measure sensitivity to any move.
        null_kl_ratio: median of the KL ratios when the parameters move along each *other* component instead.
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
    """One check of the component's audit. The guide "Auditing components" defines the checks.

    Attributes:
        name: "selective", "found again", "held out", "readable" or "predicted".
        result: "passed", "failed" or "not applicable".
        statistic: the measured value.
        null: the value under the null hypothesis, a quantile or a ratio depending on the check.
        threshold: the lower threshold.
        at_most: the upper threshold; None without one.
        p_value: adjusted for the number of components; None for a check of effect size only.
        note: why the check does not apply, or what it found, such as the rule that describes the top examples.
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
    """Result of the audit of one component.

    Attributes:
        passed: whether it passes every check that applies.
        verdict: the result in words, such as "passes all 5" or "fails: readable".
        checks: the individual checks.
    """

    passed: bool
    verdict: str
    checks: tuple[AuditCheck, ...]


@dataclasses.dataclass(frozen=True)
class Moved:
    """Mean KL divergence of a component's top examples under a given change of the parameters, in nats.

    Attributes:
        measured: the divergence from forward passes.
        predicted: its second-order prediction (equation 5).
    """

    measured: float | None
    predicted: float | None


@dataclasses.dataclass(frozen=True)
class Trace:
    """Effect of a perturbation along the component on each intermediate value and on the logits, to first order.

    Attributes:
        example: position in the examples shown from.
        stages: names of the intermediate values, in the order of computation.
        positions: tokens, or position numbers.
        change: for each stage and position, the relative change of the intermediate value, per unit of length.
        layers: the layers whose parameters were moved.
        classes: the most probable classes of the example.
        logits: for each layer and each of these classes, the change of the class's logit due to the layer's parameters
            alone, per unit of length; the sum over layers is the total change.
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
        random: the same for examples drawn at random.
        near_misses: the same for examples with a small coefficient whose predictions are closest to the top examples'.
        n_mix: number of top examples that the mixes and words below are computed over.
        predicted_mix: (class, fraction of the top examples predicted as that class), largest first.
        label_mix: (class, fraction of the top examples with that label); None without labels.
        wrong: fraction of the top examples whose prediction differs from the label; None without labels.
        pair_mix: (class, class, fraction of the top examples, fraction of all examples) with these two as the likeliest
            classes, largest first, at most three. A prediction's Fisher is mostly about this pair. Empty for two
            classes.
        tells_apart: whether the first pair describes the top examples better than the predicted classes do.
        words: (segment, word, fraction of the top examples, fraction of all examples) that contain the word in that
            segment, largest difference first.
        decay: sorted coefficients of the examples shown, at the ranks ``ReportData.decay_at``, relative to the largest.
        decomposed_decay: the same for the examples that were decomposed.
        places: share of its energy in each layer and kind; sums to 1.
        parameters: (name, share), the parameter arrays with most of its energy.
        neighbours: (component, similarity), the most similar components.
        evidence: whether the model uses the component, with the reason.
        coherence: similarity of its top examples, from 0 to 1: the largest excess of the fraction in one class, with
            one word, or with one pair of likeliest classes over the same fraction of all examples.
        causal: KL and norm ratios of a perturbation along it, if measured.
        audit: result of its audit, if audited.
        stability: mean similarity with its match in other runs, from 0 to 1, if given.
        note: a line of text about it, if given.
        traces: traces of some of its top examples, if computed.
        marks: attributions on some of its top examples, if computed.
        name: name of a component that was defined by a user's request; None for the others.
        moved: effect of a given change of the parameters, such as one that forgets a concept, on its top examples.
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
