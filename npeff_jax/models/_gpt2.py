"""GPT-2: the distribution of the next token at a chosen position."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax.models._transformer import LayerNorm, activation, attention, visible_positions
from npeff_jax.models._weight_maps import Architecture, Rule, layer_norm, transpose


class Block(nn.Module):
    """Pre-norm block: causal attention and a feed-forward network on normalised inputs, with residuals."""

    heads: int
    inner_width: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
        width = x.shape[-1]
        normed = LayerNorm(self.epsilon, name="attention_norm")(x)
        query, key, value = jnp.split(nn.Dense(3 * width, name="query_key_value")(normed), 3, axis=-1)
        mixed = attention(query, key, value, heads=self.heads, visible=visible, scale=self.scale)
        x += nn.Dense(width, name="attention_output")(mixed)
        normed = LayerNorm(self.epsilon, name="output_norm")(x)
        inner = self.activation(nn.Dense(self.inner_width, name="intermediate")(normed))
        return x + nn.Dense(width, name="output")(inner)


class Gpt2(nn.Module):
    """GPT-2, from token ids to log-probabilities of the next token.

    Attributes:
        scales: scale of the attention scores, per layer.
        tied: whether the output layer uses the token embeddings.
    """

    width: int
    heads: int
    inner_width: int
    n_words: int
    n_positions: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float
    scales: tuple[float, ...]
    tied: bool

    def setup(self) -> None:
        self.word_embeddings = nn.Embed(self.n_words, self.width)
        self.position_embeddings = nn.Embed(self.n_positions, self.width)
        self.layer = [Block(self.heads, self.inner_width, self.activation, self.epsilon, s) for s in self.scales]
        self.norm = LayerNorm(self.epsilon)
        if not self.tied:
            self.lm_head = nn.Dense(self.n_words, use_bias=False)

    def __call__(self, example: Mapping[str, jax.Array]) -> jax.Array:
        """Compute log-probabilities (..., C) of the token that follows ``input_ids`` (..., L), padded on either side.

        It follows the last token that ``attention_mask`` shows, or the token at index ``position`` (...) if given.
        """
        ids = example["input_ids"]
        mask = jnp.asarray(example.get("attention_mask", jnp.ones_like(ids)), bool)
        end = example.get("position", jnp.max(jnp.where(mask, jnp.arange(ids.shape[-1]), 0), axis=-1))
        return self.after(ids, mask, end[..., None])[..., 0, :]

    def after(self, ids: jax.Array, mask: jax.Array, places: jax.Array) -> jax.Array:
        """Compute log-probabilities (..., p, words) of the next token after each of ``places`` (..., p)."""
        length = ids.shape[-1]
        if length > self.n_positions:
            raise ValueError(f"input_ids has {length} tokens, answers included; the model has {self.n_positions}")
        x = self.word_embeddings(ids) + self.position_embeddings(visible_positions(mask))
        self.sow("intermediates", "embeddings", x)
        visible = mask[..., None, :] & jnp.tri(length, dtype=bool)
        for i, layer in enumerate(self.layer):
            x = layer(x, visible)
            self.sow("intermediates", f"layer_{i:02}", x)
        pooled = self.norm(jnp.take_along_axis(x, places[..., None], axis=-2))
        self.sow("intermediates", "pooled", pooled)
        return nn.log_softmax(self.word_embeddings.attend(pooled) if self.tied else self.lm_head(pooled))


def _conv1d(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Return the rules for the weight and bias of a linear layer of GPT-2, stored as (in, out) like in Flax."""
    kernel = Rule(rf"{pattern}\.weight", f"params/{path}/kernel")
    return kernel, Rule(rf"{pattern}\.bias", f"params/{path}/bias")


_LAYER = r"h\.(\d+)\."
_RULES = (
    Rule(r"wte\.weight", "params/word_embeddings/embedding"),
    Rule(r"wpe\.weight", "params/position_embeddings/embedding"),
    *layer_norm(_LAYER + "ln_1", r"layer_\1/attention_norm"),
    *_conv1d(_LAYER + r"attn\.c_attn", r"layer_\1/query_key_value"),
    *_conv1d(_LAYER + r"attn\.c_proj", r"layer_\1/attention_output"),
    *layer_norm(_LAYER + "ln_2", r"layer_\1/output_norm"),
    *_conv1d(_LAYER + r"mlp\.c_fc", r"layer_\1/intermediate"),
    *_conv1d(_LAYER + r"mlp\.c_proj", r"layer_\1/output"),
    *layer_norm("ln_f", "norm"),
)


def gpt2(config: Any) -> Architecture:
    """Return the architecture of GPT2LMHeadModel, with an output layer tied to the token embeddings or not."""
    if config.add_cross_attention:
        raise ValueError("cross-attention is not supported; pass a Model by hand")
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    by_depth = config.scale_attn_by_inverse_layer_idx
    tied = config.tie_word_embeddings
    module = Gpt2(
        width=config.n_embd,
        heads=config.n_head,
        inner_width=config.n_inner or 4 * config.n_embd,
        n_words=config.vocab_size,
        n_positions=config.n_positions,
        activation=activation(config.activation_function),
        epsilon=config.layer_norm_epsilon,
        scales=tuple(scale / (i + 1 if by_depth else 1) for i in range(config.n_layer)),
        tied=tied,
    )
    head = () if tied else (Rule(r"lm_head\.weight", "params/lm_head/kernel", transpose),)
    return Architecture(
        module=module,
        rules=(*_RULES, *head),
        example={"input_ids": np.zeros(4, np.int32), "attention_mask": np.ones(4, np.int32)},
        # The causal mask, a buffer saved by older versions, and the saved copy of a tied output layer.
        ignored=(r"h\.\d+\.attn\.(bias|masked_bias)", *((r"lm_head\.weight",) if tied else ())),
        base_prefix="transformer.",
        is_language_model=True,
    )
