"""Decompositions made by hand, so that what a report must say of them is known; and a browser to open pages in."""

import dataclasses
import importlib
import os
import pathlib
import shutil

import numpy as np
import pytest

from npeff_jax import Decomposition, FisherKind, History, Pefs, Selectivity
from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.pefs import Schema
from npeff_jax.report import write_report

HOSTILE = [
    "<script>window.hacked = true</script>",
    "</script><img src=x onerror='window.hacked = true'>",
    "{{ 7 * 7 }} {% raw %} & < > \" ' \u2028 \u2029 \\u003c",
    "<!-- --> ]]> <svg onload=window.hacked=true>",
]


@dataclasses.dataclass
class Fit:
    coefficients: np.ndarray
    loss: float = 0.1


@dataclasses.dataclass
class Made:
    decomposition: Decomposition
    heldout: Pefs
    fit: Fit
    selectivity: Selectivity


def layout(names):
    entries, offset = [], 0
    for name, shape in names.items():
        entries.append(Parameter(name, shape, offset))
        offset += entries[-1].size
    return ParameterLayout(tuple(entries))


NETWORK = {"Conv_0/bias": (8,), "Conv_0/kernel": (3, 3, 1, 8), "Dense_0/bias": (10,), "Dense_0/kernel": (16, 10)}


def made(r=6, n=90, heldout=60, classes=3, names=NETWORK, kind=FisherKind.LOW_RANK, seed=0) -> Made:
    """Component j belongs to class j % classes: its coefficients are large where that class is predicted."""
    random = np.random.default_rng(seed)
    where = layout(names)
    schema = Schema(kind, {"name": "LowRank"}, "before", "f" * 32, "e" * 32, where, n, classes, keep=64)

    def coefficients(count):
        predicted = np.arange(count) % classes
        own = predicted[:, None] == np.arange(r)[None] % classes
        values = np.where(own, random.gamma(2.0, 0.3, (count, r)), random.gamma(0.3, 0.02, (count, r)))
        return predicted, np.where(random.random((count, r)) < 0.2, 0.0, values).astype(np.float32)

    vectors = random.normal(size=(r, where.size)).astype(np.float32)
    vectors = np.abs(vectors) if kind is FisherKind.DIAGONAL else vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    steps = np.arange(0, 50, 5)
    history = History(steps, 0.1 + 0.8 * np.exp(-steps / 10), steps / 10.0)
    decomposition = Decomposition(
        schema, coefficients(n)[1], vectors, np.arange(where.size), history, "The loss changes no more.", {"seed": seed}
    )
    predicted, fitted = coefficients(heldout)
    logits = (6.0 * np.eye(classes)[predicted] + random.normal(size=(heldout, classes))).astype(np.float32)
    labels = np.where(random.random(heldout) < 0.1, (logits.argmax(-1) + 1) % classes, logits.argmax(-1))
    kept = random.uniform(0.6, 1.0, heldout).astype(np.float32)
    rows = np.ones((heldout, 64), np.float32)
    pefs = Pefs(
        dataclasses.replace(schema, n_examples=heldout),
        rows,
        np.tile(np.arange(64), (heldout, 1)),
        np.zeros((heldout, 64), np.int64),
        np.ones(heldout, np.int64),
        kept,
        logits,
        kept,
        1 - kept,
        np.zeros(heldout, np.float32),
        np.zeros(heldout, np.float32),
        labels,
    )
    ratios = (random.gamma(4.0, scale, shape) for scale, shape in ((2.0, (r, 2)), (0.3, r), (1.0, (r, r))))
    own, norms, null = (ratio + 1 for ratio in ratios)
    return Made(decomposition, pefs, Fit(fitted), selectivity_of(np.arange(r), own + 4, norms, null))


def selectivity_of(components, kl_ratios, pef_norm_ratio, null_kl_ratios, n=60) -> Selectivity:
    """A table of these ratios; what they were made from is blank."""
    c = len(components)
    blank = np.zeros((c, 2, n))
    return Selectivity(
        components=components,
        top=np.tile(np.arange(4), (c, 1)),
        evaluated=np.arange(n),
        is_random=np.ones(n, bool),
        kl=blank,
        predicted_kl=blank,
        norms=np.full((c, 2), 0.1),
        kl_ratios=kl_ratios,
        loss_sign=np.ones(c, int),
        pef_norm_ratio=pef_norm_ratio,
        null_kl_ratios=null_kl_ratios,
        random_kl_ratios=np.ones((c, 3)),
        prediction_correlation=np.zeros(c),
        coefficient_correlation=np.zeros(c),
        ceiling=9.0,
    )


@pytest.fixture
def make_selectivity():
    return selectivity_of


@pytest.fixture
def results() -> Made:
    return made()


@pytest.fixture
def make():
    return made


@pytest.fixture
def hostile():
    return HOSTILE


FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1280,900""".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium. Without it the tests are skipped with a message; under ``CI``, where nobody reads that, they fail."""
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
