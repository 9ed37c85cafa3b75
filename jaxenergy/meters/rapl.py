"""RAPL: the energy counters of CPU packages and memory, from the kernel's powercap tree.

Zones are told apart by their `name` file, never by their number: numbers have gaps, `psys` may come
first, a package may be split into dies. Every zone is recorded; those that overlap others are not
counted.

References:
    The kernel's Documentation/power/powercap/powercap.rst and drivers/powercap/intel_rapl_common.c;
    Intel SDM volume 3, section 16.10 (counters of 32 bits, updated about every millisecond);
    CVE-2020-8694 (why `energy_uj` is readable by root only since Linux 5.10).
"""

import dataclasses
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from jaxenergy.meters.base import (
    Counter,
    CounterError,
    Domain,
    Machine,
    Meter,
    MeterUnavailable,
)
from jaxenergy.meters.cpu_time import OtherProcesses
from jaxenergy.units import UJ_PER_J

TICK_S = 1e-3
UDEV_RULE = 'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"'

# A zone's directory: control type and numbers, e.g. `intel-rapl:0:1`, `intel-rapl-mmio:0`.
_CONTROL_TYPE = r"intel-rapl[a-z-]*"
_ZONE_DIRECTORY = re.compile(rf"(?P<control>{_CONTROL_TYPE})(?P<numbers>(:[0-9]+)+)")
_PACKAGE = re.compile(r"package-(-?\d+)(-die-(\d+))?")
_COUNTER_STEPS = 2**32 - 1  # max_energy_range_uj is the largest value of a 32-bit counter

# Used where a zone states no power limit; servers of 2025 stay below 500 W a socket.
_DEFAULT_MAX_POWER_W = 1000.0
# Above this a stated limit is "unlimited" in disguise (registers hold up to 4095 W).
_BELIEVABLE_LIMIT_W = 2000.0
# Limits are means over a time window, which short peaks exceed, and laptops state the least.
_PEAK_OVER_LIMIT = 2.0
_LEAST_MAX_POWER_W = 200.0

_WHY_NOT_COUNTED = {
    "psys": "psys holds the packages and memory, which are counted themselves",
    "core": "the cores are part of the package",
    "uncore": "the uncore part (integrated graphics) is part of the package",
}

# Contamination is reported when other processes take more than this part of the busy time, and
# more than this many cores.
_OTHERS_SHARE = 0.1
_OTHERS_CORES = 0.1


@dataclasses.dataclass(frozen=True)
class Zone:
    """One zone of the powercap tree that has an energy counter.

    Attributes:
        path: its directory.
        control: the control type, `intel-rapl` (read through MSRs or TPMI) or `intel-rapl-mmio`.
        numbers: its place in the tree, e.g. `(0, 1)` for `intel-rapl:0:1`.
        kind: `cpu`, `dram`, `core`, `uncore`, `psys`, or the zone's name where it is none of these.
        part: what it belongs to, e.g. `package-0`, `package-0-die-1`; empty where it stands alone.
        max_energy_range_uj: the largest value of its counter.
        max_power_w: a bound on its power.
    """

    path: Path
    control: str
    numbers: tuple[int, ...]
    kind: str
    part: str
    max_energy_range_uj: int
    max_power_w: float

    @property
    def domain_name(self) -> str:
        """E.g. `cpu:package-0`, `dram:package-0-die-1`, `psys`."""
        return f"{self.kind}:{self.part}" if self.part else self.kind

    @property
    def energy_file(self) -> Path:
        """The counter's file."""
        return self.path / "energy_uj"


class RaplMeter(Meter):
    """The `rapl` meter: every readable zone below the powercap tree.

    Args:
        machine: says where the tree is.

    Raises:
        MeterUnavailable: there is no tree, or no zone in it can be read.
    """

    name = "rapl"

    def __init__(self, machine: Machine):
        zones = find_zones(machine.powercap_root)
        if not zones:
            raise MeterUnavailable(
                f"no RAPL counter below {machine.powercap_root}.\n"
                "The CPU has none, its driver is not loaded, or a virtual machine or container "
                "hides it. On bare metal: sudo modprobe intel_rapl_msr (for AMD as well).",
                absent=True,
            )
        unreadable = {zone: why for zone in zones if (why := _why_unreadable(zone))}
        readable = [zone for zone in zones if zone not in unreadable]
        if not readable:
            raise MeterUnavailable(next(iter(unreadable.values())))
        self.counters = tuple(
            PowercapCounter(zone.energy_file, domain)
            for zone, domain in zip(readable, choose_domains(readable), strict=True)
        )
        self.notes = tuple(
            f"rapl: {zone.domain_name} is not metered: {why}" for zone, why in unreadable.items()
        )
        self._root = machine.powercap_root
        self._others = OtherProcesses()

    def read_conditions(self) -> dict[str, dict]:
        """How busy other processes kept the machine, for each counted package.

        The figures are for the whole machine: on which package a process ran is not known.

        Returns:
            By domain: `other_cores_busy` and `own_cores_busy`, mean numbers of cores;
            `other_cpu_share`, others' part of all busy time, in [0, 1]; `contamination`, a list of
            sentences, empty where nothing disturbed.
        """
        busy = self._others.read_busy_cores()
        conditions = cpu_conditions(*busy) if busy else {}
        return {
            counter.domain.name: dict(conditions)
            for counter in self.counters
            if counter.domain.counted and counter.domain.name.startswith("cpu:")
        }

    def describe(self) -> dict:
        """Where the tree is and what each domain is read from."""
        return {
            "powercap_root": self._root,
            "files": {counter.domain.name: counter.domain.source for counter in self.counters},
        }


class PowercapCounter(Counter):
    """One `energy_uj` file, opened anew at each reading so that no stale file is ever read.

    Args:
        path: the file.
        domain: what it measures.
    """

    def __init__(self, path: Path, domain: Domain):
        self.domain = domain
        self._path = os.fspath(path)

    def read_j(self) -> float:
        """The counter in joules."""
        try:
            return read_energy_uj(self._path) / UJ_PER_J
        except OSError as error:
            raise CounterError(f"{self._path}: {error.strerror or error}") from error
        except ValueError as error:
            raise CounterError(f"{self._path} does not hold a whole number: {error}") from error


def read_energy_uj(path: str | Path) -> int:
    """Reads one counter file; about ten microseconds, nearly all in the kernel."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(descriptor, 64))
    finally:
        os.close(descriptor)


def find_zones(powercap_root: str | Path) -> list[Zone]:
    """All zones with an energy counter below a powercap tree.

    The kernel offers each zone both flat (`intel-rapl:0:1`, a link) and nested
    (`intel-rapl/intel-rapl:0/intel-rapl:0:1`); either form will do, and a zone found in both is
    listed once.

    Args:
        powercap_root: usually `/sys/class/powercap`.

    Returns:
        The zones in the order of their control type and numbers, `intel-rapl` first; a zone's name
        need not be readable as a number, but its files but `energy_uj` must be readable.
    """
    directories: dict[tuple[str, tuple[int, ...]], Path] = {}
    _collect(Path(powercap_root), directories)
    names = {key: _read_text(path / "name") for key, path in directories.items()}
    zones = []
    for (control, numbers), path in sorted(directories.items()):
        name = names[control, numbers]
        if name is None or not os.path.lexists(path / "energy_uj"):
            continue
        if _PACKAGE.fullmatch(name):
            kind, part = "cpu", name
        else:
            kind, part = name, names.get((control, numbers[:1]), "") if numbers[1:] else ""
        zones.append(
            Zone(
                path=path,
                control=control,
                numbers=numbers,
                kind=kind,
                part=part or "",
                max_energy_range_uj=int(_read_text(path / "max_energy_range_uj") or 0),
                max_power_w=_max_power_w(path),
            )
        )
    return zones


def choose_domains(zones: list[Zone]) -> list[Domain]:
    """One domain per zone: unique names, and nothing counted twice.

    Args:
        zones: readable zones, in the order of `find_zones`.

    Returns:
        The domains in the same order. Not counted: what overlaps (`psys`, `core`, `uncore`), a
        second control type's view of the same part, a die that mirrors another, and kinds nobody
        knows.
    """
    mirrored = find_mirrored_dies(zones)
    domains: list[Domain] = []
    taken: dict[str, Zone] = {}
    for zone in zones:
        name, why = zone.domain_name, ""
        if zone.kind in _WHY_NOT_COUNTED:
            why = _WHY_NOT_COUNTED[zone.kind]
        elif zone.kind not in ("cpu", "dram"):
            why = f"what {zone.kind!r} overlaps is not known"
        elif name in taken:
            why = f"the same part is counted through {taken[name].path.name}"
        elif zone in mirrored:
            why = f"its counter mirrors that of {mirrored[zone].domain_name}"
        if name in taken:
            name = f"{name}@{zone.path.name}"
        taken[name] = zone
        domains.append(
            Domain(
                name=name,
                provenance="measured",
                source=str(zone.energy_file),
                tick_s=TICK_S,
                resolution_j=max(1, zone.max_energy_range_uj / _COUNTER_STEPS) / UJ_PER_J,
                range_j=zone.max_energy_range_uj / UJ_PER_J or None,
                max_power_w=zone.max_power_w,
                counted=not why,
                why_not_counted=why,
            )
        )
    return domains


def find_mirrored_dies(zones: Iterable[Zone], reads: int = 4) -> dict[Zone, Zone]:
    """Dies of one package whose counters show the same sensor (seen on AMD Threadripper).

    Counters of different sensors drift apart by joules within a second of boot. So two dies are
    mirrors when, at several instants two ticks apart, their readings differ by no more than the
    package could draw between reading one and the other; a counter at zero says nothing.

    Args:
        zones: readable zones.
        reads: number of instants.

    Returns:
        For each mirroring zone, the earlier zone that it mirrors.
    """
    dies: dict[tuple[str, str, str], list[Zone]] = {}
    for zone in zones:
        package = zone.part.split("-die-")[0]
        if zone.kind in ("cpu", "dram") and package != zone.part:
            dies.setdefault((zone.control, zone.kind, package), []).append(zone)
    candidates = {
        zone: group[:place] for group in dies.values() for place, zone in enumerate(group) if place
    }
    for read in range(reads if candidates else 0):
        if read:
            time.sleep(2 * TICK_S)
        candidates = {
            zone: [other for other in others if _look_the_same(zone, other)]
            for zone, others in candidates.items()
        }
    return {zone: others[0] for zone, others in candidates.items() if others}


def cpu_conditions(other_cores_busy: float, own_cores_busy: float) -> dict:
    """The conditions of a CPU from what others and we ourselves took of it.

    Args:
        other_cores_busy: mean number of cores that other processes kept busy.
        own_cores_busy: the same for this process and its children.

    Returns:
        The record, as `RaplMeter.read_conditions` describes it.
    """
    busy = other_cores_busy + own_cores_busy
    share = other_cores_busy / busy if busy else 0.0
    contamination = []
    if share > _OTHERS_SHARE and other_cores_busy > _OTHERS_CORES:
        contamination.append(
            f"other processes kept {other_cores_busy:.2g} cores busy "
            f"({share:.0%} of the machine's busy time)"
        )
    return {
        "other_cores_busy": other_cores_busy,
        "own_cores_busy": own_cores_busy,
        "other_cpu_share": share,
        "contamination": contamination,
    }


def _collect(folder: Path, found: dict[tuple[str, tuple[int, ...]], Path]) -> None:
    """Adds the zones in a folder, then those in its subfolders that are not known yet."""
    try:
        children = sorted(folder.iterdir())
    except OSError:
        return
    inside = []
    for child in children:
        if match := _ZONE_DIRECTORY.fullmatch(child.name):
            numbers = tuple(int(number) for number in match["numbers"].split(":")[1:])
            if found.setdefault((match["control"], numbers), child) == child:
                inside.append(child)
        elif re.fullmatch(_CONTROL_TYPE, child.name):
            inside.append(child)
    for child in inside:
        _collect(child, found)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _max_power_w(zone: Path) -> float:
    limits_w = []
    for constraint in range(3):  # long term, short term, peak
        for suffix in ("power_limit_uw", "max_power_uw"):
            text = _read_text(zone / f"constraint_{constraint}_{suffix}")
            if text and text.isdigit() and 0 < int(text) / UJ_PER_J <= _BELIEVABLE_LIMIT_W:
                limits_w.append(int(text) / UJ_PER_J)
    if not limits_w:
        return _DEFAULT_MAX_POWER_W
    return max(_LEAST_MAX_POWER_W, _PEAK_OVER_LIMIT * max(limits_w))


def _why_unreadable(zone: Zone) -> str:
    """Why a zone's counter cannot be read, and the rule that opens it; empty where it can."""
    path = zone.energy_file
    try:
        read_energy_uj(path)
    except PermissionError:
        everything = Path(os.path.dirname(zone.path)) / "*" / "energy_uj"
        return (
            f"{path} is readable by root only (since Linux 5.10, CVE-2020-8694).\n"
            f"Until the next boot: sudo chmod a+r {everything}\n"
            f"For good, in /etc/udev/rules.d/99-rapl.rules: {UDEV_RULE}"
        )
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    except ValueError as error:
        return f"{path} does not hold a whole number: {error}"
    return ""


def _look_the_same(zone: Zone, other: Zone) -> bool:
    try:
        before_uj = read_energy_uj(other.energy_file)
        here_uj = read_energy_uj(zone.energy_file)
        after_uj = read_energy_uj(other.energy_file)
    except (OSError, ValueError):
        return False
    if not here_uj:
        return False
    wrap_uj = zone.max_energy_range_uj or float("inf")
    slack_uj = 2 * TICK_S * zone.max_power_w * UJ_PER_J
    passed_uj = (after_uj - before_uj) % wrap_uj
    return (here_uj - before_uj + slack_uj) % wrap_uj <= passed_uj + 2 * slack_uj
