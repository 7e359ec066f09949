"""A concept that is planted is found on held-out examples; one that is a coin is not."""

import numpy as np
import pytest
import scipy.stats

import npeff_jax as npeff
from npeff_jax.evaluation import tuning_evidence
from npeff_jax.evaluation._tuning_evidence import _p_values
from npeff_jax.factorization import Tuning
from npeff_jax.tasks import planted

STOP = npeff.Stopping(max_steps=30)


@pytest.fixture(scope="module")
def asked():
    made = planted(seed=3, n=120)
    rng = np.random.default_rng(0)
    train, held = np.arange(120) < 80, np.arange(120) >= 80
    marks = {"planted": (made.coefficients[:, 0] > 0) * 1.0, "coin": rng.integers(0, 2, 120) * 1.0}
    tunings = [Tuning(name, values[train]) for name, values in marks.items()]
    pefs = made.pefs.subset(np.flatnonzero(train))
    found = npeff.decompose(pefs, 4, tunings=tunings, stopping=STOP, progress=False)
    heldout_marks = {name: values[held] for name, values in marks.items()}
    return found, pefs, tunings, made.pefs.subset(np.flatnonzero(held)), heldout_marks


def test_present_and_absent(asked):
    told = tuning_evidence(*asked, progress=False)
    assert told.found == {"planted": True, "coin": False}
    found, _, _, heldout, marks = asked
    W = npeff.fit_coefficients(found, heldout).coefficients.astype(np.float64)
    yes = marks["planted"] > 0
    assert told.lift[0] == pytest.approx((W[yes, 0] ** 2).mean() / (W[:, 0] ** 2).mean())
    assert told.p_value[0] == pytest.approx(0.001)
    assert told.interval[0, 0] > 0 > told.interval[1, 0]
    assert told.auc[0] > 0.95
    assert told.null.shape == (9, 2)
    assert told.verdict("planted").startswith("'planted' found")
    assert "'coin' not found" in repr(told)
    assert "not found" in told._repr_html_()
    with pytest.raises(KeyError, match="was not asked for"):
        told.verdict("other")


def test_what_is_refused(asked):
    found, pefs, tunings, heldout, marks = asked
    with pytest.raises(ValueError, match="made with other tunings"):
        tuning_evidence(found, pefs, tunings[:1], heldout, marks)
    with pytest.raises(ValueError, match="heldout_marks has no 'coin'"):
        tuning_evidence(found, pefs, tunings, heldout, {"planted": marks["planted"]})
    with pytest.raises(ValueError, match="no held-out example of 'planted' is marked zero"):
        tuning_evidence(found, pefs, tunings, heldout, marks | {"planted": np.ones(40)})


def test_the_test_holds_its_level():
    """Marks that are coins: p-values are uniform, and few concepts are found. Scores are heavy-tailed, with ties."""
    rng = np.random.default_rng(5)
    energy = np.maximum(rng.standard_t(2, size=(60, 40)), 0) ** 2
    p = _p_values(energy, rng.integers(0, 2, (60, 40)).astype(float), rng)
    assert np.sum(p <= 0.05) <= 6  # of 40, 2 expected: above 6 with a probability of 0.003
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
