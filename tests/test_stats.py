"""Intervals: closed forms where there are, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from jaxenergy import stats

FLOATS = st.floats(-1e3, 1e3)


def test_with_all_frequencies_the_error_is_the_ordinary_one():
    values = [3.0, 5.0, 4.0, 8.0]  # four values have three frequencies, the least that are used
    estimate = stats.long_run_mean(values)
    assert estimate.value == pytest.approx(5.0)
    assert estimate.standard_error == pytest.approx(scipy_stats.sem(values))
    assert estimate.freedom == pytest.approx(3)
    expected = scipy_stats.t.interval(0.95, 3, loc=5.0, scale=scipy_stats.sem(values))
    assert estimate.interval() == pytest.approx(expected)


@given(st.lists(st.floats(1.0, 9.0), min_size=2, max_size=60), st.floats(0.1, 10.0))
def test_the_mean_is_sum_over_sum_and_scales(amounts, scale):
    counts = [1 + index % 3 for index in range(len(amounts))]
    estimate = stats.long_run_mean(amounts, counts)
    assert estimate.value == pytest.approx(sum(amounts) / sum(counts))
    scaled = stats.long_run_mean([scale * amount for amount in amounts], counts)
    assert scaled.value == pytest.approx(scale * estimate.value)
    assert scaled.standard_error == pytest.approx(scale * estimate.standard_error, abs=1e-9)


@given(st.integers(2, 50), st.floats(0.1, 5.0))
def test_a_known_variance_is_the_whole_error_of_a_constant_series(n, variance):
    estimate = stats.long_run_mean([2.0] * n, known_variance=variance)
    assert estimate.standard_error == pytest.approx(math.sqrt(variance) / n)
    assert estimate.half_width() == pytest.approx(1.959964 * math.sqrt(variance) / n, rel=1e-5)


def test_an_error_shared_by_neighbours_cancels():
    rng = np.random.default_rng(0)
    edges = rng.standard_normal(401)
    shared = stats.long_run_mean(100 + np.diff(edges))
    own = stats.long_run_mean(100 + math.sqrt(2) * rng.standard_normal(400))
    assert shared.standard_error < own.standard_error / 5


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("n", [20, 60, 200])
def test_intervals_hold_the_mean_of_an_autocorrelated_series(keep, n):
    rng = np.random.default_rng(n)
    noise = rng.standard_normal((600, n + 50))
    series = np.zeros_like(noise)
    for index in range(1, n + 50):
        series[:, index] = keep * series[:, index - 1] + noise[:, index]
    held = 0
    for values in series[:, 50:]:
        low, high = stats.long_run_mean(values).interval()
        held += low <= 0 <= high
    assert 0.91 <= held / 600 <= 0.98  # 95 % +- 3 binomial standard errors, and a bit for n = 20


def test_taking_autocorrelated_values_as_independent_would_not_do():
    rng = np.random.default_rng(3)
    smooth = np.convolve(rng.standard_normal(3000), np.ones(20) / 20, mode="valid")
    assert stats.long_run_mean(smooth).standard_error > 3 * scipy_stats.sem(smooth)


@pytest.mark.parametrize("amounts", [[], [1.0]])
def test_too_few_windows_are_refused(amounts):
    with pytest.raises(ValueError, match="two windows"):
        stats.long_run_mean(amounts)


def test_counts_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="positive counts"):
        stats.long_run_mean([1.0, 2.0], [1, 0])


def test_the_difference_is_that_of_welch():
    a, b = [5.1, 4.9, 5.3, 5.0], [4.1, 4.7, 4.4, 3.9]
    found = stats.difference(stats.long_run_mean(a), stats.long_run_mean(b))
    expected = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.interval() == pytest.approx((expected.low, expected.high))


@given(FLOATS, FLOATS)
def test_exact_numbers_have_an_exact_difference(a, b):
    found = stats.difference(stats.Estimate(a, 0.0), stats.Estimate(b, 0.0))
    assert found.interval() == (a - b, a - b)


@pytest.mark.parametrize("n", [5, 20])
def test_the_interval_of_a_ratio_holds_it_and_misses_it_on_both_sides_alike(n):
    """At n = 5 a symmetric interval lies too low in 3.4 % of cases and too high in 1.8 %."""
    rng = np.random.default_rng(n)
    too_high = too_low = 0
    for _ in range(6000):
        above, below = rng.normal(1.0, 0.25, (2, n))
        _, low, high = stats.long_run_ratio(2 * above, below)
        too_high += low > 2.0
        too_low += high < 2.0
    assert 0.018 <= too_high / 6000 <= 0.032
    assert 0.018 <= too_low / 6000 <= 0.032


def test_the_ends_of_a_ratio_are_where_its_series_is_just_told_apart_from_zero():
    rng = np.random.default_rng(2)
    above, below = rng.normal(3.0, 0.5, 30), rng.normal(2.0, 0.6, 30)
    ratio, low, high = stats.long_run_ratio(above, below)
    assert ratio == pytest.approx(above.sum() / below.sum())
    for end in (low, high):
        series = stats.long_run_mean(above - end * below)
        assert abs(series.value) == pytest.approx(series.half_width())


@given(st.lists(st.floats(1.0, 2.0), min_size=5, max_size=40), st.floats(-10, 10))
def test_what_a_pair_shares_drops_out_of_a_ratio(below, ratio):
    assert stats.long_run_ratio(ratio * np.array(below), below) == pytest.approx(
        (ratio, ratio, ratio), rel=1e-9, abs=1e-9
    )


def test_a_ratio_to_what_may_be_zero_has_no_bounds():
    below = [1.0, 30.0, 1.0, 1.0, 2.0]
    ratio, low, high = stats.long_run_ratio([14.0] * 5, below)
    assert (ratio, low, high) == (pytest.approx(2.0), -math.inf, math.inf)


def test_an_exact_denominator_scales_the_interval():
    above = [3.1, 2.9, 3.3, 3.0, 2.7]
    _, low, high = stats.long_run_ratio(above, [2.0] * 5)
    assert (low, high) == pytest.approx(stats.long_run_mean(np.array(above) / 2).interval())


@pytest.mark.parametrize("below", [[1.0], [1.0, -1.0]])
def test_a_ratio_of_one_pair_or_to_nothing_is_refused(below):
    with pytest.raises(ValueError, match="two pairs"):
        stats.long_run_ratio(below, below)


def test_one_group_alone_has_students_interval():
    values = [3.0, 5.0, 4.0, 8.0]
    found = stats.group_mean(values)
    expected = scipy_stats.t.interval(0.95, 3, loc=5.0, scale=scipy_stats.sem(values))
    assert found.interval() == pytest.approx(expected)
    assert stats.group_mean([7.0]) == stats.Estimate(7.0, 0.0, 0)


def test_a_second_group_tells_of_scatter_and_not_of_the_mean():
    rng = np.random.default_rng(6)
    held, widths = 0, []
    for _ in range(2000):
        found = stats.group_mean(list(rng.normal(7.0, 0.5, 2)), list(rng.normal(9.0, 0.5, 3)))
        low, high = found.interval()
        held += low <= 7.0 <= high
        widths.append(high - low)
    assert 0.935 <= held / 2000 <= 0.965
    # Two values alone, with one degree of freedom, would make it three times as wide.
    assert np.mean(widths) == pytest.approx(2 * 3.18 * 0.92 * 0.5 / math.sqrt(2), rel=0.05)
