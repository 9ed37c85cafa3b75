"""Trainings that begin with the parameters of another: what is taken over, and what is trained.

A network's layers are the top-level entries of its parameters that hold weights, in the order in
which they compute; a norm belongs to the layer before it. A layer is taken over if the other
network has one of the same name and the same shapes, whole or not at all: so a head for other
classes begins anew, and so does one for as many classes where these are known to be others.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxenergy.errors import UsageError
from jaxenergy.models import Model

PyTree = Any

TRAINABLE = "all, head, or last:K for the last K layers"


@dataclasses.dataclass(frozen=True)
class Initial:
    """Parameters to begin with.

    Attributes:
        variables: the layers that are taken over, as `params` and `batch_stats`; numpy arrays.
        facts: for the records: which run they come from, and what its training took.
    """

    variables: Mapping[str, PyTree]
    facts: Mapping[str, Any]

    def sentence(self) -> str:
        """What was and what was not taken over, for people."""
        facts = self.facts
        new = ", ".join(facts["new"]) or "none"
        return (
            f"begins with {facts['loaded_parameters']:,} parameters of {facts['run']} "
            f"({', '.join(facts['loaded'])}); layers that begin anew: {new}"
        )


def read_layers(model: Model) -> tuple[tuple[str, ...], ...]:
    """The layers of a network, first to last: the names of their top-level entries."""
    entries: list[tuple[str, bool]] = []

    def look(key: jax.Array) -> None:  # traced; jit would give the names sorted
        params = model.init(key)["params"]
        for name, entry in params.items():
            entries.append((name, any(leaf.ndim > 1 for leaf in jax.tree.leaves(entry))))

    jax.eval_shape(look, jax.random.key(0))
    layers: list[list[str]] = []
    for name, has_weights in entries:
        if has_weights or not layers:
            layers.append([])
        layers[-1].append(name)
    return tuple(map(tuple, layers))


def frozen_entries(model: Model, trainable: str) -> frozenset[str]:
    """The top-level entries of the parameters that are not trained.

    Args:
        model: the network.
        trainable: `all`, `head` or `last:K`.

    Raises:
        UsageError: the network has fewer layers than that.
    """
    if trainable == "all":
        return frozenset()
    layers = read_layers(model)
    count = 1 if trainable == "head" else int(trainable.removeprefix("last:"))
    if count > len(layers):
        raise UsageError(
            f"--trainable={trainable}: this {model.family} has {len(layers)} layers.\n"
            f"Allowed: all, head, last:1 to last:{len(layers)}."
        )
    return frozenset(name for layer in layers[: len(layers) - count] for name in layer)


def check_trainable(text: str) -> None:
    """Refuses a text that says no layers.

    Raises:
        UsageError: it is neither `all`, `head` nor `last:K`.
    """
    if not re.fullmatch(r"all|head|last:[1-9][0-9]{0,5}", text):
        raise UsageError(f"--trainable={text} is not possible.\nAllowed: {TRAINABLE}.")


def take_over(
    model: Model,
    params: PyTree,
    batch_stats: PyTree,
    facts: Mapping[str, Any],
    *,
    new_head: bool = False,
) -> Initial:
    """Chooses what a network takes over from another's variables.

    Args:
        model: the network that begins.
        params: the other's parameters.
        batch_stats: its running statistics.
        facts: for the records.
        new_head: whether the last layer begins anew even if its shapes fit.

    Returns:
        What to begin with.

    Raises:
        UsageError: nothing fits.
    """
    own = jax.eval_shape(model.init, jax.random.key(0))
    taken: dict[str, dict[str, PyTree]] = {"params": {}, "batch_stats": {}}
    loaded, new = [], []
    layers = read_layers(model)
    for layer in layers:
        fits = all(_same_shapes(params.get(name), own["params"][name]) for name in layer)
        fits = fits and not (new_head and layer is layers[-1])
        (loaded if fits else new).extend(layer)
        if fits:
            taken["params"].update({name: params[name] for name in layer})
    for name, entry in own.get("batch_stats", {}).items():
        if name in loaded and _same_shapes(batch_stats.get(name), entry):
            taken["batch_stats"][name] = batch_stats[name]
    if not loaded:
        raise UsageError(
            f"--init_from={facts['run']}: no layer of it has the name and the shapes of one of "
            f"this {model.family} ({', '.join(new)})."
        )
    leaves = jax.tree.leaves(taken)
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(np.ascontiguousarray(leaf).data)
    return Initial(
        variables=taken,
        facts={
            **facts,
            "loaded": loaded,
            "new": new,
            "loaded_parameters": sum(leaf.size for leaf in jax.tree.leaves(taken["params"])),
            "digest": f"sha256:{digest.hexdigest()}",
        },
    )


def _same_shapes(one: PyTree, other: PyTree) -> bool:
    shapes = [jax.tree.map(np.shape, tree) for tree in (one, other)]
    return one is not None and shapes[0] == shapes[1]
