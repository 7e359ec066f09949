"""The three getting-started pages, from folders that the test writes: their code and commands as they stand."""

import csv
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest
from command_line import run
from huggingface_checkpoints import shallow, torch_model
from tokenizers_for_tests import WORDS, word_tokenizer

import npeff_jax as npeff
from npeff_jax.report import read_report_data

for package in ("torch", "transformers", "jinja2", "flax", "PIL"):
    pytest.importorskip(package)

DOCS = pathlib.Path(__file__).parents[2] / "docs/start"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def command(line, folder, *more):
    done = run([*shlex.split(line)[1:], *more], folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hugging_face_classifier_and_a_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch_model(shallow("bert")).save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(60)]
    model = npeff.models.from_huggingface("model")
    encoded = npeff.models.huggingface_processor("model")(texts)
    predicted = np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, encoded)).argmax(1)
    with pathlib.Path("data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((t, model.label_names[c]) for t, c in zip(texts, predicted))])
    names = {}
    for code in blocks("huggingface.md", "python"):
        exec(compile(code, "huggingface.md", "exec"), names)
    assert pathlib.Path("report.html").stat().st_size > 50_000
    assert any(own and own[0].spans for own in names["marks"])


def test_an_own_flax_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.tanh(nn.Dense(64)(x.reshape((*x.shape[:-3], -1)))))

    images = np.random.default_rng(0).random((80, 4, 4, 1), np.float32)
    network = Network()
    variables = network.init(jax.random.key(0), images[:1])
    labels = np.asarray(network.apply(variables, images)).argmax(1)
    names = {"network": network, "variables": variables, "images": images[:60], "labels": labels[:60]}
    names |= {"other_images": images[60:], "other_labels": labels[60:]}
    for code in blocks("flax.md", "python"):
        exec(compile(code, "flax.md", "exec"), names)
    assert pathlib.Path("report.html").stat().st_size > 50_000
    assert names["found"].suggested in (4, 8)


def test_images_by_the_command_line(tmp_path):
    import transformers
    from PIL import Image

    torch_model(shallow("vit")).save_pretrained(tmp_path / "model")
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    model = npeff.models.from_huggingface(tmp_path / "model")
    encode = npeff.models.huggingface_processor(tmp_path / "model")
    pixels = rng.integers(0, 255, (40, 4, 4, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    images = [Image.fromarray(one) for one in pixels]
    predicted = np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, encode(images))).argmax(1)
    for i, (image, label) in enumerate(zip(images, predicted, strict=True)):
        folder = tmp_path / "photos" / model.label_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
    lines = [line[2:] for line in "\n".join(blocks("images.md", "console")).splitlines() if line.startswith("$ ")]
    out = command(lines[0], tmp_path, "--any-accuracy", "--progress", "none", "--keep", "300")
    assert "look at" in out
    data = read_report_data(tmp_path / "run" / "report.json")
    assert data.examples.image_sheets
    assert any(component.marks and component.marks[0].grid for component in data.components)
    command(lines[1], tmp_path, "--n-components", "2", "3", "--progress", "none")
    assert "<svg" in (tmp_path / "scan.svg").read_text()
    command(lines[2], tmp_path, "--any-accuracy", "--progress", "none", "--keep", "300")
    assert "The same in both" in command(lines[3], tmp_path)
    assert (tmp_path / "both.html").is_file()
