"""Cards without hardware: builds the C library of `nvml_stub/` and writes the file it reads.

In a process of its own (a driver, `experiments.run`):

    library = build(tmp_path)
    Cards(tmp_path / "state", [Card(power_w=300.0)]).write()
    subprocess.run(command, env=environment(library, tmp_path / "state"))

Inside the test's process, through the real binding: the fixture `cards` of `test_meters_nvml.py`.
"""

import dataclasses
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml.c"
NEVER_NS = 0


@dataclasses.dataclass
class Card:
    """One simulated card.

    Attributes:
        name: as NVML gives it.
        uuid: unique; made from the card's number where empty.
        pci: its PCI address; made from the card's number where empty.
        power_w: the power it always draws, where no other curve is given.
        steps: `(monotonic nanoseconds, watts)`, the instants at which power changes.
        square: `(low watts, high watts, period in ns)` from `origin_ns` on; overrides the others.
        origin_ns: from when on energy is counted; monotonic, now where 0.
        start_mj: what the energy counter showed at the origin.
        tick_ns: update period of the energy counter; 0 for one that is always current.
        counter_scale: what the energy counter is off by, against the true integral of power.
        has_energy: whether it has an energy counter.
        has_instant: whether field 186 (instant power) is supported.
        has_usage: whether nvmlDeviceGetPowerUsage is supported.
        usage_mean_ns: the averaging window of nvmlDeviceGetPowerUsage.
        sensor_tick_ns: the update period of the power sensor.
        architecture: NVML's number; 6 Turing, 7 Ampere, 9 Hopper.
        mig: 0 off, 1 on, -1 not supported.
        lost_at_ns: from when on it has fallen off the bus; 0 for never.
        error: an NVML error code that every call returns; 0 for none.
        pids: process ids that compute on it.
        graphics_pids: process ids that draw on it.
        throttle: the bits of the throttle reasons.
        temperature: degrees Celsius.
        sm_mhz: clock of the multiprocessors.
        memory_mhz: clock of the memory.
        limit_mw: power limit in force.
        max_limit_mw: highest power limit that can be set.
    """

    name: str = "NVIDIA A100-SXM4-40GB"
    uuid: str = ""
    pci: str = ""
    power_w: float = 100.0
    steps: tuple[tuple[int, float], ...] = ()
    square: tuple[float, float, int] | None = None
    origin_ns: int = 0
    start_mj: float = 5e6
    tick_ns: int = 100_000_000
    counter_scale: float = 1.0
    has_energy: bool = True
    has_instant: bool = True
    has_usage: bool = True
    usage_mean_ns: int = 0
    sensor_tick_ns: int = 20_000_000
    architecture: int = 7
    mig: int = 0
    lost_at_ns: int = NEVER_NS
    error: int = 0
    pids: tuple[int, ...] = ()
    graphics_pids: tuple[int, ...] = ()
    throttle: int = 0
    temperature: int = 40
    sm_mhz: int = 1410
    memory_mhz: int = 1593
    limit_mw: int = 400_000
    max_limit_mw: int = 400_000

    def lines(self, number: int) -> list[str]:
        """The card as lines of the state file."""
        values = dataclasses.asdict(self)
        del values["power_w"], values["square"]
        values["uuid"] = self.uuid or f"GPU-{number:08x}-0000-0000-0000-000000000000"
        values["pci"] = self.pci or f"00000000:{number + 1:02X}:00.0"
        steps = self.steps or ((self.origin_ns, self.power_w),)
        values["steps"] = ",".join(f"{when_ns}:{watts * 1e3}" for when_ns, watts in steps)
        values["pids"] = ",".join(map(str, self.pids))
        values["graphics_pids"] = ",".join(map(str, self.graphics_pids))
        if self.square:
            low_w, high_w, period_ns = self.square
            values["square_low_mw"], values["square_high_mw"] = low_w * 1e3, high_w * 1e3
            values["square_period_ns"] = period_ns
        return [
            f"{number}.{key}={int(value) if isinstance(value, bool) else value}"
            for key, value in values.items()
        ]


@dataclasses.dataclass
class Cards:
    """A machine's cards and the file that describes them.

    Attributes:
        path: the state file.
        cards: in NVML's order.
        driver: its version.
        init_error: what initialising returns; 0 for success.
    """

    path: Path
    cards: list[Card] = dataclasses.field(default_factory=list)
    driver: str = "550.54.15"
    init_error: int = 0

    def write(self) -> None:
        """Replaces the file; the library sees the change at its next call."""
        lines = [f"driver={self.driver}", f"init_error={self.init_error}"]
        for number, card in enumerate(self.cards):
            card.origin_ns = card.origin_ns or time.monotonic_ns()
            lines += card.lines(number)
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        os.replace(new, self.path)


def build(folder: Path) -> Path:
    """Compiles the library, or skips the test where there is no C compiler.

    Args:
        folder: where `libnvidia-ml.so.1` is put.

    Returns:
        The library's path.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the simulated NVML library with")
    library = folder / "libnvidia-ml.so.1"
    # No soname: loaded by path in a test's process, it must not become everybody's NVML there.
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, SOURCE], check=True)
    return library


def environment(library: Path, state: Path) -> dict[str, str]:
    """The environment in which a program finds the simulated library and its cards.

    Args:
        library: from `build`.
        state: the file that `Cards` writes.
    """
    path = os.pathsep.join(filter(None, (str(library.parent), os.environ.get("LD_LIBRARY_PATH"))))
    return {**os.environ, "LD_LIBRARY_PATH": path, "SIMULATED_NVML_STATE": str(state)}
