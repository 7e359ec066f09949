"""Texts, pairs and conversations as tokens for a causal language model, and the positions that it predicts."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from npeff_jax._checks import check_choice, check_integer, listing
from npeff_jax.models import Generation, LanguageModel, answer_texts, generate, pad_tokens
from npeff_jax.store import absolute_path
from npeff_jax.tasks._dataset import Dataset
from npeff_jax.tasks._labels import number_labels
from npeff_jax.tasks._tables import read_rows

_LOG = logging.getLogger("npeff_jax")

Positions = Literal["last", "answer", "all"]

MESSAGES = ("messages", "conversation", "conversations")
TEXTS = ("prompt", "text", "question", "instruction", "content", "sentence", "premise")
ANSWERS = {"prompt": ("completion", "answer", "response", "chosen"), "question": ("answer",)}
ANSWERS |= {"instruction": ("output", "response"), "text": ("text_pair",), "premise": ("hypothesis",)}
"""Usual names of the column of answers, for each usual name of the column of texts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Passages:
    """n tokenized texts, and where the answer begins in each.

    Attributes:
        tokens: tokens of each text.
        starts: (n,), position of the first token of the answer (the second column, or the assistant's last message);
            the length of the text if there is no answer.
        tokenizer: a ``transformers`` tokenizer.
        n_truncated: number of texts of which only the end was kept.
        labels: per text, its location in the source and the cell with the correct answer; or None.
    """

    tokens: tuple[tuple[int, ...], ...]
    starts: Int[np.ndarray, "n"]
    tokenizer: Any
    n_truncated: int = 0
    labels: tuple[tuple[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def prompts(self, answers: Sequence[str] | None = None) -> Dataset:
        """Return the texts without their answers, as prompts.

        Args:
            answers: answers of `LanguageModel.choices`, to which labels are matched.

        Raises:
            ValueError: a text that begins with its answer, or a label that is not among the answers.
        """
        for i, start in enumerate(self.starts):
            if start == 0:
                raise ValueError(f"text {i} has no tokens before its answer; give it a prompt, or drop it")
        kept = [ids[:start] for ids, start in zip(self.tokens, self.starts)]
        names = None if answers is None else tuple(answers)
        labels = None
        if names is not None and self.labels is not None:
            labels, names = number_labels(self.labels, None, names, "labels")
        return Dataset(_examples(kept), labels, [self._decode(ids) for ids in kept], names)

    def positions(self, which: Positions = "all") -> Dataset:
        """Return one example per predicted token, with the tokens of its text and a position.

        Args:
            which: "last" for the token after each text, "answer" for every token of the answers, "all" for every token
                except the first.

        Returns:
            A data set for `LanguageModel.next_token`. The display is the text with the predicted token in ⟦ and ⟧, the
            labels are the predicted tokens (except for "last"), and ``groups`` are the texts.

        Raises:
            ValueError: no text has a token to predict.
        """
        check_choice("which", which, get_args(Positions))
        if which == "last":
            return Dataset(_examples(self.tokens), display=[f"{self._decode(ids)} ⟦ ⟧" for ids in self.tokens])
        first = self.starts if which == "answer" else np.ones(len(self), int)
        places = [(i, t) for i, ids in enumerate(self.tokens) for t in range(max(1, first[i]), len(ids))]
        if not places:
            raise ValueError(f"no text has a token to predict ({which=}); expected answers, or longer texts")
        texts, at = np.array(places).T
        examples = {name: array[texts] for name, array in _examples(self.tokens).items()}
        return Dataset(
            examples | {"position": (at - 1).astype(np.int32)},
            labels=np.array([self.tokens[i][t] for i, t in places]),
            display=[self._marked(self.tokens[i], t) for i, t in places],
            groups=texts,
        )

    def answered(self, model: LanguageModel, generation: Generation, **options: Any) -> Dataset:
        """Return the prompts with answers sampled from ``model``, as examples of `LanguageModel.generated`.

        The display is the prompt and each answer, as text.

        Args:
            model: the language model.
            generation: settings of sampling.
            **options: ``batch_size`` and ``progress`` of `models.generate`.
        """
        examples = generate(model, self.prompts().examples, generation, **options)
        return Dataset(examples, display=answer_texts(model, examples))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _marked(self, ids: Sequence[int], t: int) -> str:
        before, own, after = (self._decode(part) for part in (ids[:t], ids[t : t + 1], ids[t + 1 :]))
        space = " " if self._decode(ids[: t + 1]).startswith(f"{before} ") and not own.startswith(" ") else ""
        gap = " " if after and self._decode(ids[t:]).startswith(f"{own} ") and not after.startswith(" ") else ""
        return f"{before}{space}⟦{own}⟧{gap}{after}"


def read_passages(
    source: Any,
    tokenizer: Any,
    *,
    text: str | None = None,
    answer: str | None = None,
    label: str | None = None,
    max_length: int = 128,
) -> Passages:
    """Read texts for a causal language model: plain texts, pairs of prompt and answer, or conversations.

    A conversation is a list of ``{"role", "content"}``, which the tokenizer's chat template converts to text. If its
    last message is the assistant's, that is the answer; otherwise the text ends with the template's generation prompt.

    Args:
        source: a file (.jsonl, .csv, .tsv, .parquet), a pandas frame, a Hugging Face ``Dataset`` or other sequence of
            mappings, or a list of strings.
        tokenizer: tokenizer of the model.
        text: column of the text or of the messages; by default one with a usual name (``messages``, ``prompt``,
            ``text``, …).
        answer: column of the answer to the text; by default one with a usual name, if ``text`` is not given either.
        label: column with the correct answer.
        max_length: maximum number of tokens, counted from the end of a text. The number of truncated texts is logged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no texts, no text column, an invalid conversation, or a conversation without a chat template.
    """
    max_length = check_integer("max_length", max_length, 2)
    rows = list(_rows(source))
    if not rows:
        raise ValueError("there are no texts to read")
    text, answer = _columns(rows[0][1], text, answer)
    if label is not None and label not in rows[0][1]:
        raise ValueError(f"there is no column {label!r}; the columns are {listing(list(rows[0][1]), 20)}")
    found, starts, n_cut = [], [], 0
    for place, row in rows:
        prompt, own = _parts(tokenizer, row, text, answer, place)
        cut = max(0, len(prompt) + len(own) - max_length)
        n_cut += cut > 0
        ids = (*prompt, *own)[cut:]
        if not ids:
            raise ValueError(f"{place}: the text is empty; there must be a token to write after")
        found.append(ids)
        starts.append(max(0, len(prompt) - cut))
    if n_cut:
        _LOG.warning("%d of %d texts are longer than %d tokens and were cut", n_cut, len(rows), max_length)
    cells = None if label is None else tuple((place, row.get(label)) for place, row in rows)
    return Passages(tuple(found), np.array(starts), tokenizer, n_cut, cells)


def _rows(source: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the location of each row (for error messages) and its cells by column."""
    if isinstance(source, str | pathlib.Path):
        path = absolute_path(source, "source")
        yield from ((f"{path}, {place}", row) for place, row in read_rows(path, []))
        return
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas frame
        source = source.to_dict("records")
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")) or isinstance(source, Mapping):
        raise TypeError(f"source is a {type(source).__name__}; expected a file, a table, or a sequence of texts")
    for i, row in enumerate(source[i] for i in range(len(source))):
        if not isinstance(row, str | Mapping):
            raise ValueError(f"source[{i}] is a {type(row).__name__}; expected a text, or a mapping of columns")
        yield f"source[{i}]", {"text": row} if isinstance(row, str) else row


def _columns(row: Mapping[str, Any], text: str | None, answer: str | None) -> tuple[str, str | None]:
    """Return the names of the columns of the text and of the answer."""
    for name in (text, answer):
        if name is not None and name not in row:
            raise ValueError(f"there is no column {name!r}; the columns are {listing(list(row), 20)}")
    if text is not None:
        return text, answer
    found = next((name for name in (*MESSAGES, *TEXTS) if name in row), None)
    if found is None:
        raise ValueError(f"the columns are {listing(list(row), 20)}; say which is the text: text=, or --text-column")
    return found, answer or next((name for name in ANSWERS.get(found, ()) if name in row), None)


def _parts(
    tokenizer: Any, row: Mapping[str, Any], text: str, answer: str | None, place: str
) -> tuple[Sequence[int], Sequence[int]]:
    """Return the tokens of a prompt and of its answer."""
    cell = row.get(text)
    if isinstance(cell, list | tuple | np.ndarray):
        prompt, own = _conversation(tokenizer, list(cell), place)
        return _tokens(tokenizer, prompt, special=False), _tokens(tokenizer, own, special=False)
    written = _text(cell, f"{place}, column {text!r}")
    if answer is None:
        return _tokens(tokenizer, written), ()
    own = _text(row.get(answer), f"{place}, column {answer!r}")
    return _tokens(tokenizer, written), _tokens(tokenizer, own, special=False)


def _conversation(tokenizer: Any, messages: list[Any], place: str) -> tuple[str, str]:
    """Return a conversation up to the assistant's last message, and that message, both formatted by the template."""
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"{place}: a message is {message!r}; expected {{'role': …, 'content': …}}")
    if not messages:
        raise ValueError(f"{place}: the conversation has no messages")
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"{place} is a conversation, and the tokenizer has no chat template; use that of an instruction-tuned "
            "model, set tokenizer.chat_template, or give plain texts"
        )
    turns = [dict(message) for message in messages]
    ends = turns[-1]["role"] == "assistant"
    asked = turns[:-1] if ends else turns
    prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)) if asked else ""
    if not ends:
        return prompt, ""
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    shared = prompt if whole.startswith(prompt) else whole[: whole.rfind(str(turns[-1]["content"]))]
    return shared, whole[len(shared) :]


def _tokens(tokenizer: Any, text: str, special: bool = True) -> Sequence[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"] if text else []


def _text(cell: Any, place: str) -> str:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    if not isinstance(cell, str):
        raise ValueError(f"{place} holds a {type(cell).__name__}; expected a text, or a list of messages")
    return cell


def _examples(texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    ids, lengths = pad_tokens(texts)
    return {"input_ids": ids, "attention_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int32)}
