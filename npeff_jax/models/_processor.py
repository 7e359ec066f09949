"""Encoding of raw text and images with a checkpoint's own tokenizer or image settings."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from npeff_jax._extras import needs
from npeff_jax.models._checkpoint import locate, read_config
from npeff_jax.models._huggingface import read_label_names, read_tokenizer
from npeff_jax.models._huggingface_torch import adapter_config, is_adapter
from npeff_jax.models._torch_tasks import writes

_LOG = logging.getLogger("npeff_jax")


@dataclasses.dataclass(frozen=True, eq=False)
class TextProcessor:
    """Encoder of strings to token ids of one length.

    Attributes:
        tokenizer: a ``transformers`` tokenizer.
        max_length: L. Longer texts are truncated (the longer of a pair first) and their number is logged; shorter ones
            are padded. For a causal language model, the end of the text is kept.
        label_names: names of the model's classes, if known; readers of data sets match labels to them.
    """

    tokenizer: Any
    max_length: int
    label_names: tuple[str, ...] | None = None

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return ``input_ids``, ``attention_mask`` and, if the model uses them, ``token_type_ids``: (n, L) integers.

        Args:
            texts: n strings.
            pairs: n second strings, for tasks on pairs (premise and hypothesis, two questions).

        Raises:
            ValueError: no texts, entries that are not valid strings, or a different number of pairs.
        """
        _check_texts("texts", texts)
        if pairs is not None:
            _check_texts("pairs", pairs)
            if len(pairs) != len(texts):
                raise ValueError(f"there are {len(texts)} texts and {len(pairs)} pairs; expected one pair per text")
        encoded = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
        )
        said_truncated(sum(bool(one.overflowing) for one in encoded.encodings or ()), len(texts), self.max_length)
        return {name: np.asarray(values, np.int32) for name, values in encoded.items()}


def said_truncated(n_cut: int, n_texts: int, max_length: int) -> None:
    """Log how many texts were truncated, if any."""
    if n_cut:
        _LOG.warning("%d of %d texts are longer than %d tokens and were cut", n_cut, n_texts, max_length)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageProcessor:
    """Encoder of images to the size, scale and mean that a model was trained with.

    Attributes:
        settings: a ``transformers`` image processor.
        label_names: names of the model's classes, if known; readers of data sets match labels to them.
    """

    settings: Any
    label_names: tuple[str, ...] | None = None

    def __call__(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return ``pixel_values`` (n, height, width, channels).

        Args:
            images: n PIL images, or arrays (height, width, 3) of bytes.
        """
        if len(images) == 0:
            raise ValueError("no images to encode")
        encoded = self.settings(list(images), return_tensors="np")["pixel_values"]
        return {"pixel_values": np.ascontiguousarray(np.asarray(encoded, np.float32).transpose(0, 2, 3, 1))}


def huggingface_processor(
    directory_or_id: str | pathlib.Path,
    *,
    max_length: int = 128,
    label_names: Sequence[str] | None = None,
    revision: str | None = None,
) -> TextProcessor | ImageProcessor:
    """Make the encoder of raw text or images for the model that `from_huggingface` makes from the same directory.

    Args:
        directory_or_id: a directory, or a name on the Hugging Face hub.
        max_length: L for text, limited to the model's number of positions.
        label_names: names of the model's classes, if not those of its configuration, such as those of a `NewHead`.
        revision: revision of a model on the hub.

    Raises:
        FileNotFoundError: the directory has neither a tokenizer nor image settings.
        ValueError: the tokenizer belongs to another model: its vocabulary is larger, or its padding token differs.
    """
    with needs("a Hugging Face processor"):
        import transformers

    directory = locate(directory_or_id, revision)
    config = adapter_config(directory) if is_adapter(directory) else read_config(directory)
    names = _class_names(config) if label_names is None else tuple(map(str, label_names))
    if (directory / "preprocessor_config.json").is_file():
        # The PIL backend needs no PyTorch, and resizes as in the models' training.
        return ImageProcessor(transformers.AutoImageProcessor.from_pretrained(directory, backend="pil"), names)
    tokenizer = read_tokenizer(directory)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{directory} has neither a tokenizer nor preprocessor_config.json; save them beside the model with "
            "tokenizer.save_pretrained(directory)"
        )
    _check_tokenizer(tokenizer, config, directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none; masked tokens have no effect
    if any(writes(name) for name in config.architectures or []):
        tokenizer.truncation_side = "left"
    return TextProcessor(tokenizer, min(max_length, _positions(config)), names)


def _class_names(config: Any) -> tuple[str, ...] | None:
    """Return the class names of a classifier; None for other models, whose configuration may hold default names."""
    classifies = any(name.endswith("Classification") for name in config.architectures or [])
    return read_label_names(config) if classifies and config.num_labels > 1 else None


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"{name}={texts!r}; expected a list of one or more strings")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is {text!r} ({type(text).__name__}); expected a string, '' if there is none")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{name}[{i}] has half of a surrogate pair, which is no character; replace it")


def _check_tokenizer(tokenizer: Any, config: Any, directory: pathlib.Path) -> None:
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer knows {len(tokenizer)} tokens, the model {config.vocab_size}; it belongs to "
            "another model"
        )
    ours, theirs = tokenizer.pad_token_id, config.pad_token_id
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"{directory}: the tokenizer pads with token {ours}, the model with {theirs}; it belongs to another model"
        )


def _positions(config: Any) -> int:
    """Return the maximum length of a text. RoBERTa numbers positions from its padding id + 1."""
    skipped = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return getattr(config, "max_position_embeddings", _NO_LIMIT) - skipped


_NO_LIMIT = 1 << 30
"""Maximum length of a text for a model with relative positions."""
