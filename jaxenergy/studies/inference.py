"""The tests of the studies: small samples in blocks, equivalence, order, fit.

Where scipy has a test it is called; here are the arrangements around it. A study judges few seeds,
so every test is exact or conservative at few, and each is held by a thousand repetitions on data of
known truth (`tests/test_studies_truth.py`).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from jaxenergy.stats import Estimate, student_quantile

LEVEL = 0.05

# Two costs that differ by less are the same for anybody who chooses a set-up.
MARGIN = math.log(1.03)


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of independent blocks with its error.

    Args:
        values: one per block [n], n >= 2.

    Returns:
        The mean, with n - 1 degrees of freedom.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n), n - 1)


def p_above(estimate: Estimate, bound: float) -> float:
    """One-sided p-value of the hypothesis that the truth is at most `bound` (Student's t)."""
    difference = estimate.value - bound
    if not math.isfinite(difference):
        return math.nan
    # Numbers that agree to rounding (counted FLOPs) have no error, and no difference either.
    rounding = 1e-9 * max(1.0, abs(estimate.value), abs(bound))
    if estimate.standard_error <= rounding:
        return 0.0 if difference > rounding else 1.0
    t = difference / estimate.standard_error
    if math.isinf(estimate.freedom):
        return float(special.ndtr(-t))
    return float(special.stdtr(estimate.freedom, -t))


def p_below(estimate: Estimate, bound: float) -> float:
    """One-sided p-value of the hypothesis that the truth is at least `bound`."""
    mirrored = Estimate(-estimate.value, estimate.standard_error, estimate.freedom)
    return p_above(mirrored, -bound)


def p_effect_above(estimate: Estimate, bound: float) -> float:
    """As `p_above` at the level of a two-sided test: below 5 % the 95 % interval lies above."""
    return min(1.0, 2 * p_above(estimate, bound))


def p_effect_below(estimate: Estimate, bound: float) -> float:
    """As `p_below` at the level of a two-sided test: below 5 % the 95 % interval lies below."""
    return min(1.0, 2 * p_below(estimate, bound))


def p_within(estimate: Estimate, low: float, high: float) -> float:
    """P-value of the hypothesis that the truth is outside: two one-sided tests (TOST).

    References:
        D. J. Schuirmann, A comparison of the two one-sided tests procedure and the power approach,
        J. Pharmacokinetics and Biopharmaceutics 15, 657 (1987).
    """
    return max(p_above(estimate, low), p_below(estimate, high))


def p_outside(estimate: Estimate, low: float, high: float) -> float:
    """P-value of the hypothesis that the truth is within (two sides, Bonferroni)."""
    return min(1.0, 2 * min(p_below(estimate, low), p_above(estimate, high)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted such that the chance of any false rejection stays at the level.

    References:
        S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian J.
        Statistics 6, 65 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def slopes(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The slope of each block's line.

    Args:
        x: where the cells are [cells].
        values: [blocks, cells].

    Returns:
        One slope per block [blocks].
    """
    centred = x - x.mean()
    return values @ centred / (centred @ centred)


def p_trend(values: np.ndarray, *, rising: bool = True) -> float:
    """P-value of Page's test that cells rise (or fall) in the order given.

    Args:
        values: [blocks, cells], at least 3 cells.
        rising: the order claimed.

    Returns:
        The p-value; ties count as half an order each way.
    """
    if np.ptp(np.round(values, 12), axis=1).max() == 0:
        return 1.0
    ranks = stats.rankdata(np.round(values, 12), axis=1)
    order = np.arange(1, values.shape[1] + 1)
    result = stats.page_trend_test(
        ranks, ranked=True, predicted_ranks=order if rising else order[::-1]
    )
    return float(result.pvalue)


def p_differ(values: np.ndarray) -> float:
    """P-value of the hypothesis that all cells are the same: analysis of variance in blocks.

    Args:
        values: [blocks, cells].

    Returns:
        The p-value of F with (cells - 1) and (blocks - 1)(cells - 1) degrees of freedom.
    """
    n, cells = values.shape
    centred = values - values.mean(axis=1, keepdims=True)
    between = n * float(np.sum(centred.mean(axis=0) ** 2))
    within = float(np.sum((centred - centred.mean(axis=0)) ** 2))
    if within <= 1e-20:
        return 0.0 if between > 1e-16 else 1.0
    freedom = (n - 1) * (cells - 1)
    return float(special.fdtrc(cells - 1, freedom, between / (cells - 1) / (within / freedom)))


def p_all_within(values: np.ndarray, margin: float) -> float:
    """P-value of the hypothesis that some two cells differ by the margin or more.

    Every pair has to be shown to be equivalent, so that the largest p-value decides, and none has
    to be corrected (an intersection-union test).

    Args:
        values: [blocks, cells].
        margin: of a difference.
    """
    n, cells = values.shape
    first, second = np.triu_indices(cells, 1)
    pairs = values[:, first] - values[:, second]
    error = np.maximum(pairs.std(axis=0, ddof=1) / math.sqrt(n), 1e-12)
    nearest = margin - np.abs(pairs.mean(axis=0))  # the nearer margin decides of the two
    return float(special.stdtr(n - 1, -nearest / error).max())


def others(values: np.ndarray) -> np.ndarray:
    """For each block the means of the cells over all other blocks [blocks, cells].

    What is chosen by them (the best cell, say) and looked at in the block itself has not been
    chosen for its luck there.
    """
    n = len(values)
    return (values.sum(axis=0) - values) / (n - 1)


def chosen(values: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """The value of each block's chosen cell.

    Args:
        values: [blocks, cells].
        choice: a cell's number per block [blocks].

    Returns:
        [blocks].
    """
    return values[np.arange(len(values)), choice]


def spread(values: np.ndarray) -> Estimate:
    """The dearest cell less the cheapest, each chosen by the other blocks.

    Args:
        values: [blocks, cells].
    """
    other = others(values)
    return mean_of(chosen(values, other.argmax(axis=1)) - chosen(values, other.argmin(axis=1)))


def rises_at_ends(values: np.ndarray) -> tuple[Estimate, Estimate]:
    """By how much the first and the last cell lie above the best inner one.

    The inner cell is chosen for each block by the other blocks. Where a curve is U-shaped both are
    above zero; where it only falls or only rises, one is not, whatever its curvature.

    Args:
        values: [blocks, cells], at least 3 cells in order.

    Returns:
        The estimates for the first and for the last cell.

    References:
        U. Simonsohn, Two lines: a valid alternative to the invalid testing of U-shaped
        relationships with quadratic regressions, Advances in Methods and Practices in
        Psychological Science 1, 538 (2018).
    """
    inner = 1 + others(values)[:, 1:-1].argmin(axis=1)
    best = chosen(values, inner)
    return mean_of(values[:, 0] - best), mean_of(values[:, -1] - best)


def line(x: np.ndarray, y: np.ndarray) -> Estimate:
    """The slope of a straight line, set-ups being the units.

    Args:
        x: [n], n >= 3.
        y: [n].
    """
    centred = x - x.mean()
    power = float(centred @ centred)
    slope = float(centred @ y) / power
    residual = y - y.mean() - slope * centred
    freedom = len(x) - 2
    return Estimate(slope, math.sqrt(float(residual @ residual) / freedom / power), freedom)


def lack_of_fit(x: np.ndarray, values: np.ndarray) -> tuple[float, Estimate, Estimate]:
    """Whether a straight line with intercept fits, against the scatter of repetitions.

    Costs scatter in proportion to their size, so residuals are weighted by the fitted line. The
    blocks' own levels (a slow machine that day) are taken out of the scatter.

    Args:
        x: lengths [cells], at least 3.
        values: costs [blocks, cells].

    Returns:
        The p-value of F with (cells - 2) and (blocks - 1)(cells - 1) degrees of freedom; the
        intercept; the slope.
    """
    n, cells = values.shape
    mean = values.mean(axis=0)
    design = np.stack([np.ones(cells), x], axis=1)
    weight = 1 / mean
    for _ in range(2):
        fitted = design @ _weighted_fit(design, weight) @ mean
        weight = 1 / np.maximum(fitted, 1e-12 * mean.max())
    fit = _weighted_fit(design, weight)
    fitted = design @ fit @ mean
    relative = values * weight
    scatter = relative - relative.mean(axis=0)
    scatter -= scatter.mean(axis=1, keepdims=True)
    freedom = (n - 1) * (cells - 1)
    pure = float(np.sum(scatter**2)) / freedom
    misfit = n * float(np.sum(((mean - fitted) * weight) ** 2)) / (cells - 2)
    if pure <= 1e-20:
        p = 0.0 if misfit > 1e-14 else 1.0
    else:
        p = float(special.fdtrc(cells - 2, freedom, misfit / pure))
    # The coefficients' error from one line per block, whose scatter holds the blocks' levels.
    each = values @ fit.T
    return p, mean_of(each[:, 0]), mean_of(each[:, 1])


def _weighted_fit(design: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The matrix [coefficients, cells] that takes values to their weighted least squares fit."""
    return np.linalg.pinv(design * weight[:, None]) * weight


def pseudo_values(values: np.ndarray, statistic) -> np.ndarray:
    """One number per block, whose mean is a smooth statistic of means and whose error is its own.

    The error is that of the jackknife; so what is done with the blocks of a mean can be done with
    these, as in `ratio_bounds`.

    Args:
        values: [blocks, ...].
        statistic: takes means [n, ...] and gives numbers [n].

    Returns:
        [blocks].
    """
    n = len(values)
    left_out = statistic((values.sum(axis=0) - values) / (n - 1))
    return statistic(values.mean(axis=0)[None]) + (n - 1) * (left_out.mean() - left_out)


def jackknife(values: np.ndarray, statistic) -> Estimate:
    """A smooth statistic of means over blocks, with its jackknife error; see `pseudo_values`."""
    return mean_of(pseudo_values(values, statistic))


def ratio_bounds(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """The bounds of the ratio of two positive means, blocks in pairs (Fieller).

    A ratio r is in the set where the mean of numerator - r denominator is not shown to be off zero
    at 5 %. Where the denominator's mean is not shown to be above zero, the set has no upper bound;
    where it is shown to be below zero, or no positive ratio fits, there is no ratio.

    Args:
        numerator: one per block [n].
        denominator: one per block [n].

    Returns:
        The bounds: finite; (low, inf); or (inf, inf) where there is none.

    References:
        E. C. Fieller, Some problems in interval estimation, J. Royal Statistical Society B 16, 175
        (1954); V. H. Franz, Ratios: a short guide to confidence limits and proper use
        (arXiv 0710.2024).
    """
    n = len(numerator)
    t2 = student_quantile(0.975, n - 1) ** 2
    (var_n, cov), (_, var_d) = np.cov(numerator, denominator) / n
    mean_n, mean_d = float(numerator.mean()), float(denominator.mean())
    # (mean_n - r mean_d)^2 <= t^2 (var_n - 2 r cov + r^2 var_d): a r^2 - 2 b r + c <= 0.
    a = mean_d**2 - t2 * var_d
    b = mean_n * mean_d - t2 * cov
    c = mean_n**2 - t2 * var_n
    root = math.sqrt(max(b**2 - a * c, 0.0))
    if a > 0:  # the denominator is off zero
        low, high = (b - root) / a, (b + root) / a
        return (max(0.0, low), high) if mean_d > 0 and high >= 0 else (math.inf, math.inf)
    if c <= 0:  # the numerator may be zero as well: every ratio fits
        return 0.0, math.inf
    # The set is what lies outside of the two roots; of it, the part of positive ratios.
    low = c / (b + root) if b + root > 0 else math.inf
    return low, math.inf


def log_rank(
    cost_a: np.ndarray, reached_a: np.ndarray, cost_b: np.ndarray, reached_b: np.ndarray
) -> float:
    """P-value of the log-rank test that two set-ups need the same, unreached runs censored."""
    a = stats.CensoredData(uncensored=cost_a[reached_a], right=cost_a[~reached_a])
    b = stats.CensoredData(uncensored=cost_b[reached_b], right=cost_b[~reached_b])
    with np.errstate(invalid="ignore", divide="ignore"):  # all at one time: no number
        return float(stats.logrank(a, b).pvalue)


def ratio_of(estimate: Estimate) -> tuple[float, tuple[float, float]]:
    """A difference of logarithms as a ratio with its 95 % interval."""
    low, high = estimate.interval()
    return _exp(estimate.value), (_exp(low), _exp(high))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
