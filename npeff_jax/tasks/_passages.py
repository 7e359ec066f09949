"""Texts, pairs and conversations as a causal language model reads them, and the positions that it predicts."""

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
"""Usual names of columns: of a text, and beside it of what was, or is to be, written after it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Passages:
    """n texts as tokens, and where in each the answer begins.

    Attributes:
        tokens: of each text.
        starts: (n,), the place of the first token of the answer: of the second column, or of the assistant's last
            message. The length of the text where there is none.
        tokenizer: of ``transformers``.
        n_truncated: texts of which only the end was kept.
        labels: of each text its place in the source and the cell that says which of given answers is right; or None.
    """

    tokens: tuple[tuple[int, ...], ...]
    starts: Int[np.ndarray, "n"]
    tokenizer: Any
    n_truncated: int = 0
    labels: tuple[tuple[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def prompts(self, answers: Sequence[str] | None = None) -> Dataset:
        """Return the texts without their answers: what is to be answered.

        Args:
            answers: of `LanguageModel.choices`: the names of the classes, to which labels are matched.

        Raises:
            ValueError: a text that begins with its answer, or a label that is none of the answers.
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
        """Return predictions of the next token as examples of their own, each with its text's tokens and a position.

        Args:
            which: "last": after each whole text. "answer": of every token of the answers. "all": of every token but the
                first.

        Returns:
            A data set for `LanguageModel.next_token`. Its display is the text with the predicted token between ⟦ and
            ⟧, its labels are these tokens (except for "last"), and ``groups`` says which text each is of.

        Raises:
            ValueError: no text has a token that is predicted.
        """
        check_choice("which", which, get_args(Positions))
        if which == "last":
            return Dataset(_examples(self.tokens), display=[f"{self._decode(ids)} ⟦ ⟧" for ids in self.tokens])
        first = self.starts if which == "answer" else np.ones(len(self), int)
        places = [(i, t) for i, ids in enumerate(self.tokens) for t in range(max(1, first[i]), len(ids))]
        if not places:
            raise ValueError(f"no text has a token to predict ({which=}); they want answers, or two tokens or more")
        texts, at = np.array(places).T
        examples = {name: array[texts] for name, array in _examples(self.tokens).items()}
        return Dataset(
            examples | {"position": (at - 1).astype(np.int32)},
            labels=np.array([self.tokens[i][t] for i, t in places]),
            display=[self._marked(self.tokens[i], t) for i, t in places],
            groups=texts,
        )

    def answered(self, model: LanguageModel, generation: Generation, **options: Any) -> Dataset:
        """Return the prompts with answers drawn from ``model``: examples of `LanguageModel.generated`.

        The display is the prompt and each answer, as text.

        Args:
            model: what writes the answers.
            generation: how they are drawn.
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
    """Read texts for a causal language model: plain ones, pairs of prompt and answer, or conversations.

    A conversation is a list of ``{"role", "content"}``; the tokenizer's chat template writes it down. Where its last
    message is the assistant's, that is the answer; else the template's opening of an answer ends the text.

    Args:
        source: a file (.jsonl, .csv, .tsv, .parquet), a pandas frame, a Hugging Face ``Dataset`` or other sequence of
            mappings, or a list of strings.
        tokenizer: of the model.
        text: the column of the text, or of the messages; by its usual names if not given (``messages``, ``prompt``,
            ``text``, …).
        answer: the column of what is written after the text; by its usual names if neither is given.
        label: the column that says which of given answers is right.
        max_length: the most tokens kept, from the end of a text. How many texts were cut is logged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no texts, no column that is a text, a conversation that is none, or a tokenizer without a template
            for it.
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
    """Places, for messages, and cells by column."""
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
    """The columns of the text and of the answer."""
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
    """The tokens of a prompt and of the answer after it."""
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
    """A conversation up to the assistant's last message, and that message as the template writes it."""
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
