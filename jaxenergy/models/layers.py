"""What several families are built of: layers, normalisation, pooling, stochastic depth."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxenergy.activations import Activation
from jaxenergy.errors import UsageError
from jaxenergy.models import forms

NORMS = ("batch", "layer", "group", "none")

# Channels per group of group normalisation: the best of Wu & He 2018, arXiv 1803.08494, table 3;
# and the fewest, since one or two numbers normalised by themselves say next to nothing.
_CHANNELS_PER_GROUP, _LEAST_PER_GROUP = 16, 4
_MOMENTUM = 0.9  # of the running statistics of batch normalisation


def scaled_init(gain: float) -> Callable[..., jax.Array]:
    """Normal weights of variance gain / fan_in, cut off at two standard deviations.

    Args:
        gain: 1 / E[f(z)^2] of the activation before the layer (`Activation.gain`); 1 at the input,
            after a norm, and at the last layer, whose logits then begin small.

    Returns:
        A Flax initializer.

    References:
        He et al. 2015, arXiv 1502.01852, equation 10, for gain 2.
    """
    return nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")


def _promote_all_but_bias(x: Any, kernel: Any, bias: Any, *, dtype: Any) -> tuple[Any, Any, Any]:
    return *promote_dtype(x, kernel, dtype=dtype), bias


# A parameter that many positions share has a gradient that is summed over them. Flax rounds the
# parameter to bfloat16 first, so the sum is in bfloat16 too, where it stops growing after some
# hundred numbers (docs/decisions.md). Here biases meet the rest in float32.
class Dense(nn.Dense):
    """Flax's, with its bias added in the parameters' dtype and the result rounded to `dtype`."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., n] to [..., features]."""
        return super().__call__(inputs).astype(self.dtype)


class Conv(nn.Conv):
    """Flax's, likewise."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [batch, height, width, n] to the same with `features`, each side over the stride."""
        return super().__call__(inputs).astype(self.dtype)


def dense(features: int, dtype: Any, gain: float = 1.0, use_bias: bool = True) -> nn.Dense:
    """A fully connected layer with this project's initialisation."""
    return Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=scaled_init(gain),
        promote_dtype=_promote_all_but_bias,
        dot_general=forms.multiply,
    )


def conv(
    features: int,
    size: int,
    dtype: Any,
    *,
    gain: float = 1.0,
    strides: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    name: str | None = None,
) -> nn.Conv:
    """A square convolution with zero padding that keeps the size at stride 1."""
    return Conv(
        features,
        (size, size),
        strides=strides,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=scaled_init(gain),
        promote_dtype=_promote_all_but_bias,
        conv_general_dilated=forms.convolve,
        name=name,
    )


def embed(tokens: jax.Array, vocabulary: int, features: int, dtype: Any) -> jax.Array:
    """Learned vectors of tokens, inside a compact module.

    They are looked up in float32 and then rounded, so that a token's gradient is summed over its
    places in float32.

    Args:
        tokens: int32 [...].
        vocabulary: how many tokens there are.
        features: numbers of a vector.
        dtype: of the result.

    Returns:
        [..., features].
    """
    return nn.Embed(vocabulary, features)(tokens).astype(dtype)


def _identity(x: jax.Array) -> jax.Array:
    return x


def normalise(
    x: jax.Array,
    kind: str,
    *,
    train: bool,
    dtype: Any,
    scale_init: Any = nn.initializers.ones,
    added: jax.Array | None = None,
    activation: Callable[[jax.Array], jax.Array] = _identity,
) -> jax.Array:
    """Normalises inside a compact module, adds, activates.

    Args:
        x: activations [..., channels].
        kind: one of `NORMS`; `layer` is over the channels of each position, `none` leaves x alone.
        train: whether batch normalisation uses and updates the batch's statistics.
        dtype: the dtype of the result; statistics are float32.
        scale_init: initializer of the scale.
        added: what is added to the normalised x, like x; None for nothing.
        activation: what is applied to the sum.

    Returns:
        An array like x.

    Raises:
        UsageError: a norm over the channels of each position where there is one channel.
    """
    if kind == "batch":
        x = nn.BatchNorm(
            use_running_average=not train, momentum=_MOMENTUM, dtype=dtype, scale_init=scale_init
        )(x)
    elif kind == "layer":
        if x.shape[-1] == 1:
            raise UsageError(
                "norm=layer is not possible over one channel, which it makes zero: --width must be"
                " at least 2."
            )
        x = nn.LayerNorm(dtype=dtype, scale_init=scale_init)(x)
    elif kind == "group":
        size = group_size(x.shape[-1])
        x = nn.GroupNorm(num_groups=None, group_size=size, dtype=dtype, scale_init=scale_init)(x)
    return activation(x if added is None else added + x)


def group_size(channels: int) -> int:
    """Channels of a group of group normalisation; all of them where they have no fit divisor."""
    size = math.gcd(channels, _CHANNELS_PER_GROUP)
    return size if size >= _LEAST_PER_GROUP else channels


def pool_2x2(x: jax.Array, kind: str) -> jax.Array:
    """Halves height and width by the maximum or the mean of each 2 x 2 square; odd last rows go.

    Written as a reduction over a reshaped array, since the gradient of `reduce_window` is slow on
    CPUs: 368 against 459 ms for an update of the small CNN; a hand-written gradient by mask gave
    355 ms, too little to pay its way.

    Args:
        x: activations [batch, height, width, channels].
        kind: `max` or `mean`.

    Returns:
        [batch, height // 2, width // 2, channels].
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    squares = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return squares.max((2, 4)) if kind == "max" else squares.mean((2, 4))


def deal(depth: int, stages: int) -> tuple[int, ...]:
    """Deals `depth` layers to at most `stages` stages, what is left over to the later ones.

    A network of fewer layers than stages has a stage for each.
    """
    stages = min(depth, stages)
    base, extra = divmod(depth, stages)
    return tuple(base + (stage >= stages - extra) for stage in range(stages))


def patches(x: jax.Array, size: int) -> jax.Array:
    """Cuts images into squares: [batch, height, width, channels] to [batch, squares, numbers].

    Args:
        x: images whose height and width are multiples of `size`.
        size: the side of a square.

    Returns:
        [batch, height / size * width / size, size * size * channels].
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


class FeedForward(nn.Module):
    """Dense, activation, dropout, dense: from n features to `hidden` and back to n.

    Attributes:
        hidden: features between.
        activation: the activation between.
        dtype: dtype of the computation.
        branches: residual branches of the network; the last layer's variance is divided by it, so
            that the sum of all of them keeps its size (GPT-2, Radford et al. 2019, section 2.3).
        dropout: rate of dropout after the activation.
    """

    hidden: int
    activation: Activation
    dtype: Any
    branches: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [..., n] to [..., n]."""
        y = self.activation(dense(self.hidden, self.dtype)(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return dense(x.shape[-1], self.dtype, self.activation.gain / self.branches)(y)


def drop_path(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth: zeroes the residual branch of each example with probability `rate`.

    Args:
        module: the module whose `dropout` key is drawn from.
        x: the branch's output [batch, ...].
        rate: the probability.
        train: at evaluation nothing is dropped.

    Returns:
        An array like x, scaled so that its expectation is that of x.

    References:
        Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv 1603.09382.
    """
    if not train or rate == 0.0:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path_rates(last: float, blocks: int) -> tuple[float, ...]:
    """The rate of each block: from 0 at the first, growing linearly, to `last` at the last.

    So a single block, the first, is never dropped.
    """
    return tuple(last * block / max(blocks - 1, 1) for block in range(blocks))


def classify(x: jax.Array, classes: int, dtype: Any) -> jax.Array:
    """The last layer: logits in float32 (in float64, where that is the precision before)."""
    return dense(classes, dtype)(x).astype(jnp.promote_types(dtype, jnp.float32))
