"""Architectures without a converter of their own: transformers' PyTorch code, compared with autograd and converters."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from huggingface_checkpoints import CASES, after_last_token, of_answers, shallow, tokens, torch_inputs, torch_model
from tokenizers_for_tests import word_tokenizer

import npeff_jax as npeff
from npeff_jax._examples import slice_examples
from npeff_jax.cli import main
from npeff_jax.models._huggingface_torch import load_module
from npeff_jax.models._torch_tasks import forward_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("torchax")

# PEFT asks transformers in a way that transformers will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

LLAMA = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
ENCODER = CASES["bert"].config | {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 12, "pad_token_id": 0}
DEBERTA = ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
CONVNEXT = {"depths": [1, 1], "hidden_sizes": [4, 8], "num_stages": 2, "image_size": 16, "initializer_range": 0.5}
EXAMPLES = tokens()(np.random.default_rng(1))


def make(name, config, directory, **saving):
    """A random model in a folder, and itself."""
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    module = cls(cls.config_class(**config)).eval()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    module.save_pretrained(directory, **saving)
    return module


def logits_of(model, examples):
    return np.asarray(jax.jit(jax.vmap(model.logits_fn, (None, 0)))(model.params, examples))


def assert_close(found, expected, tolerance=2e-5):
    assert np.std(expected, axis=0).max() > 0.01 * np.abs(expected).max()  # it does not ignore its input
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def at_position(module, batch):
    batch = dict(batch)
    position = int(batch.pop("position"))
    return module(**batch).logits[:, position]


def images_first(module, batch):
    return module(batch["pixel_values"].permute(0, 3, 1, 2).to(next(module.parameters()).dtype)).logits


def last_shown(module, batch):
    return module(**batch).logits[:, int(batch["attention_mask"].sum()) - 1]


PLACED = EXAMPLES | {"position": np.array([9, 1, 0, 3], np.int32)}
PIXELS = {"pixel_values": np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)}


@pytest.mark.parametrize(
    ("name", "config", "examples", "forward"),
    [
        ("LlamaForCausalLM", LLAMA, EXAMPLES, last_shown),
        ("DebertaV2ForTokenClassification", DEBERTA, PLACED, at_position),
        ("ModernBertForMaskedLM", ENCODER | {"local_attention": 4, "num_hidden_layers": 2}, PLACED, at_position),
        ("ConvNextForImageClassification", CONVNEXT, PIXELS, images_first),
    ],
)
def test_logits_and_gradient_rows_agree_with_transformers(name, config, examples, forward, tmp_path):
    module = make(name, config, tmp_path)
    model = npeff.models.from_huggingface(tmp_path)
    two = jax.tree.map(lambda leaf: leaf[:2], examples)
    exact = make(name, config, tmp_path / "again").double()
    result = npeff.models.verify(model, module, two, forward=forward, exact=exact, max_rows=3, tolerance=1e-6)
    assert result.passed, result
    assert result.spread > 0.01
    assert {parameter.name for parameter in model.space.layout.parameters} <= set(module.state_dict())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_converters_and_torchax_check_each_other(name, tmp_path):
    case = shallow(name)
    module = torch_model(case)
    module.save_pretrained(tmp_path)
    own = npeff.models.from_huggingface(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    forward = forward_of(case.torch_class)
    through = npeff.models.from_torch(load_module(tmp_path, config, case.torch_class), forward=forward)
    examples = jax.tree.map(lambda leaf: leaf[:2], case.inputs(np.random.default_rng(1)))
    pefs = [
        npeff.compute_pefs(model, examples, npeff.Sampled(4), keep=None, progress=False) for model in (own, through)
    ]
    assert_close(jax.nn.log_softmax(pefs[1].logits), jax.nn.log_softmax(pefs[0].logits))
    np.testing.assert_allclose(pefs[1].norms, pefs[0].norms, rtol=1e-4)  # the layouts differ, the norms do not
    result = npeff.models.verify_checkpoint(tmp_path, examples)
    assert result.passed, result


def test_answers_agree_with_one_pass_per_answer_and_padding_may_come_first(tmp_path):
    module = make("LlamaForCausalLM", LLAMA, tmp_path)
    answers = [[5, 6, 7], [8], [9, 10]]
    model = npeff.models.from_huggingface(tmp_path, answers=answers)
    assert model.label_names == ("(5, 6, 7)", "(8,)", "(9, 10)")
    inputs = torch_inputs(EXAMPLES, torch.float32)
    with torch.no_grad():
        expected = of_answers(*answers)(module, inputs).numpy()
        next_token = after_last_token(module, inputs).numpy()
    assert_close(logits_of(model, EXAMPLES), expected)
    model = npeff.models.from_huggingface(tmp_path)
    assert_close(np.asarray(jax.nn.log_softmax(logits_of(model, EXAMPLES))), next_token)
    order = np.argsort(EXAMPLES["attention_mask"], axis=1, kind="stable")  # padding on the left
    left = {name: np.take_along_axis(array, order, axis=1) for name, array in EXAMPLES.items()}
    assert_close(np.asarray(jax.nn.log_softmax(logits_of(model, left))), next_token)


def test_shards_and_bfloat16(tmp_path):
    module = make("LlamaForCausalLM", LLAMA, tmp_path / "whole")
    module.bfloat16().save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model = npeff.models.from_huggingface(tmp_path / "shards", dtype="bfloat16")
    assert {str(array.dtype) for array in model.params.values()} == {"bfloat16"}
    with torch.no_grad():
        exact = after_last_token(module.float(), torch_inputs(EXAMPLES, torch.float32)).numpy()
    assert_close(np.asarray(jax.nn.log_softmax(logits_of(model, EXAMPLES).astype(np.float32))), exact, 5e-2)
    wide = npeff.models.from_huggingface(tmp_path / "shards")
    assert_close(np.asarray(jax.nn.log_softmax(logits_of(wide, EXAMPLES))), exact)


def lora(directory, base="../base"):
    """A base in a folder, and a LoRA adapter of it in another, both drawn at random."""
    peft = pytest.importorskip("peft")
    module = make("LlamaForCausalLM", LLAMA, directory / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
    adapted = peft.get_peft_model(module, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.5)
    adapted.save_pretrained(directory / "adapter")
    file = directory / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    return adapted.eval()


def test_a_lora_goes_from_folders_to_a_report(tmp_path):
    pytest.importorskip("jinja2")
    adapted = lora(tmp_path)
    word_tokenizer(token_types=False, padding_id=0).save_pretrained(tmp_path / "base")
    processor = npeff.models.huggingface_processor(tmp_path / "base", max_length=10)
    file = tmp_path / "texts.jsonl"
    texts = ["a man is sleeping", "the dog is running outside", "a woman", "the cat is not inside. a dog is sleeping."]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = npeff.tasks.read_table(file, processor, npeff.tasks.Columns("text", None, label=None))
    model = npeff.models.from_huggingface(tmp_path / "adapter")
    names = [parameter.name for parameter in model.space.layout.parameters]
    assert len(names) == 4
    assert all("lora_" in name for name in names)
    assert model.space.size == sum(w.numel() for w in adapted.parameters() if w.requires_grad) < 200
    ids = {name: slice_examples(data.examples, slice(0, 4))[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = after_last_token(adapted, torch_inputs(ids, torch.float32)).numpy()
    assert_close(np.asarray(jax.nn.log_softmax(logits_of(model, ids))), expected)
    pefs = npeff.compute_pefs(model, ids, npeff.Sampled(4), keep=None, path=tmp_path / "pefs", progress=False)
    decomposition = npeff.decompose(pefs, 2, seed=0, progress=False)
    report = npeff.write_report(
        tmp_path / "report.html", decomposition, heldout=pefs, display=data.display, model=model
    )
    page = report.read_text()
    assert "lora_" in page
    assert "sleeping" in page


def test_an_adapter_whose_base_is_not_there_is_named(tmp_path, monkeypatch):
    lora(tmp_path, base="somewhere/else")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="somewhere/else is not a directory"):
        npeff.models.from_huggingface(tmp_path / "adapter")


def test_what_does_not_fit_is_refused(tmp_path):
    module = make("LlamaForCausalLM", LLAMA, tmp_path / "whole")
    weights = {name: weight for name, weight in module.state_dict().items() if "q_proj" not in name}
    module.save_pretrained(tmp_path / "missing", state_dict=weights)
    with pytest.raises(ValueError, match=r"weights 1 missing: model\.layers\.0\.self_attn\.q_proj\.weight"):
        npeff.models.from_huggingface(tmp_path / "missing")
    config = tmp_path / "whole" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["MyForCausalLM"]}))
    with pytest.raises(ValueError, match=r"a MyForCausalLM, which transformers .* does not have.*from_torch"):
        npeff.models.from_huggingface(tmp_path / "whole")
    make("LlamaForSequenceClassification", LLAMA | {"pad_token_id": None}, tmp_path / "classifier")
    with pytest.raises(ValueError, match="no pad_token_id"):
        npeff.models.from_huggingface(tmp_path / "classifier")
    make("DebertaV2ForTokenClassification", DEBERTA, tmp_path / "tokens")
    model = npeff.models.from_huggingface(tmp_path / "tokens")
    with pytest.raises(ValueError, match="no 'position', the index in input_ids of the token whose class"):
        model.n_classes({name: array[0] for name, array in EXAMPLES.items()})
    with pytest.raises(ValueError, match="only causal language models take"):
        npeff.models.from_huggingface(tmp_path / "tokens", answers=[[5], [6]])


def test_a_new_head_on_any_encoder(tmp_path):
    make("DebertaV2Model", DEBERTA, tmp_path)
    head = npeff.models.NewHead(("no", "yes"))
    models = [npeff.models.from_huggingface(tmp_path, new_head=head) for _ in range(2)]
    assert models[0].label_names == ("no", "yes")
    assert models[0].fingerprint == models[1].fingerprint
    other = npeff.models.from_huggingface(tmp_path, new_head=dataclasses.replace(head, seed=1))
    assert other.fingerprint != models[0].fingerprint


def test_npeff_verify_says_by_its_exit_code_whether_a_model_is_pytorchs(tmp_path, capsys):
    directory = tmp_path / "model"
    make("DebertaV2ForSequenceClassification", DEBERTA, directory)
    assert main(["verify", str(directory), "--n-examples", "1", "--exact"]) == 0
    shown = capsys.readouterr().out
    assert "agrees" in shown
    assert "gradient rows" in shown
    (tmp_path / "pair.py").write_text(
        "import numpy as np, torch, npeff_jax\n"
        "torch.manual_seed(0)\n"
        "module = torch.nn.Linear(3, 2)\n"
        "other = torch.nn.Linear(3, 2)\n"
        "def model(): return npeff_jax.models.from_torch(module)\n"
        "def same(): return module\n"
        "def different(): return other\n"
        "def examples(): return np.eye(3, dtype=np.float32)\n"
    )
    pair = f"{tmp_path}/pair.py"
    options = ["verify", f"{pair}:model", "--examples", f"{pair}:examples", "--reference"]
    assert main([*options, f"{pair}:same"]) == 0
    assert main([*options, f"{pair}:different"]) == 1
    assert "DIFFERS" in capsys.readouterr().out
    assert main(["verify", f"{pair}:model"]) == 2
