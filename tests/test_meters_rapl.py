"""The powercap reader on trees of every layout seen in the wild, still and in motion."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import powercap_tree
import pytest
from hypothesis import given
from hypothesis import strategies as st
from powercap_tree import PowercapTree, Writer

from jaxenergy.meters.base import CounterError, Machine, MeterUnavailable
from jaxenergy.meters.cpu_time import OtherProcesses, read_machine_busy_s
from jaxenergy.meters.rapl import RaplMeter, cpu_conditions, find_zones


def open_rapl(root) -> RaplMeter:
    return RaplMeter(Machine(powercap_root=str(root)))


def counted(meter) -> list[str]:
    return [counter.domain.name for counter in meter.counters if counter.domain.counted]


def why_not(meter) -> dict[str, str]:
    return {c.domain.name: c.domain.why_not_counted for c in meter.counters if not c.domain.counted}


@contextlib.contextmanager
def as_nobody():
    """Without the privileges of root, which may read any file."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("intel", ["cpu:package-0", "dram:package-0"]),
        (
            "intel_two_sockets",
            ["cpu:package-0", "dram:package-0", "cpu:package-1", "dram:package-1"],
        ),
        ("intel_psys_first", ["cpu:package-0"]),
        ("intel_mmio", ["cpu:package-0"]),
        (
            "intel_dies",
            [
                "cpu:package-0-die-0",
                "dram:package-0-die-0",
                "cpu:package-0-die-1",
                "dram:package-0-die-1",
            ],
        ),
        ("intel_gap", ["cpu:package-0", "cpu:package-1"]),
        ("amd", ["cpu:package-0"]),
        ("amd_mirrored_dies", ["cpu:package-0-die-0"]),
        ("package_minus_one", ["cpu:package--1"]),
        ("one_wrapping_socket", ["cpu:package-0", "cpu:package-1"]),
    ],
)
def test_what_is_counted(tmp_path, scenario, expected):
    powercap_tree.SCENARIOS[scenario](tmp_path)
    meter = open_rapl(tmp_path)
    assert counted(meter) == expected
    names = [counter.domain.name for counter in meter.counters]
    assert len(set(names)) == len(names)
    assert all(counter.domain.provenance == "measured" for counter in meter.counters)


def test_overlapping_zones_are_recorded_with_the_reason(tmp_path):
    powercap_tree.intel_mmio(tmp_path)
    reasons = why_not(open_rapl(tmp_path))
    assert "holds the packages" in reasons["psys"]
    assert "part of the package" in reasons["core:package-0"]
    assert "part of the package" in reasons["uncore:package-0"]
    assert "through intel-rapl:1" in reasons["cpu:package-0@intel-rapl-mmio:0"]


def test_mmio_counts_where_it_is_all_there_is(tmp_path):
    PowercapTree(tmp_path).zone("intel-rapl-mmio:0", "package-0")
    assert counted(open_rapl(tmp_path)) == ["cpu:package-0"]


def test_a_kind_nobody_knows_is_not_counted(tmp_path):
    tree = powercap_tree.amd(tmp_path)
    tree.zone("intel-rapl:0:1", "npu")
    assert "not known" in why_not(open_rapl(tmp_path))["npu:package-0"]


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_nested_and_flat_trees_are_the_same(tmp_path, form):
    tree = PowercapTree(tmp_path / "tree", links=form == "flat")
    tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:0:0", "dram")
    if form == "flat":  # links alone, as where only they are passed into a container
        (tmp_path / "tree" / "intel-rapl").rename(tmp_path / "elsewhere")
        for directory in ("intel-rapl:0", "intel-rapl:0:0"):
            link = tmp_path / "tree" / directory
            target = tmp_path / "elsewhere" / "intel-rapl:0"
            link.unlink()
            link.symlink_to(target / directory if directory.endswith(":0:0") else target)
    assert counted(open_rapl(tmp_path / "tree")) == ["cpu:package-0", "dram:package-0"]


def test_units_range_and_bound(tmp_path):
    powercap_tree.intel(tmp_path)
    package, *_, dram = open_rapl(tmp_path).counters
    assert package.read_j() == 100.0
    assert package.domain.range_j == pytest.approx(262_143.328850)
    # The energy units that Intel documents: 2**-14 J, and 15.3 uJ for memory of servers.
    assert package.domain.resolution_j == pytest.approx(2**-14, rel=1e-4)
    assert dram.domain.resolution_j == pytest.approx(15.3e-6, rel=1e-3)
    assert package.domain.tick_s == 1e-3
    assert package.domain.max_power_w == 2 * 180.0


@pytest.mark.parametrize(
    ("limits_w", "bound_w"), [((), 1000.0), ((4095.0,), 1000.0), ((17.0, 37.0), 200.0)]
)
def test_a_bound_on_power_is_believable(tmp_path, limits_w, bound_w):
    PowercapTree(tmp_path).zone("intel-rapl:0", "package-0", limits_w=limits_w)
    assert open_rapl(tmp_path).counters[0].domain.max_power_w == bound_w


@given(sockets=st.integers(1, 4), psys_at=st.integers(0, 4), gaps=st.lists(st.integers(1, 3)))
def test_packages_are_found_by_name_wherever_they_stand(sockets, psys_at, gaps):
    with tempfile.TemporaryDirectory() as root:
        tree, number = PowercapTree(root), 0
        names = [f"package-{socket}" for socket in range(sockets)]
        names.insert(psys_at, "psys")
        for place, name in enumerate(names):
            tree.zone(f"intel-rapl:{number}", name)
            number += gaps[place] if place < len(gaps) else 1
        assert counted(open_rapl(root)) == [f"cpu:package-{socket}" for socket in range(sockets)]


def test_counters_in_motion_are_read_whole(tmp_path):
    tree = powercap_tree.one_wrapping_socket(tmp_path)
    meter = open_rapl(tmp_path)
    wrapping = meter.counters[1]
    reading_j, wraps = wrapping.read_j(), 0
    deadline = time.monotonic() + 30
    with Writer(tree):
        while wraps < 2 and time.monotonic() < deadline:
            time.sleep(1e-3)
            before_j, reading_j = reading_j, wrapping.read_j()
            assert 0 <= reading_j < 8.0
            wraps += reading_j < before_j
    assert wraps == 2


@pytest.mark.parametrize("scenario", ["amd_mirrored_dies", "intel_dies"])
def test_dies_are_told_apart_while_they_count(tmp_path, scenario):
    tree = powercap_tree.SCENARIOS[scenario](tmp_path)
    with Writer(tree):
        meter = open_rapl(tmp_path)
    assert len([n for n in counted(meter) if n.startswith("cpu:")]) == 1 + (scenario[0] == "i")
    if scenario == "amd_mirrored_dies":
        assert "mirrors that of cpu:package-0-die-0" in why_not(meter)["cpu:package-0-die-1"]


def test_counters_at_zero_are_not_taken_for_mirrors(tmp_path):
    tree = PowercapTree(tmp_path)
    for die in range(2):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", energy_uj=0)
    assert len(counted(open_rapl(tmp_path))) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("", "whole number"), ("many\n", "whole number")],
)
def test_a_counter_that_vanishes_or_makes_no_sense_says_why(tmp_path, content, reason):
    powercap_tree.amd(tmp_path)
    counter = open_rapl(tmp_path).counters[0]
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(CounterError, match=reason) as caught:
        counter.read_j()
    assert str(file) in str(caught.value)


def test_a_file_for_root_only_is_named_with_the_rule_that_opens_it(open_folder):
    tree = powercap_tree.amd(open_folder)
    for zone in tree.power_w:
        (zone / "energy_uj").chmod(0)
    with as_nobody(), pytest.raises(MeterUnavailable) as caught:
        open_rapl(open_folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert f"{open_folder}/intel-rapl:0/energy_uj is readable by root only" in lines[0]
    assert "CVE-2020-8694" in lines[0]
    assert f"sudo chmod a+r {open_folder}/*/energy_uj" in lines[1]
    assert "udev" in lines[2]
    assert not caught.value.absent


def test_readable_zones_are_metered_and_the_others_noted(open_folder):
    tree = powercap_tree.intel(open_folder)
    (dram,) = [zone for zone in tree.power_w if (zone / "name").read_text() == "dram\n"]
    (dram / "energy_uj").chmod(0)
    with as_nobody():
        meter = open_rapl(open_folder)
    assert counted(meter) == ["cpu:package-0"]
    assert "dram:package-0 is not metered" in meter.notes[0]


def test_permission_lost_in_mid_run_is_an_error(open_folder):
    tree = powercap_tree.amd(open_folder)
    with as_nobody():
        counter = open_rapl(open_folder).counters[0]
        assert counter.read_j() == 1.0
    for zone in tree.power_w:
        (zone / "energy_uj").chmod(0)
    with as_nobody(), pytest.raises(CounterError, match="Permission denied"):
        counter.read_j()


def test_no_tree_is_absent(tmp_path):
    with pytest.raises(MeterUnavailable) as caught:
        open_rapl(tmp_path / "nothing")
    assert caught.value.absent
    assert find_zones(tmp_path) == []


def test_busy_others_are_contamination_and_our_own_work_is_not():
    assert cpu_conditions(0.05, 0.0)["contamination"] == []
    assert cpu_conditions(0.3, 30.0)["contamination"] == []
    (sentence,) = cpu_conditions(3.0, 1.0)["contamination"]
    assert "3 cores" in sentence
    assert "75%" in sentence


def test_others_are_the_machine_without_us(tmp_path):
    """The kernel's counts move by 10 s while we have used next to nothing."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 900 50 0 0 7 0 0\ncpu0 100 0 100 900 50 0 0 7 0 0\n")
    assert read_machine_busy_s(str(stat)) == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))
    began = time.monotonic()
    others = OtherProcesses(str(stat))
    assert others.read_busy_cores() is None
    ticks = 100 + 10 * os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {ticks} 0 100 900 50 0 0 7 0 0\n")
    time.sleep(OtherProcesses.SHORTEST_S)
    busy = others.read_busy_cores()
    assert busy is not None
    # 10 s of work in the time that passed, whatever that was.
    assert 0 < busy[0] <= 10 / OtherProcesses.SHORTEST_S
    assert busy[0] + busy[1] >= 10 / (time.monotonic() - began)


def test_conditions_are_given_for_counted_packages(tmp_path):
    powercap_tree.intel(tmp_path, sockets=2)
    meter = open_rapl(tmp_path)
    time.sleep(OtherProcesses.SHORTEST_S)
    conditions = meter.read_conditions()
    assert set(conditions) == {"cpu:package-0", "cpu:package-1"}
    assert set(conditions["cpu:package-0"]) == {
        "other_cores_busy",
        "own_cores_busy",
        "other_cpu_share",
        "contamination",
    }
