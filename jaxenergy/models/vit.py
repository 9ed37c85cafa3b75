"""Vision transformer: an image as a sequence of patches, its classes from the mean over positions.

References:
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv 2010.11929.
    Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580 (the mean).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.models.attention import HEADS, TransformerBlock, head_count
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
from jaxenergy.models.layers import classify, dense, drop_path_rates, normalise, patches


class ViT(nn.Module):
    """`depth` transformer blocks of `width` features over patches with learned positions."""

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    dropout: float
    stochastic_depth: float
    patch_size: int | None
    heads: int | None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        side = patch_side(inputs.shape[1:], self.patch_size)
        x = dense(self.width, self.dtype)(patches(inputs.astype(self.dtype), side))
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        x = (x + position).astype(self.dtype)
        for rate in drop_path_rates(self.stochastic_depth, self.depth):
            x = TransformerBlock(
                heads=head_count(self.width, self.heads),
                activation=self.activation,
                dtype=self.dtype,
                causal=False,
                branches=2 * self.depth,
                norm=self.norm,
                dropout=self.dropout,
                stochastic_depth=rate,
            )(x, train)
        x = normalise(x, self.norm, train=train, dtype=self.dtype)
        return classify(x.mean(1), self.classes, self.dtype)


def _check(width: int, options: Mapping[str, Any], input_shape: tuple[int, ...]) -> None:
    head_count(width, options["heads"])
    patch_side(input_shape, options["patch_size"])


def vit_6x128() -> Preset:
    """The default: 6 blocks of 128 features, 4 heads.

    1,205,642 parameters, 164.4 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(6, 128)


def vit_12x192() -> Preset:
    """As deep and wide as DeiT-Ti, over 4 x 4 patches.

    5,362,378 parameters, 718.4 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(12, 192)


FAMILY = Family(
    module=ViT,
    depth=6,
    width=128,
    activation="gelu_tanh",
    width_counts="features of a position",
    depth_rule=lambda options: DepthRule(counts="transformer blocks"),
    options={
        "norm": norm_argument("layer", ("layer", "none")),
        "dropout": DROPOUT,
        "stochastic_depth": STOCHASTIC_DEPTH,
        "patch_size": PATCH_SIZE,
        "heads": HEADS,
    },
    check=_check,
    dot_only=True,
    presets=(vit_6x128, vit_12x192),
)
