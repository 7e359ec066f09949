"""``npeff demo``: the whole path on small models, with nothing to prepare."""

from pathlib import Path

import tyro


def digits(out: Path = Path("npeff-digits"), seed: int = 0) -> None:
    """Explain a small convolutional network on scikit-learn's handwritten digits, both flavours, in minutes.

    Args:
        out: directory for what it computes; report.html in it is what to look at.
        seed: of the training and the decomposition.
    """
    from npeff_jax.cli._demos import digits_demo

    digits_demo(out, seed=seed)


def tracr(out: Path = Path("npeff-tracr"), seed: int = 0) -> None:
    """Explain a transformer compiled from a program, where what it computes is known.

    Args:
        out: directory for what it computes; report.html in it is what to look at.
        seed: of the examples and the decomposition.
    """
    from npeff_jax.cli._demos import tracr_demo

    tracr_demo(out, seed=seed)


def files(folder: tyro.conf.Positional[Path | None] = None, out: Path = Path("npeff-files"), seed: int = 0) -> None:
    """Explain a published network that tells file types, on 1,500 files of yours, in minutes.

    Needs "pip install --no-deps magika==1.0.3", whose weights are read. The report shows paths and the first and last
    lines of files.

    Args:
        folder: the files to look at, with all folders below; this Python's own by default.
        out: directory for what it computes; report.html in it is what to look at.
        seed: of the decomposition.
    """
    from npeff_jax.cli._files_demo import files_demo

    files_demo(out, folder, seed=seed)
