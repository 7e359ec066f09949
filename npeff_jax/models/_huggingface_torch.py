"""Hugging Face checkpoints without a native converter: the PyTorch code of transformers, run through torchax."""

import contextlib
import json
import pathlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from npeff_jax._checks import listing
from npeff_jax._parameters import Mask
from npeff_jax.models._checkpoint import locate, read_config, read_weights
from npeff_jax.models._model import Model
from npeff_jax.models._torch import model_of
from npeff_jax.models._torch_env import import_torch
from npeff_jax.models._torch_function import Forward
from npeff_jax.models._torch_tasks import TASKS, forward_of, task_of

ADAPTER = "adapter_config.json"
"""Name of the configuration file of a PEFT adapter."""

_ADAPTER_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "CAUSAL_LM": "ForCausalLM",
}


def torch_checkpoint(
    directory: pathlib.Path,
    config: Any,
    class_name: str,
    *,
    forward: Forward | None = None,
    dtype: Any = "float32",
    mask: Mask = None,
    head_is_new: bool = False,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Make a model of a checkpoint from its PyTorch code, for `from_huggingface`.

    Args:
        directory: a checkpoint, or a PEFT adapter.
        config: configuration of the checkpoint, or of the adapter's base.
        class_name: name of the checkpoint's class in transformers.
        forward: PyTorch function that computes the logits; by default that of the class's task.
        dtype: dtype of the parameters.
        mask: which parameters to explain; by default all, or those of the adapter.
        head_is_new: whether the classification head may be missing from the checkpoint.
        seed: seed of the weights of such a head.
        **options: further fields of `Model`.
    """
    module = load_module(directory, config, class_name, dtype=dtype, head_is_new=head_is_new, seed=seed)
    forward = forward or forward_of(class_name, directory)
    _check_padding(module, class_name)
    return model_of(module, forward, mask, owned=True, **options)


def load_module(
    directory: pathlib.Path,
    config: Any,
    class_name: str,
    *,
    dtype: Any = "float32",
    head_is_new: bool = False,
    seed: int = 0,
) -> Any:
    """Load the PyTorch module of a checkpoint or an adapter in evaluation mode, from local files only.

    Raises:
        ImportError: PyTorch, torchax, or for an adapter PEFT, is missing.
        ValueError: transformers has no such class, or the weights do not fit it.
    """
    torch = import_torch()
    import transformers

    cls = getattr(transformers, class_name, None)
    if cls is None:
        raise ValueError(
            f"the checkpoint is a {class_name}, which transformers {transformers.__version__} does not have, and code "
            "that comes with a checkpoint is not run; load it yourself and pass from_torch(module)"
        )
    adapted = is_adapter(directory)
    base = base_directory(directory) if adapted else directory
    config.use_cache = False  # a key-value cache is only useful for generation
    # Apply each token's experts to it. Other implementations sort tokens by expert, into value-dependent shapes. Models
    # without experts ignore this setting.
    config._experts_implementation = "batched_mm"
    precision = getattr(torch, np.dtype(dtype).name)
    with _quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module, found = cls.from_pretrained(
                base, config=config, dtype=precision, output_loading_info=True, local_files_only=True
            )
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{base} cannot be loaded as a {class_name}: {error}") from error
    _check_loaded(base, module, found, head_is_new or adapted)
    return (_with_adapter(module, directory) if adapted else module).to(precision).eval()


def is_adapter(directory: pathlib.Path) -> bool:
    """Return whether a directory holds a PEFT adapter, without the weights of its base."""
    return (directory / ADAPTER).is_file()


def class_to_run(directory: pathlib.Path, config: Any, native: Collection[str], new_head: bool) -> str | None:
    """Return the class of transformers to run a checkpoint with.

    Args:
        directory: directory of the checkpoint or adapter.
        config: configuration of the checkpoint, or of the adapter's base.
        native: classes, and configuration types of classifiers, with a native converter.
        new_head: whether to add a classification head.

    Returns:
        The name of the class; None if the checkpoint has a native converter, or its task is not supported.
    """
    import transformers

    if is_adapter(directory):
        return adapter_class(directory, config)
    if new_head:
        automatic = (transformers.AutoModelForSequenceClassification, transformers.AutoModelForImageClassification)
        able = [auto for auto in automatic if type(config) in auto._model_mapping]
        return class_for(config, able[0]) if able and config.model_type not in native else None
    names = list(config.architectures or [])
    return names[0] if len(names) == 1 and names[0] not in native and task_of(names[0]) else None


def adapter_config(directory: pathlib.Path) -> Any:
    """Read the configuration of an adapter's base, with the number of labels of a head stored with the adapter."""
    config, labels = read_config(base_directory(directory)), _adapter_labels(directory)
    if labels is not None and labels != config.num_labels:
        config.id2label = {i: f"LABEL_{i}" for i in range(labels)}
    return config


def base_directory(directory: pathlib.Path) -> pathlib.Path:
    """Return the directory of the checkpoint that an adapter was trained on.

    The adapter's configuration gives it as a path, absolute or relative to the adapter, or as a name on the hub.

    Raises:
        ValueError: the adapter's configuration names no base.
        FileNotFoundError: the base is not found.
    """
    name = json.loads((directory / ADAPTER).read_text()).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{directory / ADAPTER} names no base_model_name_or_path; write there where its base model is")
    for candidate in (directory / name, pathlib.Path(name)):
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    return locate(name)


def adapter_class(directory: pathlib.Path, config: Any) -> str:
    """Return the class that an adapter was trained for; that of its base if the task is the same.

    Raises:
        ValueError: the task is not supported.
    """
    import transformers

    task = json.loads((directory / ADAPTER).read_text()).get("task_type")
    names = list(config.architectures or [])
    if task is None and names and task_of(names[0]):
        return names[0]
    if task not in _ADAPTER_TASKS:
        raise ValueError(
            f"{directory / ADAPTER} has the task_type {task!r}; supported are {', '.join(_ADAPTER_TASKS)}. For any "
            "other, load it with PEFT and pass from_torch(module, forward=...)"
        )
    wanted = TASKS[_ADAPTER_TASKS[task]]
    own = [name for name in names if TASKS.get(task_of(name) or "") == wanted]
    return own[0] if own else class_for(config, getattr(transformers, wanted))


def class_for(config: Any, auto: Any) -> str:
    """Return the name of the class that an ``AutoModelFor…`` uses for this configuration.

    Raises:
        ValueError: there is no such class.
    """
    mapping = auto._model_mapping
    if type(config) not in mapping:
        raise ValueError(f"transformers has no {auto.__name__.removeprefix('Auto')} of type {config.model_type}")
    found = mapping[type(config)]
    return (found[0] if isinstance(found, tuple) else found).__name__


def _check_padding(module: Any, class_name: str) -> None:
    """Raise if a decoder that classifies at the last non-padding token has no padding token in its configuration."""
    plain = module.get_base_model() if hasattr(module, "get_base_model") else module
    config = plain.config
    if class_name.endswith("ForSequenceClassification") and hasattr(plain, "score") and config.pad_token_id is None:
        raise ValueError(
            f"a {class_name} classifies at the last token that is not padding, and its config.json has no "
            "pad_token_id to tell it by; add the one that your tokenizer pads with"
        )


def _check_loaded(directory: pathlib.Path, module: Any, found: Mapping[str, Any], head_is_new: bool) -> None:
    """Raise ValueError, naming the weights, if some were missing or unused."""
    prefix = f"{module.base_model_prefix}."

    def in_head(name: str) -> bool:
        return head_is_new and not name.startswith(prefix)

    missing = sorted(name for name in found["missing_keys"] if not in_head(name))
    unknown = sorted(name for name in found["unexpected_keys"] if not in_head(name))
    misshapen = sorted(str(entry[0]) for entry in found["mismatched_keys"] if not in_head(str(entry[0])))
    problems = [("missing", missing), ("not part of the model", unknown), ("of another shape", misshapen)]
    if any(names for _, names in problems):
        told = "; ".join(f"{len(names)} {what}: {listing(names)}" for what, names in problems if names)
        raise ValueError(f"{directory}: the checkpoint does not fit its configuration: weights {told}")


def _with_adapter(module: Any, directory: pathlib.Path) -> Any:
    """Return the base module with its adapter added and its own parameters frozen."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"{directory} is a PEFT adapter; pip install peft ({error})") from error
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            adapted = peft.PeftModel.from_pretrained(module, str(directory), is_trainable=True)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise ValueError(f"{directory}: the adapter does not fit its base: {error}") from error
    for warning in warned:
        if "missing adapter keys" in str(warning.message):
            raise ValueError(f"{directory}: the adapter's file lacks weights of its configuration: {warning.message}")
    return adapted


def _adapter_labels(directory: pathlib.Path) -> int | None:
    """Return the number of classes of a head that is stored with an adapter."""
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        return None
    heads = [a for name, a in read_weights(file).items() if name.endswith(_HEAD_WEIGHTS) and ".lora_" not in name]
    return int(heads[0].shape[0]) if heads else None


_HEAD_WEIGHTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Disable the progress bars of transformers, which would interfere with ours."""
    from transformers.utils import logging

    shown: Callable[[], bool] = logging.is_progress_bar_enabled
    before = shown()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
