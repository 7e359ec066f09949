"""The report as one SVG: well-formed, its text escaped, its images those of the report."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from npeff_jax.report import Texts, report_data, write_picture

pytestmark = pytest.mark.fast
SVG = "{http://www.w3.org/2000/svg}"


def test_images_are_drawn_pixel_by_pixel(results, tmp_path):
    images = np.where(np.arange(64).reshape(8, 8) % 3 == 0, 255, 0).astype(np.uint8)[None].repeat(60, axis=0)
    data = report_data(results.decomposition, results.heldout, results.fit, results.selectivity, images)
    tree = ElementTree.parse(write_picture(tmp_path / "report.svg", data, n_components=3))
    drawn = list(tree.iter(SVG + "g"))
    assert len(drawn) == 3 * 7
    white = drawn[0].findall(SVG + "path")[-1]
    assert white.get("fill") == "#ffffff"
    assert white.get("d").count("M") == (images[0] == 255).sum()  # no two neighbours in a row are white
    assert white.get("d").startswith("M0 0h1v1H0z")


def test_hostile_text_is_text(results, hostile, tmp_path):
    display = Texts([(hostile[i % 4],) for i in range(60)])
    data = report_data(
        results.decomposition, results.heldout, results.fit, display=display, title=hostile[1], notes=[hostile[0]] * 6
    )
    tree = ElementTree.parse(write_picture(tmp_path / "report.svg", data))
    assert {element.tag for element in tree.iter()} <= {SVG + name for name in ("svg", "style", "rect", "text")}
    assert tree.find(f"{SVG}text").text == hostile[1]
