"""The page in a browser, as a person uses it: overview, list, cards, examples."""

import dataclasses
import itertools
import re

import numpy as np
from page_queries import eventually, listed, quiet, texts

from npeff_jax.evaluation import Collateral
from npeff_jax.report import Marks, write_report


def test_opens_quietly_and_shows_the_overview(opened, images_page, results):
    page = opened(images_page)
    assert texts(page, "main h2") == ["Overview"]
    assert len(listed(page)) == 6
    assert quiet(page)


def test_sorting_by_kl_ratio(opened, images_page, results):
    page = opened(images_page)
    page.execute_script(
        "sort = document.getElementById('sort'); sort.value = 'kl'; sort.dispatchEvent(new Event('change'))"
    )
    assert listed(page) == np.argsort(-results.selectivity.kl_ratio).tolist()


def test_keys_open_cards_and_search_finds(opened, images_page):
    page = opened(images_page)
    body = page.find_element("tag name", "body")
    order = listed(page)
    body.send_keys("j")
    eventually(page, ".card h2", [f"Component {order[0]}"])
    body.send_keys("j")
    eventually(page, ".card h2", [f"Component {order[1]}"])
    body.send_keys("k")
    eventually(page, ".card h2", [f"Component {order[0]}"])
    body.send_keys("/")
    page.switch_to.active_element.send_keys("conv")  # where a component lives is searched too
    assert 0 <= len(listed(page)) < 7
    page.switch_to.active_element.send_keys("\ue003" * 4 + "component 4\ue007")  # backspaces, then Enter
    assert listed(page) == [4]
    eventually(page, ".card h2", ["Component 4"])
    assert quiet(page)


def test_a_card_shows_its_examples_in_order(opened, images_page, results):
    page = opened(images_page, "#c2")
    first = page.execute_script("return [...document.querySelector('.images').children].map((e) => e.textContent)")
    assert len(first) == 16
    shown = [float(re.search(r"([\d.]+)$", text)[1]) for text in first]
    np.testing.assert_allclose(shown, np.sort(results.fit.coefficients[:, 2])[::-1][:16], rtol=6e-3)
    painted = page.execute_async_script(
        "const done = arguments[0]; const canvas = document.querySelector('.images canvas');"
        "setTimeout(() => done(new Set(canvas.getContext('2d').getImageData(0, 0, 8, 8).data).size), 300)"
    )
    assert painted > 10  # the image is there, not an empty canvas


def test_reading_order_and_names_for_screen_readers(opened, images_page):
    page = opened(images_page, "#c1")
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('a, button, input, select, [role=img]')].filter((e) => !(e.getAttribute("
        "'aria-label') || e.textContent.trim() || e.labels && e.labels.length)).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    levels = [
        int(level)
        for level in page.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((e) => e.tagName[1])")
    ]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_evidence_is_a_mark_a_filter_and_an_order(opened, make, make_selectivity, tmp_path):
    """Two components of each mark, by hand: ratios well above, just above and below what there is to exceed."""
    results = make()
    own = np.repeat([[3.0], [9.0], [1.2], [0.5], [1.1], [0.8]], 2, axis=1)
    table = make_selectivity(np.arange(6), own, np.full(6, 0.5), np.full((6, 6), 0.9))
    page = opened(write_report(tmp_path / "marks.html", results.decomposition, results.heldout, results.fit, table))
    assert listed(page) == [1, 0, 2, 4, 3, 5] or listed(page) == [1, 0, 2, 4, 5, 3]
    names = texts(page, "#filters button")
    assert names == ["used by the model 2", "weak evidence 2", "no evidence 2"]
    page.find_elements("css selector", "#filters button")[1].click()
    assert sorted(listed(page)) == [2, 4]
    assert page.find_elements("css selector", "#filters button")[1].get_attribute("aria-pressed") == "true"
    starts = texts(page, ".start strong")
    assert {*starts[:2]} == {"Component 0", "Component 1"}
    assert quiet(page)


def test_an_example_by_its_number(opened, images_page, results):
    page = opened(images_page)
    field = page.find_element("id", "example")
    field.send_keys("7\ue007")
    eventually(page, ".card h2", ["Example 7"])
    shown = [int(re.match(r"\d+", text)[0]) for text in texts(page, ".example-components a:first-child")]
    W = results.fit.coefficients[7]
    assert shown == [j for j in np.argsort(-W, kind="stable")[:6].tolist() if W[j] > 0]
    page.find_element("css selector", ".example-components a").click()
    eventually(page, ".card h2", [f"Component {shown[0]}"])
    page.find_element("css selector", ".images .example-number").click()
    first = int(np.argmax(results.fit.coefficients[:, shown[0]]))
    eventually(page, ".card h2", [f"Example {first}"])
    assert quiet(page)


def test_an_image_is_enlarged_and_closed(opened, images_page):
    page = opened(images_page, "#c0")
    page.find_element("css selector", ".picture").click()
    assert page.execute_script("return document.getElementById('zoom').open")
    width = page.execute_script("return document.querySelector('#zoom canvas').clientWidth")
    assert width > 2 * page.execute_script("return document.querySelector('.images canvas').clientWidth")
    page.find_element("css selector", "#zoom button").click()
    assert not page.execute_script("return document.getElementById('zoom').open")


def test_words_that_matter_are_marked(opened, make, tmp_path):
    results = make()
    top = int(np.argmax(results.fit.coefficients[:, 0]))
    marks = [(Marks(top, ((0, 3, 6, 0.9), (0, 7, 10, -0.2))),), *[()] * 5]
    display = ["𝔞 one two three"] * 60
    page = opened(
        write_report(
            tmp_path / "marked.html", results.decomposition, results.heldout, results.fit, display=display, marks=marks
        ),
        "#c0",
    )
    assert texts(page, ".texts mark") == ["one"]
    assert texts(page, ".texts .clamp")[0] == display[0]
    assert "90% of the effect is lost" in page.find_element("css selector", "mark").get_attribute("title")


def test_named_components_and_who_moves(opened, results, tmp_path):
    """The largest mover comes first, by its name; a hostile name stays text."""
    settings = results.decomposition.settings | {"names": [[2, "<b>licence</b>"]]}
    measured = np.array([0.1, np.nan, 0.7, 0.2, 0.0, 0.3])
    page = opened(
        write_report(
            tmp_path / "named.html",
            dataclasses.replace(results.decomposition, settings=settings),
            results.heldout,
            results.fit,
            collateral=Collateral({2: "<b>licence</b>"}, np.linspace(0.0, 0.5, 6), measured, 0.25, 32),
        )
    )
    named = "Component 2 · <b>licence</b>"
    assert texts(page, ".moved tbody a") == [named, *(f"Component {j}" for j in (5, 3, 0, 4))]
    assert texts(page, ".moved tbody tr:first-child td")[1:] == ["0.7", "0.2"]
    assert texts(page, "#list .asked") == ["<b>licence</b>"]
    page.execute_script("document.querySelector('.moved tbody a').click()")
    eventually(page, ".card h2", [named])
    assert "asked for" in texts(page, ".card .badge")
    assert quiet(page)
