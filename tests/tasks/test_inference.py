"""The compiled program against the language's definition by sets of scenes."""

import jax
import numpy as np
import pytest

pytest.importorskip("tracr")
from npeff_jax.tasks import inference
from npeff_jax.tasks._nli import draw_pairs
from npeff_jax.tasks._nli_language import SMALL, Label, Pair
from npeff_jax.tasks._nli_program import REASONS


@pytest.fixture(scope="module")
def task():
    return inference(n_examples=300)


def test_labels_follow_from_the_scenes():
    assert SMALL.label(Pair(False, "dog", "runs", False, "animal", "moves")) is Label.ENTAILMENT
    assert SMALL.label(Pair(False, "animal", "runs", False, "dog", "runs")) is Label.NEUTRAL
    assert SMALL.label(Pair(False, "dog", "runs", True, "animal", "moves")) is Label.CONTRADICTION
    assert SMALL.label(Pair(True, "animal", "moves", True, "dog", "runs")) is Label.ENTAILMENT
    assert SMALL.label(Pair(True, "animal", "moves", False, "dog", "runs")) is Label.CONTRADICTION


def test_the_program_computes_the_labels(task):
    logits = jax.jit(jax.vmap(task.model.logits_fn, (None, 0)))(task.model.params, task.examples)
    np.testing.assert_array_equal(np.argmax(logits, axis=1), task.labels)
    assert set(np.unique(task.labels)) == {0, 1, 2}


def test_each_answer_has_one_reason(task):
    names = np.array(task.model.label_names)[task.labels]
    for label in (Label.ENTAILMENT, Label.CONTRADICTION):
        reasons = [task.concepts[name] for name, (_, _, answer) in REASONS.items() if answer is label]
        np.testing.assert_array_equal(np.sum(reasons, axis=0), names == label.value)


def test_examples_are_even_and_different():
    pairs = draw_pairs(SMALL, 300, seed=1)
    assert len(set(pairs)) == 300
    kinds = [(pair.premise_negated, pair.hypothesis_negated, SMALL.label(pair)) for pair in pairs]
    assert {kinds.count(kind) for kind in set(kinds)} == {30}
    with pytest.raises(ValueError, match="wants 500 pairs of each kind"):
        draw_pairs(SMALL, 5000, seed=1)
