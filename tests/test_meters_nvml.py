"""The NVML meter through the real binding, over a simulated `libnvidia-ml.so.1`."""

import ctypes
import math
import os
import subprocess
import sys
import time

import pynvml
import pytest
import simulated_nvml
from hypothesis import given
from hypothesis import strategies as st
from simulated_nvml import Card, Cards

from jaxenergy.errors import UsageError
from jaxenergy.meters import open_meters
from jaxenergy.meters.base import CounterError, Device, Machine, MeterUnavailable
from jaxenergy.meters.nvml import (
    Gpu,
    NvmlMeter,
    find_gpus,
    judge_processes,
    name_throttle_reasons,
    parse_pci_bus_id,
)
from jaxenergy.meters.power_integral import LONGEST_GAP_S, PowerIntegral, PowerSampler

A100, V100 = "NVIDIA A100-SXM4-40GB", "Tesla V100-SXM2-16GB"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return simulated_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def cards(library, tmp_path, monkeypatch):
    """Makes the binding use the simulated library; the test fills in the cards and writes them."""
    monkeypatch.setenv("SIMULATED_NVML_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return Cards(tmp_path / "state")


@pytest.fixture
def open_nvml(cards):
    opened = []

    def open_meter(*devices: Device) -> NvmlMeter:
        opened.append(NvmlMeter(Machine(devices or None)))
        return opened[-1]

    yield open_meter
    for meter in opened:
        meter.close()


# --- the energy counter ---------------------------------------------------------------------------


def test_the_energy_counter_is_read_in_joules_and_ticks(cards, open_nvml):
    start_ns = time.monotonic_ns()
    cards.cards = [Card(power_w=1000.0, start_mj=5_000_000, origin_ns=start_ns, tick_ns=20_000_000)]
    cards.write()
    counter = open_nvml().counters[0]
    before_ns = time.monotonic_ns()
    reading_j = counter.read_j()
    after_ns = time.monotonic_ns()
    assert counter.domain.name == "gpu:0"
    assert counter.domain.provenance == "measured"
    assert counter.domain.tick_s == 0.1
    assert counter.domain.resolution_j == 1e-3
    assert counter.domain.range_j is None
    assert counter.domain.max_power_w == 800.0
    # 1000 W for whole ticks of 20 ms: 20 J each, on top of what the counter began with.
    ticks = (reading_j - 5000.0) / 20.0
    assert ticks == pytest.approx(round(ticks), abs=1e-6)
    assert (
        (before_ns - start_ns) // 20_000_000 <= round(ticks) <= (after_ns - start_ns) // 20_000_000
    )


def test_a_gpu_that_falls_off_the_bus_says_so(cards, open_nvml):
    cards.cards = [Card(), Card(name=A100)]
    cards.write()
    first, second = open_nvml().counters
    cards.cards[0].lost_at_ns = 1
    cards.write()
    with pytest.raises(CounterError, match="gpu:0: NVML says: GPU is lost"):
        first.read_j()
    assert second.read_j() > 0


def test_conditions_of_a_lost_gpu_are_unknown_not_an_error(cards, open_nvml):
    cards.cards = [Card()]
    cards.write()
    meter = open_nvml()
    cards.cards[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    cards.write()
    conditions = meter.read_conditions()["gpu:0"]
    assert conditions["temperature_c"] is None
    assert conditions["throttle_reasons"] is None
    assert conditions["other_processes"] is None


def test_reading_after_close_is_an_error(cards):
    cards.cards = [Card()]
    cards.write()
    meter = NvmlMeter(Machine())
    meter.close()
    with pytest.raises(CounterError, match="Uninitialized"):
        meter.counters[0].read_j()
    meter.close()


def test_conditions(cards, open_nvml):
    cards.cards = [
        Card(throttle=0x4 | 0x40, temperature=71, sm_mhz=1200, memory_mhz=1593, limit_mw=300_000)
    ]
    cards.write()
    conditions = open_nvml().read_conditions()["gpu:0"]
    assert conditions["temperature_c"] == 71
    assert conditions["sm_clock_mhz"] == 1200
    assert conditions["memory_clock_mhz"] == 1593
    assert conditions["power_limit_w"] == 300.0
    assert conditions["throttle_reasons"] == ["software power cap", "hardware thermal slowdown"]
    assert conditions["contamination"] == []


def test_description_names_driver_and_cards(cards, open_nvml):
    cards.cards = [Card(uuid="GPU-abc")]
    cards.driver = "999.1"
    cards.write()
    described = open_nvml().describe()
    assert described["driver"] == "999.1"
    assert described["gpus"]["gpu:0"]["uuid"] == "GPU-abc"


# --- which card is which --------------------------------------------------------------------------

FOUR = [Gpu(i, i, f"GPU-{'ab'[i % 2]}{i}00", f"00000000:{i + 1:02X}:00.0", A100) for i in range(4)]
MIXED = [FOUR[0], Gpu(1, 1, "GPU-b100", "00000000:02:00.0", V100), FOUR[2]]


def found(gpus, devices=(), **variables) -> list[int]:
    return [gpu.index for gpu in find_gpus(list(gpus), tuple(devices), variables).values()]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "3, 1"}, [3, 1]),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1,7,2"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a200"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b3,GPU-a0"}, [3, 0]),
        ({"CUDA_VISIBLE_DEVICES": "gpu-B3"}, [3]),
        ({"CUDA_VISIBLE_DEVICES": "3,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [3, 0]),
    ],
)
def test_visible_devices(variables, expected):
    assert found(FOUR, **variables) == expected
    devices = [Device("gpu", place) for place in range(len(expected))]
    assert found(FOUR, devices, **variables) == expected


@pytest.mark.parametrize(
    ("gpus", "variables", "message"),
    [
        (FOUR, {"CUDA_VISIBLE_DEVICES": ""}, "hides every GPU"),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "-1"}, "hides every GPU"),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-a"}, "2 GPUs have it"),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-c"}, "no GPU has it"),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "1,1"}, "twice"),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "MIG-12"}, "MIG"),
        (MIXED, {}, "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "1"}, "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        (MIXED, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ([], {}, "lists no GPU"),
    ],
)
def test_what_cannot_be_told_is_refused(gpus, variables, message):
    with pytest.raises(MeterUnavailable, match=message) as caught:
        found(gpus, **variables)
    assert len(str(caught.value).splitlines()) <= 3


def test_unequal_cards_are_told_by_order_uuid_address_or_name():
    assert found(MIXED, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0, 1, 2]
    assert found(MIXED, CUDA_VISIBLE_DEVICES="GPU-b1,GPU-a0") == [1, 0]
    assert found(MIXED, [Device("gpu", 0, uuid="GPU-b100")]) == [1]
    assert found(MIXED, [Device("gpu", 0, pci_bus_id="0000:03:00.0")]) == [2]
    assert found(MIXED, [Device("gpu", 0, name=V100)]) == [1]
    with pytest.raises(MeterUnavailable, match="PCI_BUS_ID"):
        found(MIXED, [Device("gpu", 0, name=A100)])


def test_a_device_that_nvml_does_not_list_is_refused():
    with pytest.raises(MeterUnavailable, match="CUDA device 4 computes"):
        found(FOUR, [Device("gpu", 4)])
    with pytest.raises(MeterUnavailable, match="uuid GPU-zz: no GPU has it"):
        found(FOUR, [Device("gpu", 0, uuid="GPU-zz")])
    with pytest.raises(MeterUnavailable, match="MIG"):
        found(FOUR, [Device("gpu", 0, uuid="MIG-1")])


@given(st.permutations(range(4)), st.integers(1, 4))
def test_numbers_and_uuids_name_the_same_cards_in_any_order(order, count):
    order = order[:count]
    by_number = ",".join(map(str, order))
    by_uuid = ",".join(FOUR[index].uuid for index in order)
    assert found(FOUR, CUDA_VISIBLE_DEVICES=by_number) == order
    assert found(FOUR, CUDA_VISIBLE_DEVICES=by_uuid) == order


@pytest.mark.parametrize("text", ["0000:3b:00.0", "00000000:3B:00.0", "3b:00.0", "0:3B:00"])
def test_pci_addresses_are_equal_however_written(text):
    assert parse_pci_bus_id(text) == (0, 0x3B, 0)


def test_domains_follow_cuda_numbers_not_nvml_ones(cards, open_nvml, monkeypatch):
    cards.cards = [Card(start_mj=1e6, power_w=0.0), Card(start_mj=2e6, power_w=0.0)]
    cards.write()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    counters = {counter.domain.name: counter for counter in open_nvml().counters}
    assert counters["gpu:0"].read_j() == 2000.0
    assert counters["gpu:1"].read_j() == 1000.0


def test_mig_is_refused_with_the_reason(cards, open_nvml):
    cards.cards = [Card(mig=1)]
    cards.write()
    with pytest.raises(MeterUnavailable, match=r"MIG is on for GPU 0 .* one energy counter"):
        open_nvml()


# --- driver trouble -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message", "absent"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia", True),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine", False),
        (pynvml.NVML_ERROR_NO_PERMISSION, "nvidiactl", False),
        (pynvml.NVML_ERROR_UNKNOWN, "nvidia-smi", False),
    ],
)
def test_driver_trouble_is_explained(cards, open_nvml, code, message, absent):
    cards.init_error = code
    cards.write()
    with pytest.raises(MeterUnavailable, match=message) as caught:
        open_nvml()
    assert caught.value.absent == absent


def test_auto_takes_a_gpu_that_computes_and_no_other(cards, tmp_path):
    cards.cards = [Card()]
    cards.write()
    with open_meters("auto", [Device("gpu", 0)], powercap_root=tmp_path) as meters:
        assert meters.counted_domains == ("gpu:0",)
        assert meters.provenance == "measured"
        assert not any("every visible GPU" in note for note in meters.notes)
    with open_meters("auto", [Device("cpu", 0)], powercap_root=tmp_path) as meters:
        assert meters.counted_domains == ("cpu:estimate",)
    with open_meters("auto", powercap_root=tmp_path) as meters:
        assert meters.counted_domains == ("gpu:0",)


def test_nvml_by_name_on_a_cpu_run_meters_every_visible_gpu_and_says_so(cards):
    cards.cards = [Card(), Card()]
    cards.write()
    with open_meters("nvml", [Device("cpu", 0)]) as meters:
        assert meters.counted_domains == ("gpu:0", "gpu:1")
        assert any("every visible GPU is metered" in note for note in meters.notes)


def test_auto_says_what_it_misses_when_the_driver_of_a_computing_gpu_is_gone(cards, tmp_path):
    with open_meters("auto", [Device("gpu", 0)], powercap_root=tmp_path) as meters:
        assert meters.provenance == "estimated"
        assert any("GPU energy is not metered" in note for note in meters.notes)
    with pytest.raises(UsageError, match="--meters=nvml: NVML says: Driver Not Loaded"):
        open_meters("nvml")


def test_a_program_finds_the_library_through_the_loader(library, cards):
    cards.cards = [Card(uuid="GPU-loader", power_w=250.0)]
    cards.write()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.meters"],
        env=simulated_nvml.environment(library, cards.path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GPU-loader" in done.stdout
    assert "by auto" in done.stdout


# --- other processes ------------------------------------------------------------------------------


def test_other_processes_on_the_card_are_contamination(cards, open_nvml, monkeypatch):
    monkeypatch.setattr("jaxenergy.meters.nvml._in_initial_pid_namespace", lambda: True)
    cards.cards = [Card(pids=(os.getpid(),))]
    cards.write()
    meter = open_nvml()
    assert meter.read_conditions()["gpu:0"]["contamination"] == []
    cards.cards[0].pids = (os.getpid(), 4_000_001)
    cards.cards[0].graphics_pids = (4_000_002,)
    cards.write()
    conditions = meter.read_conditions()["gpu:0"]
    assert conditions["other_processes"] == [4_000_001, 4_000_002]
    assert "4000001, 4000002" in conditions["contamination"][0]


def test_in_a_container_only_the_number_of_processes_can_be_told():
    assert judge_processes([17], {1}, pids_are_ours=False) == (None, [])
    assert judge_processes([], {1}, pids_are_ours=False) == (None, [])
    assert judge_processes(None, {1}, pids_are_ours=True) == (None, [])
    others, (sentence,) = judge_processes([17, 18], {1}, pids_are_ours=False)
    assert others is None
    assert "2 processes use this GPU" in sentence


def test_throttle_reasons_in_words():
    assert name_throttle_reasons(0) == []
    assert name_throttle_reasons(1) == ["idle"]
    assert name_throttle_reasons(0x8 | 1 << 40) == [
        "hardware slowdown",
        "unknown (0x10000000000)",
    ]


# --- integrated power -----------------------------------------------------------------------------


@given(
    st.lists(st.floats(1e-3, LONGEST_GAP_S * 0.99), min_size=1, max_size=50),
    st.floats(0, 700),
    st.floats(-50, 50),
)
def test_the_integral_of_a_straight_line_is_exact(gaps_s, power_w, slope_w_per_s):
    integral, now_s = PowerIntegral(tick_s=0.1), 0.0
    integral.add(0.0, power_w)
    for gap_s in gaps_s:
        now_s += gap_s
        assert integral.add(now_s, power_w + slope_w_per_s * now_s) is None
    exact_j = power_w * now_s + slope_w_per_s * now_s**2 / 2
    assert integral.energy_j == pytest.approx(exact_j, rel=1e-9, abs=1e-9)


def test_repeated_values_count_and_publishing_follows_the_tick():
    """Constant 100 W for 10 s is 1000 J, although the sensor never shows a change."""
    integral = PowerIntegral(tick_s=0.1)
    published = set()
    for sample in range(501):
        integral.add(sample * 0.02, 100.0)
        published.add(integral.published_j)
    assert integral.energy_j == pytest.approx(1000.0)
    assert len(published) == 101


def test_a_gap_is_not_filled_in():
    integral = PowerIntegral(tick_s=0.1)
    integral.add(0.0, 100.0)
    assert integral.add(5.0, 100.0) == 5.0
    assert integral.energy_j == 0.0
    integral.add(5.5, 100.0)
    assert integral.energy_j == 50.0
    assert integral.gaps == 1


def test_the_sensors_update_period_is_seen():
    integral = PowerIntegral(tick_s=0.1)
    for sample in range(400):
        integral.add(sample * 0.02, 100.0 + (sample // 5) % 7)
    assert integral.sensor_update_s == pytest.approx(0.1)


def test_a_card_without_energy_counter_is_metered_by_its_power(cards, open_nvml):
    origin_ns = time.monotonic_ns()
    cards.cards = [
        Card(name=V100, has_energy=False, architecture=5, power_w=200.0, origin_ns=origin_ns)
    ]
    cards.write()
    meter = open_nvml()
    (counter,) = meter.counters
    assert counter.domain.provenance == "measured"
    assert "integrated" in counter.domain.source
    assert "field 186" in counter.domain.source
    assert counter.domain.tick_s == 0.1
    assert meter.cross_checks() == ()
    reading_j, deadline_s = counter.read_j(), time.monotonic() + 30
    while reading_j < 60.0 and time.monotonic() < deadline_s:
        time.sleep(5e-3)
        before_j, reading_j = reading_j, counter.read_j()
        assert reading_j >= before_j
    assert 60.0 <= reading_j <= 200.0 * (time.monotonic_ns() - origin_ns) / 1e9


@pytest.mark.parametrize(
    ("card", "source", "tick_s"),
    [
        (Card(has_energy=False, has_instant=False, architecture=4), "GetPowerUsage,", 0.1),
        (Card(has_energy=False, has_instant=False, architecture=8), "a mean over 1 s", 1.0),
    ],
)
def test_the_power_sensors_averaging_is_stated(cards, open_nvml, card, source, tick_s):
    cards.cards = [card]
    cards.write()
    (counter,) = open_nvml().counters
    assert source in counter.domain.source
    assert counter.domain.tick_s == tick_s


def test_a_card_without_any_sensor_is_refused(cards, open_nvml):
    cards.cards = [Card(has_energy=False, has_instant=False, has_usage=False)]
    cards.write()
    with pytest.raises(MeterUnavailable, match="no energy counter and no power sensor"):
        open_nvml()


def test_power_that_cannot_be_read_makes_the_counter_say_so(cards, open_nvml):
    cards.cards = [Card(has_energy=False)]
    cards.write()
    counter = open_nvml().counters[0]
    counter.read_j()
    cards.cards[0].error = pynvml.NVML_ERROR_GPU_IS_LOST
    cards.write()

    def read_for_a_while():
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            counter.read_j()
            time.sleep(5e-3)

    with pytest.raises(CounterError, match="gpu:0: its power cannot be read: GPU is lost"):
        read_for_a_while()


def test_a_stretch_without_samples_is_reported_once():
    class Trouble(Exception):
        pass

    now_s = 0.0
    sampler = PowerSampler([lambda: 100.0], [0.1], Trouble, 1000.0, lambda: now_s)
    try:
        now_s = 7.0
        sampler.sample()
        energy_j, why = sampler.read_published_j(0)
        assert energy_j == 0.0
        assert why == "its power was not sampled for 7.0 s"
        now_s = 7.5
        sampler.sample()
        assert sampler.read_published_j(0) == (50.0, None)
    finally:
        sampler.close()


@pytest.mark.parametrize(("counter_scale", "agrees"), [(1.0, True), (0.5, False)])
def test_counter_and_power_are_held_against_each_other(
    cards, open_nvml, monkeypatch, counter_scale, agrees
):
    monkeypatch.setattr("jaxenergy.meters.nvml._SHORTEST_CHECK_S", 0.5)
    monkeypatch.setattr("jaxenergy.meters.nvml.TICK_S", 0.01)
    # A fast counter and sensor, so that half a second says what five would on a real card.
    cards.cards = [
        Card(
            power_w=300.0,
            counter_scale=counter_scale,
            tick_ns=1_000_000,
            sensor_tick_ns=0,
        )
    ]
    cards.write()
    meter = open_nvml()
    assert meter.cross_checks() == ()
    time.sleep(0.6)
    (check,) = meter.cross_checks()
    assert check.domain == "gpu:0"
    assert check.agrees == agrees
    assert math.isclose(check.energy_j / check.other_energy_j, counter_scale, rel_tol=0.1)
    assert meter.cross_checks() == ()
