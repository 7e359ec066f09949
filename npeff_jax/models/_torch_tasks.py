"""PyTorch functions that compute the explained logits of a Hugging Face model, by the task of its class."""

import inspect
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from npeff_jax.models._torch_function import Forward

# The suffix of a class name, the transformers class that finds an architecture's class, and the example's input.
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
    """Return the suffix of a class name that defines its task, such as ``"ForCausalLM"``; None for other tasks."""
    return next((task for task in TASKS if class_name.endswith(task)), None)


def writes(class_name: str) -> bool:
    """Return whether a class is a causal language model."""
    return TASKS.get(task_of(class_name) or "") == CAUSAL


def forward_of(class_name: str, directory: pathlib.Path | None = None) -> Forward:
    """Return the PyTorch function that computes the explained logits of a class.

    Args:
        class_name: name of a class that ends in one of the supported tasks.
        directory: directory that may hold a tokenizer, which gives the mask token of a masked language model.
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
    if "pixel_values" in batch:  # examples have shape (height, width, channels)
        dtype = next(module.parameters()).dtype
        batch["pixel_values"] = batch["pixel_values"].permute(0, 3, 1, 2).to(dtype)
    return module(**batch)


def _at_position(module: Any, batch: Mapping[str, Any], *, token_id: int | None, what: str) -> Any:
    """Compute the logits at ``position``, by default at the token ``token_id``."""
    batch = dict(batch)
    position = batch.pop("position", None)
    if position is None:
        if token_id is None:
            raise ValueError(f"the example has no 'position', the index in input_ids of {what}")
        position = (batch["input_ids"] == token_id).int().argmax(-1)
    return module(**batch).logits[:, position.reshape(1).long()][:, 0]


def _next_token(module: Any, batch: Mapping[str, Any]) -> Any:
    """Compute the logits after the last token that ``attention_mask`` shows, or after ``position``."""
    ids, mask, end = _prompt(batch)
    rest = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask", "position")}
    return _logits_after(module, ids, mask, end, rest)[:, 0]


def at_places(module: Any, batch: Mapping[str, Any]) -> Any:
    """Compute the logits after each of ``places`` (1, p), concatenated to shape (1, p V)."""
    places = batch["places"][0].long()
    return _logits_after(module, batch["input_ids"], batch["attention_mask"], places, {}).reshape(1, -1)


def _prompt(batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return ``input_ids`` and ``attention_mask`` (1, L), and the index of the prompt's last token (1,)."""
    import torch

    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    if "position" in batch:
        return ids, mask, batch["position"].reshape(1).long()
    return ids, mask, ((mask != 0) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)


def _logits_after(module: Any, ids: Any, mask: Any, places: Any, rest: Mapping[str, Any]) -> Any:
    """Compute the logits (batch, p, words) after ``places`` (p,), applying the output layer only there if possible."""
    plain = module.get_base_model() if hasattr(module, "get_base_model") else module
    accepted = inspect.signature(plain.forward).parameters
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **rest}
    if "position_ids" in accepted:  # counted from the first token shown, as padding may be on either side
        given.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
    if "logits_to_keep" in accepted:
        return module(**given, logits_to_keep=places).logits
    return module(**given).logits[:, places]


def _mask_token(directory: pathlib.Path | None) -> int | None:
    """Return the id of the mask token from a checkpoint's tokenizer; None without one."""
    if directory is None or not any(
        (directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        return None
    import transformers

    return transformers.AutoTokenizer.from_pretrained(directory).mask_token_id
