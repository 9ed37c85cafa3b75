"""Weights from Flax to PyTorch and back, by name: the way there and back is the identity.

A `Binding` ties one leaf of Flax's variables to one PyTorch tensor. Gradients and the optimizer's
moments have their parameter's form, so the same bindings carry those too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxenergy.torch_twin.models import TanhLSTMLayer

PyTree = Any
Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Binding:
    """One leaf of Flax's variables and its PyTorch tensor.

    Attributes:
        collection: `params` or `batch_stats`.
        path: names of the modules in Flax, and of the leaf.
        tensor: the parameter or buffer.
        to_torch: from Flax's layout to PyTorch's.
        to_flax: the other way.
    """

    collection: str
    path: tuple[str, ...]
    tensor: Tensor
    to_torch: Convert
    to_flax: Convert

    @property
    def name(self) -> str:
        """The leaf's path as one word, e.g. `Conv_0/kernel`."""
        return "/".join(self.path)

    def to_flax_all(self, values: np.ndarray) -> np.ndarray:
        """Values of the tensor's form, or several along a leading axis, in Flax's layout."""
        if values.ndim == self.tensor.ndim:
            return self.to_flax(values)
        return np.stack([self.to_flax(value) for value in values])


def bind(network: nn.Module) -> list[Binding]:
    """The bindings of all parameters and statistics of a network, in the order of its modules."""
    return list(_bind(network, ()))


def load(bindings: Iterable[Binding], variables: Mapping[str, PyTree]) -> None:
    """Writes Flax's variables into a network.

    Args:
        bindings: the network's.
        variables: `params` and, where there is batch normalisation, `batch_stats`.

    Raises:
        ValueError: a leaf is missing, is not used, or has another shape.
    """
    leaves = flatten(variables)
    for binding in bindings:
        leaf = leaves.pop((binding.collection, *binding.path), None)
        if leaf is None:
            raise ValueError(f"Flax's variables have no {binding.collection}/{binding.name}")
        value = binding.to_torch(leaf)
        if value.shape != tuple(binding.tensor.shape):
            raise ValueError(
                f"{binding.name} is {leaf.shape} in Flax; PyTorch's has the shape"
                f" {tuple(binding.tensor.shape)}"
            )
        with torch.no_grad():
            binding.tensor.copy_(torch.tensor(value))
    if leaves:
        raise ValueError(f"PyTorch's network has no {'/'.join(next(iter(leaves)))}")


def read(bindings: Iterable[Binding]) -> dict[str, PyTree]:
    """Reads a network's weights as Flax's variables."""
    variables: dict[str, PyTree] = {}
    for binding in bindings:
        node = variables.setdefault(binding.collection, {})
        for name in binding.path[:-1]:
            node = node.setdefault(name, {})
        node[binding.path[-1]] = binding.to_flax(to_numpy(binding.tensor))
    return variables


def named_layers(module: nn.Module, path: tuple[str, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """The modules below one that have a name in Flax, with their paths there."""
    for child in module.children():
        name = getattr(child, "flax_name", None)
        child_path = path if name is None else (*path, name)
        if name is not None:
            yield "/".join(child_path), child
        yield from named_layers(child, child_path)


def flatten(tree: Mapping[str, PyTree]) -> dict[tuple[str, ...], np.ndarray]:
    """The leaves of nested mappings as arrays, by path."""
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            leaves.update({(name, *path): leaf for path, leaf in flatten(node).items()})
        else:
            leaves[(name,)] = np.asarray(node)
    return leaves


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor in the host's memory, in C order; of bfloat16 as float32."""
    if tensor.dtype == torch.bfloat16:  # which NumPy has not
        tensor = tensor.float()
    return np.array(tensor.detach().cpu().numpy(), order="C")


def _bind(module: nn.Module, path: tuple[str, ...]) -> Iterable[Binding]:
    for name, tensor, collection, to_torch, to_flax in _leaves(module):
        yield Binding(collection, (*path, *name.split("/")), tensor, to_torch, to_flax)
    for child in module.children():
        name = getattr(child, "flax_name", None)
        yield from _bind(child, path if name is None else (*path, name))


def _leaves(module: nn.Module) -> Iterable[tuple[str, Tensor, str, Convert, Convert]]:
    """The leaves of one module itself: name in Flax, tensor, collection, both conversions."""
    if isinstance(module, nn.Linear):
        yield "kernel", module.weight, "params", np.transpose, np.transpose
        if module.bias is not None:
            yield "bias", module.bias, "params", _same, _same
    elif isinstance(module, nn.Conv2d):  # [height, width, in, out] and [out, in, height, width]
        yield "kernel", module.weight, "params", _axes(3, 2, 0, 1), _axes(2, 3, 1, 0)
        if module.bias is not None:
            yield "bias", module.bias, "params", _same, _same
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
        yield "scale", module.weight, "params", _same, _same
        yield "bias", module.bias, "params", _same, _same
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield "mean", _buffer(module.running_mean), "batch_stats", _same, _same
            factor = variance_factor(module)
            yield (
                "var",
                _buffer(module.running_var),
                "batch_stats",
                lambda leaf: np.multiply(leaf, factor, dtype=np.float64),
                lambda leaf: np.divide(leaf, factor, dtype=np.float64).astype(leaf.dtype),
            )
    elif isinstance(module, nn.Embedding):
        yield "embedding", module.weight, "params", _same, _same
    elif isinstance(module, TanhLSTMLayer):
        for name, tensor in (
            ("Dense_0/kernel", module.weight_ih_l0),
            ("Dense_0/bias", module.bias_ih_l0),
            ("recurrent", module.weight_hh_l0),
        ):
            yield name, tensor, "params", _gates_to_torch, _gates_to_flax
    else:
        for name, parameter in module.named_parameters(recurse=False):
            yield name, parameter, "params", _same, _same


def variance_factor(norm: nn.Module) -> float:
    """PyTorch's running variance over Flax's, for a batch norm in training.

    PyTorch keeps the unbiased variance, n / (n - 1) times Flax's, for n values of a channel in a
    batch. Both running means are linear, so a start that is larger by the same factor stays so.
    `Training` sets it; at evaluation it is 1.
    """
    return getattr(norm, "variance_factor", 1.0)


def _buffer(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # this project's batch norms all track statistics
    return buffer


def _same(leaf: np.ndarray) -> np.ndarray:
    return leaf


def _axes(*axes: int) -> Convert:
    return lambda leaf: np.transpose(leaf, axes)


# The gates' order is input, forget, output, candidate in Flax's network, and input, forget,
# candidate, output in PyTorch's: exchanging the last two is its own inverse.
def _exchange_gates(leaf: np.ndarray, axis: int) -> np.ndarray:
    into, forget, third, fourth = np.split(leaf, 4, axis)
    return np.concatenate([into, forget, fourth, third], axis)


def _gates_to_torch(leaf: np.ndarray) -> np.ndarray:
    return _exchange_gates(leaf.T, 0)


def _gates_to_flax(leaf: np.ndarray) -> np.ndarray:
    return _exchange_gates(leaf, 0).T
