"""Hugging Face checkpoints of every other architecture: transformers' own PyTorch code, run through torchax."""

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
"""What PEFT writes beside an adapter's weights."""

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
    """A model of a checkpoint that PyTorch runs; `from_huggingface` calls it.

    Args:
        directory: a checkpoint, or a PEFT adapter, of which the adapter's parameters alone are explained by default.
        config: of the checkpoint, or of the adapter's base.
        class_name: of the checkpoint's model.
        forward: what is computed, PyTorch code; by default the logits of the class's task.
        dtype: of the parameters.
        mask: which parameters to explain.
        head_is_new: whether the classification head may be missing from the checkpoint.
        seed: of such a head.
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
    """The PyTorch module of a checkpoint or an adapter, in evaluation mode, from local files alone.

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
    config.use_cache = False  # a key-value cache serves generation; here it is work for nothing
    # Each token with the weights of its own experts: the other ways sort tokens by expert, into shapes that depend on
    # values. Models without experts do not read it.
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
    """Whether a directory holds what PEFT wrote: an adapter's weights, without those of its base."""
    return (directory / ADAPTER).is_file()


def class_to_run(directory: pathlib.Path, config: Any, native: Collection[str], new_head: bool) -> str | None:
    """The class of transformers that this module runs a checkpoint as.

    Args:
        directory: of the checkpoint or adapter.
        config: of the checkpoint, or of the adapter's base.
        native: classes, and types of configurations that become a classifier, that have a converter of their own.
        new_head: whether a classification head is to be added.

    Returns:
        None if the checkpoint has a converter of its own, or its outputs are not known here.
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
    """The configuration of an adapter's base, with as many labels as a head that is stored with the adapter."""
    config, labels = read_config(base_directory(directory)), _adapter_labels(directory)
    if labels is not None and labels != config.num_labels:
        config.id2label = {i: f"LABEL_{i}" for i in range(labels)}
    return config


def base_directory(directory: pathlib.Path) -> pathlib.Path:
    """The checkpoint that an adapter was trained on: a path, as it is or from the adapter's directory, or a name.

    Raises:
        ValueError: the adapter's configuration names none.
        FileNotFoundError: it is not there.
    """
    name = json.loads((directory / ADAPTER).read_text()).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{directory / ADAPTER} names no base_model_name_or_path; write there where its base model is")
    for candidate in (directory / name, pathlib.Path(name)):
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    return locate(name)


def adapter_class(directory: pathlib.Path, config: Any) -> str:
    """The class that an adapter was trained for: its base's own if the task is the same.

    Raises:
        ValueError: a task whose outputs are not known here.
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
    """The class of an ``AutoModelFor…`` for this configuration.

    Raises:
        ValueError: there is none.
    """
    mapping = auto._model_mapping
    if type(config) not in mapping:
        raise ValueError(f"transformers has no {auto.__name__.removeprefix('Auto')} of type {config.model_type}")
    found = mapping[type(config)]
    return (found[0] if isinstance(found, tuple) else found).__name__


def _check_padding(module: Any, class_name: str) -> None:
    """A decoder classifies at the last token that is no padding, and reads which that is from its configuration."""
    plain = module.get_base_model() if hasattr(module, "get_base_model") else module
    config = plain.config
    if class_name.endswith("ForSequenceClassification") and hasattr(plain, "score") and config.pad_token_id is None:
        raise ValueError(
            f"a {class_name} classifies at the last token that is not padding, and its config.json has no "
            "pad_token_id to tell it by; add the one that your tokenizer pads with"
        )


def _check_loaded(directory: pathlib.Path, module: Any, found: Mapping[str, Any], head_is_new: bool) -> None:
    """Refuse weights that were left at random, or not used: each is named."""
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
    """The base with its adapter on it; the base is frozen."""
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
    """The number of classes of a head that is stored with an adapter."""
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        return None
    heads = [a for name, a in read_weights(file).items() if name.endswith(_HEAD_WEIGHTS) and ".lora_" not in name]
    return int(heads[0].shape[0]) if heads else None


_HEAD_WEIGHTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars, which stand in the way of ours."""
    from transformers.utils import logging

    shown: Callable[[], bool] = logging.is_progress_bar_enabled
    before = shown()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
