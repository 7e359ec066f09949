"""The data of a report: what it says is right, and it survives being written and read."""

import dataclasses
import json

import numpy as np
import pytest

from npeff_jax import FisherKind, report
from npeff_jax.evaluation import Collateral
from npeff_jax.report import ReportData, Texts, read_report_data, report_data
from npeff_jax.report._words import Words
from npeff_jax.report._write import _check_collateral, _check_types

pytestmark = pytest.mark.fast


def of(results, **options):
    return report_data(results.decomposition, results.heldout, results.fit, results.selectivity, **options)


def test_written_and_read_is_the_same(results, tmp_path):
    data = of(results, display=[("a", "b")] * 60, stability=np.full((2, 6), 0.5), notes=["x"] * 6)
    once = read_report_data(data.write(tmp_path / "report.json"))
    assert once == ReportData.from_json(data.to_json()) == read_report_data(once.write(tmp_path / "again.json"))
    document = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert document["format"] == "npeff-report"
    assert document["version"] == 5


def test_top_examples_are_the_largest_coefficients(results):
    data = of(results)
    for component in data.components:
        column = results.fit.coefficients[:, component.index]
        expected = sorted(range(60), key=lambda i: (-column[i], i))[:16]
        assert [data.examples.shown[place].index for place, _ in component.top] == [
            i for i in expected if column[i] > 0
        ]
        np.testing.assert_allclose([c for _, c in component.top], column[expected][: len(component.top)])


def test_near_misses_are_predicted_alike_and_quiet(make):
    results = make(heldout=90)
    results.fit.coefficients[np.flatnonzero(np.arange(90) % 3 == 0)[:20], 0] = 0.0  # predicted alike, but unused
    data = of(results)
    column, logits = results.fit.coefficients[:, 0].astype(float), results.heldout.logits.astype(float)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top = np.argsort(-column)[:16]
    hellinger = ((np.sqrt(p) - np.sqrt(p[top].mean(0))) ** 2).sum(1)
    hellinger[column > 0.1 * column[top].mean()] = np.inf
    found = [data.examples.shown[place] for place, _ in data.components[0].near_misses]
    assert {example.index for example in found} == set(np.argsort(hellinger)[:8].tolist())


def test_mix_and_base_rate(results):
    data = of(results, shown=report.Shown(mix=16))
    component = data.components[1]
    most = np.argsort(-results.fit.coefficients[:, 1], kind="stable")[: component.n_mix]
    counts = np.bincount(results.heldout.logits.argmax(-1)[most], minlength=3)
    assert dict(component.predicted_mix) == {c: counts[c] / counts.sum() for c in range(3) if counts[c]}
    np.testing.assert_allclose(
        data.examples.label_rate, np.bincount(np.asarray(results.heldout.labels), minlength=3) / 60
    )


def test_words_of_the_top_texts_against_their_base_rate(make):
    """Component 0 is of the examples i % 3 == 0, which alone have the planted word in their second segment."""
    results = make(heldout=300)
    texts = [(f"it's number {i}", "planted here" if i % 3 == 0 else "here") for i in range(300)]
    data = of(results, display=texts, shown=report.Shown(mix=30))
    assert data.components[0].words == ((1, "planted", 1.0, 100 / 300),)
    assert data.components[1].words == ()  # these lack a word, and numbers are too rare to be typical


def test_typical_words_are_no_accident():
    """2,000 words by chance in 500 texts: none is typical of 50 texts drawn at random."""
    random = np.random.default_rng(0)
    texts = [(" ".join(f"w{w}" for w in random.integers(2000, size=60)),) for _ in range(500)]
    words = Words.of(texts)
    for seed in range(20):
        assert words.typical(np.random.default_rng(seed).choice(500, 50, replace=False)) == ()


def test_selectivity_of_some_components(results, make_selectivity):
    own, null = np.array([[2.0, 3.0], [5.0, 4.0]]), np.array([[9.0, 7.0], [1.0, 9.0]])
    table = make_selectivity(np.array([4, 1]), own, np.array([1.5, 0.5]), null)
    components = report_data(results.decomposition, results.heldout, results.fit, table).components
    assert components[4].causal == report.Causal(3.0, 1.5, 7.0, 1.0)
    assert components[1].causal == report.Causal(5.0, 0.5, 1.0, 0.0)
    assert components[0].causal is None
    with pytest.raises(ValueError, match="selectivity has component 4, but the decomposition has 3 components"):
        report_data(
            dataclasses.replace(results.decomposition, coefficients=np.ones((90, 3), np.float32)), None, None, table
        )


def test_json_schema_holds_and_catches(results):
    jsonschema = pytest.importorskip("jsonschema")
    document = of(results, display=[("a", "b")] * 60, notes=["x"] * 6).to_json()
    validator = jsonschema.Draft202012Validator(report.json_schema())
    validator.check_schema(report.json_schema())
    validator.validate(document)
    for change in ({"title": 3}, {"map": [[0.0]]}, {"stray": 1}, {"components": [{}]}):
        assert not validator.is_valid(document | change)


def test_pairs_are_the_two_likeliest_classes(make):
    results = make(classes=5, heldout=100)
    data = of(results, shown=report.Shown(mix=16))
    most = np.argsort(-results.fit.coefficients[:, 0], kind="stable")[: data.components[0].n_mix]
    pairs = [tuple(sorted(np.argsort(-row)[:2].tolist())) for row in results.heldout.logits[most]]
    everywhere = [tuple(sorted(np.argsort(-row)[:2].tolist())) for row in results.heldout.logits]
    for a, b, fraction, of_all in data.components[0].pair_mix:
        assert fraction == pairs.count((a, b)) / len(pairs)
        assert of_all == everywhere.count((a, b)) / 100
    assert data.components[0].pair_mix[0][2] == max(pairs.count(pair) for pair in pairs) / len(pairs)


@pytest.mark.parametrize("kind", list(FisherKind))
def test_energy_is_the_trace(make, kind):
    """Each array's share of the trace of H_j, against the dense matrix."""
    results = make(kind=kind)
    data = of(results)
    for component in data.components:
        vector = results.decomposition.pseudo_fisher(component.index).astype(np.float64)
        matrix = np.outer(vector, vector) if kind is FisherKind.LOW_RANK else np.diag(vector)
        trace = np.diag(matrix) / np.trace(matrix)
        shares = {
            p.name: trace[p.offset : p.offset + p.size].sum() for p in results.decomposition.schema.layout.parameters
        }
        np.testing.assert_allclose([dict(component.parameters)[name] for name in shares], list(shares.values()), 1e-5)
        np.testing.assert_allclose(np.sum(component.places), 1.0, rtol=1e-6)


def test_decay_compares_fractions_of_sets_of_different_size(results):
    """90 decomposed and 60 held-out examples: the same curve where their distributions are the same."""
    data = of(results)
    column = np.sort(results.fit.coefficients[:, 0])[::-1]
    assert data.decay_at[0] == 1 / 60
    assert data.decay_at[-1] == 1.0
    assert data.components[0].decay[0] == 1.0
    assert data.components[0].decay[-1] == column[-1] / column[0]
    shifted = dataclasses.replace(results.decomposition, coefficients=np.repeat(results.fit.coefficients, 2, axis=0))
    again = report_data(shifted, results.heldout, results.fit)
    np.testing.assert_allclose(again.components[0].decomposed_decay, again.components[0].decay, atol=1e-6)


def test_without_anything_but_the_decomposition(results):
    data = report_data(results.decomposition)
    assert data.examples.source == "decomposed"
    assert data.examples.count == 90
    assert data.components[0].predicted_mix == ()
    assert data.components[0].causal is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"display": ["one"]}, "display has 1 entries, but 60 examples"),
        ({"display": np.zeros((60, 5))}, r"display has shape \(60, 5\); expected images"),
        ({"notes": ["one"]}, "notes has 1 entries; expected one for each of the 6"),
        ({"class_names": ("a", "b")}, "class_names has 2 names, but the model has 3 classes"),
        ({"stability": np.ones(5)}, r"stability has shape \(5,\)"),
        ({"stability": np.full(6, 7.0)}, "stability has the value 7"),
        ({"stability": np.ones((2, 2, 6))}, r"stability has shape \(2, 2, 6\)"),
        ({"display": ["a"] * 59 + [float("nan")]}, r"display\[59\] has nan \(float\); expected an array of images"),
        ({"display": [("a", "b"), 3] * 30}, r"display\[1\] has 3 \(int\)"),
        ({"notes": "abcdef"}, "notes has 6 entries; expected one for each"),
    ],
)
def test_what_does_not_belong_together_is_said(results, options, message):
    with pytest.raises(ValueError, match=message):
        of(results, **options)


def test_arguments_of_another_type_are_said(results):
    """By `_check_types` itself: where these tests run, annotations are checked before it is reached."""
    with pytest.raises(TypeError, match="stability is of type list, no array of numbers"):
        of(results, stability=[object()] * 6)
    with pytest.raises(TypeError, match="fit is of type ndarray; expected the result of fit_coefficients"):
        report_data(results.decomposition, results.heldout, np.zeros(3))
    right = (results.decomposition, results.heldout, results.fit, results.selectivity, None)
    _check_types(*right)
    for place, name in ((0, "decomposition"), (1, "heldout"), (3, "selectivity"), (4, "model")):
        with pytest.raises(TypeError, match=f"{name} is of type str; expected a"):
            _check_types(*right[:place], "run/components", *right[place + 1 :])


@pytest.mark.parametrize("label", [-100, 3, 2**40])
def test_labels_that_are_no_classes(results, label):
    labels = np.array(results.heldout.labels, np.int64)
    labels[7] = label
    heldout = dataclasses.replace(results.heldout, labels=labels)
    with pytest.raises(ValueError, match=rf"heldout\.labels\[7\] is {label}; the model has the classes 0 to 2"):
        report_data(results.decomposition, heldout, results.fit)
    assert (
        report_data(results.decomposition, dataclasses.replace(heldout, labels=None), results.fit).examples.accuracy
        is None
    )


def test_examples_without_a_finite_prediction_are_neither_shown_nor_counted(results, tmp_path):
    logits = np.array(results.heldout.logits)
    logits[10:] = np.nan
    data = of(dataclasses.replace(results, heldout=dataclasses.replace(results.heldout, logits=logits)))
    random = {data.examples.shown[place].index for c in data.components for place, _ in (*c.random, *c.near_misses)}
    assert random <= set(range(10))
    labels = np.asarray(results.heldout.labels)[:10]
    assert data.examples.accuracy == pytest.approx(np.mean(labels == logits[:10].argmax(1)))
    np.testing.assert_allclose(data.examples.label_rate, np.bincount(labels, minlength=3) / 10)


def test_headlines(make):
    """What the top examples are, by hand: the class, or two classes that they are undecided between, and a word."""
    results = make(heldout=300)
    texts = [(f"number {i}", "planted here" if i % 3 == 0 else "here") for i in range(300)]
    shown = report.Shown(mix=30)
    data = of(results, display=Texts(texts, ("first", "second")), shown=shown, class_names=("yes", "no", "maybe"))
    assert data.components[0].headline == "“yes” 100% · “planted” in the second 100%"
    assert data.components[1].headline == "“no” 100%"
    assert not data.components[1].tells_apart
    assert of(results, notes=["mine"] * 6).components[0].headline == "mine"
    logits = np.array(results.heldout.logits)
    undecided = np.flatnonzero(np.arange(300) % 3 == 1)  # where component 1 is large: either of two classes
    logits[undecided, 0] = logits[undecided, 1] + np.where(np.arange(len(undecided)) % 2, 0.1, -0.1)
    logits[np.arange(300) % 3 == 0, 1] = -5.0
    mixed = dataclasses.replace(results, heldout=dataclasses.replace(results.heldout, logits=logits))
    component = of(mixed, shown=shown, class_names=("yes", "no", "maybe")).components[1]
    assert component.tells_apart
    assert component.headline == "“yes” or “no” 100%"
    results.fit.coefficients[:, 5] = 0.0
    assert of(results).components[5].headline == "no example uses it"


def test_places_where_no_report_can_be(results, tmp_path):
    """Said before any work: no report is made that could not be written."""
    (tmp_path / "file").write_text("x")
    write = lambda path: report.write_report(path, results.decomposition, fit="not even looked at")  # noqa: E731
    with pytest.raises(IsADirectoryError, match=r"is a folder; expected the file to write, such as .*report\.html"):
        write(tmp_path)
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        write(tmp_path / "file" / "report.html")
    with pytest.raises(OSError, match=r"gs://bucket/report\.html is a URL"):
        write("gs://bucket/report.html")


def test_half_of_a_surrogate_pair_is_shown_as_a_replacement(results, tmp_path):
    broken = "a \ud800 b"
    page = report.write_report(
        tmp_path / "new" / "report.html",
        results.decomposition,
        results.heldout,
        results.fit,
        display=[broken] * 60,
        title=broken,
        notes=[broken] * 6,
        class_names=(broken, "b", "c"),
    )
    assert page.read_text(encoding="utf-8").count("a \ufffd b") > 10


def test_examples_without_coefficients(results):
    with pytest.raises(ValueError, match=r"pass fit=fit_coefficients\(decomposition, heldout\)"):
        report_data(results.decomposition, results.heldout)
    with pytest.raises(ValueError, match="fit without heldout"):
        report_data(results.decomposition, fit=results.fit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"format": "other"}, "this is not report data"),
        (lambda d: d | {"version": 99}, "version 99; this package reads version 5"),
        (lambda d: {k: v for k, v in d.items() if k != "map"}, "report has .*; expected the fields"),
        (lambda d: d | {"title": 3}, "report.title is int; expected str"),
        (lambda d: d | {"map": [[0.0]]}, r"report.map\[0\] has 1 entries; expected 2"),
    ],
)
def test_reading_checks_every_field(results, change, message):
    with pytest.raises(ValueError, match=message):
        ReportData.from_json(change(of(results).to_json()))


def test_segments_keep_their_names(results):
    data = of(results, display=Texts([("p", "h")] * 60, ("premise", "hypothesis")))
    assert data.examples.segment_names == ("premise", "hypothesis")
    assert data.examples.shown[0].text == ("p", "h")


def asked_and_moved(results):
    """Component 2 was asked for, and a move was measured on all but component 1."""
    settings = results.decomposition.settings | {"names": [[2, "licence"]]}
    measured, predicted = np.array([0.1, np.nan, 0.7, 0.2, 0.0, 0.3]), np.linspace(0.0, 0.5, 6)
    decomposition = dataclasses.replace(results.decomposition, settings=settings)
    return decomposition, Collateral({2: "licence"}, predicted, measured, 0.25, 32)


def test_named_components_and_who_moves(results):
    decomposition, collateral = asked_and_moved(results)
    data = report_data(decomposition, results.heldout, results.fit, collateral=collateral)
    assert [c.name for c in data.components] == [None, None, "licence", None, None, None]
    assert [c.moved.measured for c in data.components] == [0.1, None, 0.7, 0.2, 0.0, 0.3]
    assert data.components[5].moved.predicted == 0.5
    assert data.moved_all == 0.25
    read = ReportData.from_json(data.to_json())
    assert read.components[2].moved == data.components[2].moved
    assert read.components[2].name == "licence"
    plain = of(results)
    assert plain.moved_all is None
    assert all(c.moved is None and c.name is None for c in plain.components)


def test_collateral_of_something_else_is_refused(results):
    short = Collateral({}, np.zeros(4), np.zeros(4), 0.1, 32)
    with pytest.raises(ValueError, match="collateral has 4 components, but the decomposition has 6"):
        of(results, collateral=short)
    with pytest.raises(TypeError, match="expected a Collateral, from"):
        _check_collateral(np.zeros(6), 6)
