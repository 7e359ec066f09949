"""The page outside of itself: saved tables, figures and notes, in a notebook, without a network."""

import csv
import io
import json
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from page_queries import eventually, listed, quiet

from npeff_jax.report import report_data, write_report

CATCH = """
const done = arguments[0]; URL.createObjectURL = (blob) => { blob.arrayBuffer().then((bytes) => done(
  [blob.type, [...new Uint8Array(bytes)]])); return 'about:blank#'; };
HTMLAnchorElement.prototype.click = () => {};
"""


def saved(page, click):
    """The type and the bytes of the file that a click saves."""
    kind, content = page.execute_async_script(f"{CATCH} {click}")
    return kind, bytes(content)


def test_tables_and_figures_are_saved(opened, make, tmp_path):
    results = make()
    hostile_texts = [f'=1+1 "{i}", and\na second line' for i in range(60)]
    page = opened(
        write_report(
            tmp_path / "saved.html", results.decomposition, results.heldout, results.fit, display=hostile_texts
        ),
        "#c1",
    )
    kind, content = saved(page, "document.querySelector('.section-head .save-row button').click()")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    order = np.argsort(-results.fit.coefficients[:, 1], kind="stable")[: len(rows)]
    assert kind == "text/csv"
    assert [int(row["example"]) for row in rows] == order.tolist()
    assert rows[0]["text 0"] == f"'{hostile_texts[order[0]]}"  # a spreadsheet would compute it
    kind, content = saved(page, "document.querySelectorAll('.section-head .save-row button')[1].click()")
    assert kind == "application/json"
    assert json.loads(content)[0]["text 0"] == hostile_texts[order[0]]
    button = "[...document.querySelectorAll('.save button')].find((one) => one.textContent === '{}').click()"
    kind, content = saved(page, button.format("SVG"))
    assert kind == "image/svg+xml"
    drawing = xml.etree.ElementTree.fromstring(content)
    assert drawing.tag.endswith("svg")
    assert "class" not in content.decode().split(">", 1)[0]
    kind, content = saved(page, button.format("PNG"))
    assert kind == "image/png"
    assert content[:4] == b"\x89PNG"
    assert quiet(page)


def test_notes_are_kept_and_exported(opened, images_page, results, tmp_path):
    page = opened(images_page, "#c2")
    field = page.find_element("css selector", ".your-note textarea")
    field.send_keys("about loops")
    page = opened(images_page, "#c2")  # opened again
    assert page.find_element("css selector", ".your-note textarea").get_attribute("value") == "about loops"
    kind, content = saved(page, "document.querySelector('.your-note button').click()")
    assert kind == "application/json"
    exported = json.loads(content)
    assert exported == {"2": "about loops"}
    again = report_data(results.decomposition, results.heldout, results.fit, notes=exported)
    assert [component.note for component in again.components] == ["", "", "about loops", "", "", ""]
    with pytest.raises(ValueError, match=r"notes has the key '6'; expected numbers of components, 0 to 5"):
        report_data(results.decomposition, results.heldout, results.fit, notes={6: "x"})


def test_a_notebook_shows_the_page_in_its_place(opened, images_page, tmp_path):
    """Inside a notebook the page has no address of its own: its links must not lead the frame elsewhere."""
    assert isinstance(images_page, pathlib.Path)
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><body>{images_page._repr_html_()}</body>")
    page = opened(notebook)
    page.switch_to.frame(0)
    try:
        eventually(page, "main h2", ["Overview"])
        page.execute_script("document.querySelector('#list a').click()")
        eventually(page, ".card h2", [f"Component {listed(page)[0]}"])
        page.execute_script("document.querySelector('.step[href]').click()")
        eventually(page, ".card h2", [f"Component {listed(page)[1]}"])
    finally:
        page.switch_to.default_content()


def test_nothing_is_fetched(images_page):
    """The page names no address but those of the SVG namespace and of data it carries."""
    page = images_page.read_text()
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
