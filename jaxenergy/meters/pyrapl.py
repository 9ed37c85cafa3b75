"""The pyRAPL package as a second reader of RAPL, with its faults set right.

For people whose earlier numbers came from pyRAPL, and as a cross-check of the `rapl` meter. What is
set right (pyRAPL 0.2.3.1): values are microjoules, though it says joules; counters wrap at
`max_energy_range_uj`, which it never reads; its errors have no message. What it cannot read at all
(dies, gaps in zone numbers, cores switched off) is refused with the reason; `rapl` reads those.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

from jaxenergy.meters.base import Counter, CounterError, Domain, Machine, Meter, MeterUnavailable
from jaxenergy.meters.rapl import Zone, choose_domains, find_zones
from jaxenergy.units import UJ_PER_J

# Written into pyRAPL; the paths that it reads.
PYRAPL_ROOT = "/sys/class/powercap"
_CONTROL = "intel-rapl"


class PyraplMeter(Meter):
    """The `pyrapl` meter: packages and memory as pyRAPL sees them.

    Args:
        machine: says where the powercap tree is; pyRAPL can only read the system's own.

    Raises:
        MeterUnavailable: pyRAPL is not installed or cannot read this machine.
    """

    name = "pyrapl"

    def __init__(self, machine: Machine):
        if machine.powercap_root.rstrip("/") != PYRAPL_ROOT:
            raise MeterUnavailable(
                f"pyRAPL reads {PYRAPL_ROOT}/{_CONTROL} and nothing else, so it cannot follow "
                f"--powercap_root={machine.powercap_root}; the rapl meter can."
            )
        pyrapl = import_pyrapl()
        zones = [zone for zone in find_zones(PYRAPL_ROOT) if zone.control == _CONTROL]
        if not zones:
            raise MeterUnavailable(f"no RAPL counter below {PYRAPL_ROOT}/{_CONTROL}.", absent=True)
        with _quiet():
            try:
                self._sensor = pyrapl.Sensor()
                energies_uj = self._sensor.energy()
            except Exception as error:  # pyRAPL fails in many ways, mostly without a message
                raise MeterUnavailable(
                    f"pyRAPL cannot read this machine: {explain_failure(error, zones)}.\n"
                    f"The rapl meter reads the same counters without that limit."
                ) from error
        self.counters = tuple(
            PyraplCounter(self._sensor, place, domain)
            for place, domain in _domains_by_place(zones).items()
            if place < len(energies_uj) and energies_uj[place] >= 0
        )

    def close(self) -> None:
        """Closes the files that pyRAPL would leave open."""
        for device in self._sensor._device_api.values():
            for file in device._sys_files:
                file.close()


class PyraplCounter(Counter):
    """One value of pyRAPL's list.

    Args:
        sensor: the `pyRAPL.Sensor`.
        place: the value's place in the list.
        domain: what it measures.
    """

    def __init__(self, sensor, place: int, domain: Domain):
        self.domain = domain
        self._sensor = sensor
        self._place = place

    def read_j(self) -> float:
        """The counter in joules."""
        try:
            return self._sensor.energy()[self._place] / UJ_PER_J
        except (OSError, ValueError) as error:
            raise CounterError(f"pyRAPL, {self.domain.name}: {error}") from error


def import_pyrapl() -> ModuleType:
    """Imports pyRAPL without the warnings that it sends to the root logger.

    Raises:
        MeterUnavailable: it is not installed.
    """
    with _quiet():
        try:
            import pyRAPL
        except ImportError as error:
            raise MeterUnavailable(
                f"the pyRAPL package cannot be imported ({error}).\n"
                f"Install it with: pip install -c constraints.txt -e '.[rapl]'",
                absent=True,
            ) from error
    return pyRAPL


def explain_failure(error: Exception, zones: list[Zone]) -> str:
    """Why pyRAPL failed, in words.

    Args:
        error: what it raised.
        zones: the `intel-rapl` zones of the machine.

    Returns:
        The most likely reason that can be seen from here.
    """
    tops = [zone for zone in zones if len(zone.numbers) == 1]
    packages = [zone for zone in tops if zone.kind == "cpu"]
    numbers = [zone.numbers[0] for zone in tops]
    if isinstance(error, PermissionError):
        return f"{error.filename} is readable by root only"
    if any("-die-" in zone.part for zone in packages):
        return "a package has several dies, which pyRAPL does not know"
    if any(zone.part.startswith("package--") for zone in packages):
        return "a package has a negative number, which pyRAPL does not understand"
    if numbers != list(range(len(numbers))):
        return f"the zone numbers have a gap ({', '.join(map(str, numbers))}), where pyRAPL stops"
    if isinstance(error, FileNotFoundError) and "topology" in str(error.filename):
        return f"a core is switched off ({error.filename} is absent), where pyRAPL stops"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _domains_by_place(zones: list[Zone]) -> dict[int, Domain]:
    """Domains by their place in pyRAPL's list: package and memory of socket 0, of socket 1, ..."""
    places = {}
    for zone, domain in zip(zones, choose_domains(zones), strict=True):
        socket = zone.part.removeprefix("package-")
        if zone.kind in ("cpu", "dram") and socket.isdigit():
            places[2 * int(socket) + (zone.kind == "dram")] = domain
    return places


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pyRAPL's import from warning, and from setting up the user's root logger.

    pyRAPL calls `logging.warning`, which also installs a handler where there is none.
    """

    def not_from_pyrapl(record: logging.LogRecord) -> bool:
        return "pyRAPL" not in record.pathname

    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    root.addFilter(not_from_pyrapl)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # files left open, escapes in its regular expressions
            yield
    finally:
        root.removeFilter(not_from_pyrapl)
        root.removeHandler(placeholder)
