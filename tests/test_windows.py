"""From lines to answers: which windows count, and whether the intervals hold what they should."""

import importlib.util
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy.energy.windows import (
    IdlePower,
    estimate_per,
    first_steady,
    idle_power_w,
    mean_per,
    net_energy_j,
    relative_window_error,
    updates_per_window,
    without_lag,
)
from jaxenergy.meters.nvml import name_throttle_reasons
from jaxenergy.stats import Estimate
from jaxenergy.units import NS_PER_S

_path = pathlib.Path(__file__).parents[1] / "benchmarks" / "attribution.py"
_spec = importlib.util.spec_from_file_location("attribution", _path)
assert _spec is not None
assert _spec.loader is not None
attribution = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(attribution)

IDLE, THERMAL = 0x01, 0x40  # NVML's bits of throttle reasons


def make_lines(joules, *, phase="train", updates=10, error_j=0.1, length_s=1.0, **extra):
    """Contiguous lines of one domain."""
    lines, at_ns = [], 0
    for energy_j in joules:
        end_ns = at_ns + round(length_s * NS_PER_S)
        lines.append(
            {
                "phase": phase,
                "attempt": 0,
                "boot_id": "b",
                "start_ns": at_ns,
                "end_ns": end_ns,
                "updates": updates,
                "iterations": 2 * updates,
                "examples": 100 * updates,
                "steady": True,
                "fenced": True,
                "energy_j": {"d": energy_j},
                "uncertainty_j": {"d": error_j},
                "why": {} if energy_j is not None else {"d": "it broke"},
                **extra,
            }
        )
        at_ns = end_ns
    return lines


def test_a_mean_is_sum_over_sum_with_an_interval():
    found = mean_per(make_lines([9.0, 11.0, 10.0, 10.5, 9.5, 10.0]), "updates", ["d"])
    assert found["mean"] == pytest.approx(1.0)
    assert found["windows"] == 6
    low, high = found["ci95"]
    assert low < 1.0 < high
    assert high - 1.0 == pytest.approx(1.0 - low)


@pytest.mark.parametrize(("key", "per"), [("updates", 1), ("iterations", 2), ("examples", 100)])
def test_the_same_joules_per_any_count(key, per):
    lines = make_lines([9.0, 11.0, 10.0, 10.5, 9.5, 10.0])
    by_update, found = mean_per(lines, "updates", ["d"]), mean_per(lines, key, ["d"])
    assert found["mean"] == pytest.approx(by_update["mean"] / per)
    assert np.diff(found["ci95"]) == pytest.approx(np.diff(by_update["ci95"]) / per)


def test_inner_edges_of_contiguous_windows_cancel():
    lines = make_lines([10.0] * 25, error_j=1.0)
    found = estimate_per(lines, "updates", ["d"])
    assert not isinstance(found, str)
    # Two outer edges, each with half of a window's variance: 1 J of 250.
    assert found.energy_j.standard_error == pytest.approx(1.0 / 250)


@pytest.mark.parametrize("adjoining", [1, 2, 5, 20])
def test_edges_of_windows_apart_are_counted_once(adjoining):
    """Edges are all that windows err by, and after so many windows there is a gap."""
    n, rng = 20, np.random.default_rng(adjoining)
    runs = n // adjoining
    held, variances = [], []
    for _ in range(1000):
        edges = rng.standard_normal((runs, adjoining + 1))
        lines = make_lines((10 + np.diff(edges).ravel()).tolist(), error_j=math.sqrt(2))
        for number, line in enumerate(lines):
            line["start_ns"] += 5 * NS_PER_S * (number // adjoining)
            line["end_ns"] += 5 * NS_PER_S * (number // adjoining)
        found = estimate_per(lines, "updates", ["d"])
        assert not isinstance(found, str)
        low_j, high_j = found.energy_j.interval()
        held.append(low_j <= 1.0 <= high_j)
        variances.append((10 * n * found.energy_j.standard_error) ** 2)
    assert np.mean(held) > 0.93
    # Two edges of each run are in the sum. What is too much is of the ends of the whole series.
    assert 0.95 * 2 * runs < np.mean(variances) < 1.05 * (2 * runs + 9)


def test_joules_that_a_fast_counter_shows_late_are_put_back():
    """Turns of 300 W and 80 W for 50 ms, read half a tick of 2 ms late, with fences between."""
    lag_j = 0.001 * (300 - 80)
    told = [15.0, 0.0, 4.0 + lag_j, 0.0, 15.0 - lag_j, 0.0, 4.0 + lag_j]
    lines = make_lines(told)
    at_ns = 0
    for line in lines:
        line["start_ns"], at_ns = at_ns, at_ns + (50_000_000 if line["energy_j"]["d"] else 20_000)
        line["end_ns"] = at_ns
    found = [line["energy_j"]["d"] for line in without_lag(lines, {"d": 0.002})]
    assert found == pytest.approx([15.0, 0.0, 4.0, 0.0, 15.0, 0.0, 4.0], abs=1e-9)
    assert [line["energy_j"]["d"] for line in lines] == told  # what was written stays
    assert without_lag(lines, {}) == lines
    lines[2]["energy_j"]["d"] = None  # after it nothing is known of the power before
    found = [line["energy_j"]["d"] for line in without_lag(lines, {"d": 0.002})]
    assert found[2] is None
    assert found[4] == told[4]


@pytest.mark.parametrize("tick_s", [0.001, 0.1])
def test_intervals_of_windows_by_turns_hold_constant_power_beside_any(tick_s):
    held, _, _ = attribution.coverage(
        attribution.DETERMINISTIC["constant"], tick_s, 20, attribution.LOW_W
    )
    assert held >= 0.8  # 95 % of 20, less three standard errors


def test_domains_are_added():
    lines = make_lines([10.0, 10.5, 9.5, 10.0, 10.0])
    for line in lines:
        line["energy_j"]["e"], line["uncertainty_j"]["e"] = 5.0, 0.1
    assert mean_per(lines, "updates", ["d", "e"])["mean"] == pytest.approx(1.5)


def test_windows_said_to_be_unsteady_unfenced_or_null_are_left_out():
    lines = make_lines([10.0] * 10)
    lines[0].update(steady=False, energy_j={"d": 99.0})
    lines[1].update(fenced=False, energy_j={"d": 99.0})
    lines[2].update(energy_j={"d": None}, why={"d": "it broke"})
    found = mean_per(lines, "updates", ["d"])
    assert found["mean"] == pytest.approx(1.0)
    assert found["windows"] == 7


def test_a_part_without_updates_belongs_to_the_next_window():
    lines = make_lines([4.0, 6.0] * 6)
    for line in lines[::2]:  # a phase inside took the place of the rest for a while
        line["updates"] = 0
    found = mean_per(lines, "updates", ["d"])
    assert found["mean"] == pytest.approx(1.0)
    assert found["windows"] == 6


def add_readings(lines, slowed, reason=THERMAL):
    """Conditions with some lines: what is read is slowed down or not, or nothing is read (None)."""
    for line, one in zip(lines, slowed, strict=True):
        if one is not None:
            words = name_throttle_reasons(reason | IDLE if one else IDLE)
            line["conditions"] = {"d": {"throttle_reasons": words}}
    return lines


@pytest.mark.parametrize(
    "reason", [0x08, 0x20, 0x40, 0x80], ids=lambda reason: name_throttle_reasons(reason)[0]
)
@pytest.mark.parametrize(("slowed", "windows"), [(3, 9), (12, 12)])
def test_windows_slowed_down_by_heat_are_left_out_unless_that_is_how_it_is(reason, slowed, windows):
    first = 5 if slowed < 12 else 0
    read = [first <= number < first + slowed for number in range(12)]
    lines = add_readings(make_lines([10.0] * 12), read, reason)
    assert mean_per(lines, "updates", ["d"])["windows"] == windows


@pytest.mark.parametrize("reason", [0x001, 0x002, 0x004, 0x010, 0x100])
def test_other_reasons_of_a_lower_clock_are_no_slowdown(reason):
    lines = add_readings(make_lines([10.0] * 12), [True] * 3 + [False] * 9, reason)
    assert mean_per(lines, "updates", ["d"])["windows"] == 12


def test_a_reading_stands_for_the_windows_since_the_one_before():
    none = [None] * 3
    lines = make_lines([10.0] * 8 + [14.0] * 4 + [10.0] * 14, length_s=0.25)
    read = [*none, False, *none, False, *none, True, *none, False, *none, False, *none, False]
    found = mean_per(add_readings(lines, [*read, None, None]), "updates", ["d"])
    assert found["windows"] == 22
    assert found["mean"] == pytest.approx(1.0)


def test_a_device_that_is_slowed_down_at_every_reading_is_in_its_long_run():
    lines = make_lines([10.0, 10.5, 9.5, 10.0] * 6, length_s=0.25)
    read = [number % 4 == 3 or None for number in range(24)]
    assert mean_per(add_readings(lines, read), "updates", ["d"])["windows"] == 24


def test_a_reading_says_nothing_of_windows_before_a_gap():
    lines = make_lines([10.0] * 13)
    for line in lines[6:]:  # an evaluation, with readings of its own, lies between
        line["start_ns"] += 9 * NS_PER_S
        line["end_ns"] += 9 * NS_PER_S
    read = [False, False, False, False, False, None, None, True] + [False] * 5
    assert mean_per(add_readings(lines, read), "updates", ["d"])["windows"] == 11


def test_without_an_answer_there_is_a_reason():
    assert mean_per([], "updates", ["d"]) == {
        "mean": None,
        "why": "no steady window was finished",
    }
    assert "too few" in mean_per(make_lines([10.0] * 4), "updates", ["d"])["why"]
    assert mean_per(make_lines([None] * 9), "updates", ["d"])["why"] == "it broke"
    assert mean_per(make_lines([10.0] * 9), "updates", [])["why"] == "no domain was counted"


@given(st.floats(1e-4, 10.0), st.sampled_from([0.0, 0.001, 0.02, 0.1]), st.floats(0.002, 0.1))
def test_a_window_is_as_long_as_the_tick_needs_and_no_longer_than_allowed(
    seconds_per_update, tick_s, target
):
    updates = updates_per_window(seconds_per_update, tick_s, target, max_seconds=4.0)
    assert updates >= 1
    assert updates == 1 or (updates - 1) * seconds_per_update < 4.0
    longer = updates_per_window(seconds_per_update, tick_s, target / 2, max_seconds=4.0)
    assert longer >= updates


def test_a_window_on_a_gpus_tick_lasts_more_than_a_second():
    assert updates_per_window(0.005, 0.1) == pytest.approx(283, abs=1)
    assert updates_per_window(0.005, 0.001) == 9


# Steadiness


@pytest.mark.parametrize("n", [12, 40, 120])
def test_a_steady_series_is_left_whole(n):
    rng = np.random.default_rng(n)
    left_out = [first_steady(list(10 + rng.standard_normal(n))) for _ in range(300)]
    assert np.mean(np.array(left_out) > 0) < 0.08


@pytest.mark.parametrize("n", [20, 60, 200])
def test_a_start_that_drifts_is_left_out(n):
    rng = np.random.default_rng(n)
    start = 20 * np.exp(-np.arange(n) / (n / 20))
    for _ in range(50):
        cut = first_steady(list(10 + start + rng.standard_normal(n)))
        assert start[cut] < 2.0
        assert cut <= 3 * n // 4


def test_a_constant_series_is_left_whole():
    assert first_steady([3.0] * 50) == 0
    assert first_steady([1.0, 2.0]) == 0


# Coverage: some of the 2,000 repetitions of the benchmark, with the binomial tolerance for them


@pytest.mark.parametrize(("tick_s", "repetitions"), [(0.001, 150), (0.1, 50)])
@pytest.mark.parametrize("name", list(attribution.RANDOM))
def test_intervals_hold_the_long_run_mean_of_random_power(name, tick_s, repetitions):
    held, _, _ = attribution.coverage(attribution.RANDOM[name], tick_s, repetitions)
    # The 2,000 give 94 % or more; three binomial standard errors of so few below that.
    assert held >= 0.94 - 3 * math.sqrt(0.94 * 0.06 / repetitions)


@pytest.mark.parametrize("name", list(attribution.DETERMINISTIC))
def test_intervals_hold_the_mean_of_deterministic_power(name):
    held, _, _ = attribution.coverage(attribution.DETERMINISTIC[name], 0.1, 20)
    assert held >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", list(attribution.RANDOM))
def test_intervals_hold_the_long_run_mean_in_2000_runs(name):
    """At a tick of 1 ms; `benchmarks/attribution.py intervals` does those of 20 and 100 ms."""
    held, _, _ = attribution.coverage(attribution.RANDOM[name], 0.001, 2000)
    assert 0.93 <= held <= 0.97


# Idle power


def idle_before_and_after(before_w, after_w):
    lines = make_lines([before_w], phase="idle") + make_lines([1000.0] * 3, updates=5)
    lines += make_lines([after_w], phase="idle")
    for number, line in enumerate(lines):
        line["start_ns"], line["end_ns"] = number * NS_PER_S, (number + 1) * NS_PER_S
    return lines


def test_idle_power_before_and_after_with_drift():
    idle = idle_power_w(idle_before_and_after(50.0, 62.0), "d")
    assert isinstance(idle, IdlePower)
    assert idle.after is not None
    assert idle.drift is not None
    assert (idle.before.value, idle.after.value) == (50.0, 62.0)
    assert idle.drift.value == pytest.approx(12.0)
    assert idle.during.value == pytest.approx(56.0)
    assert idle.during.standard_error == pytest.approx(12 / math.sqrt(12), rel=1e-3)


def test_idle_power_measured_once_has_no_drift():
    idle = idle_power_w(make_lines([50.0], phase="idle"), "d")
    assert isinstance(idle, IdlePower)
    assert idle.after is None
    assert idle.drift is None
    assert idle.during.value == 50.0


def test_idle_power_in_windows_has_the_error_of_their_spread():
    idle = idle_power_w(make_lines([50.0, 52.0, 49.0, 51.0, 48.0], phase="idle"), "d")
    assert isinstance(idle, IdlePower)
    assert idle.before.value == 50.0
    assert 0.2 < idle.before.standard_error < 2.0


def test_idle_power_that_is_not_known_says_why():
    assert idle_power_w(make_lines([9.0]), "d") == "idle power was not measured"
    assert idle_power_w(make_lines([None], phase="idle"), "d") == "it broke"


def test_the_duration_is_that_of_the_windows_that_counted():
    found = estimate_per(make_lines([10.0] * 6, length_s=0.5), "updates", ["d"])
    assert not isinstance(found, str)
    assert found.duration_s == pytest.approx(0.05)


def test_net_energy_carries_the_uncertainty_of_idle():
    power = Estimate(50.0, 2.0, 9)
    net = net_energy_j(
        make_lines([100.0, 110.0], error_j=3.0), IdlePower(power, None, None, power), "d"
    )
    assert isinstance(net, Estimate)
    assert net.value == pytest.approx(110.0)
    assert net.standard_error == pytest.approx(math.hypot(2 * 2.0, 3.0))
    assert net.freedom == 9


def test_net_energy_of_an_unknown_is_unknown():
    power = Estimate(50.0, 2.0)
    assert net_energy_j(make_lines([None]), IdlePower(power, None, None, power), "d") == "it broke"


def test_the_error_of_a_typical_window():
    lines = make_lines([10.0, 10.0, 20.0], error_j=0.2)
    assert relative_window_error(lines, ["d"]) == pytest.approx(0.02)
    assert relative_window_error(make_lines([None]), ["d"]) is None


def test_windows_beside_a_save_are_left_out_and_the_reason_is_given():
    lines = make_lines([10.0] * 3) + make_lines([99.0] * 20, steady=False)
    found = mean_per(lines, "updates", ["d"])
    assert found["mean"] is None
    assert "3 steady windows" in found["why"]
    assert "checkpoint" in found["why"]
