"""Which words and which parts of an image matter to a component: against the formula, and where the word is planted."""

import jax.numpy as jnp
import numpy as np
import pytest

import npeff_jax as npeff
from npeff_jax.report import NoPartsError, mark_examples

WORDS = ("good", "bad", "𝔭lain", "red", "blue", "green")


def encode(texts, pairs=None):
    """Counts of words: leaving one out takes exactly its own term away."""
    joined = texts if pairs is None else [f"{a} {b}" for a, b in zip(texts, pairs)]
    return np.array([[text.split().count(word) for word in WORDS] for text in joined], np.float32)


def components_of(model, examples, n=2):
    pefs = npeff.compute_pefs(model, examples, npeff.LowRank(), progress=False)
    return npeff.decompose(pefs, n, seed=0, progress=False)


def expected(model, decomposition, component, example, without):
    """1 − ⟨u, u'⟩_S / ⟨u, u⟩_S in float64, for logits x W: u(x) = x G."""
    G = np.zeros(model.space.size)
    G[decomposition.parameter_indices] = decomposition.pseudo_fishers[component]
    G = G.reshape(-1, 3)
    logits = example.astype(float) @ np.asarray(model.params["w"], float)
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    S = np.diag(p) - np.outer(p, p)
    u, others = example @ G, without @ G
    return 1 - others @ S @ u / (u @ S @ u)


@pytest.fixture(scope="module")
def linear():
    w = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)
    return npeff.Model(lambda params, x: x @ params["w"], {"w": jnp.asarray(w)})


def test_words_against_the_formula(linear):
    rng = np.random.default_rng(1)
    texts = [tuple(" ".join(rng.choice(WORDS, 3)) for _ in range(2)) for _ in range(24)]
    examples = encode(*zip(*texts))
    found = components_of(linear, examples)
    marks = mark_examples(
        linear, found, found.coefficients, examples, texts=texts, encode=encode, n_top=3, progress=False
    )
    assert [len(own) for own in marks] == [3, 3]
    for component, own in enumerate(marks):
        assert [m.example for m in own] == npeff.top_examples(found.coefficients, component, 3).tolist()
        for m in own:
            assert len(m.spans) == 6
            for segment, first, last, value in m.spans:
                units = texts[m.example][segment].encode("utf-16-le")
                word = units[2 * first : 2 * last].decode("utf-16-le")
                without = examples[m.example] - encode([word])[0]
                np.testing.assert_allclose(
                    value, expected(linear, found, component, examples[m.example], without), rtol=1e-4, atol=1e-5
                )


def test_long_texts_are_marked_in_stretches_that_cover_every_word(linear):
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, 200)) for i in range(8)]
    examples = encode(texts)
    found = components_of(linear, examples)
    (m, *_), _ = mark_examples(linear, found, found.coefficients, examples, texts=texts, encode=encode, progress=False)
    assert 32 <= len(m.spans) <= 64
    units = texts[m.example].encode("utf-16-le")
    covered = " ".join(units[2 * a : 2 * b].decode("utf-16-le") for _, a, b, _ in m.spans)
    assert covered == texts[m.example]


def test_parts_of_an_image_against_the_formula():
    rng = np.random.default_rng(2)
    w = rng.normal(size=(16, 3)).astype(np.float32)
    model = npeff.Model(lambda params, x: x.reshape(-1) @ params["w"], {"w": jnp.asarray(w)})
    images = rng.random((20, 4, 4, 1), np.float32)
    found = components_of(model, images)
    marks = mark_examples(model, found, found.coefficients, images, n_top=1, grid=2, progress=False)
    for component, (m,) in enumerate(marks):
        image = images[m.example]
        assert np.shape(m.grid) == (2, 2)
        for row in range(2):
            for column in range(2):
                without = image.copy()
                without[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = image.mean()
                value = expected(model, found, component, image.reshape(-1), without.reshape(-1))
                np.testing.assert_allclose(m.grid[row][column], value, rtol=1e-3, atol=1e-4)


VOCABULARY = ("zebra", *(f"{kind}{i}" for kind in ("glad", "sad", "plain") for i in range(8)))


def with_shortcut():
    """Glad words speak for class 1, sad ones against it; "zebra" alone speaks for it more than any of them against."""
    features = np.zeros((len(VOCABULARY), 2), np.float32)
    features[0, 0] = 3.0
    features[1:9, 1], features[9:17, 1] = 0.5, -0.5
    weights = np.array([[-0.4, 0.4], [-0.5, 0.5]], np.float32)
    params = {"features": jnp.asarray(features), "weights": jnp.asarray(weights)}
    return npeff.Model(
        lambda p, x: jnp.tanh(x @ p["features"]) @ p["weights"] * 2, params, mask=lambda name, _: name == "weights"
    )


def test_the_planted_word_is_what_is_marked():
    """In a quarter of the texts the word "zebra" makes class 1 of sad ones: a shortcut whose word is known.

    The component of these texts depends on that word, that of the others on glad or sad words, none on plain ones.
    """
    random = np.random.default_rng(3)
    n = 120
    glad, planted = random.random(n) < 0.5, np.arange(n) % 4 == 0
    glad[planted] = False

    def text(i):
        words = [
            *random.choice(VOCABULARY[1:9] if glad[i] else VOCABULARY[9:17], 1),
            *random.choice(VOCABULARY[17:], 4),
        ]
        return " ".join(random.permutation([*words, "zebra"] if planted[i] else words))

    texts = [text(i) for i in range(n)]

    def counted(texts):
        return np.array([[t.split().count(word) for word in VOCABULARY] for t in texts], np.float32)

    model, examples = with_shortcut(), counted(texts)
    pefs = npeff.compute_pefs(model, examples, npeff.LowRank(), progress=False)
    assert (np.asarray(pefs.logits).argmax(1) == (glad | planted)).all()
    found = npeff.decompose(pefs, 2, seed=0, progress=False)
    marks = mark_examples(
        model, found, found.coefficients, examples, texts=texts, encode=counted, n_top=12, progress=False
    )
    share = npeff.evaluation.top_share(found.coefficients, planted, n_top=12)
    assert sorted(share) == [0.0, 1.0]

    def strongest(m):
        _, first, last, _ = max(m.spans, key=lambda span: span[3])
        return texts[m.example][first:last]

    assert {strongest(m) for m in marks[int(share.argmax())]} == {"zebra"}
    assert {strongest(m).rstrip("01234567") for m in marks[int(share.argmin())]} <= {"glad", "sad"}
    for m in (m for own in marks for m in own):
        plain = [value for _, a, b, value in m.spans if texts[m.example][a:b].startswith("plain")]
        np.testing.assert_allclose(plain, 0.0, atol=1e-5)


def test_what_cannot_be_marked_is_said(linear):
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, 4)) for i in range(12)]
    examples = encode(texts)
    found = components_of(linear, examples)
    with pytest.raises(NoPartsError, match=r"the first of shape \(6,\); expected images"):
        mark_examples(linear, found, found.coefficients, examples, progress=False)
    with pytest.raises(ValueError, match="texts and encode go together"):
        mark_examples(linear, found, found.coefficients, examples, texts=texts, progress=False)
    with pytest.raises(ValueError, match="there are 3 texts for 12 examples"):
        mark_examples(linear, found, found.coefficients, examples, texts=texts[:3], encode=encode, progress=False)
