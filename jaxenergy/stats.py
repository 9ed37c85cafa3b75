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
    frequencies = min(n - 1, max(MIN_FREQUENCIES, round(FREQUENCIES * n ** (2 / 3))))
    angles = np.pi * np.outer(np.arange(1, frequencies + 1), np.arange(n) + 0.5) / n
    coefficients = np.sqrt(2 / n) * np.cos(angles) @ residual
    seen_variance = n * float(np.mean(coefficients**2))
    variance = seen_variance + known_variance
    freedom = math.inf
    if seen_variance > 0:
        freedom = frequencies * (variance / seen_variance) ** 2
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


def ratio_interval(
    first: Estimate, second: Estimate, level: float = 0.95
) -> tuple[float, float, float]:
    """`first / second`, of independent estimates, with Fieller's interval.

    Args:
        first: the numerator.
        second: the denominator; its interval must not hold zero.
        level: of confidence.

    Returns:
        The ratio and the ends of its interval; infinite ends where the denominator could be zero.

    References:
        E. C. Fieller, Some problems in interval estimation, J. Royal Statistical Society B 16,
        175 (1954).
    """
    ratio = first.value / second.value
    _, freedom = _combine(first.standard_error, ratio * second.standard_error, first, second)
    t = student_quantile(0.5 + level / 2, freedom)
    g = (t * second.standard_error / second.value) ** 2
    if g >= 1:
        return ratio, -math.inf, math.inf
    spread = (t / abs(second.value)) * math.sqrt(
        (1 - g) * first.standard_error**2 + ratio**2 * second.standard_error**2
    )
    return ratio, (ratio - spread) / (1 - g), (ratio + spread) / (1 - g)


def _combine(a: float, b: float, first: Estimate, second: Estimate) -> tuple[float, float]:
    """Error of a sum of independent parts with errors a and b, and its degrees of freedom."""
    variance = a**2 + b**2
    if variance == 0:
        return 0.0, math.inf
    doubt = a**4 / first.freedom + b**4 / second.freedom
    return math.sqrt(variance), (variance**2 / doubt if doubt > 0 else math.inf)
