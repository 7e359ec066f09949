"""A LoRA over a causal language model, from two folders and JSON lines to a report, by commands alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import npeff_jax
from npeff_jax.report import read_report_data

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tokenizers_for_tests import WORDS, word_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("torchax")
pytest.importorskip("jinja2")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

QUIET = "--progress none"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An adapter, its base with a tokenizer, and 24 conversations."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    base.save_pretrained(folder / "base")
    tokenizer = word_tokenizer(40, token_types=False)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.5)
    adapted.save_pretrained(folder / "lora")
    settings = folder / "lora" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "../base"}))
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(24):
        asked, answered = (" ".join(rng.choice(WORDS[:14], 3)) for _ in range(2))
        lines.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]})
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.mark.parametrize("asked", ["--generate 3 --max-tokens 4", "--predicted answer"])
def test_from_folder_and_json_lines_to_a_report(npeff, folders, here, asked):
    model = f"--model {folders}/lora --examples {folders}/chats.jsonl"
    code, out, err = npeff(f"encode {model} {asked} --out data.npz {QUIET}")
    assert code == 0, err
    with np.load(here / "data.npz") as arrays:
        n, shown = len(arrays["input_ids"]), arrays["display"]
    commands = [
        f"pefs --part :{n // 2} --out pefs --keep 40",
        f"pefs --part {n // 2}: --out heldout --keep 40",
    ]
    for command in commands:
        code, _, err = npeff(f"{command} --model {folders}/lora --examples data.npz {QUIET}")
        assert code == 0, err
    pefs = npeff_jax.load_pefs(here / "pefs")
    assert all("lora_" in parameter.name for parameter in pefs.schema.layout.parameters)
    data = f"--model {folders}/lora --examples data.npz --part {n // 2}:"
    for command in (
        f"decompose --pefs pefs --n-components 2 --out components {QUIET}",
        "fit --decomposition components --pefs heldout --out fit.npz",
        f"perturb --decomposition components --pefs heldout --fit fit.npz {data} --n-top 2 --out table.npz {QUIET}",
        f"report --decomposition components --pefs heldout --fit fit.npz --selectivity table.npz {data} "
        "--out report.html --data report.json",
    ):
        code, out, err = npeff(command)
        assert code == 0, err
        if command.startswith("perturb"):
            assert ("standard error of a KL ratio from the drawn answers" in out) == ("generate" in asked)
    found = read_report_data(here / "report.json")
    for example in found.examples.shown:
        assert example.text == tuple(np.atleast_1d(shown[n // 2 + example.index]).tolist())
        assert bool(example.predicted) == ("predicted" in asked)  # answers are no classes
        assert ("⟦" in example.text[0]) == ("predicted" in asked)
    if "generate" in asked:
        assert pefs.schema.output == {"name": "Generated"}
        assert pefs.schema.n_classes == 3


def test_one_command(npeff, folders, here):
    options = "--generate 2 --max-tokens 3 --n-components 2 --keep 30 --n-top 2 --out run"
    code, out, err = npeff(f"explain --model {folders}/lora --examples {folders}/chats.jsonl {options} {QUIET}")
    assert code == 0, err
    assert (here / "run" / "report.html").exists()
    assert "19 examples to decompose, 5 held out" in out


def test_positions_of_a_text_are_held_out_together(npeff, folders, here):
    from npeff_jax.cli._explain import _split
    from npeff_jax.cli._language import Predicted
    from npeff_jax.cli._options import Explained

    explained = Explained(f"{folders}/lora", f"{folders}/chats.jsonl", predicted=Predicted.ALL, max_length=10)
    _, data = explained.load()
    train, heldout = _split(data, 0.3, None, 0)
    assert not set(data.groups[train]) & set(data.groups[heldout])
    assert len(set(data.groups[heldout])) == 7
    assert sorted([*train, *heldout]) == list(range(len(data)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--generate 2 --answers yes no", "--generate samples answers and --answers gives them"),
        ("--text-column body", "no column 'body'; the columns are"),
        ("--generate 2 --temperature 0", "temperature=0"),
    ],
)
def test_what_is_wrong_is_a_sentence(npeff, folders, options, told):
    code, _, err = npeff(f"plan --model {folders}/lora --examples {folders}/chats.jsonl {options}")
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


def test_options_of_language_models_are_theirs_alone(npeff):
    code, _, err = npeff("plan --model mine.py:network --examples mine.py:examples --generate 3")
    assert code == 2
    assert "--generate is for causal language models, but mine.py:network is not one" in err
