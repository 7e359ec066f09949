"""What a causal language model is asked on a command line, and the examples for it."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from npeff_jax._examples import slice_examples
from npeff_jax._progress import Progress
from npeff_jax.models import Generation, LanguageModel, Model, language_model
from npeff_jax.tasks import Dataset, column_names, read_passages


class Predicted(enum.Enum):
    """Which tokens a causal language model predicts: the one after each text, or each of its answers or texts."""

    LAST = "last"
    ANSWER = "answer"
    ALL = "all"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a causal language model is asked.

    Attributes:
        answers: texts to choose among.
        predicted: which tokens it predicts, where it has nothing to choose from and writes nothing.
        generate: answers to draw for each prompt; 0 for none.
        max_tokens: of a drawn answer.
        temperature: of the draws.
        max_length: tokens kept of a text, from its end.
    """

    answers: tuple[str, ...] = ()
    predicted: Predicted = Predicted.LAST
    generate: int = 0
    max_tokens: int = 16
    temperature: float = 1.0
    max_length: int = 128


def load_question(name: str, mask: tuple[str, ...], question: Question, examples: Any = None) -> Model:
    """Load a language model with the outputs that ``question`` asks about.

    Args:
        name: its directory.
        mask: globs over parameter paths to explain.
        question: what it is asked.
        examples: examples encoded earlier, if any; answers drawn for them define the outputs.
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
        question: what it is asked.
        file: the table.
        columns: of the text, of the answer, and of the label; guessed by their usual names where they are None.
        progress: of drawing answers.
        seed: of the draws.

    Raises:
        ValueError: the model has no tokenizer, options that exclude each other, or texts that cannot be read.
    """
    if question.generate and question.answers:
        raise ValueError("--generate draws answers, --answers gives them; leave one of them out")
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
        # Words are no labels of a task: accuracy says nothing here, and a split by label would split texts.
        data = dataclasses.replace(found.positions(question.predicted.value), labels=None)
    return _asked(model, question, data.examples), data


def _asked(model: LanguageModel, question: Question, examples: Any) -> Model:
    first = None if examples is None else slice_examples(examples, slice(0, 1))
    if question.generate or (isinstance(first, Mapping) and "answer_ids" in first):
        return model.generated()
    return model.choices(question.answers) if question.answers else model.next_token()
