"""Language model: a causal transformer that predicts each token from those before it.

References:
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).
"""

from typing import Any

import flax.linen as nn
import jax

from jaxenergy.activations import Activation
from jaxenergy.models.attention import HEADS, TransformerBlock, head_count
from jaxenergy.models.family import (
    DROPOUT,
    STOCHASTIC_DEPTH,
    DepthRule,
    Family,
    Preset,
    norm_argument,
)
from jaxenergy.models.layers import classify, drop_path_rates, embed, normalise


class TransformerLM(nn.Module):
    """`depth` causal transformer blocks of `width` features, with learned positions."""

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    norm: str
    dropout: float
    stochastic_depth: float
    heads: int | None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, length, tokens] of token sequences [batch, length]."""
        x = embed(inputs, self.classes, self.width, self.dtype)
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        x = (x + position).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for rate in drop_path_rates(self.stochastic_depth, self.depth):
            x = TransformerBlock(
                heads=head_count(self.width, self.heads),
                activation=self.activation,
                dtype=self.dtype,
                causal=True,
                branches=2 * self.depth,
                norm=self.norm,
                dropout=self.dropout,
                stochastic_depth=rate,
            )(x, train)
        x = normalise(x, self.norm, train=train, dtype=self.dtype)
        return classify(x, self.classes, self.dtype)


def lm_4x128() -> Preset:
    """The default: 4 blocks of 128 features, 4 heads.

    842,817 parameters, 541.1 MFLOPs forward, for 256 of 65 tokens.
    """
    return Preset(4, 128)


def lm_6x384() -> Preset:
    """As deep and wide as nanoGPT's character model.

    10,795,841 parameters, 6052.6 MFLOPs forward, for 256 of 65 tokens.
    """
    return Preset(6, 384, {"heads": 6})


FAMILY = Family(
    module=TransformerLM,
    depth=4,
    width=128,
    activation="gelu_tanh",
    width_counts="features of a position",
    depth_rule=lambda options: DepthRule(counts="transformer blocks"),
    options={
        "norm": norm_argument("layer", ("layer", "none")),
        "dropout": DROPOUT,
        "stochastic_depth": STOCHASTIC_DEPTH,
        "heads": HEADS,
    },
    check=lambda width, options, shape: head_count(width, options["heads"]),
    inputs="tokens",
    dot_only=True,
    presets=(lm_4x128, lm_6x384),
)
