"""From processes to answers: what each framework costs, their ratios, and where one overtakes.

A process is one observation. Windows inside it share its memory layout, its clocks and the luck of
its compilation, so they tell how well that process was measured and not how much processes differ;
they never count as n. Frameworks are compared within blocks (one process of each, in random order,
one after the other), so what changes slowly touches all of a block alike and drops out of
differences.

With x_b of one framework and y_b of another in block b, in n blocks:

* a mean has the interval of Student's t over processes;
* a ratio is geometric, exp(mean of log x_b - log y_b), with t of n - 1 degrees of freedom. So
  energy's ratio is time's times power's, exactly;
* a training of N updates takes A + N u. The fixed cost A is what a process spends before it is in
  its stride: start-up, compilation and first updates, less what those updates would have taken in
  steady state. Both are told by the processes that compiled anew;
* the crossover is where A_x + N u_x = A_y + N u_y. Its 95 % set holds every N >= 0 at which the
  difference is within t standard errors of zero (Fieller's method), so it may be empty (one is
  cheaper from the first update on), reach to infinity (updates cannot be told apart, or whichever
  is cheaper in the long run is unsure), or be in two parts.

References:
    E. C. Fieller, Some problems in interval estimation, J. Royal Statistical Society B 16, 175
    (1954).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from scipy import optimize, special

from jaxenergy.stats import Estimate

LEVEL = 0.95
MIN_PROCESSES = 2  # for an interval
_GRID = 1000  # points on each side


@dataclasses.dataclass(frozen=True)
class Observation:
    """What one process told of its framework, in one unit: joules or seconds.

    Attributes:
        update: one update in steady state.
        fixed: what a training takes beside its updates; None where the process did not compile
            anew.
    """

    update: float
    fixed: float | None = None


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval.

    Attributes:
        value: the number.
        ci95: the ends; None where there were too few processes.
        processes: how many told it.
    """

    value: float
    ci95: tuple[float, float] | None
    processes: int


@dataclasses.dataclass(frozen=True)
class Crossover:
    """Where one framework overtakes another, in updates of a training.

    Attributes:
        updates: where the estimates cross; None where they do not, at any N >= 0.
        set95: the intervals of N that may be the crossover, ascending; an end of None is infinity.
            None where there were too few processes.
        cheaper_first: which is cheaper in a training of no length; `first`, `second`, or None where
            that is not sure.
        cheaper_last: which is cheaper in the long run, likewise.
        processes: of how many blocks the fixed costs, and of how many the updates, were known.
    """

    updates: float | None
    set95: tuple[tuple[float, float | None], ...] | None
    cheaper_first: str | None
    cheaper_last: str | None
    processes: tuple[int, int]

    @property
    def verdict(self) -> str:
        """`crosses`, `never` or `undecided`."""
        if self.set95 is None:
            return "undecided"
        if not self.set95:
            return "never"
        bounded = len(self.set95) == 1 and self.set95[0][1] is not None
        sides = (self.cheaper_first, self.cheaper_last)
        return "crosses" if bounded and None not in sides and sides[0] != sides[1] else "undecided"


def mean(values: Sequence[float]) -> Interval:
    """The mean over processes."""
    value, error, freedom = _mean_and_error(values)
    return Interval(value, _ends(value, error, freedom), len(values))


def ratio(values: Sequence[tuple[float, float]]) -> Interval:
    """The geometric mean of ratios within blocks.

    Args:
        values: numerator and denominator of each block, all above zero.
    """
    value, error, freedom = _mean_and_error([math.log(x / y) for x, y in values])
    ends = _ends(value, error, freedom)
    ci95 = None if ends is None else (math.exp(ends[0]), math.exp(ends[1]))
    return Interval(math.exp(value), ci95, len(values))


@dataclasses.dataclass(frozen=True)
class _Line:
    """A cost A + N u of N updates, as estimated: means, their variances, how sure those are."""

    fixed: float
    update: float
    fixed_variance: float
    update_variance: float
    covariance: float
    fixed_freedom: int
    update_freedom: int
    blocks: tuple[int, int]

    def value(self, updates: Any) -> Any:
        return self.fixed + updates * self.update

    def variance(self, updates: Any) -> Any:
        return (
            self.fixed_variance + 2 * updates * self.covariance + updates**2 * self.update_variance
        )

    def freedom(self, updates: Any) -> Any:
        """Degrees of freedom: exact where all processes compiled anew, else Satterthwaite's."""
        if self.fixed_freedom == self.update_freedom:
            return np.broadcast_to(float(self.update_freedom), np.shape(updates))
        first, second = self.fixed_variance, np.square(updates) * self.update_variance
        doubt = first**2 / self.fixed_freedom + second**2 / self.update_freedom
        least = float(min(self.fixed_freedom, self.update_freedom))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(doubt > 0, (first + second) ** 2 / doubt, least)

    def excess(self, updates: Any) -> Any:
        """Above zero where the line is told apart from zero, below where it is not."""
        t = special.stdtrit(self.freedom(updates), 0.5 + LEVEL / 2)
        return np.square(self.value(updates)) - t**2 * self.variance(updates)


def whole_training(observations: Sequence[Observation], updates: int) -> Interval:
    """What a training of so many updates takes, compiled anew.

    Args:
        observations: of one framework, by process.
        updates: N.

    Returns:
        The cost.

    Raises:
        ValueError: no process compiled anew.
    """
    line = _line(observations)
    value = float(line.value(updates))
    enough = min(line.fixed_freedom, line.update_freedom) >= 1
    freedom = float(line.freedom(float(updates))) if enough else 0.0
    return Interval(value, _ends(value, math.sqrt(line.variance(updates)), freedom), line.blocks[0])


def crossover(blocks: Sequence[tuple[Observation, Observation]]) -> Crossover:
    """Where one framework overtakes another.

    Args:
        blocks: what the first and the second took, by block.

    Returns:
        The crossover.

    Raises:
        ValueError: no block has the fixed cost of both.
    """
    line = _line([_difference(first, second) for first, second in blocks])
    crosses = line.update != 0 and -line.fixed / line.update >= 0
    updates = -line.fixed / line.update if crosses else None
    if min(line.fixed_freedom, line.update_freedom) < 1:
        return Crossover(updates, None, None, None, line.blocks)
    last = _sign(line.update, math.sqrt(line.update_variance), line.update_freedom)
    first = _sign(line.fixed, math.sqrt(line.fixed_variance), line.fixed_freedom)
    return Crossover(updates, _undecided(line), first, last, line.blocks)


def _difference(first: Observation, second: Observation) -> Observation:
    fixed = None
    if first.fixed is not None and second.fixed is not None:
        fixed = first.fixed - second.fixed
    return Observation(first.update - second.update, fixed)


def _sign(value: float, error: float, freedom: int) -> str | None:
    ends = _ends(value, error, freedom)
    assert ends is not None
    if ends[0] > 0:
        return "second"
    return "first" if ends[1] < 0 else None


def _line(observations: Sequence[Observation]) -> _Line:
    """The cost A + N u over processes, of which some did not tell A.

    A and u of one process go together. Where all told A, this is the ordinary covariance of two
    means; else the correlation of those that did is taken for all.
    """
    update = np.array([one.update for one in observations])
    pairs = np.array([(one.fixed, one.update) for one in observations if one.fixed is not None])
    if not len(pairs):
        raise ValueError("no process told what a training takes beside its updates")
    fixed_deviation = float(np.std(pairs[:, 0], ddof=1)) if len(pairs) > 1 else 0.0
    update_deviation = float(np.std(update, ddof=1)) if len(update) > 1 else 0.0
    correlation = 0.0
    if fixed_deviation > 0 and np.std(pairs[:, 1]) > 0:
        correlation = float(np.corrcoef(pairs.T)[0, 1])
    return _Line(
        fixed=float(np.mean(pairs[:, 0])),
        update=float(np.mean(update)),
        fixed_variance=fixed_deviation**2 / len(pairs),
        update_variance=update_deviation**2 / len(update),
        covariance=correlation * fixed_deviation * update_deviation / len(update),
        fixed_freedom=len(pairs) - 1,
        update_freedom=len(update) - 1,
        blocks=(len(pairs), len(update)),
    )


def _undecided(line: _Line) -> tuple[tuple[float, float | None], ...]:
    """The intervals of N >= 0 at which the line is not told apart from zero."""
    scale = abs(line.fixed / line.update) if line.fixed and line.update else 1.0
    # N from 0 to infinity, evenly in the logarithm around the crossing of the estimates, which is
    # among them (10^0): however narrow the interval around it, it is seen.
    grid = np.concatenate([[0.0], scale * np.logspace(-9, 9, 2 * _GRID + 1)])
    inside = line.excess(grid) <= 0
    # Without scatter the crossing is all there is, and rounding may put it outside.
    is_lost = -line.fixed * line.update >= 0 and not inside[1 + _GRID]
    inside[1 + _GRID] |= is_lost
    intervals: list[tuple[float, float | None]] = []
    begin: float | None = 0.0 if inside[0] else None
    for position in np.flatnonzero(inside[1:] != inside[:-1]):
        if is_lost and position in (_GRID, 1 + _GRID):
            edge = scale
        else:
            edge = cast(float, optimize.brentq(line.excess, grid[position], grid[position + 1]))
        if begin is None:
            begin = edge
        else:
            intervals.append((begin, edge))
            begin = None
    if begin is not None:
        intervals.append((begin, None))
    return tuple(intervals)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float, int]:
    array = np.asarray(values, dtype=float)
    error = float(np.std(array, ddof=1) / math.sqrt(len(array))) if len(array) > 1 else 0.0
    return float(np.mean(array)), error, len(array) - 1


def _ends(value: float, error: float, freedom: float) -> tuple[float, float] | None:
    return Estimate(value, error, freedom).interval(LEVEL) if freedom >= 1 else None


def by_block(
    samples: Mapping[str, Mapping[int, Any]], first: str, second: str
) -> list[tuple[Any, Any]]:
    """What two frameworks gave in the blocks that have both, in the order of blocks.

    Args:
        samples: by framework, by block; None for what is not known.
        first: a framework.
        second: another.
    """
    both = sorted(samples[first].keys() & samples[second].keys())
    pairs = [(samples[first][block], samples[second][block]) for block in both]
    return [(x, y) for x, y in pairs if x is not None and y is not None]
