"""Settings of experiments: those of the paper (section 3.1; K from section 3.3), and of the tasks in this package."""

import dataclasses

from npeff_jax.pefs import LowRank, RowBasis


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of an experiment.

    Attributes:
        n_examples: n, number of examples to decompose.
        n_heldout: number of held-out examples, to which coefficients are fitted.
        n_components: r.
        representation: representation of the PEFs.
        keep: K, non-zeros per example.
        keep_explored: values of K compared in section 3.3.
    """

    n_examples: int
    n_heldout: int
    n_components: int
    representation: LowRank = dataclasses.field(default_factory=lambda: LowRank(rows=RowBasis.CLASSES))
    keep: int = 65_536  # components with 16,384 and 262,144 were hardly different
    keep_explored: tuple[int, ...] = (16_384, 65_536, 262_144)


NLI = Preset(n_examples=50_000, n_heldout=50_000, n_components=512)
"""BERT fine-tuned on MNLI, explained on SNLI."""

QQP = Preset(n_examples=50_000, n_heldout=40_430, n_components=256)
"""BERT fine-tuned on Quora question pairs; the held-out examples are the whole validation set."""

IMAGENET = Preset(
    n_examples=20_000,
    n_heldout=30_000,
    n_components=512,
    representation=LowRank(rows=RowBasis.CLASSES, min_probability=3e-3, max_rows=32),
)
"""ResNet-50 on ImageNet 2012, with the train split to decompose and the validation split held out; ε = 3e-3. Rows are
limited to 32 classes (3.3 GB per example), although up to 333 could exceed ε; the loss of trace is recorded."""

FILES = Preset(
    n_examples=1_000,
    n_heldout=500,
    n_components=24,
    representation=LowRank(rows=RowBasis.CLASSES, max_rows=4),
    keep=8_192,
    keep_explored=(4_096, 8_192, 16_384),
)
"""The file-type network of 214 types, with rows for the four likeliest types, which loses 17% of the Fisher's trace for
the median file (recorded per file). A threshold on the probability, as for ImageNet, would lose 99.95% (ε = 3e-3): of a
confident prediction only one class exceeds it, whose gradient is near zero, while the trace is in the rows of unlikely
classes."""
