"""Results show themselves: in a notebook as a table of the numbers they hold, on a terminal in a line."""

import html.parser

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax._html import histogram_html, spark_html, table_html
from npeff_jax.evaluation import Clusters, PerturbationTrace, Repairs, Tcav, search_concepts
from npeff_jax.models import Model

pytestmark = pytest.mark.fast


class Shown(html.parser.HTMLParser):
    """The texts of an HTML fragment, and whether every element is closed."""

    def __init__(self, fragment):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []
        self.feed(fragment)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def results():
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(4, 3)).astype(np.float32)}
    model = Model(lambda p, x: x @ p["kernel"], params, label_names=("<a>", "b", "c"))
    inputs = random.normal(size=(30, 4)).astype(np.float32)
    labels = np.argmax(inputs @ params["kernel"], 1)
    labels[:3] = (labels[:3] + 1) % 3
    pefs = npeff.compute_pefs(model, jnp.asarray(inputs), npeff.LowRank(), labels=labels, progress=False)
    runs = [npeff.decompose(pefs, 3, seed=seed, progress=False) for seed in (0, 1)]
    return model, pefs, runs, npeff.fit_coefficients(runs[0], pefs)


def test_each_result_shows_its_own_numbers(results):
    model, pefs, runs, fit = results
    concepts = {"late": np.arange(30) >= 20, "first": np.arange(30) < 2}
    compared = npeff.compare_runs(*runs)
    for result, expected in [
        (model, "12 in 1 arrays"),
        (pefs, "90.0%"),  # 3 of 30 labels are others than predicted
        (pefs, f"{np.median(pefs.kept_energy):.3g}"),
        (runs[0], f"{runs[0].history.loss[-1]:.3g}"),
        (fit, f"{fit.loss:.3g}"),
        (compared, f"{compared.matched.mean():.3g}"),
        (npeff.find_splits(*runs), "3 components"),
        (npeff.stability(runs), "runs"),
        (search_concepts(fit.coefficients, concepts, n_top=4), "late"),
    ]:
        texts = Shown(result._repr_html_()).texts
        assert any(expected in text for text in texts), (expected, texts)


def test_each_analysis_shows_its_own_numbers():
    right = np.arange(40) % 4 > 0
    after = np.stack([np.stack([right | (np.arange(40) == 8), right & (np.arange(40) != 1)])] * 2)  # +1, −1 example
    repairs = Repairs(right, after, np.arange(40) < 10, 0.3)
    scores = np.array([[0.25, 0.5], [0.75, 1.0]])
    concepts = Tcav(scores, scores - 0.5, np.array([[0.9, 0.6], [0.04, 0.3]]))
    clusters = Clusters(np.array([1, 1, 0, 1]), np.array([1.0, 2.0, 5.0, 3.0]), np.zeros((3, 2)))
    trace = PerturbationTrace(("a", "b"), (np.ones(2), np.ones(1)), ("<w>", "v"), np.array([[1.0, -2.0], [0.5, 0.25]]))
    for result, expected in [
        (repairs, ["+10.00", "+0.00", "75.0%", "30"]),  # 1 of the 10 that choose, none of the others
        (concepts, ["0.75", "0.040", "1"]),
        (clusters, ["3", "2", "5"]),  # sizes and mean distances: (3, 2) and (1, 5); the empty cluster is left out
        (trace, ["+1.5, -1.75", "<w>"]),
    ]:
        texts = Shown(result._repr_html_()).texts
        assert set(expected) <= set(texts), (expected, texts)


def test_names_in_them_stay_text(results):
    assert any("<a>" in text for text in Shown(results[0]._repr_html_()).texts)


def test_on_a_terminal_they_are_one_line(results):
    model, pefs, _, fit = results
    for result in (model, pefs, fit):
        assert len(repr(result)) < 200
        assert "\n" not in repr(result)


def test_histograms_count_what_is_in_range():
    values = [0.0, 0.1, 0.1, 2.0, np.nan]
    heights = [float(a["height"]) for tag, a in Shown(histogram_html(values, "x", bins=10)).tags if tag == "rect"]
    assert np.array(heights) / 20 == pytest.approx([1, 2, *[0] * 7, 1], abs=0.01)
    assert histogram_html([np.nan], "x") == "" == spark_html([1.0], "x")


def test_tables_say_what_they_leave_out():
    assert "and 3 more" in Shown(table_html(("n",), [(i,) for i in range(15)])).texts
