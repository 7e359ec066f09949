"""BERT for sequence classification, and its variants RoBERTa and DistilBERT."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax.models._transformer import LayerNorm, SelfAttention, activation, visible_positions
from npeff_jax.models._weight_maps import Architecture, Rule, layer_norm, linear

Activation = Callable[[jax.Array], jax.Array]


class EncoderLayer(nn.Module):
    """Post-norm encoder layer: attention and a feed-forward network, each followed by residual sum and LayerNorm."""

    heads: int
    inner_width: int
    activation: Activation
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
        mixed = SelfAttention(self.heads, name="attention")(x, visible)
        x = LayerNorm(self.epsilon, name="attention_norm")(x + mixed)
        inner = self.activation(nn.Dense(self.inner_width, name="intermediate")(x))
        return LayerNorm(self.epsilon, name="output_norm")(x + nn.Dense(x.shape[-1], name="output")(inner))


class Bert(nn.Module):
    """BERT classifier, from token ids to logits.

    Attributes:
        n_words: size of the vocabulary.
        n_positions: number of position embeddings.
        n_token_types: number of token types; 0 for none.
        padding_id: if not None, positions are numbered as in RoBERTa: from ``padding_id + 1`` for tokens other than
            this one, and ``padding_id`` for padding.
        pooler_activation: activation of the dense layer between the first token and the classifier.
    """

    width: int
    n_layers: int
    heads: int
    inner_width: int
    n_words: int
    n_positions: int
    n_token_types: int
    n_labels: int
    activation: Activation
    pooler_activation: Activation
    epsilon: float
    padding_id: int | None = None

    @nn.compact
    def __call__(self, example: Mapping[str, jax.Array]) -> jax.Array:
        """Compute the logits (..., C) of ``input_ids`` (..., L), padded on either side.

        ``attention_mask`` defaults to ones and ``token_type_ids`` to zeros.
        """
        ids = example["input_ids"]
        if ids.shape[-1] > self.n_positions - (0 if self.padding_id is None else self.padding_id + 1):
            raise ValueError(f"input_ids has {ids.shape[-1]} tokens; the model has {self.n_positions} positions")
        mask = jnp.asarray(example.get("attention_mask", jnp.ones_like(ids)), bool)
        x = nn.Embed(self.n_words, self.width, name="word_embeddings")(ids)
        x += nn.Embed(self.n_positions, self.width, name="position_embeddings")(self._positions(ids, mask))
        if self.n_token_types:
            types = example.get("token_type_ids", jnp.zeros_like(ids))
            x += nn.Embed(self.n_token_types, self.width, name="token_type_embeddings")(types)
        x = LayerNorm(self.epsilon, name="embeddings_norm")(x)
        self.sow("intermediates", "embeddings", x)
        visible = mask[..., None, :]
        for i in range(self.n_layers):
            layer = EncoderLayer(self.heads, self.inner_width, self.activation, self.epsilon, name=f"layer_{i}")
            x = layer(x, visible)
            self.sow("intermediates", f"layer_{i:02}", x)
        first = jnp.argmax(mask, axis=-1)[..., None, None]  # first token that is not padding
        start = jnp.take_along_axis(x, first, axis=-2)[..., 0, :]
        pooled = self.pooler_activation(nn.Dense(self.width, name="pooler")(start))
        self.sow("intermediates", "pooled", pooled)
        return nn.Dense(self.n_labels, name="classifier")(pooled)

    def _positions(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        if self.padding_id is None:
            return visible_positions(mask)
        real = jnp.asarray(ids != self.padding_id, ids.dtype)
        return jnp.cumsum(real, axis=-1) * real + self.padding_id


_LAYER = r"encoder\.layer\.(\d+)\."
_BERT_ENCODER = (
    Rule(r"embeddings\.(word|position|token_type)_embeddings\.weight", r"params/\1_embeddings/embedding"),
    *layer_norm(r"embeddings\.LayerNorm", "embeddings_norm"),
    *linear(_LAYER + r"attention\.self\.(query|key|value)", r"layer_\1/attention/\2"),
    *linear(_LAYER + r"attention\.output\.dense", r"layer_\1/attention/output"),
    *layer_norm(_LAYER + r"attention\.output\.LayerNorm", r"layer_\1/attention_norm"),
    *linear(_LAYER + r"(intermediate|output)\.dense", r"layer_\1/\2"),
    *layer_norm(_LAYER + r"output\.LayerNorm", r"layer_\1/output_norm"),
)
_POSITION_IDS = r"embeddings\.(position_ids|token_type_ids)"  # buffers saved by older versions


def bert(config: Any) -> Architecture:
    """Return the architecture of BertForSequenceClassification: a tanh pooler in the model, a linear head."""
    return Architecture(
        module=Bert(**_sizes(config), pooler_activation=nn.tanh),
        rules=(*_BERT_ENCODER, *linear(r"pooler\.dense", "pooler"), *linear("classifier", "classifier")),
        example=_example(config, "input_ids", "attention_mask", "token_type_ids"),
        ignored=(_POSITION_IDS, r"cls\..*"),
        base_prefix="bert.",
    )


def roberta(config: Any) -> Architecture:
    """Return the architecture of RobertaForSequenceClassification: positions from the padding id, a two-layer head."""
    return Architecture(
        module=Bert(**_sizes(config), pooler_activation=nn.tanh, padding_id=config.pad_token_id),
        rules=(
            *_BERT_ENCODER,
            *linear(r"classifier\.dense", "pooler"),
            *linear(r"classifier\.out_proj", "classifier"),
        ),
        example=_example(config, "input_ids", "attention_mask"),
        ignored=(_POSITION_IDS, r"pooler\..*", r"lm_head\..*"),
        head=r"params/(pooler|classifier)/.*",
        base_prefix="roberta.",
    )


def distilbert(config: Any) -> Architecture:
    """Return the architecture of DistilBertForSequenceClassification: no token types, a ReLU before the classifier."""
    block = r"transformer\.layer\.(\d+)\."
    module = Bert(
        width=config.dim,
        n_layers=config.n_layers,
        heads=config.n_heads,
        inner_width=config.hidden_dim,
        n_words=config.vocab_size,
        n_positions=config.max_position_embeddings,
        n_token_types=0,
        n_labels=config.num_labels,
        activation=activation(config.activation),
        pooler_activation=nn.relu,
        epsilon=1e-12,  # hard-coded in DistilBERT
    )
    rules = (
        Rule(r"embeddings\.(word|position)_embeddings\.weight", r"params/\1_embeddings/embedding"),
        *layer_norm(r"embeddings\.LayerNorm", "embeddings_norm"),
        *linear(block + r"attention\.q_lin", r"layer_\1/attention/query"),
        *linear(block + r"attention\.k_lin", r"layer_\1/attention/key"),
        *linear(block + r"attention\.v_lin", r"layer_\1/attention/value"),
        *linear(block + r"attention\.out_lin", r"layer_\1/attention/output"),
        *layer_norm(block + r"sa_layer_norm", r"layer_\1/attention_norm"),
        *linear(block + r"ffn\.lin1", r"layer_\1/intermediate"),
        *linear(block + r"ffn\.lin2", r"layer_\1/output"),
        *layer_norm(block + r"output_layer_norm", r"layer_\1/output_norm"),
        *linear("pre_classifier", "pooler"),
        *linear("classifier", "classifier"),
    )
    return Architecture(
        module=module,
        rules=rules,
        example=_example(config, "input_ids", "attention_mask"),
        ignored=(_POSITION_IDS, r"vocab_.*"),
        head=r"params/(pooler|classifier)/.*",
        base_prefix="distilbert.",
    )


def _sizes(config: Any) -> dict[str, Any]:
    """Return the fields that the configurations of BERT and RoBERTa share."""
    if getattr(config, "position_embedding_type", "absolute") != "absolute" or config.is_decoder:
        raise ValueError("relative positions and decoders are not supported; pass a Model by hand")
    return {
        "width": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "inner_width": config.intermediate_size,
        "n_words": config.vocab_size,
        "n_positions": config.max_position_embeddings,
        "n_token_types": config.type_vocab_size,
        "n_labels": config.num_labels,
        "activation": activation(config.hidden_act),
        "epsilon": config.layer_norm_eps,
    }


def _example(config: Any, *names: str) -> dict[str, np.ndarray]:
    length = min(4, config.max_position_embeddings)
    return {name: np.zeros(length, np.int32) for name in names}
