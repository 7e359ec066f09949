"""ResNet for image classification, with basic or bottleneck blocks. Its BatchNorm statistics are constants."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax.models._transformer import activation
from npeff_jax.models._weight_maps import Architecture, Rule, conv_kernel, linear

Activation = Callable[[jax.Array], jax.Array]


class ConvNorm(nn.Module):
    """A convolution without bias, padded by half its size on each side, followed by a frozen BatchNorm."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half = self.size // 2
        conv = nn.Conv(
            self.features, (self.size,) * 2, self.stride, padding=[(half, half)] * 2, use_bias=False, name="convolution"
        )
        # PyTorch's default epsilon of BatchNorm, which no configuration contains.
        return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="normalization")(conv(x))


class Block(nn.Module):
    """Residual block: convolutions, and a shortcut, which is a convolution if the shape changes.

    Attributes:
        convolutions: features, size and stride of each convolution.
    """

    convolutions: tuple[tuple[int, int, int], ...]
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out_features = self.convolutions[-1][0]
        stride = max(stride for _, _, stride in self.convolutions)
        shortcut = x
        if x.shape[-1] != out_features or stride != 1:
            shortcut = ConvNorm(out_features, 1, stride, name="shortcut")(x)
        for i, (features, size, stride) in enumerate(self.convolutions):
            # Hugging Face's ResNet always uses ReLU inside a block, whatever activation the configuration names.
            x = ConvNorm(features, size, stride, name=f"layer_{i}")(x if i == 0 else nn.relu(x))
        return self.activation(x + shortcut)


class ResNet(nn.Module):
    """ResNet classifier, from images (..., height, width, channels) to logits.

    Attributes:
        stages: per stage, its blocks, each a tuple of convolutions.
    """

    stem_features: int
    stages: tuple[tuple[tuple[tuple[int, int, int], ...], ...], ...]
    n_channels: int
    n_labels: int
    activation: Activation

    @nn.compact
    def __call__(self, example: Mapping[str, jax.Array]) -> jax.Array:
        x = example["pixel_values"]
        if x.shape[-1] != self.n_channels:
            raise ValueError(
                f"pixel_values has shape {x.shape}; expected (height, width, {self.n_channels}), channels last"
            )
        x = self.activation(ConvNorm(self.stem_features, 7, 2, name="stem")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
        self.sow("intermediates", "stem", x)
        for i, blocks in enumerate(self.stages):
            for j, convolutions in enumerate(blocks):
                x = Block(convolutions, self.activation, name=f"stage_{i}_block_{j}")(x)
            self.sow("intermediates", f"stage_{i}", x)
        pooled = jnp.mean(x, axis=(-3, -2))
        self.sow("intermediates", "pooled", pooled)
        return nn.Dense(self.n_labels, name="classifier")(pooled)


def _conv_norm(pattern: str, path: str) -> tuple[Rule, ...]:
    norm = rf"{pattern}\.normalization\."
    return (
        Rule(rf"{pattern}\.convolution\.weight", f"params/{path}/convolution/kernel", conv_kernel),
        Rule(norm + "weight", f"params/{path}/normalization/scale"),
        Rule(norm + "bias", f"params/{path}/normalization/bias"),
        Rule(norm + "running_mean", f"batch_stats/{path}/normalization/mean"),
        Rule(norm + "running_var", f"batch_stats/{path}/normalization/var"),
    )


_BLOCK = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."


def resnet(config: Any) -> Architecture:
    """Return the architecture of ResNetForImageClassification, with basic or bottleneck blocks."""
    module = ResNet(
        stem_features=config.embedding_size,
        stages=_stages(config),
        n_channels=config.num_channels,
        n_labels=config.num_labels,
        activation=activation(config.hidden_act),
    )
    return Architecture(
        module=module,
        rules=(
            *_conv_norm(r"embedder\.embedder", "stem"),
            *_conv_norm(_BLOCK + r"layer\.(\d+)", r"stage_\1_block_\2/layer_\3"),
            *_conv_norm(_BLOCK + r"shortcut", r"stage_\1_block_\2/shortcut"),
            *linear(r"classifier\.1", "classifier"),
        ),
        example={"pixel_values": np.zeros((32, 32, config.num_channels), np.float32)},
        ignored=(r".*\.num_batches_tracked",),
        base_prefix="resnet.",
    )


def _stages(config: Any) -> tuple[Any, ...]:
    """Return the convolutions of each stage. The first block of each stage has the stride, except that of the first
    stage unless the configuration says so.
    """
    stages = []
    for i, (features, depth) in enumerate(zip(config.hidden_sizes, config.depths)):
        stride = 1 if i == 0 and not config.downsample_in_first_stage else 2
        stages.append(tuple(_block(config, features, stride if j == 0 else 1) for j in range(depth)))
    return tuple(stages)


def _block(config: Any, features: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    if config.layer_type == "basic":
        return (features, 3, stride), (features, 3, 1)
    inner = features // 4
    early = config.downsample_in_bottleneck
    return (inner, 1, stride if early else 1), (inner, 3, 1 if early else stride), (features, 1, 1)
