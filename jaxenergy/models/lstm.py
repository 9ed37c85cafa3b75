"""Recurrent language model: long short-term memory, one position after the other.

References:
    Hochreiter & Schmidhuber 1997, "Long Short-Term Memory", Neural Computation 9(8).
    Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures", ICML (the
    forget gate's bias of one).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxenergy.activations import Activation
from jaxenergy.models import forms
from jaxenergy.models.family import DROPOUT, DepthRule, Family, Preset
from jaxenergy.models.layers import classify, dense, embed


class LSTMLayer(nn.Module):
    """One layer; the activation stands where tanh usually does, the gates stay sigmoids.

    For n inputs and w units it has 4 w (n + w + 1) parameters.
    """

    width: int
    activation: Activation
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        """Maps [batch, length, n] to [batch, length, width].

        Args:
            x: a vector for each position; where `tokens` are given, one for each, [tokens, n].
            tokens: [batch, length].
        """
        from_inputs = dense(4 * self.width, self.dtype)
        shape = (self.width, 4 * self.width)
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), shape)

        def advance(carry: tuple[jax.Array, jax.Array], gates: jax.Array):
            cell, _ = carry
            into, forget, out, candidate = jnp.split(gates, 4, axis=-1)
            cell = nn.sigmoid(forget + 1) * cell + nn.sigmoid(into) * self.activation(candidate)
            hidden = nn.sigmoid(out) * self.activation(cell)
            return (cell, hidden), hidden

        def run(inputs: jax.Array, gates: Callable) -> jax.Array:
            return forms.recurrence(advance, start, inputs.swapaxes(0, 1), gates).swapaxes(0, 1)

        zeros = jnp.zeros((len(x if tokens is None else tokens), self.width), self.dtype)
        start = zeros, zeros
        if tokens is not None:
            return run(tokens, forms.looked_up_gates(from_inputs(x), recurrent))
        if x.dtype != jnp.bfloat16 and forms.recurs_jointly(len(x)):
            from_inputs(x[:, :1])  # which makes its parameters known
            weights = from_inputs.variables["params"]
            return run(x, forms.joint_gates(weights["kernel"], recurrent, weights["bias"]))

        def step(carry: tuple[jax.Array, jax.Array], from_input: jax.Array):
            # Rounded here, so that the gradient is summed over positions in float32.
            return advance(carry, from_input + carry[1] @ recurrent.astype(self.dtype))

        # The inputs' share of all gates at once, for all positions: one large product.
        from_all = from_inputs(x).swapaxes(0, 1)
        if forms.defers_products(len(x)):
            return forms.deferred_products(advance, start, from_all, recurrent).swapaxes(0, 1)
        _, hidden = jax.lax.scan(step, start, from_all)
        return hidden.swapaxes(0, 1)


class LSTM(nn.Module):
    """An embedding, `depth` recurrent layers of `width` units, a prediction at each position."""

    depth: int
    width: int
    activation: Activation
    classes: int
    dtype: Any
    dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Logits [batch, length, tokens] of token sequences [batch, length]."""
        if self.dtype != jnp.bfloat16 and forms.looks_up(self.classes, inputs):
            each = jnp.arange(self.classes)
            x, tokens = embed(each, self.classes, self.width, self.dtype), inputs
        else:
            x, tokens = embed(inputs, self.classes, self.width, self.dtype), None
        for _ in range(self.depth):
            x = LSTMLayer(self.width, self.activation, self.dtype)(x, tokens)
            tokens = None  # they are the first layer's alone
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return classify(x, self.classes, self.dtype)


def lstm_1x256() -> Preset:
    """The default: one layer of 256 units.

    558,657 parameters, 277.0 MFLOPs forward, for 256 of 65 tokens.
    """
    return Preset(1, 256)


def lstm_2x512() -> Preset:
    """Two layers of 512 units, as in Karpathy's char-rnn.

    4,265,025 parameters, 2164.5 MFLOPs forward, for 256 of 65 tokens.
    """
    return Preset(2, 512)


FAMILY = Family(
    module=LSTM,
    depth=1,
    width=256,
    activation="tanh",
    width_counts="units of a layer",
    depth_rule=lambda options: DepthRule(counts="recurrent layers"),
    options={"dropout": DROPOUT},
    inputs="tokens",
    dot_only=True,
    recurrent=True,
    presets=(lstm_1x256, lstm_2x512),
)
