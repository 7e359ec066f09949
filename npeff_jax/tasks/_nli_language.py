"""The language of the simplified inference task: words in two hierarchies, sentence pairs, and what they mean.

A sentence is three words, ``a dog runs`` or ``no dog runs``. Somebody saw one thing doing one act, and nothing else: a
*scene* is a pair of a most specific noun and a most specific verb, and a sentence is the set of scenes in which it is
true. A premise entails a hypothesis if its scenes are among the hypothesis's, contradicts it if they share none, and is
neutral to it otherwise. Everything here is defined by these sets alone; the RASP program of the task works with rules
on pairs of words, and the tests hold the two against each other.
"""

import dataclasses
import enum
import functools
import itertools
from collections.abc import Mapping

Tree = Mapping[str, tuple[str, ...]]
"""Each word's children; a word that is no key is most specific."""


class Label(enum.Enum):
    """How a premise stands to a hypothesis, in the order of the model's classes."""

    CONTRADICTION = "contradiction"
    ENTAILMENT = "entailment"
    NEUTRAL = "neutral"


class Relation(enum.Enum):
    """How a word of the hypothesis stands to the premise's in their hierarchy."""

    SAME = "same"
    GENERALISED = "generalised"
    SPECIALISED = "specialised"
    SIBLING = "sibling"
    """They share nothing but a most general word."""
    UNRELATED = "unrelated"


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """A premise and a hypothesis."""

    premise_negated: bool
    premise_noun: str
    premise_verb: str
    hypothesis_negated: bool
    hypothesis_noun: str
    hypothesis_verb: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """The seven tokens of the program's input; the answer is read at the last."""
        first, second = ("no" if negated else "a" for negated in (self.premise_negated, self.hypothesis_negated))
        premise = (first, self.premise_noun, self.premise_verb)
        return (*premise, second, self.hypothesis_noun, self.hypothesis_verb, "?")

    @property
    def texts(self) -> tuple[str, str]:
        """Premise and hypothesis."""
        words = self.tokens
        return " ".join(words[:3]), " ".join(words[3:6])


@dataclasses.dataclass(frozen=True, eq=False)
class Language:
    """The words, as two hierarchies: nouns under three categories, verbs under two manners.

    Attributes:
        noun_children: children of every noun that has any, two at least.
        verb_children: the same for verbs.
    """

    noun_children: Tree
    verb_children: Tree

    @functools.cached_property
    def nouns(self) -> tuple[str, ...]:
        """All nouns, most general first."""
        return words(self.noun_children)

    @functools.cached_property
    def verbs(self) -> tuple[str, ...]:
        """All verbs, most general first."""
        return words(self.verb_children)

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every token of the language."""
        return frozenset((*self.nouns, *self.verbs, "a", "no", "?"))

    @functools.cached_property
    def things(self) -> dict[str, frozenset[str]]:
        """The most specific nouns that each noun is true of."""
        return {noun: leaves(self.noun_children, noun) for noun in self.nouns}

    @functools.cached_property
    def acts(self) -> dict[str, frozenset[str]]:
        """The most specific verbs that each verb is true of."""
        return {verb: leaves(self.verb_children, verb) for verb in self.verbs}

    @functools.cached_property
    def scenes(self) -> frozenset[tuple[str, str]]:
        """Everything that may have been seen: one most specific thing doing one most specific act."""
        things, acts = (frozenset().union(*words.values()) for words in (self.things, self.acts))
        return frozenset(itertools.product(things, acts))

    def meaning(self, negated: bool, noun: str, verb: str) -> frozenset[tuple[str, str]]:
        """The scenes in which a sentence is true."""
        affirmed = frozenset(itertools.product(self.things[noun], self.acts[verb]))
        return self.scenes - affirmed if negated else affirmed

    def noun_relation(self, premise: str, hypothesis: str) -> Relation:
        """How a hypothesis's noun stands to a premise's."""
        return relation(self.noun_children, premise, hypothesis)

    def verb_relation(self, premise: str, hypothesis: str) -> Relation:
        """How a hypothesis's verb stands to a premise's."""
        return relation(self.verb_children, premise, hypothesis)

    def label(self, pair: Pair) -> Label:
        """How the premise stands to the hypothesis."""
        premise = self.meaning(pair.premise_negated, pair.premise_noun, pair.premise_verb)
        hypothesis = self.meaning(pair.hypothesis_negated, pair.hypothesis_noun, pair.hypothesis_verb)
        if premise <= hypothesis:
            return Label.ENTAILMENT
        return Label.NEUTRAL if premise & hypothesis else Label.CONTRADICTION


def most_general(tree: Tree) -> tuple[str, ...]:
    """The words that are nobody's child."""
    children = frozenset(itertools.chain.from_iterable(tree.values()))
    return tuple(word for word in tree if word not in children)


def words(tree: Tree) -> tuple[str, ...]:
    """All words, each before those under it."""
    return tuple(itertools.chain.from_iterable(descendants(tree, top) for top in most_general(tree)))


def descendants(tree: Tree, word: str) -> tuple[str, ...]:
    """A word and everything under it."""
    return (word, *itertools.chain.from_iterable(descendants(tree, child) for child in tree.get(word, ())))


def leaves(tree: Tree, word: str) -> frozenset[str]:
    """The most specific words under a word; itself if nothing is."""
    return frozenset(entry for entry in descendants(tree, word) if not tree.get(entry))


def relation(tree: Tree, premise: str, hypothesis: str) -> Relation:
    """How the hypothesis's word stands to the premise's."""
    if premise == hypothesis:
        return Relation.SAME
    if premise in descendants(tree, hypothesis):
        return Relation.GENERALISED
    if hypothesis in descendants(tree, premise):
        return Relation.SPECIALISED
    shared = any({premise, hypothesis} <= set(descendants(tree, top)) for top in most_general(tree))
    return Relation.SIBLING if shared else Relation.UNRELATED


SMALL_LANGUAGE = Language(
    noun_children={"animal": ("dog", "cat"), "person": ("child", "adult"), "vehicle": ("car", "boat")},
    verb_children={"moves": ("runs", "turns"), "rests": ("stands", "waits")},
)
"""Nine nouns and six verbs: a program of 3.9M parameters, padding included."""

PAPER_SIZED_LANGUAGE = Language(
    noun_children={
        "animal": ("dog", "cat", "bird"),
        "dog": ("poodle", "beagle", "terrier"),
        "cat": ("siamese", "tabby", "persian"),
        "bird": ("robin", "sparrow"),
        "person": ("child", "athlete", "artist"),
        "child": ("boy", "girl", "toddler"),
        "athlete": ("runner", "swimmer", "boxer"),
        "artist": ("painter", "dancer"),
        "vehicle": ("car", "boat", "plane"),
        "car": ("sedan", "coupe", "taxi"),
        "boat": ("ferry", "canoe", "yacht"),
        "plane": ("jet", "glider"),
    },
    verb_children={"moves": ("runs", "turns"), "rests": ("stands", "waits")},
)
"""Thirty-six nouns and six verbs: a program of 27 layers and 32M parameters, somewhat larger than the paper's."""
