"""The RASP program of the simplified inference task: rules that overrule each other, decided one after the other.

Words are compared where they stand: the premise's noun is moved to the hypothesis's, and only the outcome of the
comparison goes on to the last token, where the answer is read. There every rule looks at the polarities, most also at
one relation of words, and where it applies the verdict becomes its own. Rules stand from weak to strong: what
polarities alone suggest, what a more general or more special word leaves open, what disjoint words exclude.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from npeff_jax.tasks._nli_language import Label, Language, Relation, Tree, relation, words

PREMISE_NEGATION, PREMISE_NOUN, PREMISE_VERB, HYPOTHESIS_NEGATION, HYPOTHESIS_NOUN, HYPOTHESIS_VERB, ANSWER = range(7)

SCOPES: dict[str, tuple[int, ...]] = {
    "premise_negated": (PREMISE_NEGATION, PREMISE_NOUN, PREMISE_VERB, ANSWER),
    "hypothesis_negated": (HYPOTHESIS_NEGATION, HYPOTHESIS_NOUN, HYPOTHESIS_VERB, ANSWER),
}
"""The way of a negation: over its noun and its verb to the last token."""


class Rule(NamedTuple):
    """The polarities it is for, the relation that must hold (None: any), and what the verdict becomes."""

    polarities: str
    condition: str | None
    verdict: Label


RULES: dict[str, Rule] = {
    "presumed_agreement": Rule("both_affirmed", None, Label.ENTAILMENT),
    "presumed_rebuttal": Rule("hypothesis_denies", None, Label.CONTRADICTION),
    "presumed_shared_denial": Rule("both_negated", None, Label.ENTAILMENT),
    "presumed_denial": Rule("premise_denies", None, Label.CONTRADICTION),
    "noun_detail": Rule("both_affirmed", "noun_specialised", Label.NEUTRAL),
    "verb_detail": Rule("both_affirmed", "verb_specialised", Label.NEUTRAL),
    "denied_noun_detail": Rule("hypothesis_denies", "noun_specialised", Label.NEUTRAL),
    "denied_verb_detail": Rule("hypothesis_denies", "verb_specialised", Label.NEUTRAL),
    "widened_noun_denial": Rule("both_negated", "noun_generalised", Label.NEUTRAL),
    "widened_verb_denial": Rule("both_negated", "verb_generalised", Label.NEUTRAL),
    "noun_left_open": Rule("premise_denies", "noun_generalised", Label.NEUTRAL),
    "verb_left_open": Rule("premise_denies", "verb_generalised", Label.NEUTRAL),
    "verb_contradiction": Rule("both_affirmed", "verb_disjoint", Label.CONTRADICTION),
    "verb_exclusion": Rule("hypothesis_denies", "verb_disjoint", Label.ENTAILMENT),
    "other_verb_denied": Rule("both_negated", "verb_disjoint", Label.NEUTRAL),
    "other_verb_asserted": Rule("premise_denies", "verb_disjoint", Label.NEUTRAL),
    "sibling_contradiction": Rule("both_affirmed", "noun_sibling", Label.CONTRADICTION),
    "category_contradiction": Rule("both_affirmed", "noun_unrelated", Label.CONTRADICTION),
    "noun_exclusion": Rule("hypothesis_denies", "noun_disjoint", Label.ENTAILMENT),
    "other_noun_denied": Rule("both_negated", "noun_disjoint", Label.NEUTRAL),
    "other_noun_asserted": Rule("premise_denies", "noun_disjoint", Label.NEUTRAL),
}
"""The rules by name, in the order in which they overrule each other."""

CONDITIONS: dict[str, frozenset[Relation]] = {
    "noun_specialised": frozenset({Relation.SPECIALISED}),
    "noun_generalised": frozenset({Relation.GENERALISED}),
    "noun_sibling": frozenset({Relation.SIBLING}),
    "noun_unrelated": frozenset({Relation.UNRELATED}),
    "noun_disjoint": frozenset({Relation.SIBLING, Relation.UNRELATED}),
    "verb_specialised": frozenset({Relation.SPECIALISED}),
    "verb_generalised": frozenset({Relation.GENERALISED}),
    "verb_disjoint": frozenset({Relation.SIBLING, Relation.UNRELATED}),
}
"""The relations of nouns, or of verbs, in which each condition of a rule holds."""


class Program(NamedTuple):
    """A RASP program and its Boolean intermediate variables.

    Attributes:
        answer: an S-operation whose value at the last token is the label's value.
        variables: Boolean S-operations by name, to be read at the last token.
    """

    answer: Any
    variables: Mapping[str, Any]


def build_program(language: Language) -> Program:
    """The program for a language. The rules are the same for any; its words only decide how large it compiles."""
    found: dict[str, Any] = {}

    def keep(name: str, sop: Any) -> None:
        found[name] = sop.named(name)

    def combine(name: str, rule: Callable[[bool, bool], bool], first: str, second: str) -> None:
        keep(name, _combine(rule, found[first], found[second]))

    polarity = _map(lambda token: token if token in ("a", "no") else "other", _tokens()).named("polarity")
    for name, path in SCOPES.items():
        spread = functools.reduce(lambda sop, hop: _moved(sop, *hop), itertools.pairwise(path), polarity)
        keep(name, _map(lambda word: word == "no", spread))
    combine("both_affirmed", lambda p, h: not p and not h, "premise_negated", "hypothesis_negated")
    combine("hypothesis_denies", lambda p, h: h and not p, "premise_negated", "hypothesis_negated")
    combine("both_negated", lambda p, h: p and h, "premise_negated", "hypothesis_negated")
    combine("premise_denies", lambda p, h: p and not h, "premise_negated", "hypothesis_negated")
    relations = {
        "noun": _relation(language.noun_children, PREMISE_NOUN, HYPOTHESIS_NOUN).named("noun_relation"),
        "verb": _relation(language.verb_children, PREMISE_VERB, HYPOTHESIS_VERB).named("verb_relation"),
    }
    for name, holds in CONDITIONS.items():
        values = frozenset(value.value for value in holds)
        keep(name, _map(values.__contains__, relations[name.split("_")[0]]))
    verdict = _map(lambda token: Label.NEUTRAL.value, _tokens()).named("undecided")
    for name, rule in RULES.items():
        if rule.condition is not None:
            combine(name, operator.and_, rule.polarities, rule.condition)
        applies = found[rule.polarities if rule.condition is None else name]
        overrule = functools.partial(_overrule, rule.verdict.value)
        verdict = _combine(overrule, verdict, applies).named(f"after_{name}")
    return Program(verdict, found)


def _overrule(own: str, verdict: str, applies: bool) -> str:
    return own if applies else verdict


def _relation(tree: Tree, source: int, target: int) -> Any:
    """How the word at ``target`` stands to the one at ``source``, known at the last token."""
    known = frozenset(words(tree))

    def compare(premise: Any, hypothesis: Any) -> str:
        if premise not in known or hypothesis not in known:
            return Relation.UNRELATED.value  # at other positions, where nobody reads
        return relation(tree, premise, hypothesis).value

    word = _map(lambda token: token if token in known else "other", _tokens())
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
