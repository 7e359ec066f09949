"""HTML for results in notebooks: a title, a table of facts, small charts; for light and dark backgrounds."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def facts_html(title: str, facts: Iterable[tuple[str, Any]], *parts: str) -> str:
    """Return HTML of a title over a table of names and values, followed by ``parts`` (trusted HTML)."""
    rows = "".join(
        f"<tr><th style='text-align:left;font-weight:500;padding:1px 14px 1px 0'>{html.escape(name)}</th>"
        f"<td style='text-align:left;padding:1px 0'>{html.escape(_shown(value))}</td></tr>"
        for name, value in facts
    )
    body = f"<table style='border:0;margin:0'>{rows}</table>{''.join(parts)}"
    return f"<div style='font-family:system-ui,sans-serif'><strong>{html.escape(title)}</strong>{body}</div>"


def spark_html(values: Sequence[float] | np.ndarray, label: str, width: int = 220, height: int = 42) -> str:
    """Return HTML of a line chart without axes, scaled to the range of ``values``; empty if not all are finite."""
    y = np.asarray(values, float)
    if y.size < 2 or not np.isfinite(y).all():
        return ""
    x = np.linspace(1, width - 1, y.size)
    y = (height - 2) - (y - y.min()) / (np.ptp(y) or 1.0) * (height - 4)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
    return (
        f"<svg role='img' aria-label='{html.escape(label, quote=True)}' width='{width}' height='{height}'>"
        f"<polyline points='{points}' fill='none' stroke='#5b7fd6' stroke-width='1.5'/></svg>"
        f"<div style='font-size:85%;opacity:.7'>{html.escape(label)}</div>"
    )


def histogram_html(
    values: Sequence[float] | np.ndarray, label: str, low: float = 0.0, high: float = 1.0, bins: int = 40
) -> str:
    """Return HTML of a histogram over [low, high]; values outside are clipped, non-finite ones dropped."""
    values = np.asarray(values, float)
    counts, _ = np.histogram(np.clip(values[np.isfinite(values)], low, high), bins=bins, range=(low, high))
    if not counts.any():
        return ""
    heights = counts / counts.max() * 40
    bars = "".join(
        f"<rect x='{6 * i}' y='{42 - height:.1f}' width='5' height='{height:.1f}' fill='#5b7fd6'/>"
        for i, height in enumerate(heights)
    )
    named = html.escape(f"{label}, from {low:g} to {high:g}", quote=True)
    return (
        f"<svg role='img' aria-label='{named}' width='{6 * bins}' height='43'>{bars}</svg>"
        f"<div style='font-size:85%;opacity:.7'>{named}</div>"
    )


def table_html(heads: Sequence[str], rows: Sequence[Sequence[Any]], most: int = 12) -> str:
    """Return HTML of a table with the first ``most`` rows and the number of those left out."""
    cell = "<{0} style='text-align:right;padding:1px 10px 1px 0;font-variant-numeric:tabular-nums'>{1}</{0}>"
    lines = ["<tr>" + "".join(cell.format("th", html.escape(head)) for head in heads) + "</tr>"]
    for row in rows[:most]:
        lines.append("<tr>" + "".join(cell.format("td", html.escape(_shown(value))) for value in row) + "</tr>")
    rest = f"<div style='font-size:85%;opacity:.7'>and {len(rows) - most} more</div>" if len(rows) > most else ""
    return f"<table style='border:0;margin:4px 0 0'>{''.join(lines)}</table>{rest}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        return f"{float(value):.3g}"
    return str(value)
