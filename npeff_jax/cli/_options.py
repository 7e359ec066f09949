"""Options that commands share, and what they stand for in the library."""

import dataclasses
import enum
import io
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from npeff_jax._progress import Progress
from npeff_jax._sharding import make_mesh
from npeff_jax.cli._source import Reading, check_labels, is_checkpoint, load_examples, load_model
from npeff_jax.factorization import DenseRows, KernelRows, SparseRows
from npeff_jax.models import Model, huggingface_processor
from npeff_jax.pefs import Diagonal, LowRank, RowBasis, Sampled
from npeff_jax.tasks import Dataset

# Options that may be left out, as the help shows them: by what they hold, without Python's word for nothing.
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
    """In which form a decomposition holds the rows of A."""

    AUTO = "auto"
    DENSE = "dense"
    SPARSE = "sparse"
    KERNEL = "kernel"


def rows_of(form: RowForm) -> Any:
    """The library's form of ``--rows``."""
    return {RowForm.DENSE: DenseRows(), RowForm.SPARSE: SparseRows(), RowForm.KERNEL: KernelRows()}.get(form)


def progress_of(show: Show) -> Progress:
    """The library's form of ``--progress``."""
    if show is not Show.JSON:
        return show is Show.BAR
    return False if sys.stderr is None else cast(io.TextIOBase, sys.stderr)  # a program without a console has none


def mesh_of(all_devices: bool) -> Any:
    """Every device there is, or JAX's default one."""
    return make_mesh() if all_devices else None


@dataclasses.dataclass(frozen=True)
class Explained:
    """What is explained.

    Attributes:
        model: a Hugging Face directory, or package.module:factory or file.py:factory (a function that returns a Model).
        examples: a table (.csv, .tsv, .jsonl, .parquet), a folder of image folders, a folder that Hugging Face's
            datasets saved, an .npz of the model's inputs, or package.module:factory (returns a Dataset, examples, or
            examples, labels and what to display).
        part: start:stop, the part of the examples to use.
        mask: globs over parameter paths to explain, such as "encoder/*"; all parameters by default.
        text_column: of a table, the text; guessed from the usual names.
        pair_column: of a table, the second text.
        label_column: of a table, the label; guessed from the usual names.
        encoding: of a text file, such as cp1252; UTF-8 if not given.
        label_names: names of the labels as the data has them, in the order of the model's classes, where they differ
            from the model's own names.
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

    def load_model(self) -> Model:
        """The model, with its mask."""
        return load_model(self.model, self.mask)

    def encode(self) -> Any:
        """What turns texts or images into examples: the checkpoint's own processor; None for any other model."""
        return huggingface_processor(self.model) if is_checkpoint(self.model) else None

    def load(self, progress: Progress = False) -> tuple[Model, Dataset]:
        """The model, and the part of the examples with labels that are classes of the model."""
        model = self.load_model()
        reading = Reading(self.text_column, self.pair_column, self.label_column, self.label_names, self.encoding)
        found = load_examples(self.examples, self.part, model=self.model, reading=reading, progress=progress)
        return model, check_labels(self.examples, found, model)


@dataclasses.dataclass(frozen=True)
class Fishers:
    """How a Fisher is represented.

    Attributes:
        flavour: low-rank keeps how parameters react together, diagonal is smaller and simpler, sampled is for outputs
            too many to enumerate.
        rows: which rows stand for a low-rank Fisher.
        min_probability: classes predicted with less are dropped.
        max_rows: at most so many rows per example.
        min_trace: as few rows as hold this fraction of the trace.
        n_samples: labels drawn for each example, of the sampled flavour.
        sample_seed: of these draws.
        sketch: for many classes, find the principal rows in a random span of so many dimensions.
    """

    flavour: Flavour = Flavour.LOW_RANK
    rows: RowBasis = RowBasis.PRINCIPAL
    min_probability: float = 0.0
    max_rows: MaybeInt = None
    min_trace: MaybeFloat = None
    n_samples: MaybeInt = None
    sample_seed: int = 0
    sketch: MaybeInt = None

    def representation(self) -> LowRank | Diagonal | Sampled:
        """The library's form of these options.

        Raises:
            ValueError: an option that the flavour does not have.
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
                raise ValueError(f"{option} does nothing with --flavour {self.flavour.value}; leave it out")
        if self.flavour is Flavour.DIAGONAL:
            return Diagonal(min_probability=self.min_probability)
        if self.flavour is Flavour.SAMPLED:
            return Sampled(n_samples=16 if self.n_samples is None else self.n_samples, seed=self.sample_seed)
        return LowRank(self.rows, self.min_probability, self.max_rows, self.min_trace, self.sketch)


_OPTIONS = {
    Flavour.LOW_RANK: ("--min-probability", "--max-rows", "--min-trace", "--sketch"),
    Flavour.DIAGONAL: ("--min-probability",),
    Flavour.SAMPLED: ("--n-samples",),
}
"""What each flavour has."""
