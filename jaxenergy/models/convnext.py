"""ConvNeXt: a convolutional network built like a transformer, with 7 x 7 depthwise convolutions.

References:
    Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545.
"""

from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.arguments import NOT_NEGATIVE, Argument
from jaxenergy.models.family import (
    STOCHASTIC_DEPTH,
    DepthRule,
    Family,
    Preset,
    norm_argument,
)
from jaxenergy.models.layers import (
    FeedForward,
    classify,
    conv,
    deal,
    drop_path,
    drop_path_rates,
    normalise,
)

_STAGES = 3
_EXPANSION = 4


class ConvNeXtBlock(nn.Module):
    """7 x 7 depthwise convolution, norm, feed-forward layer, scale per channel, added to its input.

    The scale begins small so that a deep network begins as a shallow one: 0.1 for up to 18 blocks
    after Touvron et al. 2021 (arXiv 2103.17239, section 2), where ConvNeXt's own networks, of 18
    blocks and more, take 1e-6.
    """

    activation: Activation
    dtype: Any
    norm: str
    layer_scale: float
    stochastic_depth: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] to the same."""
        channels = x.shape[-1]
        y = conv(channels, 7, self.dtype, groups=channels, use_bias=True)(x)
        y = normalise(y, self.norm, train=train, dtype=self.dtype)
        y = FeedForward(_EXPANSION * channels, self.activation, self.dtype, branches=1)(y, train)
        scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
        return x + drop_path(self, (y * scale).astype(self.dtype), self.stochastic_depth, train)


class ConvNeXt(nn.Module):
    """`depth` blocks in three stages of `width`, 2 `width`, 4 `width` channels.

    The stem cuts the image into 2 x 2 patches, and so does what leads from stage to stage.
    """

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    stochastic_depth: float
    layer_scale: float

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""

        def norm(x: jax.Array) -> jax.Array:
            return normalise(x, self.norm, train=train, dtype=self.dtype)

        x = inputs.astype(self.dtype)
        rates = iter(drop_path_rates(self.stochastic_depth, self.depth))
        for stage, blocks in enumerate(deal(self.depth, _STAGES)):
            if stage > 0:
                x = norm(x)
            x = conv(self.width << stage, 2, self.dtype, strides=2, use_bias=True)(x)
            if stage == 0:
                x = norm(x)
            for _ in range(blocks):
                x = ConvNeXtBlock(
                    self.activation, self.dtype, self.norm, self.layer_scale, next(rates)
                )(x, train)
        return classify(norm(x.mean((1, 2))), self.classes, self.dtype)


def convnext_6x32() -> Preset:
    """The default: 6 blocks.

    413,418 parameters, 30.3 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(6, 32)


def convnext_18x64() -> Preset:
    """18 blocks, as many as ConvNeXt-T has.

    4,453,322 parameters, 327.6 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(18, 64)


FAMILY = Family(
    module=ConvNeXt,
    depth=6,
    width=32,
    activation="gelu_tanh",
    width_counts="channels of the first stage",
    depth_rule=lambda options: DepthRule(counts="blocks"),
    options={
        "norm": norm_argument("layer"),
        "stochastic_depth": STOCHASTIC_DEPTH,
        "layer_scale": Argument(float, 0.1, NOT_NEGATIVE),
    },
    presets=(convnext_6x32, convnext_18x64),
)
