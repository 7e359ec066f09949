"""A simplified natural-language inference task: a compiled program, examples, and its known intermediate variables."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from npeff_jax._extras import needs
from npeff_jax.models import Categorical, Model, encode_tokens, from_tracr
from npeff_jax.tasks._nli_language import SMALL_LANGUAGE, Label, Language, Pair, Relation
from npeff_jax.tasks._nli_program import build_program

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
"""Number of examples out of 48 by polarity of premise and hypothesis (negated or not) and label: a third per label, a
quarter per pair of polarities. Two negated sentences never contradict; a negated one entails no affirmative one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inference:
    """A compiled program, examples, and the values of its Boolean variables.

    Attributes:
        model: logits of the three labels. Its parameters are the compiled ones without padding.
        pairs: the n examples, as premise and hypothesis.
        examples: (n, 8) token ids, starting with BOS.
        labels: (n,), true labels, in the order of ``model.label_names``.
        tokens: per example, the names of all tokens, including BOS.
        concepts: per variable of the program, its value for each example, from the compiled model's residual stream at
            the last token.
        readouts: per variable, the dimension of the residual stream that is 1 if it is true and 0 otherwise.
        compiled_size: number of parameters of the compiled transformer, including Tracr's padding.
    """

    model: Model
    pairs: list[Pair]
    examples: Int[np.ndarray, "n T"]
    labels: Int[np.ndarray, "n"]
    tokens: list[list[str]]
    concepts: dict[str, Bool[np.ndarray, "n"]]
    readouts: dict[str, int]
    compiled_size: int

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Premise and hypothesis of each example."""
        return [pair.texts for pair in self.pairs]

    @property
    def digest(self) -> str:
        """SHA-256 of the compiled parameters, the examples, their labels and the values of the variables."""
        found = hashlib.sha256(self.model.fingerprint.encode())
        for array in (self.examples, self.labels, *self.concepts.values()):
            found.update(np.ascontiguousarray(array, np.int32).tobytes())
        found.update(" ".join(self.concepts).encode())
        return found.hexdigest()


def inference(
    *, n_examples: int = 1000, seed: int = 0, temperature: float = 0.2, language: Language = SMALL_LANGUAGE
) -> Inference:
    """Compile the program and draw examples, balanced over labels and polarities.

    Without balance, most components would be about the most frequent kind of example.

    Args:
        n_examples: number of pairs.
        seed: seed of the draw.
        temperature: temperature of the softmax. At 0.2 the correct label has a probability of 0.987.
        language: words of the language.

    Raises:
        ValueError: the language has too few pairs of some kind.
    """
    with needs("a compiled program"):
        from tracr.compiler import compiling

    pairs = draw_pairs(language, n_examples, seed)
    program = build_program(language)
    compiled = compiling.compile_rasp_to_model(
        program.answer, vocab=set(language.vocabulary), max_seq_len=len(language.vocabulary), compiler_bos="BOS"
    )
    tokens = [list(pair.tokens) for pair in pairs]
    names = _label_names(compiled)
    model = dataclasses.replace(
        from_tracr(compiled, position=len(tokens[0]) - 1, padding=False),
        output=Categorical(temperature),
        label_names=names,
    )
    examples = encode_tokens(compiled, tokens)
    readouts = _readouts(compiled, tuple(program.variables))
    return Inference(
        model=model,
        pairs=pairs,
        examples=examples,
        labels=np.array([names.index(language.label(pair).value) for pair in pairs]),
        tokens=[["BOS", *entry] for entry in tokens],
        concepts=_read_variables(model, examples, readouts),
        readouts=readouts,
        compiled_size=sum(leaf.size for leaf in jax.tree.leaves(compiled.params)),
    )


def _readouts(compiled: Any, names: tuple[str, ...]) -> dict[str, int]:
    """Return per Boolean variable the dimension of the residual stream that is 1 if it is true, else 0."""
    # The compiler names dimensions "variable_12:value".
    labels = (label.partition(":") for label in compiled.residual_labels)
    places = {(name.rpartition("_")[0], value): place for place, (name, _, value) in enumerate(labels)}
    return {name: places[name, "True"] for name in names}


def _read_variables(model: Model, examples: np.ndarray, readouts: dict[str, int]) -> dict[str, Bool[np.ndarray, "n"]]:
    assert model.intermediates_fn is not None
    read = model.intermediates_fn
    stream = np.asarray(jax.jit(jax.vmap(lambda p, x: read(p, x)["output"], (None, 0)))(model.params, examples))
    return {name: stream[:, place] > 0.5 for name, place in readouts.items()}


def _label_names(compiled: Any) -> tuple[str, ...]:
    """Return the labels in the order of the logits."""
    order = compiled.output_encoder.encoding_map
    return tuple(sorted(order, key=order.get))


def draw_pairs(language: Language, n: int, seed: int) -> list[Pair]:
    """Draw n different pairs, in random order.

    Label and polarities are distributed as in `SHARES`. Within each kind, pairs are taken in turn from each combination
    of relations between the nouns and between the verbs.

    Raises:
        ValueError: the language has too few pairs of some kind.
    """
    random = np.random.default_rng(seed)
    nouns, verbs = (
        _by_relation(known, find)
        for known, find in ((language.nouns, language.noun_relation), (language.verbs, language.verb_relation))
    )
    strata: dict[tuple[bool, bool, Label], list[Iterable[Pair]]] = {kind: [] for kind in SHARES}
    for (first, second), noun, verb in itertools.product(
        itertools.product((False, True), repeat=2), nouns.values(), verbs.values()
    ):
        words = list(itertools.product(noun, verb))
        shuffled = [words[i] for i in random.permutation(len(words))]
        label = language.label(_pair(first, second, words[0]))
        # Lazily: the larger language has 186,624 pairs, of which a thousand or two are drawn.
        strata[first, second, label].append(map(functools.partial(_pair, first, second), shuffled))
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


def _pair(first: bool, second: bool, words: tuple[tuple[str, str], tuple[str, str]]) -> Pair:
    """Return the pair whose sentences are negated or not, of (premise, hypothesis) of the nouns and of the verbs."""
    premise, hypothesis = zip(*words, strict=True)
    return Pair(first, *premise, second, *hypothesis)


def _by_relation(known: Iterable[str], find: Callable[[str, str], Relation]) -> dict[Relation, list[tuple[str, str]]]:
    pairs: dict[Relation, list[tuple[str, str]]] = {}
    for premise, hypothesis in itertools.product(known, repeat=2):
        pairs.setdefault(find(premise, hypothesis), []).append((premise, hypothesis))
    return pairs


def _counts(n: int) -> dict[tuple[bool, bool, Label], int]:
    """Return the number of pairs per kind, by cumulative rounding, so that they sum to n with errors below one."""
    ends = [round(n * total / sum(SHARES.values())) for total in itertools.accumulate(SHARES.values())]
    return {kind: end - start for kind, end, start in zip(SHARES, ends, [0, *ends], strict=False)}


def _in_turn(strata: list[Iterable[Pair]]) -> Iterator[Pair]:
    for taken in itertools.zip_longest(*strata):
        yield from (pair for pair in taken if pair is not None)
