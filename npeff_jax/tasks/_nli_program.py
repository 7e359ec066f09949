"""The RASP program of the simplified inference task: named Boolean variables, combined until one answer is left.

Words are compared where they stand: the premise's noun is moved to the hypothesis's, and only the outcome of the
comparison goes on to the last token, where the answer is read.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from npeff_jax.tasks._nli_language import Label, Language, Tree, descendants

PREMISE_NEGATION, PREMISE_NOUN, PREMISE_VERB, HYPOTHESIS_NEGATION, HYPOTHESIS_NOUN, HYPOTHESIS_VERB, ANSWER = range(7)


REASONS: dict[str, tuple[str, str, Label]] = {
    "stated": ("both_affirmed", "event_within", Label.ENTAILMENT),
    "excluded": ("hypothesis_denies", "event_disjoint", Label.ENTAILMENT),
    "narrowed_denial": ("both_negated", "event_covers", Label.ENTAILMENT),
    "incompatible": ("both_affirmed", "event_disjoint", Label.CONTRADICTION),
    "denied_consequence": ("hypothesis_denies", "event_within", Label.CONTRADICTION),
    "asserted_denial": ("premise_denies", "event_covers", Label.CONTRADICTION),
}
"""Each reason for an answer: the polarities it is for, what must hold of the two events, the answer. Without one the
answer is neutral."""


class Program(NamedTuple):
    """A RASP program and its Boolean intermediate variables.

    Attributes:
        answer: an S-operation whose value at the last token is the label's value.
        variables: Boolean S-operations by name, to be read at the last token.
    """

    answer: Any
    variables: Mapping[str, Any]


def build_program(language: Language) -> Program:
    """The program for a language: polarities, relations of nouns and of verbs, the event they make, reasons, answer."""
    found: dict[str, Any] = {}

    def keep(name: str, sop: Any) -> None:
        found[name] = sop.named(name)

    def combine(name: str, rule: Callable[[bool, bool], bool], first: str, second: str) -> None:
        keep(name, _combine(rule, found[first], found[second]))

    is_negation = _map(lambda token: token == "no", _tokens()).named("is_negation")
    keep("premise_negated", _moved(is_negation, PREMISE_NEGATION, ANSWER))
    keep("hypothesis_negated", _moved(is_negation, HYPOTHESIS_NEGATION, ANSWER))
    combine("both_affirmed", lambda p, h: not p and not h, "premise_negated", "hypothesis_negated")
    combine("hypothesis_denies", lambda p, h: h and not p, "premise_negated", "hypothesis_negated")
    combine("both_negated", lambda p, h: p and h, "premise_negated", "hypothesis_negated")
    combine("premise_denies", lambda p, h: p and not h, "premise_negated", "hypothesis_negated")
    noun = _relation(language.noun_children, language.nouns, PREMISE_NOUN, HYPOTHESIS_NOUN).named("noun_relation")
    verb = _relation(language.verb_children, language.verbs, PREMISE_VERB, HYPOTHESIS_VERB).named("verb_relation")
    for name, relation in (("noun", noun), ("verb", verb)):
        keep(f"{name}_same", _map(lambda value: value == "same", relation))
        keep(f"{name}_within", _map(lambda value: value in ("same", "generalised"), relation))
        keep(f"{name}_covers", _map(lambda value: value in ("same", "specialised"), relation))
        keep(f"{name}_disjoint", _map(lambda value: value == "disjoint", relation))
    combine("event_within", operator.and_, "noun_within", "verb_within")
    combine("event_covers", operator.and_, "noun_covers", "verb_covers")
    combine("event_disjoint", operator.or_, "noun_disjoint", "verb_disjoint")
    for name, (polarity, event, _) in REASONS.items():
        combine(name, operator.and_, polarity, event)
    for label in (Label.ENTAILMENT, Label.CONTRADICTION):
        first, second, third = (name for name, reason in REASONS.items() if reason[2] is label)
        combine(f"{label.value}_of_two", operator.or_, first, second)
        combine(f"is_{label.value}", operator.or_, f"{label.value}_of_two", third)
    answer = _combine(_answer, found["is_entailment"], found["is_contradiction"]).named("answer")
    return Program(answer, {name: sop for name, sop in found.items() if not name.endswith("_of_two")})


def _answer(entailed: bool, contradicted: bool) -> str:
    if entailed:
        return Label.ENTAILMENT.value
    return Label.CONTRADICTION.value if contradicted else Label.NEUTRAL.value


def _relation(tree: Tree, words: tuple[str, ...], source: int, target: int) -> Any:
    """How the word at ``target`` stands to the one at ``source``, known at the last token."""
    under = {word: frozenset(descendants(tree, word)) for word in words}

    def compare(premise: Any, hypothesis: Any) -> str:
        if premise not in under or hypothesis not in under:
            return "disjoint"  # at other positions, where nobody reads
        if premise == hypothesis:
            return "same"
        if premise in under[hypothesis]:
            return "generalised"
        return "specialised" if hypothesis in under[premise] else "disjoint"

    word = _map(lambda token: token if token in under else "other", _tokens())
    return _moved(_combine(compare, _moved(word, source, target), word), target, ANSWER)


def _tokens() -> Any:
    from tracr.rasp import rasp

    return rasp.tokens


def _map(rule: Callable[[Any], Any], sop: Any) -> Any:
    from tracr.rasp import rasp

    return rasp.Map(rule, sop, simplify=False)


def _combine(rule: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    from tracr.rasp import rasp

    return rasp.SequenceMap(rule, first, second)


def _moved(sop: Any, source: int, target: int) -> Any:
    """The value at one position, moved to another; nothing elsewhere."""
    from tracr.rasp import rasp

    there = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == source and query == target)
    return rasp.Aggregate(there, sop)
