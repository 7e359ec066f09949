"""The language of the simplified inference task: words in two hierarchies, sentence pairs, and their meaning.

A sentence has three words, ``a dog runs`` or ``no dog runs``. A *scene* is a pair of a most specific noun and a most
specific verb (one thing doing one act), and the meaning of a sentence is the set of scenes in which it is true. A
premise entails a hypothesis if its set is a subset of the hypothesis's, contradicts it if the sets are disjoint, and is
neutral otherwise. These sets define all labels; the RASP program of the task uses rules on pairs of words instead, and
tests compare the two.
"""

import dataclasses
import enum
import functools
import itertools
from collections.abc import Mapping

Tree = Mapping[str, tuple[str, ...]]
"""Children of each word; words that are not keys are most specific."""


class Label(enum.Enum):
    """Relation of a premise to a hypothesis."""

    CONTRADICTION = "contradiction"
    ENTAILMENT = "entailment"
    NEUTRAL = "neutral"


class Relation(enum.Enum):
    """Relation of a word of the hypothesis to that of the premise in the hierarchy."""

    SAME = "same"
    GENERALISED = "generalised"
    SPECIALISED = "specialised"
    SIBLING = "sibling"
    """Their only common ancestor is a most general word."""
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
        """The seven tokens of the program's input; the output is read at the last."""
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
        noun_children: children of every noun that has any (at least two).
        verb_children: children of every verb that has any (at least two).
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
        """Most specific nouns under each noun."""
        return {noun: leaves(self.noun_children, noun) for noun in self.nouns}

    @functools.cached_property
    def acts(self) -> dict[str, frozenset[str]]:
        """Most specific verbs under each verb."""
        return {verb: leaves(self.verb_children, verb) for verb in self.verbs}

    @functools.cached_property
    def scenes(self) -> frozenset[tuple[str, str]]:
        """All scenes: pairs of a most specific noun and a most specific verb."""
        things, acts = (frozenset().union(*words.values()) for words in (self.things, self.acts))
        return frozenset(itertools.product(things, acts))

    def meaning(self, negated: bool, noun: str, verb: str) -> frozenset[tuple[str, str]]:
        """Return the scenes in which a sentence is true."""
        affirmed = frozenset(itertools.product(self.things[noun], self.acts[verb]))
        return self.scenes - affirmed if negated else affirmed

    def noun_relation(self, premise: str, hypothesis: str) -> Relation:
        """Return the relation of a hypothesis's noun to a premise's."""
        return relation(self.noun_children, premise, hypothesis)

    def verb_relation(self, premise: str, hypothesis: str) -> Relation:
        """Return the relation of a hypothesis's verb to a premise's."""
        return relation(self.verb_children, premise, hypothesis)

    def label(self, pair: Pair) -> Label:
        """Return the label of a pair."""
        premise = self.meaning(pair.premise_negated, pair.premise_noun, pair.premise_verb)
        hypothesis = self.meaning(pair.hypothesis_negated, pair.hypothesis_noun, pair.hypothesis_verb)
        if premise <= hypothesis:
            return Label.ENTAILMENT
        return Label.NEUTRAL if premise & hypothesis else Label.CONTRADICTION


def most_general(tree: Tree) -> tuple[str, ...]:
    """Return the words that are not children of another word."""
    children = frozenset(itertools.chain.from_iterable(tree.values()))
    return tuple(word for word in tree if word not in children)


def words(tree: Tree) -> tuple[str, ...]:
    """Return all words, each before its descendants."""
    return tuple(itertools.chain.from_iterable(descendants(tree, top) for top in most_general(tree)))


def descendants(tree: Tree, word: str) -> tuple[str, ...]:
    """Return a word and its descendants."""
    return (word, *itertools.chain.from_iterable(descendants(tree, child) for child in tree.get(word, ())))


def leaves(tree: Tree, word: str) -> frozenset[str]:
    """Return the most specific words under a word, or the word itself if it has no children."""
    return frozenset(entry for entry in descendants(tree, word) if not tree.get(entry))


def relation(tree: Tree, premise: str, hypothesis: str) -> Relation:
    """Return the relation of the hypothesis's word to the premise's."""
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
"""Language of nine nouns and six verbs; its program has 3.9M parameters, including padding."""

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
"""Language of 36 nouns and six verbs; its program has 27 layers and 32M parameters, slightly more than the paper's."""
