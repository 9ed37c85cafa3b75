"""Opening meters by name, what `auto` takes, and that nothing is counted twice."""

import subprocess
import sys

import powercap_tree
import pytest

from jaxenergy.errors import UsageError
from jaxenergy.meters import (
    METERS,
    Counter,
    Device,
    Domain,
    Machine,
    Meter,
    Meters,
    compare_sources,
    count_once,
    open_meters,
)
from jaxenergy.meters.survey import survey

CPU = Device("cpu", 0)


class FixedCounter(Counter):
    def __init__(self, name: str, provenance: str = "measured", counted: bool = True):
        self.domain = Domain(name, provenance, "a constant", 0.0, 1e-3, counted=counted)

    def read_j(self) -> float:
        return 42.0


class FixedMeter(Meter):
    def __init__(self, name: str, *counters: Counter):
        self.name = name
        self.counters = counters
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def no_rapl(tmp_path):
    return tmp_path


def test_none_meters_nothing():
    with open_meters("none") as meters:
        assert meters.counters == ()
        assert meters.provenance == "none"
        assert meters.read_conditions() == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rappl", "--meters=rappl is unknown. Did you mean 'rapl'?"),
        ("", "--meters= is unknown."),
        ("rapl,", "--meters=rapl, is unknown. Did you mean 'rapl'?"),
        ("auto,estimate", "'auto' stands alone"),
        ("estimate,none", "'none' stands alone"),
        ("estimate,estimate", "names 'estimate' twice"),
        ("json:dumpz", "--meters=json:dumpz is unknown. Did you mean 'json:dump"),
        ("json:decoder", "is not a class or function"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(UsageError) as caught:
        open_meters(spec)
    assert message in str(caught.value)
    assert 1 <= len(str(caught.value).splitlines()) <= 3


def test_auto_without_any_counter_estimates_and_says_so(no_rapl):
    with open_meters("auto", [CPU], powercap_root=no_rapl) as meters:
        assert meters.counted_domains == ("cpu:estimate",)
        assert meters.provenance == "estimated"
        assert "ESTIMATED" in " ".join(meters.notes)
        assert str(no_rapl) in " ".join(meters.notes)


def test_auto_never_adds_an_estimate_to_a_measurement(tmp_path):
    powercap_tree.intel(tmp_path)
    with open_meters("auto", [CPU], powercap_root=tmp_path) as meters:
        assert meters.counted_domains == ("cpu:package-0", "dram:package-0")
        assert meters.provenance == "measured"
        assert not any("ESTIMATED" in note for note in meters.notes)


def test_a_named_meter_that_is_absent_is_an_error_that_names_the_place(no_rapl):
    with pytest.raises(UsageError, match="--meters=rapl: no RAPL counter below") as caught:
        open_meters("estimate,rapl", powercap_root=no_rapl)
    assert str(no_rapl) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_powercap_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--powercap_root=.*nowhere is no folder"):
        open_meters("none", powercap_root=tmp_path / "nowhere")


def test_an_estimate_gives_way_to_a_measured_cpu(tmp_path):
    powercap_tree.amd(tmp_path)
    with open_meters("estimate,rapl", powercap_root=tmp_path) as meters:
        assert meters.counted_domains == ("cpu:package-0",)
        assert meters.provenance == "measured"
        (estimate, *_) = meters.domains
        assert estimate.why_not_counted == "the CPU is measured; this is a comparison"


def test_a_user_adds_a_meter_with_a_class_and_a_row(monkeypatch):
    class WallPlug(Meter):
        name = "plug"

        def __init__(self, machine: Machine):
            self.counters = (FixedCounter(f"plug:{len(machine.gpus)}"),)

    monkeypatch.setattr(METERS, "_entries", dict(METERS._entries))
    METERS.add("plug", WallPlug, "the wattmeter on the wall")
    with open_meters("plug", [CPU, Device("gpu", 0)]) as meters:
        assert meters.counted_domains == ("plug:1",)
        assert meters.counters[0].read_j() == 42.0


def test_a_meter_may_be_named_by_module_and_class():
    with open_meters("jaxenergy.meters.estimate:EstimateMeter") as meters:
        assert meters.counted_domains == ("cpu:estimate",)


def test_meters_opened_before_a_failure_are_closed(monkeypatch, no_rapl):
    plug = FixedMeter("plug", FixedCounter("plug:0"))
    monkeypatch.setattr(METERS, "_entries", dict(METERS._entries))
    METERS.add("plug", lambda machine: plug, "")
    with pytest.raises(UsageError):
        open_meters("plug,rapl", powercap_root=no_rapl)
    assert plug.closed


def test_one_part_of_the_machine_is_counted_by_one_meter():
    package, dies = (
        FixedCounter("cpu:package-0"),
        [
            FixedCounter("cpu:package-0-die-0"),
            FixedCounter("cpu:package-0-die-1"),
        ],
    )
    meters = [
        FixedMeter("perf", *dies, FixedCounter("psys", counted=False)),
        FixedMeter("rapl", package, FixedCounter("psys", counted=False), FixedCounter("dram:x")),
    ]
    count_once(meters)
    opened = Meters(tuple(meters))
    names = [domain.name for domain in opened.domains]
    assert len(set(names)) == len(names)
    assert opened.counted_domains == ("cpu:package-0-die-0", "cpu:package-0-die-1", "dram:x")
    assert package.domain.name == "cpu:package-0@rapl"
    assert package.domain.why_not_counted == "perf counts it; this is a cross-check"


def test_the_weakest_counted_domain_gives_the_provenance():
    meter = FixedMeter(
        "some",
        FixedCounter("a"),
        FixedCounter("b", "simulated"),
        FixedCounter("c", "estimated", counted=False),
    )
    assert Meters((meter,)).provenance == "simulated"


def test_sources_are_compared_over_the_same_part():
    counted = ["cpu:package-0-die-0", "cpu:package-0-die-1", "dram:package-0"]
    checks = compare_sources(
        {
            "cpu:package-0-die-0": 400.0,
            "cpu:package-0-die-1": 600.0,
            "cpu:package-0@pyrapl": 1009.0,
            "cpu:package-0@perf": 1200.0,
            "dram:package-0": None,
            "dram:package-0@perf": 7.0,
            "psys": 3000.0,
        },
        counted,
    )
    assert [(check.other_source, check.agrees) for check in checks] == [
        ("pyrapl", True),
        ("perf", False),
    ]
    assert "DISAGREES with perf" in str(checks[1])


def test_survey_tells_what_auto_takes_and_what_cannot_be_had(tmp_path):
    powercap_tree.intel_mmio(tmp_path)
    found = survey(tmp_path, [CPU])
    by_domain = {row.domain.name: row for row in found.rows if row.domain}
    assert by_domain["cpu:package-0"].used_by_auto
    assert by_domain["cpu:package-0"].reading_j == pytest.approx(1.0)
    assert not by_domain["cpu:estimate"].used_by_auto
    assert "psys holds the packages" in by_domain["psys"].why
    assert "intel-rapl:1" in by_domain["cpu:package-0@intel-rapl-mmio:0"].why
    (pyrapl,) = [row for row in found.rows if row.meter == "pyrapl"]
    assert str(tmp_path) in pyrapl.why
    assert {row.meter for row in found.rows} == set(METERS)


def test_the_driver_prints_every_domain_without_jax(tmp_path):
    powercap_tree.intel(tmp_path)
    program = (
        "import atexit, sys; from experiments.meters import main\n"
        "atexit.register(lambda: print('jax' in sys.modules, 'pyRAPL' in sys.modules))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"--powercap_root={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("cpu:package-0", "dram:package-0", "core:package-0", "cpu:estimate"):
        assert name in done.stdout
    assert "262 kJ" in done.stdout
    assert done.stdout.rstrip().endswith("False False")


def test_the_driver_refuses_a_wrong_root(tmp_path):
    command = [sys.executable, "-m", "experiments.meters", f"--powercap_root={tmp_path}/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: --powercap_root={tmp_path}/nowhere is no folder.\n"


def test_opening_meters_loads_no_optional_package():
    program = (
        "import sys; import jaxenergy.meters\n"
        "print({'jax', 'numpy', 'pynvml', 'pyRAPL', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"
