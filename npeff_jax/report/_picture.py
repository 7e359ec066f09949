"""A report at a glance as one small SVG: for a README, a poster, a slide. Text and shapes only, light and dark."""

import base64
import io
import math
import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from npeff_jax.report._component import Component
from npeff_jax.report._data import ReportData

_WIDTH, _ROW, _TOP = 960, 46, 104
_GREYS = 6
"""Levels of grey that an image is drawn in: enough for a drawing of a few pixels, and small."""

Length = float | int

_STYLE = """
.ground{fill:#fbfaf7}.panel{fill:#fff;stroke:#e2ded5}.ink{fill:#1d1f24}.muted{fill:#5f6470}.rule{stroke:#e2ded5}
.kl{fill:#2f6fd0}.null{fill:#7b8494}.norms{fill:#b08968}.bar{fill:#6f86c9}.sunk{fill:#e9e6df}
text{font-family:ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;font-size:13px}
.title{font-size:19px;font-weight:650}.big{font-size:20px;font-weight:650}.small{font-size:11.5px}.bold{font-weight:600}
@media (prefers-color-scheme:dark){.ground{fill:#14161a}.panel{fill:#1c1f25;stroke:#333842}.ink{fill:#e9e7e2}
.muted{fill:#a0a5b0}.rule{stroke:#333842}.kl{fill:#6ea3f5}.null{fill:#98a1b0}.norms{fill:#cfa985}.sunk{fill:#2a2f37}}
"""


def write_picture(path: str | os.PathLike[str], report: ReportData, n_components: int = 9) -> Path:
    """Write the picture: what was found, the first components with their top examples, how selective they are, and
    where in the model they live.

    Args:
        path: the .svg file to write.
        report: what to draw.
        n_components: components to list.
    """
    listed = report.components[:n_components]
    height = _TOP + max(len(listed) * _ROW + 66, 360)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label='
        f'"{escape(report.title)}: {report.run.n_components} components">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}" rx="14"/>',
        _text(28, 40, report.title, "title ink"),
        *_facts(report),
        *_panel(24, _TOP, 520, height - _TOP - 24, "Components and their top examples"),
    ]
    if _of(report, "kl_ratio"):
        parts.append(_text(528, _TOP + 25, "KL ratio", "small muted", end=True))
    images = _Images(report)
    for place, component in enumerate(listed):
        parts += _listed(report, component, images, _TOP + 36 + place * _ROW)
    parts += _panel(560, _TOP, 376, 150, "Is it what the model uses?") + _ratios(report, 560, _TOP)
    parts += _panel(560, _TOP + 166, 376, height - _TOP - 190, "Where in the model they live")
    parts += _layers(report, 560, _TOP + 166, height - _TOP - 190)
    path = Path(path)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    return path


def headline(report: ReportData, component: Component) -> str:
    """What a component's top examples are, in a few words."""
    name = report.class_names
    if component.note:
        return component.note
    if component.pair_mix and component.pair_mix[0][2] >= 0.6:
        a, b, fraction, _ = component.pair_mix[0]
        return f"“{name[a]}” or “{name[b]}”, {fraction:.0%}"
    return ", ".join(f"“{name[c]}” {fraction:.0%}" for c, fraction in component.predicted_mix[:2])


def _facts(report: ReportData) -> list[str]:
    explained = report.examples.explained
    facts = [(f"{report.run.n_components}", "components")]
    if report.run.losses:
        facts.append((f"{1 - report.run.losses[-1]:.0%}", "explained"))
    if explained is not None:
        facts.append((f"{explained:.0%}", "explained, held out"))
    ratios = _of(report, "kl_ratio")
    if ratios:
        null = np.median(_of(report, "null_kl_ratio") or [float("nan")])
        facts.append((f"{np.median(ratios):.1f}×", f"median KL ratio, null {null:.2g}×"))
    made, x = [], 28.0
    for value, name in facts:
        made += [_text(x, 72, value, "big ink"), _text(x, 89, name, "small muted")]
        x += max(110, 7 * len(name) + 24)
    return made


def _listed(report: ReportData, component: Component, images: "_Images", y: Length) -> list[str]:
    parts = [_text(56, y + 24, str(component.index), "bold muted", end=True)]
    x = 68.0
    if images:
        for place, _ in component.top[:7]:
            parts.append(images.draw(place, x, y + 3, 32))
            x += 36
        x += 8
    else:
        text = report.examples.shown[component.top[0][0]].text if component.top else None
        parts.append(_text(x, y + 34, _short(" → ".join(text or ()), 62), "small muted"))
    words = headline(report, component)
    parts.append(_text(x, y + (24 if images else 17), _short(words, 24 if images else 52), "ink"))
    if component.causal is not None and component.causal.kl_ratio is not None:
        parts.append(_text(528, y + 24, f"{component.causal.kl_ratio:.1f}×", "ink", end=True))
    return parts


def _ratios(report: ReportData, x: Length, y: Length) -> list[str]:
    rows = [("KL ratio", "kl", "kl_ratio"), ("null", "null", "null_kl_ratio"), ("PEF norms", "norms", "pef_norm_ratio")]
    found = [(name, kind, [v for v in _of(report, field) if v > 0]) for name, kind, field in rows]
    values = [v for _, _, ratios in found for v in ratios]
    if not values:
        return [_text(x + 16, y + 58, "not measured", "muted")]
    low, high = math.log10(min(0.5, *values)), math.log10(max(2.0, *values))

    def at(value: float) -> float:
        return x + 96 + (math.log10(value) - low) / (high - low) * 256

    parts = [f'<line class="rule" x1="{at(1.0):.1f}" x2="{at(1.0):.1f}" y1="{y + 36}" y2="{y + 126}"/>']
    for place, (name, kind, ratios) in enumerate(found):
        centre = y + 54 + 28 * place
        parts.append(_text(x + 84, centre + 4, name, "small muted", end=True))
        tick = f'<rect class="{kind}" fill-opacity=".35" y="{centre - 8}" width="1.5" height="16"'
        parts += [f'{tick} x="{at(v):.1f}"/>' for v in ratios]
        if ratios:
            parts.append(f'<circle class="{kind}" cx="{at(float(np.median(ratios))):.1f}" cy="{centre}" r="5.5"/>')
    ticks = [10.0**p for p in range(math.ceil(low), math.floor(high) + 1)]
    return parts + [_text(at(t), y + 140, f"{t:g}×", "small muted", middle=True) for t in ticks]


def _layers(report: ReportData, x: Length, y: Length, height: Length) -> list[str]:
    from npeff_jax.report._figures import KIND_COLORS

    shares, kinds = np.array(report.places.mean), report.places.kinds
    room = height - 74
    step = min(26.0, room / max(1, len(shares)))
    most = shares.sum(1).max() or 1.0
    parts = []
    for i, (name, row) in enumerate(zip(report.places.layers, shares)):
        top, left = y + 38 + i * step, x + 110
        if step >= 11:
            parts.append(_text(x + 100, top + step / 2 + 3, _short(name, 15), "small muted", end=True))
        for kind, share in zip(kinds, row):
            wide = 220 * share / most
            box = f'x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{step - 4:.1f}"'
            parts.append(f'<rect fill="{KIND_COLORS[kind]}" {box}/>')
            left += wide
        if step >= 11:
            parts.append(_text(left + 6, top + step / 2 + 3, f"{row.sum():.0%}", "small muted"))
    left = x + 16
    for kind in kinds:
        box = f'x="{left:.1f}" y="{y + height - 24}" width="9" height="9" rx="2"'
        parts.append(f'<rect fill="{KIND_COLORS[kind]}" {box}/>')
        parts.append(_text(left + 13, y + height - 15.5, kind, "small muted"))
        left += 6.3 * len(kind) + 28
    return parts


class _Images:
    """The images of a report, cut from its sheets and drawn as runs of equal grey."""

    def __init__(self, report: ReportData) -> None:
        self._sheets = report.examples.image_sheets
        self._open: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._sheets)

    def draw(self, place: int, x: Length, y: Length, side: Length) -> str:
        grey = self._grey(place)
        scale = side / max(grey.shape)
        level = np.round(grey / 255 * (_GREYS - 1)).astype(int)
        box = f'<path d="M0 0h{grey.shape[1]}v{grey.shape[0]}H0z"/>'
        parts = [f'<g transform="translate({x:g},{y:g})scale({scale:g})">{box}']
        for shade in range(1, _GREYS):
            runs = "".join(_run(row, r, shade) for r, row in enumerate(level))
            if runs:
                grey_of_shade = f"{shade * 255 // (_GREYS - 1):02x}" * 3
                parts.append(f'<path fill="#{grey_of_shade}" d="{runs}"/>')
        return "".join([*parts, "</g>"])

    def _grey(self, place: int) -> UInt8[np.ndarray, "height width"]:
        from PIL import Image

        number = 0
        while place >= self._sheets[number].count:
            place -= self._sheets[number].count
            number += 1
        sheet = self._sheets[number]
        if number not in self._open:
            self._open[number] = Image.open(io.BytesIO(base64.b64decode(sheet.url.split(",", 1)[1]))).convert("L")
        left, upper = place % sheet.columns * sheet.width, place // sheet.columns * sheet.height
        cut = self._open[number].crop((left, upper, left + sheet.width, upper + sheet.height))
        return np.asarray(cut if max(cut.size) <= 16 else cut.resize((16, 16)))


def _run(row: np.ndarray, r: int, shade: int) -> str:
    """The stretches of one shade in a row, as closed paths one high."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (row == shade).astype(int), [0]])))
    return "".join(f"M{a} {r}h{b - a}v1H{a}z" for a, b in zip(edges[::2], edges[1::2]))


def _of(report: ReportData, field: str) -> list[float]:
    found = [getattr(component.causal, field) for component in report.components if component.causal is not None]
    return [value for value in found if value is not None]


def _panel(x: Length, y: Length, width: Length, height: Length, title: str) -> list[str]:
    box = f'<rect class="panel" x="{x}" y="{y}" width="{width}" height="{height}" rx="12"/>'
    return [box, _text(x + 16, y + 25, title, "bold ink")]


def _text(x: Length, y: Length, text: str, kind: str, *, end: bool = False, middle: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ' text-anchor="middle"' if middle else ""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{anchor}>{escape(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
