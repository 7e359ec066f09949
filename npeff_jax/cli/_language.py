"""Options of causal language models on the command line, and their examples."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from npeff_jax._examples import slice_examples
from npeff_jax._progress import Progress
from npeff_jax.models import Generation, LanguageModel, Model, language_model
from npeff_jax.tasks import Dataset, column_names, read_passages


class Predicted(enum.Enum):
    """Tokens whose prediction is explained: the one after each text, or all tokens of its answer or text."""

    LAST = "last"
    ANSWER = "answer"
    ALL = "all"


@dataclasses.dataclass(frozen=True)
class Question:
    """Which distribution of a causal language model is explained.

    Attributes:
        answers: texts to choose among.
        predicted: predicted tokens, if there are neither ``answers`` nor ``generate``.
        generate: answers to sample per prompt; 0 for none.
        max_tokens: maximum number of tokens per sampled answer.
        temperature: temperature of sampling.
        max_length: maximum number of tokens per text, counted from its end.
    """

    answers: tuple[str, ...] = ()
    predicted: Predicted = Predicted.LAST
    generate: int = 0
    max_tokens: int = 16
    temperature: float = 1.0
    max_length: int = 128


def load_question(name: str, mask: tuple[str, ...], question: Question, examples: Any = None) -> Model:
    """Load a language model as a model of the distribution that ``question`` specifies.

    Args:
        name: directory of the model.
        mask: globs over parameter paths to explain.
        question: the distribution to explain.
        examples: examples encoded earlier, if any; sampled answers among them define the outputs.
    """
    return _asked(language_model(name, trainable=mask or None), question, examples)


def load_passages(
    name: str,
    mask: tuple[str, ...],
    question: Question,
    file: str,
    columns: tuple[str | None, str | None, str | None],
    progress: Progress,
    seed: int = 0,
) -> tuple[Model, Dataset]:
    """Load a language model and the texts of a table, encoded as its examples.

    Args:
        name: directory of the model.
        mask: globs over parameter paths to explain.
        question: the distribution to explain.
        file: the table.
        columns: names of the columns of text, answer and label; None to use the usual names.
        progress: progress of sampling answers.
        seed: seed of sampling.

    Raises:
        ValueError: the model has no tokenizer, options exclude each other, or texts cannot be read.
    """
    if question.generate and question.answers:
        raise ValueError("--generate samples answers and --answers gives them; pass only one of the two")
    model = language_model(name, trainable=mask or None)
    if model.tokenizer is None:
        raise ValueError(f"--model {name} has no tokenizer; save it there with tokenizer.save_pretrained(directory)")
    room = question.max_tokens if question.generate else 0
    most = question.max_length if model.max_length is None else min(question.max_length, model.max_length - room)
    text, answer, label = columns
    if label is None and question.answers and "label" in column_names(file):
        label = "label"
    found = read_passages(file, model.tokenizer, text=text, answer=answer, label=label, max_length=most)
    if question.generate:
        drawn = Generation(question.generate, question.max_tokens, question.temperature, seed)
        data = found.answered(model, drawn, progress=progress)
    elif question.answers:
        data = found.prompts(question.answers)
    else:
        # Predicted words are not labels of a task: accuracy is meaningless, and stratifying by them would split texts.
        data = dataclasses.replace(found.positions(question.predicted.value), labels=None)
    return _asked(model, question, data.examples), data


def _asked(model: LanguageModel, question: Question, examples: Any) -> Model:
    first = None if examples is None else slice_examples(examples, slice(0, 1))
    if question.generate or (isinstance(first, Mapping) and "answer_ids" in first):
        return model.generated()
    return model.choices(question.answers) if question.answers else model.next_token()
