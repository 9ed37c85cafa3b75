"""Wide residual networks: fewer layers than a ResNet, more channels, dropout inside the blocks.

References:
    Zagoruyko & Komodakis 2016, "Wide Residual Networks", arXiv 1605.07146.
"""

from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.models.family import (
    DROPOUT,
    STOCHASTIC_DEPTH,
    DepthRule,
    Family,
    Preset,
    norm_argument,
)
from jaxenergy.models.layers import classify, conv, drop_path_rates, normalise
from jaxenergy.models.resnet import STAGES, ResidualBlock

STEM_CHANNELS = 16
DEPTH_RULE = DepthRule(2 * STAGES, 4, "weight layers")


class WideResNet(nn.Module):
    """A stem of 16 channels, three stages of n blocks with 16, 32, 64 times `width` channels."""

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    dropout: float
    stochastic_depth: float

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        blocks = DEPTH_RULE.blocks(self.depth)
        rates = drop_path_rates(self.stochastic_depth, STAGES * blocks)
        stem = conv(STEM_CHANNELS, 3, self.dtype, use_bias=self.norm == "none")
        x = stem(inputs.astype(self.dtype))
        for index, rate in enumerate(rates):
            stage, block = divmod(index, blocks)
            x = ResidualBlock(
                width=STEM_CHANNELS * self.width << stage,
                strides=2 if stage > 0 and block == 0 else 1,
                version="v2",
                bottleneck=False,
                activation=self.activation,
                dtype=self.dtype,
                norm=self.norm,
                stochastic_depth=rate,
                dropout=self.dropout,
            )(x, train)
        x = normalise(x, self.norm, train=train, dtype=self.dtype, activation=self.activation)
        return classify(x.mean((1, 2)), self.classes, self.dtype)


def wrn_16_4() -> Preset:
    """The default, WRN-16-4 of Zagoruyko & Komodakis 2016, table 4.

    2,748,890 parameters, 785.2 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(16, 4)


def wrn_28_10() -> Preset:
    """WRN-28-10 of Zagoruyko & Komodakis 2016, table 4.

    36,479,194 parameters, 10486.7 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(28, 10)


FAMILY = Family(
    module=WideResNet,
    depth=16,
    width=4,
    width_counts="the factor by which it is wider than a ResNet",
    depth_rule=lambda options: DEPTH_RULE,
    options={
        "norm": norm_argument("batch"),
        "dropout": DROPOUT,
        "stochastic_depth": STOCHASTIC_DEPTH,
    },
    presets=(wrn_16_4, wrn_28_10),
)
