"""A simplified inference task as a compiled program, its examples, and the truth about what it computes."""

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from npeff_jax.models import Categorical, Model, encode_tokens, from_tracr
from npeff_jax.tasks._nli_language import SMALL, Label, Language, Pair
from npeff_jax.tasks._nli_program import build_program


@dataclasses.dataclass(frozen=True, eq=False)
class Inference:
    """A compiled program, examples, and the values of its Boolean variables.

    Attributes:
        model: logits of the three labels.
        examples: (n, 8) token ids, the first of them BOS.
        labels: (n,), what the language says, in the order of ``model.label_names``.
        texts: n pairs of premise and hypothesis.
        tokens: n lists of the names of all tokens, BOS included.
        concepts: for each variable of the program, its value for each example.
    """

    model: Model
    examples: Int[np.ndarray, "n T"]
    labels: Int[np.ndarray, "n"]
    texts: list[tuple[str, str]]
    tokens: list[list[str]]
    concepts: dict[str, Bool[np.ndarray, "n"]]


def inference(
    *, n_examples: int = 1200, seed: int = 0, temperature: float = 0.2, language: Language = SMALL
) -> Inference:
    """Compile the program and draw examples, evenly over labels and polarities: in a set that is mostly of one kind
    most components would be about it.

    Args:
        n_examples: how many pairs.
        seed: of their choice.
        temperature: of the softmax over the program's indicators. At 0.2 the right label has a probability of 0.987.
        language: its words.

    Raises:
        ValueError: there are not so many pairs of some kind.
    """
    from tracr.compiler import compiling

    program = build_program(language)
    compiled = compiling.compile_rasp_to_model(
        program.answer, vocab=set(language.vocabulary), max_seq_len=len(language.vocabulary), compiler_bos="BOS"
    )
    pairs = draw_pairs(language, n_examples, seed)
    tokens = [list(pair.tokens) for pair in pairs]
    names = _label_names(compiled)
    model = dataclasses.replace(
        from_tracr(compiled, position=len(tokens[0]) - 1), output=Categorical(temperature), label_names=names
    )
    return Inference(
        model=model,
        examples=encode_tokens(compiled, tokens),
        labels=np.array([names.index(language.label(pair).value) for pair in pairs]),
        texts=[_texts(pair) for pair in pairs],
        tokens=[["BOS", *entry] for entry in tokens],
        concepts={
            name: np.array([bool(variable(entry)[-1]) for entry in tokens])
            for name, variable in program.variables.items()
        },
    )


def draw_pairs(language: Language, n: int, seed: int) -> list[Pair]:
    """N different pairs in random order, as evenly over labels and polarities as n allows."""
    kinds: dict[tuple[bool, bool, Label], list[Pair]] = {}
    sentences = list(itertools.product((False, True), language.nouns, language.verbs))
    for premise, hypothesis in itertools.product(sentences, sentences):
        pair = Pair(*premise, *hypothesis)
        kinds.setdefault((pair.premise_negated, pair.hypothesis_negated, language.label(pair)), []).append(pair)
    random = np.random.default_rng(seed)
    drawn: list[Pair] = []
    for place, (kind, pairs) in enumerate(kinds.items()):
        wanted = n // len(kinds) + (place < n % len(kinds))
        if wanted > len(pairs):
            raise ValueError(
                f"n_examples={n} wants {wanted} pairs of each kind, but only {len(pairs)} are of label "
                f"{kind[2].value} with these polarities; ask for at most {len(kinds) * len(pairs)}"
            )
        drawn += [pairs[i] for i in random.permutation(len(pairs))[:wanted]]
    return [drawn[i] for i in random.permutation(n)]


def _label_names(compiled: Any) -> tuple[str, ...]:
    """The labels in the order of the logits."""
    order = compiled.output_encoder.encoding_map
    return tuple(sorted(order, key=order.get))


def _texts(pair: Pair) -> tuple[str, str]:
    words = pair.tokens
    return " ".join(words[:3]), " ".join(words[3:6])
