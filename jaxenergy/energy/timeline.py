"""From a counter that ticks to an energy curve: how many joules had flowed at a given instant.

An energy counter is a staircase. A GPU's climbs about every 100 ms, so an instant inside a tick
cannot be read off it; a CPU's climbs about every millisecond, so it can. Hence two timelines:

* `FastTimeline` (tick under 10 ms) reads the counter at each mark. One reading ends a phase and
  begins the next, so lines add up to the counter's own difference to rounding.
* `SlowTimeline` learns when the counter ticks, by polling finely just before the next expected
  tick, and places a mark inside a tick afterwards, when the ticks around it are known.

**Placing a mark inside a tick.** The energy of the whole tick is known and has to be split. A
mark between two phases is where power steps (that is what a fence is), so the earlier part is
expected to have the power of the ticks that lie wholly in the earlier phase and the later part that
of the ticks wholly in the later one, and the parts must add up to the tick. With the unknown curve
E at the knots (ticks and marks) and an unknown power P of each phase this is one small
generalised least-squares problem:

    E(tick_i) = counter_i                       +- P sigma(bracket) and the counter's resolution
    E(k) = c(phase) + P(phase) t(k) + X(k)      X with variance v(phase), uncorrelated,

solved over the tick and its neighbours, up to the first without a step. A straight line through the
tick is what it gives where power does not step; several marks in one tick, or a phase shorter than
a tick, are the same problem with fewer equations than unknowns, and come out with the wide
uncertainty they have.

**How far energy departs from a line within a phase**, v, cannot be read off the ticks alone: a
swing of power that they do not resolve is seen as its alias, and one that keeps step with them not
at all. But cuts fall anywhere in a tick. Where power steps, the powers on both sides say what the
tick should hold, and what it holds instead shows the departures of both sides, unaliased. So ticks
tell how v compares between phases, and the cuts tell how large it is (`_Spread`). Energy only
grows, so no uncertainty is stated that is wider than the tick allows.

**Faults.** A counter that cannot be read, stands still, goes backwards where no wrap explains it,
jumps by more than its domain can draw, or may have wrapped twice unseen, ends a *stretch*. An
energy is told only between two marks of one stretch; otherwise it is None, with the reason. Within
a stretch wraps are undone modulo the counter's range. A domain that is switched on always draws
something, so a counter without a change for the longer of 1 s and 20 ticks stands still.

What is not corrected: a sensor that lags behind or averages over longer than its tick puts energy
into the neighbouring phase, which no reading of the counter can show.

References:
    R. T. Birge, The calculation of errors by the method of least squares, Phys. Rev. 40, 207
    (1932), on the ratio of what residuals are to what they should be.
    Z. Yang, K. Adamek, W. Armour, Part-time power measurements, arXiv:2312.02741 (2023), on
    the sensors of NVIDIA GPUs.
"""

import abc
import bisect
import collections
import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable

import numpy as np

from jaxenergy.meters.base import Counter, CounterError, Domain
from jaxenergy.units import NS_PER_S

SLOW_TICK_S = 0.010
POLL_SHARE = 0.01  # of one core, what polling may cost
POLL_COST_S = 50e-6  # a wake-up and a read, before it has been measured
STILL_S = 1.0
STILL_TICKS = 20
_FINEST_POLL_S = 100e-6
_STALL_S = 0.010
# Departures of the energy within a phase, see `_Spread`.
_PRIOR_TICK_SPREAD = 0.02  # second difference of energy at ticks, over a tick's, before any is seen
_PRIOR_RATIO = 5.0  # of departures at cuts over those at ticks, counted as one cut
_DEPARTURE_TICKS = 0.05  # correlation length: what ticks do not resolve is new at each of them
_SURPRISE = 3.0  # a cut that disagrees by more of its standard errors is widened to that
_UNEVEN = 1 / 3  # of the variance of a single burst: energy that lies anywhere within its tick
_REMEMBERED = 64
_LEARNED_TICKS = 4
_SEARCHES = 400
_TICK_WANTED_S = 0.060
_MAX_KNOTS = 60
_MOST_SEEN = 4096  # ticks whose instants wait for their line to be written
_MARKS_AT_ONCE = 20


class Mark:
    """The energy curve of one domain at one instant, settled as soon as it is known.

    Attributes:
        time_ns: the instant.
        settled: whether the rest is final.
        energy_j: joules since the timeline began, over the stretches that are known.
        variance_j2: its squared standard error (slow counters).
        shared_j2: covariance with the mark before it (slow counters: both lie in the same ticks).
        power_w: the power before the mark, where it is known (fast counters).
        stretch: number of the stretch it lies in.
        why: the reason where there is no energy.
        level: which level of power follows; two marks with one level have no step between them.
        label: the phase that follows.
    """

    __slots__ = (
        "energy_j",
        "label",
        "level",
        "power_w",
        "settled",
        "shared_j2",
        "stretch",
        "time_ns",
        "variance_j2",
        "why",
    )

    def __init__(self, time_ns: int, level: int, label: str):
        self.time_ns = time_ns
        self.level = level
        self.label = label
        self.settled = False
        self.energy_j = 0.0
        self.variance_j2 = 0.0
        self.shared_j2 = 0.0
        self.power_w: float | None = None
        self.stretch = 0
        self.why: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Latest:
    """What a counter has told last.

    Attributes:
        time_ns: the instant.
        energy_j: joules since the timeline began, over the stretches that are known.
        stretch: number of the stretch it lies in.
    """

    time_ns: int
    energy_j: float
    stretch: int


class Timeline(abc.ABC):
    """The energy curve of one counter. Not thread-safe: its owner holds a lock.

    Args:
        counter: the counter.
        clock_ns: the clock, in nanoseconds.
    """

    def __init__(self, counter: Counter, clock_ns: Callable[[], int]):
        self.counter = counter
        self.domain = counter.domain
        self.total_j = 0.0  # what is known to have flowed since the beginning
        self._clock_ns = clock_ns
        self._value: float | None = None  # the last reading; None where the next one starts afresh
        self._changed_ns = 0  # when it was first seen
        self._stretch = 0
        self._reasons: dict[int, str] = {}  # why the stretch before this one ended
        self._fault: str | None = None  # why there is no energy at present

    @property
    def still_ns(self) -> int:
        """How long the counter may show one value before it counts as standing still."""
        return int(max(STILL_S, STILL_TICKS * self.domain.tick_s) * NS_PER_S)

    @property
    @abc.abstractmethod
    def patience_ns(self) -> int:
        """How long the last mark of all is worth waiting for."""

    @abc.abstractmethod
    def mark(self, time_ns: int, level: int, label: str) -> Mark:
        """Asks for the energy at an instant that is now; the mark settles then or later."""

    @abc.abstractmethod
    def next_poll_ns(self) -> int | None:
        """When `poll` should be called next; None where it need not."""

    @abc.abstractmethod
    def poll(self) -> None:
        """Reads the counter between marks."""

    def take_ticks(self, begin_ns: int, end_ns: int) -> list[int]:
        """The instants in an interval at which the counter was seen to tick.

        Args:
            begin_ns: begin of the interval; it lies behind that of the last call.
            end_ns: its end; what lies before it is forgotten.

        Returns:
            Nanoseconds; none of a counter whose ticks are not looked for.
        """
        del begin_ns, end_ns
        return []

    @abc.abstractmethod
    def settle_rest(self) -> None:
        """Settles every mark with what is known, as no reading will follow."""

    @abc.abstractmethod
    def latest(self) -> Latest | None:
        """The latest instant at which the energy is known; None while the counter tells nothing."""

    def so_far_j(self) -> float | str:
        """Joules since the beginning as far as known now, or why a part of them never will be."""
        self.latest()  # a fast counter is read by it
        return self._reasons.get(1, self.total_j)

    @abc.abstractmethod
    def _variance_j2(self, begin: Mark, end: Mark) -> float:
        """Squared standard error of the energy between two marks of one stretch."""

    def between(self, begin: Mark, end: Mark) -> tuple[float, float] | str:
        """Energy between two settled marks.

        Args:
            begin: the earlier mark.
            end: the later mark.

        Returns:
            Joules and their standard error, or the reason why they cannot be told.
        """
        for mark in (begin, end):
            if mark.why is not None:
                return mark.why
        if begin.stretch != end.stretch:
            return self._reasons[begin.stretch + 1]
        variance = max(0.0, self._variance_j2(begin, end))
        return end.energy_j - begin.energy_j, math.sqrt(variance)

    def _read(self) -> tuple[int, float | str, int]:
        """Time before, value or reason, time after."""
        before_ns = self._clock_ns()
        try:
            value: float | str = self.counter.read_j()
            if not math.isfinite(value):
                value = f"{self.domain.name} read {value}"
        except CounterError as error:
            value = str(error)
        return before_ns, value, self._clock_ns()

    def _increment_j(self, value: float, since_ns: int, now_ns: int) -> float | str:
        """Joules from the last reading to this one, wraps undone; or why they cannot be told."""
        domain = self.domain
        assert self._value is not None
        elapsed_s = (now_ns - since_ns) / NS_PER_S
        # What is shown may have gathered for two ticks, or for a stall of the machine.
        possible_j = domain.max_power_w * (elapsed_s + 2 * domain.tick_s + _STALL_S)
        change_j = value - self._value
        range_j = domain.range_j
        increment_j = change_j if range_j is None else change_j % range_j
        name = domain.name
        if increment_j < 0 or increment_j > possible_j:
            what = "went backwards" if change_j < 0 else "jumped"
            return (
                f"{name} {what} from {self._value:.6g} J to {value:.6g} J, which "
                f"{domain.max_power_w:g} W for {elapsed_s:.3g} s cannot explain"
            )
        if range_j is not None and increment_j + range_j <= possible_j:
            return (
                f"{name} was not read for {elapsed_s:.3g} s, in which its range of {range_j:.6g} J "
                "could have been passed more than once"
            )
        return increment_j

    def _break(self, reason: str, value: float | None) -> None:
        """Ends the stretch; the next one begins at `value`, or at the next reading."""
        self._stretch += 1
        self._reasons[self._stretch] = reason
        self._fault = reason if value is None else None
        self._value = value


class FastTimeline(Timeline):
    """A counter whose tick is short enough to be read at the marks themselves.

    The counter is behind by up to a tick, half a tick on average. Readings are left as they are (so
    that phases add up to the counter's own difference) and the uncertainty of a difference states
    it: the spread tick/sqrt(12) times the power at either mark, and what half a tick of lag does
    not cancel where the power differs.

    A mark at which the counter still shows the value of an earlier mark settles when the counter
    has moved: until then it might be standing still, and the line would be a silent zero.
    """

    def __init__(self, counter: Counter, clock_ns: Callable[[], int]):
        super().__init__(counter, clock_ns)
        self._waiting: list[Mark] = []
        self._read_ns = 0
        self._last: Mark | None = None
        self._standing = False
        self._observe()

    @property
    def patience_ns(self) -> int:
        """As long as it may stand still: it moves long before, unless it does."""
        return self.still_ns

    def mark(self, time_ns: int, level: int, label: str) -> Mark:
        """Reads the counter: the mark is settled unless it has not moved since the last one."""
        mark = Mark(time_ns, level, label)
        moved = self._observe()
        mark.energy_j = self.total_j
        mark.stretch = self._stretch
        if self._fault is not None:
            mark.why = self._fault
            mark.settled = True
        else:
            mark.power_w = self._power_before_w(mark)
            mark.settled = moved or self._last is None
            if not mark.settled:
                self._waiting.append(mark)
        self._last = mark
        return mark

    def next_poll_ns(self) -> int | None:
        """Soon while a mark waits for a change; before a wrap could hide; else never."""
        if self._waiting:
            return self._read_ns + int(max(self.domain.tick_s, 0.02) * NS_PER_S)
        if self.domain.range_j is None:
            return None
        # A third of the time in which full power would pass the range: no wrap can hide another.
        return self._read_ns + int(self.domain.range_j / self.domain.max_power_w / 3 * NS_PER_S)

    def poll(self) -> None:
        """Reads the counter, so that no wrap is missed and marks that wait for a change settle."""
        self._observe()

    def settle_rest(self) -> None:
        """A mark that still waits lies where the counter has not moved: it stood still."""
        if self._waiting:
            self._stand_still()

    def latest(self) -> Latest | None:
        """The energy now, by a reading."""
        self._observe()
        if self._fault is not None:
            return None
        return Latest(self._read_ns, self.total_j, self._stretch)

    def _observe(self) -> bool:
        """Reads the counter; True where it moved."""
        _, value, now_ns = self._read()
        self._read_ns = now_ns
        if isinstance(value, str):
            if self._fault is None:
                self._drop_waiting(value)
                self._break(value, None)
            self._fault = value
            self._standing = False
            return False
        if self._value is None:
            self._value, self._fault, self._changed_ns = value, None, now_ns
            return True
        if value == self._value:
            if not self._standing and now_ns - self._changed_ns > self.still_ns:
                self._stand_still()
            return False
        increment_j = self._increment_j(value, self._changed_ns, now_ns)
        self._changed_ns = now_ns
        if self._standing:  # it moves again: a new stretch begins at this reading
            self._standing, self._fault, self._value = False, None, value
            return True
        if isinstance(increment_j, str):
            self._drop_waiting(increment_j)
            self._break(increment_j, value)
            return True
        self._value = value
        self.total_j += increment_j
        for mark in self._waiting:
            mark.settled = True
        self._waiting.clear()
        return True

    def _stand_still(self) -> None:
        reason = (
            f"{self.domain.name} stood still at {self._value:.6g} J for "
            f"{(self._read_ns - self._changed_ns) / NS_PER_S:.3g} s"
        )
        value = self._value
        self._drop_waiting(reason)
        self._break(reason, None)
        self._value, self._standing = value, True

    def _drop_waiting(self, reason: str) -> None:
        for mark in self._waiting:
            mark.why = reason
            mark.settled = True
        self._waiting.clear()

    def _power_before_w(self, mark: Mark) -> float | None:
        last = self._last
        if last is None or last.why is not None or last.stretch != mark.stretch:
            return None
        elapsed_s = (mark.time_ns - last.time_ns) / NS_PER_S
        if elapsed_s < 2 * self.domain.tick_s or elapsed_s <= 0:
            return last.power_w  # too short for a power of its own
        return (mark.energy_j - last.energy_j) / elapsed_s

    def _variance_j2(self, begin: Mark, end: Mark) -> float:
        tick_s, resolution_j = self.domain.tick_s, self.domain.resolution_j
        after_w = end.power_w or 0.0
        before_w = after_w if begin.power_w is None else begin.power_w
        spread = (before_w**2 + after_w**2) * tick_s**2 / 12 + 2 * resolution_j**2 / 12
        return spread + (tick_s / 2 * (after_w - before_w)) ** 2


@dataclasses.dataclass(slots=True)
class _Tick:
    """One step of a slow counter: it lies within the bracket, and `energy_j` is shown after it."""

    time_ns: float  # middle of the bracket
    width_ns: float
    energy_j: float


class TickPredictor:
    """When a slow counter will tick next, and when to look.

    A look costs a wake-up, so looks are spent where they narrow the bracket: one early, in case the
    counter ticks before its time, then evenly across the range in which recent ticks have fallen,
    with a step such that looking costs about half of `POLL_SHARE` (the other half is for what a
    tick gives rise to). Of a counter that ticks faster than every `_TICK_WANTED_S` only every n-th
    tick is looked for: it is better to know some ticks well than all of them badly. Until the
    period is learned, in the first five ticks, looks are frequent.

    Args:
        tick_s: the period stated by the meter, used until the real one is learned.
    """

    def __init__(self, tick_s: float):
        self.cost_s = POLL_COST_S
        self.period_ns = tick_s * NS_PER_S
        self.stride = 1
        self._stated_ns = tick_s * NS_PER_S
        self._times: collections.deque[float] = collections.deque(maxlen=33)
        self._widths: collections.deque[float] = collections.deque(maxlen=16)
        self._misses: collections.deque[float] = collections.deque(maxlen=16)
        self._expected_ns: float | None = None
        self._guard_ns = 0.0
        self._searches = 0

    @property
    def learned(self) -> bool:
        """Whether the period rests on observation."""
        return self._expected_ns is not None

    @property
    def spread_ns(self) -> float:
        """How far ticks have fallen from their expected time."""
        return max(self._misses, default=self.period_ns / 10)

    def spent(self, cost_s: float) -> None:
        """Learns what a look costs; one with a tick or a switch of threads in it counts little."""
        self.cost_s += 0.05 * (min(cost_s, 2 * self.cost_s) - self.cost_s)

    def is_tick(self, time_ns: float, width_ns: float) -> bool:
        """Whether a change seen is the tick looked for, and not one of those passed over."""
        if self._expected_ns is None or self.stride == 1:
            return True
        # On a machine so busy that every look comes late, a wide bracket is better than none.
        if time_ns > self._expected_ns + self.stride * self.period_ns:
            return True
        return time_ns > self._expected_ns - self.period_ns / 2 and width_ns < self.period_ns / 2

    def saw_tick(self, time_ns: float, width_ns: float) -> None:
        """Learns from a tick that was seen."""
        if self._expected_ns is not None:
            late_ns = time_ns - self._expected_ns
            late_ns -= self.period_ns * round(late_ns / self.period_ns)  # one or more were missed
            self._misses.append(abs(late_ns))
        self._times.append(time_ns)
        self._widths.append(width_ns)
        if len(self._times) <= _LEARNED_TICKS:
            return
        intervals = [later - earlier for earlier, later in itertools.pairwise(self._times)]
        single_ns = self.period_ns if self.learned else statistics.median(intervals)
        ticks = [max(1, round(interval / single_ns)) for interval in intervals]
        self.period_ns = sum(intervals) / sum(ticks)
        self.stride = max(1, math.ceil(_TICK_WANTED_S * NS_PER_S / self.period_ns))
        self._expected_ns = time_ns + self.stride * self.period_ns
        wide_ns = statistics.median(self._widths)
        self._guard_ns = min(1.3 * self.spread_ns + wide_ns, 0.4 * self.period_ns)

    def forget(self) -> None:
        """The counter was interrupted: the phase of its ticks is learned anew."""
        self._times.clear()
        self._misses.clear()
        self._expected_ns = None
        self._searches = 0

    def next_look_ns(self, now_ns: int) -> int:
        """When to look next, after a look at `now_ns`."""
        sparse_ns = 2 * self.cost_s / POLL_SHARE * NS_PER_S
        if self._expected_ns is None:
            self._searches += 1
            step_ns = self._stated_ns / 20
            return int(
                now_ns + (step_ns if self._searches < _SEARCHES else max(step_ns, sparse_ns))
            )
        guard_ns = self._guard_ns
        between_ns = self.stride * self.period_ns
        looks = max(2.0, POLL_SHARE / 2 * between_ns / NS_PER_S / self.cost_s - 1)
        step_ns = max(2 * guard_ns / looks, _FINEST_POLL_S * NS_PER_S)
        for stop_ns in (self._expected_ns - 2 * guard_ns, self._expected_ns - guard_ns):
            if now_ns + step_ns < stop_ns:
                return int(stop_ns)
        late_ns = now_ns - self._expected_ns - guard_ns
        if late_ns <= 0:
            return int(now_ns + step_ns)
        if late_ns > 5 * self.period_ns:  # it may never tick again
            return int(now_ns + max(self.period_ns / 4, sparse_ns))
        return int(now_ns + max(step_ns, min(step_ns + 0.3 * late_ns, self.period_ns / 4)))


class SlowTimeline(Timeline):
    """A counter that ticks slowly: its ticks are found by polling and marks placed between them."""

    def __init__(self, counter: Counter, clock_ns: Callable[[], int]):
        super().__init__(counter, clock_ns)
        self.predictor = TickPredictor(counter.domain.tick_s)
        self._ticks: list[_Tick] = []
        self._seen_ns: collections.deque[int] = collections.deque(maxlen=_MOST_SEEN)
        self._marks: list[Mark] = []  # those the ticks kept still matter for, and those waiting
        self._looked_ns = 0  # before the last look that showed the present value
        self._next_ns = 0
        self._origin: tuple[int, float] | None = None  # first reading of a stretch, within a tick
        self._standing = False
        self._spread = _Spread()
        self.poll()

    @property
    def still_ns(self) -> int:
        """As for every counter, with the period that was learned."""
        return int(max(STILL_S * NS_PER_S, STILL_TICKS * self.predictor.period_ns))

    @property
    def patience_ns(self) -> int:
        """Three ticks of those that are looked for, and some."""
        return int(3.5 * self.predictor.stride * self.predictor.period_ns)

    def mark(self, time_ns: int, level: int, label: str) -> Mark:
        """Remembers the instant; it is placed when the ticks around it are known."""
        mark = Mark(time_ns, level, label)
        mark.stretch = self._stretch
        if self._fault is not None:
            mark.why = self._fault
            mark.settled = True
        self._marks.append(mark)
        return mark

    def next_poll_ns(self) -> int:
        """When the next look is due."""
        return self._next_ns

    def poll(self) -> None:
        """Looks whether the counter has ticked."""
        before_ns, value, now_ns = self._read()
        if isinstance(value, str):
            if self._fault is None or self._standing:
                self._end_stretch(value, None)
            self._fault, self._standing = value, False
            self._next_ns = now_ns + int(self.predictor.period_ns / 2)
            return
        if self._value is None:
            self._value, self._fault = value, None
            self._origin = (before_ns, self.total_j)
            self._changed_ns = now_ns
        elif value != self._value:
            self._tick(value, now_ns)
        elif not self._standing and now_ns - self._changed_ns > self.still_ns:
            reason = (
                f"{self.domain.name} stood still at {value:.6g} J for "
                f"{(now_ns - self._changed_ns) / NS_PER_S:.3g} s"
            )
            self._end_stretch(reason, None)
            self._value, self._standing = value, True
        self._looked_ns = before_ns
        self._next_ns = self.predictor.next_look_ns(now_ns)

    def take_ticks(self, begin_ns: int, end_ns: int) -> list[int]:
        """The ticks that were looked for and seen, the last few thousand at most."""
        taken = []
        while self._seen_ns and self._seen_ns[0] < end_ns:
            time_ns = self._seen_ns.popleft()
            if time_ns >= begin_ns:
                taken.append(time_ns)
        return taken

    def settle_rest(self) -> None:
        """Places what the ticks allow; a mark after the last tick is not known."""
        self._settle(final=True)
        for mark in self._marks:
            if not mark.settled:
                mark.why = f"{self.domain.name} had not ticked again when the measurement ended"
                mark.settled = True

    def latest(self) -> Latest | None:
        """The last tick."""
        if self._fault is not None:
            return None
        time_ns = int(self._ticks[-1].time_ns) if self._ticks else self._looked_ns
        return Latest(time_ns, self.total_j, self._stretch)

    def _variance_j2(self, begin: Mark, end: Mark) -> float:
        return begin.variance_j2 + end.variance_j2 - 2 * end.shared_j2

    def _tick(self, value: float, now_ns: int) -> None:
        increment_j = self._increment_j(value, self._changed_ns, now_ns)
        width_ns = now_ns - self._looked_ns
        if self.predictor.learned:  # after a late look: what is shown is a period old at the most
            width_ns = min(width_ns, self.predictor.period_ns)
        time_ns = now_ns - width_ns / 2
        self._changed_ns = now_ns
        sound = not self._standing and not isinstance(increment_j, str)
        if self._standing:
            self._standing, self._fault, self._value = False, None, value
        elif isinstance(increment_j, str):
            self._end_stretch(increment_j, value)
        else:
            self._value = value
            self.total_j += increment_j
        if sound and not self.predictor.is_tick(time_ns, width_ns):
            return
        self.predictor.saw_tick(time_ns, width_ns)
        self._ticks.append(_Tick(time_ns, width_ns, self.total_j))
        self._seen_ns.append(int(time_ns))
        self._learn_noise()
        self._settle(final=False)
        self._prune()

    def _end_stretch(self, reason: str, value: float | None) -> None:
        self._settle(final=True)
        for mark in self._marks:
            if not mark.settled:
                mark.why = reason
                mark.settled = True
        self._marks.clear()
        self._ticks.clear()
        self._origin = None
        self.predictor.forget()
        self._break(reason, value)

    # Settling marks

    def _settle(self, final: bool) -> None:
        if not self._ticks:
            return
        if self._origin is not None:
            if not (final or self.predictor.learned):
                return
            # The first reading lay in a tick that began one period before the first change.
            first = self._ticks[0]
            spread_ns = self.predictor.spread_ns + first.width_ns
            began_ns = min(first.time_ns - self.predictor.period_ns, self._origin[0])
            self._ticks.insert(0, _Tick(began_ns, 2 * spread_ns, self._origin[1]))
            self._origin = None
        waiting = [mark for mark in self._marks if not mark.settled]
        if not waiting:
            return
        times = [tick.time_ns for tick in self._ticks]
        by_tick: dict[int, list[Mark]] = {}
        for mark in waiting:
            by_tick.setdefault(bisect.bisect_right(times, mark.time_ns) - 1, []).append(mark)
        for index, marks in sorted(by_tick.items()):
            if index < 0:  # before the first tick after a fault
                for mark in marks:
                    mark.why = self._reasons.get(self._stretch, f"{self.domain.name} not yet known")
                    mark.settled = True
                continue
            if index + 1 >= len(times):
                return
            if not final:
                needed = index + 2
                if needed < len(times) and self._steps_in(times[index + 1], times[index + 2]):
                    needed += 1  # no whole tick after this one yet to tell the power of the phase
                if needed >= len(times):
                    return
            self._place(index, marks)

    def _steps_in(self, begin_ns: float, end_ns: float) -> list[Mark]:
        """Marks at which the level of power changes, within an interval."""
        steps = []
        level = None
        for mark in self._marks:
            if mark.level != level and begin_ns <= mark.time_ns < end_ns:
                steps.append(mark)
            level = mark.level
        return steps

    def _place(self, index: int, marks: list[Mark]) -> None:
        """Places marks that lie between ticks `index` and `index + 1`."""
        times = [tick.time_ns for tick in self._ticks]
        low, high = index, index + 1
        holds_step = bool(self._steps_in(times[low], times[high]))
        if holds_step:  # the ticks beside it tell the powers; where power is one, they tell nothing
            low, high = max(0, index - 1), min(len(times) - 1, index + 2)
            # A neighbour that holds a step itself tells no power without the tick beyond it.
            if low > 0 and self._steps_in(times[low], times[index]):
                low -= 1
            if high < len(times) - 1 and self._steps_in(times[index + 1], times[high]):
                high += 1
        ticks = self._ticks[low : high + 1]
        steps = self._steps_in(ticks[0].time_ns, ticks[-1].time_ns)
        if len(steps) + len(ticks) > _MAX_KNOTS:  # hopeless inside a tick, and costly
            ticks, steps = self._ticks[index : index + 2], []
        position = self._marks.index(marks[0])
        previous = self._marks[position - 1] if position else None
        for first in range(0, len(marks), _MARKS_AT_ONCE):
            batch = marks[first : first + _MARKS_AT_ONCE]
            if previous is not None and previous.time_ns < ticks[0].time_ns:
                previous = None
            knots = {id(mark): mark for mark in (*steps, *batch)}
            if previous is not None:
                knots[id(previous)] = previous
            curve = self._curve(ticks, list(knots.values()))
            if holds_step and not first:
                self._spread.saw_cut(curve.contrasts())
                curve = self._curve(ticks, list(knots.values()))
            for mark in batch:
                mark.energy_j, mark.variance_j2 = curve.at(mark)
                if previous is not None and previous.why is None:
                    mark.energy_j = max(mark.energy_j, previous.energy_j)
                    # It may have been placed with other ticks, as better known than by these; the
                    # difference of the two is no better known than these say.
                    narrowed_j2 = previous.variance_j2 - curve.at(previous)[1]
                    mark.shared_j2 = curve.shared_j2(previous, mark) + min(0.0, narrowed_j2 / 2)
                mark.settled = True
                previous = mark

    def _curve(self, ticks: list[_Tick], marks: list[Mark]) -> "_Curve":
        marks.sort(key=lambda mark: mark.time_ns)
        return _Curve(ticks, marks, self._levels(ticks, marks), self._spread, self.domain)

    def _levels(self, ticks: list[_Tick], marks: list[Mark]) -> list[tuple[int, str]]:
        """Level and label at the first tick and after each mark."""
        before: tuple[int, str] = (-1, "")
        for mark in self._marks:
            if mark.time_ns > ticks[0].time_ns:
                break
            before = (mark.level, mark.label)
        return [before, *((mark.level, mark.label) for mark in marks)]

    def _learn_noise(self) -> None:
        """Compares the last two ticks where both lie in one phase."""
        if len(self._ticks) < 3:
            return
        first, middle, last = self._ticks[-3:]
        if self._steps_in(first.time_ns, last.time_ns):
            return
        label = next((m.label for m in reversed(self._marks) if m.time_ns <= first.time_ns), "")
        before_s = (middle.time_ns - first.time_ns) / NS_PER_S
        after_s = (last.time_ns - middle.time_ns) / NS_PER_S
        energy_j = middle.energy_j - first.energy_j
        next_j = last.energy_j - middle.energy_j
        power_w = (energy_j + next_j) / (before_s + after_s)
        if power_w <= 0:
            return
        # Twice how far the middle tick is from the line through the others, over a tick's energy.
        length_s = (before_s + after_s) / 2
        difference = (next_j / after_s - energy_j / before_s) / power_w
        widths_s = [tick.width_ns / NS_PER_S for tick in (first, middle, last)]
        timing = (widths_s[0] ** 2 + 4 * widths_s[1] ** 2 + widths_s[2] ** 2) / 12
        rounding = self.domain.resolution_j**2 / 2 / power_w**2
        explained = (timing + rounding) / length_s**2
        self._spread.saw_ticks(label, difference**2 - explained)

    def _prune(self) -> None:
        """Forgets what no mark to come can depend on."""
        if self._origin is not None:
            return
        waiting = next((m.time_ns for m in self._marks if not m.settled), math.inf)
        keep = 6
        while len(self._ticks) > keep and self._ticks[keep - 1].time_ns < waiting:
            del self._ticks[0]
        # One mark before the ticks stays, for the level that they begin with.
        while len(self._marks) > 1 and self._marks[1].time_ns < self._ticks[0].time_ns:
            del self._marks[0]


@dataclasses.dataclass(slots=True)
class _Contrast:
    """What several ticks, of which one holds a step, disagree by, and how much could be expected.

    Attributes:
        square_j2: the squared disagreement.
        bracket_j2: variance from the times of ticks and from rounding.
        by_label_j2: variance for a departure of one tick's energy in the phases of a label.
    """

    square_j2: float
    bracket_j2: float
    by_label_j2: dict[str, float]


class _Spread:
    """How far energy departs from a line within phases: v, over the squared energy of a tick.

    v(label) = ratio d(label). d is learned from whole ticks: of departures that are independent the
    second difference has 6 v. `ratio` is learned from cuts, all labels together, as the weighted
    mean of squared disagreements over expected ones among the last 64; the weight of a cut is the
    part of what is expected that comes from departures, squared. From n cuts a Student
    distribution follows, of which the variance is stated: of about n + 3 degrees of freedom, since
    squares of a bounded swing scatter less than normal ones.
    """

    def __init__(self):
        self._second_differences: dict[str, collections.deque[float]] = {}
        self._contrasts: collections.deque[_Contrast] = collections.deque(maxlen=_REMEMBERED)
        self._ratio: float | None = None

    def saw_ticks(self, label: str, square: float) -> None:
        """Learns from the second difference of three ticks, over a tick's energy, squared."""
        seen = self._second_differences.setdefault(label, collections.deque(maxlen=_REMEMBERED))
        seen.append(square / 6)

    def saw_cut(self, contrasts: list[_Contrast]) -> None:
        """Learns from the ticks around a cut at which power may have stepped."""
        self._contrasts.extend(contrasts)
        self._ratio = None

    def of(self, label: str) -> float:
        """Variance of a departure, over the squared energy of a tick."""
        if self._ratio is None:
            self._ratio = self._learn_ratio()
        return self._ratio * self._at_ticks(label)

    def _at_ticks(self, label: str) -> float:
        least = _PRIOR_TICK_SPREAD**2 / 6
        others = [
            v for other, seen in self._second_differences.items() if other != label for v in seen
        ]
        # Before ticks of this label have been compared, it is taken to be as noisy as the others.
        before = max(least, sum(others) / len(others)) if others else least
        seen = self._second_differences.get(label, ())
        count = len(seen) + 1
        return max((sum(seen) + before) / count, least / min(count, 16))

    def _learn_ratio(self) -> float:
        at_ticks = {
            label: self._at_ticks(label) for one in self._contrasts for label in one.by_label_j2
        }
        square = np.array([one.square_j2 for one in self._contrasts])
        bracket = np.array([one.bracket_j2 for one in self._contrasts])
        departures = np.array(
            [
                sum(at_ticks[label] * unit for label, unit in one.by_label_j2.items())
                for one in self._contrasts
            ]
        )
        ratio, weight = _PRIOR_RATIO, 0.0
        if len(square):
            ratio = max(ratio, float(square.mean() / departures.mean()))
            for _ in range(8):  # the weights depend on the ratio; this is where they settle
                expected = bracket + ratio * departures
                weights = (ratio * departures / expected) ** 2
                weight = float(weights.sum())
                seen = ratio * float((weights * square / expected).sum())
                ratio = (_PRIOR_RATIO + seen) / (1 + weight)
        return ratio * (1 + 2 / (1 + weight))


class _Curve:
    """The energy curve over a few ticks, by generalised least squares (see the module).

    Args:
        ticks: the ticks, at least two.
        marks: the marks to place, and all at which power steps, in the order of time.
        levels: level and label at the first tick and after each mark.
        spread: how far energy departs from a line.
        domain: resolution and bound on power.
    """

    def __init__(
        self,
        ticks: list[_Tick],
        marks: list[Mark],
        levels: list[tuple[int, str]],
        spread: _Spread,
        domain: Domain,
    ):
        origin_ns, self._base_j = ticks[0].time_ns, ticks[0].energy_j
        knots: list[_Tick | Mark] = sorted((*ticks, *marks), key=lambda knot: knot.time_ns)
        times = np.array([(knot.time_ns - origin_ns) / NS_PER_S for knot in knots])
        self._index = {id(knot): position for position, knot in enumerate(knots)}
        at_tick = [self._index[id(tick)] for tick in ticks]
        tick_j = np.array([tick.energy_j for tick in ticks]) - self._base_j
        tick_s = np.maximum(np.diff(times[at_tick]), 1e-9)
        tick_w = np.diff(tick_j) / tick_s
        scale_w = max(float(np.max(tick_w)), 1e-9)
        period_s = float(np.mean(tick_s))
        finest_j = 1e-5 * scale_w * period_s

        # Unknowns: the energy at each knot, an offset for each section, a power for each level.
        sections = _sections(knots, levels)
        level_ids = {level: i for i, level in enumerate(dict.fromkeys(s[0] for s in sections))}
        unknowns = len(knots) + len(sections) + len(level_ids)
        rows, values, covariances = [], [], []
        for number, position in enumerate(at_tick):
            row = np.zeros((1, unknowns))
            row[0, position] = 1.0
            rows.append(row)
            values.append(tick_j[number])
            around_w = max(tick_w[max(number - 1, 0)], tick_w[min(number, len(tick_w) - 1)])
            bracket_j = around_w * ticks[number].width_ns / NS_PER_S
            error_j2 = (bracket_j**2 + domain.resolution_j**2) / 12 + finest_j**2
            covariances.append(np.array([[error_j2]]))
        units = []  # (label, covariance of departures whose variance is one tick's energy squared)
        for number, (level, label, within) in enumerate(sections):
            time_s = times[within]
            block = np.zeros((len(within), unknowns))
            block[np.arange(len(within)), within] = 1.0
            block[:, len(knots) + number] = -1.0
            block[:, len(knots) + len(sections) + level_ids[level]] = -time_s
            rows.append(block)
            values += [0.0] * len(within)
            ends_j = np.interp(time_s[[0, -1]], times[at_tick], tick_j)
            rough_w = (ends_j[1] - ends_j[0]) / max(time_s[-1] - time_s[0], 1e-9)
            lag_ticks = np.abs(time_s[:, None] - time_s) / period_s
            unit = np.exp(-lag_ticks / _DEPARTURE_TICKS)
            unit *= (max(rough_w, 0.05 * scale_w) * period_s) ** 2
            units.append((label, unit))
            covariances.append(spread.of(label) * unit + finest_j**2 * np.eye(len(within)))
        plain, right = np.concatenate(rows), np.array(values)
        whitened, whitened_right, at = [], [], 0
        for covariance in covariances:
            whitener = np.linalg.inv(np.linalg.cholesky(covariance))
            part = slice(at, at + len(covariance))
            whitened.append(whitener @ plain[part])
            whitened_right.append(whitener @ right[part])
            at += len(covariance)
        # A phase shorter than a tick hardly tells its power: about the mean, give or take all.
        weak = np.zeros((len(level_ids), unknowns))
        weak[:, len(knots) + len(sections) :] = np.eye(len(level_ids)) / scale_w
        matrix = np.concatenate([*whitened, weak])
        goal = np.concatenate([*whitened_right, np.full(len(weak), np.mean(tick_w) / scale_w)])
        q_matrix, r_matrix = np.linalg.qr(matrix)
        r_inverse = np.linalg.inv(r_matrix)
        solution = r_inverse @ (q_matrix.T @ goal)
        covariance_j2 = (r_inverse @ r_inverse.T)[: len(knots), : len(knots)]

        freedom = len(plain) - unknowns
        self._equations = (plain, right, covariances[: len(ticks)], units)
        if freedom > 0:
            residuals = (matrix @ solution - goal)[: len(plain)]
            ratio = float(residuals @ residuals) / freedom
            covariance_j2 = covariance_j2 * max(1.0, ratio / _SURPRISE**2)

        # Energy only grows: between two ticks, it lies between theirs.
        tick = np.clip(np.searchsorted(times[at_tick], times, side="right") - 1, 0, len(tick_w) - 1)
        past = np.clip((times - times[at_tick][tick]) / tick_s[tick], 0.0, 1.0)
        widest_j2 = _UNEVEN * past * (1 - past) * np.diff(tick_j)[tick] ** 2 + finest_j**2
        widest_j2[at_tick] = np.inf
        shrink = np.sqrt(np.minimum(1.0, widest_j2 / np.diag(covariance_j2)))
        self._covariance_j2 = covariance_j2 * shrink[:, None] * shrink
        self._energy_j = np.clip(solution[: len(knots)], tick_j[tick], tick_j[tick + 1])

    def contrasts(self) -> list[_Contrast]:
        """What the ticks disagree by, where there are more of them than unknowns."""
        return _contrasts(*self._equations)

    def at(self, mark: Mark) -> tuple[float, float]:
        """Joules and variance at a mark; never outside what the ticks around it allow."""
        position = self._index[id(mark)]
        variance_j2 = float(self._covariance_j2[position, position])
        return self._base_j + float(self._energy_j[position]), variance_j2

    def shared_j2(self, earlier: Mark, later: Mark) -> float:
        """Covariance of the energies at two marks."""
        return float(self._covariance_j2[self._index[id(earlier)], self._index[id(later)]])


def _sections(
    knots: list[_Tick | Mark], levels: list[tuple[int, str]]
) -> list[tuple[int, str, list[int]]]:
    """Level, label and knots of each contiguous stretch of one level, both ends in it."""
    sections: list[tuple[int, str, list[int]]] = []
    marks_seen, (level, label) = 0, levels[0]
    within: list[int] = []
    for position, knot in enumerate(knots):
        within.append(position)
        if not isinstance(knot, Mark):
            continue
        marks_seen += 1
        if levels[marks_seen][0] != level:
            if len(within) > 1:
                sections.append((level, label, within))
            (level, label), within = levels[marks_seen], [position]
    if len(within) > 1:
        sections.append((level, label, within))
    return sections


def _contrasts(
    plain: np.ndarray,
    right: np.ndarray,
    brackets: list[np.ndarray],
    units: list[tuple[str, np.ndarray]],
) -> list[_Contrast]:
    """The combinations of equations that hold no unknown: what they are instead of zero."""
    complete, _ = np.linalg.qr(plain, mode="complete")
    contrasts = []
    for factors in complete[:, plain.shape[1] :].T:
        bracket_j2 = sum(
            float(factor**2 * bracket[0, 0])
            for factor, bracket in zip(factors, brackets, strict=False)
        )
        by_label_j2: dict[str, float] = {}
        at = len(brackets)
        for label, unit in units:
            part = factors[at : at + len(unit)]
            by_label_j2[label] = by_label_j2.get(label, 0.0) + float(part @ unit @ part)
            at += len(unit)
        contrasts.append(_Contrast(float(factors @ right) ** 2, bracket_j2, by_label_j2))
    return contrasts


def make_timeline(counter: Counter, clock_ns: Callable[[], int]) -> Timeline:
    """The timeline that suits a counter's tick."""
    kind = SlowTimeline if counter.domain.tick_s >= SLOW_TICK_S else FastTimeline
    return kind(counter, clock_ns)
