"""Top examples and coefficients as tables: CSV, Parquet, LaTeX."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from npeff_jax._extras import needs
from npeff_jax.report._component import Component
from npeff_jax.report._data import ReportData, output_file

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {symbol: "\\" + symbol for symbol in "&%$#_{}"} | {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
    "\u2028": " ",
    "\u2029": " ",
}


def top_table(report: ReportData, n_top: int = 16) -> list[dict[str, Any]]:
    """Return the top examples of each component as a table, one dictionary per example.

    The keys are component, rank, example, coefficient, predicted, probability, label, and one per segment of the text.
    """
    names = report.examples.segment_names
    rows = []
    for component in report.components:
        for rank, (place, coefficient) in enumerate(component.top[:n_top], 1):
            example = report.examples.shown[place]
            likely, probability = example.predicted[0] if example.predicted else (None, None)
            row = {
                "component": component.index,
                "rank": rank,
                "example": example.index,
                "coefficient": coefficient,
                "predicted": None if likely is None else report.class_names[likely],
                "probability": probability,
                "label": None if example.label is None else report.class_names[example.label],
            }
            for i, segment in enumerate(example.text or ()):
                row[names[i] if i < len(names) else f"text_{i}" if i else "text"] = segment
            rows.append(row)
    return rows


def write_table(path: str | os.PathLike[str], report: ReportData, n_top: int = 16) -> Path:
    """Write `top_table` as .csv, .parquet or .tex, according to the ending of ``path``.

    Raises:
        ValueError: If ``path`` has another ending.
    """
    path = output_file(path)
    if path.suffix not in (".csv", ".parquet", ".tex"):
        raise ValueError(f"{path} ends in {path.suffix!r}; expected .csv, .parquet or .tex")
    if path.suffix == ".tex":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(latex_table(report, c, n_top) for c in report.components), encoding="utf-8")
        return path
    return _write_rows(path, top_table(report, n_top))


def write_coefficients(path: str | os.PathLike[str], coefficients: Float[np.ndarray, "n r"]) -> Path:
    """Write the non-zero coefficients as (example, component, coefficient), to .csv or .parquet by the path's ending.

    Raises:
        ValueError: If ``path`` has another ending.
    """
    path = output_file(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path} ends in {path.suffix!r}; expected .csv or .parquet")
    examples, components = np.nonzero(coefficients)
    columns = zip(examples.tolist(), components.tolist(), coefficients[examples, components].tolist())
    return _write_rows(path, [{"example": i, "component": j, "coefficient": w} for i, j, w in columns])


def latex_table(report: ReportData, component: Component, n_top: int = 16) -> str:
    """Return one component's top examples as a LaTeX table (packages booktabs, tabularx), with escaped text."""
    rows = [row for row in top_table(report, n_top) if row["component"] == component.index]
    texts = [name for name in (rows[0] if rows else {}) if name not in _FIXED]
    heads = [*[_latex(name) for name in texts or ["example"]], "predicted", "label", "$W$"]
    lines = [
        r"\begin{table}",
        rf"\caption{{Component {component.index}{': ' + _latex(component.note) if component.note else ''}}}",
        rf"\begin{{tabularx}}{{\linewidth}}{{{'X' * max(1, len(texts))}llr}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [_latex(str(row.get(name, ""))) for name in texts or ["example"]]
        cells += [_latex("" if row[name] is None else str(row[name])) for name in ("predicted", "label")]
        lines.append(" & ".join([*cells, f"{row['coefficient']:.3f}"]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabularx}", r"\end{table}", ""])


_FIXED = ("component", "rank", "example", "coefficient", "predicted", "probability", "label")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        with needs("a Parquet file"):
            import pandas
            import pyarrow  # noqa: F401  pandas writes Parquet with it

        pandas.DataFrame(rows).to_parquet(path, index=False)
        return path
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names or ["component"])
        writer.writeheader()
        writer.writerows(rows)
    return path
