"""Which architectures of transformers run through `from_huggingface`, and how exactly: makes docs/architectures.md.

Each is made from a tiny random configuration, saved, loaded by `from_huggingface` (the architecture's own converter
where there is one, PyTorch's code through torchax elsewhere), and compared with transformers in PyTorch: logits, and
gradient rows of single logits by a plain autograd loop.

    python benchmarks/verify_architectures.py                    # all, and write docs/architectures.md
    python benchmarks/verify_architectures.py --fast --out x.md  # 35 of them, in two minutes
    python benchmarks/verify_architectures.py --only Llama BERT  # those whose names begin so, and replace their lines

Exit status 1 if one fails that docs/architectures.md does not have as failing.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time

import architectures
import jax
import numpy as np
import torch
import torchax
import transformers
from architectures import ARCHITECTURES, Architecture

import npeff_jax as npeff

TOLERANCE = {"float32": 1e-6, "bfloat16": 5e-2}  # bfloat16 has 8 bits: 4e-3 per operation
FAST = (
    *("BERT", "BERT, tokens", "BERT, masked", "RoBERTa", "XLM-RoBERTa, tokens", "DistilBERT", "ALBERT", "ELECTRA"),
    *("MPNet", "ERNIE", "RoFormer", "SqueezeBERT", "DeBERTa-v3", "ModernBERT, masked", "XLNet"),
    *(
        "GPT-2",
        "GPT-Neo",
        "GPT-J",
        "GPT-NeoX, Pythia",
        "OPT",
        "BLOOM",
        "Falcon",
        "Llama, bfloat16",
        "Llama, classifier",
    ),
    *("Mistral", "Qwen2", "Qwen3", "Qwen3, tokens", "Phi", "Phi-3", "OLMo 2", "ViT", "DeiT", "SigLIP", "ConvNeXt"),
)
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "architectures.md"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table."""

    architecture: Architecture
    through: str
    verified: npeff.models.Verification | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.verified is not None and self.verified.passed

    def cells(self) -> list[str]:
        head = [self.architecture.name, f"`{self.architecture.cls}`", self.through]
        if self.verified is None:
            return [*head, "–", "–", "–", f"no: {self.reason}"]
        errors = [f"{e.max():.1e}" for e in (self.verified.logit_errors, self.verified.row_errors)]
        own = f"{self.verified.rounding[1]:.1e}"
        finite = all(np.isfinite(e).all() for e in (self.verified.logit_errors, self.verified.row_errors))
        failed = "no: above the bound" if finite else "no: not finite, in PyTorch's float64 or here"
        return [*head, *errors, own, "yes" if self.passed else failed]


def check(architecture: Architecture) -> Line:
    """One architecture from its folder, against PyTorch in memory."""
    through = "torchax"
    try:
        module = architectures.build(architecture)
        examples = architectures.examples(architecture)
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            model = npeff.models.from_huggingface(folder, dtype=architecture.dtype)
            through = "torchax" if model.intermediates_fn is None else "own converter"
            translate = None if through == "torchax" else npeff.models.converter_layout(folder, module)
            verified = npeff.models.verify(
                model,
                module,
                examples,
                forward=architectures.plain_forward,
                exact=architectures.build(architecture).double(),
                translate=translate,
                tolerance=TOLERANCE[architecture.dtype],
            )
    except Exception as error:
        text = " ".join(str(error).split())
        return Line(architecture, through, reason=text if len(text) < 300 else text[:300] + "…")
    return Line(architecture, through, verified)


def rows_of(lines: list[Line]) -> dict[str, str]:
    """Lines of the table, by class and name, in the order of `ARCHITECTURES`."""
    return {
        f"{line.architecture.name}": "| " + " | ".join(c.replace("|", "\\|") for c in line.cells()) + " |"
        for line in lines
    }


def known_rows(file: pathlib.Path) -> dict[str, str]:
    """Lines of a page that is there."""
    rows = [row for row in file.read_text().splitlines() if row.startswith("| ")] if file.exists() else []
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows[1:]}


def page(rows: dict[str, str]) -> str:
    """The list as a Markdown page."""
    heads = ["architecture", "class in transformers", "through", "logits", "gradient rows", "PyTorch's", "supported"]
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    table += [rows[a.name] for a in ARCHITECTURES if a.name in rows]
    right = sum(row.endswith("| yes |") for row in rows.values())
    versions = f"transformers {transformers.__version__}, PyTorch {torch.__version__}, torchax {torchax.__version__}"
    return "\n".join(
        [
            "# Architectures",
            "",
            "Written by `benchmarks/verify_architectures.py`; do not edit. "
            f"{right} of {len(rows)} agree with PyTorch ({versions}, jax {jax.__version__}).",
            "",
            "Each is a tiny model with random weights of standard deviation 0.5 and random normalisation statistics, "
            "saved to a folder and loaded by `from_huggingface`. Errors are measured from PyTorch in float64, on three "
            "examples, padded ones among them: *logits* is the largest difference relative to the largest logit, "
            "*gradient rows* the largest relative L2 error of the gradient of one logit over all parameters, and "
            "*PyTorch's* the same of PyTorch itself in the model's type. Supported is what stays within "
            f"{TOLERANCE['float32']:.0e} ({TOLERANCE['bfloat16']:.0e} in bfloat16), or within four times PyTorch's own "
            "rounding where that is more: weights this large magnify it. `npeff verify FOLDER` compares a model of "
            "yours with PyTorch.",
            "",
            *table,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="beginnings of names")
    parser.add_argument("--fast", action="store_true", help="some thirty of all kinds that take seconds each")
    parser.add_argument("--out", type=pathlib.Path, default=PAGE)
    options = parser.parse_args()
    chosen = [a for a in ARCHITECTURES if not options.only or a.name.startswith(tuple(options.only))]
    if options.fast:
        chosen = [a for a in chosen if a.name in FAST]
    lines = []
    for architecture in chosen:
        start = time.perf_counter()
        lines.append(check(architecture))
        print(
            *lines[-1].cells()[:1], *lines[-1].cells()[2:], f"{time.perf_counter() - start:.1f} s", sep="\t", flush=True
        )
        jax.clear_caches()
    print(f"{sum(line.passed for line in lines)} of {len(lines)}")
    before = known_rows(PAGE)
    options.out.write_text(page((known_rows(options.out) if options.only or options.fast else {}) | rows_of(lines)))
    supported = {line.architecture.name: before.get(line.architecture.name, "| yes |") for line in lines}
    return int(any(not line.passed and supported[line.architecture.name].endswith("| yes |") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
