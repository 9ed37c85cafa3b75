"""What several families are built of, named as Flax names it, so that weights find their place.

Images are [batch, channels, height, width] in channels-last memory, as PyTorch's convolutions want
them; an image that arrives as [batch, height, width, channels] is that already, seen otherwise.
"""

import math
from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from jaxenergy.models.layers import group_size

Activate = Callable[[Tensor], Tensor]

# The constant under the root of each norm: Flax's.
_BATCH_NORM_EPS = 1e-5
_NORM_EPS = 1e-6
_BATCH_NORM_MOMENTUM = 1 - 0.9  # PyTorch counts the share of the new, Flax that of the old


class Block(nn.Module):
    """A module whose layers carry the names that Flax gives them: by class, counted from 0.

    Flax counts in the order of the calls. So layers are named, in `__init__`, in the order in which
    Flax's module calls its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()

    def named(self, layer: nn.Module, name: str | None = None) -> nn.Module:
        """A layer with its name in Flax.

        Args:
            layer: the layer.
            name: its name, where Flax's module was given one.

        Returns:
            The layer.
        """
        if name is None:
            kind = _flax_kind(layer)
            name = f"{kind}_{self._counts[kind]}"
            self._counts[kind] += 1
        layer.flax_name = name  # type: ignore[assignment]
        return layer

    def norm(self, kind: str, channels: int, *, of_images: bool) -> nn.Module:
        """A norm with its name in Flax.

        Args:
            kind: `batch`, `layer`, `group`, or `none`, which is nothing and has no name.
            channels: channels of what it normalises.
            of_images: whether that is [batch, channels, height, width], not [..., channels].

        Returns:
            The norm.
        """
        if kind == "none":
            return nn.Identity()
        if kind == "batch":
            make = nn.BatchNorm2d if of_images else nn.BatchNorm1d
            return self.named(make(channels, _BATCH_NORM_EPS, _BATCH_NORM_MOMENTUM))
        if kind == "layer":
            return self.named((ImageLayerNorm if of_images else nn.LayerNorm)(channels, _NORM_EPS))
        groups = channels // group_size(channels)
        return self.named(nn.GroupNorm(groups, channels, _NORM_EPS))


class SameConv2d(nn.Conv2d):
    """A convolution with XLA's `SAME` padding, which at stride 2 is uneven: more after than before.

    PyTorch pads evenly inside its kernels; only what is uneven is padded beforehand.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps [batch, in, height, width] to [batch, out, ceil(height / s), ceil(width / s)]."""
        height, width = (
            _same_padding(n, self.kernel_size[0], self.stride[0]) for n in input.shape[2:]
        )
        if height[0] != height[1] or width[0] != width[1]:
            input = F.pad(input, (*width, *height))
            height = width = (0, 0)
        return F.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            (height[0], width[0]),
            groups=self.groups,
        )


class ImageLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of an image."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the same."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv(
    channels: int, features: int, size: int, *, strides: int = 1, groups: int = 1, use_bias: bool
) -> nn.Conv2d:
    """A square convolution that keeps the size at stride 1."""
    return SameConv2d(channels, features, size, strides, groups=groups, bias=use_bias)


class FeedForward(Block):
    """Dense, activation, dense: from n features to `hidden` and back to n."""

    def __init__(self, features: int, hidden: int, activate: Activate) -> None:
        super().__init__()
        self.activate = activate
        self.expand = self.named(nn.Linear(features, hidden))
        self.contract = self.named(nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., n] to [..., n]."""
        return self.contract(self.activate(self.expand(x)))


def mean_over_positions(x: Tensor) -> Tensor:
    """[batch, channels, height, width] to [batch, channels]."""
    return x.mean((2, 3))


def patches(images: Tensor, side: int) -> Tensor:
    """Cuts images into squares.

    Args:
        images: [batch, height, width, channels].
        side: the side of a square.

    Returns:
        [batch, height / side * width / side, side * side * channels].
    """
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)


def _flax_kind(layer: nn.Module) -> str:
    for kind, name in (
        (nn.Linear, "Dense"),
        (nn.Conv2d, "Conv"),
        (nn.modules.batchnorm._BatchNorm, "BatchNorm"),
        (nn.LayerNorm, "LayerNorm"),
        (nn.GroupNorm, "GroupNorm"),
        (nn.Embedding, "Embed"),
    ):
        if isinstance(layer, kind):
            return name
    return type(layer).__name__


def _same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
