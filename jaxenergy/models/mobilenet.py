"""MobileNet: depthwise separable convolutions, few operations and much memory traffic.

References:
    Howard et al. 2017, "MobileNets", arXiv 1704.04861 (version 1, with strides for small images).
"""

from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.models.family import DROPOUT, DepthRule, Family, Preset, norm_argument
from jaxenergy.models.layers import classify, conv, deal, normalise

_STAGES = 3


class MobileNet(nn.Module):
    """A 3 x 3 stem of `width` channels, then `depth` separable blocks in three stages.

    A block is a 3 x 3 convolution of each channel by itself and a 1 x 1 convolution across
    channels, each followed by norm and activation. The stages have 2, 4 and 8 times `width`
    channels; from the second on their first block halves the image.
    """

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""

        def convolve(x: jax.Array, features: int, size: int, **arguments: Any) -> jax.Array:
            use_bias = self.norm == "none"
            x = conv(features, size, self.dtype, use_bias=use_bias, **arguments)(x)
            return normalise(
                x, self.norm, train=train, dtype=self.dtype, activation=self.activation
            )

        gain = self.activation.gain
        x = convolve(inputs.astype(self.dtype), self.width, 3)
        for stage, blocks in enumerate(deal(self.depth, _STAGES)):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                channels = x.shape[-1]
                x = convolve(x, channels, 3, gain=gain, strides=strides, groups=channels)
                x = convolve(x, self.width << stage + 1, 1, gain=gain)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return classify(x, self.classes, self.dtype)


def mobilenet_6x32() -> Preset:
    """The default: 6 separable blocks.

    141,706 parameters, 42.6 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(6, 32)


def mobilenet_13x32() -> Preset:
    """13 separable blocks, as many as MobileNet has.

    394,250 parameters, 105.8 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(13, 32)


FAMILY = Family(
    module=MobileNet,
    depth=6,
    width=32,
    activation="relu6",
    width_counts="channels of the stem",
    depth_rule=lambda options: DepthRule(counts="separable blocks"),
    options={"norm": norm_argument("batch"), "dropout": DROPOUT},
    presets=(mobilenet_6x32, mobilenet_13x32),
)
