"""Models from Hugging Face checkpoints, given by a directory or a name on the hub."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax._extras import needs
from npeff_jax._parameters import Mask
from npeff_jax._types import Example, PyTree
from npeff_jax.models import _huggingface_torch
from npeff_jax.models._checkpoint import locate, read_checkpoint, read_config
from npeff_jax.models._huggingface_torch import is_adapter
from npeff_jax.models._language import LanguageModel
from npeff_jax.models._linen import from_linen
from npeff_jax.models._model import Model
from npeff_jax.models._outputs import Bernoulli, Categorical, Gaussian, Output
from npeff_jax.models._torch import from_torch
from npeff_jax.models._torch_tasks import LANGUAGE_MODELS, at_places, writes
from npeff_jax.models._weight_maps import NOTHING, Architecture, flatten_paths, map_weights, nest_paths, without_prefix


@dataclasses.dataclass(frozen=True)
class NewHead:
    """A new classification head with random weights, to be trained.

    Attributes:
        label_names: names of the C classes.
        seed: seed of the weights, which are normal with standard deviation 0.02 as in BERT's initialisation.
    """

    label_names: tuple[str, ...]
    seed: int = 0


def from_huggingface(
    directory_or_id: str | pathlib.Path,
    *,
    new_head: NewHead | None = None,
    answers: Sequence[str | Sequence[int]] | None = None,
    dtype: Any = jnp.float32,
    mask: Mask = None,
    revision: str | None = None,
) -> Model:
    """Make a model from a checkpoint that ``save_pretrained`` wrote, or from a PEFT adapter (LoRA).

    Weights are read from safetensors or PyTorch files, whole or sharded; pickled code is not executed. Of an adapter,
    only its own parameters are explained by default; the base model is found through the adapter's configuration.

    Classifiers of BERT, RoBERTa, DistilBERT, ViT and ResNet, and GPT-2, are native in JAX and need no PyTorch. Every
    other class of transformers for the classification of sequences, tokens or images, and causal and masked language
    models, run their PyTorch code as in `from_torch`, with the extra ``npeff_jax[torch]``.

    An example is a dictionary, as made by `huggingface_processor`: ``input_ids``, ``attention_mask`` and
    ``token_type_ids`` of shape (L,) for text, ``pixel_values`` of shape (height, width, channels) for images. A causal
    language model is explained by its distribution after the last token shown, or after the token at ``position``; a
    token classifier at the token ``position``; a masked language model at ``position`` or at the mask token. Dropout is
    off, and BatchNorm uses its stored statistics, which are constants. For native models, ``Model.intermediates_fn``
    gives the value after each layer or stage, and ``"pooled"``, the input of the classifier.

    Args:
        directory_or_id: a directory, or a name on the Hugging Face hub, fetched once and cached.
        new_head: a new classification head, for a checkpoint without one.
        answers: for a language model, strings (or token ids) to choose among: these become the C classes, with the
            log-probability of the whole answer after the prompt as logit. By default the classes are the vocabulary.
        dtype: dtype of the parameters.
        mask: which parameters to explain, as in `Model`; by default an adapter's own parameters, or all.
        revision: revision of a model on the hub.

    Returns:
        A model whose ``label_names`` come from the configuration.

    Raises:
        ImportError: the architecture runs through PyTorch, and PyTorch, torchax or PEFT is missing.
        FileNotFoundError: the directory has no configuration or no weights, or the name cannot be fetched.
        ValueError: the architecture is not supported, or weights are missing, unknown or of the wrong shape (the
            message names them).
    """
    directory = locate(directory_or_id, revision)
    config = _huggingface_torch.adapter_config(directory) if is_adapter(directory) else read_config(directory)
    if new_head is not None:
        config.id2label = dict(enumerate(new_head.label_names))
    if answers is not None:
        return language_model(directory, dtype=dtype, trainable=mask).choices(answers)
    other = _huggingface_torch.class_to_run(directory, config, {*_builders(), *_CLASSIFIERS}, new_head is not None)
    if other is not None:
        writes_words = other.endswith(LANGUAGE_MODELS)
        return _huggingface_torch.torch_checkpoint(
            directory,
            config,
            other,
            dtype=dtype,
            mask=mask,
            head_is_new=new_head is not None,
            seed=0 if new_head is None else new_head.seed,
            output=Categorical() if writes_words else _output(config),
            label_names=None if writes_words else read_label_names(config),
        )
    architecture = _architecture(config, new_head is not None)
    if architecture.is_language_model:
        output: Output = Categorical()
        names = None
    else:
        output, names = _output(config), read_label_names(config)
    variables = _variables(directory, architecture, dtype, new_head)
    return dataclasses.replace(
        from_linen(architecture.module, variables, mask=mask, output=output, label_names=names),
        intermediates_fn=_intermediates(architecture.module, variables),
    )


def language_model(
    source: str | pathlib.Path | Any,
    *,
    trainable: Mask = None,
    tokenizer: Any = None,
    dtype: Any = jnp.float32,
    revision: str | None = None,
) -> LanguageModel:
    """Make a causal language model, to explain its next token, its choice among answers, or its generated answers.

    Args:
        source: a directory of a checkpoint or of a PEFT adapter (LoRA), a name on the Hugging Face hub, or a
            ``torch.nn.Module`` of transformers or with the same calling convention.
        trainable: which parameters to explain, globs over their names or a predicate; by default an adapter's own
            parameters, or a module's parameters that require gradients.
        tokenizer: a ``transformers`` tokenizer; by default the one in the directory.
        dtype: dtype of a checkpoint's parameters.
        revision: revision of a model on the hub.

    Raises:
        ImportError: transformers is missing; or PyTorch, torchax or PEFT where they are needed.
        FileNotFoundError: the directory has no configuration or no weights, or the name cannot be fetched.
        ValueError: ``source`` is not a causal language model.
    """
    if not isinstance(source, str | pathlib.Path):
        base = from_torch(source, forward=at_places, trainable=trainable)
        config = getattr(source, "config", None)
        return _from_base(base, config, tokenizer)
    directory = locate(source, revision)
    config, name = _class_of(directory)
    if not writes(name):
        raise ValueError(
            f"answers were given, or a language model asked for, but the checkpoint is a {name or config.model_type}; "
            "only causal language models take and write them (…ForCausalLM, …LMHeadModel)"
        )
    tokenizer = read_tokenizer(directory) if tokenizer is None else tokenizer
    if is_adapter(directory) or name not in _builders():
        base = _huggingface_torch.torch_checkpoint(
            directory, config, name, forward=at_places, dtype=dtype, mask=trainable
        )
        return _from_base(base, config, tokenizer)
    architecture = _architecture(config, False)
    module, variables = architecture.module, _variables(directory, architecture, dtype, None)
    constants = {name: value for name, value in variables.items() if name != "params"}

    def token_logits(params: PyTree, ids: jax.Array, shown: jax.Array, places: jax.Array) -> jax.Array:
        return module.apply({"params": params, **constants}, ids, shown != 0, places, method="after")

    return LanguageModel(
        token_logits,
        variables["params"],
        mask=trainable,
        constants={"module": module},
        tokenizer=tokenizer,
        stop=_stop_tokens(config, tokenizer),
        max_length=_most_positions(config),
        intermediates_fn=_intermediates(module, variables),
    )


def is_language_model(directory: str | pathlib.Path) -> bool:
    """Return whether a directory holds a causal language model, or a PEFT adapter of one."""
    directory = pathlib.Path(directory)
    found = is_adapter(directory) or (directory / "config.json").is_file()
    return found and writes(_class_of(directory)[1])


def _class_of(directory: pathlib.Path) -> tuple[Any, str]:
    """Return the configuration and the class of a checkpoint, or of an adapter's base."""
    if is_adapter(directory):
        config = _huggingface_torch.adapter_config(directory)
        return config, _huggingface_torch.adapter_class(directory, config)
    config = read_config(directory)
    return config, " or ".join(config.architectures or [])


def _from_base(base: Model, config: Any, tokenizer: Any) -> LanguageModel:
    """Make a language model from a model of a PyTorch module whose logits after all places form one vector."""

    def token_logits(params: PyTree, ids: jax.Array, shown: jax.Array, places: jax.Array) -> jax.Array:
        batch = {"input_ids": ids, "attention_mask": shown, "places": places}
        return base.logits_fn(params, batch).reshape(len(places), -1)

    return LanguageModel(
        token_logits,
        base.params,
        mask=base.mask,
        constants=base.constants,
        tokenizer=tokenizer,
        stop=_stop_tokens(config, tokenizer),
        max_length=_most_positions(config),
    )


def _stop_tokens(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a text, according to the tokenizer and the configuration."""
    own, theirs = getattr(tokenizer, "eos_token_id", None), getattr(config, "eos_token_id", None)
    found = {token for ids in (own, theirs) for token in (ids if isinstance(ids, list | tuple) else [ids])}
    return tuple(sorted(token for token in found if token is not None))


def _most_positions(config: Any) -> int | None:
    """Return the maximum number of tokens that a model accepts; None if its configuration does not say."""
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def read_tokenizer(directory: pathlib.Path) -> Any:
    """Load the tokenizer in a directory or, for an adapter without one, in that of its base; None without either."""
    places = [directory, *([_huggingface_torch.base_directory(directory)] if is_adapter(directory) else [])]
    for place in places:
        if any((place / name).is_file() for name in TOKENIZERS):
            with needs("a Hugging Face tokenizer"):
                import transformers

            return transformers.AutoTokenizer.from_pretrained(place)
    return None


TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
"""File names that indicate a saved tokenizer."""


def _builders() -> dict[str, Callable[..., Architecture]]:
    with needs("a Hugging Face checkpoint"):
        from npeff_jax.models import _bert, _gpt2, _resnet, _vit

    return {
        "BertForSequenceClassification": _bert.bert,
        "RobertaForSequenceClassification": _bert.roberta,
        "DistilBertForSequenceClassification": _bert.distilbert,
        "ResNetForImageClassification": _resnet.resnet,
        "ViTForImageClassification": _vit.vit,
        "GPT2LMHeadModel": _gpt2.gpt2,
    }


# Builders by type of configuration, for checkpoints without a head that get a new one.
_CLASSIFIERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "resnet": "ResNetForImageClassification",
    "vit": "ViTForImageClassification",
}


def _architecture(config: Any, pretrained: bool) -> Architecture:
    builders, names = _builders(), list(config.architectures or [])
    if pretrained and config.model_type in _CLASSIFIERS:
        names = [_CLASSIFIERS[config.model_type]]
    if len(names) != 1 or names[0] not in builders:
        headless = not pretrained and config.model_type in _CLASSIFIERS
        raise ValueError(
            f"the checkpoint is a {' or '.join(names) or config.model_type}; supported are {', '.join(builders)}, and "
            "through PyTorch any other class for sequence, token or image classification, causal and masked language "
            "models. "
            + ("To train a classifier on it, pass new_head=NewHead(label_names). " if headless else "")
            + "For any other, pass from_torch(module, forward=...), or a pure function: Model(logits_fn, params)"
        )
    return builders[names[0]](config)


def _variables(directory: pathlib.Path, architecture: Architecture, dtype: Any, new_head: NewHead | None) -> PyTree:
    expected = jax.eval_shape(architecture.module.init, jax.random.key(0), architecture.example)
    expected = {name: tree for name, tree in expected.items() if name != "intermediates"}
    prefix = architecture.base_prefix
    absent = architecture.head if new_head is not None else NOTHING
    try:
        tensors = without_prefix(read_checkpoint(directory), prefix)
        variables = map_weights(tensors, architecture.rules, expected, ignored=architecture.ignored, absent=absent)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(str(directory)) else f"{directory}: {told}") from error
    if new_head is not None:
        variables = _add_head(variables, expected, absent, new_head)
    # Statistics stay NumPy arrays: constants of the traced function, independent of devices.
    arrays = {name: jnp if name == "params" else np for name in variables}
    return {name: jax.tree.map(partial(arrays[name].asarray, dtype=dtype), tree) for name, tree in variables.items()}


def _add_head(variables: PyTree, expected: PyTree, head: str, new_head: NewHead) -> PyTree:
    rng = np.random.default_rng(new_head.seed)
    flat = flatten_paths(variables)
    for path, leaf in flatten_paths(expected).items():
        if re.fullmatch(head, path):
            flat[path] = rng.normal(0, 0.02, leaf.shape) if len(leaf.shape) > 1 else np.zeros(leaf.shape)
    return nest_paths(flat)


def read_label_names(config: Any) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the logits.

    Raises:
        ValueError: the class numbers are not 0 to C − 1.
    """
    numbers = sorted(int(number) for number in config.id2label)
    if numbers != list(range(len(numbers))):
        raise ValueError(
            f"id2label in config.json has the classes {', '.join(map(str, numbers))}; expected 0 to {len(numbers) - 1} "
            "without a gap, one for each logit"
        )
    return tuple(str(config.id2label[number]) for number in numbers)


def _output(config: Any) -> Output:
    """Return the output family for the configuration's ``problem_type``."""
    if config.problem_type == "multi_label_classification":
        return Bernoulli()
    return Gaussian() if config.problem_type == "regression" or config.num_labels == 1 else Categorical()


def _intermediates(module: Any, variables: PyTree) -> Callable[[PyTree, Example], dict[str, jax.Array]]:
    constants = {name: value for name, value in variables.items() if name != "params"}

    def intermediates_fn(params: PyTree, example: Example) -> dict[str, jax.Array]:
        _, sown = module.apply({"params": params, **constants}, example, mutable=["intermediates"])
        return {name: values[0] for name, values in sown["intermediates"].items()}

    return intermediates_fn
