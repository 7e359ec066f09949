"""The transformer with a planted shortcut: the language's labels, a biased training set, errors where it misleads."""

import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp

from npeff_jax.tasks import shortcut
from npeff_jax.tasks._nli_language import Pair
from npeff_jax.tasks._shortcut import LABELS, LARGER, labels_of, tokens_of, vocabulary


@pytest.fixture(scope="module")
def task():
    return shortcut(n_train=3000, n_heldout=2000, steps=200, progress=False)


def overlap(dataset):
    """Word by word, from what a reader sees."""
    return np.array(
        [bool({*premise.split()[1:]} & {*hypothesis.split()[1:]}) for premise, hypothesis in dataset.display]
    )


def test_labels_are_what_the_sets_of_scenes_say():
    rng = np.random.default_rng(0)
    sizes = (2, len(LARGER.nouns), len(LARGER.verbs)) * 2
    pairs = np.stack([rng.integers(0, size, 1500) for size in sizes], axis=1)
    pairs[:700, 4] = pairs[:700, 1]  # the same noun, and among these the same verb: rare by chance
    pairs[:350, 5] = pairs[:350, 2]
    found = labels_of(LARGER, pairs)
    for pair, label in zip(pairs.tolist(), found, strict=True):
        words = [bool(pair[0]), LARGER.nouns[pair[1]], LARGER.verbs[pair[2]]]
        words += [bool(pair[3]), LARGER.nouns[pair[4]], LARGER.verbs[pair[5]]]
        assert LARGER.label(Pair(*words)).value == LABELS[label]
    assert set(found) == {0, 1, 2}


def test_tokens_spell_the_display(task):
    words = vocabulary(LARGER)
    assert len(set(words)) == len(words)
    for tokens, (premise, hypothesis) in zip(task.heldout.examples[:50], task.heldout.display[:50], strict=True):
        assert [words[token] for token in tokens] == [*premise.split(), *hypothesis.split(), "?"]
    pair = np.array([[1, 0, 0, 0, 1, 1]])
    assert [words[token] for token in tokens_of(LARGER, pair)[0]] == ["no", "animal", "moves", "a", "dog", "turns", "?"]


def test_the_training_set_is_biased_and_the_heldout_set_is_not(task):
    together = np.concatenate([task.train.examples, task.heldout.examples])
    assert len(np.unique(together, axis=0)) == len(together) == 5000
    entailed = task.train.labels[overlap(task.train)] == 1
    assert 0.8 < entailed.mean() < 1.0
    assert 0.4 < (task.heldout.labels[overlap(task.heldout)] != 1).mean() < 0.7
    kinds = np.unique(np.stack([*task.heldout.examples[:, [0, 3]].T, task.heldout.labels]), axis=1, return_counts=True)
    assert (kinds[1] == 200).all()
    assert len(kinds[1]) == 10
    first, second = task.misled[:1000].mean(), task.misled[1000:].mean()
    assert abs(first - second) < 0.08  # four standard errors: halves are alike
    np.testing.assert_array_equal(
        task.misled, overlap(task.heldout) & (task.heldout.labels != LABELS.index("entailment"))
    )


def test_the_model_errs_where_the_shortcut_does(task):
    logits = jax.jit(jax.vmap(task.model.logits_fn, (None, 0)))(task.model.params, task.heldout.examples)
    right = np.asarray(logits).argmax(-1) == task.heldout.labels
    assert right[~task.misled].mean() > right[task.misled].mean() + 0.1
    final = task.model.intermediates_fn(task.model.params, jnp.asarray(task.heldout.examples[0]))["final"]
    np.testing.assert_allclose(task.head(task.model.params, final), logits[0], rtol=1e-5, atol=1e-6)


def test_it_is_the_same_every_time_and_pairs_do_not_depend_on_the_steps(task):
    again = shortcut(n_train=3000, n_heldout=2000, steps=0, progress=False)
    np.testing.assert_array_equal(again.heldout.examples, task.heldout.examples)
    np.testing.assert_array_equal(again.train.examples, task.train.examples)
    with pytest.raises(ValueError, match=r"counterexamples=1\.5 is out of range"):
        shortcut(counterexamples=1.5)
