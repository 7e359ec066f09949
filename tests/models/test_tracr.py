"""Compiled programs: the native forward pass against Tracr's own, value by value."""

import dataclasses

import jax
import numpy as np
import pytest

import npeff_jax as npeff

pytest.importorskip("tracr")

from tracr.compiler import compiling, lib
from tracr.rasp import rasp

same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
before = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
is_a = rasp.numerical(rasp.Map(lambda token: 1 if token == "a" else 0, rasp.tokens))
PROGRAMS = {
    "categorical": (rasp.SelectorWidth(same), False),
    "two layers": (lib.make_reverse(rasp.tokens), False),
    "numerical": (rasp.numerical(rasp.Aggregate(same, is_a, default=0)), False),
    "causal": (rasp.numerical(rasp.Aggregate(before, is_a, default=0)), True),
}
INPUTS = [list("aab"), list("bca"), list("ccc")]


def compile_program(program, vocabulary, length, **options):
    """Tracr's model, whose forward pass is one compiled program: operation by operation, each would be its own."""
    model = compiling.compile_rasp_to_model(program, vocabulary, max_seq_len=length, **options)
    return dataclasses.replace(model, forward=jax.jit(model.forward))


@pytest.fixture(scope="module")
def histogram():
    return compile_program(PROGRAMS["categorical"][0], {"a", "b"}, 3)


@pytest.fixture(scope="module", params=list(PROGRAMS))
def compiled(request):
    program, causal = PROGRAMS[request.param]
    return compile_program(program, {"a", "b", "c"}, 4, causal=causal)


def test_forward_is_tracrs_own(compiled):
    ids = npeff.models.encode_tokens(compiled, INPUTS)
    model = npeff.models.from_tracr(compiled)
    names = []

    @jax.jit
    def values(params, row):
        stream = model.intermediates_fn(params, row)
        names[:] = stream  # in their order, which a dictionary loses in `jit`
        return list(stream.values())

    for tokens, row in zip(INPUTS, ids, strict=True):
        theirs = compiled.apply(["compiler_bos", *tokens])
        found = values(model.params, row)
        stream = dict(zip(names, found, strict=True))
        blocks = [value for name, value in stream.items() if "layer" in name]
        np.testing.assert_array_equal(stream["embedding"], theirs.input_embeddings[0])
        np.testing.assert_array_equal(np.stack(blocks), np.stack([residual[0] for residual in theirs.residuals]))
        np.testing.assert_array_equal(stream["output"], theirs.transformer_output[0, -1])


def test_output_is_what_the_program_returns_at_every_position(compiled):
    decoded = [compiled.apply(["compiler_bos", *tokens]).decoded[1:] for tokens in INPUTS]
    ids = npeff.models.encode_tokens(compiled, INPUTS)
    for position in range(len(INPUTS[0])):
        model = npeff.models.from_tracr(compiled, position=position)
        for row, logits in zip(decoded, jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, ids), strict=True):
            value = row[position]
            if model.label_names is None:
                assert isinstance(model.output, npeff.Gaussian)
                assert logits.shape == (1,)
                assert float(logits[0]) == value
            else:
                assert model.label_names[int(logits.argmax())] == str(value)
                assert logits.shape == (len(model.label_names),)


def test_the_last_token_is_read_by_default_and_the_temperature_is_in_the_output(histogram):
    tokens = npeff.models.encode_tokens(histogram, "aab")
    model = npeff.models.from_tracr(histogram, temperature=0.25)
    last = npeff.models.from_tracr(histogram, position=2)
    np.testing.assert_array_equal(model.logits_fn(model.params, tokens), last.logits_fn(last.params, tokens))
    assert model.output == npeff.Categorical(0.25)
    probability = model.output.probabilities(model.logits_fn(model.params, tokens)).max()
    assert float(probability) == pytest.approx(np.exp(4) / (np.exp(4) + 3), rel=1e-5)


def test_every_weight_is_a_parameter_and_gradients_are_those_of_finite_differences(histogram):
    model = npeff.models.from_tracr(histogram)
    assert model.space.size == sum(leaf.size for leaf in jax.tree.leaves(histogram.params))
    tokens = npeff.models.encode_tokens(histogram, "aba")
    gradient = jax.grad(lambda params: model.logits_fn(params, tokens)[2])(model.params)
    w = np.asarray(gradient["transformer/layer_0/mlp/linear_2"]["w"])
    place = np.unravel_index(np.abs(w).argmax(), w.shape)
    moved = jax.tree.map(np.array, model.params)
    moved["transformer/layer_0/mlp/linear_2"]["w"][place] += 1e-2
    change = model.logits_fn(moved, tokens)[2] - model.logits_fn(model.params, tokens)[2]
    assert float(change) / 1e-2 == pytest.approx(float(w[place]), rel=1e-3)
    assert abs(w[place]) > 0


def test_encoding_adds_the_first_token_once(histogram):
    ids = npeff.models.encode_tokens(histogram, [["a", "b"], ["b", "b"]])
    assert ids.shape == (2, 3)
    np.testing.assert_array_equal(ids[0], npeff.models.encode_tokens(histogram, ["compiler_bos", "a", "b"]))
    table = histogram.input_encoder.encoding_map
    np.testing.assert_array_equal(ids[1], [table["compiler_bos"], table["b"], table["b"]])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([["a"], ["a", "b"]], r"inputs of lengths \[1, 2\]; expected inputs of one length"),
        ([[]], r"inputs of lengths \[0\]"),
        (["a", "z"], "token 'z' is not in the program's vocabulary"),
        (["a"] * 4, "inputs of 4 tokens are too long; the program was compiled for 3"),
    ],
)
def test_encoding_rejects(histogram, tokens, message):
    with pytest.raises(ValueError, match=message):
        npeff.models.encode_tokens(histogram, tokens)


def test_position_outside_the_input(histogram):
    model = npeff.models.from_tracr(histogram, position=2)
    with pytest.raises(ValueError, match="position=2 is out of range for an input of 2 tokens"):
        model.logits_fn(model.params, npeff.models.encode_tokens(histogram, "ab"))


def test_padding_can_be_left_out(compiled):
    """Same residual stream, and the same gradients but for parameters that never have one."""
    full, bare = (npeff.models.from_tracr(compiled, padding=padding) for padding in (True, False))
    assert bare.space.size <= full.space.size
    streams = [jax.jit(model.intermediates_fn) for model in (full, bare)]
    jacobians = [jax.jit(jax.jacobian(model.logits_fn)) for model in (full, bare)]
    for tokens in npeff.models.encode_tokens(compiled, INPUTS):
        wholes, bares = (stream(model.params, tokens) for stream, model in zip(streams, (full, bare), strict=True))
        assert wholes.keys() == bares.keys()
        for name, value in wholes.items():
            np.testing.assert_allclose(bares[name], value, atol=1e-6)
        grams = []
        for model, jacobian in zip((full, bare), jacobians, strict=True):
            rows = jacobian(model.params, tokens)
            leaves = map(np.asarray, jax.tree.leaves(rows))
            flat = np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
            grams.append(flat @ flat.T)
        np.testing.assert_allclose(grams[1], grams[0], rtol=1e-5, atol=1e-6)
