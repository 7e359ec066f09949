"""Choices of the command line as enums, and what they stand for in the library."""

import enum
import io
import sys
from typing import Any, cast

from npeff_jax._progress import Progress
from npeff_jax._sharding import make_mesh
from npeff_jax.factorization import Dense, Kernel, Sparse
from npeff_jax.pefs import Diagonal, LowRank, Rows, Sampled


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


def representation_of(
    flavour: Flavour,
    rows: Rows,
    min_probability: float,
    max_rows: int | None,
    min_trace: float | None,
    n_samples: int | None,
    sample_seed: int,
) -> LowRank | Diagonal | Sampled:
    """The library's form of the options on representation.

    Raises:
        ValueError: an option that the flavour does not have.
    """
    stray: dict[Flavour, dict[str, Any]] = {
        Flavour.LOW_RANK: {"--n-samples": n_samples},
        Flavour.DIAGONAL: {"--max-rows": max_rows, "--min-trace": min_trace, "--n-samples": n_samples},
        Flavour.SAMPLED: {
            "--max-rows": max_rows,
            "--min-trace": min_trace,
            "--min-probability": min_probability or None,
        },
    }
    given = [name for name, value in stray[flavour].items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} does nothing with --flavour {flavour.value}; leave it out")
    if flavour is Flavour.DIAGONAL:
        return Diagonal(min_probability=min_probability)
    if flavour is Flavour.SAMPLED:
        return Sampled(n_samples=16 if n_samples is None else n_samples, seed=sample_seed)
    return LowRank(rows=rows, min_probability=min_probability, max_rows=max_rows, min_trace=min_trace)
