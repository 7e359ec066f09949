"""Options shared by commands, and their conversion to arguments of the library."""

import dataclasses
import enum
import io
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from npeff_jax._progress import Progress
from npeff_jax._sharding import make_mesh
from npeff_jax.cli._language import Predicted, Question, load_passages, load_question
from npeff_jax.cli._source import Reading, check_labels, is_checkpoint, is_table, load_examples, load_model, part_of
from npeff_jax.factorization import DenseRows, KernelRows, SparseRows
from npeff_jax.models import Model, huggingface_processor, is_language_model
from npeff_jax.pefs import Diagonal, LowRank, RowBasis, Sampled
from npeff_jax.tasks import Dataset

# Optional options, shown in the help by their type, without "None".
MaybeInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
MaybeFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
MaybeText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")]
Ints = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")]
Paths = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...", help_behavior_hint="")]
Name = Annotated[str, tyro.conf.arg(metavar="NAME")]


class Flavour(enum.Enum):
    """The representation of a Fisher."""

    LOW_RANK = "low-rank"
    DIAGONAL = "diagonal"
    SAMPLED = "sampled"


class Show(enum.Enum):
    """How progress is shown: a bar on stderr, JSON lines on stderr, or not."""

    BAR = "bar"
    JSON = "json"
    NONE = "none"


class RowForm(enum.Enum):
    """How a decomposition stores the rows of A in memory."""

    AUTO = "auto"
    DENSE = "dense"
    SPARSE = "sparse"
    KERNEL = "kernel"


def rows_of(form: RowForm) -> Any:
    """Return the row space that ``--rows`` names; None for "auto"."""
    return {RowForm.DENSE: DenseRows(), RowForm.SPARSE: SparseRows(), RowForm.KERNEL: KernelRows()}.get(form)


def progress_of(show: Show) -> Progress:
    """Return the ``progress`` argument of the library for a choice of ``--progress``."""
    if show is not Show.JSON:
        return show is Show.BAR
    return False if sys.stderr is None else cast(io.TextIOBase, sys.stderr)  # programs without a console have no stderr


def mesh_of(all_devices: bool) -> Any:
    """Return a mesh over all devices, or None for JAX's default device."""
    return make_mesh() if all_devices else None


@dataclasses.dataclass(frozen=True)
class Explained:
    """The model and its examples.

    Attributes:
        model: a Hugging Face directory, or package.module:factory or file.py:factory (a function that returns a Model).
        examples: a table (.csv, .tsv, .jsonl, .parquet), a folder of image folders, a folder saved by Hugging Face's
            datasets, an .npz of the model's inputs, or package.module:factory (returns a Dataset, examples, or
            examples, labels and what to display).
        part: start:stop, the part of the examples to use.
        mask: globs over parameter paths to explain, such as "encoder/*"; by default all parameters.
        text_column: column of texts in a table; by default one with a usual name.
        pair_column: column of second texts in a table.
        label_column: column of labels in a table; by default one with a usual name.
        encoding: encoding of a text file, such as cp1252; by default UTF-8.
        label_names: names of the labels in the data, in the order of the model's classes, if they differ from the
            model's names.
        answers: for a causal language model, texts to choose among.
        predicted: for a causal language model without answers, predicted tokens: the one after each text, each token of
            the answers (the second column, the assistant's last message), or all.
        generate: for a causal language model, number of answers to sample per prompt, which are then explained.
        max_tokens: maximum number of tokens per sampled answer.
        temperature: temperature of sampling.
        draw_seed: seed of sampling.
        max_length: for a causal language model, maximum number of tokens per text, counted from its end.
    """

    model: Name
    examples: Name
    part: MaybeText = None
    mask: Texts = ()
    text_column: MaybeText = None
    pair_column: MaybeText = None
    label_column: MaybeText = None
    label_names: Texts = ()
    encoding: MaybeText = None
    answers: Texts = ()
    predicted: Predicted = Predicted.LAST
    generate: int = 0
    max_tokens: int = 16
    temperature: float = 1.0
    draw_seed: int = 0
    max_length: int = 128

    def encode(self) -> Any:
        """Return the function that encodes texts or images: the checkpoint's processor, or None for any other model."""
        if not is_checkpoint(self.model) or is_language_model(self.model):
            return None
        return huggingface_processor(self.model)

    def load(self, progress: Progress = False) -> tuple[Model, Dataset]:
        """Load the model and the selected examples, with labels as class indices of the model."""
        if is_language_model(self.model):
            return self._load_language(progress)
        asked = [name for name in _QUESTIONS if getattr(self, name) != getattr(Explained, name)]
        if asked:
            raise ValueError(
                f"--{asked[0].replace('_', '-')} is for causal language models, but {self.model} is not one"
            )
        model = load_model(self.model, self.mask)
        reading = Reading(self.text_column, self.pair_column, self.label_column, self.label_names, self.encoding)
        found = load_examples(self.examples, self.part, model=self.model, reading=reading, progress=progress)
        return model, check_labels(self.examples, found, model)

    def _load_language(self, progress: Progress) -> tuple[Model, Dataset]:
        names = ("answers", "predicted", "generate", "max_tokens", "temperature", "max_length")
        question = Question(**{name: getattr(self, name) for name in names})
        if is_table(self.examples):
            columns = (self.text_column, self.pair_column, self.label_column)
            model, found = load_passages(
                self.model, self.mask, question, self.examples, columns, progress, self.draw_seed
            )
            return model, check_labels(self.examples, part_of(found, self.part), model)
        found = load_examples(self.examples, self.part, model=self.model, progress=progress)
        model = load_question(self.model, self.mask, question, found.examples)
        return model, check_labels(self.examples, found, model)


_QUESTIONS = ("answers", "predicted", "generate", "max_tokens", "temperature", "draw_seed", "max_length")
"""Options for causal language models only."""


@dataclasses.dataclass(frozen=True)
class Fishers:
    """Representation of Fishers.

    Attributes:
        flavour: low-rank keeps interactions of parameters, diagonal is smaller and simpler, sampled is for too many
            outputs to enumerate.
        rows: rows that represent a low-rank Fisher.
        min_probability: classes with a smaller probability are dropped.
        max_rows: maximum number of rows per example.
        min_trace: keep as many rows as are needed for this fraction of the trace.
        n_samples: labels sampled per example, for the sampled flavour.
        sample_seed: seed of these samples.
        sketch: for many classes, compute principal rows in a random subspace of this dimension.
    """

    flavour: Flavour = Flavour.LOW_RANK
    rows: RowBasis = RowBasis.PRINCIPAL
    min_probability: float = 0.0
    max_rows: MaybeInt = None
    min_trace: MaybeFloat = None
    n_samples: MaybeInt = None
    sample_seed: int = 0
    sketch: MaybeInt = None

    def representation(self) -> LowRank | Diagonal | Sampled | None:
        """Return the Fisher representation that these options specify; None if none of them was given.

        Raises:
            ValueError: If an option does not apply to the flavour.
        """
        given = {
            "--min-probability": self.min_probability or None,
            "--max-rows": self.max_rows,
            "--min-trace": self.min_trace,
            "--n-samples": self.n_samples,
            "--sketch": self.sketch,
        }
        for option, value in given.items():
            if value is not None and option not in _OPTIONS[self.flavour]:
                raise ValueError(f"{option} has no effect with --flavour {self.flavour.value}; leave it out")
        if self.flavour is Flavour.DIAGONAL:
            return Diagonal(min_probability=self.min_probability)
        if self.flavour is Flavour.SAMPLED:
            return Sampled(n_samples=16 if self.n_samples is None else self.n_samples, seed=self.sample_seed)
        if self == Fishers():
            return None
        return LowRank(self.rows, self.min_probability, self.max_rows, self.min_trace, self.sketch)


_OPTIONS = {
    Flavour.LOW_RANK: ("--min-probability", "--max-rows", "--min-trace", "--sketch"),
    Flavour.DIAGONAL: ("--min-probability",),
    Flavour.SAMPLED: ("--n-samples",),
}
"""Options that apply to each flavour."""
