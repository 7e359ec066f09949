"""From what save_pretrained wrote to a report, for every architecture; and parameters split over devices."""

import jax
import numpy as np
import pytest
from huggingface_checkpoints import ARCHITECTURES, CASES, torch_model
from jax.sharding import NamedSharding, PartitionSpec

import npeff_jax as npeff

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("jinja2")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpoint_to_report(name, tmp_path):
    case = CASES[name]
    torch_model(case).save_pretrained(tmp_path / "model")
    answers = {"answers": [[5], [6], [7, 8]]} if name == "gpt2" else {}
    model = npeff.models.from_huggingface(tmp_path / "model", **answers)
    draws = [case.inputs(np.random.default_rng(seed)) for seed in range(4)]
    examples = {key: np.concatenate([draw[key] for draw in draws]) for key in draws[0]}
    pefs = npeff.compute_pefs(model, examples, npeff.LowRank(), keep=2000, progress=False)
    decomposition = npeff.decompose(pefs, 3, seed=0, progress=False)
    assert decomposition.history.loss[-1] < 0.9  # three components explain a part of sixteen Fishers
    text = [f"example {i}" for i in range(16)]
    npeff.write_report(tmp_path / "report.html", decomposition, display=text, model=model)
    page = (tmp_path / "report.html").read_text()
    assert "example 3" in page
    assert model.label_names[0] in page


def test_parameters_split_over_devices(tmp_path):
    """Two devices share each copy of a BERT's parameters, four copies share the examples: the same Fishers."""
    case = CASES["bert"]
    torch_model(case).save_pretrained(tmp_path)
    model = npeff.models.from_huggingface(tmp_path)
    examples = case.inputs(np.random.default_rng(0))
    mesh = npeff.make_mesh(model=2)
    assert dict(mesh.shape) == {"examples": 4, "model": 2}

    def split(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("model" if leaf.shape[0] % 2 == 0 else None)))

    divided = npeff.Model(model.logits_fn, jax.tree.map(split, model.params))
    shard = divided.params["word_embeddings"]["embedding"].addressable_shards[0].data
    assert shard.shape == (20, 16)  # half of the forty words
    options = {"keep": 3000, "progress": False}
    one = npeff.compute_pefs(model, examples, npeff.LowRank(), **options)
    many = npeff.compute_pefs(divided, examples, npeff.LowRank(), mesh=mesh, **options)
    np.testing.assert_allclose(many.norms, one.norms, rtol=1e-4)
    a, b = (p.to_scipy().toarray().astype(float) for p in (one, many))
    grams = [[x[i : i + 2].T @ x[i : i + 2] for i in range(0, 8, 2)] for x in (a, b)]
    for f, g in zip(*grams):
        np.testing.assert_allclose(g, f, rtol=0, atol=1e-4 * np.abs(f).max())


def test_answers_of_several_tokens(tmp_path):
    """The logit of an answer is the sum of its tokens' log-probabilities, each after those before it."""
    torch = pytest.importorskip("torch")
    case = CASES["gpt2"]
    theirs = torch_model(case)
    theirs.save_pretrained(tmp_path)
    answers = [(5,), (6, 9, 4), (7, 8)]
    model = npeff.models.from_huggingface(tmp_path, answers=answers)
    examples = case.inputs(np.random.default_rng(0))
    logits = jax.vmap(model.logits_fn, (None, 0))(model.params, examples)
    for i in range(4):
        prompt = examples["input_ids"][i][examples["attention_mask"][i] == 1].tolist()
        for j, answer in enumerate(answers):
            with torch.no_grad():
                log_p = theirs(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            expected = sum(log_p[len(prompt) + t - 1, token].item() for t, token in enumerate(answer))
            np.testing.assert_allclose(logits[i, j], expected, rtol=1e-4)
