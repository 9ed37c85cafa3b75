"""NVIDIA GPUs: the driver's energy counter, or its integrated power where there is none.

Everything goes through the `pynvml` binding of `nvidia-ml-py` and so through `libnvidia-ml.so.1` as
the loader finds it. JAX counts GPUs as CUDA does, which is not how NVML counts them;
`find_gpus` brings the two together, and refuses where it would have to guess.

References:
    NVIDIA NVML API reference (nvmlDeviceGetTotalEnergyConsumption, field values 185 and 186);
    CUDA C++ programming guide, environment variables (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER);
    Yang, Adamek, Armour, "Part-time Power Measurements: nvidia-smi's Lack of Attention",
    arXiv 2312.02741 (update periods and averaging windows of the power sensors).
"""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxenergy.meters.base import (
    Counter,
    CounterError,
    CrossCheck,
    Device,
    Domain,
    Machine,
    Meter,
    MeterUnavailable,
)
from jaxenergy.meters.cpu_time import ProcessTreeClock
from jaxenergy.meters.power_integral import PowerSampler
from jaxenergy.units import MJ_PER_J

TICK_S = 0.1
AVERAGED_POWER_TICK_S = 1.0
_AMPERE = 7  # NVML_DEVICE_ARCH_AMPERE: from here on nvmlDeviceGetPowerUsage is a mean over 1 s

# Power is sampled several times per sensor update where it is all there is.
_SAMPLE_PERIOD_S = 0.025
_CHECK_PERIOD_S = 0.1

# Counter and integrated power are held to agree within 5 % (1 % was seen on busy cards), plus what
# one tick at either end of the stretch can hold.
AGREEMENT = 0.05
_SHORTEST_CHECK_S = 5.0

_WHY_NOT_MIG = (
    "a card has one energy counter for all its MIG slices; what one takes cannot be told.\n"
    "Use a whole GPU: sudo nvidia-smi -mig 0"
)

_PEAK_OVER_LIMIT = 2.0  # the limit is a mean; peaks of milliseconds exceed it
_DEFAULT_MAX_POWER_W = 2000.0

_THROTTLE_REASONS = {
    0x001: "idle",
    0x002: "application clocks setting",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
}
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One card as NVML lists it.

    Attributes:
        index: NVML's number, in the order of PCI addresses.
        handle: NVML's handle.
        uuid: e.g. `GPU-5f…`.
        pci_bus_id: e.g. `00000000:3B:00.0`.
        name: e.g. `NVIDIA H200`.
    """

    index: int
    handle: Any
    uuid: str
    pci_bus_id: str
    name: str


class NvmlMeter(Meter):
    """The `nvml` meter: one counter per GPU that computes, or per visible GPU.

    Args:
        machine: says which devices compute.

    Raises:
        MeterUnavailable: no driver, no visible GPU, a GPU that cannot be told for certain, MIG, or
            a card without any sensor.
    """

    name = "nvml"

    def __init__(self, machine: Machine):
        self._nvml: Any = _open_nvml()
        self._sampler: PowerSampler | None = None
        try:
            self._open(machine)
        except BaseException:
            self.close()
            raise

    def _open(self, machine: Machine) -> None:
        nvml = self._nvml
        chosen = find_gpus(list_gpus(nvml), machine.gpus, os.environ)
        notes = []
        if not machine.gpus:
            notes.append(
                f"nvml: nothing says that this process computes on a GPU, so every visible GPU is "
                f"metered ({', '.join(gpu.name for gpu in chosen.values())})."
            )
        for gpu in chosen.values():
            _refuse_mig(nvml, gpu)
            if re.search(r"\bG[HB]\d+", gpu.name):
                notes.append(
                    f"nvml: on a {gpu.name} the counter may hold the whole module, "
                    f"CPU and memory included."
                )
        self.notes = tuple(notes)
        self._gpus = {f"gpu:{index}": gpu for index, gpu in chosen.items()}
        readers = {
            domain: reader
            for domain, gpu in self._gpus.items()
            if (reader := _find_power_reader(nvml, gpu)) is not None
        }
        has_counter = {domain: _has_energy_counter(nvml, gpu) for domain, gpu in self._gpus.items()}
        for domain, gpu in self._gpus.items():
            if not has_counter[domain] and domain not in readers:
                raise MeterUnavailable(
                    f"{gpu.name} (GPU {gpu.index}) has no energy counter and no power sensor."
                )
        sampler = self._sampler = PowerSampler(
            [reader.read_w for reader in readers.values()],
            [reader.tick_s for reader in readers.values()],
            nvml.NVMLError,
            _CHECK_PERIOD_S if all(has_counter.values()) else _SAMPLE_PERIOD_S,
        )
        self._integrals = dict(zip(readers, sampler.integrals, strict=True))
        places = {domain: place for place, domain in enumerate(readers)}
        self.counters = tuple(
            EnergyCounter(nvml, gpu, domain)
            if has_counter[domain]
            else IntegratedPowerCounter(nvml, gpu, domain, readers[domain], sampler, places[domain])
            for domain, gpu in self._gpus.items()
        )
        self._processes = ProcessTreeClock()
        self._checked = {
            counter.domain.name: self._check_now(counter)
            for counter in self.counters
            if has_counter[counter.domain.name] and counter.domain.name in readers
        }

    def read_conditions(self) -> dict[str, dict]:
        """The state of each card; about ten NVML calls a card.

        Returns:
            By domain: `temperature_c`, `sm_clock_mhz`, `memory_clock_mhz`, `power_limit_w`,
            `throttle_reasons` (words), `sensor_update_s`, `other_processes` (process ids, or None
            where they cannot be told apart from ours), `contamination` (sentences). What the card
            does not tell is None.
        """
        return {domain: self._read_conditions(domain, gpu) for domain, gpu in self._gpus.items()}

    def _read_conditions(self, domain: str, gpu: Gpu) -> dict:
        nvml = self._nvml
        limit_mw = _ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, gpu.handle)
        reasons = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu.handle)
        integral = self._integrals.get(domain)
        self._processes.read_s()
        ours = {os.getpid(), *self._processes.descendants()}
        others, contamination = judge_processes(
            _read_process_ids(nvml, gpu), ours, pids_are_ours=_in_initial_pid_namespace()
        )
        return {
            "temperature_c": _ask(
                nvml, nvml.nvmlDeviceGetTemperature, gpu.handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "sm_clock_mhz": _ask(nvml, nvml.nvmlDeviceGetClockInfo, gpu.handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": _ask(
                nvml, nvml.nvmlDeviceGetClockInfo, gpu.handle, nvml.NVML_CLOCK_MEM
            ),
            "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
            "throttle_reasons": None if reasons is None else name_throttle_reasons(reasons),
            "sensor_update_s": integral.sensor_update_s if integral else None,
            "other_processes": others,
            "contamination": contamination,
        }

    def describe(self) -> dict:
        """The driver's version and which cards are metered."""
        return {
            "driver": _ask(self._nvml, self._nvml.nvmlSystemGetDriverVersion),
            "gpus": {
                domain: {"name": gpu.name, "uuid": gpu.uuid, "pci_bus_id": gpu.pci_bus_id}
                for domain, gpu in self._gpus.items()
            },
        }

    def cross_checks(self) -> tuple[CrossCheck, ...]:
        """Energy counter against integrated power, over the stretch since the previous call.

        Called at the edges of an idle and of a busy stretch it tells whether they agree in both.

        Returns:
            One check per card that has both; none for a stretch shorter than 5 s (the next call
            then covers it) or one in which either could not be read.
        """
        checks = []
        for counter in self.counters:
            domain = counter.domain.name
            if domain not in self._checked:
                continue
            now, before = self._check_now(counter), self._checked[domain]
            if now is not None and before is not None:
                if now.time_s - before.time_s < _SHORTEST_CHECK_S:
                    continue
                if now.gaps == before.gaps:
                    checks.append(self._compare(counter.domain, before, now))
            self._checked[domain] = now
        return tuple(checks)

    def _check_now(self, counter: Counter) -> "_Readings | None":
        integral = self._integrals[counter.domain.name]
        if self._sampler is not None:
            self._sampler.sample()  # so that the integral reaches up to now
        try:
            counter_j = counter.read_j()
        except CounterError:
            return None
        return _Readings(time.monotonic(), counter_j, integral.energy_j, integral.gaps)

    def _compare(self, domain: Domain, before: "_Readings", now: "_Readings") -> CrossCheck:
        integral = self._integrals[domain.name]
        counter_j = now.counter_j - before.counter_j
        edges_j = integral.peak_power_w * (domain.tick_s + integral.tick_s)
        return CrossCheck(
            domain=domain.name,
            source="energy counter",
            other_source="integrated power",
            energy_j=counter_j,
            other_energy_j=now.integral_j - before.integral_j,
            bound_j=AGREEMENT * abs(counter_j) + edges_j,
        )

    def close(self) -> None:
        """Stops sampling and gives NVML back."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None


@dataclasses.dataclass(frozen=True)
class _Readings:
    time_s: float
    counter_j: float
    integral_j: float
    gaps: int


class EnergyCounter(Counter):
    """The driver's energy counter of one card.

    Args:
        nvml: the binding.
        gpu: the card.
        name: the domain's name.
    """

    def __init__(self, nvml, gpu: Gpu, name: str):
        self.domain = Domain(
            name=name,
            provenance="measured",
            source=f"nvmlDeviceGetTotalEnergyConsumption, {gpu.name} {gpu.uuid}",
            tick_s=TICK_S,
            resolution_j=1 / MJ_PER_J,
            max_power_w=_max_power_w(nvml, gpu),
        )
        self._nvml = nvml
        self._handle = gpu.handle

    def read_j(self) -> float:
        """Joules since the driver was loaded."""
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / MJ_PER_J
        except self._nvml.NVMLError as error:
            raise CounterError(f"{self.domain.name}: NVML says: {error}") from error


class IntegratedPowerCounter(Counter):
    """A card's integrated power, published once a tick.

    Args:
        nvml: the binding.
        gpu: the card.
        name: the domain's name.
        reader: how its power is read.
        sampler: the thread that samples it.
        place: the card's place in the sampler.
    """

    def __init__(
        self, nvml, gpu: Gpu, name: str, reader: "PowerReader", sampler: PowerSampler, place: int
    ):
        self.domain = Domain(
            name=name,
            provenance="measured",
            source=f"{reader.source}, {gpu.name} {gpu.uuid}, integrated by sampling "
            "(this card has no energy counter)",
            tick_s=reader.tick_s,
            resolution_j=reader.tick_s / 1e3,  # power comes in milliwatts
            max_power_w=_max_power_w(nvml, gpu),
        )
        self._sampler = sampler
        self._place = place

    def read_j(self) -> float:
        """Joules since the meter was opened."""
        energy_j, why_lost = self._sampler.read_published_j(self._place)
        if why_lost:
            raise CounterError(f"{self.domain.name}: {why_lost}")
        return energy_j


@dataclasses.dataclass(frozen=True)
class PowerReader:
    """How the power of one card is read.

    Attributes:
        read_w: reads it, in watts.
        tick_s: the time below which its changes are not resolved.
        source: for people.
    """

    read_w: Callable[[], float]
    tick_s: float
    source: str


def list_gpus(nvml) -> list[Gpu]:
    """Every GPU that NVML lists."""
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(
                Gpu(
                    index=index,
                    handle=handle,
                    uuid=nvml.nvmlDeviceGetUUID(handle),
                    pci_bus_id=_text(nvml.nvmlDeviceGetPciInfo(handle).busId),
                    name=nvml.nvmlDeviceGetName(handle),
                )
            )
        except nvml.NVMLError as error:
            raise MeterUnavailable(f"GPU {index}: NVML says: {error}") from error
    return gpus


def find_gpus(
    gpus: list[Gpu], devices: tuple[Device, ...], environment: Mapping[str, str]
) -> dict[int, Gpu]:
    """Which cards the devices are.

    A device's uuid decides, then its PCI address, then its name if only one card has it, then its
    number among the devices that CUDA sees under `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`.

    Args:
        gpus: all cards, in NVML's order.
        devices: the GPUs that compute; empty for every visible one.
        environment: the environment variables under which they were found.

    Returns:
        The cards by the number their domain gets.

    Raises:
        MeterUnavailable: a device matches no card, or which one it is cannot be told.
    """
    if not devices:
        visible = find_visible_gpus(gpus, environment)
        return dict(enumerate(visible))
    found = {}
    for device in devices:
        of_that_name = [gpu for gpu in gpus if gpu.name == device.name]
        if device.uuid:
            if device.uuid.upper().startswith("MIG-"):
                raise MeterUnavailable(f"this process computes on {device.uuid}: {_WHY_NOT_MIG}")
            found[device.index] = _only_one(
                [gpu for gpu in gpus if _uuid_matches(gpu.uuid, device.uuid)],
                f"uuid {device.uuid}",
                gpus,
            )
        elif device.pci_bus_id:
            address = parse_pci_bus_id(device.pci_bus_id)
            found[device.index] = _only_one(
                [gpu for gpu in gpus if parse_pci_bus_id(gpu.pci_bus_id) == address],
                f"PCI address {device.pci_bus_id}",
                gpus,
            )
        elif len(of_that_name) == 1:
            found[device.index] = of_that_name[0]
        else:
            visible = find_visible_gpus(gpus, environment)
            if device.index >= len(visible):
                raise MeterUnavailable(
                    f"CUDA device {device.index} computes, but NVML lists {len(visible)} visible "
                    f"GPUs (CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES')})."
                )
            found[device.index] = visible[device.index]
    return found


def find_visible_gpus(gpus: list[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """The cards that CUDA sees, in CUDA's order.

    Args:
        gpus: all cards, in NVML's order, which is that of PCI addresses.
        environment: where `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` are looked up.

    Returns:
        The visible cards, at least one.

    Raises:
        MeterUnavailable: none is visible; MIG slices are named; or numbers are used where CUDA's
            order cannot be known.
    """
    setting = environment.get("CUDA_VISIBLE_DEVICES")
    if not gpus:
        raise MeterUnavailable("the NVIDIA driver lists no GPU.", absent=True)
    if setting is None:
        _refuse_unknown_order(gpus, environment)
        return list(gpus)
    visible: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.upper().startswith("MIG-"):
            raise MeterUnavailable(f"CUDA_VISIBLE_DEVICES={setting}: {_WHY_NOT_MIG}")
        if entry.upper().startswith("GPU-"):
            matches = [gpu for gpu in gpus if _uuid_matches(gpu.uuid, entry)]
            gpu = _only_one(matches, f"CUDA_VISIBLE_DEVICES={setting}: {entry}", gpus)
        elif entry.isdigit() and int(entry) < len(gpus):
            _refuse_unknown_order(gpus, environment)
            gpu = gpus[int(entry)]
        else:
            break  # CUDA sees the devices before the first entry that is none
        if gpu in visible:
            raise MeterUnavailable(f"CUDA_VISIBLE_DEVICES={setting} names a GPU twice.")
        visible.append(gpu)
    if not visible:
        raise MeterUnavailable(
            f"CUDA_VISIBLE_DEVICES={setting!r} hides every GPU ({len(gpus)} are there).",
            absent=True,
        )
    return visible


def parse_pci_bus_id(text: str) -> tuple[int, int, int]:
    """Domain, bus and device of a PCI address, however it is written.

    CUDA writes `0000:3b:00.0`, NVML `00000000:3B:00.0`; the domain may be left out.

    Raises:
        MeterUnavailable: it is no PCI address.
    """
    match = re.fullmatch(r"(?:([0-9a-f]+):)?([0-9a-f]+):([0-9a-f]+)(?:\.[0-7])?", text.lower())
    if not match:
        raise MeterUnavailable(f"{text!r} is no PCI address, e.g. 0000:3b:00.0.")
    return int(match[1] or "0", 16), int(match[2], 16), int(match[3], 16)


def name_throttle_reasons(bits: int) -> list[str]:
    """NVML's throttle reasons in words; a bit without a name is given as its number."""
    words = [word for bit, word in _THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~sum(_THROTTLE_REASONS)
    return words + ([f"unknown ({unknown:#x})"] if unknown else [])


def judge_processes(
    pids: list[int] | None, ours: set[int], *, pids_are_ours: bool
) -> tuple[list[int] | None, list[str]]:
    """Which processes on a card are not ours, and what that means for its energy.

    Args:
        pids: the process ids NVML lists, or None where it does not say.
        ours: the ids of this process and its descendants.
        pids_are_ours: whether NVML's ids and ours are of the same namespace. In a container they
            are not; then all that can be told is whether there is more than one process.

    Returns:
        The other processes, None where they cannot be told, and sentences for the record.
    """
    if pids is None:
        return None, []
    if pids_are_ours:
        others = sorted(set(pids) - ours)
        if not others:
            return [], []
        listed = ", ".join(map(str, others))
        return others, [f"other processes use this GPU (process ids {listed})"]
    if len(pids) <= 1:
        return None, []
    return None, [
        f"{len(pids)} processes use this GPU, at most one of them is this one "
        f"(which cannot be told from inside a container)"
    ]


def _open_nvml():
    try:
        import pynvml
    except ImportError as error:
        raise MeterUnavailable(
            f"the NVML binding cannot be imported ({error}).\nInstall it: pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = error.value in (
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        )
        advice = {
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 comes with the NVIDIA driver; "
            "a container must be started with --gpus.",
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "Load the driver: sudo modprobe nvidia",
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The driver was updated while loaded: "
            "restart the machine.",
            pynvml.NVML_ERROR_NO_PERMISSION: "This user may not open /dev/nvidiactl.",
        }.get(error.value, "nvidia-smi may say more.")
        raise MeterUnavailable(f"NVML says: {error}.\n{advice}", absent=absent) from error
    return pynvml


def _ask(nvml, function: Callable, *arguments):
    """An answer that not every card gives: None where NVML refuses it."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _uuid_matches(uuid: str, wanted: str) -> bool:
    return uuid.lower().startswith(wanted.lower())


def _only_one(matches: list[Gpu], what: str, gpus: list[Gpu]) -> Gpu:
    if len(matches) != 1:
        known = ", ".join(f"{gpu.uuid} ({gpu.name}, {gpu.pci_bus_id})" for gpu in gpus)
        count = "no GPU has" if not matches else f"{len(matches)} GPUs have"
        raise MeterUnavailable(f"{what}: {count} it.\nNVML lists: {known}.")
    return matches[0]


def _refuse_unknown_order(gpus: list[Gpu], environment: Mapping[str, str]) -> None:
    """CUDA counts the fastest card first unless told otherwise; among equal cards by address."""
    order = environment.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    names = sorted({gpu.name for gpu in gpus})
    if order != "PCI_BUS_ID" and len(names) > 1:
        raise MeterUnavailable(
            f"which GPU is CUDA's device 0 cannot be told: the models differ ({', '.join(names)}) "
            f"and CUDA puts the fastest first.\nSet CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by "
            f"uuid in CUDA_VISIBLE_DEVICES."
        )


def _refuse_mig(nvml, gpu: Gpu) -> None:
    mode = _ask(nvml, nvml.nvmlDeviceGetMigMode, gpu.handle)
    if mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE:
        raise MeterUnavailable(f"MIG is on for GPU {gpu.index} ({gpu.name}): {_WHY_NOT_MIG}")


def _has_energy_counter(nvml, gpu: Gpu) -> bool:
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
            return False
        raise MeterUnavailable(f"{gpu.name} (GPU {gpu.index}): NVML says: {error}.") from error
    return True


def _find_power_reader(nvml, gpu: Gpu) -> PowerReader | None:
    """The best power sensor of a card, tried once; None where it has none."""

    def read_instant_w() -> float:
        (field,) = nvml.nvmlDeviceGetFieldValues(gpu.handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(field.nvmlReturn)
        return field.value.uiVal / 1e3

    def read_usage_w() -> float:
        return nvml.nvmlDeviceGetPowerUsage(gpu.handle) / 1e3

    # Some drivers accept the field and answer 0; no card draws nothing.
    if _ask(nvml, read_instant_w):
        return PowerReader(read_instant_w, TICK_S, "instant power (field 186)")
    if _ask(nvml, read_usage_w) is None:
        return None
    architecture = _ask(nvml, nvml.nvmlDeviceGetArchitecture, gpu.handle)
    if architecture is not None and architecture < _AMPERE:
        return PowerReader(read_usage_w, TICK_S, "nvmlDeviceGetPowerUsage")
    return PowerReader(
        read_usage_w, AVERAGED_POWER_TICK_S, "nvmlDeviceGetPowerUsage (a mean over 1 s)"
    )


def _max_power_w(nvml, gpu: Gpu) -> float:
    limits = _ask(nvml, nvml.nvmlDeviceGetPowerManagementLimitConstraints, gpu.handle)
    return _PEAK_OVER_LIMIT * limits[1] / 1e3 if limits else _DEFAULT_MAX_POWER_W


def _read_process_ids(nvml, gpu: Gpu) -> list[int] | None:
    """Process ids that compute or draw on a card; None where NVML does not say."""
    computing = _list_processes(
        nvml,
        gpu,
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetComputeRunningProcesses_v2,
    )
    drawing = _list_processes(
        nvml,
        gpu,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
    )
    if computing is None and drawing is None:
        return None
    return sorted({process.pid for process in (computing or []) + (drawing or [])})


def _list_processes(nvml, gpu: Gpu, function: Callable, older: Callable) -> list | None:
    processes = _ask(nvml, function, gpu.handle)
    return _ask(nvml, older, gpu.handle) if processes is None else processes


def _in_initial_pid_namespace() -> bool:
    try:
        return os.readlink("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE
    except OSError:
        return False
