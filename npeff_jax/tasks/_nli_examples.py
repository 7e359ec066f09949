"""The examples of the simplified inference task: even over labels, polarities and relations of words."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from npeff_jax.tasks._nli_language import Label, Language, Pair, Relation

SHARES: dict[tuple[bool, bool, Label], int] = {
    (False, False, Label.CONTRADICTION): 5,
    (False, True, Label.CONTRADICTION): 5,
    (True, False, Label.CONTRADICTION): 6,
    (True, True, Label.ENTAILMENT): 6,
    (False, True, Label.ENTAILMENT): 5,
    (False, False, Label.ENTAILMENT): 5,
    (False, False, Label.NEUTRAL): 2,
    (False, True, Label.NEUTRAL): 2,
    (True, True, Label.NEUTRAL): 6,
    (True, False, Label.NEUTRAL): 6,
}
"""Parts in 48 of the examples by polarity of premise and hypothesis (negated or not) and label: a third for each label
and a quarter for each pair of polarities. Two denials never contradict each other; a denial entails no assertion."""


def draw_pairs(language: Language, n: int, seed: int) -> list[Pair]:
    """N different pairs in random order: `SHARES` of them for each label and polarities, and among those in turn one of
    each relation of the nouns with each relation of the verbs, while there are any left.

    Raises:
        ValueError: there are not so many pairs of some kind.
    """
    random = np.random.default_rng(seed)
    nouns, verbs = (
        _by_relation(known, find)
        for known, find in ((language.nouns, language.noun_relation), (language.verbs, language.verb_relation))
    )
    strata: dict[tuple[bool, bool, Label], list[list[Pair]]] = {kind: [] for kind in SHARES}
    for (first, second), noun, verb in itertools.product(
        itertools.product((False, True), repeat=2), nouns.values(), verbs.values()
    ):
        pairs = [
            Pair(first, *premise, second, *hypothesis)
            for premise, hypothesis in (zip(*words, strict=True) for words in itertools.product(noun, verb))
        ]
        strata[first, second, language.label(pairs[0])].append([pairs[i] for i in random.permutation(len(pairs))])
    drawn: list[Pair] = []
    for kind, wanted in _counts(n).items():
        found = list(itertools.islice(_in_turn(strata[kind]), wanted))
        if len(found) < wanted:
            raise ValueError(
                f"n_examples={n} wants {wanted} pairs of label {kind[2].value} with premise_negated={kind[0]} and "
                f"hypothesis_negated={kind[1]}, but the language has {len(found)}; ask for fewer"
            )
        drawn += found
    return [drawn[i] for i in random.permutation(n)]


def _by_relation(known: Iterable[str], find: Callable[[str, str], Relation]) -> dict[Relation, list[tuple[str, str]]]:
    pairs: dict[Relation, list[tuple[str, str]]] = {}
    for premise, hypothesis in itertools.product(known, repeat=2):
        pairs.setdefault(find(premise, hypothesis), []).append((premise, hypothesis))
    return pairs


def _counts(n: int) -> dict[tuple[bool, bool, Label], int]:
    """The shares of n, by cumulative rounding: they add up to n and none is off by one or more."""
    ends = [round(n * total / sum(SHARES.values())) for total in itertools.accumulate(SHARES.values())]
    return {kind: end - start for kind, end, start in zip(SHARES, ends, [0, *ends], strict=False)}


def _in_turn(strata: list[list[Pair]]) -> Iterator[Pair]:
    for taken in itertools.zip_longest(*strata):
        yield from (pair for pair in taken if pair is not None)
