"""ViT for image classification. The patch embedding is a reshape and a dense layer instead of a convolution."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax.models._transformer import LayerNorm, SelfAttention, activation
from npeff_jax.models._weight_maps import Architecture, Rule, conv_kernel, layer_norm, linear


class Block(nn.Module):
    """Pre-norm block: attention and a feed-forward network on normalised inputs, with residuals."""

    heads: int
    inner_width: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float
    qkv_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
        normed = LayerNorm(self.epsilon, name="attention_norm")(x)
        x += SelfAttention(self.heads, self.qkv_bias, name="attention")(normed, visible)
        normed = LayerNorm(self.epsilon, name="output_norm")(x)
        inner = self.activation(nn.Dense(self.inner_width, name="intermediate")(normed))
        return x + nn.Dense(x.shape[-1], name="output")(inner)


class ViT(nn.Module):
    """ViT classifier, from images (..., height, width, channels) to logits.

    Attributes:
        image_size: height and width of the images that the position embeddings are for.
        patch_size: height and width of a patch.
    """

    width: int
    n_layers: int
    heads: int
    inner_width: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    n_channels: int
    n_labels: int
    activation: Callable[[jax.Array], jax.Array]
    epsilon: float
    qkv_bias: bool

    @nn.compact
    def __call__(self, example: Mapping[str, jax.Array]) -> jax.Array:
        images = example["pixel_values"]
        expected = (*self.image_size, self.n_channels)
        if images.shape[-3:] != expected:
            raise ValueError(f"pixel_values has shape {images.shape}; expected {expected}, channels last")
        x = nn.Dense(self.width, name="patch_embeddings")(self._patches(images))
        first = self.param("cls_token", nn.initializers.zeros, (1, 1, self.width))
        places = self.param("position_embeddings", nn.initializers.zeros, (1, x.shape[-2] + 1, self.width))
        first = jnp.broadcast_to(first[0], (*x.shape[:-2], 1, self.width))
        x = jnp.concatenate([first, x], axis=-2) + places[0]
        self.sow("intermediates", "embeddings", x)
        visible = jnp.ones((1, x.shape[-2]), bool)
        for i in range(self.n_layers):
            block = Block(self.heads, self.inner_width, self.activation, self.epsilon, self.qkv_bias, name=f"layer_{i}")
            x = block(x, visible)
            self.sow("intermediates", f"layer_{i:02}", x)
        pooled = LayerNorm(self.epsilon, name="norm")(x)[..., 0, :]
        self.sow("intermediates", "pooled", pooled)
        return nn.Dense(self.n_labels, name="classifier")(pooled)

    def _patches(self, images: jax.Array) -> jax.Array:
        """Split images (..., height, width, channels) into patches (..., patches, values per patch), row by row."""
        *batch, height, width, channels = images.shape
        high, wide = self.patch_size
        grid = images.reshape(*batch, height // high, high, width // wide, wide, channels)
        return jnp.swapaxes(grid, -4, -3).reshape(*batch, -1, high * wide * channels)


def _patch_kernel(tensor: np.ndarray) -> np.ndarray:
    """Convert the kernel of the patch convolution to that of a dense layer."""
    return conv_kernel(tensor).reshape(-1, tensor.shape[0])


_LAYER = r"encoder\.layer\.(\d+)\."
_RULES = (
    Rule(r"embeddings\.(cls_token|position_embeddings)", r"params/\1"),
    Rule(r"embeddings\.patch_embeddings\.projection\.weight", "params/patch_embeddings/kernel", _patch_kernel),
    Rule(r"embeddings\.patch_embeddings\.projection\.bias", "params/patch_embeddings/bias"),
    *layer_norm(_LAYER + "layernorm_before", r"layer_\1/attention_norm"),
    *linear(_LAYER + r"attention\.attention\.(query|key|value)", r"layer_\1/attention/\2"),
    *linear(_LAYER + r"attention\.output\.dense", r"layer_\1/attention/output"),
    *layer_norm(_LAYER + "layernorm_after", r"layer_\1/output_norm"),
    *linear(_LAYER + r"(intermediate|output)\.dense", r"layer_\1/\2"),
    *layer_norm("layernorm", "norm"),
    *linear("classifier", "classifier"),
)


def vit(config: Any) -> Architecture:
    """Return the architecture of ViTForImageClassification."""
    image_size, patch_size = _pair(config.image_size), _pair(config.patch_size)
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}")
    module = ViT(
        width=config.hidden_size,
        n_layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        inner_width=config.intermediate_size,
        image_size=image_size,
        patch_size=patch_size,
        n_channels=config.num_channels,
        n_labels=config.num_labels,
        activation=activation(config.hidden_act),
        epsilon=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
    )
    return Architecture(
        module=module,
        rules=_RULES,
        example={"pixel_values": np.zeros((*image_size, config.num_channels), np.float32)},
        ignored=(r"pooler\..*", r"embeddings\.mask_token"),
        base_prefix="vit.",
    )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
