"""Files of weights: every format the same, damaged ones named, and no pickled code executed."""

import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from huggingface_checkpoints import CASES, torch_model
from tokenizers_for_tests import word_tokenizer

import npeff_jax as npeff
from npeff_jax.models._checkpoint import read_checkpoint, read_weights
from npeff_jax.models._processor import _check_texts

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def bert(tmp_path):
    theirs = torch_model(CASES["bert"])
    theirs.save_pretrained(tmp_path / "bert")
    return theirs, tmp_path / "bert"


def as_pytorch(theirs, directory, **options):
    (directory / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), directory / "pytorch_model.bin", **options)


def as_shards(theirs, directory):
    (directory / "model.safetensors").unlink()
    theirs.save_pretrained(directory, max_shard_size="6KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1


def as_pytorch_shards(theirs, directory):
    (directory / "model.safetensors").unlink()
    names, weights = list(theirs.state_dict()), theirs.state_dict()
    where = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save({name: weights[name] for name in names if where[name] == shard}, directory / shard)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def as_tensorflow_names(theirs, directory):
    """Gamma and beta, and no ``bert.`` before the encoder, as the first checkpoints had it."""
    (directory / "model.safetensors").unlink()
    old = {}
    for name, tensor in theirs.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[name.removeprefix("bert.")] = tensor
    old["embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(old, directory / "pytorch_model.bin")


FORMATS = {
    "sharded safetensors": as_shards,
    "pytorch zip": as_pytorch,
    "pytorch before 1.6": lambda t, d: as_pytorch(t, d, _use_new_zipfile_serialization=False),
    "sharded pytorch": as_pytorch_shards,
    "tensorflow names": as_tensorflow_names,
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_model(bert, format):
    theirs, directory = bert
    expected = npeff.models.from_huggingface(directory).fingerprint
    FORMATS[format](theirs, directory)
    assert npeff.models.from_huggingface(directory).fingerprint == expected


def test_types_strides_and_shared_storage(tmp_path):
    base = torch.randn(4, 6)
    weights = {
        "transposed": base.T,
        "view": base[1:3, ::2],
        "half": base.half(),
        "brain": base.bfloat16(),
        "count": torch.arange(3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base.clone()),
        "empty": torch.zeros(0, 3),
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(weights, tmp_path / "w.bin", **options)
        found = read_weights(tmp_path / "w.bin")
        for name, tensor in weights.items():
            np.testing.assert_array_equal(found[name].astype(float), tensor.detach().double().numpy(), err_msg=name)
    safetensors = pytest.importorskip("safetensors.torch")
    contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()}
    safetensors.save_file(contiguous, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    for name, tensor in contiguous.items():
        np.testing.assert_array_equal(found[name].astype(float), tensor.double().numpy(), err_msg=name)


class Hostile:
    """Writes a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_pickled_code_is_not_executed(tmp_path, how):
    target, file = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    if how == "plain":
        file.write_bytes(pickle.dumps(Hostile(target)))
    else:
        torch.save({"w": torch.ones(2), "x": Hostile(target)}, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match="was not executed"):
        read_checkpoint(tmp_path)
    assert not target.exists()
    with pytest.raises(ValueError, match=r"builtins|__builtin__"):
        read_weights(_write(tmp_path / "eval.bin", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."))


def _write(file: pathlib.Path, content: bytes) -> pathlib.Path:
    file.write_bytes(content)
    return file


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "good.bin")
    with zipfile.ZipFile(tmp_path / "good.bin") as good, zipfile.ZipFile(tmp_path / "bad.bin", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(ValueError, match="reaches outside its storage of 2 elements"):
        read_weights(tmp_path / "bad.bin")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 5, 3000])
def test_damaged_files_are_named(bert, name, keep):
    theirs, directory = bert
    if name.endswith(".bin"):
        as_pytorch(theirs, directory)
    file = directory / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{name}.*(damaged|not a)"):
        npeff.models.from_huggingface(directory)


def test_weights_that_do_not_fit_are_named(bert):
    theirs, directory = bert
    (directory / "model.safetensors").unlink()
    weights = theirs.state_dict()
    cases = {
        r"1 missing: params/pooler/bias": {k: v for k, v in weights.items() if k != "bert.pooler.dense.bias"},
        r"1 not part of the model: adapter\.weight": weights | {"adapter.weight": torch.ones(2)},
        r"classifier\.weight is \(16, 2\).*expected \(16, 3\)": weights | {"classifier.weight": torch.ones(2, 16)},
        r"2 not part of the model: encoder\.layer\.7\.output\.dense\.weight": weights
        | {f"bert.encoder.layer.7.output.dense.{kind}": torch.ones(2) for kind in ("weight", "bias")},
    }
    for message, tensors in cases.items():
        torch.save(tensors, directory / "pytorch_model.bin")
        with pytest.raises(ValueError, match=message):
            npeff.models.from_huggingface(directory)


def test_a_weight_that_is_there_twice(bert):
    """``bert.x`` and ``x`` are one weight under an old and a new name: which of two values is meant, no one knows."""
    theirs, directory = bert
    expected = npeff.models.from_huggingface(directory).fingerprint
    (directory / "model.safetensors").unlink()
    weights, kept = theirs.state_dict(), "encoder.layer.0.output.LayerNorm.weight"

    def load(**more):
        torch.save(weights | more, directory / "pytorch_model.bin")
        return npeff.models.from_huggingface(directory).fingerprint

    own = weights[f"bert.{kept}"]
    assert load(**{kept: own.clone()}) == expected  # the same twice
    with pytest.raises(ValueError, match=rf"has both bert\.{kept} and {kept}, with different values"):
        load(**{kept: own + 1})
    old = f"bert.{kept}".replace("weight", "gamma")
    with pytest.raises(ValueError, match=r"has params/layer_0/output_norm/scale twice, as .*weight and as .*gamma"):
        load(**{old: own + 1})


def test_classes_with_a_gap_in_their_numbers(bert):
    _, directory = bert
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b", "3": "c"}}))
    with pytest.raises(ValueError, match=r"id2label in config\.json has the classes 0, 1, 3; expected 0 to 2"):
        npeff.models.from_huggingface(directory)


def test_what_is_not_supported_says_what_is(bert, tmp_path):
    _, directory = bert
    config = json.loads((directory / "config.json").read_text())

    def with_config(**changes):
        (directory / "config.json").write_text(json.dumps(config | changes))
        return directory

    with pytest.raises(ValueError, match=r"is a BertForQuestionAnswering; supported are BertFor.*new_head.*Model\("):
        npeff.models.from_huggingface(with_config(architectures=["BertForQuestionAnswering"]))
    with pytest.raises(ValueError, match="activation 'mish' is not one of"):
        npeff.models.from_huggingface(with_config(hidden_act="mish"))
    multi_label = npeff.models.from_huggingface(with_config(problem_type="multi_label_classification"))
    assert multi_label.output == npeff.Bernoulli()
    with pytest.raises(ValueError, match="answers were given"):
        npeff.models.from_huggingface(with_config(), answers=[[1], [2]])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        npeff.models.from_huggingface(tmp_path / "nothing")
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights; expected one of model\.safetensors"):
        npeff.models.from_huggingface(with_config())


def test_a_name_that_the_hub_does_not_give(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="not a directory, and the Hugging Face hub did not give"):
        npeff.models.from_huggingface("someone/some-model")


def test_a_new_head_on_a_checkpoint_without_one(tmp_path):
    theirs = torch_model(CASES["bert"])
    theirs.bert.save_pretrained(tmp_path)
    head = npeff.models.NewHead(("a", "b", "c", "d"), seed=3)
    model, again = (npeff.models.from_huggingface(tmp_path, new_head=head) for _ in range(2))
    assert model.label_names == ("a", "b", "c", "d")
    assert model.params["classifier"]["kernel"].shape == (16, 4)
    assert model.params["classifier"]["kernel"].std() > 0.01
    assert model.fingerprint == again.fingerprint
    np.testing.assert_array_equal(model.params["pooler"]["kernel"], theirs.bert.pooler.dense.weight.detach().T)


def test_a_tokenizer_that_does_not_belong(bert):
    _, directory = bert
    word_tokenizer().save_pretrained(directory)
    processor = npeff.models.huggingface_processor(directory, max_length=64)
    assert processor.max_length == 20  # the model has no more positions
    encoded = processor(["a man is sleeping"], ["the dog ?"])
    np.testing.assert_array_equal(encoded["attention_mask"].sum(1), [10])
    np.testing.assert_array_equal(encoded["token_type_ids"].sum(1), [4])
    assert processor.label_names == ("entailment", "neutral", "contradiction")
    assert npeff.models.huggingface_processor(directory, label_names=("a", "b")).label_names == ("a", "b")
    for texts, message in (
        (["a", float("nan")], r"texts\[1\] is nan"),
        (["\ud800"], "half of a surrogate"),
        ("a", "list"),
    ):
        with pytest.raises(ValueError, match=message):
            _check_texts("texts", texts)  # itself: where these tests run, annotations are checked before it is reached
    with pytest.raises(ValueError, match="half of a surrogate"):
        processor(["\ud800"])
    with pytest.raises(ValueError, match="2 texts and 1 pairs"):
        processor(["a", "b"], ["c"])
    word_tokenizer(n_words=50).save_pretrained(directory)
    with pytest.raises(ValueError, match="tokenizer knows 50 tokens, the model 40"):
        npeff.models.huggingface_processor(directory)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "[UNK]"
    tokenizer.save_pretrained(directory)
    with pytest.raises(ValueError, match="pads with token 1, the model with 0"):
        npeff.models.huggingface_processor(directory)


def test_no_processor(bert):
    with pytest.raises(FileNotFoundError, match="neither a tokenizer nor preprocessor_config"):
        npeff.models.huggingface_processor(bert[1])
