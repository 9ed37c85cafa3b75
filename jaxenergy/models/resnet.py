"""Residual networks in their CIFAR form: three stages of convolutions on 32 x 32 images.

References:
    He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2
    (v1, bottleneck).
    He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv 1603.05027 (v2).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.arguments import Argument
from jaxenergy.models.family import STOCHASTIC_DEPTH, DepthRule, Family, Preset, norm_argument
from jaxenergy.models.layers import classify, conv, drop_path, drop_path_rates, normalise

STAGES = 3
BOTTLENECK_EXPANSION = 4


class ResidualBlock(nn.Module):
    """Convolutions around which a shortcut leads; the branch begins as zero.

    Version 1 normalises after each convolution and activates after each but the last, and after the
    sum; version 2 normalises and activates before each convolution and leaves the sum alone. That
    the branch begins as zero (by the scale of its last norm, or by its last convolution where no
    norm follows) lets a deep network begin as a shallow one.

    References:
        Goyal et al. 2017, arXiv 1706.02677, section 5.1.
        Zhang et al. 2019 (Fixup), arXiv 1901.09321.
    """

    width: int
    strides: int
    version: str
    bottleneck: bool
    activation: Activation
    dtype: Any
    norm: str
    stochastic_depth: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, height, width, in] to [batch, height / strides, width / strides, out]."""
        if self.bottleneck:
            convolutions = [
                (self.width, 1, 1),
                (self.width, 3, self.strides),
                (self.width * BOTTLENECK_EXPANSION, 1, 1),
            ]
        else:
            convolutions = [(self.width, 3, self.strides), (self.width, 3, 1)]
        last = len(convolutions) - 1
        changes_shape = self.strides != 1 or x.shape[-1] != convolutions[last][0]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones

        def convolve(y: jax.Array, features: int, size: int, strides: int, gain: float, name=None):
            use_bias = self.norm == "none"
            return conv(
                features,
                size,
                self.dtype,
                gain=gain,
                strides=strides,
                use_bias=use_bias,
                name=name,
            )(y)

        def project(y: jax.Array) -> jax.Array:
            return convolve(y, convolutions[last][0], 1, self.strides, 1.0, "shortcut")

        def norm(y: jax.Array, scale_init: Any = ones, **then: Any) -> jax.Array:
            return normalise(
                y, self.norm, train=train, dtype=self.dtype, scale_init=scale_init, **then
            )

        shortcut = y = x
        gain = self.activation.gain
        if self.version == "v1":
            if changes_shape:
                shortcut = norm(project(x))
            for index, (features, size, strides) in enumerate(convolutions):
                zero_here = index == last and self.norm == "none"
                y = convolve(y, features, size, strides, 0.0 if zero_here else gain)
                if index != last:
                    y = norm(y, activation=self.activation)
                elif self.stochastic_depth == 0.0:
                    return norm(y, zeros, added=shortcut, activation=self.activation)
            y = drop_path(self, norm(y, zeros), self.stochastic_depth, train)
            return self.activation(shortcut + y)
        for index, (features, size, strides) in enumerate(convolutions):
            y = norm(y, activation=self.activation)
            if index == 0 and changes_shape:
                shortcut = project(y)
            if index == last:
                y = nn.Dropout(self.dropout, deterministic=not train)(y)
            y = convolve(y, features, size, strides, 0.0 if index == last else gain)
        return shortcut + drop_path(self, y, self.stochastic_depth, train)


class ResNet(nn.Module):
    """Stem, three stages of n blocks with `width`, 2 and 4 `width` channels, mean, classifier."""

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    version: str
    block: str
    stochastic_depth: float

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        bottleneck = self.block == "bottleneck"
        blocks = depth_rule({"block": self.block}).blocks(self.depth)
        rates = drop_path_rates(self.stochastic_depth, STAGES * blocks)
        x = conv(self.width, 3, self.dtype, use_bias=self.norm == "none")(inputs.astype(self.dtype))
        if self.version == "v1":
            x = normalise(x, self.norm, train=train, dtype=self.dtype, activation=self.activation)
        for stage in range(STAGES):
            for block in range(blocks):
                x = ResidualBlock(
                    self.width << stage,
                    2 if stage > 0 and block == 0 else 1,
                    self.version,
                    bottleneck,
                    self.activation,
                    self.dtype,
                    self.norm,
                    rates[stage * blocks + block],
                )(x, train)
        if self.version == "v2":
            x = normalise(x, self.norm, train=train, dtype=self.dtype, activation=self.activation)
        return classify(x.mean((1, 2)), self.classes, self.dtype)


def depth_rule(options: Mapping[str, Any]) -> DepthRule:
    """6n+2 with basic blocks, 9n+2 with bottlenecks: stem, three stages of n blocks, classifier."""
    multiple = STAGES * (3 if options["block"] == "bottleneck" else 2)
    return DepthRule(multiple, 2, "weight layers")


def resnet8() -> Preset:
    """The default, and the smallest of its form.

    78,042 parameters, 25.0 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(8, 16)


def resnet20() -> Preset:
    """He et al. 2016, table 6.

    272,474 parameters, 81.6 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(20, 16)


def resnet56() -> Preset:
    """He et al. 2016, table 6.

    855,770 parameters, 251.5 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(56, 16)


def resnet164() -> Preset:
    """Version 2 with bottlenecks, He et al. 2016b, table 3.

    1,703,258 parameters, 495.3 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(164, 16, {"version": "v2", "block": "bottleneck"})


FAMILY = Family(
    module=ResNet,
    depth=8,
    width=16,
    width_counts="channels of the first stage",
    depth_rule=depth_rule,
    options={
        "norm": norm_argument("batch"),
        "version": Argument(str, "v1", choices=("v1", "v2")),
        "block": Argument(str, "basic", choices=("basic", "bottleneck")),
        "stochastic_depth": STOCHASTIC_DEPTH,
    },
    presets=(resnet8, resnet20, resnet56, resnet164),
)
