"""What the transformers have in common: attention, the feed-forward activation, and Hugging Face's names for it.

Every module here takes one example, or examples with any leading batch axes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_python": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": nn.gelu,  # the tanh approximation of GPT-2
    "gelu_fast": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": nn.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function that a configuration's ``hidden_act`` names.

    Raises:
        ValueError: it is not among those known here.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"the configuration's activation {name!r} is not one of {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with the variance of the centred values: E[x²] − E[x]² would cost float32 its digits."""

    use_fast_variance: bool = False


def visible_positions(mask: jax.Array) -> jax.Array:
    """Number the tokens that a Boolean mask (..., L) shows from 0, whichever side is padded.

    The numbers in masked places mean nothing, but are inside the table of positions.
    """
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, heads: int, visible: jax.Array, scale: float
) -> jax.Array:
    """Multi-head attention of (..., L, d) arrays.

    Args:
        query: (..., L, d).
        key: (..., L, d).
        value: (..., L, d).
        heads: how many heads d is split into.
        visible: Boolean, broadcasts to (..., L, L): which keys each query sees.
        scale: of the scores.
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], heads, -1)

    scores = jnp.einsum("...qhd,...khd->...hqk", split(query), split(key)) * scale
    # The least finite number, not −inf: a row that sees nothing (padding) stays finite, and so do its gradients.
    scores = jnp.where(visible[..., None, :, :], scores, jnp.finfo(scores.dtype).min)
    mixed = jnp.einsum("...hqk,...khd->...qhd", nn.softmax(scores), split(value))
    return mixed.reshape(query.shape)


class SelfAttention(nn.Module):
    """Separate projections to queries, keys and values, attention, and a projection back."""

    heads: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
        width = x.shape[-1]
        query, key, value = (
            nn.Dense(width, use_bias=self.use_bias, name=name)(x) for name in ("query", "key", "value")
        )
        scale = (width // self.heads) ** -0.5
        mixed = attention(query, key, value, heads=self.heads, visible=visible, scale=scale)
        return nn.Dense(width, name="output")(mixed)
