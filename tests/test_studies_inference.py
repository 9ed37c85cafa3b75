"""The arrangements around scipy's tests, against scipy and against their laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxenergy.studies import inference
from jaxenergy.studies.table import blocks, restrict

samples = st.lists(st.floats(-10, 10), min_size=3, max_size=12).filter(lambda v: np.ptp(v) > 1e-3)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(samples, st.floats(-3, 3))
def test_one_sided_tests_are_those_of_scipy(values, bound):
    estimate = inference.mean_of(np.array(values))
    for name, ours in (("greater", inference.p_above), ("less", inference.p_below)):
        _, theirs = stats.ttest_1samp(values, bound, alternative=name)
        assert ours(estimate, bound) == pytest.approx(theirs, abs=1e-9)


@given(samples, st.floats(0.1, 5))
def test_equivalence_needs_the_interval_inside(values, margin):
    estimate = inference.mean_of(np.array(values))
    low, high = estimate.interval(0.90)
    inside = -margin < low and high < margin
    assert (inference.p_within(estimate, -margin, margin) < 0.05) == inside


def test_equal_numbers_have_no_error_and_no_difference():
    same = inference.mean_of(np.full(4, 23.0))
    assert inference.p_above(same, 23.0) == 1.0
    assert inference.p_above(same, 22.0) == 0.0
    assert inference.p_within(same, 22.0, 24.0) == 0.0


@given(p_values)
def test_holm(values):
    adjusted = inference.holm(values)
    assert all(one >= raw for one, raw in zip(adjusted, values, strict=True))
    assert all(one <= 1 for one in adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(values) * min(values)))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_rejects_what_the_paper_rejects():
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_differences_of_cells_are_those_of_a_repeated_measures_anova():
    values = np.random.default_rng(0).normal(size=(5, 4)) + np.arange(4) * 0.5
    # Without blocks' levels and with one cell taken away the F of the model is the same as a t.
    pair = values[:, :2]
    t = stats.ttest_rel(pair[:, 0], pair[:, 1]).pvalue
    assert inference.p_differ(pair) == pytest.approx(t)
    assert inference.p_differ(values + 7 * np.arange(5)[:, None]) == pytest.approx(
        inference.p_differ(values)
    )


def test_pairs_are_equivalent_one_by_one():
    values = np.random.default_rng(1).normal(0, 0.01, size=(6, 4))
    margin = 0.03
    slow = max(
        inference.p_within(inference.mean_of(values[:, i] - values[:, j]), -margin, margin)
        for i in range(4)
        for j in range(i)
    )
    assert inference.p_all_within(values, margin) == pytest.approx(slow)


def test_a_line_is_that_of_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 9))
    ours = inference.line(x, y)
    slope, _, _, p, _ = stats.linregress(x, y)
    assert ours.value == pytest.approx(slope)
    assert inference.p_outside(ours, 0.0, 0.0) == pytest.approx(p)


def test_a_line_without_scatter_fits_and_a_curve_does_not():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    rng = np.random.default_rng(3)
    noise = 1 + rng.normal(0, 0.01, (5, 4))
    p, intercept, slope = inference.lack_of_fit(x, (3 + 2 * x) * noise)
    assert p > 0.01
    assert intercept.value == pytest.approx(3, abs=0.1)
    assert slope.value == pytest.approx(2, abs=0.1)
    assert inference.lack_of_fit(x, (3 + 0.5 * x**2) * noise)[0] < 1e-6


@given(
    st.lists(st.floats(0.1, 10), min_size=4, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_the_restricted_mean_is_the_area_under_kaplan_and_meiers_curve(costs, flags):
    cost, reached = np.array(costs), np.array(flags[: len(costs)])
    logs, horizon = restrict(cost, reached)
    if math.isinf(horizon):
        assert np.allclose(np.exp(logs), cost)
        return
    curve = stats.ecdf(stats.CensoredData(uncensored=cost[reached], right=cost[~reached])).sf
    ends = np.concatenate([[0.0], np.minimum(curve.quantiles, horizon), [horizon]])
    heights = np.concatenate([[1.0], curve.probabilities])
    area = float(np.sum(np.diff(ends) * heights))
    assert np.exp(logs).mean() == pytest.approx(area)


def test_runs_that_diverged_are_as_dear_as_the_dearest_that_reached_it():
    logs, horizon = restrict(np.array([1.0, 3.0, np.inf]), np.array([True, True, False]))
    assert horizon == 3.0
    assert np.exp(logs) == pytest.approx([1, 3, 3])


def test_a_seed_that_lacks_a_cell_is_left_out():
    found = blocks([0, 0, 1, 1, 2], ["b", "a", "a", "b", "a"], np.arange(5.0))
    assert found.seeds == [0, 1]
    assert found.cells == ["a", "b"]
    assert found.values.tolist() == [[1, 0], [2, 3]]


def test_the_best_of_the_others_is_not_chosen_for_its_luck():
    """Of cells that are all alike the dearest is no dearer, where it is looked at anew."""
    rng = np.random.default_rng(4)
    spread = [inference.spread(rng.normal(size=(5, 6))).value for _ in range(2000)]
    naive = [np.ptp(rng.normal(size=(5, 6)).mean(axis=0)) for _ in range(200)]
    assert abs(np.mean(spread)) < 0.1 < np.mean(naive)


def test_the_mean_and_error_of_pseudo_values_are_those_of_the_statistic():
    values = np.random.default_rng(5).normal(size=(6, 2))
    # Of a mean they are the values themselves.
    assert inference.pseudo_values(values, lambda m: m[:, 0]) == pytest.approx(values[:, 0])
    found = inference.mean_of(inference.pseudo_values(values, lambda m: m[:, 0] * m[:, 1]))
    left_out = [np.prod(np.delete(values, block, axis=0).mean(axis=0)) for block in range(6)]
    assert found.value == pytest.approx(np.prod(values.mean(axis=0)))
    assert found.standard_error == pytest.approx(math.sqrt(5) * np.std(left_out))


@pytest.mark.parametrize("seeds", [4, 10])
def test_bounds_of_a_ratio_of_products_hold_it_at_few_seeds(seeds):
    """As of costs per point on two halves of a front; at four seeds a bootstrap holds 80 %."""
    rng = np.random.default_rng(seeds)
    inside = 0
    for _ in range(1000):
        means = rng.normal([1.0, 3.0, 5.0, 4.0], [0.05, 0.15, 0.4, 0.4], (seeds, 4))
        over = inference.pseudo_values(means, lambda m: m[:, 1] * m[:, 2])
        under = inference.pseudo_values(means, lambda m: m[:, 0] * m[:, 3])
        low, high = inference.ratio_bounds(over, under)
        inside += low <= 3.75 <= high
    assert 925 <= inside <= 975


def test_a_ratio_below_zero_has_no_bounds():
    assert inference.ratio_bounds(np.full(4, -1.0), np.ones(4)) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("saving", "kind"), [(4.0, "bounded"), (0.1, "no upper bound"), (-4.0, "none")]
)
def test_bounds_of_a_ratio_are_where_its_line_is_off_zero(saving, kind):
    rng = np.random.default_rng(2)
    cost, saved = rng.normal(10, 1, 6), rng.normal(saving, 1, 6)
    low, high = inference.ratio_bounds(cost, saved)
    assert {"bounded": math.isfinite(high), "no upper bound": high == math.inf > low}.get(
        kind, low == math.inf
    )
    for bound in filter(math.isfinite, (low, high)):  # there the line is just off zero
        _, p = stats.ttest_1samp(cost - bound * saved, 0.0)
        assert p == pytest.approx(0.05, abs=1e-9)


def test_bounds_of_a_ratio_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(1000):
        level = np.exp(rng.normal(0, 0.3, 5))  # of the block, on both
        cost, saved = level * rng.normal(10, 1, 5), level * rng.normal(4, 2, 5)
        low, high = inference.ratio_bounds(cost, saved)
        inside += low <= 2.5 <= high
    assert 930 <= inside <= 970
