"""A perturbation followed through a Hugging Face BERT, against finite differences in float64."""

import jax
import numpy as np
import pytest
from huggingface_checkpoints import CASES, torch_model

import npeff_jax as npeff
from npeff_jax.evaluation import Tracer

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_against_finite_differences(tmp_path):
    torch_model(CASES["bert"]).save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    example = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[1]), CASES["bert"].inputs(random))  # padded
    with jax.enable_x64(True):
        model = npeff.models.from_huggingface(tmp_path, dtype="float64")
        direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), model.params)
        trace = Tracer(model)(direction, example)
        step = 1e-6
        plus, minus = (jax.tree.map(lambda p, d, t=t: p + t * d, model.params, direction) for t in (step, -step))
        values = [model.intermediates_fn(params, example) for params in (plus, minus, model.params)]
        assert trace.stages == tuple(values[2])
        for name, change in zip(trace.stages, trace.change, strict=True):
            after, before, here = (np.atleast_2d(np.asarray(value[name])) for value in values)
            numeric = np.linalg.norm((after - before) / (2 * step), axis=1) / np.linalg.norm(here, axis=1)
            np.testing.assert_allclose(change, numeric, rtol=1e-5)
        logits = [np.asarray(model.logits_fn(params, example)) for params in (plus, minus)]
        np.testing.assert_allclose(trace.logits.sum(0), (logits[0] - logits[1]) / (2 * step), rtol=1e-5)
