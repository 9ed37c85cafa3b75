"""What the metering code needs of a framework: a few verbs, each a stage of the account."""

import abc
from pathlib import Path
from typing import Any


class Side(abc.ABC):
    """One framework with one training, in a process of its own.

    The methods are called in the order in which they stand here, `call` and `fence` many times.

    Attributes:
        prepares_first: whether `prepare` comes before `start`, since it needs no framework.
        updates_per_call: updates that one `call` makes.
        scaffold_bytes: the host's memory that `prepare` took for what is no framework's.
    """

    prepares_first: bool = False
    updates_per_call: int = 1
    scaffold_bytes: int = 0

    @abc.abstractmethod
    def start(self) -> None:
        """Imports the framework and wakes its device."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Does what is this comparison's own work and no framework's; left out of the account."""

    @abc.abstractmethod
    def load(self) -> None:
        """Puts data, order and weights on the device, and waits until they are there."""

    @abc.abstractmethod
    def build(self) -> None:
        """Compiles the update, as far as that happens before it is called."""

    @abc.abstractmethod
    def call(self) -> None:
        """Dispatches the next updates; does not wait for them."""

    @abc.abstractmethod
    def fence(self) -> None:
        """Waits until everything that the last call returns has been computed."""

    @abc.abstractmethod
    def loss(self) -> float:
        """The last call's loss."""

    @abc.abstractmethod
    def peak_device_bytes(self) -> int | None:
        """The most of the device's memory that was in use; None on the CPU."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Version, threads, precision: what is to be the same, or to be known, as plain JSON."""


def read_host_bytes(what: str) -> int | None:
    """Memory of this process: `VmRSS` for what it has now, `VmHWM` for the most it had at once."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
