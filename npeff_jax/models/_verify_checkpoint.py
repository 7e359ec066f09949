"""Verification of a checkpoint read by `from_huggingface` against transformers in PyTorch."""

import copy
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from npeff_jax._types import Examples, PyTree
from npeff_jax.models import _huggingface, _huggingface_torch
from npeff_jax.models._checkpoint import locate, read_config
from npeff_jax.models._torch_env import to_numpy
from npeff_jax.models._torch_function import Forward
from npeff_jax.models._torch_tasks import LANGUAGE_MODELS, forward_of, task_of
from npeff_jax.models._verify import Translate, Verification, verify
from npeff_jax.models._weight_maps import map_weights, without_prefix


def verify_checkpoint(
    directory: str | pathlib.Path,
    examples: Examples | None = None,
    *,
    n_examples: int = 3,
    seed: int = 0,
    tolerance: float = 1e-5,
    in_float64: bool = False,
) -> Verification:
    """Compare the model that `from_huggingface` makes of a checkpoint with PyTorch.

    Args:
        directory: a checkpoint, or a PEFT adapter.
        examples: examples of the model; by default random ones.
        n_examples: number of random examples.
        seed: seed of random examples.
        tolerance: tolerance of `Verification.passed`.
        in_float64: whether to measure errors from PyTorch in float64, with memory for two more copies of the model.

    Raises:
        ImportError: PyTorch is missing.
        ValueError: the checkpoint cannot be read, or random examples cannot be made for it.
    """
    directory = locate(directory)
    config, name = _class(directory)
    model = _huggingface.from_huggingface(directory)
    reference = _huggingface_torch.load_module(directory, config, name)
    own = model.intermediates_fn is not None
    forward = forward_of(name, directory)
    return verify(
        model,
        reference,
        random_examples(config, name, n_examples, seed) if examples is None else examples,
        forward=partial(_log_probabilities, forward) if own and name.endswith(LANGUAGE_MODELS) else forward,
        translate=converter_layout(directory, reference) if own else None,
        exact=copy.deepcopy(reference).double() if in_float64 else None,
        tolerance=tolerance,
    )


def _log_probabilities(forward: Forward, module: Any, batch: Any) -> Any:
    """Compute log-probabilities, which the native GPT-2 returns instead of logits."""
    return forward(module, batch).log_softmax(-1)


def converter_layout(directory: str | pathlib.Path, reference: Any) -> Translate:
    """Return the function from PyTorch's parameters to those of a native model, as ``translate`` of `verify`.

    Args:
        directory: a checkpoint of an architecture with a native converter.
        reference: the PyTorch module of the checkpoint, which supplies buffers.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    architecture = _huggingface._architecture(read_config(pathlib.Path(directory)), False)
    expected = jax.eval_shape(architecture.module.init, jax.random.key(0), architecture.example)
    expected = {name: tree for name, tree in expected.items() if name != "intermediates"}
    state = {name: to_numpy(tensor) for name, tensor in reference.state_dict().items()}

    def translate(arrays: Mapping[str, np.ndarray]) -> PyTree:
        given = {name: torch.from_numpy(np.array(array)) for name, array in {**state, **arrays}.items()}
        stored = revert_weight_conversion(reference, given)  # transformers 5 renamed some weights
        tensors = without_prefix({name: to_numpy(t) for name, t in stored.items()}, architecture.base_prefix)
        return map_weights(tensors, architecture.rules, expected, ignored=architecture.ignored)["params"]

    return translate


def random_examples(config: Any, class_name: str, n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Make examples of random tokens, right-padded to different lengths, or of random images.

    Raises:
        ValueError: the configuration has neither a vocabulary size nor an image size.
    """
    rng = np.random.default_rng(seed)
    part = getattr(config, "vision_config", config)
    if class_name.endswith("ForImageClassification"):
        size = getattr(part, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        coarse = rng.normal(size=(n, 4, 4, getattr(part, "num_channels", 3)))  # large patches still differ pooled
        rows, columns = (np.arange(extent) * 4 // extent for extent in (height, width))
        return {"pixel_values": coarse[:, rows][:, :, columns].astype(np.float32)}
    words = getattr(config.get_text_config(), "vocab_size", None)
    if words is None:
        raise ValueError(f"no random examples can be made for a {class_name}; pass examples=")
    length = min(16, getattr(config, "max_position_embeddings", 16) - 2)
    mask = (np.arange(length) < rng.integers(length // 2, length + 1, n)[:, None]).astype(np.int32)
    padding = getattr(config, "pad_token_id", None) or 0
    ids = np.where(mask, rng.integers(min(5, words - 1), words, mask.shape), padding)
    made = {"input_ids": ids.astype(np.int32), "attention_mask": mask}
    if task_of(class_name) in ("ForTokenClassification", "ForMaskedLM"):
        made["position"] = (mask.sum(-1) // 2).astype(np.int32)
    return made


def _class(directory: pathlib.Path) -> tuple[Any, str]:
    """Return the configuration of a checkpoint, and the transformers class that runs it in PyTorch."""
    if _huggingface_torch.is_adapter(directory):
        config = _huggingface_torch.adapter_config(directory)
        return config, _huggingface_torch.adapter_class(directory, config)
    config = read_config(directory)
    names = list(config.architectures or [])
    if len(names) != 1 or task_of(names[0]) is None:
        raise ValueError(
            f"{directory} is a {' or '.join(names) or config.model_type}; from_huggingface has no such model"
        )
    return config, names[0]
