"""Timelines: energy at an instant inside a tick, against scripted power that is known exactly."""

import importlib.util
import itertools
import pathlib
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxenergy.energy.timeline import (
    FastTimeline,
    SlowTimeline,
    TickPredictor,
    make_timeline,
)
from jaxenergy.meters.simulated import Faults, PowerCurve, SimulatedCounter, VirtualClock
from jaxenergy.units import NS_PER_S

_path = pathlib.Path(__file__).parents[1] / "benchmarks" / "attribution.py"
_spec = importlib.util.spec_from_file_location("attribution", _path)
assert _spec is not None
assert _spec.loader is not None
attribution = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(attribution)


@pytest.mark.parametrize("case", ["constant 400 W", "10 ms square wave", "steps 80 -> 400 W"])
@pytest.mark.parametrize(("length_s", "bound"), [(1.0, 0.005), (0.2, 0.02)])
def test_a_phase_cut_anywhere_on_a_tick_of_100_ms_is_right(case, length_s, bound):
    error, _, other = attribution.many_phase_errors(case, length_s, runs=8)
    assert attribution.rms(error) <= bound
    standard_error = error.std() / np.sqrt(len(error))
    assert abs(error.mean()) <= bound / 4 + 2 * standard_error
    assert attribution.rms(other) > 2 * bound, "two readings do not do"


@pytest.mark.parametrize(
    "case",
    [
        "37 ms swing, steps",
        "410 ms swing, steps",
        "37 ms swing throughout",
        "410 ms swing throughout",
    ],
)
@pytest.mark.parametrize("length_s", [1.0, 0.2])
def test_where_no_method_can_place_an_edge_the_uncertainty_says_so(case, length_s):
    error, stated, _ = attribution.many_phase_errors(case, length_s, runs=8)
    # At least as often as stated: 68 % and 95 %, less 2.5 binomial standard errors of 160.
    assert np.mean(abs(error) < stated) >= 0.68 - 0.09
    assert np.mean(abs(error) < 1.96 * stated) >= 0.95 - 0.045


@pytest.mark.parametrize("length_s", [1.0, 0.2])
def test_swings_of_periods_that_nothing_was_chosen_by_are_covered_as_often_as_stated(length_s):
    parts = [
        attribution.swing_errors(period_s, length_s, runs=3)[:2]
        for period_s in attribution.OTHER_PERIODS_S
    ]
    held = np.mean([np.mean(abs(error) < 1.96 * stated) for error, stated in parts])
    assert 0.925 <= held <= 0.985, "1440 phases; neither too narrow nor too wide"
    too_wide = [attribution.rms(stated) / attribution.rms(error) for error, stated in parts]
    assert np.median(too_wide) < 1.5
    assert max(too_wide) < 2.5


@pytest.mark.parametrize("length_s", [1.0, 0.2])
def test_swings_that_keep_step_with_the_ticks_show_at_the_cuts(length_s):
    parts = [
        attribution.swing_errors(period_s, length_s, runs=3)[:2]
        for period_s in attribution.KEEPING_STEP_S
    ]
    held = np.mean([np.mean(abs(error) < 1.96 * stated) for error, stated in parts])
    assert held >= 0.90, "360 phases, of which the first few of a run have no cuts to learn from"


@pytest.mark.parametrize("tick_s", [0.01, 0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("stated", [0.5, 1.0, 2.0])
def test_the_period_is_learned_whatever_was_stated(tick_s, stated):
    clock = VirtualClock()
    counter = SimulatedCounter(
        PowerCurve([0.0], [100.0]),
        tick_s=tick_s,
        jitter=0.01,
        stated_tick_s=max(0.01, tick_s * stated),
        clock_ns=clock,
    )
    timeline = SlowTimeline(counter, clock)
    clock.run_until(6 * NS_PER_S, timeline)
    assert timeline.predictor.period_ns == pytest.approx(tick_s * NS_PER_S, rel=0.03)


@pytest.mark.parametrize("tick_s", [0.01, 0.02, 0.1])
@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_looking_costs_at_most_one_percent_of_a_core(tick_s, jitter):
    clock = VirtualClock()
    counter = SimulatedCounter(
        PowerCurve([0.0], [100.0]), tick_s=tick_s, jitter=jitter, clock_ns=clock
    )
    timeline = SlowTimeline(counter, clock)
    clock.run_until(2 * NS_PER_S, timeline)
    looks, read = 0, counter.read_j

    def count() -> float:
        nonlocal looks
        looks += 1
        return read()

    counter.read_j = count
    clock.run_until(12 * NS_PER_S, timeline)
    assert looks * timeline.predictor.cost_s / 10 < 0.01


def test_a_steady_counter_is_bracketed_finely(monkeypatch):
    # At the assumed cost of a look; what a look takes on this machine now is not virtual.
    monkeypatch.setattr(TickPredictor, "spent", lambda self, duration_s: None)
    clock = VirtualClock()
    counter = SimulatedCounter(PowerCurve([0.0], [100.0]), tick_s=0.1, clock_ns=clock)
    timeline = SlowTimeline(counter, clock)
    clock.run_until(20 * NS_PER_S, timeline)
    assert max(tick.width_ns for tick in timeline._ticks) < 2e6


def test_a_frozen_counter_is_not_polled_harder():
    clock = VirtualClock()
    counter = SimulatedCounter(
        PowerCurve([0.0], [100.0]), faults=Faults(freezes=((3.0, 99.0),)), clock_ns=clock
    )
    timeline = SlowTimeline(counter, clock)
    clock.run_until(5 * NS_PER_S, timeline)
    polls = 0
    while clock() < 15 * NS_PER_S:
        clock.run_until(timeline.next_poll_ns(), timeline)
        polls += 1
    assert polls * timeline.predictor.cost_s / 10 < 0.01


def test_the_cost_of_a_look_is_learned():
    predictor = TickPredictor(0.1)
    for _ in range(200):
        predictor.spent(20e-6)
    assert predictor.cost_s == pytest.approx(20e-6, rel=0.01)


def test_marks_settle_within_three_ticks():
    clock = VirtualClock()
    counter = SimulatedCounter(PowerCurve([0.0], [100.0]), tick_s=0.1, clock_ns=clock)
    timeline = SlowTimeline(counter, clock)
    clock.run_until(2 * NS_PER_S, timeline)
    for step in range(20):
        mark = timeline.mark(clock(), step, "train")
        asked_ns = clock()
        while not mark.settled:
            clock.run_until(timeline.next_poll_ns(), timeline)
        assert clock() - asked_ns <= 0.31 * NS_PER_S
        assert mark.energy_j == pytest.approx(
            counter.true_energy_j(0, asked_ns) - counter.true_energy_j(0, 0), abs=100 * 0.11
        )


@pytest.mark.parametrize("late_s", [0.012, 0.017, 0.033])
def test_on_a_machine_so_busy_that_every_look_is_late_energy_is_told_all_the_same(late_s):
    clock = VirtualClock()
    counter = SimulatedCounter(PowerCurve([0.0], [100.0]), tick_s=0.02, clock_ns=clock)
    timeline = SlowTimeline(counter, clock)
    clock.run_until(NS_PER_S, timeline)
    begin = timeline.mark(clock(), 0, "train")
    while not begin.settled and clock() < 2 * NS_PER_S:
        clock.sleep_s(late_s)
        timeline.poll()
    clock.run_until(2 * NS_PER_S, timeline)
    end = timeline.mark(clock(), 1, "train")
    while not end.settled and clock() < 3 * NS_PER_S:
        clock.sleep_s(late_s)
        timeline.poll()
    assert begin.settled
    assert end.settled
    assert end.why is None
    assert end.energy_j - begin.energy_j == pytest.approx(100.0, abs=100 * 2 * (0.02 + late_s))


@settings(max_examples=60, deadline=None)
@given(
    moments=st.lists(st.floats(0.001, 0.25), min_size=2, max_size=30),
    levels=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    powers=st.lists(st.floats(5.0, 500.0), min_size=4, max_size=4),
    seed=st.integers(0, 20),
)
@example(  # one mark is placed with fewer ticks than the next, and as better known
    moments=[0.1640625, 0.25, 0.171875, 0.234375, 0.046875],
    levels=[0, 0, 0, 0, 3],
    powers=[5.0, 5.0, 5.0, 53.0],
    seed=9,
)
def test_the_curve_never_falls_and_stays_within_the_ticks(moments, levels, powers, seed):
    """Many marks in one tick, phases shorter than a tick: whatever happens, no negative energy."""
    clock = VirtualClock()
    curve = PowerCurve([0.0], [50.0])
    counter = SimulatedCounter(curve, tick_s=0.1, jitter=0.03, seed=seed, clock_ns=clock)
    timeline = SlowTimeline(counter, clock)
    clock.run_until(NS_PER_S, timeline)
    marks = []
    for wait_s, level in zip(moments, levels, strict=False):
        clock.run_until(clock() + round(wait_s * NS_PER_S), timeline)
        curve.add(clock() / NS_PER_S, powers[level])
        marks.append(timeline.mark(clock(), level, "train"))
    clock.run_until(clock() + NS_PER_S, timeline)
    for begin, end in itertools.pairwise(marks):
        assert begin.settled
        assert end.settled
        told = timeline.between(begin, end)
        assert not isinstance(told, str)
        energy_j, error_j = told
        true_j = counter.true_energy_j(begin.time_ns, end.time_ns)
        assert energy_j >= 0
        # Two ticks of the highest power bound what any placing inside ticks can do wrong.
        assert abs(energy_j - true_j) <= 2 * 0.12 * 500
        assert 0 < error_j < 2 * 0.15 * 500


@settings(max_examples=60, deadline=None)
@given(
    waits=st.lists(st.floats(1e-5, 0.3), min_size=2, max_size=30),
    tick_s=st.sampled_from([0.0, 0.001, 0.005]),
    range_j=st.sampled_from([None, 300.0]),
)
def test_a_fast_counter_is_read_to_its_resolution(waits, tick_s, range_j):
    clock = VirtualClock()
    counter = SimulatedCounter(
        PowerCurve([0.0, 0.7], [90.0, 300.0], period_s=1.1),
        tick_s=tick_s,
        range_j=range_j,
        start_j=299.9,
        max_power_w=320.0,
        clock_ns=clock,
    )
    timeline = make_timeline(counter, clock)
    assert isinstance(timeline, FastTimeline)
    marks = [timeline.mark(clock(), 0, "train")]
    for wait_s in waits:
        clock.run_until(clock() + round(wait_s * NS_PER_S), timeline)
        marks.append(timeline.mark(clock(), 0, "train"))
    clock.run_until(clock() + NS_PER_S // 50, timeline)
    timeline.poll()
    told = [timeline.between(a, b) for a, b in itertools.pairwise(marks)]
    assert all(mark.settled for mark in marks)
    true_j = counter.true_energy_j(marks[0].time_ns, marks[-1].time_ns)
    energies = [part[0] for part in told if not isinstance(part, str)]
    assert len(energies) == len(told)
    assert sum(energies) == pytest.approx(true_j, abs=300 * tick_s + 2e-3)


def test_a_tick_of_the_real_clock_is_found():
    counter = SimulatedCounter(PowerCurve([0.0], [100.0]), tick_s=0.02)
    timeline = SlowTimeline(counter, time.perf_counter_ns)
    begin_ns = time.perf_counter_ns()
    end_ns = begin_ns + NS_PER_S // 4
    while time.perf_counter_ns() < end_ns:
        time.sleep(max(0.0, (timeline.next_poll_ns() - time.perf_counter_ns()) / NS_PER_S))
        timeline.poll()
    now_ns = time.perf_counter_ns()
    # The counter shows its last tick, at the beginning and at the end, up to 2 J behind each.
    assert timeline.total_j == pytest.approx(counter.true_energy_j(begin_ns, now_ns), abs=4.0)


def test_a_reading_that_is_no_number_is_a_fault():
    clock = VirtualClock()
    counter = SimulatedCounter(PowerCurve([0.0], [100.0]), tick_s=0.0, clock_ns=clock)
    timeline = FastTimeline(counter, clock)
    counter.read_j = lambda: float("nan")
    clock.sleep_s(0.1)
    assert timeline.mark(clock(), 0, "train").why == "simulated:0 read nan"
