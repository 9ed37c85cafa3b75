"""What a family of networks says about itself, and how what is asked of it is checked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn

from jaxenergy.arguments import COUNT, FRACTION, Argument
from jaxenergy.errors import UsageError
from jaxenergy.models.layers import NORMS

DROPOUT = Argument(float, 0.0, FRACTION)
STOCHASTIC_DEPTH = Argument(float, 0.0, FRACTION)
PATCH_SIZE = Argument(int, None, COUNT, optional=True)
_LEAST_PATCHES = 16


def norm_argument(default: str, choices: tuple[str, ...] = NORMS) -> Argument:
    """The option `norm` of a family."""
    return Argument(str, default, choices=choices)


def patch_side(image_shape: tuple[int, ...], side: int | None) -> int:
    """The side of the patches an image is cut into.

    Args:
        image_shape: (height, width, channels).
        side: the one asked for; None for the largest of 4, 2 and 1 that divides height and width
            and gives at least 16 patches.

    Raises:
        UsageError: the side asked for does not divide height and width.
    """
    height, width = image_shape[:2]
    if side is None:
        return next(
            s
            for s in (4, 2, 1)
            if s == 1 or (height % s == width % s == 0 and height * width >= _LEAST_PATCHES * s * s)
        )
    if height % side or width % side:
        raise UsageError(
            f"patch_size={side} is not possible for images of {height} x {width}: it must divide"
            " both."
        )
    return side


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network of a family that has a name of its own.

    Attributes:
        depth: its depth.
        width: its width.
        options: those that differ from the family's defaults.
        activation: where it differs from the family's default.
    """

    depth: int
    width: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: str | None = None


def _accept(width: int, options: Mapping[str, Any], input_shape: tuple[int, ...]) -> None:
    del width, options, input_shape


@dataclasses.dataclass(frozen=True)
class DepthRule:
    """The depths a family has: `multiple` * n + `offset` for n = 1, 2, ...

    Attributes:
        multiple: layers that come together.
        offset: layers that are always there.
        counts: what depth counts, for people.
    """

    multiple: int = 1
    offset: int = 0
    counts: str = "layers"

    def blocks(self, depth: int) -> int:
        """The n of a depth that follows the rule."""
        return (depth - self.offset) // self.multiple

    def check(self, depth: int, family: str) -> None:
        """Refuses a depth that the family does not have.

        Raises:
            UsageError: the message has the form of the depths there are, and the nearest.
        """
        n, rest = divmod(depth - self.offset, self.multiple)
        if n >= 1 and rest == 0:
            return
        below, above = (self.multiple * max(k, 1) + self.offset for k in (n, n + 1))
        nearest = f"{above}" if below == above else f"{below} or {above}"
        raise UsageError(
            f"--depth={depth} is not possible for --model={family}: depth counts {self.counts}"
            f" and is {self.form}. Nearest: {nearest}."
        )

    @property
    def form(self) -> str:
        """The rule in words, e.g. `6n+2 for n = 1, 2, ...`."""
        if self.multiple == 1:
            return f"at least {1 + self.offset}"
        return f"{self.multiple}n+{self.offset} for n = 1, 2, ..."


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks, parameterised by depth, width and activation.

    Attributes:
        module: the Flax module, with fields depth, width, activation, classes, dtype, and one for
            each of `options`; called with (inputs, train=...).
        depth: the default depth.
        width: the default width.
        width_counts: what width counts, for people.
        depth_rule: the depths there are, given the options.
        options: further hyper-parameters by name.
        inputs: `image` for float32 [batch, height, width, channels], `tokens` for int32
            [batch, length].
        activation: the default activation.
        check: raises a UsageError where width, options and input shape do not fit together.
        presets: functions that give a `Preset`; a function's name is the preset's, its docstring
            says what it is, its parameters and its FLOPs.
        dot_only: whether there is no convolution inside, so that many updates may be rolled into
            one loop on the CPU.
        recurrent: whether it loops over time inside, which XLA counts once.
        vectors: whether an example may be a plain vector of numbers, as one pixel of an image: the
            family looks at no neighbourhood.
    """

    module: type[nn.Module]
    depth: int
    width: int
    width_counts: str
    depth_rule: Callable[[Mapping[str, Any]], DepthRule]
    options: Mapping[str, Argument]
    inputs: Literal["image", "tokens"] = "image"
    activation: str = "relu"
    check: Callable[[int, Mapping[str, Any], tuple[int, ...]], object] = _accept
    presets: tuple[Callable[[], Preset], ...] = ()
    dot_only: bool = False
    recurrent: bool = False
    vectors: bool = False
