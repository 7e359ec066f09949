"""The RASP program of the simplified inference task: a sequence of rules in which later ones override earlier ones.

Words are compared at their positions: the premise's noun is moved to the position of the hypothesis's noun, and the
result of the comparison is moved to the last token, where the output is read. There each rule checks the polarities,
and most rules also one relation of words; if it applies, it sets the verdict. The order is: what polarities alone
suggest, what a more general or more specific word leaves open, what disjoint words exclude.
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
"""Positions that a negation passes through: its noun, its verb, the last token."""


class Rule(NamedTuple):
    """A rule: the polarities and the relation (None: any) for which it applies, and the verdict that it sets."""

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
"""The rules by name; later rules override earlier ones."""

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
"""Per condition of a rule, the relations of nouns or verbs for which it holds."""


class Program(NamedTuple):
    """A RASP program and its Boolean intermediate variables.

    Attributes:
        answer: an S-operation whose value at the last token is the label's value.
        variables: Boolean S-operations by name, to be read at the last token.
    """

    answer: Any
    variables: Mapping[str, Any]


def build_program(language: Language) -> Program:
    """Build the program for a language. The rules are the same for every language; its words determine the size."""
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
    """Return the relation of the word at ``target`` to the one at ``source``, available at the last token."""
    known = frozenset(words(tree))

    def compare(premise: Any, hypothesis: Any) -> str:
        if premise not in known or hypothesis not in known:
            return Relation.UNRELATED.value  # at other positions, which are not used
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
    """Return the value at position ``source`` moved to ``target``, without values elsewhere."""
    from tracr.rasp import rasp

    there = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == source and query == target)
    return rasp.Aggregate(there, sop)
