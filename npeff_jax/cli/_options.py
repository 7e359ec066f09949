"""Options that commands share, and what they stand for in the library."""

import dataclasses
import enum
import io
import sys
from typing import Any, cast

from npeff_jax._progress import Progress
from npeff_jax._sharding import make_mesh
from npeff_jax.cli._source import ExampleSet, load_examples, load_model
from npeff_jax.factorization import Dense, Kernel, Sparse
from npeff_jax.models import Model
from npeff_jax.pefs import Diagonal, LowRank, RowBasis, Sampled


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
    return {RowForm.DENSE: Dense(), RowForm.SPARSE: Sparse(), RowForm.KERNEL: Kernel()}.get(form)


def progress_of(show: Show) -> Progress:
    """The library's form of ``--progress``."""
    return cast(io.TextIOBase, sys.stderr) if show is Show.JSON else show is Show.BAR


def mesh_of(all_devices: bool) -> Any:
    """Every device there is, or JAX's default one."""
    return make_mesh() if all_devices else None


@dataclasses.dataclass(frozen=True)
class Explained:
    """What is explained.

    Attributes:
        model: package.module:factory or file.py:factory (a function that returns a Model), or a Hugging Face directory.
        examples: package.module:factory (returns examples, or examples, labels and what to display), or an .npz.
        part: start:stop, the part of the examples to use.
        mask: globs over parameter paths to explain, such as "encoder/*"; all parameters by default.
    """

    model: str
    examples: str
    part: str | None = None
    mask: tuple[str, ...] = ()

    def load_model(self) -> Model:
        """The model, with its mask."""
        return load_model(self.model, self.mask)

    def load_examples(self) -> ExampleSet:
        """The part of the examples."""
        return load_examples(self.examples, self.part)


@dataclasses.dataclass(frozen=True)
class Fishers:
    """How a Fisher is represented.

    Attributes:
        flavour: low-rank keeps how parameters react together, diagonal is smaller and simpler, sampled is for outputs
            too many to enumerate.
        rows: which rows stand for a low-rank Fisher.
        min_probability: classes predicted with less are dropped.
        max_rows: at most so many rows an example.
        min_trace: as few rows as hold this fraction of the trace.
        n_samples: labels drawn for each example, of the sampled flavour.
        sample_seed: of these draws.
        sketch: for many classes, find the principal rows in a random span of so many dimensions.
    """

    flavour: Flavour = Flavour.LOW_RANK
    rows: RowBasis = RowBasis.PRINCIPAL
    min_probability: float = 0.0
    max_rows: int | None = None
    min_trace: float | None = None
    n_samples: int | None = None
    sample_seed: int = 0
    sketch: int | None = None

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
