"""Intervals that hold: for the long-run mean of an autocorrelated series, and what follows from it.

Successive windows of a training are not independent: clocks, fans and data make power wander for
longer than a window. An interval that takes them as independent is too narrow. The one here rests
on the lowest frequencies of the series, which are what a long-run mean is uncertain by, and has the
Student quantile that belongs to it.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

# Of n values, FREQUENCIES n^(2/3) cosines serve for the long-run variance, at least
# MIN_FREQUENCIES. 0.41 minimises the error of coverage for moderate autocorrelation (Lazarus et al.
# 2018); 0.30 gives some width for coverage where it is strong, see `benchmarks/attribution.py`.
FREQUENCIES = 0.30
MIN_FREQUENCIES = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its error.

    Attributes:
        value: the number.
        standard_error: its standard error, in the same unit.
        freedom: degrees of freedom that the error itself rests on; infinite for a known one.
    """

    value: float
    standard_error: float
    freedom: float = math.inf

    def half_width(self, level: float = 0.95) -> float:
        """Half the width of the two-sided interval at a level of confidence."""
        return student_quantile(0.5 + level / 2, self.freedom) * self.standard_error

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval at a level of confidence."""
        half_width = self.half_width(level)
        return self.value - half_width, self.value + half_width


def student_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t; the normal one for infinite freedom."""
    if math.isinf(freedom):
        return float(special.ndtri(probability))
    return float(special.stdtrit(freedom, probability))


def long_run_mean(
    amounts: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray | None = None,
    known_variance: float = 0.0,
) -> Estimate:
    """The long-run mean per count of a stationary, autocorrelated series, with its error.

    The mean is the sum of amounts over the sum of counts. With residuals u_i = amount_i - mean
    count_i of n windows, the variance of their sum is n W, where W, the spectral density at
    frequency zero, is the mean square of the first v cosine coefficients

        c_j = sqrt(2/n) sum_i cos(pi j (i - 1/2) / n) u_i,   j = 1 … v,   v = max(3, 0.30 n^(2/3)),

    which are nearly independent, so that the mean has a t distribution with v degrees of freedom.
    With v = n - 1 this is the ordinary standard error. A drift adds to the low frequencies and
    widens the interval. An error that windows share between them (energy at an edge that one loses
    and the next gains) has no low frequencies and adds nothing.

    Args:
        amounts: joules of each window, in the order of time.
        counts: updates of each window; 1 each where it is not given.
        known_variance: variance of the sum of amounts that the series cannot show, e.g. of the
            outermost edges; added with infinite freedom (Welch, Satterthwaite).

    Returns:
        The mean per count.

    Raises:
        ValueError: fewer than two windows, or counts that are not positive.

    References:
        E. Lazarus, D. J. Lewis, J. H. Stock, M. W. Watson, HAR inference: recommendations for
        practice, J. Business & Economic Statistics 36, 541 (2018).
    """
    amount = np.asarray(amounts, dtype=float)
    count = np.ones_like(amount) if counts is None else np.asarray(counts, dtype=float)
    n = len(amount)
    if n < 2 or np.any(count <= 0):
        raise ValueError(f"two windows at least, of positive counts, are needed; got {n}: {count}")
    mean = float(amount.sum() / count.sum())
    residual = amount - mean * count
    coefficients = _low_frequencies(residual)
    seen_variance = n * float(np.mean(coefficients**2))
    variance = seen_variance + known_variance
    freedom = math.inf
    if seen_variance > 0:
        freedom = len(coefficients) * (variance / seen_variance) ** 2
    return Estimate(mean, math.sqrt(variance) / float(count.sum()), freedom)


def group_mean(values: Sequence[float], others: Sequence[float] = ()) -> Estimate:
    """The mean of independent values, whose scatter a second group helps to tell.

    Both groups scatter alike, each around a mean of its own: where they cannot be taken together,
    few values still need not tell alone how far such values lie apart.

    Args:
        values: whose mean is wanted, at least one.
        others: the second group.

    Returns:
        The mean, with a degree of freedom for each number beyond the first of its group; where
        there is none, the error is not known and given as 0.
    """
    groups = [np.asarray(group, dtype=float) for group in (values, others) if len(group)]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    error = math.sqrt(squares / freedom / len(values)) if freedom else 0.0
    return Estimate(float(groups[0].mean()), error, freedom)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """`first - second`, of independent estimates (Welch)."""
    error, freedom = _combine(first.standard_error, second.standard_error, first, second)
    return Estimate(first.value - second.value, error, freedom)


def long_run_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """The ratio of the long-run means of two series that go in pairs, with Fieller's interval.

    A ratio R is in it where the mean of numerator - R denominator is not told apart from zero by
    the long-run variance of that very series (`long_run_mean`): what a pair shares drops out. With
    R = ratio + d, sums B of the denominators, and cosine coefficients b_j of them and u_j of
    numerator - ratio denominator, these are the d with

        (d B)^2 <= t^2 (n / v) sum_j (u_j - d b_j)^2,

    which lie between the roots of a quadratic. Where the denominator is known to a few tenths only,
    the interval reaches further above the ratio than below.

    Args:
        numerators: one of each pair, in the order of time.
        denominators: the other, of a positive sum.
        level: of confidence.

    Returns:
        The ratio and the ends of its interval; infinite ends where the denominators' mean is not
        told apart from zero.

    Raises:
        ValueError: fewer than two pairs, or a sum of denominators that is not positive.

    References:
        E. C. Fieller, Some problems in interval estimation, J. Royal Statistical Society B 16,
        175 (1954).
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    n, total = len(below), float(below.sum())
    if n < 2 or total <= 0:
        raise ValueError(f"two pairs at least, of a positive sum, are needed; got {n}: {total}")
    ratio = float(above.sum()) / total
    b, u = _low_frequencies(below), _low_frequencies(above - ratio * below)
    scale = student_quantile(0.5 + level / 2, len(b)) ** 2 * n / len(b)
    power, shared, residual = scale * float(b @ b), scale * float(b @ u), scale * float(u @ u)
    if total**2 <= power:
        return ratio, -math.inf, math.inf
    spread = math.sqrt(shared**2 + (total**2 - power) * residual)
    low, high = ((end - shared) / (total**2 - power) for end in (-spread, spread))
    return ratio, ratio + low, ratio + high


def _low_frequencies(series: np.ndarray) -> np.ndarray:
    """The first v cosine coefficients of a series, which its long-run mean is uncertain by."""
    n = len(series)
    frequencies = min(n - 1, max(MIN_FREQUENCIES, round(FREQUENCIES * n ** (2 / 3))))
    angles = np.pi * np.outer(np.arange(1, frequencies + 1), np.arange(n) + 0.5) / n
    return np.sqrt(2 / n) * np.cos(angles) @ series


def _combine(a: float, b: float, first: Estimate, second: Estimate) -> tuple[float, float]:
    """Error of a sum of independent parts with errors a and b, and its degrees of freedom."""
    variance = a**2 + b**2
    if variance == 0:
        return 0.0, math.inf
    doubt = a**4 / first.freedom + b**4 / second.freedom
    return math.sqrt(variance), (variance**2 / doubt if doubt > 0 else math.inf)
