"""Checkpoints that PyTorch wrote: the same logits to the last digit, and the same Fishers."""

import copy

import jax
import numpy as np
import pytest
from huggingface_checkpoints import CASES, torch_inputs, torch_model

import npeff_jax as npeff

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_logits_agree_with_torch(case, precision, tmp_path):
    theirs = torch_model(case).to(getattr(torch, precision))
    theirs.save_pretrained(tmp_path)
    examples = case.inputs(np.random.default_rng(1))
    with torch.no_grad():
        inputs = torch_inputs(examples, getattr(torch, precision))
        expected = case.expected(theirs(**inputs), inputs).numpy()
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        model = npeff.models.from_huggingface(tmp_path, dtype=precision)
        logits = jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, examples)
    logits = np.asarray(logits)
    assert logits.dtype == precision
    assert logits.std(axis=0).min() > 0.02  # the model does not ignore its input
    tolerance = 1e-10 if precision == "float64" else 1e-5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", ["bert", "resnet-bottleneck", "gpt2"])
def test_pefs_agree_with_a_torch_loop(name, tmp_path):
    """F v for random v, and ‖F‖: neither depends on how a Fisher is written as rows."""
    case = CASES[name]
    theirs = torch_model(case)
    theirs.save_pretrained(tmp_path / "model")
    examples = {key: value[:2] for key, value in case.inputs(np.random.default_rng(1)).items()}
    model = npeff.models.from_huggingface(tmp_path / "model")
    pefs = npeff.compute_pefs(model, examples, npeff.LowRank(), keep=None, normalization=npeff.Normalization.NONE)
    rows = pefs.to_scipy().toarray().astype(np.float64)
    first = np.concatenate([[0], np.cumsum(pefs.n_rows)])
    order = order_of_parameters(tmp_path / "numbers", theirs, model)
    for i in range(2):
        one = torch_inputs({key: value[i : i + 1] for key, value in examples.items()}, torch.float32)
        expected = class_gradients(case, theirs, one)[:, order]
        ours = rows[first[i] : first[i + 1]]
        np.testing.assert_allclose(pefs.norms[i], np.linalg.norm(expected @ expected.T), rtol=1e-4)
        v = np.random.default_rng(i).normal(size=len(order))
        product = expected.T @ (expected @ v)
        np.testing.assert_allclose(ours.T @ (ours @ v), product, rtol=0, atol=1e-4 * np.abs(product).max())


def class_gradients(case, theirs, inputs):
    log_p = case.expected(theirs(**inputs), inputs).log_softmax(-1)[0]
    parameters = list(theirs.parameters())
    rows = []
    for c in range(len(log_p)):
        gradient = torch.autograd.grad(log_p[c] * log_p[c].detach().div(2).exp(), parameters, retain_graph=True)
        rows.append(np.concatenate([g.numpy().ravel() for g in gradient]))
    return np.stack(rows).astype(np.float64)


def order_of_parameters(directory, theirs, model):
    """Where each of our parameters stands in PyTorch's, found by loading a checkpoint of running numbers."""
    theirs, offset = copy.deepcopy(theirs), 0
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.arange(offset, offset + parameter.numel()).reshape(parameter.shape))
            offset += parameter.numel()
    theirs.save_pretrained(directory)
    numbers = np.asarray(model.space.ravel(npeff.models.from_huggingface(directory).params)).astype(int)
    assert sorted(numbers) == list(range(offset))  # each weight arrives once
    return numbers
