"""Images and texts as they are shown."""

import base64
import io

import numpy as np
import pytest

from npeff_jax.report import Images, Texts
from npeff_jax.report._display import as_display, sheets_of

pytestmark = pytest.mark.fast


def cut(sheets, place):
    """The image at ``place``, cut from its sheet as the page does."""
    from PIL import Image

    for sheet in sheets:
        if place < sheet.count:
            picture = Image.open(io.BytesIO(base64.b64decode(sheet.url.split(",", 1)[1])))
            left, upper = place % sheet.columns * sheet.width, place // sheet.columns * sheet.height
            return np.asarray(picture.crop((left, upper, left + sheet.width, upper + sheet.height)))
        place -= sheet.count
    raise IndexError(place)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (6, 9), (7, 5, 3)], ids=str)
def test_small_images_are_kept_exactly(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)
    rows = [3, 39, 0, 17, 5]
    sheets = sheets_of(Images(pixels), rows)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(cut(sheets, place).squeeze(), pixels[row].squeeze())


def test_many_images_take_several_sheets():
    pixels = (np.arange(1500)[:, None, None] % 251 * np.ones((1, 4, 4))).astype(np.uint8)
    sheets = sheets_of(Images(pixels), range(1500))
    assert [sheet.count for sheet in sheets] == [1024, 476]
    assert cut(sheets, 1030)[0, 0] == 1030 % 251


def test_they_shrink_until_they_fit():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 128, 64, 3), np.uint8)
    sheets = sheets_of(Images(pixels), range(200), max_bytes=100_000)
    assert sum(len(sheet.url) for sheet in sheets) < 140_000
    assert sheets[0].height == 2 * sheets[0].width


def test_floating_point_is_scaled():
    inside = np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 2, 2)
    np.testing.assert_array_equal(Images(inside).to_bytes([0]).squeeze(), [[0, 85], [170, 255]])
    np.testing.assert_array_equal(Images(inside * 6 - 3).to_bytes([0]).squeeze(), [[0, 85], [170, 255]])
    np.testing.assert_array_equal(Images(inside, low=-1.0, high=1.0).to_bytes([0]).squeeze(), [[128, 170], [213, 255]])


def test_what_counts_as_a_display():
    assert isinstance(as_display(np.zeros((3, 8, 8))), Images)
    assert as_display(["one", "two"]).segments == [("one",), ("two",)]
    assert as_display([("a", "b"), ("c", "d")]).segments == [("a", "b"), ("c", "d")]
    assert as_display(Texts([("a",)])).names == ()
    assert as_display(None) is None
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8, 2\); expected images"):
        as_display(np.zeros((3, 8, 8, 2)))
    with pytest.raises(ValueError, match="display\\[0\\] has 1 \\(int\\); expected an array of images"):
        as_display([[1, 2], [3, 4]])
