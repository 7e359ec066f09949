"""The digits network: what is promised about it."""

import jax
import numpy as np
import pytest

import npeff_jax as npeff

pytest.importorskip("flax")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def task():
    return npeff.tasks.digits(steps=60, progress=False)


def test_the_sets_are_disjoint_and_complete(task):
    assert task.train_images.shape == (1200, 8, 8, 1)
    assert task.heldout_images.shape == (597, 8, 8, 1)
    assert len(task.train_labels) == 1200
    assert len(task.heldout_labels) == 597
    assert task.train_images.min() == 0
    assert task.train_images.max() == 1


def test_the_network_has_learned_and_its_accuracy_is_its_models(task):
    logits = jax.vmap(task.model.logits_fn, (None, 0))(task.model.params, task.heldout_images)
    accuracy = np.mean(np.asarray(logits).argmax(-1) == task.heldout_labels)
    assert accuracy == pytest.approx(task.heldout_accuracy, abs=1 / 597)
    assert accuracy > 0.5  # ten classes; the full 300 steps reach 0.9
    assert task.model.n_classes(task.train_images[0]) == 10


def test_the_same_seed_trains_the_same_network(task):
    again = npeff.tasks.digits(steps=60, progress=False)
    assert again.model.fingerprint == task.model.fingerprint


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="n_train=1797 is out of range; there are 1797 images"):
        npeff.tasks.digits(n_train=1797)
