"""What a report displays of each example: an image, or text in segments."""

import base64
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from npeff_jax._extras import needs
from npeff_jax.report._data import Sheet

_SIDE = 96
"""Longest side of a thumbnail, in pixels: enough to recognise a photograph, at 2 to 4 kB as a JPEG."""

_TOTAL_BYTES = 10_000_000
"""Total size of a report's images, 13 MB in base64: a report of 512 components then stays below 20 MB."""

_SHEET_IMAGES = 1024
"""Images on one sheet: a browser decodes a sheet whole, and 1,024 thumbnails are 36 MB of memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images to show.

    Attributes:
        pixels: (n, height, width), or with 1, 3 or 4 channels last. Integers are 0 to 255; floating point is scaled
            from ``low`` to ``high``.
        low: the value shown as black; by default the smallest pixel (0 if all lie in [0, 1]).
        high: the value shown as white; by default the largest pixel (1 if all lie in [0, 1]).
    """

    pixels: np.ndarray
    low: float | None = None
    high: float | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def to_bytes(self, rows: Sequence[int]) -> np.ndarray:
        """Return the images at ``rows`` as unsigned bytes, (rows, height, width, 1 or 3)."""
        chosen = np.asarray(self.pixels[np.asarray(rows, int)])
        chosen = chosen[..., None] if chosen.ndim == 3 else chosen
        if not np.issubdtype(chosen.dtype, np.integer) and chosen.dtype != bool:
            inside = chosen.size == 0 or (np.nanmin(chosen) >= 0 and np.nanmax(chosen) <= 1)
            low = self.low if self.low is not None else (0.0 if inside else float(np.nanmin(chosen)))
            high = self.high if self.high is not None else (1.0 if inside else float(np.nanmax(chosen)))
            chosen = np.nan_to_num((chosen - low) / ((high - low) or 1.0)) * 255
        elif chosen.dtype == bool:
            chosen = chosen * 255
        return np.clip(np.round(chosen), 0, 255).astype(np.uint8)[..., :3]


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts to show, each in one or more segments (premise and hypothesis, question and answer).

    Attributes:
        segments: per example, the text of each segment.
        names: names of the segments; may be empty.
    """

    segments: Sequence[Sequence[str]]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.segments)


Display = Images | Texts

_EXPECTED = "expected an array of images, a string for each example, or several (its segments)"


def as_display(display: Any) -> Display | None:
    """Convert ``display`` to `Images` or `Texts`: an array of images, strings, pairs of strings, or None.

    Raises:
        ValueError: If ``display`` is none of these.
    """
    if display is None or isinstance(display, Images | Texts):
        return display
    if hasattr(display, "shape") and np.issubdtype(np.asarray(display[:1]).dtype, np.number):
        shape = display.shape
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4)):
            return Images(display)
        raise ValueError(
            f"display has shape {shape}; expected images (n, height, width) or (n, height, width, 1, 3 or 4). Inputs "
            "that are not images need a text for each example: display=[...]"
        )
    if isinstance(display, str) or not hasattr(display, "__iter__"):
        raise ValueError(f"display is of type {type(display).__name__}; {_EXPECTED}")
    items = list(display)
    if all(isinstance(item, str) for item in items):
        return Texts([(str(item),) for item in items])
    for i, item in enumerate(items):
        parts = item if isinstance(item, Sequence | np.ndarray) and not isinstance(item, str) else [item]
        wrong = next((part for part in parts if not isinstance(part, str)), None)
        if wrong is not None or isinstance(item, str) != isinstance(items[0], str):
            got = f"{wrong!r} ({type(wrong).__name__})" if wrong is not None else "other parts than display[0]"
            raise ValueError(f"display[{i}] has {got}; {_EXPECTED}")
    return Texts([tuple(str(part) for part in item) for item in items])


def sheets_of(images: Images, rows: Sequence[int], max_bytes: int = _TOTAL_BYTES) -> tuple[Sheet, ...]:
    """Tile the images at ``rows`` into sheets, shrinking the images until all sheets fit into ``max_bytes``."""
    side = _SIDE
    while True:
        made = [_sheet(images, rows[a : a + _SHEET_IMAGES], side) for a in range(0, len(rows), _SHEET_IMAGES)]
        size = sum(len(encoded) for _, encoded in made)
        if size <= max_bytes or side <= 16:
            return tuple(sheet for sheet, _ in made)
        side = max(16, int(side * max(0.5, 0.95 * math.sqrt(max_bytes / size))))


def _sheet(images: Images, rows: Sequence[int], side: int) -> tuple[Sheet, bytes]:
    with needs("a report with images"):
        from PIL import Image

    pixels = images.to_bytes(rows)
    count, height, width = pixels.shape[:3]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = max(1, math.ceil(math.sqrt(count * size[1] / size[0])))
    sheet = Image.new("RGB", (columns * size[0], math.ceil(count / columns) * size[1]))
    for place, image in enumerate(pixels):
        thumbnail = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
        thumbnail = thumbnail.resize(size, Image.Resampling.LANCZOS) if size != (width, height) else thumbnail
        sheet.paste(thumbnail, (place % columns * size[0], place // columns * size[1]))
    kind, encoded = _encode(sheet if pixels.shape[-1] == 3 else sheet.convert("L"), max(size))
    url = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
    return Sheet(url, columns, size[0], size[1], count), encoded


def _encode(sheet: Any, side: int) -> tuple[str, bytes]:
    """Encode a sheet as PNG (lossless) if its images are small or few, else as JPEG (about a tenth of the size)."""
    encoded = io.BytesIO()
    exact = side < 48 or sheet.width * sheet.height < 200_000
    sheet.save(encoded, "PNG", optimize=True) if exact else sheet.save(encoded, "JPEG", quality=82)
    return "png" if exact else "jpeg", encoded.getvalue()
