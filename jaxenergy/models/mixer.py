"""MLP-Mixer: perceptrons across patches and across channels in turn, no convolution, no attention.

References:
    Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", arXiv 2105.01601.
"""

from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.models.family import (
    DROPOUT,
    PATCH_SIZE,
    STOCHASTIC_DEPTH,
    DepthRule,
    Family,
    Preset,
    norm_argument,
    patch_side,
)
from jaxenergy.models.layers import (
    FeedForward,
    classify,
    dense,
    drop_path,
    drop_path_rates,
    normalise,
    patches,
)


class Mixer(nn.Module):
    """`depth` blocks of `width` channels.

    A block has half as many units across patches and four times as many across channels, which are
    the ratios of the paper's table 1.
    """

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    dropout: float
    stochastic_depth: float
    patch_size: int | None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""

        def norm(x: jax.Array) -> jax.Array:
            return normalise(x, self.norm, train=train, dtype=self.dtype)

        def mix(x: jax.Array, hidden: int) -> jax.Array:
            return FeedForward(hidden, self.activation, self.dtype, 2 * self.depth, self.dropout)(
                x, train
            )

        side = patch_side(inputs.shape[1:], self.patch_size)
        x = dense(self.width, self.dtype)(patches(inputs.astype(self.dtype), side))
        for rate in drop_path_rates(self.stochastic_depth, self.depth):
            y = mix(norm(x).swapaxes(1, 2), max(self.width // 2, 1)).swapaxes(1, 2)
            x = x + drop_path(self, y, rate, train)
            x = x + drop_path(self, mix(norm(x), 4 * self.width), rate, train)
        return classify(norm(x).mean(1), self.classes, self.dtype)


def mixer_6x128() -> Preset:
    """The default: 6 blocks of 128 channels.

    851,082 parameters, 114.0 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(6, 128)


def mixer_8x512() -> Preset:
    """As deep and wide as Mixer-S, over 4 x 4 patches.

    17,110,026 parameters, 2419.1 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(8, 512)


FAMILY = Family(
    module=Mixer,
    depth=6,
    width=128,
    activation="gelu_tanh",
    width_counts="channels of a patch",
    depth_rule=lambda options: DepthRule(counts="mixer blocks"),
    options={
        "norm": norm_argument("layer", ("layer", "none")),
        "dropout": DROPOUT,
        "stochastic_depth": STOCHASTIC_DEPTH,
        "patch_size": PATCH_SIZE,
    },
    check=lambda width, options, shape: patch_side(shape, options["patch_size"]),
    dot_only=True,
    presets=(mixer_6x128, mixer_8x512),
)
