"""A checkpoint and a data set as files, through to a report, for every architecture; Fishers as PyTorch has them."""

import copy
import json

import jax
import numpy as np
import pytest
from huggingface_checkpoints import CASES, SHALLOW, of_answers, shallow, torch_inputs, torch_model
from jax.sharding import NamedSharding, PartitionSpec
from tokenizers_for_tests import WORDS, word_tokenizer

import npeff_jax as npeff
from npeff_jax._examples import slice_examples

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("jinja2")

PAIRS = [
    ("a man is sleeping", "the man is not running", "entailment"),
    ("the dog is running outside", "the dog is inside", "contradiction"),
    ("a woman", "the woman is learning to swim", "neutral"),
    ("the cat is not sleeping inside. the dog is running outside.", "a dog is sleeping. a cat?", "contradiction"),
]
LENGTH = 12  # the last pair is cut, the others are padded
ANSWERS = ("yes", "not a dog", "no")


def text_data(name, directory):
    """A tokenizer beside the model, and a data set in a file of its own."""
    padding_id = CASES[name].config.get("pad_token_id", 0)
    word_tokenizer(token_types=name == "bert", padding_id=padding_id).save_pretrained(directory)
    file = directory.parent / "snli.jsonl"
    rows = [dict(zip(("sentence1", "sentence2", "gold_label"), row, strict=True)) for row in PAIRS]
    file.write_text("\n".join(map(json.dumps, rows)))
    processor = npeff.models.huggingface_processor(directory, max_length=LENGTH)
    if name in ("bert", "roberta"):
        data = npeff.tasks.read_snli(file, processor)
    else:
        pair = None if name == "gpt2" else "sentence2"
        data = npeff.tasks.read_table(file, processor, npeff.tasks.Columns("sentence1", pair, label=None))
    lengths = data.examples["attention_mask"].sum(1)
    assert lengths.min() < LENGTH  # padded
    assert lengths[3] == LENGTH  # cut
    return data, [word for premise, *_ in PAIRS for word in premise.split(". ")]


def image_data(name, directory):
    """Image settings beside the model, as on the hub, and a folder of images of another size than the model's."""
    image = pytest.importorskip("PIL.Image")
    size = CASES[name].config.get("image_size", 32)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "resample": 0}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    for i, label in enumerate(("cat", "cat", "dog", "dog")):
        file = directory.parent / "images" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image.fromarray(pixels.repeat(2 * size // 4, 0).repeat(2 * size // 4, 1)).save(file)
        if i == 0:
            first = pixels.repeat(size // 4, 0).repeat(size // 4, 1) / 255
    processor = npeff.models.huggingface_processor(directory)
    data = npeff.tasks.read_image_folder(directory.parent / "images", processor, label_names=("cat", "dog"))
    expected = (first - settings["image_mean"]) / settings["image_std"]
    np.testing.assert_allclose(data.examples[:1]["pixel_values"][0], expected, rtol=0, atol=1e-5)
    return data, ["data:image/png"]


@pytest.mark.parametrize("name", SHALLOW)
def test_files_to_report(name, tmp_path):
    case, directory = shallow(name), tmp_path / "model"
    theirs = torch_model(case)
    theirs.save_pretrained(directory)
    data, shown = (text_data if "input_ids" in case.inputs(np.random.default_rng(0)) else image_data)(name, directory)
    reference = case.logits
    answers = {}
    if name == "gpt2":
        ids = [[4 + WORDS.index(word) for word in answer.split()] for answer in ANSWERS]  # 4 special tokens come first
        answers, reference = {"answers": ANSWERS}, of_answers(*ids)
    model = npeff.models.from_huggingface(directory, **answers)
    pefs = npeff.compute_pefs(model, data.examples, npeff.LowRank(), labels=data.labels, keep=None, progress=False)
    assert_fishers_of(theirs, reference, slice_examples(data.examples, slice(None)), model, pefs, tmp_path / "numbers")
    decomposition = npeff.decompose(pefs, 2, seed=0, progress=False)
    assert decomposition.history.loss[-1] < 0.9  # two components explain a part of four Fishers
    npeff.write_report(tmp_path / "report.html", decomposition, display=data.display, model=model)
    page = (tmp_path / "report.html").read_text()
    for part in [*shown, *model.label_names[:2]]:
        assert part in page


def assert_fishers_of(theirs, reference, examples, model, pefs, scratch):
    """F v for random v, and ‖F‖, against a loop in PyTorch: neither depends on how a Fisher is written as rows."""
    first = np.concatenate([[0], np.cumsum(pefs.n_rows)])
    rows = pefs.to_scipy().toarray().astype(np.float64)
    order = order_of_parameters(scratch, theirs, model)
    for i in range(len(pefs.n_rows)):
        one = torch_inputs({key: value[i : i + 1] for key, value in examples.items()}, torch.float32)
        expected = class_gradients(reference, theirs, one)[:, order]
        norm = np.linalg.norm(expected @ expected.T)
        np.testing.assert_allclose(pefs.norms[i], norm, rtol=1e-4)
        ours = rows[first[i] : first[i + 1]]
        v = np.random.default_rng(i).normal(size=len(order))
        product = expected.T @ (expected @ v) / norm
        np.testing.assert_allclose(ours.T @ (ours @ v), product, rtol=0, atol=1e-4 * np.abs(product).max())


def class_gradients(reference, theirs, inputs):
    log_p = reference(theirs, inputs).log_softmax(-1)[0]
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


def test_parameters_split_over_devices(tmp_path):
    """Two devices share each copy of a BERT's parameters, four copies share the examples: the same Fishers."""
    case = shallow("bert")
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
    for f, g in zip(*grams, strict=True):
        np.testing.assert_allclose(g, f, rtol=0, atol=1e-4 * np.abs(f).max())
