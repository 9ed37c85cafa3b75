"""The power PMU: its sysfs files, and perf_event_open itself on an event every kernel has."""

import pytest

from jaxenergy.meters.base import MeterUnavailable
from jaxenergy.meters.perf import PerfMeter, parse_cpu_list, read_events


def write_pmu(folder, pmu_type=26, cpumask="0", events=None, scale="2.3283064365386962890625e-10"):
    (folder / "events").mkdir(parents=True)
    (folder / "type").write_text(f"{pmu_type}\n")
    (folder / "cpumask").write_text(f"{cpumask}\n")
    for name, config in (events or {"energy-pkg": "event=0x02"}).items():
        (folder / "events" / name).write_text(f"{config}\n")
        (folder / "events" / f"{name}.scale").write_text(f"{scale}\n")
        (folder / "events" / f"{name}.unit").write_text("Joules\n")
    return folder


def write_cores(folder, packages, dies=None):
    for core, package in packages.items():
        topology = folder / f"cpu{core}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "die_id").write_text(f"{(dies or {}).get(core, 0)}\n")
    return folder


@pytest.mark.parametrize(
    ("text", "cores"), [("0\n", [0]), ("0,36", [0, 36]), ("0-2,8-9", [0, 1, 2, 8, 9])]
)
def test_core_lists(text, cores):
    assert parse_cpu_list(text) == cores


def test_two_sockets_with_memory_cores_and_platform(tmp_path):
    pmu = write_pmu(
        tmp_path / "power",
        cpumask="0,36",
        events={
            "energy-pkg": "event=0x02",
            "energy-ram": "event=0x03",
            "energy-cores": "event=0x01",
            "energy-psys": "event=0x05",
        },
    )
    found = read_events(pmu, write_cores(tmp_path / "cpu", {0: 0, 36: 1}))
    domains = {domain.name: (domain, attributes, core) for domain, attributes, core in found}
    counted = [name for name, (domain, *_) in domains.items() if domain.counted]
    assert counted == ["cpu:package-0", "cpu:package-1", "dram:package-0", "dram:package-1"]
    domain, attributes, core = domains["dram:package-1"]
    assert attributes == (26, 3, pytest.approx(2**-32))
    assert core == 36
    assert domain.resolution_j == 2**-14
    assert domain.range_j is None
    assert "holds the packages" in domains["psys"][0].why_not_counted
    assert "part of the package" in domains["core:package-0"][0].why_not_counted


def test_dies_get_names_of_their_own(tmp_path):
    pmu = write_pmu(tmp_path / "power", cpumask="0,8")
    found = read_events(pmu, write_cores(tmp_path / "cpu", {0: 0, 8: 0}, dies={0: 0, 8: 1}))
    assert [domain.name for domain, *_ in found] == ["cpu:package-0-die-0", "cpu:package-0-die-1"]


def test_what_is_absent_or_not_understood_is_said(tmp_path):
    with pytest.raises(MeterUnavailable, match="no power PMU") as caught:
        PerfMeter(pmu=tmp_path / "power")
    assert caught.value.absent
    cores = write_cores(tmp_path / "cpu", {0: 0})
    pmu = write_pmu(tmp_path / "power", events={"frequency": "event=0x09"})
    with pytest.raises(MeterUnavailable, match="no energy event"):
        PerfMeter(pmu=pmu, cpus=cores)
    pmu = write_pmu(tmp_path / "other")
    (pmu / "events" / "energy-pkg.unit").write_text("Calories\n")
    with pytest.raises(MeterUnavailable, match="'Calories'"):
        PerfMeter(pmu=pmu, cpus=cores)


def test_an_event_is_opened_read_and_closed(tmp_path):
    """The kernel's CPU clock (software event 0, in nanoseconds) stands in for joules."""
    pmu = write_pmu(
        tmp_path / "power", pmu_type=1, events={"energy-pkg": "event=0x00"}, scale="1e-9"
    )
    try:
        meter = PerfMeter(pmu=pmu, cpus=write_cores(tmp_path / "cpu", {0: 0}))
    except MeterUnavailable as refused:
        pytest.skip(str(refused))
    (counter,) = meter.counters
    first, second = counter.read_j(), counter.read_j()
    assert 0 < first < second < 60
    meter.close()
    meter.close()


def test_an_event_the_kernel_does_not_know_is_explained(tmp_path):
    pmu = write_pmu(tmp_path / "power", pmu_type=2**31 - 1)
    with pytest.raises(MeterUnavailable, match=r"PMU failed|does not let this user|x86_64 only"):
        PerfMeter(pmu=pmu, cpus=write_cores(tmp_path / "cpu", {0: 0}))
