"""The simulated meter is the truth of other tests, so it is held to closed forms itself."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy.meters.base import CounterError
from jaxenergy.meters.simulated import (
    Faults,
    PowerCurve,
    SimulatedCounter,
    SimulatedMeter,
    VirtualClock,
)
from jaxenergy.units import NS_PER_S


def make(curve=None, **options):
    clock = VirtualClock(7 * NS_PER_S)
    curve = curve or PowerCurve([0.0], [100.0])
    return clock, SimulatedCounter(curve, clock_ns=clock, **options)


@given(
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=8),
    st.lists(st.floats(0.0, 500.0), min_size=9, max_size=9),
    st.floats(0.0, 30.0),
)
def test_the_integral_is_the_sum_of_power_times_time(lengths, powers, until):
    times = [0.0]
    for length in lengths:
        times.append(times[-1] + length)
    curve = PowerCurve(times, powers[: len(times)])
    expected, ends = 0.0, [*times[1:], float("inf")]
    for begin, end, power in zip(times, ends, powers, strict=False):
        expected += power * max(0.0, min(until, end) - begin)
    assert curve(until) == pytest.approx(expected, abs=1e-6)


@given(st.floats(0.0, 50.0))
def test_a_periodic_curve_has_its_mean_power(until):
    curve = PowerCurve([0.0, 0.2], [300.0, 100.0], period_s=0.4)
    assert curve(until) == pytest.approx(200.0 * until, abs=20.0)
    assert curve(until + 0.4) - curve(until) == pytest.approx(80.0)


def test_power_can_be_added_as_a_script_unfolds():
    curve = PowerCurve([0.0], [10.0])
    curve.add(2.0, 30.0)
    assert (curve(2.0), curve(3.0)) == (20.0, 50.0)


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_it_ticks_in_its_period_and_shows_the_energy_of_the_tick(jitter):
    clock, counter = make(tick_s=0.1, jitter=jitter)
    values, changes = [counter.read_j()], []
    for _ in range(10_000):
        clock.sleep_s(0.001)
        values.append(counter.read_j())
        if values[-1] != values[-2]:
            changes.append(clock() / NS_PER_S - 7)
            assert 0 <= 100 * changes[-1] - values[-1] <= 0.11  # a millisecond late at most
    assert len(changes) == pytest.approx(100, abs=1 if jitter == 0 else 6)
    assert values == sorted(values)


def test_a_counter_without_a_tick_is_always_current():
    clock, counter = make(tick_s=0.0, resolution_j=1e-6)
    clock.sleep_s(1.2345)
    assert counter.read_j() == pytest.approx(123.45, abs=1e-5)


def test_it_counts_in_steps_of_its_resolution():
    clock, counter = make(tick_s=0.0, resolution_j=0.25)
    clock.sleep_s(0.0333)
    assert counter.read_j() == 3.25


def test_it_wraps():
    clock, counter = make(tick_s=0.0, range_j=40.0, start_j=35.0)
    clock.sleep_s(1.0)
    assert counter.read_j() == pytest.approx(15.0, abs=1e-2)


def test_it_lags_and_averages():
    step = PowerCurve([0.0, 1.0], [0.0, 100.0])
    clock, late = make(step, tick_s=0.0, lag_s=0.5)
    clock.sleep_s(2.0)
    assert late.read_j() == pytest.approx(50.0, abs=1e-2)
    clock, averaging = make(step, tick_s=0.0, averaging_s=1.0)
    clock.sleep_s(3.0)
    assert averaging.read_j() == pytest.approx(150.0, abs=0.1), "half a window behind"


def test_its_faults_come_when_scripted():
    faults = Faults(drop_outs=((1.0, 2.0),), freezes=((3.0, 4.0),), resets=(5.0,))
    clock, counter = make(tick_s=0.0, start_j=7.0, faults=faults)

    def at(time_s: float) -> float:
        clock.now_ns = round((7 + time_s) * NS_PER_S)
        return counter.read_j()

    assert at(0.5) == pytest.approx(57.0, abs=2e-3)
    with pytest.raises(CounterError, match="switched off"):
        at(1.5)
    assert at(3.9) == at(3.0) == pytest.approx(307.0, abs=2e-3)
    assert at(4.5) == pytest.approx(457.0, abs=2e-3)
    assert at(5.25) == pytest.approx(25.0, abs=2e-3)


def test_the_same_seed_gives_the_same_counter():
    values = []
    for _ in range(2):
        clock, counter = make(jitter=0.1, seed=4)
        values.append([])
        for _ in range(100):
            clock.sleep_s(0.05)
            values[-1].append(counter.read_j())
    assert values[0] == values[1]


def test_the_default_meter_runs_on_the_real_clock():
    meter = SimulatedMeter()
    (counter,) = meter.counters
    assert isinstance(counter, SimulatedCounter)
    assert counter.domain.provenance == "simulated"
    assert counter.domain.tick_s == 0.1
    begin_ns = time.perf_counter_ns()
    first_j = counter.read_j()
    time.sleep(0.12)
    assert counter.read_j() > first_j
    assert counter.true_energy_j(begin_ns, begin_ns + NS_PER_S * 3 // 5) == pytest.approx(90.0)


def test_the_virtual_clock_lets_others_poll_on_the_way():
    class Polled:
        def __init__(self):
            self.at = []

        def next_poll_ns(self):
            return 10 * (len(self.at) + 1) if len(self.at) < 3 else None

        def poll(self):
            self.at.append(clock())

    clock, polled = VirtualClock(), Polled()
    clock.run_until(25, polled)
    assert (clock(), polled.at) == (25, [10, 20])
    clock.run_until(100, polled)
    assert (clock(), polled.at) == (100, [10, 20, 30])
