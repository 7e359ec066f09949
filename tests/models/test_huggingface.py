"""Checkpoints that PyTorch wrote: the same logits to the last digit."""

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
        expected = case.logits(theirs, inputs).numpy()
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        model = npeff.models.from_huggingface(tmp_path, dtype=precision)
        logits = jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, examples)
    logits = np.asarray(logits)
    assert logits.dtype == precision
    assert logits.std(axis=0).min() > 0.02  # the model does not ignore its input
    tolerance = 1e-10 if precision == "float64" else 1e-5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())
