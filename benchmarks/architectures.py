"""Small random models of many architectures of transformers, and examples for them, for `verify_architectures`."""

import dataclasses
from typing import Any

import numpy as np

WORDS, LENGTH, CLASSES, IMAGE = 40, 10, 4, 32

_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
_ENCODER = _SIZES | {"pad_token_id": 0, "type_vocab_size": 2}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = _SIZES | _IDS | {"num_key_value_heads": 1, "head_dim": 8}
_GPT = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20, **_IDS}
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": IMAGE,
    "patch_size": 8,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A class of transformers, and a configuration of it.

    Attributes:
        name: as people call it.
        cls: the class.
        config: arguments of its configuration.
        dtype: that it is run in.
        scale: standard deviation of its weights. At the usual 0.02 a tiny model computes nearly nothing, and any two
            agree.
    """

    name: str
    cls: str
    config: dict[str, Any]
    dtype: str = "float32"
    scale: float = 0.5


_GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 4, "num_hidden_layers": 2}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
_SWIN = {"image_size": IMAGE, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
_STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16]}

ARCHITECTURES = (
    # Encoders
    Architecture("BERT", "BertForSequenceClassification", _ENCODER),
    Architecture("BERT, tokens", "BertForTokenClassification", _ENCODER),
    Architecture("BERT, masked", "BertForMaskedLM", _ENCODER),
    Architecture("RoBERTa", "RobertaForSequenceClassification", _ENCODER),
    Architecture("XLM-RoBERTa, tokens", "XLMRobertaForTokenClassification", _ENCODER),
    Architecture(
        "DistilBERT",
        "DistilBertForSequenceClassification",
        {"vocab_size": WORDS, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20},
    ),
    Architecture("ALBERT", "AlbertForSequenceClassification", _ENCODER | {"embedding_size": 8}),
    Architecture("ELECTRA", "ElectraForSequenceClassification", _ENCODER | {"embedding_size": 8}),
    Architecture("MPNet", "MPNetForSequenceClassification", _ENCODER),
    Architecture("ERNIE", "ErnieForSequenceClassification", _ENCODER),
    Architecture("RoFormer", "RoFormerForSequenceClassification", _ENCODER | {"embedding_size": 16}),
    Architecture("ConvBERT", "ConvBertForSequenceClassification", _ENCODER | {"embedding_size": 16, "head_ratio": 1}),
    Architecture("SqueezeBERT", "SqueezeBertForSequenceClassification", _ENCODER | {"embedding_size": 16}),
    Architecture(
        "DeBERTa-v3",
        "DebertaV2ForSequenceClassification",
        _ENCODER
        | {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    Architecture(
        "ModernBERT",
        "ModernBertForSequenceClassification",
        _ENCODER | {"local_attention": 4, "num_hidden_layers": 2} | _IDS,
    ),
    Architecture(
        "ModernBERT, masked", "ModernBertForMaskedLM", _ENCODER | {"local_attention": 4, "num_hidden_layers": 2} | _IDS
    ),
    Architecture(
        "XLNet",
        "XLNetForSequenceClassification",
        {"vocab_size": WORDS, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24, "pad_token_id": 0},
    ),
    # Decoders
    Architecture("GPT-2", "GPT2LMHeadModel", _GPT),
    Architecture(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        _SIZES
        | _IDS
        | {
            "num_layers": 2,
            "num_heads": 2,
            "num_hidden_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
    ),
    Architecture("GPT-J", "GPTJForCausalLM", _GPT | {"rotary_dim": 4}),
    Architecture("GPT-NeoX, Pythia", "GPTNeoXForCausalLM", _SIZES | _IDS),
    Architecture("OPT", "OPTForCausalLM", _SIZES | _IDS | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    Architecture(
        "BLOOM", "BloomForCausalLM", {"vocab_size": WORDS, "hidden_size": 16, "n_layer": 1, "n_head": 2, **_IDS}
    ),
    Architecture("Falcon", "FalconForCausalLM", _SIZES | _IDS),
    Architecture("Llama", "LlamaForCausalLM", _DECODER | {"num_hidden_layers": 2}),
    Architecture("Llama, bfloat16", "LlamaForCausalLM", _DECODER, dtype="bfloat16"),
    Architecture("Llama, classifier", "LlamaForSequenceClassification", _DECODER),
    Architecture("Mistral", "MistralForCausalLM", _DECODER | {"sliding_window": 4, "num_hidden_layers": 2}),
    Architecture("Mixtral", "MixtralForCausalLM", _DECODER | {"num_local_experts": 4}),
    Architecture("Qwen2", "Qwen2ForCausalLM", _DECODER),
    Architecture("Qwen2-MoE", "Qwen2MoeForCausalLM", _DECODER | _MOE),
    Architecture("Qwen3", "Qwen3ForCausalLM", _DECODER),
    Architecture("Qwen3, tokens", "Qwen3ForTokenClassification", _DECODER),
    Architecture("Gemma", "GemmaForCausalLM", _DECODER),
    Architecture("Gemma 2", "Gemma2ForCausalLM", _DECODER | _GEMMA, scale=0.2),
    Architecture("Gemma 3", "Gemma3ForCausalLM", _DECODER | _GEMMA),
    Architecture("Phi", "PhiForCausalLM", _SIZES | _IDS | {"partial_rotary_factor": 0.5}),
    Architecture("Phi-3", "Phi3ForCausalLM", _DECODER),
    Architecture("StableLM", "StableLmForCausalLM", _DECODER),
    Architecture("StarCoder2", "Starcoder2ForCausalLM", _DECODER),
    Architecture("SmolLM3", "SmolLM3ForCausalLM", _DECODER),
    Architecture("OLMo 2", "Olmo2ForCausalLM", _DECODER),
    Architecture("Cohere", "CohereForCausalLM", _DECODER),
    Architecture("Granite", "GraniteForCausalLM", _DECODER),
    Architecture("GLM", "GlmForCausalLM", _DECODER | {"partial_rotary_factor": 0.5}),
    Architecture("Mamba", "MambaForCausalLM", _SIZES | _IDS | {"state_size": 4, "time_step_rank": 4}),
    # Images
    Architecture("ViT", "ViTForImageClassification", _VIT),
    Architecture("DeiT", "DeiTForImageClassification", _VIT),
    Architecture("BEiT", "BeitForImageClassification", _VIT | {"use_relative_position_bias": True}),
    Architecture("DINOv2", "Dinov2ForImageClassification", _VIT | {"mlp_ratio": 2}),
    Architecture("SigLIP", "SiglipForImageClassification", {"vision_config": _VIT}),
    Architecture("Swin", "SwinForImageClassification", _SWIN),
    Architecture("Swin v2", "Swinv2ForImageClassification", _SWIN),
    Architecture("ConvNeXt", "ConvNextForImageClassification", _STAGES | {"num_stages": 2}),
    Architecture("ConvNeXt v2", "ConvNextV2ForImageClassification", _STAGES | {"num_stages": 2}),
    Architecture("ResNet", "ResNetForImageClassification", _STAGES | {"embedding_size": 8}),
    Architecture("RegNet", "RegNetForImageClassification", _STAGES | {"embedding_size": 8, "groups_width": 4}),
    Architecture(
        "MobileNet v2", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.35, "image_size": IMAGE}, scale=0.2
    ),
    Architecture(
        "PoolFormer", "PoolFormerForImageClassification", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8]}
    ),
    Architecture(
        "LeViT",
        "LevitForImageClassification",
        {
            "image_size": IMAGE,
            "hidden_sizes": [16, 16, 16],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "drop_path_rate": 0,
        },
        scale=0.2,
    ),
)


def build(architecture: Architecture, seed: int = 0) -> Any:
    """The PyTorch module in evaluation mode, everything in it random: weights, biases, normalisations' statistics."""
    import torch
    import transformers

    cls = getattr(transformers, architecture.cls)
    labels = {} if "LM" in architecture.cls else {"id2label": {i: f"class {i}" for i in range(CLASSES)}}
    torch.manual_seed(seed)
    config = cls.config_class(**architecture.config, **labels, use_cache=False)
    config._experts_implementation = "eager"
    module = cls(config).eval()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith("running_mean") or (isinstance(tensor, torch.nn.Parameter) and tensor.ndim == 1):
                tensor.add_(torch.randn_like(tensor) * 0.3)
            elif isinstance(tensor, torch.nn.Parameter):
                tensor.copy_(torch.randn_like(tensor) * architecture.scale)
    return module.to(getattr(torch, architecture.dtype))


def examples(architecture: Architecture, n: int = 3, seed: int = 1) -> dict[str, np.ndarray]:
    """Padded texts of different lengths, one of them full; or images of few large patches."""
    rng = np.random.default_rng(seed)
    if "Image" in architecture.cls:
        patches = rng.normal(size=(n, 4, 4, 3)).astype(np.float32)
        return {"pixel_values": patches.repeat(IMAGE // 4, 1).repeat(IMAGE // 4, 2)}
    lengths = np.array([LENGTH, 4, 7])[:n]
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(5, WORDS, mask.shape), 0).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": mask}
    if "Token" in architecture.cls or "Masked" in architecture.cls:
        batch["position"] = (lengths // 2).astype(np.int32)
    return batch


def plain_forward(module: Any, batch: dict[str, Any]) -> Any:
    """PyTorch's side: transformers called as its documentation has it, and the logits picked by hand."""
    if "pixel_values" in batch:
        dtype = next(module.parameters()).dtype
        return module(pixel_values=batch["pixel_values"].permute(0, 3, 1, 2).to(dtype)).logits
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = module(input_ids=ids, attention_mask=mask).logits
    if logits.ndim == 2:
        return logits
    logits = logits[:, int(batch["position"]) if "position" in batch else int(mask.sum()) - 1]
    return logits.log_softmax(-1) if type(module).__name__ == "GPT2LMHeadModel" else logits  # as our converter has them
