"""Choosing the number of components: the planted one is recommended, and what is reported is what runs give."""

import numpy as np
import pytest

import npeff_jax as npeff

TASK = npeff.tasks.planted(seed=1, n=160, m=60, r=6)


def test_the_planted_number_is_recommended():
    found = npeff.scan(TASK.pefs, [3, 12, 6, 6], progress=False)
    assert found.n_components.tolist() == [3, 6, 12]
    assert found.suggested == 6
    assert found.found_again[1] == 1.0
    assert found.heldout_loss[1] < 0.01 < 0.1 < found.heldout_loss[0]
    assert found.advice.startswith("6 components: 100% of them are found again")


def test_losses_are_those_of_single_runs():
    train, heldout = TASK.pefs.subset(np.arange(120)), TASK.pefs.subset(np.arange(120, 160))
    found = npeff.scan(train, [4], heldout=heldout, seed=7, n_seeds=3, progress=False)
    runs = [npeff.decompose(train, 4, seed=seed, progress=False) for seed in (7, 8, 9)]
    assert found.loss[0] == pytest.approx(np.median([run.history.loss[-1] for run in runs]), rel=1e-6)
    fits = [npeff.fit_coefficients(run, heldout).loss for run in runs]
    assert found.heldout_loss[0] == pytest.approx(np.median(fits), rel=1e-6)
    again = np.mean(npeff.stability(runs).matched >= 0.7)
    assert found.found_again[0] == pytest.approx(again)


def test_shows_itself():
    found = npeff.evaluation.Scan(
        n_components=np.array([2, 4, 8]),
        loss=np.array([0.5, 0.2, 0.1]),
        heldout_loss=np.array([0.6, 0.3, 0.25]),
        found_again=np.array([1.0, 0.9, 0.4]),
        seconds=np.array([1.0, 2.0, 3.0]),
        n_heldout=10,
        n_seeds=2,
    )
    assert found.suggested == 4  # eight components gain, but other seeds do not find them
    assert "found again to less than 80%" in found.advice
    assert max(map(len, repr(found).splitlines()[:-1])) <= 80
    assert "<table" in found._repr_html_()
    left, right = found.figure().axes
    assert left.lines[1].get_ydata().tolist() == [0.6, 0.3, 0.25]
    assert right.lines[0].get_ydata().tolist() == [1.0, 0.9, 0.4]


@pytest.mark.parametrize(
    ("numbers", "options", "words"),
    [([], {}, "expected numbers"), ([0, 3], {}, "expected numbers"), ([2], {"n_seeds": 1}, "two or more")],
)
def test_refused(numbers, options, words):
    with pytest.raises(ValueError, match=words):
        npeff.scan(TASK.pefs, numbers, progress=False, **options)
