"""Causal language models, and the three distributions of them that can be explained."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._parameters import Mask
from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import IntermediatesFn, Model
from npeff_jax.models._outputs import Generated

TokenLogits = Callable[[PyTree, Int[Array, "L"], Int[Array, "L"], Int[Array, "p"]], Float[Array, "p V"]]
"""``(params, input_ids, attention_mask, places) -> logits`` of the next token after each of ``places``, indices into
``input_ids`` of one text. Pure, and causal: tokens after a place do not affect its logits."""

Answers = Sequence[str | Sequence[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, and the models that explain its distributions.

    Each method below returns a `Model` over the same parameters, with its own kind of examples:

    ================= ========================================== =========================== =======================
    method            example                                    logits                      output family
    ================= ========================================== =========================== =======================
    `next_token`      a text and a ``position``                  the vocabulary              `Categorical`
    `choices`         a prompt                                   given answers               `Categorical`
    `generated`       a prompt and answers drawn from the model  log p of each drawn answer  `Generated`
    ================= ========================================== =========================== =======================

    Attributes:
        token_logits: the logits function; `language_model` makes it from a checkpoint or a PyTorch module.
        params: the parameters.
        mask: which parameters to explain, as in `Model`.
        constants: dependencies of the function besides its arguments, as in `Model`.
        tokenizer: a ``transformers`` tokenizer; if None, texts are token ids.
        stop: tokens that end an answer.
        max_length: maximum number of tokens of prompt and answer together; None without a limit.
        intermediates_fn: as in `Model`, for the prompt.

    Examples:
        >>> def after(params, ids, mask, places):  # a bigram model
        ...     return params["table"][ids[places]]
        >>> bigrams = LanguageModel(after, {"table": jnp.zeros((5, 5))}, stop=(0,))
        >>> bigrams.next_token().n_classes({"input_ids": np.array([1, 2]), "position": np.array(1)})
        5
    """

    token_logits: TokenLogits
    params: PyTree
    _: dataclasses.KW_ONLY
    mask: Mask = None
    constants: Any = None
    tokenizer: Any = None
    stop: tuple[int, ...] = ()
    max_length: int | None = None
    intermediates_fn: IntermediatesFn | None = None

    def next_token(self) -> Model:
        """Return the model of the distribution of the token after ``position``, or after the last token shown.

        With a vocabulary of C tokens the exact Fisher takes C−1 backward passes per example; see
        `pefs.default_representation` for the representation used instead.
        """

        def logits_fn(params: PyTree, example: Example) -> jax.Array:
            ids, shown, end = prompt_of(example)
            return self.token_logits(params, ids, shown, end[None])[0]

        return self._model(logits_fn, "next token", label_names=self._words())

    def choices(self, answers: Answers) -> Model:
        """Return the model of a choice among given answers, each a string or token ids.

        A logit is the log-probability of the whole answer after the prompt: the sum over its tokens.

        Raises:
            ValueError: fewer than two answers, an answer without tokens, or a string without a tokenizer.
        """
        given = self._token_ids(answers)
        tokens, lengths = pad_tokens(given)
        names = tuple(a if isinstance(a, str) else str(tuple(a)) for a in answers)
        if lengths.max() == 1:  # a single forward pass suffices

            def first_tokens(params: PyTree, example: Example) -> jax.Array:
                ids, shown, end = prompt_of(example)
                logits = self.token_logits(params, ids, shown, end[None])[0].astype(jnp.float32)
                return jax.nn.log_softmax(logits)[tokens[:, 0]]

            return self._model(first_tokens, ("choices", given), label_names=names)

        def outcome_fn(params: PyTree, example: Example, j: jax.Array) -> jax.Array:
            return self._log_probability(params, example, jnp.asarray(tokens)[j], jnp.asarray(lengths)[j], 1.0)

        return self._model(_each(outcome_fn, len(given)), ("choices", given), outcome_fn=outcome_fn, label_names=names)

    def generated(self) -> Model:
        """Return the model of its own generated answers; the examples come from `generate`.

        A logit is the log-probability of one answer, at the temperature at which it was sampled.
        """

        def outcome_fn(params: PyTree, example: Example, j: jax.Array) -> jax.Array:
            tokens, length = jnp.asarray(example["answer_ids"])[j], jnp.asarray(example["answer_length"])[j]
            return self._log_probability(params, example, tokens, length, example["temperature"])

        def logits_fn(params: PyTree, example: Example) -> jax.Array:
            return _each(outcome_fn, len(example["answer_ids"]))(params, example)

        return self._model(logits_fn, "generated", outcome_fn=outcome_fn, output=Generated())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text, or as numbers without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(str(int(token)) for token in tokens)
        return str(self.tokenizer.decode([int(token) for token in tokens], clean_up_tokenization_spaces=False))

    def _model(self, logits_fn: Any, question: Any, **options: Any) -> Model:
        constants = {"question": question, "model": self.constants}
        own = {"mask": self.mask, "constants": constants, "intermediates_fn": self.intermediates_fn}
        return Model(logits_fn, self.params, **own | options)

    def _log_probability(
        self, params: PyTree, example: Example, tokens: Int[Array, "T"], length: Any, temperature: Any
    ) -> Float[Array, ""]:
        """Compute the log-probability of the first ``length`` tokens of an answer after the prompt."""
        ids, shown, end = prompt_of(example)
        longest = len(tokens)
        ids, shown = (jnp.pad(array, (0, longest - 1)) for array in (ids, shown))
        after = jnp.arange(len(ids)) - end - 1  # 0 at the answer's first token
        ids = jnp.where(after >= 0, tokens[jnp.clip(after, 0, longest - 1)], ids)
        shown = jnp.where(after >= 0, (after < length).astype(shown.dtype), shown)
        logits = self.token_logits(params, ids, shown, end + jnp.arange(longest)).astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits / temperature)
        chosen = jnp.take_along_axis(log_p, tokens[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(jnp.arange(longest) < length, chosen, jnp.zeros_like(chosen)))

    def _token_ids(self, answers: Answers) -> tuple[tuple[int, ...], ...]:
        if isinstance(answers, str) or len(answers) < 2:
            raise ValueError(f"answers={answers!r}; expected two or more strings to choose among")
        found = []
        for i, answer in enumerate(answers):
            if isinstance(answer, str):
                if self.tokenizer is None:
                    raise ValueError(f"answers[{i}] is a text, and the model has no tokenizer; pass token ids")
                answer = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            found.append(tuple(int(token) for token in answer))
        if () in found:
            raise ValueError(f"answers[{found.index(())}] has no tokens")
        return tuple(found)

    def _words(self) -> tuple[str, ...] | None:
        if self.tokenizer is None:
            return None
        shape = jax.eval_shape(self.token_logits, self.params, *(jax.ShapeDtypeStruct((1,), jnp.int32),) * 3)
        return tuple(self.decode([token]) for token in range(shape.shape[1]))


def prompt_of(example: Mapping[str, Any]) -> tuple[Int[Array, "L"], Int[Array, "L"], Int[Array, ""]]:
    """Return ``input_ids``, ``attention_mask``, and the index of the prompt's last token, with padding on either side.

    The index is ``position`` if given, else that of the last token that ``attention_mask`` shows.
    """
    ids = jnp.asarray(example["input_ids"])
    shown = jnp.asarray(example.get("attention_mask", jnp.ones_like(ids)))
    place = jnp.max(jnp.where(shown != 0, jnp.arange(len(ids)), jnp.zeros_like(ids)))
    return ids, shown, jnp.asarray(example.get("position", place), jnp.int32)


def pad_tokens(
    sequences: Sequence[Sequence[int]], width: int = 0
) -> tuple[Int[np.ndarray, "n T"], Int[np.ndarray, "n"]]:
    """Return token ids of different lengths as one array, padded with zeros on the right, and the lengths."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.zeros((len(sequences), max(width, int(lengths.max(initial=1)))), np.int32)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    return tokens, lengths


def _each(outcome_fn: Any, n: int) -> Any:
    """Return a function that computes all n logits, from one that computes a single logit."""
    return lambda params, example: jax.vmap(lambda j: outcome_fn(params, example, j))(jnp.arange(n))
