"""Parts shared by the transformers: attention, LayerNorm, and activations by their Hugging Face names.

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
    """Return the activation function named by a configuration's ``hidden_act``.

    Raises:
        ValueError: the activation is not supported.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"the configuration's activation {name!r} is not one of {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with the variance of centred values, because E[x²] − E[x]² is inaccurate in float32."""

    use_fast_variance: bool = False


def visible_positions(mask: jax.Array) -> jax.Array:
    """Number the tokens shown by a Boolean mask (..., L) from 0, with padding on either side.

    Numbers at masked tokens have no meaning but are valid positions.
    """
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, heads: int, visible: jax.Array, scale: float
) -> jax.Array:
    """Compute multi-head attention of (..., L, d) arrays.

    Args:
        query: (..., L, d), queries of all heads.
        key: (..., L, d), keys of all heads.
        value: (..., L, d), values of all heads.
        heads: number of heads that d is split into.
        visible: Boolean, broadcastable to (..., L, L), which keys each query attends to.
        scale: factor of the scores.
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], heads, -1)

    scores = jnp.einsum("...qhd,...khd->...hqk", split(query), split(key)) * scale
    # The smallest finite number instead of −inf keeps fully masked rows (padding) and their gradients finite.
    scores = jnp.where(visible[..., None, :, :], scores, jnp.finfo(scores.dtype).min)
    mixed = jnp.einsum("...hqk,...khd->...qhd", nn.softmax(scores), split(value))
    return mixed.reshape(query.shape)


class SelfAttention(nn.Module):
    """Self-attention with separate query, key, value and output projections."""

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
