"""PyTorch's own function for each of this project's activations."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F


def _identity(x: Tensor) -> Tensor:
    return x


def _squared_relu(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


# In float64, in which nothing is timed, two are written out: PyTorch's own have float32's sixth in
# their slopes there.
def _hard_sigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6 if x.dtype == torch.float64 else F.hardsigmoid(x)


def _hard_silu(x: Tensor) -> Tensor:
    return x * _hard_sigmoid(x) if x.dtype == torch.float64 else F.hardswish(x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "squared_relu": _squared_relu,
    "hard_tanh": F.hardtanh,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
    "softsign": F.softsign,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    # Above its threshold PyTorch takes x itself for log(1 + exp(x)): at the default of 20 an error
    # of 1e-10, which float64 shows; at 40 one beyond float64, at the same cost.
    "softplus": partial(F.softplus, threshold=40.0),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sine": torch.sin,
}
