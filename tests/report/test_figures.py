"""Figures draw what they are given: read back from the figure's own artists."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from npeff_jax import report


def axes_of(figure):
    figure.canvas.draw()  # layout and drawing must raise nothing
    return figure.axes


def test_loss(results):
    (axes,) = axes_of(report.loss_figure({"a": results.decomposition.history, "b": results.decomposition.history}))
    assert len(axes.lines) == 2
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), results.decomposition.history.loss)


def test_coefficients_counts_every_positive_one(results):
    W = results.decomposition.coefficients
    (axes,) = axes_of(report.coefficient_figure(W))
    assert sum(bar.get_height() for bar in axes.patches) == (W > 0).sum()


def test_fidelity(results):
    left, right = axes_of(report.fidelity_figure(results.heldout))
    assert sum(bar.get_height() for bar in left.patches) == 60 == sum(bar.get_height() for bar in right.patches)


def test_collage_is_of_the_top_images(results):
    images = (np.arange(60)[:, None, None] * np.ones((1, 4, 4))).astype(np.uint8)
    W = results.fit.coefficients
    axes = axes_of(report.collage_figure(images, W, [1, 4], k=3))
    shown = [int(one.images[0].get_array().flat[0]) for one in axes]
    assert shown == [*np.argsort(-W[:, 1])[:3], *np.argsort(-W[:, 4])[:3]]


def test_energy_bars_add_up(results):
    axes = axes_of(report.energy_figure(results.decomposition, [0, 2]))
    assert len(axes) == 2
    for one in axes:
        assert sum(bar.get_width() for bar in one.patches) == pytest.approx(1)


def test_split_puts_matches_on_the_diagonal():
    order = np.random.default_rng(0).permutation(6)
    (axes, _) = axes_of(report.split_figure(np.eye(6)[order] * 0.9))
    np.testing.assert_allclose(np.diag(np.nan_to_num(axes.images[0].get_array().filled(0))), 0.9)


def test_similarity_and_decay(results):
    (axes,) = axes_of(report.similarity_figure([0, 5, 10], np.array([[0.1, 0.3], [0.5, 0.7], [1.0, 1.0]])))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.2, 0.6, 1.0])
    (axes,) = axes_of(report.decay_figure(results.decomposition.coefficients, results.fit.coefficients))
    assert all(line.get_ydata()[0] == 1 for line in axes.lines)
