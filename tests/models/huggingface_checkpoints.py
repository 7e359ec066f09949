"""Small random PyTorch models of every architecture, drawn so that they compute something, and inputs for them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

ENCODER = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.5,  # at the default 0.02 a tiny model computes nearly nothing and any two agree
    "id2label": {0: "entailment", 1: "neutral", 2: "contradiction"},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An architecture and a configuration of it.

    Attributes:
        torch_class: in transformers.
        config: arguments of its configuration.
        inputs: ``(rng) -> examples``, as our models take them.
        logits: ``(model, inputs) -> (n, C)``, PyTorch's version of our logits.
    """

    torch_class: str
    config: dict[str, Any]
    inputs: Callable[[np.random.Generator], dict[str, np.ndarray]]
    logits: Callable[[Any, dict[str, Any]], Any] = lambda model, inputs: model(**inputs).logits


def tokens(*names: str, length: int = 10, padding_id: int = 0, words: int = 40) -> Callable:
    """Right-padded token ids of different lengths; one example is cut at the end, with no padding."""

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        lengths = np.array([length, 3, 7, 5])
        mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
        ids = rng.integers(max(2, padding_id + 1), words, mask.shape).astype(np.int32)
        examples = {"input_ids": np.where(mask, ids, padding_id).astype(np.int32), "attention_mask": mask}
        if "token_type_ids" in names:
            examples["token_type_ids"] = (np.arange(length) >= 2).astype(np.int32) * mask
        return examples

    return draw


def images(size: int = 32) -> Callable:
    """Images of few large patches, so that they still differ once a network has averaged over places."""
    return lambda rng: {
        "pixel_values": rng.normal(size=(4, 4, 4, 3)).astype("f4").repeat(size // 4, 1).repeat(size // 4, 2)
    }


def after_last_token(model: Any, inputs: dict[str, Any]) -> Any:
    """A language model's log-probabilities after the last token that the mask shows."""
    last = inputs["attention_mask"].sum(-1) - 1
    return model(**inputs).logits.log_softmax(-1)[range(len(last)), last]


def after_position(model: Any, inputs: dict[str, Any]) -> Any:
    """The same after the token at a chosen position."""
    position = inputs.pop("position")
    return model(**inputs).logits.log_softmax(-1)[range(len(position)), position]


def of_answers(*answers: list[int]) -> Callable:
    """The sum of the log-probabilities of an answer's tokens, each after the prompt and those before it."""

    def logits(model: Any, inputs: dict[str, Any]) -> Any:
        import torch

        rows = []
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            prompt = ids[mask == 1].tolist()
            row = []
            for answer in answers:
                log_p = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
                row.append(sum(log_p[len(prompt) + t - 1, token] for t, token in enumerate(answer)))
            rows.append(torch.stack(row))
        return torch.stack(rows)

    return logits


DISTIL = {
    "vocab_size": 40,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.5,
    "id2label": {0: "no", 1: "yes"},
}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "id2label": {i: f"c{i}" for i in range(5)}}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.5,
    "id2label": {i: f"c{i}" for i in range(4)},
}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 20,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ROBERTA = ENCODER | {"pad_token_id": 3, "type_vocab_size": 1}

CASES = {
    "bert": Case("BertForSequenceClassification", ENCODER, tokens("token_type_ids")),
    "bert-gelu_new": Case(
        "BertForSequenceClassification", ENCODER | {"hidden_act": "gelu_new"}, tokens("token_type_ids")
    ),
    "roberta": Case("RobertaForSequenceClassification", ROBERTA, tokens(padding_id=3)),
    "distilbert": Case("DistilBertForSequenceClassification", DISTIL, tokens()),
    "distilbert-relu": Case("DistilBertForSequenceClassification", DISTIL | {"activation": "relu"}, tokens()),
    "resnet-bottleneck": Case("ResNetForImageClassification", RESNET | {"layer_type": "bottleneck"}, images()),
    "resnet-basic": Case(
        "ResNetForImageClassification",
        RESNET | {"layer_type": "basic", "downsample_in_first_stage": True, "hidden_act": "gelu"},
        images(),
    ),
    "resnet-early-stride": Case(
        "ResNetForImageClassification",
        RESNET | {"layer_type": "bottleneck", "downsample_in_bottleneck": True, "hidden_act": "gelu"},
        images(),
    ),
    "vit": Case("ViTForImageClassification", VIT, images(16)),
    "vit-no-bias": Case("ViTForImageClassification", VIT | {"qkv_bias": False, "hidden_act": "gelu_new"}, images(16)),
    "gpt2": Case("GPT2LMHeadModel", GPT2, tokens(), after_last_token),
    "gpt2-untied": Case(
        "GPT2LMHeadModel",
        GPT2 | {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
        tokens(),
        after_last_token,
    ),
    "gpt2-position": Case(
        "GPT2LMHeadModel",
        GPT2,
        lambda rng: tokens()(rng) | {"position": np.array([9, 1, 0, 3], np.int32)},
        after_position,
    ),
}

# Each architecture once more with a single layer, for the longer tests: compilation is most of their time.
SHALLOW = {
    "bert": {"num_hidden_layers": 1},
    "roberta": {"num_hidden_layers": 1},
    "distilbert": {"n_layers": 1},
    "gpt2": {"n_layer": 1},
    "resnet-bottleneck": {"depths": [1, 1]},
    "resnet-basic": {"depths": [1, 1]},
    "vit": {"num_hidden_layers": 1},
}


def shallow(name: str) -> Case:
    """The case of that name with one layer, or one block a stage."""
    return dataclasses.replace(CASES[name], config=CASES[name].config | SHALLOW[name])


def torch_model(case: Case, seed: int = 0) -> Any:
    """A PyTorch model with random weights everywhere, biases, normalisations and their statistics included."""
    import torch
    import transformers

    torch.manual_seed(seed)
    cls = getattr(transformers, case.torch_class)
    model = cls(cls.config_class(**case.config)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name == "classifier.1.weight":
                tensor.mul_(4.0)  # ResNet's configuration has no initializer_range
            elif name.endswith("running_mean") or (tensor.ndim == 1 and tensor.is_floating_point()):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return model


def torch_inputs(examples: dict[str, np.ndarray], dtype: Any) -> dict[str, Any]:
    """Our examples as PyTorch's: 64-bit integers, channels first."""
    import torch

    given = {name: torch.from_numpy(np.asarray(array)) for name, array in examples.items()}
    return {
        name: tensor.permute(0, 3, 1, 2).to(dtype) if name == "pixel_values" else tensor.long()
        for name, tensor in given.items()
    }
