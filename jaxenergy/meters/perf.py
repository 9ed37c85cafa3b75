"""RAPL through the kernel's power PMU (`perf_event_open`), a third reader of the same sensors.

The kernel undoes the wraps itself, so these counters never wrap. Opening them needs root,
CAP_PERFMON or `kernel.perf_event_paranoid` at 0 or below.

References:
    perf_event_open(2); the kernel's arch/x86/events/rapl.c.
"""

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

from jaxenergy.meters.base import Counter, CounterError, Domain, Machine, Meter, MeterUnavailable

_SYSCALL_PERF_EVENT_OPEN = {"x86_64": 298}  # RAPL exists on x86 alone
_PERF_ATTR_SIZE_VER0 = 64
_PERF_FLAG_FD_CLOEXEC = 8
_PARANOID = "/proc/sys/kernel/perf_event_paranoid"

# The sensors' own step; the scale of the PMU (2**-32 J) is finer than what is behind it.
_SENSOR_STEP_J = 2**-14

# Event to kind of domain, and why it is not counted.
_EVENTS = {
    "energy-pkg": ("cpu", ""),
    "energy-ram": ("dram", ""),
    "energy-cores": ("core", "the cores are part of the package"),
    "energy-gpu": ("uncore", "the integrated graphics are part of the package"),
    "energy-psys": ("psys", "psys holds the packages and memory, which are counted themselves"),
}


class PerfMeter(Meter):
    """The `perf` meter: the energy events of the power PMU, one counter per event and package.

    Args:
        machine: not looked at; the PMU is found in sysfs.
        pmu: the PMU's folder.
        cpus: the folder that says which core belongs to which package.

    Raises:
        MeterUnavailable: there is no power PMU, or its events cannot be opened.
    """

    name = "perf"

    def __init__(
        self,
        machine: Machine | None = None,
        *,
        pmu: str | Path = "/sys/bus/event_source/devices/power",
        cpus: str | Path = "/sys/devices/system/cpu",
    ):
        del machine
        counters: list[PerfCounter] = []
        try:
            for domain, attributes, cpu in read_events(Path(pmu), Path(cpus)):
                counters.append(PerfCounter(domain, attributes, cpu))
        except BaseException:
            for counter in counters:
                counter.close()
            raise
        self.counters = tuple(counters)
        self._events = counters

    def close(self) -> None:
        """Closes the events."""
        for event in self._events:
            event.close()


class PerfCounter(Counter):
    """One event of the power PMU on the core that stands for its package.

    Args:
        domain: what it measures.
        attributes: the PMU's type, the event's config and its scale in joules.
        cpu: the core.

    Raises:
        MeterUnavailable: the kernel refuses.
    """

    def __init__(self, domain: Domain, attributes: tuple[int, int, float], cpu: int):
        pmu_type, config, self._scale_j = attributes
        self.domain = domain
        self._descriptor = _perf_event_open(pmu_type, config, cpu)

    def read_j(self) -> float:
        """Joules since the event was opened."""
        try:
            (steps,) = struct.unpack("Q", os.read(self._descriptor, 8))
        except (OSError, struct.error) as error:
            raise CounterError(f"{self.domain.source} cannot be read: {error}") from error
        return steps * self._scale_j

    def close(self) -> None:
        """Closes the event; reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_events(pmu: Path, cpus: Path) -> list[tuple[Domain, tuple[int, int, float], int]]:
    """What the PMU offers, from sysfs.

    Args:
        pmu: the PMU's folder, with `type`, `cpumask` and `events/`.
        cpus: the folder that holds `cpuN/topology/`.

    Returns:
        For each event and package: its domain; PMU type, config and joules per step; the core on
        which to open it.

    Raises:
        MeterUnavailable: there is no such PMU.
    """
    if not (pmu / "type").exists():
        raise MeterUnavailable(
            f"the kernel offers no power PMU ({pmu} is absent): no RAPL, or a virtual machine.\n"
            f"On bare metal: sudo modprobe rapl",
            absent=True,
        )
    pmu_type = int((pmu / "type").read_text())
    cores = parse_cpu_list((pmu / "cpumask").read_text())
    parts = _name_parts(cores, cpus)
    found = []
    for event, (kind, why_not_counted) in _EVENTS.items():
        file = pmu / "events" / event
        if not file.exists():
            continue
        config = int(file.read_text().strip().removeprefix("event="), 16)
        scale_j = float((pmu / "events" / f"{event}.scale").read_text())
        unit = (pmu / "events" / f"{event}.unit").read_text().strip()
        if unit != "Joules":
            raise MeterUnavailable(f"{file}.unit says {unit!r}; only Joules is understood.")
        for core in cores:
            domain = Domain(
                name="psys" if kind == "psys" else f"{kind}:{parts[core]}",
                provenance="measured",
                source=f"perf event power/{event}/ on core {core}",
                tick_s=1e-3,
                resolution_j=max(scale_j, _SENSOR_STEP_J),
                counted=not why_not_counted,
                why_not_counted=why_not_counted,
            )
            found.append((domain, (pmu_type, config, scale_j), core))
            if kind == "psys":
                break
    if not found:
        raise MeterUnavailable(f"{pmu}/events holds no energy event.", absent=True)
    return found


def parse_cpu_list(text: str) -> list[int]:
    """Core numbers from the kernel's list format, e.g. `0,4-6` -> [0, 4, 5, 6]."""
    cores: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.extend(range(int(first), int(last or first) + 1))
    return cores


def _name_parts(cores: list[int], cpus: Path) -> dict[int, str]:
    """The package of each core, with its die where a package has several cores in the list."""
    topology = {core: cpus / f"cpu{core}" / "topology" for core in cores}
    packages = {
        core: _read_int(folder / "physical_package_id") for core, folder in topology.items()
    }
    parts = {}
    for core, package in packages.items():
        parts[core] = f"package-{package}"
        if list(packages.values()).count(package) > 1:
            parts[core] += f"-die-{_read_int(topology[core] / 'die_id')}"
    return parts


def _read_int(path: Path) -> int:
    return int(path.read_text())


def _perf_event_open(pmu_type: int, config: int, cpu: int) -> int:
    """Opens a counting event for everything that runs on a core.

    Returns:
        The file descriptor.

    Raises:
        MeterUnavailable: the kernel refuses, with its reason.
    """
    number = _SYSCALL_PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise MeterUnavailable(f"the power PMU is read on x86_64 only, not {platform.machine()}.")
    # struct perf_event_attr, first version: type, size, config, then fields that stay 0.
    attributes = struct.pack("IIQ", pmu_type, _PERF_ATTR_SIZE_VER0, config)
    buffer = ctypes.create_string_buffer(attributes, _PERF_ATTR_SIZE_VER0)
    libc = ctypes.CDLL(None, use_errno=True)
    all_processes, no_group = -1, -1
    descriptor = libc.syscall(
        ctypes.c_long(number),
        ctypes.byref(buffer),
        ctypes.c_long(all_processes),
        ctypes.c_long(cpu),
        ctypes.c_long(no_group),
        ctypes.c_long(_PERF_FLAG_FD_CLOEXEC),
    )
    if descriptor >= 0:
        return descriptor
    code = ctypes.get_errno()
    if code in (errno.EACCES, errno.EPERM):
        raise MeterUnavailable(
            f"the kernel does not let this user open the power PMU's events "
            f"({_PARANOID} is {_read_paranoid()}; 0 or less, CAP_PERFMON or root is needed).\n"
            f"Allow it until the next boot: sudo sysctl kernel.perf_event_paranoid=0"
        )
    raise MeterUnavailable(f"perf_event_open for the power PMU failed: {os.strerror(code)}.")


def _read_paranoid() -> str:
    try:
        return Path(_PARANOID).read_text().strip()
    except OSError:
        return "unreadable"
