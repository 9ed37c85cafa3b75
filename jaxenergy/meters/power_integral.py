"""Energy by integrating a power sensor, for cards whose driver keeps no energy counter.

A power sensor holds its value for an update period and shows the mean over some window, so
energy between two instants closer than that is not known. The integral is therefore published
once per tick, like the hardware counters it stands for, and a stretch in which
the sensor was not looked at is never filled in.
"""

import collections
import statistics
import threading
import time
from collections.abc import Callable, Sequence

# The part of one core that sampling may take; the period is stretched to keep to it.
MAX_CPU_SHARE = 0.004
# Between two samples further apart than this the power is not known.
LONGEST_GAP_S = 1.0


class PowerIntegral:
    """Energy under a power curve known at some instants, by trapezoids.

    Args:
        tick_s: how often the published energy moves: the sensor's update period or averaging
            window, whichever is longer.
    """

    def __init__(self, tick_s: float):
        self.tick_s = tick_s
        self.energy_j = 0.0
        self.published_j = 0.0
        self.peak_power_w = 0.0
        self.gaps = 0
        self._published_at: float | None = None
        self._last: tuple[float, float] | None = None
        self._changed_at: float | None = None
        self._update_periods_s: collections.deque[float] = collections.deque(maxlen=65)

    def add(self, time_s: float, power_w: float) -> float | None:
        """Adds a sample.

        Args:
            time_s: when it was taken.
            power_w: what the sensor showed.

        Returns:
            The length of the gap in seconds where the one before was too long ago, so that the
            energy in between is not known (and not added); None otherwise.
        """
        gap_s = None
        if self._last is not None:
            last_s, last_w = self._last
            if time_s - last_s > LONGEST_GAP_S:
                gap_s = time_s - last_s
                self.gaps += 1
                self._changed_at = None
            else:
                self.energy_j += (last_w + power_w) / 2 * (time_s - last_s)
            if power_w != last_w:
                if self._changed_at is not None:
                    self._update_periods_s.append(time_s - self._changed_at)
                self._changed_at = time_s
        self._last = (time_s, power_w)
        self.peak_power_w = max(self.peak_power_w, power_w)
        if self._published_at is None or time_s - self._published_at >= self.tick_s * 0.9:
            self._published_at = time_s
            self.published_j = self.energy_j
        return gap_s

    @property
    def sensor_update_s(self) -> float | None:
        """The time for which the sensor holds a value, as seen; None before it changed often."""
        if len(self._update_periods_s) < 8:
            return None
        return statistics.median(self._update_periods_s)


class PowerSampler:
    """A thread that samples some sensors and keeps the integral of each.

    Args:
        read_power_w: one function per sensor; it may raise `errors`.
        ticks_s: the tick of each integral.
        errors: the exception that says a sensor cannot be read now.
        period_s: time between samples, stretched where a sample is dear.
        clock_s: the clock of the samples.
    """

    def __init__(
        self,
        read_power_w: Sequence[Callable[[], float]],
        ticks_s: Sequence[float],
        errors: type[Exception],
        period_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ):
        self.integrals = tuple(PowerIntegral(tick_s) for tick_s in ticks_s)
        self._read_power_w = read_power_w
        self._errors = errors
        self._period_s = period_s
        self._clock_s = clock_s
        self._why_lost: list[str | None] = [None] * len(self.integrals)
        self._failing: list[str | None] = [None] * len(self.integrals)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.sample()  # so that a reading right after opening finds a value
        self._thread = threading.Thread(target=self._run, name="power-sampler", daemon=True)
        self._thread.start()

    def read_published_j(self, place: int) -> tuple[float, str | None]:
        """The published energy of a sensor, and why energy since the last reading is not known.

        Args:
            place: the sensor's place in the sequence given.

        Returns:
            Joules, and a reason or None. A stretch without samples gives its reason once.
        """
        with self._lock:
            why = self._failing[place] or self._why_lost[place]
            self._why_lost[place] = None
            return self.integrals[place].published_j, why

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join()

    def sample(self) -> None:
        """Samples every sensor now; the thread does it all the time, others may in between."""
        for place, read_power_w in enumerate(self._read_power_w):
            try:
                power_w = read_power_w()
            except self._errors as error:
                with self._lock:
                    self._failing[place] = f"its power cannot be read: {error}"
                continue
            with self._lock:
                self._failing[place] = None
                gap_s = self.integrals[place].add(self._clock_s(), power_w)
                if gap_s is not None:
                    self._why_lost[place] = f"its power was not sampled for {gap_s:.1f} s"

    def _run(self) -> None:
        period_s, began_s = self._period_s, time.thread_time()
        while not self._stop.wait(period_s):
            self.sample()
            now_s = time.thread_time()
            # Waking up is paid as well, so the whole round is held against the share.
            wanted_s = max(self._period_s, (now_s - began_s) / MAX_CPU_SHARE)
            period_s = min(0.9 * period_s + 0.1 * wanted_s, LONGEST_GAP_S / 4)
            began_s = now_s
