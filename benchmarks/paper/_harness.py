"""What every script of this folder shares: the two settings, and how a result is printed and written.

Each script answers one question of the paper, prints the paper's number beside ours, and writes a JSON, a figure and
a row of `benchmarks/RESULTS.md` into the output folder. ``--fast`` runs the same code on little data; only full
settings are results. Data, splits, criteria and seeds stand in these files. Their present sizes were cut for time after
fast runs had been seen, and below the paper's: restore and commit them before the first full run that is to count.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import time
from typing import Any

import jax
import numpy as np

import npeff_jax as npeff


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A trained model, and examples it was not trained on: some to decompose, others to judge the components by.

    Attributes:
        name: language or vision.
        model: the model.
        head: the rest of the model after its final representation.
        examples: n to decompose.
        labels: theirs.
        heldout: others.
        heldout_labels: theirs.
        keep: K.
        n_components: r.
        n_top: held-out examples that stand for a component.
        min_probability: classes below are ignored.
    """

    name: str
    model: npeff.Model
    head: Any
    examples: np.ndarray
    labels: np.ndarray
    heldout: np.ndarray
    heldout_labels: np.ndarray
    keep: int
    n_components: int
    n_top: int
    min_probability: float = 0.0

    def pefs(self, diagonal: bool = False, keep: int | None = None) -> npeff.Pefs:
        """PEFs of the examples to decompose."""
        return self._compute(self.examples, self.labels, diagonal, keep)

    def heldout_pefs(self, diagonal: bool = False, keep: int | None = None) -> npeff.Pefs:
        """PEFs of the held-out examples."""
        return self._compute(self.heldout, self.heldout_labels, diagonal, keep)

    def _compute(self, examples, labels, diagonal, keep):
        kind = npeff.Diagonal if diagonal else npeff.LowRank
        representation = kind(min_probability=self.min_probability)
        keep = self.keep if keep is None else keep
        return npeff.compute_pefs(self.model, examples, representation, labels=labels, keep=keep, progress=False)

    def describe(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        numbers = {name: value for name, value in fields.items() if isinstance(value, (str, int, float))}
        logits = np.asarray(jax.jit(jax.vmap(self.model.logits_fn, (None, 0)))(self.model.params, self.heldout))
        accuracy = float((logits.argmax(-1) == self.heldout_labels).mean())
        sizes = {"parameters": self.model.space.size, "examples": len(self.labels), "heldout": len(self.heldout_labels)}
        return numbers | sizes | {"classes": logits.shape[1], "heldout_accuracy": round(accuracy, 4)}


def language(fast: bool) -> Setting:
    """A two-layer transformer on sentence pairs, three classes."""
    import _language

    sizes = (300, 200, 300, 150) if fast else (1500, 1200, 3000, 600)
    model, head, examples, heldout = _language.build(*sizes)
    chosen = (
        {"keep": 1024, "n_components": 12, "n_top": 16} if fast else {"keep": 4096, "n_components": 32, "n_top": 32}
    )
    return Setting("language", model, head, *examples, *heldout, **chosen)


def vision(fast: bool) -> Setting:
    """A convolutional network on rendered digits, a hundred classes."""
    import _vision

    sizes = (300, 150, 250, 40) if fast else (600, 800, 2500, 400)
    model, head, examples, heldout = _vision.build(*sizes)
    chosen = {"keep": 512, "n_components": 12, "n_top": 16} if fast else {"keep": 2048, "n_components": 32, "n_top": 32}
    return Setting("vision", model, head, *examples, *heldout, **chosen, min_probability=_vision.MIN_PROBABILITY)


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity: what it is, the paper's number, ours, and what is needed to judge the difference."""

    quantity: str
    paper: str
    ours: str
    note: str = ""


class Script:
    """The frame of a script: options, the clock, and what is written at the end."""

    def __init__(self, question: str) -> None:
        parser = argparse.ArgumentParser(description=question)
        parser.add_argument("--fast", action="store_true", help="little data, seconds: checks that the script runs")
        parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for what is written")
        options = parser.parse_args()
        self.question, self.fast, self.out = question, options.fast, options.out
        self.name = pathlib.Path(__import__("__main__").__file__).stem
        self.start = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)

    def log(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:6.1f} s] {text}", flush=True)

    def finish(self, rows: list[Row], details: dict[str, Any], figure: Any = None) -> None:
        """Print paper | ours, and write JSON, figure and table row."""
        seconds = time.monotonic() - self.start
        width = max(len(row.quantity) for row in rows)
        print(f"\n{self.question}\n{'':{width}}   paper | ours")
        for row in rows:
            print(f"{row.quantity:{width}}   {row.paper:>5} | {row.ours}  {row.note}")
        device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
        place = {"device": device, "python": platform.python_version(), "jax": jax.__version__}
        record = {"script": self.name, "fast": self.fast, "seconds": round(seconds, 1), **place}
        record |= {"rows": [dataclasses.asdict(row) for row in rows], "details": details}
        path = self.out / f"{self.name}{'-fast' if self.fast else ''}"
        path.with_suffix(".json").write_text(json.dumps(record, indent=1, default=_plain))
        lines = [
            f"| {self.name} | {row.quantity} | {row.paper} | {row.ours} | {row.note} | {seconds:.0f} s |"
            for row in rows
        ]
        path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        if figure is not None:
            figure.savefig(path.with_suffix(".png"), dpi=120, bbox_inches="tight")
        print("\n".join(["", *lines, "", f"{seconds:.0f} s on {device}; written to {path}.json"]))


def figure(columns: int, height: float = 3.2) -> tuple[Any, Any]:
    """A matplotlib figure without a window, and its axes in a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(1, columns, figsize=(4.4 * columns, height), squeeze=False)
    return drawn, axes[0]


def median(values: np.ndarray) -> str:
    """A median for the table, with the quartiles that it is between."""
    low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
