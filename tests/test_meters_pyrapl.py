"""pyRAPL as a reader: where it works its numbers are ours, where it fails the reason is given.

pyRAPL reads fixed paths, so each scenario gets a mount namespace in which those paths are ours.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import powercap_tree
import pytest

from jaxenergy.meters.base import Machine, MeterUnavailable
from jaxenergy.meters.pyrapl import PyraplMeter, explain_failure, import_pyrapl
from jaxenergy.meters.rapl import find_zones

needs_pyrapl = pytest.mark.skipif(
    importlib.util.find_spec("pyRAPL") is None, reason="pyRAPL is not installed (extra `rapl`)"
)

# Builds a scenario under the real paths, opens both readers, advances the counters by 50 ms and
# prints the watts each saw, wraps undone by the range that the domain states.
PROGRAM = """
import json, sys
from pathlib import Path
import powercap_tree
from jaxenergy.meters import Machine, MeterUnavailable
from jaxenergy.meters.pyrapl import PyraplMeter
from jaxenergy.meters.rapl import RaplMeter

scenario, cores = sys.argv[1], json.loads(sys.argv[2])
cpus = Path("/sys/devices/system/cpu")
cpus.joinpath("present").write_text(f"0-{len(cores) - 1}\\n")
for core, package in enumerate(cores):
    if package is not None:
        topology = cpus / f"cpu{core}" / "topology"
        topology.mkdir(parents=True)
        topology.joinpath("physical_package_id").write_text(f"{package}\\n")
tree = powercap_tree.SCENARIOS[scenario]("/sys/class/powercap")
seen = {}
for name, kind in (("rapl", RaplMeter), ("pyrapl", PyraplMeter)):
    tree.advance(0.0)
    try:
        meter = kind(Machine())
    except MeterUnavailable as error:
        seen[name] = str(error)
        continue
    counters = [counter for counter in meter.counters if counter.domain.counted]
    before = [counter.read_j() for counter in counters]
    tree.advance(0.05)
    after = [counter.read_j() for counter in counters]
    meter.close()
    seen[name] = {
        counter.domain.name: round((b - a) % counter.domain.range_j / 0.05, 3)
        for counter, a, b in zip(counters, before, after)
    }
print(json.dumps(seen))
"""


@pytest.fixture(scope="session")
def namespace():
    """The command that runs a program where `/sys/class` and the cores are empty and writable."""
    mounts = "mount -t tmpfs none /sys/class && mount -t tmpfs none /sys/devices/system/cpu"
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare command to make a mount namespace with")
    command = [unshare, "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()}")
    return command


def run_scenario(namespace, scenario: str, cores: list) -> dict:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*namespace, sys.executable, "-c", PROGRAM, scenario, json.dumps(cores)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@needs_pyrapl
@pytest.mark.parametrize(
    ("scenario", "cores", "expected"),
    [
        ("intel", [0, 0], {"cpu:package-0": 60.0, "dram:package-0": 8.0}),
        (
            "intel_two_sockets",
            [0, 0, 1, 1],
            {
                "cpu:package-0": 60.0,
                "dram:package-0": 8.0,
                "cpu:package-1": 80.0,
                "dram:package-1": 8.0,
            },
        ),
        ("intel_psys_first", [0], {"cpu:package-0": 15.0}),
        ("amd", [0, 0], {"cpu:package-0": 70.0}),
    ],
)
def test_both_readers_agree_where_pyrapl_works(namespace, scenario, cores, expected):
    assert run_scenario(namespace, scenario, cores) == {"rapl": expected, "pyrapl": expected}


@needs_pyrapl
def test_a_wrap_on_one_of_two_sockets_is_undone_for_both_readers(namespace):
    seen = run_scenario(namespace, "one_wrapping_socket", [0, 1])
    assert seen["pyrapl"] == seen["rapl"] == {"cpu:package-0": 60.0, "cpu:package-1": 80.0}


@needs_pyrapl
@pytest.mark.parametrize(
    ("scenario", "cores", "expected", "reason"),
    [
        (
            "intel_dies",
            [0, 0],
            {
                "cpu:package-0-die-0": 90.0,
                "dram:package-0-die-0": 9.0,
                "cpu:package-0-die-1": 90.0,
                "dram:package-0-die-1": 9.0,
            },
            "several dies",
        ),
        ("intel_gap", [0, 1], {"cpu:package-0": 60.0, "cpu:package-1": 80.0}, "have a gap (0, 2)"),
        (
            "intel",
            [0, None, 0, None],
            {"cpu:package-0": 60.0, "dram:package-0": 8.0},
            "a core is switched off",
        ),
        ("package_minus_one", [-1], {"cpu:package--1": 20.0}, "a negative number"),
    ],
)
def test_where_pyrapl_fails_ours_reads_and_the_reason_is_given(
    namespace, scenario, cores, expected, reason
):
    seen = run_scenario(namespace, scenario, cores)
    assert seen["rapl"] == expected
    assert reason in seen["pyrapl"]
    assert "The rapl meter reads the same counters" in seen["pyrapl"]
    assert len(seen["pyrapl"].splitlines()) <= 3


@needs_pyrapl
def test_importing_pyrapl_leaves_logging_alone(capfd):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyRAPL"]:
        del sys.modules[name]
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters), root.level
    assert import_pyrapl().__name__ == "pyRAPL"
    assert (list(root.handlers), list(root.filters), root.level) == before
    assert capfd.readouterr() == ("", "")


def test_without_pyrapl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyRAPL", None)
    with pytest.raises(MeterUnavailable, match=r"pip install -c constraints.txt -e '\.\[rapl\]'"):
        PyraplMeter(Machine())


def test_another_powercap_root_cannot_be_honoured(tmp_path):
    with pytest.raises(MeterUnavailable, match="cannot follow --powercap_root"):
        PyraplMeter(Machine(powercap_root=str(tmp_path)))


def test_failures_without_a_visible_cause_keep_their_own_words(tmp_path):
    powercap_tree.amd(tmp_path)
    zones = find_zones(tmp_path)
    assert explain_failure(ValueError("odd"), zones) == "ValueError: odd"
    assert explain_failure(RuntimeError(), zones) == "RuntimeError"
    denied = PermissionError(13, "Permission denied", "/a/energy_uj")
    assert explain_failure(denied, zones) == "/a/energy_uj is readable by root only"
