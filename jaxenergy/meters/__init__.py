"""Hardware: which energy counters this machine has, opened by name.

`open_meters` gives a `Meters`, the set that a ledger attributes. A meter of one's own is a class
and a row:

    class WallPlug(Meter):
        name = "plug"

        def __init__(self, machine: Machine):
            self.counters = (PlugCounter(),)

    METERS.add("plug", WallPlug, "the wattmeter on the wall")
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.meters.base import (
    PROVENANCES,
    Counter,
    CounterError,
    CrossCheck,
    Device,
    Domain,
    Machine,
    Meter,
    MeterUnavailable,
)
from jaxenergy.meters.estimate import EstimateMeter
from jaxenergy.meters.nvml import NvmlMeter
from jaxenergy.meters.perf import PerfMeter
from jaxenergy.meters.pyrapl import PyraplMeter
from jaxenergy.meters.rapl import RaplMeter
from jaxenergy.registry import Registry, load_attribute

__all__ = [
    "METERS",
    "Counter",
    "CounterError",
    "CrossCheck",
    "Device",
    "Domain",
    "Machine",
    "Meter",
    "MeterUnavailable",
    "Meters",
    "compare_sources",
    "open_meters",
]

DEFAULT_POWERCAP_ROOT = Machine.powercap_root

# Two readers of the same sensor differ by their ticks and by nothing else.
_SOURCES_AGREE = 0.01
_SOURCES_SLACK_J = 1.0


def _open_simulated(machine: Machine) -> Meter:
    from jaxenergy.meters.simulated import SimulatedMeter

    del machine
    return SimulatedMeter()


METERS: Registry[Callable[[Machine], Meter]] = Registry("--meters")
METERS.add("nvml", NvmlMeter, "NVIDIA GPUs, by the driver's energy counter")
METERS.add("rapl", RaplMeter, "CPU packages and memory, by the kernel's powercap tree")
METERS.add("pyrapl", PyraplMeter, "the same, read by the pyRAPL package")
METERS.add("perf", PerfMeter, "the same, read by the kernel's power PMU")
METERS.add("estimate", EstimateMeter, "CPU time times stated watts: a guess, marked as one")
METERS.add("simulated", _open_simulated, "a scripted counter, for trying things out")


@dataclasses.dataclass(frozen=True, eq=False)
class Meters:
    """Open meters; a context manager that closes them.

    Attributes:
        meters: in the order they were asked for.
        choice: sentences about how they were chosen.
    """

    meters: tuple[Meter, ...] = ()
    choice: tuple[str, ...] = ()

    @property
    def counters(self) -> tuple[Counter, ...]:
        """Every counter of every meter."""
        return tuple(counter for meter in self.meters for counter in meter.counters)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """What each counter measures."""
        return tuple(counter.domain for counter in self.counters)

    @property
    def counted_domains(self) -> tuple[str, ...]:
        """The names of the domains that totals are made of."""
        return tuple(domain.name for domain in self.domains if domain.counted)

    @property
    def provenance(self) -> str:
        """The weakest among the counted domains, or `none`."""
        found = [domain.provenance for domain in self.domains if domain.counted]
        return max(found, key=PROVENANCES.index) if found else "none"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should be told at the start."""
        return self.choice + tuple(note for meter in self.meters for note in meter.notes)

    def read_conditions(self) -> dict[str, dict]:
        """What each meter knows of this moment, by domain."""
        conditions: dict[str, dict] = {}
        for meter in self.meters:
            for domain, known in meter.read_conditions().items():
                conditions.setdefault(domain, {}).update(known)
        return conditions

    def cross_checks(self) -> tuple[CrossCheck, ...]:
        """What each meter can say from two sensors, since the previous call."""
        return tuple(check for meter in self.meters for check in meter.cross_checks())

    def describe(self) -> dict[str, dict]:
        """Facts that do not change, by meter."""
        return {meter.name: meter.describe() for meter in self.meters}

    def close(self) -> None:
        """Closes every meter."""
        with contextlib.ExitStack() as stack:
            for meter in self.meters:
                stack.callback(meter.close)

    def __enter__(self) -> "Meters":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_meters(
    spec: str = "auto",
    devices: Iterable[Device] | None = None,
    *,
    powercap_root: str | Path = DEFAULT_POWERCAP_ROOT,
) -> Meters:
    """Opens the meters asked for.

    Args:
        spec: `auto`, `none`, or names from `METERS` (or `module:class` of one's own) with commas
            between. `auto` takes `nvml` where a GPU computes (or, where nobody said what computes,
            where the driver lists a GPU) and `rapl` where it can be read; where neither gives a
            counter it takes `estimate`, and says so. It never adds an estimate to a measurement.
        devices: the devices that compute, as whoever runs them describes them; None where nobody
            knows. A GPU is metered if it is among them; if none is, `nvml` by name meters every
            visible GPU.
        powercap_root: where the kernel's powercap tree is.

    Returns:
        The open meters. A part of the machine that several of them measure is counted in the first
        and recorded as `NAME@METER` in the others.

    Raises:
        UsageError: an unknown name, or a meter asked for by name that this machine does not have;
            the message says what is missing and how to mend it.
    """
    root = os.fspath(powercap_root)
    if root != DEFAULT_POWERCAP_ROOT and not os.path.isdir(root):
        raise UsageError(f"--powercap_root={root} is no folder.")
    machine = Machine(None if devices is None else tuple(devices), root)
    names = [name.strip() for name in spec.split(",")]
    if names == ["auto"]:
        return _open_auto(machine)
    if names == ["none"]:
        return Meters()
    _check_names(spec, names)
    return _open_all([(name, _find_factory(name)) for name in names], machine)


def compare_sources(
    energy_j: Mapping[str, float | None], counted_domains: Sequence[str]
) -> tuple[CrossCheck, ...]:
    """Holds every cross-checking domain (`NAME@METER`) of a run against what was counted.

    Args:
        energy_j: joules by domain over one stretch of time; None where they could not be told.
        counted_domains: the names of the counted domains.

    Returns:
        A check for each part of the machine that has both.
    """
    others: dict[tuple[str, str], list[float | None]] = {}
    for name, other_j in energy_j.items():
        domain, at, source = name.partition("@")
        if at:
            others.setdefault((_part(domain), source), []).append(other_j)
    checks = []
    for (part, source), others_j in others.items():
        counted = [domain for domain in counted_domains if _part(domain) == part]
        counted_j = _sum_of_all([energy_j.get(domain) for domain in counted])
        other_j = _sum_of_all(others_j)
        if counted_j is not None and other_j is not None:
            checks.append(
                CrossCheck(
                    domain=part,
                    source=" + ".join(counted),
                    other_source=source,
                    energy_j=counted_j,
                    other_energy_j=other_j,
                    bound_j=_SOURCES_AGREE * abs(counted_j) + _SOURCES_SLACK_J,
                )
            )
    return tuple(checks)


def _sum_of_all(values_j: Sequence[float | None]) -> float | None:
    """The sum; None where there is nothing to add or a part is missing."""
    known = [value for value in values_j if value is not None]
    return sum(known) if known and len(known) == len(values_j) else None


def _check_names(spec: str, names: list[str]) -> None:
    for name in names:
        if name in ("auto", "none"):
            raise UsageError(f"--meters={spec}: {name!r} stands alone.")
        if name not in METERS and ":" not in name:
            raise unknown_value("--meters", name or spec, [*METERS, "auto", "none"])
        if names.count(name) > 1:
            raise UsageError(f"--meters={spec} names {name!r} twice.")


def _find_factory(name: str) -> Callable[[Machine], Meter]:
    if name in METERS:
        return METERS[name]
    factory = load_attribute(name, "--meters")
    if not callable(factory):
        raise UsageError(f"--meters={name} is not a class or function that makes a meter.")
    return cast(Callable[[Machine], Meter], factory)


def _open_all(factories: list[tuple[str, Callable[[Machine], Meter]]], machine: Machine) -> Meters:
    opened: list[Meter] = []
    try:
        for name, factory in factories:
            try:
                opened.append(factory(machine))
            except MeterUnavailable as error:
                raise MeterUnavailable(f"--meters={name}: {error}", absent=error.absent) from error
    except BaseException:
        Meters(tuple(opened)).close()
        raise
    count_once(opened)
    return Meters(tuple(opened))


def _open_auto(machine: Machine) -> Meters:
    opened: list[Meter] = []
    choice: list[str] = []
    for name in ("nvml", "rapl"):
        if name == "nvml" and machine.devices is not None and not machine.gpus:
            continue  # this process computes on no GPU
        try:
            opened.append(METERS[name](machine))
        except MeterUnavailable as error:
            if name == "rapl" or machine.gpus or not error.absent:
                what = "GPU" if name == "nvml" else "CPU and memory"
                # What is simply not there needs no remedy here; the survey of meters has it.
                why = str(error).splitlines()[0] if error.absent else str(error)
                choice.append(f"{what} energy is not metered: {why}")
    if not any(counter.domain.counted for meter in opened for counter in meter.counters):
        opened.append(METERS["estimate"](machine))
        choice.append(
            "No energy counter can be read here: every joule of this run is ESTIMATED, not "
            "measured."
        )
    return Meters(tuple(opened), tuple(choice))


def count_once(meters: Sequence[Meter]) -> None:
    """Makes sure that no part of the machine is counted by two meters.

    The first meter that counts a part keeps it; in later ones it becomes a cross-check under
    the name `NAME@METER`. An estimate of the CPU gives way to any counter of it.

    Args:
        meters: the open meters, whose counters' domains are changed.
    """
    counted: dict[str, str] = {}
    measured_cpu = any(
        counter.domain.counted
        and counter.domain.provenance == "measured"
        and counter.domain.name.startswith("cpu:")
        for meter in meters
        for counter in meter.counters
    )
    taken: set[str] = set()
    for meter in meters:
        for counter in meter.counters:
            domain = counter.domain
            holder = counted.get(_part(domain.name), meter.name)
            why = ""
            if domain.counted and holder != meter.name:
                why = f"{holder} counts it; this is a cross-check"
            elif domain.counted and domain.provenance == "estimated" and measured_cpu:
                why = "the CPU is measured; this is a comparison"
            elif domain.counted:
                counted[_part(domain.name)] = meter.name
            if why:
                domain = dataclasses.replace(domain, counted=False, why_not_counted=why)
            if domain.name in taken or holder != meter.name:
                domain = dataclasses.replace(domain, name=f"{domain.name}@{meter.name}")
            taken.add(domain.name)
            counter.domain = domain


def _part(domain: str) -> str:
    """The part of the machine a domain belongs to: dies belong to their package."""
    return domain.partition("@")[0].partition("-die-")[0]
