"""Multi-layer perceptron: the plainest network, whose cost is matrix products alone."""

from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.models.family import DROPOUT, DepthRule, Family, Preset, norm_argument
from jaxenergy.models.layers import classify, dense, normalise


class MLP(nn.Module):
    """`depth` hidden layers of `width` units, each followed by norm, activation and dropout.

    Without a norm it has in * width + width + (depth - 1) * (width^2 + width) + width * classes +
    classes parameters.
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
        x = inputs.reshape(inputs.shape[0], -1)
        gain = 1.0
        for _ in range(self.depth):
            x = dense(self.width, self.dtype, gain, use_bias=self.norm == "none")(x)
            x = normalise(x, self.norm, train=train, dtype=self.dtype, activation=self.activation)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            gain = self.activation.gain
        return classify(x, self.classes, self.dtype)


def mlp_2x128() -> Preset:
    """The default: 2 hidden layers of 128 units.

    411,146 parameters, 0.8 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(2, 128)


def mlp_3x1024() -> Preset:
    """3 hidden layers of 1,024 units, as in early work on MNIST.

    5,256,202 parameters, 10.5 MFLOPs forward, for a 32 x 32 x 3 image and 10 classes.
    """
    return Preset(3, 1024)


FAMILY = Family(
    module=MLP,
    depth=2,
    width=128,
    width_counts="units of a hidden layer",
    depth_rule=lambda options: DepthRule(counts="hidden layers"),
    options={"norm": norm_argument("none", ("batch", "layer", "none")), "dropout": DROPOUT},
    dot_only=True,
    vectors=True,
    presets=(mlp_2x128, mlp_3x1024),
)
