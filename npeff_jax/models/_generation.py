"""Sampling of answers from a causal language model, to estimate the Fisher of a distribution over sequences."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from npeff_jax._checks import check_integer, check_real, normalise
from npeff_jax._examples import count_examples, slice_examples, take_examples
from npeff_jax._progress import Progress, progress_bar
from npeff_jax._types import Examples, PyTree
from npeff_jax.models._language import LanguageModel, TokenLogits, pad_tokens

_SHORTEST = 16
"""Prompts are padded to this length times a power of two, because every length compiles another program."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """Settings of sampling answers.

    Attributes:
        n_answers: S, answers per prompt. The relative error of a Fisher estimated from them is proportional to
            1/sqrt(S).
        max_tokens: maximum number of tokens per answer. The explained distribution is that of the first ``max_tokens``
            tokens.
        temperature: logits are divided by it. The explained distribution is the one at this temperature.
        seed: seed, folded with the indices of prompt, answer and token, so that samples do not depend on batches.

    Raises:
        ValueError: a value out of range.
    """

    n_answers: int = 8
    max_tokens: int = 16
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        normalise(
            self,
            n_answers=check_integer("n_answers", self.n_answers),
            max_tokens=check_integer("max_tokens", self.max_tokens),
            temperature=check_real("temperature", self.temperature, 0, 1e6, open_low=True),
            seed=check_integer("seed", self.seed, 0, 2**32 - 1),
        )


def generate(
    model: LanguageModel,
    prompts: Examples,
    generation: Generation = Generation(),
    *,
    batch_size: int = 16,
    progress: Progress = False,
) -> dict[str, np.ndarray]:
    """Sample answers to prompts from a language model, token by token.

    An answer ends with one of the model's ``stop`` tokens, which is part of the answer, or after ``max_tokens``.
    Prompts are batched by similar length. Each token takes a forward pass over the whole text so far, without a cache
    of keys and values, so that any function of tokens can be sampled: ``max_tokens`` passes per answer, compared with
    about three for its gradient.

    Args:
        model: the language model.
        prompts: n prompts: ``input_ids`` and ``attention_mask``, optionally ``position``, the prompt's last token.
        generation: settings of sampling.
        batch_size: prompts per batch.
        progress: True for a bar, False for none, a text stream for JSON lines.

    Returns:
        Examples of `LanguageModel.generated`: ``input_ids`` and ``attention_mask`` (n, L), the prompts padded on the
        right; ``answer_ids`` (n, S, T), ``answer_length`` (n, S), and ``temperature`` (n,).

    Raises:
        ValueError: a prompt without tokens, or a prompt and answer that together exceed the model's positions.
    """
    taken = take_examples(prompts)
    batch_size = check_integer("batch_size", batch_size)
    texts: list[Sequence[int]] = [ids.tolist() for ids in _prompts(taken)]
    longest = max(map(len, texts))
    if model.max_length is not None and longest + generation.max_tokens - 1 > model.max_length:
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of {generation.max_tokens} are longer than the "
            f"{model.max_length} positions that the model has; use shorter prompts, or fewer max_tokens"
        )
    n, S, T = len(texts), generation.n_answers, generation.max_tokens
    answers, lengths = np.zeros((n, S, T), np.int32), np.zeros((n, S), np.int32)
    draw = jax.jit(functools.partial(_draw, model.token_logits, model.stop, generation))
    with progress_bar(progress, "answers", n, "prompt") as advance:
        for width, chosen in _batches(texts, batch_size):
            rows = [*chosen, *[chosen[-1]] * (batch_size - len(chosen))]
            ids, ends = pad_tokens([texts[i] for i in rows], width)
            found = draw(model.params, ids, ends, np.array(rows, np.int32))
            answers[chosen], lengths[chosen] = (np.asarray(part)[: len(chosen)] for part in found)
            advance(len(chosen))
    ids, ends = pad_tokens(texts)
    mask = (np.arange(ids.shape[1]) < ends[:, None]).astype(np.int32)
    temperature = np.full(n, generation.temperature, np.float32)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "answer_ids": answers,
        "answer_length": lengths,
        "temperature": temperature,
    }


def answer_texts(model: LanguageModel, examples: Examples) -> list[tuple[str, ...]]:
    """Return the prompt and the answers of each example of `generate`, as text for display."""
    found = []
    for i in range(count_examples(examples)):
        one = jax.tree.map(lambda leaf: leaf[0], slice_examples(examples, slice(i, i + 1)))
        prompt = one["input_ids"][one["attention_mask"] != 0].tolist()
        answers = [ids[:length].tolist() for ids, length in zip(one["answer_ids"], one["answer_length"])]
        found.append((model.decode(prompt), *(model.decode(answer) for answer in answers)))
    return found


def _prompts(examples: Any) -> Iterator[Int[np.ndarray, "_"]]:
    """Yield the tokens of each prompt, without padding."""
    for start in range(0, count_examples(examples), 1024):
        batch = slice_examples(examples, slice(start, start + 1024))
        if "input_ids" not in batch:
            raise ValueError(f"prompts have {', '.join(map(str, batch))}; expected 'input_ids' and 'attention_mask'")
        for i, ids in enumerate(batch["input_ids"]):
            shown = np.ones(len(ids), bool) if "attention_mask" not in batch else batch["attention_mask"][i] != 0
            if "position" in batch:
                shown = shown & (np.arange(len(ids)) <= batch["position"][i])
            if not shown.any():
                raise ValueError(f"prompt {start + i} has no tokens; there must be one to write after")
            yield ids[shown]


def _batches(texts: Sequence[Sequence[int]], size: int) -> Iterator[tuple[int, list[int]]]:
    """Yield batches: a width, and the positions of the prompts that are padded to it."""
    widths = [max(_SHORTEST, 1 << (len(text) - 1).bit_length()) for text in texts]
    for width in sorted(set(widths)):
        own = [i for i, w in enumerate(widths) if w == width]
        for start in range(0, len(own), size):
            yield width, own[start : start + size]


def _draw(
    token_logits: TokenLogits,
    stop: tuple[int, ...],
    generation: Generation,
    params: PyTree,
    ids: Int[Array, "b L"],
    ends: Int[Array, "b"],
    numbers: Int[Array, "b"],
) -> tuple[Int[Array, "b S T"], Int[Array, "b S"]]:
    """Sample answers to a batch of prompts, until all answers have ended."""
    (b, width), S, T = ids.shape, generation.n_answers, generation.max_tokens
    seed = jax.random.key(generation.seed, impl="threefry2x32")
    of_prompt = jax.vmap(jax.random.fold_in, (None, 0))(seed, numbers)
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(S)))(of_prompt)
    place = jnp.arange(width + T)
    texts = jnp.broadcast_to(jnp.pad(jnp.asarray(ids), ((0, 0), (0, T)))[:, None], (b, S, width + T))
    ends = jnp.broadcast_to(jnp.asarray(ends)[:, None], (b, S))  # position of each answer's first token

    def next_token(text: Int[Array, "L"], end: jax.Array, key: jax.Array, t: jax.Array) -> jax.Array:
        shown = (place < end + t).astype(jnp.int32)
        logits: Float[Array, V] = token_logits(params, text, shown, (end + t - 1)[None])[0].astype(jnp.float32)
        return jax.random.categorical(jax.random.fold_in(key, t), logits / generation.temperature)

    def step(state: Any) -> Any:
        t, texts, lengths, ended = state
        tokens = jax.vmap(jax.vmap(next_token, (0, 0, 0, None)), (0, 0, 0, None))(texts, ends, keys, t)
        tokens = tokens.astype(texts.dtype)
        writes = (place == (ends + t)[..., None]) & ~ended[..., None]
        texts = jnp.where(writes, tokens[..., None], texts)
        lengths = jnp.where(ended, lengths, t + 1)
        stops = jnp.isin(tokens, jnp.array(stop, tokens.dtype)) if stop else jnp.zeros_like(ended)
        return t + 1, texts, lengths, ended | stops

    start = (jnp.int32(0), texts, jnp.zeros((b, S), jnp.int32), jnp.zeros((b, S), bool))
    _, texts, lengths, _ = jax.lax.while_loop(lambda s: (s[0] < T) & ~jnp.all(s[3]), step, start)
    written = jnp.take_along_axis(texts, ends[..., None] + jnp.arange(T), axis=2)
    return jnp.where(jnp.arange(T) < lengths[..., None], written, jnp.zeros_like(written)), lengths
