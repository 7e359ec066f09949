"""Hugging Face checkpoints as models: a directory, or a name on the hub, in; a `Model` out."""

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
from npeff_jax.models._linen import from_linen
from npeff_jax.models._model import Model
from npeff_jax.models._outputs import Bernoulli, Categorical, Gaussian, Output
from npeff_jax.models._torch_tasks import LANGUAGE_MODELS
from npeff_jax.models._weight_maps import NOTHING, Architecture, flatten_paths, map_weights, nest_paths, without_prefix


@dataclasses.dataclass(frozen=True)
class NewHead:
    """A classification head to be trained, in place of the checkpoint's or where it has none.

    Attributes:
        label_names: of the C classes.
        seed: of its random weights, normal with standard deviation 0.02, the value that BERT was initialised with.
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
    """A model from what ``save_pretrained`` wrote: configuration and weights, in safetensors or PyTorch files, sharded
    or whole; or from a PEFT adapter (LoRA), whose own parameters are then explained, with its base where its
    configuration says. Pickled code is not executed.

    Classifiers of BERT, RoBERTa, DistilBERT, ViT and ResNet, and GPT-2, have converters of their own and need no
    PyTorch. Every other class of transformers for the classification of sequences, tokens or images, and causal and
    masked language models, run their PyTorch code as `from_torch` does, with the extra ``npeff_jax[torch]``.

    An example is a dictionary, as `huggingface_processor` makes it: ``input_ids``, ``attention_mask`` and
    ``token_type_ids`` of shape (L,) for text, ``pixel_values`` of shape (height, width, channels) for images. A causal
    language model is explained by its distribution after the last token shown, or after the token at ``position``; a
    token classifier at the token ``position``; a masked language model there, or where its tokenizer's mask token
    stands. Dropout is off, and BatchNorm uses its stored statistics, which are constants. Where the converter is our
    own, ``Model.intermediates_fn`` gives the value after each layer or stage, and ``"pooled"``, the one before the
    classifier.

    Args:
        directory_or_id: a directory, or a name on the Hugging Face hub, fetched once and cached.
        new_head: a head to be trained, for a checkpoint without one.
        answers: for a language model, strings (or token ids) among which the next words are chosen: the C classes
            become these, a logit being the log-probability of the whole answer after the prompt. Without it the classes
            are the vocabulary.
        dtype: of the parameters.
        mask: which parameters to explain, as in `Model`; of an adapter, its own by default.
        revision: of a model on the hub.

    Returns:
        A model whose ``label_names`` come from the configuration.

    Raises:
        ImportError: the architecture runs through PyTorch, and that, torchax or PEFT is missing.
        FileNotFoundError: the directory has no configuration or no weights, or the name cannot be fetched.
        ValueError: the architecture is not supported, or the weights do not fit the configuration: missing, unknown and
            misshapen ones are named.
    """
    directory = locate(directory_or_id, revision)
    config = _huggingface_torch.adapter_config(directory) if is_adapter(directory) else read_config(directory)
    if new_head is not None:
        config.id2label = dict(enumerate(new_head.label_names))
    token_ids = None if answers is None else _token_ids(answers, directory)
    other = _huggingface_torch.class_to_run(directory, config, {*_builders(), *_CLASSIFIERS}, new_head is not None)
    if other is not None:
        writes = other.endswith(LANGUAGE_MODELS)
        return _huggingface_torch.torch_checkpoint(
            directory,
            config,
            other,
            answers=token_ids,
            dtype=dtype,
            mask=mask,
            head_is_new=new_head is not None,
            seed=0 if new_head is None else new_head.seed,
            output=Categorical() if writes else _output(config),
            label_names=_answer_names(answers) if writes else read_label_names(config),
        )
    architecture = _architecture(config, new_head is not None, token_ids)
    if architecture.is_language_model:
        output: Output = Categorical()
        names = _answer_names(answers)
    else:
        output, names = _output(config), read_label_names(config)
    variables = _variables(directory, architecture, dtype, new_head)
    return dataclasses.replace(
        from_linen(architecture.module, variables, mask=mask, output=output, label_names=names),
        intermediates_fn=_intermediates(architecture.module, variables),
    )


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


_LANGUAGE_MODEL = "GPT2LMHeadModel"

# What a checkpoint without a head of its own becomes when it is given a new one.
_CLASSIFIERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "resnet": "ResNetForImageClassification",
    "vit": "ViTForImageClassification",
}


def _architecture(config: Any, pretrained: bool, answers: tuple[tuple[int, ...], ...] | None) -> Architecture:
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
    if answers is None:
        return builders[names[0]](config)
    if names[0] != _LANGUAGE_MODEL:
        raise ValueError(f"answers were given, but the checkpoint is a {names[0]}; only {_LANGUAGE_MODEL} takes them")
    return builders[names[0]](config, answers)


def _answer_names(answers: Sequence[str | Sequence[int]] | None) -> tuple[str, ...] | None:
    return None if answers is None else tuple(a if isinstance(a, str) else str(tuple(a)) for a in answers)


def _token_ids(answers: Sequence[str | Sequence[int]], directory: pathlib.Path) -> tuple[tuple[int, ...], ...]:
    if isinstance(answers, str) or len(answers) < 2:
        raise ValueError(f"answers={answers!r}; expected two or more strings to choose among")
    tokenize: Callable[[str], Sequence[int]] | None = None
    ids = []
    for answer in answers:
        if isinstance(answer, str):
            tokenize = tokenize or _tokenize(directory)
            answer = tokenize(answer)
        ids.append(tuple(int(token) for token in answer))
    if () in ids:
        raise ValueError(f"answers[{ids.index(())}] has no tokens")
    return tuple(ids)


def _tokenize(directory: pathlib.Path) -> Callable[[str], Sequence[int]]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


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
    # The statistics stay NumPy: constants of the traced function, tied to no device.
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
    """The names of the classes, in the order of the logits.

    Raises:
        ValueError: the numbers of the classes are not 0 to C − 1.
    """
    numbers = sorted(int(number) for number in config.id2label)
    if numbers != list(range(len(numbers))):
        raise ValueError(
            f"id2label in config.json has the classes {', '.join(map(str, numbers))}; expected 0 to {len(numbers) - 1} "
            "without a gap, one for each logit"
        )
    return tuple(str(config.id2label[number]) for number in numbers)


def _output(config: Any) -> Output:
    """Return the output family that the configuration's ``problem_type`` stands for."""
    if config.problem_type == "multi_label_classification":
        return Bernoulli()
    return Gaussian() if config.problem_type == "regression" or config.num_labels == 1 else Categorical()


def _intermediates(module: Any, variables: PyTree) -> Callable[[PyTree, Example], dict[str, jax.Array]]:
    constants = {name: value for name, value in variables.items() if name != "params"}

    def intermediates_fn(params: PyTree, example: Example) -> dict[str, jax.Array]:
        _, sown = module.apply({"params": params, **constants}, example, mutable=["intermediates"])
        return {name: values[0] for name, values in sown["intermediates"].items()}

    return intermediates_fn
