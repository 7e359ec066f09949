"""Comparison of two runs: components in both, split or merged components, components in one run only."""

import dataclasses
import html
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from npeff_jax._html import table_html
from npeff_jax.evaluation import compare_runs
from npeff_jax.report._data import output_file
from npeff_jax.report._page import Page

SAME = 0.7
"""Smallest cosine of the coefficients at which two matched components count as the same, as in `scan`."""

RELATED = 0.35
"""Cosine of the coefficients below which two components count as unrelated: the paper's threshold (section 2.3)."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReportComparison:
    """Correspondence between the components of two runs. Prints as a table.

    Attributes:
        similarities: (r₁, r₂), cosine similarities of coefficients on the same examples.
        pairs: (p, 2), the one-to-one assignment with the largest total similarity.
        headlines: per run, the headlines of its components; empty strings where unknown.
        names: names of the two runs.
    """

    similarities: Float[np.ndarray, "r1 r2"]
    pairs: Int[np.ndarray, "p 2"]
    headlines: tuple[tuple[str, ...], tuple[str, ...]]
    names: tuple[str, str]

    @property
    def same(self) -> list[tuple[int, int, float]]:
        """Pairs (component, component, similarity) with a similarity of at least `SAME`, largest first."""
        found = [(int(a), int(b), float(self.similarities[a, b])) for a, b in self.pairs]
        return sorted((pair for pair in found if pair[2] >= SAME), key=lambda pair: -pair[2])

    @property
    def split(self) -> list[tuple[int, tuple[int, ...]]]:
        """Components of the first run that are the closest match of two or more of the second (at least `RELATED`)."""
        return _children(self.similarities)

    @property
    def merged(self) -> list[tuple[int, tuple[int, ...]]]:
        """Components of the second run that are the closest match of two or more of the first (at least `RELATED`)."""
        return _children(self.similarities.T)

    @property
    def vanished(self) -> list[int]:
        """Components of the first run with no related component (at least `RELATED`) in the second."""
        return np.flatnonzero(self.similarities.max(axis=1, initial=0.0) < RELATED).tolist()

    @property
    def new(self) -> list[int]:
        """Components of the second run with no related component (at least `RELATED`) in the first."""
        return np.flatnonzero(self.similarities.max(axis=0, initial=0.0) < RELATED).tolist()

    def sections(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """Return (title, column heads, rows) of each section of the printed table."""
        a, b = self.names
        first, second = (self._named(0), self._named(1))
        r1, r2 = self.similarities.shape
        return [
            (
                f"The same in both: {len(self.same)} of {r1} and {r2}",
                (a, b, "cosine"),
                [(first(i), second(j), f"{value:.2f}") for i, j, value in self.same],
            ),
            (
                f"Split: {len(self.split)}",
                (a, f"became, in {b}"),
                [(first(i), "; ".join(map(second, others))) for i, others in self.split],
            ),
            (
                f"Merged: {len(self.merged)}",
                (f"were, in {a}", b),
                [("; ".join(map(first, others)), second(j)) for j, others in self.merged],
            ),
            (f"Vanished: {len(self.vanished)}", (f"only in {a}",), [(first(i),) for i in self.vanished]),
            (f"New: {len(self.new)}", (f"only in {b}",), [(second(j),) for j in self.new]),
        ]

    def _named(self, run: int) -> Callable[[int], str]:
        said = self.headlines[run]
        return lambda j: f"{j} {said[j]}".strip()

    def __repr__(self) -> str:
        lines = []
        for title, _, rows in self.sections():
            lines.append(title)
            lines += ["  " + "  |  ".join(row)[:116] for row in rows[:12]]
            lines += [f"  and {len(rows) - 12} more"] if len(rows) > 12 else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return "".join(
            f"<h3>{html.escape(title)}</h3>" + (table_html(heads, rows, most=1000) if rows else "")
            for title, heads, rows in self.sections()
        )


def compare_reports(
    first: Float[np.ndarray, "n r1"],
    second: Float[np.ndarray, "n r2"],
    *,
    headlines: Sequence[Sequence[str] | None] = (None, None),
    names: tuple[str, str] = ("first", "second"),
) -> ReportComparison:
    """Compare two runs by the coefficients of the same examples.

    Args:
        first: (n, r₁), coefficients of the first run, fitted or decomposed.
        second: (n, r₂), coefficients of the second run, for the same examples in the same order.
        headlines: per run, headlines of its components (`Component.headline`), or None.
        names: names of the runs.

    Raises:
        ValueError: If the runs have different numbers of examples.

    Examples:
        >>> found = compare_reports(np.eye(4)[:, :3], np.eye(4)[:, [1, 2, 3]])
        >>> [pair[:2] for pair in found.same], found.vanished, found.new
        ([(1, 0), (2, 1)], [0], [2])
    """
    compared = compare_runs(first, second)
    sizes = compared.similarities.shape
    said = tuple(tuple(texts) if texts is not None else ("",) * size for texts, size in zip(headlines, sizes))
    return ReportComparison(compared.similarities, compared.pairs, (said[0], said[1]), names)


def write_comparison(path: str | os.PathLike[str], comparison: ReportComparison) -> Page:
    """Write a comparison as a self-contained HTML page."""
    path = output_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    title = html.escape(f"{comparison.names[0]} and {comparison.names[1]}")
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;"
        "margin:32px auto;padding:0 16px}:root{color-scheme:light dark}"
        "div,table{max-width:100%;overflow-x:auto}th,td{text-align:left!important;vertical-align:top}"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>{comparison._repr_html_()}</body></html>"
    )
    path.write_text(page, encoding="utf-8")
    return Page(path)


def _children(similarities: Float[np.ndarray, "a b"]) -> list[tuple[int, tuple[int, ...]]]:
    """Return (row, columns) for each row that is the best match, at least `RELATED`, of two or more columns."""
    if not similarities.size:
        return []
    parents = np.where(similarities.max(axis=0) >= RELATED, similarities.argmax(axis=0), -1)
    found = ((i, np.flatnonzero(parents == i)) for i in range(len(similarities)))
    return [
        (i, tuple(children[np.argsort(-similarities[i, children], kind="stable")].tolist()))
        for i, children in found
        if len(children) > 1
    ]
