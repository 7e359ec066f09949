"""Padding on the left, on the right, or none: the same logits and Fishers. PyTorch's bare forward cannot tell."""

import json

import jax
import numpy as np
import pytest
from huggingface_checkpoints import CASES, shallow, torch_model
from tokenizers_for_tests import word_tokenizer

import npeff_jax as npeff

pytest.importorskip("torch")
pytest.importorskip("transformers")

LENGTH = 9
ANSWERS = ((5, 6), (7,), (8, 9, 10))


def padded(texts, side, padding_id):
    """The token ids of ``texts``, each with padding up to ``LENGTH`` on one side."""
    examples = {"input_ids": [], "attention_mask": []}
    for text in texts:
        rest = LENGTH - len(text)
        before, after = (rest, 0) if side == "left" else (0, rest)
        examples["input_ids"].append([padding_id] * before + list(text) + [padding_id] * after)
        examples["attention_mask"].append([0] * before + [1] * len(text) + [0] * after)
    return {name: np.array(rows, np.int32) for name, rows in examples.items()}


def logits(model, examples):
    return np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, examples))


@pytest.mark.parametrize("name", ["gpt2", "gpt2 with answers", "bert", "roberta", "distilbert"])
def test_the_side_of_padding_does_not_matter(name, tmp_path):
    case = shallow(name.split()[0])
    torch_model(case).save_pretrained(tmp_path)
    model = npeff.models.from_huggingface(tmp_path, **({"answers": ANSWERS} if "answers" in name else {}))
    rng, padding_id = np.random.default_rng(0), case.config.get("pad_token_id", 0)
    texts = [rng.integers(padding_id + 1, 40, length) for length in (LENGTH, 6, 3, 1)]
    left, right = (logits(model, padded(texts, side, padding_id)) for side in ("left", "right"))
    for i, text in enumerate(texts):
        ids = np.asarray(text, np.int32)[None]
        bare = logits(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        for found in (left[i], right[i]):
            np.testing.assert_allclose(found, bare, rtol=0, atol=2e-5 * np.abs(left).max())
    assert np.ptp(left, axis=0).min() > 0.02  # the model does not ignore its input


def test_a_tokenizer_that_pads_on_the_left(tmp_path):
    torch_model(CASES["gpt2"]).save_pretrained(tmp_path)
    word_tokenizer(token_types=False).save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    texts = ["a man is sleeping outside", "dog", "the cat is running"]
    found = []
    for side in ("left", "right"):
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": side}))
        encoded = npeff.models.huggingface_processor(tmp_path, max_length=12)(texts)
        assert (encoded["attention_mask"][1, 0] == 0) == (side == "left")
        model = npeff.models.from_huggingface(tmp_path, answers=("yes", "not a dog"))
        found.append(npeff.compute_pefs(model, encoded, npeff.LowRank(), keep=None, progress=False))
    np.testing.assert_allclose(found[0].logits, found[1].logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[0].norms, found[1].norms, rtol=1e-4)
