"""Which logits of a Hugging Face model an example is explained by, as PyTorch code: by the task its class is for."""

import inspect
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from npeff_jax.models._torch_function import Forward

# The end of a class's name, the class of transformers that finds the architecture's own, and what its example needs.
TASKS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
CAUSAL = "AutoModelForCausalLM"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")


def task_of(class_name: str) -> str | None:
    """The end of a class's name by which its outputs are known, such as ``"ForCausalLM"``; None for others."""
    return next((task for task in TASKS if class_name.endswith(task)), None)


def writes(class_name: str) -> bool:
    """Whether a class is of causal language models."""
    return TASKS.get(task_of(class_name) or "") == CAUSAL


def forward_of(class_name: str, directory: pathlib.Path | None = None) -> Forward:
    """The logits that an example of this class is explained by, as PyTorch code.

    Args:
        class_name: of a model whose name ends in one of the known tasks.
        directory: where its tokenizer may be, for the token that a masked language model fills.
    """
    task = task_of(class_name)
    if task == "ForTokenClassification":
        return partial(_at_position, token_id=None, what="the token whose class is explained")
    if task == "ForMaskedLM":
        return partial(_at_position, token_id=_mask_token(directory), what="the token to be filled in")
    if task in LANGUAGE_MODELS:
        return _next_token
    return _classify


def _classify(module: Any, batch: Mapping[str, Any]) -> Any:
    batch = dict(batch)
    if "pixel_values" in batch:  # (height, width, channels), as image files and our examples have them
        dtype = next(module.parameters()).dtype
        batch["pixel_values"] = batch["pixel_values"].permute(0, 3, 1, 2).to(dtype)
    return module(**batch)


def _at_position(module: Any, batch: Mapping[str, Any], *, token_id: int | None, what: str) -> Any:
    """Logits at ``position``, by default where ``token_id`` stands."""
    batch = dict(batch)
    position = batch.pop("position", None)
    if position is None:
        if token_id is None:
            raise ValueError(f"the example has no 'position', the index in input_ids of {what}")
        position = (batch["input_ids"] == token_id).int().argmax(-1)
    return module(**batch).logits[:, position.reshape(1).long()][:, 0]


def _next_token(module: Any, batch: Mapping[str, Any]) -> Any:
    """Logits after the last token that ``attention_mask`` shows, or after ``position``."""
    ids, mask, end = _prompt(batch)
    rest = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask", "position")}
    return _logits_after(module, ids, mask, end, rest)[:, 0]


def at_places(module: Any, batch: Mapping[str, Any]) -> Any:
    """Logits (1, p V) after each of ``places`` (1, p), one place after the other."""
    places = batch["places"][0].long()
    return _logits_after(module, batch["input_ids"], batch["attention_mask"], places, {}).reshape(1, -1)


def _prompt(batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """``input_ids`` and ``attention_mask`` (1, L), and the place (1,) after which something is written."""
    import torch

    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    if "position" in batch:
        return ids, mask, batch["position"].reshape(1).long()
    return ids, mask, ((mask != 0) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)


def _logits_after(module: Any, ids: Any, mask: Any, places: Any, rest: Mapping[str, Any]) -> Any:
    """(batch, p, words): the logits after each of ``places`` (p,), the output layer applied there alone if possible."""
    plain = module.get_base_model() if hasattr(module, "get_base_model") else module
    accepted = inspect.signature(plain.forward).parameters
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **rest}
    if "position_ids" in accepted:  # counted from the first token shown: padding may stand on either side
        given.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
    if "logits_to_keep" in accepted:
        return module(**given, logits_to_keep=places).logits
    return module(**given).logits[:, places]


def _mask_token(directory: pathlib.Path | None) -> int | None:
    """The id of the token to be filled in, from a checkpoint's tokenizer if it has one."""
    if directory is None or not any(
        (directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        return None
    import transformers

    return transformers.AutoTokenizer.from_pretrained(directory).mask_token_id
