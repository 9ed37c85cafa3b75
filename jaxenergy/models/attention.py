"""The transformer's block, shared by the vision transformer and the language model.

References:
    Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762.
    Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", arXiv 2002.04745
    (the norm before each branch).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxenergy.activations import Activation
from jaxenergy.arguments import COUNT, Argument
from jaxenergy.errors import UsageError
from jaxenergy.models import forms
from jaxenergy.models.layers import FeedForward, dense, drop_path, normalise

HEADS = Argument(int, None, COUNT, optional=True)

_EXPANSION = 4
_HEAD_SIZE = 32


def head_count(width: int, heads: int | None) -> int:
    """The heads asked for, or as many as divide the width into heads of 32 features or more.

    Raises:
        UsageError: the width is not a multiple of the heads asked for.
    """
    if heads is None:
        return next(n for n in range(max(width // _HEAD_SIZE, 1), 0, -1) if width % n == 0)
    if width % heads:
        raise UsageError(
            f"--width={width} is not possible with {heads} attention heads: it must be a multiple"
            f" of them. Nearest: {max(round(width / heads), 1) * heads}."
        )
    return heads


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """Softmax attention over [batch, length, heads, size].

    JAX's own takes its softmax in float32 whatever the dtype. In float64, in which programs are
    held against each other and nothing is timed, it is written out.
    """
    if causal and query.dtype == jnp.float32 and forms.attends_by_blocks(query.shape):
        return forms.causal_attention(query, key, value)
    if causal and query.dtype == jnp.bfloat16 and forms.attends_by_cudnn(query.shape):
        return forms.flash_attention(query, key, value)
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / math.sqrt(query.shape[-1])
    if causal:
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), value)


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added to its input.

    With a bias in each dense layer and two norms it has 12 w^2 + 13 w parameters for w features.

    Attributes:
        heads: attention heads.
        activation: the activation of the feed-forward layer.
        dtype: dtype of the computation.
        causal: whether a position sees only itself and those before it.
        branches: residual branches of the network, see `FeedForward`.
        norm: `layer` or `none`.
        dropout: rate of dropout at the end of the attention and inside the feed-forward layer.
        stochastic_depth: rate at which a branch is dropped.
    """

    heads: int
    activation: Activation
    dtype: Any
    causal: bool
    branches: int
    norm: str
    dropout: float
    stochastic_depth: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, length, features] to the same."""
        batch, length, features = x.shape
        y = normalise(x, self.norm, train=train, dtype=self.dtype)
        # One product for queries, keys and values: three small ones cost more launches.
        projected = dense(3 * features, self.dtype)(y)
        query, key, value = (
            projected.reshape(batch, length, 3, self.heads, -1)[:, :, part] for part in range(3)
        )
        y = _attend(query, key, value, self.causal)
        y = dense(features, self.dtype, 1.0 / self.branches)(y.reshape(batch, length, features))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        x = x + drop_path(self, y, self.stochastic_depth, train)
        y = normalise(x, self.norm, train=train, dtype=self.dtype)
        y = FeedForward(
            _EXPANSION * features, self.activation, self.dtype, self.branches, self.dropout
        )(y, train)
        return x + drop_path(self, y, self.stochastic_depth, train)
