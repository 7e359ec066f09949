"""Settings to start from: the paper's (section 3.1; K from section 3.3), and those of our own tasks."""

import dataclasses

from npeff_jax.pefs import LowRank, RowBasis


@dataclasses.dataclass(frozen=True)
class Preset:
    """How an experiment is run.

    Attributes:
        n_examples: n, examples whose PEFs are decomposed.
        n_heldout: examples that coefficients are fitted to.
        n_components: r.
        representation: of the PEFs.
        keep: K, non-zeros an example.
        keep_explored: the values of K that section 3.3 compares.
    """

    n_examples: int
    n_heldout: int
    n_components: int
    representation: LowRank = dataclasses.field(default_factory=lambda: LowRank(rows=RowBasis.CLASSES))
    keep: int = 65_536  # the middle of the three: components found with 16,384 and 262,144 were hardly different
    keep_explored: tuple[int, ...] = (16_384, 65_536, 262_144)


NLI = Preset(n_examples=50_000, n_heldout=50_000, n_components=512)
"""BERT fine-tuned on MNLI, explained on SNLI."""

QQP = Preset(n_examples=50_000, n_heldout=40_430, n_components=256)
"""BERT fine-tuned on Quora question pairs; held out is the whole validation set."""

IMAGENET = Preset(
    n_examples=20_000,
    n_heldout=30_000,
    n_components=512,
    representation=LowRank(rows=RowBasis.CLASSES, min_probability=3e-3, max_rows=32),
)
"""ResNet-50 on ImageNet 2012: train split to decompose, validation split held out; ε = 3e-3. At most 32 classes, 3.3 GB
of rows an example, where 333 could pass ε; what that loses is recorded."""

FILES = Preset(
    n_examples=1_000,
    n_heldout=500,
    n_components=24,
    representation=LowRank(rows=RowBasis.CLASSES, max_rows=4),
    keep=8_192,
    keep_explored=(4_096, 8_192, 16_384),
)
"""The file-type network of 214 types, a row for each of the four likeliest: 17% of the Fisher's trace is lost for the
median file, as recorded per file. A threshold on the probability, as for ImageNet, would lose 99.95% (ε = 3e-3): in a
confident prediction only one class passes it, and that class's gradient is near zero, while the trace is in the rows of
the unlikely classes."""
