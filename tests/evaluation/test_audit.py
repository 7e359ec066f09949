"""The audit: planted components pass, random directions and permuted coefficients fail, thresholds by hand."""

import dataclasses
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.evaluation import Rules, Thresholds, _audit_checks
from npeff_jax.evaluation._audit_checks import adjusted

pytestmark = pytest.mark.fast

BLOCKS, FEATURES = 24, 3


def logits_fn(params, example):
    """A binary model of disjoint sub-networks; an example's gate opens one of them."""
    score = jnp.einsum("b,f,bf->", example["gate"], example["x"], params["w"])
    return jnp.stack([score, jnp.zeros_like(score)])


def make_examples(n, seed):
    rng = np.random.default_rng(seed)
    block = rng.permutation(np.arange(n) % BLOCKS)
    gate = np.where(np.eye(BLOCKS, dtype=bool)[block], 1.0, 0.03).astype(np.float32)
    # In a block every example has nearly the same features, so that its Fishers have rank one and one direction.
    x = np.random.default_rng(99).normal(size=(BLOCKS, FEATURES))[block] + 0.05 * rng.normal(size=(n, FEATURES))
    return {"x": x.astype(np.float32), "gate": gate}, block


@pytest.fixture(scope="module")
def world():
    """A model whose components are known, decomposed on one half of its examples and fitted to the other."""
    params = {"w": jnp.asarray(np.random.default_rng(7).normal(size=(BLOCKS, FEATURES)) * 0.3, jnp.float32)}
    model = npeff.Model(logits_fn, params)
    found, held = (make_examples(360, seed) for seed in (0, 1))
    pefs, heldout = (npeff.compute_pefs(model, x, npeff.LowRank(), progress=False) for x, _ in (found, held))
    decomposition = npeff.decompose(pefs, BLOCKS, seed=0, progress=False)
    return model, decomposition, pefs, heldout, *held


def audited(world, decomposition, fit, **options):
    model, _, pefs, heldout, examples, block = world
    options = {"readable": [f"uses part{b}" for b in block], "n_top": 8, "progress": False, "n_seeds": 1} | options
    return npeff.audit(model, decomposition, heldout, examples, fit=fit, decomposed=pefs, **options)


@pytest.fixture(scope="module")
def planted(world):
    _, decomposition, _, heldout, _, _ = world
    return audited(world, decomposition, npeff.fit_coefficients(decomposition, heldout))


def test_planted_components_pass(planted):
    assert planted.passed.mean() >= 0.9, str(planted)
    for check in planted.checks:
        assert check.passed.mean() >= 0.9, check.name
    assert planted.verdict(int(np.flatnonzero(planted.passed)[0])) == "passes all 5"
    read = planted["readable"]
    assert np.median(read.statistic) > 0.99
    assert any("part" in note for note in read.notes)


def test_random_directions_fail(world):
    """Directions anywhere in the space, with their own coefficients. In a world of 24 dimensions that matter some
    are near a planted one by luck, so single checks may pass; all five do not.
    """
    _, decomposition, _, heldout, _, _ = world
    vectors = np.random.default_rng(3).normal(size=(BLOCKS, len(decomposition.parameter_indices))).astype(np.float32)
    drawn = dataclasses.replace(decomposition, pseudo_fishers=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    found = audited(world, drawn, npeff.fit_coefficients(drawn, heldout))
    assert not found.passed.any(), str(found)
    assert found["found again"].passed.mean() <= 0.5
    assert found["selective"].passed.mean() <= 0.5


def test_permuted_coefficients_fail(world):
    """Right directions, but other examples stand for them: no check that looks at the examples passes by luck."""
    _, decomposition, _, heldout, _, _ = world
    fit = npeff.fit_coefficients(decomposition, heldout)
    permuted = np.random.default_rng(4).permuted(np.asarray(fit.coefficients), axis=0)
    found = audited(world, decomposition, dataclasses.replace(fit, coefficients=permuted))
    assert not found.passed.any(), str(found)
    for name in ("selective", "found again", "readable"):
        assert found[name].passed.mean() <= 0.1, name


def test_levels_hold_under_the_null():
    """Random sets are read, random moves are selective and random coefficients found again in no more than 5%."""
    rng = np.random.default_rng(0)
    n, c = 120, 400
    rules = Rules.of(n, {f"p{k}": rng.random(n) < 0.3 for k in range(40)})
    top = np.zeros((c, n), bool)
    for row in top:
        row[rng.choice(n, 10, replace=False)] = True
    read = _audit_checks.readable(rules, top, seed=1)
    by_chance = np.mean(read.statistic > read.null)
    assert 0.01 < by_chance < 0.12
    assert read.passed.mean() <= 0.02  # adjusted for 400 components
    ratios = rng.lognormal(size=(c, 40))
    chosen = _audit_checks.selective(rng.lognormal(size=c), ratios)
    assert chosen.passed.mean() <= 0.06
    W = rng.exponential(size=(60, 12))
    again = _audit_checks.found_again(W, {"other": rng.exponential(size=(60, 12))}, np.arange(12))
    assert not again.passed.any()
    assert (again.null > 0.5).all()  # dense coefficients are alike by chance, which 0.7 alone would not show


def test_selective_by_hand():
    others = np.tile(np.arange(1.0, 40.0), (3, 1))
    found = _audit_checks.selective(np.array([39.5, 38.5, 3.0]), others)
    assert found.at_least[0] == np.nextafter(38.0, np.inf)  # with a place of its own, 2 of 40 are above
    assert found.passed.tolist() == [True, True, False]
    np.testing.assert_allclose(found.p_value, adjusted(np.array([1, 2, 38]) / 40))
    few = _audit_checks.selective(np.ones(3), others[:, :10])
    assert few.not_applicable
    assert not few.passed.any()
    assert few.result(0) == "not applicable"


def test_held_out_by_hand():
    few = np.zeros((40, 1))
    few[:2] = 1.0
    even = np.ones((40, 1))
    for decomposed, coefficients, ratio in ((few, few, 1.0), (few, even, 0.05), (even, few, 20.0)):
        found = _audit_checks.held_out(decomposed, coefficients)
        np.testing.assert_allclose(found.statistic, ratio)
        assert found.passed.tolist() == [ratio == 1.0]
    assert not _audit_checks.held_out(few, np.zeros((40, 1))).passed.any()  # nothing there on held-out examples


def test_predicted_by_hand():
    expected = np.ones((1, 2, 6)) * np.array([4, 4, 1, 1, 1, 1.0])
    top = np.array([[True, True, False, False, False, False]])
    measured = expected * np.array([1.8, 0.2])[:, None]  # odd orders: the mean over signs is as predicted
    found = _audit_checks.predicted(measured, expected, top)
    np.testing.assert_allclose(found.statistic, 1.0)
    assert found.passed.all()
    assert not _audit_checks.predicted(measured * 3.1, expected, top).passed.any()
    assert not _audit_checks.predicted(measured / 3.1, expected, top).passed.any()


def test_adjusted_is_benjamini_and_hochberg():
    p = np.array([0.01, 0.04, 0.03, 0.5])
    order = np.argsort(p)
    raw = p[order] * 4 / np.arange(1, 5)
    expected = np.minimum.accumulate(raw[::-1])[::-1]
    np.testing.assert_allclose(adjusted(p)[order], expected)


def test_a_rule_is_scored_on_the_other_half():
    """Names that are each one example's own would tell any set apart on the half that chooses them."""
    n = 40
    own = {f"is {i} or {i + 1}": np.isin(np.arange(n), [i, i + 1]) for i in range(0, n, 2)}
    rules = Rules.of(n, own | {"early": np.arange(n) < 10})
    top = np.zeros((2, n), bool)
    top[0, :10] = True
    top[1, [3, 8, 14, 20, 21, 30, 33, 38]] = True
    halves = np.arange(n)[None] % 2 == np.zeros((2, 1))
    scores, texts = rules.read(top, halves)
    assert scores[0] == 1.0
    assert texts[0] == "early"
    assert scores[1] < 0.7


def test_the_best_rule_is_that_of_trying_all():
    """Greedily: the best property or absence first, then the best partner for it, by exact fractions."""
    rng = np.random.default_rng(3)
    n, f, s = 30, 7, 150  # more sets than are read at once
    has = rng.random((n, f)) < 0.4
    top = np.array([rng.permutation(n) < rng.integers(2, 9) for _ in range(s)])
    rules = Rules(tuple("abcdefg"), has)
    _, texts = rules.read(top, top | (rng.random((s, n)) < 0.5))

    def value(one, own):
        return Fraction(int(one[own].sum()), int(own.sum())) - Fraction(int(one[~own].sum()), int((~own).sum()))

    def literal(text):
        return ~has[:, "abcdefg".index(text[4:])] if text.startswith("not ") else has[:, "abcdefg".index(text)]

    literals = [*has.T, *~has.T]
    pairs = 0
    for own, text in zip(top, texts, strict=True):
        joint = " or " if " or " in text else " and "
        parts = [literal(part) for part in text.split(joint)]
        assert value(parts[0], own) == max(value(one, own) for one in literals)
        best = max(value(rule, own) for one in literals for rule in (parts[0] & one, parts[0] | one))
        assert value(parts[0] | parts[-1] if joint == " or " else parts[0] & parts[-1], own) == best
        pairs += len(parts) == 2
    assert 0 < pairs < s


def test_rules_of_what_examples_look_like():
    texts = [("red cat", "x" * i) for i in range(6)] + [("blue cat", "") for _ in range(6)]
    rules = Rules.of(12, texts, logits=np.eye(3)[np.arange(12) % 3], labels=np.arange(12) // 6, class_names="abc")
    named = dict(zip(rules.names, rules.has.T, strict=True))
    assert "label a" in named  # which is also who has "red", said once
    assert "predicted b" in named
    assert not any("cat" in name for name in named)
    assert any(name.startswith("length of part 2") for name in named)
    images = np.zeros((8, 8, 8))
    images[:4, :2, :2] = 1.0
    assert any("row 1, column 1" in name for name in Rules.of(8, images).names)
    with pytest.raises(ValueError, match="expected 5"):
        Rules.of(5, images)


def test_misuse_is_refused(world, planted):
    model, decomposition, pefs, heldout, _examples, _ = world
    fit = npeff.fit_coefficients(decomposition, heldout)
    with pytest.raises(ValueError, match="an audit needs others"):
        npeff.audit(model, decomposition, pefs, make_examples(360, 0)[0], fit=decomposition, progress=False)
    with pytest.raises(ValueError, match="expected \\(360, r\\)"):
        audited(world, decomposition, fit, runs={"other": np.ones((5, 2))})
    other = npeff.selectivity(model, decomposition, pefs, make_examples(360, 0)[0], fit=decomposition, progress=False)
    with pytest.raises(ValueError, match="pass it without components"):
        audited(world, decomposition, fit, table=other, components=[0, 1])
    with pytest.raises(ValueError, match=r"prediction=0\.5"):
        Thresholds(prediction=0.5)
    with pytest.raises(ValueError, match="component 99 was not audited"):
        planted.verdict(99)
    assert "components pass every check" in str(planted)
    assert "<table" in planted._repr_html_()


def test_a_report_carries_the_audit(world, planted):
    _, decomposition, _, heldout, _, _ = world
    fit = npeff.fit_coefficients(decomposition, heldout)
    data = npeff.report.report_data(decomposition, heldout, fit, audit=planted)
    read = npeff.report.ReportData.from_json(data.to_json())
    card = read.components[3].audit
    assert card.passed == bool(planted.passed[3])
    assert card.verdict == planted.verdict(3)
    assert [check.name for check in card.checks] == [check.name for check in planted.checks]
    assert card.checks[0].result == planted.checks[0].result(3)
    assert card.checks[2].at_most == 2.0
    assert card.checks[0].at_most is None
    assert npeff.report.report_data(decomposition, heldout, fit).components[3].audit is None
    other = dataclasses.replace(planted, components=planted.components + 5)
    with pytest.raises(ValueError, match="audit has component 28"):
        npeff.report.report_data(decomposition, heldout, fit, audit=other)
