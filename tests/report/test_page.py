"""The page in a browser, as a person uses it.

Where no browser is installed these tests skip and say so; under ``CI``, where nobody reads what was skipped, they fail.
"""

import importlib
import itertools
import os
import pathlib
import re
import shutil
import time

import numpy as np
import pytest

from npeff_jax.report import Shown, Texts, report_data, write_html, write_report

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1280,900""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if os.environ.get("CI"):
        selenium = importlib.import_module("selenium.webdriver")
    else:
        selenium = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        said = (
            "no Chromium with chromedriver on this machine (Debian: chromium, chromium-driver): the page was not opened"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.chrome.service.Service(chromedriver)
    driver = selenium.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser):
    def open_page(path: pathlib.Path, where: str = ""):
        browser.get("about:blank")
        browser.get_log("browser")  # what earlier pages said
        browser.get(path.as_uri() + where)
        return browser

    return open_page


def texts(browser, selector):
    return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def eventually(browser, selector, expected):
    """Keys change the address, and the page follows a moment later."""
    for _ in range(100):
        if texts(browser, selector) == expected:
            return
        time.sleep(0.05)
    assert texts(browser, selector) == expected


def listed(browser):
    return [int(number) for number in texts(browser, "#list .number")]


def quiet(browser) -> bool:
    return [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.fixture
def images_page(results, tmp_path):
    images = np.random.default_rng(0).random((60, 8, 8), np.float32)
    options = {"stability": np.linspace(0.5, 1.0, 6)}
    return write_report(
        tmp_path / "images.html",
        results.decomposition,
        results.heldout,
        results.fit,
        results.selectivity,
        images,
        **options,
    )


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


def test_hostile_text_stays_text(opened, make, hostile, tmp_path):
    results = make()
    display = Texts([(hostile[i % 4], hostile[(i + 1) % 4]) for i in range(60)], ("<i>premise</i>", "hypothesis"))
    page = write_report(
        tmp_path / "hostile.html",
        results.decomposition,
        results.heldout,
        results.fit,
        display=display,
        notes=[hostile[j % 4] for j in range(6)],
        title=hostile[1],
        class_names=tuple(hostile[:3]),
    )
    driver = opened(page, "#c0")
    assert driver.execute_script("return window.hacked") is None
    assert set(texts(driver, ".segments p > span:last-child")) <= set(hostile)
    assert texts(driver, "h1") == [hostile[1]]
    assert (
        driver.execute_script("return document.querySelectorAll('main img, main script, main svg[onload]').length") == 0
    )
    assert quiet(driver)


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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(opened, images_page, theme):
    """WCAG AA, 4.5 to 1, for body text and for muted text on every ground they stand on."""
    page = opened(images_page)
    colors = page.execute_script(
        f"document.documentElement.dataset.theme = '{theme}'; const style = getComputedStyle(document.documentElement);"
        "return Object.fromEntries(['ink', 'muted', 'accent', 'wrong', 'ground', 'panel', 'accent-soft'].map((n) =>"
        " [n, style.getPropertyValue('--' + n).trim()]))"
    )

    def luminance(color):
        channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for ink in ("ink", "muted", "accent", "wrong"):
        for ground in ("ground", "panel", "accent-soft"):
            light, dark = sorted((luminance(colors[ink]), luminance(colors[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_512_components_stay_small_and_quick(opened, make, tmp_path):
    results = make(r=512, n=4000, heldout=4000, classes=20)
    photographs = np.random.default_rng(0).integers(
        0, 255, (4000, 96, 96, 3), np.uint8
    )  # noise: nothing compresses worse
    data = report_data(
        results.decomposition, results.heldout, results.fit, results.selectivity, photographs, shown=Shown(top=16)
    )
    page = write_html(tmp_path / "large.html", data)
    assert page.stat().st_size < 20_000_000
    driver = opened(page, "#c511")
    assert texts(driver, ".card h2") == ["Component 511"]
    assert (
        driver.execute_script("return performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
        < 8000
    )


def test_nothing_is_fetched(images_page):
    """The page names no address but those of the SVG namespace and of data it carries."""
    page = images_page.read_text()
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
