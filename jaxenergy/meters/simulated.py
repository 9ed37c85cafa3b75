"""A meter of scripted power: everything can be tried without hardware, and tests know the truth.

`SimulatedMeter` behaves as real counters do: it ticks, with jitter, in steps of its resolution; it
lags, averages, wraps, drops out, is reset and stands still, all on an injected clock. What really
flowed is given by `SimulatedCounter.true_energy_j`, in closed form.
"""

import bisect
import dataclasses
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence

from jaxenergy.meters.base import Counter, CounterError, Domain, Meter
from jaxenergy.units import NS_PER_S


class VirtualClock:
    """A clock that moves when told to, so that hours of metering take milliseconds.

    Args:
        start_ns: its first reading.
    """

    def __init__(self, start_ns: int = 0):
        self.now_ns = start_ns

    def __call__(self) -> int:
        """Its reading."""
        return self.now_ns

    def sleep_s(self, duration_s: float) -> None:
        """Moves on by a duration, at least one nanosecond."""
        self.now_ns += max(1, math.ceil(duration_s * NS_PER_S))

    def run_until(self, time_ns: int, polled) -> None:
        """Moves on to an instant, letting `polled` (a ledger) poll when it wants to on the way."""
        while True:
            due_ns = polled.next_poll_ns()
            if due_ns is None or due_ns > time_ns:
                break
            self.now_ns = max(self.now_ns, due_ns)
            polled.poll()
        self.now_ns = max(self.now_ns, time_ns)


class PowerCurve:
    """Power that is constant between given instants, with its exact integral.

    Args:
        times_s: instants at which power changes, ascending; the first is where the curve begins.
        powers_w: power from each of them on.
        period_s: the time after which the curve repeats, or None where the last power goes on.
    """

    def __init__(
        self, times_s: Sequence[float], powers_w: Sequence[float], period_s: float | None = None
    ):
        self._times_s = list(times_s)
        self._powers_w = list(powers_w)
        self._period_s = period_s
        ends_s = self._times_s[1:]
        pieces = zip(self._times_s, ends_s, self._powers_w, strict=False)
        self._energies_j = [0.0, *itertools.accumulate((e - b) * w for b, e, w in pieces)]
        self._period_j = 0.0
        if period_s is not None:
            self._period_j = self._within_j(self._times_s[0] + period_s)

    def add(self, time_s: float, power_w: float) -> None:
        """Power from an instant on, later than all before: for a script that unfolds as it runs."""
        past_j = (time_s - self._times_s[-1]) * self._powers_w[-1]
        self._energies_j.append(self._energies_j[-1] + past_j)
        self._times_s.append(time_s)
        self._powers_w.append(power_w)

    def __call__(self, time_s: float) -> float:
        """Joules from the curve's beginning to an instant."""
        if self._period_s is None:
            return self._within_j(time_s)
        periods, rest_s = divmod(time_s - self._times_s[0], self._period_s)
        return periods * self._period_j + self._within_j(self._times_s[0] + rest_s)

    def _within_j(self, time_s: float) -> float:
        index = max(bisect.bisect_right(self._times_s, time_s) - 1, 0)
        return self._energies_j[index] + (time_s - self._times_s[index]) * self._powers_w[index]


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong with a simulated counter, in seconds since it began.

    Attributes:
        drop_outs: intervals in which it cannot be read.
        freezes: intervals in which it stands still; it then goes on with the true value.
        resets: instants at which it falls back to zero.
    """

    drop_outs: tuple[tuple[float, float], ...] = ()
    freezes: tuple[tuple[float, float], ...] = ()
    resets: tuple[float, ...] = ()


class SimulatedCounter(Counter):
    """One counter over a scripted power curve.

    Args:
        energy_j: joules as a function of seconds since the counter began, e.g. a `PowerCurve`.
        name: the domain's name.
        tick_s: its period; 0 for a counter that is always current.
        jitter: standard deviation of the time from tick to tick, as a part of the period.
        resolution_j: its step.
        lag_s: how far behind the truth its values are.
        averaging_s: length of the window over which the sensor averages power.
        range_j: where it wraps.
        start_j: its value at the beginning.
        faults: what goes wrong.
        max_power_w: bound stated to whoever reads it.
        stated_tick_s: the tick stated to whoever reads it, where it is not the true one.
        seed: of the jitter and of the first tick's time.
        clock_ns: the clock.
    """

    def __init__(
        self,
        energy_j: Callable[[float], float],
        *,
        name: str = "simulated:0",
        tick_s: float = 0.1,
        jitter: float = 0.0,
        resolution_j: float = 1e-3,
        lag_s: float = 0.0,
        averaging_s: float = 0.0,
        range_j: float | None = None,
        start_j: float = 0.0,
        faults: Faults = Faults(),
        max_power_w: float = 2000.0,
        stated_tick_s: float | None = None,
        seed: int = 0,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ):
        self.domain = Domain(
            name=name,
            provenance="simulated",
            source="scripted power",
            tick_s=tick_s if stated_tick_s is None else stated_tick_s,
            resolution_j=resolution_j,
            range_j=range_j,
            max_power_w=max_power_w,
        )
        self._curve = energy_j
        self._tick_s = tick_s
        self._jitter = jitter
        self._resolution_j = resolution_j
        self._lag_s = lag_s
        self._averaging_s = averaging_s
        self._start_j = start_j
        self._faults = faults
        self._clock_ns = clock_ns
        self._random = random.Random(seed)
        self._began_ns = clock_ns()
        self._last_tick_s = -self._random.random() * tick_s
        self._next_tick_s = self._after(self._last_tick_s)

    def true_energy_j(self, begin_ns: int, end_ns: int) -> float:
        """What really flowed between two readings of the clock."""
        begin_s, end_s = ((ns - self._began_ns) / NS_PER_S for ns in (begin_ns, end_ns))
        return self._curve(end_s) - self._curve(begin_s)

    def read_j(self) -> float:
        """What the counter shows now."""
        now_s = (self._clock_ns() - self._began_ns) / NS_PER_S
        if any(begin <= now_s < end for begin, end in self._faults.drop_outs):
            raise CounterError(f"{self.domain.name} is switched off, as scripted")
        for begin, end in self._faults.freezes:
            if begin <= now_s < end:
                now_s = begin
        shown_s = self._last_tick_before(now_s) if self._tick_s else now_s
        since_j = max(
            (self._shown_j(at) for at in self._faults.resets if at <= shown_s), default=None
        )
        value_j = self._shown_j(shown_s)
        value_j = self._start_j + value_j if since_j is None else value_j - since_j
        value_j = math.floor(value_j / self._resolution_j + 1e-9) * self._resolution_j
        return value_j % self.domain.range_j if self.domain.range_j else value_j

    def _shown_j(self, time_s: float) -> float:
        """Energy as the sensor has it at an instant: late, and averaged."""
        end_s = time_s - self._lag_s
        if not self._averaging_s:
            return self._curve(end_s)
        # The integral of a moving average is the moving average of the integral.
        steps = 64
        width_s = self._averaging_s / steps
        return sum(self._curve(end_s - (k + 0.5) * width_s) for k in range(steps)) / steps

    def _after(self, tick_s: float) -> float:
        return tick_s + self._tick_s * max(0.2, 1 + self._random.gauss(0.0, self._jitter))

    def _last_tick_before(self, now_s: float) -> float:
        while self._next_tick_s <= now_s:
            self._last_tick_s, self._next_tick_s = self._next_tick_s, self._after(self._next_tick_s)
        return min(self._last_tick_s, now_s)


class SimulatedMeter(Meter):
    """Counters over scripted power.

    Args:
        counters: the counters; by default one like a GPU's, with a tick of 100 ms and a power that
            swings between 120 and 180 W.
        clock_ns: the clock of the default counter.
    """

    name = "simulated"
    notes = ("simulated: the joules follow a script and say nothing about this machine.",)

    def __init__(
        self,
        counters: Iterable[SimulatedCounter] | None = None,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ):
        if counters is None:
            curve = PowerCurve([0.0, 0.3], [180.0, 120.0], period_s=0.6)
            counters = [SimulatedCounter(curve, jitter=0.01, clock_ns=clock_ns)]
        self.counters = tuple(counters)
