"""Causal language models: choices and drawn answers against enumeration, loops in PyTorch, and each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_checkpoints import shallow, torch_model

import npeff_jax as npeff
from npeff_jax.models import Categorical, Generated, Generation, LanguageModel, generate

V, T = 4, 3
STOP = 0


def recurrent():
    """A language model of four words that looks at all words before: enough to have answers that depend on answers."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}

    def after(params, ids, shown, places):
        words = params["words"][ids] * (shown != 0)[:, None]
        return (jnp.tanh(jnp.cumsum(words, axis=0)) @ params["out"])[places]

    return LanguageModel(after, params, stop=(STOP,))


SHAPES = {"words": (V, 3), "out": (3, V)}
PROMPTS = {
    "input_ids": np.array([[1, 2, 0], [3, 0, 0]], np.int32),
    "attention_mask": np.array([[1, 1, 0], [1, 0, 0]], np.int32),
}


def sequences(prefix=()):
    """All answers of at most T words: those that end with the stop word, and those that are cut."""
    if len(prefix) == T or (prefix and prefix[-1] == STOP):
        return [prefix]
    return [answer for word in range(V) for answer in sequences((*prefix, word))]


def enumerated(model, prompt, temperature=1.0):
    """Log-probabilities of all answers, and their gradients, in float64 by a loop over their words."""
    words, out = (np.asarray(model.params[name], np.float64) for name in SHAPES)

    values, rows = [], []
    for answer in sequences():
        total, d_words, d_out, text = 0.0, np.zeros_like(words), np.zeros_like(out), list(prompt)
        for word in answer:
            hidden = np.tanh(words[text].sum(axis=0))
            logits = hidden @ out / temperature
            log_p = logits - np.log(np.exp(logits).sum())
            change = (np.eye(V)[word] - np.exp(log_p)) / temperature
            d_out += np.outer(hidden, change)
            np.add.at(d_words, text, out @ change * (1 - hidden**2))
            total += log_p[word]
            text.append(word)
        values.append(total)
        rows.append(np.concatenate([d_out.ravel(), d_words.ravel()]))
    return np.array(values), np.array(rows)


@pytest.fixture(scope="module")
def drawn():
    """Many answers at a temperature, and all that there are."""
    model = recurrent()
    examples = generate(model, PROMPTS, Generation(n_answers=4096, max_tokens=T, temperature=0.7))
    return model, examples, enumerated(model, (1, 2), 0.7)


def rows_of(model, examples, i, answers):
    """Gradient rows of example i's answers in float64, not divided by the square root of their number."""
    one = {name: array[i] for name, array in examples.items()}
    one |= {name: one[name][answers] for name in ("answer_ids", "answer_length")}
    pef = npeff.pef_rows(model.logits_fn, model.params, one, npeff.LowRank(npeff.RowBasis.FACTOR), output=model.output)
    joined = np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in pef.leaves], axis=1)
    return joined * float(pef.scale) * len(answers) ** 0.5


def test_drawn_answers_have_the_models_probabilities(drawn):
    model, examples, (log_p, _) = drawn
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
    for i, expected in ((0, log_p), (1, enumerated(model, (3,), 0.7)[0])):
        answers = [tuple(ids[:length]) for ids, length in zip(examples["answer_ids"][i], examples["answer_length"][i])]
        counts = np.array([answers.count(answer) for answer in sequences()])
        assert counts.sum() == 4096  # nothing else was written
        p = np.exp(expected)
        assert np.abs(counts - 4096 * p).max() < 4 * np.sqrt(4096 * p).max()
        chi2 = np.sum((counts - 4096 * p) ** 2 / (4096 * p))
        assert chi2 < len(p) + 5 * np.sqrt(2 * len(p))


def test_a_logit_is_the_log_probability_of_the_whole_answer(drawn):
    model, examples, (log_p, _) = drawn
    few = {n: (a[:, :16] if n.startswith("answer") else a) for n, a in examples.items()}
    logits = jax.jit(jax.vmap(model.generated().logits_fn, (None, 0)))(model.params, few)
    answers = [tuple(ids[:length]) for ids, length in zip(few["answer_ids"][0], few["answer_length"][0])]
    np.testing.assert_allclose(logits[0], log_p[[sequences().index(answer) for answer in answers]], rtol=1e-5)


def test_the_sampled_fisher_is_unbiased_and_its_error_falls_with_the_root_of_the_draws(drawn):
    model, examples, (log_p, scores) = drawn
    exact = (scores.T * np.exp(log_p)) @ scores
    generated, parts = model.generated(), np.arange(4096).reshape(8, -1)  # work grows with the square of a part
    rows = np.concatenate([rows_of(generated, examples, 0, part) for part in parts])
    errors = {}
    for S in (4, 16, 64, 256):
        estimates = [part.T @ part / S for part in rows.reshape(-1, S, rows.shape[1])]
        errors[S] = np.sqrt(np.mean([np.sum((estimate - exact) ** 2) for estimate in estimates]))
    norm = np.linalg.norm(exact)
    # Each draw's own outer product minus F: its mean square is the variance, which says all other errors.
    spread = np.sqrt(np.exp(log_p) @ [np.sum((np.outer(s, s) - exact) ** 2) for s in scores])
    for S, error in errors.items():
        assert error == pytest.approx(spread / S**0.5, rel=0.25), (S, error / norm)
    assert np.linalg.norm(rows.T @ rows / 4096 - exact) < 3 * spread / 64  # the mean of all, within its error
    assert abs(np.trace(rows.T @ rows) / 4096 / np.trace(exact) - 1) < 0.05


def test_a_pass_per_logit_gives_the_same_rows_and_less_work(drawn):
    model, examples, _ = drawn
    few = {n: (a[:, :5] if n.startswith("answer") else a) for n, a in examples.items()}
    generated = model.generated()
    plain = dataclasses.replace(generated, outcome_fn=None)
    for representation in (npeff.LowRank(), npeff.Diagonal(), npeff.Sampled(3), npeff.LowRank(max_rows=2, sketch=4)):
        own, other = (npeff.compute_pefs(m, few, representation, progress=False) for m in (generated, plain))
        np.testing.assert_allclose(own.norms, other.norms, rtol=2e-5)
        np.testing.assert_allclose(own.logits, other.logits, rtol=1e-5)
        if representation == npeff.LowRank():
            a, b = (pefs.to_scipy().toarray() for pefs in (own, other))
            np.testing.assert_allclose(a.T @ a, b.T @ b, atol=1e-5)


def test_draws_depend_on_the_number_of_the_prompt_and_not_on_the_batch():
    model = recurrent()
    five = {name: np.concatenate([array, array, array[:1]]) for name, array in PROMPTS.items()}
    settings = Generation(n_answers=6, max_tokens=T, seed=3)
    whole = generate(model, five, settings)
    parts = generate(model, five, settings, batch_size=2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    assert (whole["answer_ids"][0] != whole["answer_ids"][2]).any()  # the same prompt, another number
    other = generate(model, five, dataclasses.replace(settings, seed=4))
    assert (whole["answer_ids"] != other["answer_ids"]).any()
    left = {name: array[:, ::-1].copy() for name, array in PROMPTS.items()}  # padding first, and words backwards
    left["input_ids"][0, 1:] = [1, 2]
    again = generate(model, left, settings)
    np.testing.assert_array_equal(again["answer_ids"], whole["answer_ids"][:2])


def test_kl_between_sequence_distributions_with_its_standard_error(drawn):
    model, examples, (log_p, _) = drawn
    rng = np.random.default_rng(1)
    step = {name: 0.2 * rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    moved = dataclasses.replace(model, params=jax.tree.map(jnp.add, model.params, step))
    after, _ = enumerated(moved, (1, 2), 0.7)
    exact = np.sum(np.exp(log_p) * (log_p - after))
    generated = model.generated()
    first = {name: array[:1] for name, array in examples.items()}
    estimate = npeff.perturbed_kl(generated, first, [step])[0, 0, 0]
    error = npeff.perturbation.perturbed_kl_error(generated, first, [step])[0, 0, 0]
    assert 0 < error < 0.1 * exact
    assert abs(estimate - exact) < 3 * error
    # The error says how estimates from few draws scatter.
    estimates, errors = [], []
    for start in range(0, 4096, 64):
        part = {n: (a[:, start : start + 64] if n.startswith("answer") else a) for n, a in first.items()}
        estimates.append(npeff.perturbed_kl(generated, part, [step])[0, 0, 0])
        errors.append(npeff.perturbation.perturbed_kl_error(generated, part, [step])[0, 0, 0])
    assert np.std(estimates) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.3)
    categorical = npeff.Model(lambda p, x: x @ p["w"], {"w": np.eye(3, dtype=np.float32)})
    exact_kl = npeff.perturbation.perturbed_kl_error(categorical, np.ones((2, 3), np.float32), [{"w": np.eye(3)}])
    assert not exact_kl.any()


def test_generated_as_an_output_family():
    output, logits = Generated(), jnp.array([-1.0, -2.0, -0.5, -3.0])
    rows = np.asarray(output.factor(logits))
    np.testing.assert_allclose(rows.T @ rows, np.eye(4) / 4, rtol=1e-6)
    np.testing.assert_allclose(output.weighted(logits, jnp.eye(4)), output.class_rows(logits))
    assert float(output.kl(logits, logits)) == 0.0
    small = float(output.kl(logits, logits + 1e-3))
    assert small == pytest.approx(0.5e-6, rel=1e-3)  # no difference of nearly equal numbers
    few = np.asarray(output.sample(jax.random.key(0), logits, 3))
    assert few.shape == (3, 4)
    assert ((few > 0).sum(axis=1) == 1).all()


def test_choices_are_sums_over_their_words_whatever_their_number():
    model = recurrent()
    log_p, _ = enumerated(model, (1, 2))
    several = model.choices([(1, 2, 3), (0,), (2, 0)])
    assert isinstance(several.output, Categorical)
    found = jax.jit(several.logits_fn)(model.params, {name: array[0] for name, array in PROMPTS.items()})
    expected = [log_p[sequences().index((1, 2, 3))], log_p[sequences().index((0,))], log_p[sequences().index((2, 0))]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    single = model.choices([(0,), (3,)])
    assert single.outcome_fn is None  # one pass has them all
    at_first = jax.jit(single.logits_fn)(model.params, {name: array[0] for name, array in PROMPTS.items()})
    assert float(at_first[0]) == pytest.approx(float(found[1]), rel=1e-5)
    with pytest.raises(ValueError, match=r"answers\[0\] is a text, and the model has no tokenizer"):
        model.choices(["yes", "no"])
    with pytest.raises(ValueError, match=r"answers\[1\] has no tokens"):
        model.choices([(1,), ()])


def test_what_cannot_be_drawn_is_refused():
    model = dataclasses.replace(recurrent(), max_length=4)
    with pytest.raises(ValueError, match="prompt of 2 tokens and an answer of 4 are longer than the 4 positions"):
        generate(model, PROMPTS, Generation(max_tokens=4))
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(model, {"input_ids": np.ones((2, 2), int), "attention_mask": np.array([[1, 0], [0, 0]])})
    with pytest.raises(ValueError, match="expected 'input_ids'"):
        generate(model, {"ids": np.ones((2, 2), int)})
    with pytest.raises(ValueError, match="temperature"):
        Generation(temperature=0.0)


@pytest.mark.parametrize("through", ["own converter", "torchax"])
def test_checkpoints_and_modules_as_language_models(through, tmp_path):
    """A drawn answer's log-probability is what PyTorch says, for the converter and for PyTorch's code."""
    torch = pytest.importorskip("torch")
    module = torch_model(shallow("gpt2"))
    if through == "own converter":
        module.save_pretrained(tmp_path)
        model = npeff.models.language_model(tmp_path)
    else:
        model = npeff.models.language_model(module)
    assert model.stop == (0,)
    assert model.max_length == 20
    prompts = {"input_ids": np.array([[5, 6, 7], [8, 9, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    examples = generate(model, prompts, Generation(n_answers=3, max_tokens=4, temperature=0.5))
    logits = np.asarray(jax.jit(jax.vmap(model.generated().logits_fn, (None, 0)))(model.params, examples))
    for i, prompt in enumerate(([5, 6, 7], [8, 9])):
        for s in range(3):
            answer = examples["answer_ids"][i, s, : examples["answer_length"][i, s]].tolist()
            with torch.no_grad():
                log_p = (module(torch.tensor([[*prompt, *answer]])).logits[0] / 0.5).log_softmax(-1)
            expected = sum(float(log_p[len(prompt) + t - 1, word]) for t, word in enumerate(answer))
            assert logits[i, s] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch_model(shallow("bert")).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="only causal language models"):
        npeff.models.language_model(tmp_path / "bert")
