"""What a meter is: a set of cumulative energy counters, one per domain.

Everything above (timelines, ledgers) sees only the two classes of this file, so that a GPU, a CPU
package, an estimate and a simulated sensor are attributed by the same code. A meter here only
reads; undoing wraps, placing ticks in time and judging faults is the timeline's work.
"""

import abc
import dataclasses

from jaxenergy.errors import JaxenergyError, UsageError
from jaxenergy.units import format_si

# Strongest first; a total is as strong as its weakest domain.
PROVENANCES = ("measured", "simulated", "estimated")


class CounterError(JaxenergyError):
    """A counter could not be read just now; the message is the reason a record will carry."""


class MeterUnavailable(UsageError):
    """A meter cannot be had on this machine; the message says what is missing and how to mend it.

    Args:
        message: one to three lines.
        absent: True where the hardware or its driver is simply not there, False where it is there
            and something stands in the way of reading it.
    """

    def __init__(self, message: str, *, absent: bool = False):
        super().__init__(message)
        self.absent = absent


@dataclasses.dataclass(frozen=True)
class Domain:
    """One metered part of the machine.

    Attributes:
        name: e.g. `gpu:0`, `cpu:package-0`, `dram:package-0`.
        provenance: one of `PROVENANCES`.
        source: what is read, for people: a file, an NVML call, a formula.
        tick_s: the period in which the counter is updated; 0.0 for one that is always current.
        resolution_j: the counter's step.
        range_j: the value at which the counter wraps to zero; None where it does not wrap.
        max_power_w: a bound on the power this domain can draw, used to tell how many wraps an
            interval could hide and whether a jump is believable.
        counted: whether it is part of totals. Domains that overlap others are recorded only.
        why_not_counted: the reason, where `counted` is False.
    """

    name: str
    provenance: str
    source: str
    tick_s: float
    resolution_j: float
    range_j: float | None = None
    max_power_w: float = 2000.0
    counted: bool = True
    why_not_counted: str = ""


class Counter(abc.ABC):
    """One cumulative energy counter."""

    domain: Domain

    @abc.abstractmethod
    def read_j(self) -> float:
        """The counter's present value in joules, in `[0, domain.range_j)` where it wraps.

        Raises:
            CounterError: it cannot be read now; the message says why.
        """


class Meter(abc.ABC):
    """A source of counters, e.g. NVML or the powercap tree.

    Attributes:
        name: the registered name, e.g. `nvml`.
        counters: the counters that can be read here, at least one.
        notes: sentences the user should see, e.g. which assumption an estimate rests on.
    """

    name: str
    counters: tuple[Counter, ...]
    notes: tuple[str, ...] = ()

    def read_conditions(self) -> dict[str, dict]:
        """What else is known at this moment, by domain name: temperature, clocks, throttling."""
        return {}

    def describe(self) -> dict:
        """Facts that do not change, for a run's environment: driver, library, identities."""
        return {}

    def cross_checks(self) -> tuple["CrossCheck", ...]:
        """What this meter can say about one domain from two sensors, since the previous call."""
        return ()

    def close(self) -> None:  # noqa: B027  (most meters hold nothing)
        """Gives back what the meter holds; reading afterwards is an error."""


@dataclasses.dataclass(frozen=True)
class CrossCheck:
    """The energy of one stretch of time by two sources.

    Attributes:
        domain: the domain both measure.
        source: the source that is counted.
        other_source: the source it is held against.
        energy_j: by the first.
        other_energy_j: by the second.
        bound_j: the difference above which the two disagree.
    """

    domain: str
    source: str
    other_source: str
    energy_j: float
    other_energy_j: float
    bound_j: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by no more than the bound."""
        return abs(self.energy_j - self.other_energy_j) <= self.bound_j

    def __str__(self) -> str:
        verdict = "agrees with" if self.agrees else "DISAGREES with"
        return (
            f"{self.domain}: {self.source} ({format_si(self.energy_j, 'J', 4)}) {verdict} "
            f"{self.other_source} ({format_si(self.other_energy_j, 'J', 4)}); "
            f"the bound is {format_si(self.bound_j, 'J', 2)}"
        )


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that computes, as described by whoever runs it; meters know no framework.

    Attributes:
        platform: `cpu` or `gpu`.
        index: its number among the visible devices.
        name: e.g. `NVIDIA H200`.
        uuid: the vendor's unique id, where known, e.g. `GPU-5f…`.
        pci_bus_id: e.g. `00000000:3B:00.0`, where known.
    """

    platform: str
    index: int
    name: str = ""
    uuid: str | None = None
    pci_bus_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a meter is told when it is opened.

    Attributes:
        devices: the devices that compute; None where nobody said.
        powercap_root: where the kernel's powercap tree is.
    """

    devices: tuple[Device, ...] | None = None
    powercap_root: str = "/sys/class/powercap"

    @property
    def gpus(self) -> tuple[Device, ...]:
        """Those of the devices that are GPUs."""
        return tuple(device for device in self.devices or () if device.platform == "gpu")
