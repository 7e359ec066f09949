"""Texts, pairs and conversations for causal language models."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from npeff_jax.tasks import read_passages

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tokenizers_for_tests import word_tokenizer

pytest.importorskip("transformers")

CHAT = [
    {"role": "user", "content": "the dog"},
    {"role": "assistant", "content": "is running"},
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    import tokenizers

    made = word_tokenizer(token_types=False)
    made.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(  # as decoders have it
        single="[CLS] $A", special_tokens=[("[CLS]", made.cls_token_id)]
    )
    made.chat_template = TEMPLATE
    return made


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def test_pairs_from_every_kind_of_source(tokenizer, tmp_path):
    rows = [{"prompt": "the dog is", "completion": "sleeping outside"}, {"prompt": "a cat", "completion": "is not"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    sources = [rows, file, str(file)]
    if (pandas := pytest.importorskip("pandas")) is not None:
        sources.append(pandas.DataFrame(rows))

    class Rows:  # a Hugging Face Dataset is a sequence of dictionaries
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return rows[i]

    sources.append(Rows())
    for source in sources:
        found = read_passages(source, tokenizer)
        assert words(tokenizer, found.tokens[0]) == ["[CLS]", "the", "dog", "is", "sleeping", "outside"]
        assert found.starts.tolist() == [4, 3]
    prompts = found.prompts()
    assert prompts.display == ["[CLS] the dog is", "[CLS] a cat"]
    assert prompts.examples["attention_mask"].sum(1).tolist() == [4, 3]
    plain = read_passages(["the dog", "a cat is"], tokenizer)
    assert plain.starts.tolist() == [3, 4]  # no answers: prompts are the texts


def test_conversations_by_the_tokenizers_template(tokenizer):
    found = read_passages([{"messages": CHAT}, {"messages": CHAT[:1]}], tokenizer)
    n = int(found.starts[0])
    assert tokenizer.decode(found.tokens[0]).split().count("running") == 1
    assert tokenizer.decode(found.tokens[0][n:]) == "is running ."  # what follows the template's opening
    assert found.tokens[0][:n] == found.tokens[1]  # the question alone ends where an answer begins
    assert found.starts[1] == len(found.tokens[1])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"source\[0\] is a conversation, and the tokenizer has no chat template"):
        read_passages([{"messages": CHAT}], tokenizer)
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="a message is 'hello'"):
        read_passages([{"messages": ["hello"]}], tokenizer)


def test_positions_are_examples_with_the_predicted_token_marked(tokenizer):
    found = read_passages(
        [{"prompt": "the dog", "completion": "is not"}, {"prompt": "a", "completion": "cat"}], tokenizer
    )
    every = found.positions("all")
    assert every.display[0] == "[CLS] ⟦the⟧ dog is not"
    assert every.groups.tolist() == [0, 0, 0, 0, 1, 1]
    for i, label in enumerate(every.labels):
        position = every.examples["position"][i]
        assert every.examples["input_ids"][i, position + 1] == label
        assert f"⟦{tokenizer.decode([label])}⟧" in every.display[i]
    answers = found.positions("answer")
    assert answers.display == ["[CLS] the dog ⟦is⟧ not", "[CLS] the dog is ⟦not⟧", "[CLS] a ⟦cat⟧"]
    last = found.positions("last")
    assert last.labels is None
    assert last.display[0] == "[CLS] the dog is not ⟦ ⟧"
    with pytest.raises(ValueError, match="no text has a token to predict"):
        read_passages(["a"], tokenizer).positions("answer")


def test_the_end_of_a_long_text_is_kept_and_how_many_were_cut_is_said(tokenizer, caplog):
    long = {"prompt": "the dog is not sleeping outside", "completion": "a cat is"}
    with caplog.at_level(logging.WARNING, "npeff_jax"):
        found = read_passages([long, {"prompt": "a", "completion": "cat"}], tokenizer, max_length=5)
    assert words(tokenizer, found.tokens[0]) == ["sleeping", "outside", "a", "cat", "is"]
    assert found.starts.tolist() == [2, 2]
    assert found.n_truncated == 1
    assert "1 of 2 texts are longer than 5 tokens and were cut" in caplog.text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ([], "no texts to read"),
        ([3], r"source\[0\] is a int; expected a text"),
        ([{"x": "a"}], "the columns are x; say which is the text"),
        ([{"text": 3}], r"source\[0\], column 'text' holds a int"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer, source, told):
    with pytest.raises(ValueError, match=told):
        read_passages(source, tokenizer)
    assert np.size(source) < 2
