"""What every script of this folder shares: options, clocks, and how a result is printed and written.

Each script answers one question of the paper, prints the paper's number beside ours, and writes a JSON and a figure
into the output folder; ``table.py`` makes one table of them. ``--fast`` runs the same code on little data; only full
settings are results. Data, splits, criteria and seeds stand in these files and in ``_settings.py``.
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
from _cache import Cache


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity: what it is, the paper's number, ours, and what is needed to judge the difference."""

    quantity: str
    paper: str
    ours: str
    note: str = ""


class Script:
    """The frame of a script: options, the clocks, what scripts share, and what is written at the end."""

    def __init__(self, question: str) -> None:
        parser = argparse.ArgumentParser(description=question)
        parser.add_argument("--fast", action="store_true", help="little data, seconds: checks that the script runs")
        parser.add_argument(
            "--out",
            type=pathlib.Path,
            default=pathlib.Path("out"),
            help="folder for results, and for the models, PEFs and decompositions that scripts share; empty it after "
            "changes of the code",
        )
        options = parser.parse_args()
        self.question, self.fast, self.out = question, options.fast, options.out
        self.name = pathlib.Path(__import__("__main__").__file__).stem
        self.start, self.cpu_start = time.monotonic(), time.process_time()
        self.cache = Cache(self.out / ("shared-fast" if self.fast else "shared"))

    def log(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:6.1f} s] {text}", flush=True)

    def finish(self, rows: list[Row], details: dict[str, Any], figure: Any = None) -> None:
        """Print paper | ours, and write JSON and figure."""
        times = {
            "seconds": round(time.monotonic() - self.start, 1),
            "cpu_seconds": round(time.process_time() - self.cpu_start, 1),
            "shared_cpu_seconds": round(self.cache.reused, 1),
        }
        width = max(len(row.quantity) for row in rows)
        print(f"\n{self.question}\n{'':{width}}   paper | ours")
        for row in rows:
            print(f"{row.quantity:{width}}   {row.paper:>5} | {row.ours}  {row.note}")
        device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
        place = {"device": device, "python": platform.python_version(), "jax": jax.__version__}
        record = {"script": self.name, "question": self.question, "fast": self.fast, **times, **place}
        record |= {"rows": [dataclasses.asdict(row) for row in rows], "details": details}
        path = self.out / f"{self.name}{'-fast' if self.fast else ''}"
        path.with_suffix(".json").write_text(json.dumps(record, indent=1, default=_plain))
        if figure is not None:
            figure.savefig(path.with_suffix(".png"), dpi=120, bbox_inches="tight")
        print(
            f"\n{times['seconds']:.0f} s, {times['cpu_seconds']:.0f} of them of CPU, beside "
            f"{times['shared_cpu_seconds']:.0f} s of CPU that earlier scripts had spent on what it shares with them; "
            f"{device}; written to {path}.json"
        )


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
