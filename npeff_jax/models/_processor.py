"""Raw text and images as a checkpoint's model takes them: its own tokenizer, its own image settings."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from npeff_jax.models._huggingface import locate, read_config


@dataclasses.dataclass(frozen=True, eq=False)
class TextProcessor:
    """Strings to token ids, all of one length.

    Attributes:
        tokenizer: a ``transformers`` tokenizer.
        max_length: L. Longer texts are cut (the longer of a pair first), shorter ones padded.
    """

    tokenizer: Any
    max_length: int

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """``input_ids``, ``attention_mask`` and, where the model has them, ``token_type_ids``: (n, L) integers.

        Args:
            texts: n strings.
            pairs: n second strings, for tasks on pairs: premise and hypothesis, two questions.
        """
        if len(texts) == 0:
            raise ValueError("no texts to encode")
        encoded = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
        )
        return {name: np.asarray(values, np.int32) for name, values in encoded.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageProcessor:
    """Images to the size, scale and mean that a model was trained on.

    Attributes:
        settings: a ``transformers`` image processor.
    """

    settings: Any

    def __call__(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """``pixel_values``: (n, height, width, channels), channels last.

        Args:
            images: n PIL images, or arrays (height, width, 3) of bytes.
        """
        if len(images) == 0:
            raise ValueError("no images to encode")
        encoded = self.settings(list(images), return_tensors="np")["pixel_values"]
        return {"pixel_values": np.ascontiguousarray(np.asarray(encoded, np.float32).transpose(0, 2, 3, 1))}


def huggingface_processor(
    directory_or_id: str | pathlib.Path, *, max_length: int = 128, revision: str | None = None
) -> TextProcessor | ImageProcessor:
    """What turns raw text or images into the examples of `from_huggingface`'s model of the same directory.

    Args:
        directory_or_id: a directory, or a name on the Hugging Face hub.
        max_length: L for text, cut to the positions that the model has.
        revision: of a model on the hub.

    Raises:
        FileNotFoundError: the directory has no tokenizer and no image settings.
        ValueError: the tokenizer belongs to another model: it knows more words, or pads with another one.
    """
    import transformers

    directory = locate(directory_or_id, revision)
    config = read_config(directory)
    if (directory / "preprocessor_config.json").is_file():
        # The PIL backend needs no PyTorch, and is the one that resizes as the models' training did.
        return ImageProcessor(transformers.AutoImageProcessor.from_pretrained(directory, backend="pil"))
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")):
        raise FileNotFoundError(
            f"{directory} has neither a tokenizer nor preprocessor_config.json; save them beside the model with "
            "tokenizer.save_pretrained(directory)"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    _check_tokenizer(tokenizer, config, directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none; what stands in masked places does not matter
    return TextProcessor(tokenizer, min(max_length, _positions(config)))


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
    """The longest text: RoBERTa numbers its positions from one past its padding id."""
    skipped = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return config.max_position_embeddings - skipped
