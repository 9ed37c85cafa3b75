"""`measure`, `compare` and `Ledger` against work whose joules are known, on the real clock."""

import dataclasses
import math
import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_work import FinishedWork
from hypothesis import given
from hypothesis import strategies as st

import jaxenergy
from jaxenergy.energy.rounds import Ratio, Rounds, measure_rounds, ratio_of_means
from jaxenergy.errors import UsageError
from jaxenergy.meters import Meters, open_meters
from jaxenergy.meters.simulated import Faults, PowerCurve, SimulatedCounter, SimulatedMeter

# Long enough for a measurement that ends when it knows; 5 % of it is idle, before and after.
AMPLE_S = 4.0


@jax.jit
def long_work(x):
    """Milliseconds of work for one element of output, dispatched at once."""
    return jax.lax.fori_loop(0, 300, lambda _, y: jnp.sin(y @ y), x).sum()


@pytest.fixture
def matrix():
    x = jax.random.normal(jax.random.key(0), (64, 64))
    long_work(x).block_until_ready()
    return x


def steady_power(power_w: float = 50.0, **options) -> Meters:
    options = {"tick_s": 1e-3, **options}
    return Meters((SimulatedMeter([SimulatedCounter(PowerCurve([0.0], [power_w]), **options)]),))


# The fence


def test_no_work_leaks_out_of_a_measurement(matrix):
    counter = FinishedWork()
    measured = jaxenergy.measure(
        lambda x: counter.watch(long_work(x)), matrix, meters=counter.meters(), max_seconds=AMPLE_S
    )
    assert measured.per_call_j == pytest.approx(1.0, rel=1e-9)
    assert measured.ci95_j == pytest.approx((1.0, 1.0), rel=1e-9)
    assert measured.idle_w == pytest.approx(0.0, abs=1e-6)


def test_no_work_leaks_where_calls_feed_each_other(matrix):
    counter = FinishedWork()
    measured = jaxenergy.measure(
        lambda x: counter.watch(long_work(x)),
        matrix,
        # What is handed on is ready at once; what is waited for must be more than that.
        carry=lambda out, args: args,
        meters=counter.meters(),
        max_seconds=AMPLE_S,
    )
    assert measured.per_call_j == pytest.approx(1.0, rel=1e-9)


def test_the_ledger_of_a_loop_fences_on_jax_arrays(matrix):
    counter = FinishedWork()
    with jaxenergy.Ledger(counter.meters()) as ledger:
        for _ in range(3):
            with ledger.phase("train", updates=2) as phase:
                outputs = [counter.watch(long_work(matrix)) for _ in range(2)]
                phase.fence(outputs)
    windows = [line for line in ledger.lines if line["phase"] == "train"]
    assert [line["energy_j"]["work"] for line in windows] == pytest.approx([2.0] * 3)


def test_without_its_fence_the_same_work_does_leak(matrix):
    """Shows that the work is asynchronous, and that the tests above can fail."""
    counter = FinishedWork()
    with jaxenergy.Ledger(counter.meters(), fence=lambda state: None) as ledger:
        with ledger.phase("train", updates=8) as phase:
            outputs = [counter.watch(long_work(matrix)) for _ in range(8)]
            phase.fence(outputs)
        jax.block_until_ready(outputs)
    (window,) = (line for line in ledger.lines if line["phase"] == "train")
    assert window["energy_j"]["work"] < 8.0


def test_the_ledger_opens_and_closes_meters_of_its_own(monkeypatch):
    opened = steady_power()
    closed = []
    monkeypatch.setattr(opened.meters[0], "close", lambda: closed.append(True))
    monkeypatch.setattr(jaxenergy.measuring, "open_meters", lambda spec, devices: opened)
    with jaxenergy.Ledger() as ledger, ledger.phase("train", updates=1) as phase:
        phase.fence(jnp.ones(3))
        assert not closed
    assert closed == [True]


# Known energy and power


def test_joules_of_constant_power_are_power_times_time(matrix):
    measured = jaxenergy.measure(
        long_work, matrix, meters=steady_power(50.0), target_relative_ci=0.5, max_seconds=AMPLE_S
    )
    assert measured.per_call_j is not None
    assert measured.seconds_per_call is not None
    assert measured.net_per_call_j is not None
    assert measured.net_ci95_j is not None
    assert measured.power_w == pytest.approx(50.0, rel=0.03)
    assert measured.idle_w == pytest.approx(50.0, rel=0.03)
    assert measured.per_call_j == pytest.approx(50.0 * measured.seconds_per_call, rel=0.03)
    # As much power at idle as at work: nothing is left, and its interval says so.
    low, high = measured.net_ci95_j
    assert low < measured.net_per_call_j < high
    assert abs(measured.net_per_call_j) < 0.05 * measured.per_call_j
    assert measured.provenance == "simulated"
    assert measured.domains == ("simulated:0",)


def test_it_says_that_the_target_was_reached(matrix):
    counter = FinishedWork()
    measured = jaxenergy.measure(
        lambda x: counter.watch(long_work(x)), matrix, meters=counter.meters(), max_seconds=AMPLE_S
    )
    # Looked at after ten windows, and once more after half as many again.
    assert measured.windows == 15
    assert measured.reached_target
    assert "time was up" not in str(measured)
    assert str(measured).startswith("1.000 J per call, 95 % 1.000 J to 1.000 J")
    assert "SIMULATED" in str(measured)


def test_it_says_that_the_time_was_up(matrix):
    counter = FinishedWork()
    draw_j = random.Random(0).random  # whatever noise a machine has, scatter there is
    measured = jaxenergy.measure(
        lambda x: counter.watch(long_work(x), draw_j()),
        matrix,
        meters=counter.meters(),
        target_relative_ci=1e-9,
        max_seconds=1.5,
    )
    assert measured.per_call_j is not None
    assert not measured.reached_target
    assert "time was up" in str(measured)


def test_no_time_at_all_gives_reasons_and_no_numbers(matrix):
    measured = jaxenergy.measure(long_work, matrix, meters=steady_power(), max_seconds=1e-6)
    for name in ("per_call_j", "net_per_call_j", "seconds_per_call", "first_call_j"):
        assert getattr(measured, name) is None
        assert "time was up" in measured.why[name]
    assert measured.windows == measured.calls == 0
    assert not measured.reached_target
    assert "n/a" in str(measured)


def test_without_meters_there_is_time_and_a_reason(matrix):
    measured = jaxenergy.measure(long_work, matrix, meters=open_meters("none"), max_seconds=AMPLE_S)
    for name in ("per_call_j", "idle_w", "net_per_call_j", "first_call_j"):
        assert getattr(measured, name) is None
        assert "no domain was counted" in measured.why[name]
    assert measured.ci95_j is None
    assert measured.power_w is None
    assert measured.seconds_per_call is not None
    assert measured.seconds_per_call > 0
    assert measured.provenance == "none"
    assert not measured.reached_target
    assert "no domain was counted" in str(measured)


def test_a_counter_that_cannot_be_read_gives_its_reason(matrix):
    meters = steady_power(faults=Faults(drop_outs=((0.0, math.inf),)))
    measured = jaxenergy.measure(long_work, matrix, meters=meters, max_seconds=1.0)
    assert measured.per_call_j is None
    assert "switched off" in measured.why["per_call_j"]


def test_joules_of_a_first_call_say_that_they_were_simulated_where_they_are_all_there_is(matrix):
    counter = FinishedWork()
    measured = jaxenergy.measure(
        lambda x: counter.watch(long_work(x)), matrix, meters=counter.meters(), max_seconds=AMPLE_S
    )
    alone = dataclasses.replace(
        measured, per_call_j=None, ci95_j=None, why={"per_call_j": "too few"}
    )
    assert "first call 1.00 J" in str(alone)
    assert str(alone).endswith("SIMULATED, work")
    assert "SIMULATED" not in str(dataclasses.replace(alone, first_call_j=None))


# Which functions, which arguments


def test_donation_without_carry_is_refused_before_anything_runs(matrix):
    donating = jax.jit(lambda x: x + 1, donate_argnums=0)
    counter = FinishedWork()
    for fn in (donating, donating.lower(matrix).compile()):
        with pytest.raises(ValueError, match="carry") as refused:
            jaxenergy.measure(fn, matrix, meters=counter.meters())
        assert isinstance(refused.value, UsageError)
    assert counter.reads == 0
    assert not matrix.is_deleted()


def test_donation_within_a_plain_function_is_refused_when_it_has_happened(matrix):
    donating = jax.jit(lambda x: x + 1, donate_argnums=0)
    with pytest.raises(ValueError, match="carry"):
        jaxenergy.measure(lambda x: donating(x), matrix, meters=open_meters("none"))
    assert not matrix.is_deleted()


def test_carry_feeds_donated_arguments(matrix):
    counter = FinishedWork()
    donating = jax.jit(lambda x, s: (jnp.tanh(x) * s, long_work(x)), donate_argnums=0)

    def step(x, scale):
        x, total = donating(x, scale)
        counter.watch(total)
        return x

    measured = jaxenergy.measure(
        step,
        matrix,
        1.01,
        carry=lambda out, args: (out, *args[1:]),
        meters=counter.meters(),
        max_seconds=AMPLE_S,
    )
    assert measured.per_call_j == pytest.approx(1.0, rel=1e-9)
    assert not matrix.is_deleted()


def test_carry_gives_each_call_the_output_of_the_one_before():
    seen = []

    def count(n, label):
        assert label == "label"
        seen.append(n)
        return n + 1

    measured = jaxenergy.measure(
        count,
        0,
        "label",
        carry=lambda out, args: (out, *args[1:]),
        meters=open_meters("none"),
        max_seconds=AMPLE_S,
    )
    assert seen == list(range(len(seen)))
    assert 0 < measured.calls < len(seen)


def test_a_plain_function_is_called_as_it_is_and_jit_compiles_it():
    bodies = []

    def double(x):
        bodies.append(type(x))
        return 2 * x

    plain = jaxenergy.measure(
        double, np.ones(3, np.float32), meters=open_meters("none"), max_seconds=AMPLE_S
    )
    assert len(bodies) > plain.calls > 0
    assert set(bodies) == {np.ndarray}
    bodies.clear()
    jitted = jaxenergy.measure(
        double, np.ones(3, np.float32), meters=open_meters("none"), max_seconds=AMPLE_S, jit=True
    )
    assert len(bodies) <= 2 < jitted.calls  # traced


def test_another_framework_needs_no_jax():
    code = """
import sys
import jaxenergy
from jaxenergy.meters import Meters
from jaxenergy.meters.simulated import PowerCurve, SimulatedCounter, SimulatedMeter

counter = SimulatedCounter(PowerCurve([0.0], [9.0]), tick_s=0.001)
outputs = []
measured = jaxenergy.measure(
    sorted,
    [3, 1, 2],
    fence=outputs.append,
    meters=Meters((SimulatedMeter([counter]),)),
    target_relative_ci=0.9,
    max_seconds=4.0,
)
assert measured.reached_target, measured
assert [1, 2, 3] in outputs
assert not {"jax", "torch"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"target_relative_ci": 0.0}, "above 0, below 1"),
        ({"target_relative_ci": 1.0}, "above 0, below 1"),
        ({"max_seconds": 0.0}, "above 0"),
        ({"max_seconds": math.inf}, "finite"),
        ({"max_seconds": math.nan}, "finite"),
    ],
)
def test_numbers_out_of_range_are_refused(options, word):
    with pytest.raises(UsageError, match=word):
        jaxenergy.measure(lambda: None, meters=open_meters("none"), **options)


# compare


def test_a_comparison_finds_the_known_ratio(matrix):
    counter = FinishedWork()
    compared = jaxenergy.compare(
        {
            "one": lambda x: counter.watch(long_work(x), 1.0),
            "three": lambda x: counter.watch(long_work(x), 3.0),
        },
        matrix,
        meters=counter.meters(),
        max_seconds=AMPLE_S,
    )
    assert compared.baseline == "one"
    assert compared.measurements["one"].per_call_j == pytest.approx(1.0, rel=1e-9)
    assert compared.measurements["three"].per_call_j == pytest.approx(3.0, rel=1e-9)
    energy, duration = compared.energy_ratios["three"], compared.time_ratios["three"]
    assert energy is not None
    assert duration is not None
    assert energy.value == pytest.approx(3.0, rel=1e-9)
    assert energy.ci95 == pytest.approx((3.0, 3.0), rel=1e-9)
    low, high = duration.ci95
    assert low < duration.value < high
    assert "three / one: energy 3 (95 % 3 to 3); time" in str(compared)


def test_a_comparison_without_meters_compares_time():
    compared = jaxenergy.compare(
        {"one": lambda: sum(range(300)), "two": lambda: sum(range(600))},
        meters=open_meters("none"),  # so it ends after 15 rounds, however long they take
        max_seconds=60.0,
    )
    assert compared.energy_ratios == {"two": None}
    assert compared.time_ratios["two"] is not None
    assert "n/a" in str(compared)


def test_one_function_is_no_comparison():
    with pytest.raises(UsageError, match="two functions or more"):
        jaxenergy.compare({"alone": lambda: None})


@given(
    below=st.lists(st.floats(1.0, 2.0), min_size=5, max_size=40),
    ratio=st.floats(-10, 10),
)
def test_a_ratio_is_free_of_what_the_cases_of_a_round_share(below, ratio):
    rounds = [{"base": value, "case": ratio * value} for value in below]
    found = ratio_of_means(rounds, "case", "base")
    assert isinstance(found, Ratio)
    assert found.value == pytest.approx(ratio, rel=1e-9, abs=1e-12)
    assert found.ci95 == pytest.approx((ratio, ratio), rel=1e-9, abs=1e-9)


def test_a_ratio_needs_rounds_and_a_positive_baseline():
    one = {"base": 1.0, "case": 1.0}
    for rounds, word in (
        ([], "time was up"),
        ([one] * 4, "too few"),
        ([one] * 5 + [{"base": 0.0, "case": 1.0}], "positive"),
        ([one] * 4 + [{"base": 30.0, "case": 1.0}], "nothing bounds"),
    ):
        assert word in str(ratio_of_means(rounds, "case", "base"))


def made_up_rounds(seconds_and_joules, slowed=()) -> Rounds:
    """Rounds of the cases `base` and `case`, whose windows take what is said.

    Args:
        seconds_and_joules: of each window, by turns; one call each.
        slowed: the numbers of those that were slowed down by heat.
    """
    meters = steady_power(tick_s=0.0)  # whose joules are told where they flow
    (domain,) = meters.counted_domains
    lines, at_ns = [], 0
    for number, (seconds, joules) in enumerate(seconds_and_joules):
        begin_ns, at_ns = at_ns, at_ns + round(1e9 * seconds)
        line = {"phase": "train", "updates": 1, "steady": True, "fenced": True, "why": {}}
        line |= {"start_ns": begin_ns, "end_ns": at_ns}
        line |= {"energy_j": {domain: joules}, "uncertainty_j": {domain: 0.0}}
        reasons = ["software thermal slowdown"] if number in slowed else []
        line["conditions"] = {domain: {"throttle_reasons": reasons}}
        lines.append(line)
    return Rounds(("base", "case"), meters, lines, ["base", "case"] * (len(lines) // 2))


def test_a_ratio_is_of_the_rounds_whose_windows_count_in_the_means():
    windows = [(1.0, 10.0), (2.0, 30.0)] * 8
    assert made_up_rounds(windows).energy_ratio("case", "base") == Ratio(3.0, (3.0, 3.0))
    windows[4], windows[9] = (5.0, 40.0), (7.0, 99.0)  # of rounds 2 and 4
    measured = made_up_rounds(windows, slowed=(4, 9))
    assert measured.energy_ratio("case", "base") == Ratio(3.0, (3.0, 3.0))
    assert measured.time_ratio("case", "base") == Ratio(2.0, (2.0, 2.0))


def test_without_a_mean_of_joules_there_is_no_ratio_of_them_and_all_windows_tell_of_time():
    windows = [(1.0, 10.0), (2.0, 30.0)] * 6
    measured = made_up_rounds(windows, slowed=(1, 3))
    assert "4 steady windows" in str(measured.energy_ratio("case", "base"))
    assert measured.time_ratio("case", "base") == Ratio(2.0, (2.0, 2.0))


# Rounds


def rounds_of(names, enough=lambda rounds: True, seed=0):
    """Measures cases that do nothing for a microsecond a call."""
    cases = {name: lambda calls: time.sleep(calls * 1e-6) for name in names}
    return measure_rounds(
        cases, open_meters("none"), lambda state: None, enough, time.monotonic() + 30.0, seed
    )


def test_each_round_has_every_case_once_in_an_order_drawn_from_the_seed():
    names = ("a", "b")
    order, again, other = (rounds_of(names, seed=seed).order for seed in (1, 1, 2))
    rounds = [tuple(order[start : start + 2]) for start in range(0, len(order), 2)]
    assert len(rounds) == 15
    assert {tuple(sorted(one)) for one in rounds} == {names}
    assert len(set(rounds)) > 1
    assert order == again != other


def test_it_ends_when_two_looks_running_find_enough():
    answers, looks = iter([True, False, True, True]), []

    def enough(rounds):
        looks.append(len(rounds.windows_of("a")))
        return next(answers)

    assert len(rounds_of(("a",), enough).order) == 35
    assert looks == [10, 15, 23, 35]
