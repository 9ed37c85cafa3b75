"""What all processes of a comparison are given: initial weights, the order of the data, the facts.

One process makes them with JAX and writes them down, so that every framework begins with the same
weights and draws the same batches, and none of them pays for making either.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxenergy.errors import RunError
from jaxenergy.records.files import read_document, write_json_atomic

_FACTS_FILE = "facts.json"
_ORDERS_FILE = "orders.npy"
_VARIABLES_FILE = "variables.npz"

# After so many epochs the order begins again; no comparison of a few seconds gets far beyond.
EPOCHS = 8


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was prepared for one model.

    Attributes:
        facts: plain JSON: the device, the length of a call, what the config left open, parity.
        orders: int32 [EPOCHS, examples]; each row visits every example once.
        variables: the initial `params` and `batch_stats`, nested dicts of numpy arrays.
    """

    facts: Mapping[str, Any]
    orders: np.ndarray
    variables: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Writes them into a folder; the facts come last, so a folder that has them is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / _ORDERS_FILE, self.orders)
        variables: dict[str, Any] = flatten(self.variables)
        np.savez(folder / _VARIABLES_FILE, **variables)
        write_json_atomic(folder / _FACTS_FILE, dict(self.facts))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The facts alone; None where nothing was prepared, or not to the end."""
    return read_document(folder / _FACTS_FILE)


def read_inputs(folder: Path) -> Inputs:
    """What `Inputs.write` left.

    Raises:
        RunError: nothing was prepared there.
    """
    facts = read_facts(folder)
    if facts is None:
        raise RunError(f"{folder} holds no prepared inputs.")
    with np.load(folder / _VARIABLES_FILE, allow_pickle=False) as arrays:
        variables = unflatten({name: arrays[name] for name in arrays})
    return Inputs(facts, np.load(folder / _ORDERS_FILE, allow_pickle=False), variables)


def in_a_row(orders: np.ndarray, batch_size: int) -> np.ndarray:
    """The examples in the order in which they are drawn, of which each slice is a batch.

    Args:
        orders: int32 [epochs, examples].
        batch_size: examples per update.

    Returns:
        int32 [epochs * examples + batch_size]: after the last epoch the first one comes again, and
        a batch may begin in the one and end in the other.
    """
    row = orders.reshape(-1)
    return np.concatenate([row, np.resize(row, batch_size)])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts of arrays as one, with `/` between the names."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The nested dicts that `flatten` was given."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree
