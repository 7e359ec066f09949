"""A simplified inference task as a compiled program, its examples, and the truth about what it computes."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from npeff_jax.models import Categorical, Model, encode_tokens, from_tracr
from npeff_jax.tasks._nli_examples import draw_pairs
from npeff_jax.tasks._nli_language import SMALL_LANGUAGE, Language, Pair
from npeff_jax.tasks._nli_program import build_program


@dataclasses.dataclass(frozen=True, eq=False)
class Inference:
    """A compiled program, examples, and the values of its Boolean variables.

    Attributes:
        model: logits of the three labels. Its parameters are the compiled ones without padding.
        pairs: the n examples as the language has them.
        examples: (n, 8) token ids, the first of them BOS.
        labels: (n,), what the language says, in the order of ``model.label_names``.
        tokens: n lists of the names of all tokens, BOS included.
        concepts: for each variable of the program, its value for each example, read off the compiled model's residual
            stream at the last token.
        compiled_size: parameters of the compiled transformer, with what Tracr pads its layers by.
    """

    model: Model
    pairs: list[Pair]
    examples: Int[np.ndarray, "n T"]
    labels: Int[np.ndarray, "n"]
    tokens: list[list[str]]
    concepts: dict[str, Bool[np.ndarray, "n"]]
    compiled_size: int

    @property
    def texts(self) -> list[tuple[str, str]]:
        """N pairs of premise and hypothesis."""
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
    return Inference(
        model=model,
        pairs=pairs,
        examples=examples,
        labels=np.array([names.index(language.label(pair).value) for pair in pairs]),
        tokens=[["BOS", *entry] for entry in tokens],
        concepts=_read_variables(compiled, model, examples, tuple(program.variables)),
        compiled_size=sum(leaf.size for leaf in jax.tree.leaves(compiled.params)),
    )


def _read_variables(
    compiled: Any, model: Model, examples: np.ndarray, names: tuple[str, ...]
) -> dict[str, Bool[np.ndarray, "n"]]:
    """Each Boolean variable has a direction of the residual stream for true: 1 there, else 0."""
    assert model.intermediates_fn is not None
    read = model.intermediates_fn
    stream = np.asarray(jax.jit(jax.vmap(lambda p, x: read(p, x)["output"], (None, 0)))(model.params, examples))
    # A direction is named "variable_12:value", with the number the compiler gave the variable.
    labels = (label.partition(":") for label in compiled.residual_labels)
    places = {(name.rpartition("_")[0], value): place for place, (name, _, value) in enumerate(labels)}
    return {name: stream[:, places[name, "True"]] > 0.5 for name in names}


def _label_names(compiled: Any) -> tuple[str, ...]:
    """The labels in the order of the logits."""
    order = compiled.output_encoder.encoding_map
    return tuple(sorted(order, key=order.get))
