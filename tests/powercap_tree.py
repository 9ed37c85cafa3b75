"""A powercap tree in any folder, and a writer that advances its counters: a simulated RAPL machine.

Importable by tests, and a program for those that need a process of its own:
`python powercap_tree.py FOLDER SCENARIO [SECONDS]` builds a scenario and writes until killed.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

RANGE_UJ = 262_143_328_850  # of 61 uJ units, as on most servers
DRAM_RANGE_UJ = 65_712_999_613  # of 15.3 uJ units


class PowercapTree:
    """Zones as the kernel lays them out: nested folders, and a flat link to each.

    Args:
        root: the folder that stands for `/sys/class/powercap`; made where it does not exist.
        links: whether to make the flat links.
    """

    def __init__(self, root: Path | str, links: bool = True):
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.links = links
        self.power_w: dict[Path, float] = {}
        self.start_uj: dict[Path, int] = {}
        self.range_uj: dict[Path, int] = {}

    def zone(
        self,
        directory: str,
        name: str,
        *,
        power_w: float = 50.0,
        energy_uj: int = 1_000_000,
        range_uj: int = RANGE_UJ,
        limits_w: tuple[float, ...] = (),
    ) -> Path:
        """Adds a zone.

        Args:
            directory: its folder's name, e.g. `intel-rapl:0:1`.
            name: what its `name` file says.
            power_w: the power at which a writer advances its counter.
            energy_uj: where the counter starts.
            range_uj: where it wraps.
            limits_w: the power limits it states.

        Returns:
            Its folder.
        """
        control, *numbers = directory.split(":")
        folder = self.root / control
        for depth in range(len(numbers)):
            folder /= ":".join([control, *numbers[: depth + 1]])
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (folder / "enabled").write_text("1\n")
        for number, limit_w in enumerate(limits_w):
            (folder / f"constraint_{number}_power_limit_uw").write_text(f"{limit_w * 1e6:.0f}\n")
        if self.links:
            (self.root / directory).symlink_to(folder)
        self.power_w[folder] = power_w
        self.start_uj[folder] = energy_uj
        self.range_uj[folder] = range_uj
        self.write(folder, energy_uj)
        return folder

    def write(self, folder: Path, energy_uj: int) -> None:
        """Sets a zone's counter in place, as one write, so that no reader sees half a number."""
        descriptor = os.open(folder / "energy_uj", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, b"%015d\n" % (energy_uj % self.range_uj[folder]), 0)
        finally:
            os.close(descriptor)

    def advance(self, elapsed_s: float) -> None:
        """Sets every counter to where it stands a time after the start."""
        for folder, power_w in self.power_w.items():
            self.write(folder, self.start_uj[folder] + round(power_w * elapsed_s * 1e6))


class Writer:
    """Advances a tree's counters about every millisecond while the context is open.

    Args:
        tree: the tree.
        period_s: time between updates.
    """

    def __init__(self, tree: PowercapTree, period_s: float = 1e-3):
        self._tree = tree
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        """Writes until stopped."""
        start = time.monotonic()
        while not self._stop.wait(self._period_s):
            self._tree.advance(time.monotonic() - start)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def intel(root: Path | str, sockets: int = 1, *, dram: bool = True, first: int = 0) -> PowercapTree:
    """An Intel machine: packages with cores, uncore and memory.

    Args:
        root: the tree's folder.
        sockets: number of packages.
        dram: whether memory is metered.
        first: the first zone's number.
    """
    tree = PowercapTree(root)
    for package in range(sockets):
        top = f"intel-rapl:{first + package}"
        start_uj = (package + 1) * 100_000_000
        tree.zone(
            top,
            f"package-{package}",
            power_w=60.0 + 20 * package,
            energy_uj=start_uj,
            limits_w=(150.0, 180.0),
        )
        tree.zone(f"{top}:0", "core", power_w=40.0, energy_uj=start_uj // 2)
        tree.zone(f"{top}:1", "uncore", power_w=5.0, energy_uj=start_uj // 3)
        if dram:
            tree.zone(f"{top}:2", "dram", power_w=8.0, range_uj=DRAM_RANGE_UJ)
    return tree


def intel_psys_first(root: Path | str) -> PowercapTree:
    """A laptop whose platform zone comes before the package."""
    tree = PowercapTree(root)
    tree.zone("intel-rapl:0", "psys", power_w=30.0)
    tree.zone("intel-rapl:1", "package-0", power_w=15.0, limits_w=(17.0, 37.0))
    tree.zone("intel-rapl:1:0", "core", power_w=10.0)
    tree.zone("intel-rapl:1:1", "uncore", power_w=1.0)
    return tree


def intel_mmio(root: Path | str) -> PowercapTree:
    """A laptop that offers its package through MSRs and again through MMIO."""
    tree = intel_psys_first(root)
    tree.zone("intel-rapl-mmio:0", "package-0", power_w=15.0)
    return tree


def intel_dies(root: Path | str) -> PowercapTree:
    """Two dies in one package, each with a counter of its own (Cascade Lake AP)."""
    tree = PowercapTree(root)
    for die in range(2):
        start_uj = (die + 1) * 100_000_000
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", power_w=90.0, energy_uj=start_uj)
        tree.zone(f"intel-rapl:{die}:0", "dram", power_w=9.0, energy_uj=start_uj // 7)
    return tree


def intel_gap(root: Path | str) -> PowercapTree:
    """Two packages, numbered 0 and 2."""
    tree = PowercapTree(root)
    tree.zone("intel-rapl:0", "package-0", power_w=60.0, energy_uj=100_000_000)
    tree.zone("intel-rapl:2", "package-1", power_w=80.0, energy_uj=200_000_000)
    return tree


def one_wrapping_socket(root: Path | str) -> PowercapTree:
    """Two packages, the second of which wraps every tenth of a second."""
    tree = PowercapTree(root)
    tree.zone("intel-rapl:0", "package-0", power_w=60.0, energy_uj=100_000_000)
    tree.zone("intel-rapl:1", "package-1", power_w=80.0, energy_uj=7_900_000, range_uj=8_000_000)
    return tree


def amd(root: Path | str) -> PowercapTree:
    """An AMD machine: a package and its cores, no memory."""
    tree = PowercapTree(root)
    tree.zone("intel-rapl:0", "package-0", power_w=70.0, range_uj=65_532_610_987)
    tree.zone("intel-rapl:0:0", "core", power_w=20.0, range_uj=65_532_610_987)
    return tree


def amd_mirrored_dies(root: Path | str) -> PowercapTree:
    """A Threadripper whose two dies show one and the same counter."""
    tree = PowercapTree(root)
    first = tree.zone("intel-rapl:0", "package-0-die-0", power_w=68.0, energy_uj=100_000_000)
    second = tree.zone("intel-rapl:1", "package-0-die-1", power_w=68.0)
    del tree.power_w[second]
    (second / "energy_uj").unlink()
    os.link(first / "energy_uj", second / "energy_uj")
    return tree


def package_minus_one(root: Path | str) -> PowercapTree:
    """A virtual machine whose package has no number."""
    tree = PowercapTree(root)
    tree.zone("intel-rapl:0", "package--1", power_w=20.0)
    return tree


SCENARIOS = {
    "intel": intel,
    "intel_two_sockets": lambda root: intel(root, sockets=2),
    "intel_psys_first": intel_psys_first,
    "intel_mmio": intel_mmio,
    "intel_dies": intel_dies,
    "intel_gap": intel_gap,
    "one_wrapping_socket": one_wrapping_socket,
    "amd": amd,
    "amd_mirrored_dies": amd_mirrored_dies,
    "package_minus_one": package_minus_one,
}


def main(arguments: list[str]) -> None:
    """Builds a scenario, says `ready`, and writes for a number of seconds or until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("seconds", nargs="?", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    tree = SCENARIOS[options.scenario](options.folder)
    print("ready", flush=True)
    start = time.monotonic()
    while (elapsed_s := time.monotonic() - start) < options.seconds:
        tree.advance(elapsed_s)
        time.sleep(1e-3)


if __name__ == "__main__":
    main(sys.argv[1:])
