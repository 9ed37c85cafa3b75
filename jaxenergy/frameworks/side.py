"""What the metering code needs of a framework: a few verbs, each a stage of the account."""

import abc
from pathlib import Path
from typing import Any


class Side(abc.ABC):
    """One framework with one training, in a process of its own.

    The methods are called in the order in which they stand here, `call` and `fence` many times.

    Attributes:
        updates_per_call: updates that one `call` makes.
        scaffold_bytes: the host's memory that was taken for what is no framework's.
    """

    updates_per_call: int = 1
    scaffold_bytes: int = 0

    @abc.abstractmethod
    def before_start(self) -> None:
        """Does what of the comparison's own work needs another framework; left out too."""

    @abc.abstractmethod
    def start(self) -> None:
        """Imports the framework, and nothing of this library, and wakes its device."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Does what is this comparison's own work: imports this library, reads the data, plans.

        Left out of the account; so the framework computes nothing in it, since what it does for the
        first time takes longer.
        """

    @abc.abstractmethod
    def load(self) -> None:
        """Puts data, order and weights on the device, with the optimizer's state for them.

        It waits until they are there.
        """

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
