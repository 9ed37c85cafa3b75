"""Measuring by rounds: windows of several cases in turn, until enough is known or the time is up.

A case is anything that can be done again and again: a function to be measured, one of several to be
compared, a part of an update. Each round gives every case one fenced window, in an order drawn
anew, and cases are held against each other within rounds, so that what changes slowly (heat,
clocks, other users) touches all of them alike. A single case is measured in the same way.

**When to stop.** An interval that is looked at again and again, until it happens to be narrow, is
too narrow. So it is looked at after 10 windows, and then each time there are half as many again,
and must be narrow enough twice running. What this leaves of the 95 % is printed by
`benchmarks/stopping.py`: 92 to 94 % for independent windows, 89 to 92 % for windows that correlate
by 0.6. With a look each round, and the first narrow interval believed, it would be down to 78 % and
75 %.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxenergy.energy import windows
from jaxenergy.energy.ledger import Ledger
from jaxenergy.energy.timeline import SLOW_TICK_S
from jaxenergy.energy.windows import LongRun
from jaxenergy.meters import Meters
from jaxenergy.stats import Estimate, long_run_ratio
from jaxenergy.units import NS_PER_S

Line = Mapping[str, Any]

NOTHING_COUNTED = "no domain was counted"
TIME_WAS_UP = "the time was up before the first window"

_FIRST_LOOK = 10
_NEXT_LOOK = 1.5
_LOOKS_RUNNING = 2

_MAX_WINDOW_S = 4.0
# Shares of the time for everything: finding how many calls make a window; idle before, and after.
_CALIBRATION_SHARE, _MAX_CALIBRATION_S = 0.1, 0.1
_IDLE_SHARE, _MAX_IDLE_S = 0.05, 2.0
# Of idle's time, the part in which clocks and fans come to rest before it is measured.
_SETTLE_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How one case compares with another, by windows that lie side by side.

    Attributes:
        value: the ratio of the means.
        ci95: its 95 % interval (low, high), by Fieller's method: not symmetric, always bounded.
    """

    value: float
    ci95: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.value:.4g} (95 % {self.ci95[0]:.4g} to {self.ci95[1]:.4g})"


@dataclasses.dataclass
class Rounds:
    """What was gathered: the ledger's lines, and whose windows they are.

    Attributes:
        cases: the names of the cases.
        meters: what was metered; closed by whoever opened it.
        lines: every line, in the order of time.
        order: the case of each window, in the order of time.
    """

    cases: tuple[str, ...]
    meters: Meters
    lines: list[Line] = dataclasses.field(default_factory=list)
    order: list[str] = dataclasses.field(default_factory=list)

    def windows_of(self, case: str) -> list[Line]:
        """The windows of a case whose energy is known by now, in the order of time."""
        fast = {
            domain.name: domain.tick_s
            for domain in self.meters.domains
            if domain.counted and 0 < domain.tick_s < SLOW_TICK_S
        }
        lines = windows.without_lag(self.lines, fast) if fast else self.lines
        finished = (line for line in lines if line["phase"] == "train")
        return [line for line, owner in zip(finished, self.order, strict=False) if owner == case]

    def first_call_of(self, case: str) -> Line | None:
        """The line of a case's first call, in which it is compiled; None where there was none."""
        first_calls = (line for line in self.lines if line["phase"] == "compile")
        return dict(zip(self.cases, first_calls, strict=False)).get(case)

    def long_run(self, case: str) -> LongRun | str:
        """What one call takes in the long run, or why that is not known."""
        lines = self.windows_of(case)
        if not lines:
            return TIME_WAS_UP
        return windows.estimate_per(lines, "updates", self.meters.counted_domains)

    def mean_duration_s(self, case: str) -> float | None:
        """Seconds per call in all windows; None where there is no window."""
        lines = self.windows_of(case)
        calls = sum(line["updates"] for line in lines)
        return math.fsum(map(line_duration_s, lines)) / calls if calls else None

    def line_energy_j(self, line: Line) -> float | None:
        """Joules of a line in the counted domains together; None where one is not known."""
        joules = [line["energy_j"].get(domain) for domain in self.meters.counted_domains]
        return None if not joules or None in joules else math.fsum(joules)

    def why_unknown(self) -> str | None:
        """Why the energy of a window is not known; None where that of all windows is."""
        if not self.meters.counted_domains:
            return NOTHING_COUNTED
        for line in self.lines:
            for domain in self.meters.counted_domains:
                if line["phase"] == "train" and line["energy_j"].get(domain) is None:
                    return line["why"].get(domain, f"{domain} was not metered")
        return None

    def by_round(self, value_of: Callable[[Line], float | None]) -> list[dict[str, float]]:
        """A value per call of each case, round by round.

        Args:
            value_of: the value of a line, e.g. `line_energy_j`; None where it is not known.

        Returns:
            By case, for each round in which all are known.
        """
        rounds = []
        for lines in zip(*map(self.windows_of, self.cases), strict=False):
            values = list(map(value_of, lines))
            per_call = [
                value / line["updates"]
                for value, line in zip(values, lines, strict=True)
                if value is not None
            ]
            if len(per_call) == len(lines):
                rounds.append(dict(zip(self.cases, per_call, strict=True)))
        return rounds

    def energy_ratio(self, case: str, baseline: str) -> Ratio | str:
        """Joules per call of one case over those of another, or why that is not known."""
        for one in (case, baseline):
            found = self.long_run(one)
            if isinstance(found, str):
                return self.why_unknown() or found
        found = self._ratio(self.line_energy_j, case, baseline)
        return (self.why_unknown() or found) if isinstance(found, str) else found

    def time_ratio(self, case: str, baseline: str) -> Ratio | str:
        """Seconds per call of one case over those of another, or why that is not known."""
        return self._ratio(line_duration_s, case, baseline)

    def _ratio(
        self, value_of: Callable[[Line], float | None], case: str, baseline: str
    ) -> Ratio | str:
        left_out = self._left_out(case) | self._left_out(baseline)
        values = self.by_round(lambda line: None if line["end_ns"] in left_out else value_of(line))
        return ratio_of_means(values, case, baseline)

    def _left_out(self, case: str) -> set[int]:
        """When windows ended that do not count in the means; none where joules are not known."""
        found = self.long_run(case)
        if isinstance(found, str):
            return set()
        return {line["end_ns"] for line in self.windows_of(case)} - found.ends_ns

    def idle_power_w(self) -> Estimate | str:
        """Idle power of the counted domains together, or why it is not known."""
        if not self.meters.counted_domains:
            return NOTHING_COUNTED
        total_w, variance, freedom = 0.0, 0.0, math.inf
        for domain in self.meters.counted_domains:
            idle = windows.idle_power_w(self.lines, domain)
            if isinstance(idle, str):
                return idle
            total_w += idle.during.value
            variance += idle.during.standard_error**2
            freedom = min(freedom, idle.during.freedom)
        return Estimate(total_w, math.sqrt(variance), freedom)


def line_duration_s(line: Line) -> float:
    """How long a line lasted."""
    return (line["end_ns"] - line["start_ns"]) / NS_PER_S


def too_few(rounds: int) -> str | None:
    """Why so many rounds give no interval; None where they do."""
    if rounds >= windows.MIN_WINDOWS:
        return None
    if not rounds:
        return TIME_WAS_UP
    return f"{rounds} rounds are too few for an interval, which needs {windows.MIN_WINDOWS}"


def ratio_of_means(values: list[dict[str, float]], case: str, baseline: str) -> Ratio | str:
    """The mean of one case over the mean of another, by what they differ within rounds.

    Args:
        values: from `Rounds.by_round`.
        case: the numerator.
        baseline: the denominator.

    Returns:
        The ratio, or why it is not known.
    """
    why = too_few(len(values))
    if why:
        return why
    below = [one[baseline] for one in values]
    if min(below) <= 0:
        return f"{baseline} has a window without a positive value"
    value, low, high = long_run_ratio([one[case] for one in values], below)
    if math.isinf(high):
        return f"the mean of {baseline} is not told apart from zero, so nothing bounds the ratio"
    return Ratio(value, (low, high))


@dataclasses.dataclass
class Looks:
    """When to look whether enough is known, and when to believe it: see this module's docstring.

    Attributes:
        next_at: the number of rounds at which the next look is due.
        running: how many of the last looks, one after the other, found enough.
    """

    next_at: int = _FIRST_LOOK
    running: int = 0

    def are_enough(self, rounds: int, enough: Callable[[], bool]) -> bool:
        """Whether to end after so many rounds; asks `enough` where a look is due."""
        if rounds < self.next_at:
            return False
        self.next_at = math.ceil(_NEXT_LOOK * rounds)
        self.running = self.running + 1 if enough() else 0
        return self.running == _LOOKS_RUNNING


def measure_rounds(
    cases: Mapping[str, Callable[[int], Any]],
    meters: Meters,
    fence: Callable[[Any], Any],
    enough: Callable[[Rounds], bool],
    deadline_s: float,
    seed: int = 0,
) -> Rounds:
    """Measures cases in rounds, until they are known well enough or the time is up.

    Args:
        cases: by name, what does so many calls and returns what must be fenced for all to be done.
        meters: the open meters.
        fence: waits until the device has computed what it is given.
        enough: whether as much is known as is wanted; asked after ten rounds at the earliest.
        deadline_s: when to end, on `time.monotonic`; what has begun is waited for.
        seed: of the order of cases.

    Returns:
        What was gathered.
    """
    rounds = Rounds(tuple(cases), meters)
    idle_s = 0.0
    if meters.domains:
        idle_s = min(_MAX_IDLE_S, _IDLE_SHARE * max(0.0, deadline_s - time.monotonic()))
    deadline_s -= idle_s  # of idle afterwards
    with Ledger(meters, fence=fence, on_line=rounds.lines.append) as ledger:
        for call in cases.values():
            if time.monotonic() >= deadline_s:
                break
            with ledger.phase("compile") as phase:
                phase.fence(call(1))
        seconds_per_call = _calibrate(cases, ledger, deadline_s)
        _measure_idle(ledger, idle_s)
        if seconds_per_call is not None:
            calls = _calls_per_window(seconds_per_call, meters, deadline_s)
            expected_s = sum(calls[name] * seconds_per_call[name] for name in cases)
            _alternate(cases, calls, rounds, ledger, enough, deadline_s, expected_s, seed)
        _measure_idle(ledger, idle_s)
    return rounds


def _calibrate(
    cases: Mapping[str, Callable[[int], Any]], ledger: Ledger, deadline_s: float
) -> dict[str, float] | None:
    """How long a call takes, by twice as many calls until they can be timed.

    Returns:
        Seconds per call by case; None where the time is up before.
    """
    left_s = deadline_s - time.monotonic()
    wanted_s = min(_MAX_CALIBRATION_S, _CALIBRATION_SHARE * left_s / len(cases))
    seconds_per_call = {}
    for name, call in cases.items():
        calls, elapsed_s = 1, 0.0
        while elapsed_s < wanted_s and time.monotonic() + 2 * elapsed_s < deadline_s:
            with ledger.phase("warmup") as phase:
                start_s = time.perf_counter()
                phase.fence(call(calls))
                elapsed_s = time.perf_counter() - start_s
            seconds_per_call[name] = elapsed_s / calls
            calls *= 2
    return seconds_per_call if len(seconds_per_call) == len(cases) else None


def _calls_per_window(
    seconds_per_call: Mapping[str, float], meters: Meters, deadline_s: float
) -> dict[str, int]:
    """Calls that make a window long for the tick, and short enough for a look in the time."""
    tick_s = max((domain.tick_s for domain in meters.domains if domain.counted), default=0.0)
    left_s = max(0.0, deadline_s - time.monotonic())
    longest_s = min(_MAX_WINDOW_S, left_s / (_FIRST_LOOK * len(seconds_per_call)))
    return {
        name: windows.updates_per_window(seconds, tick_s, max_seconds=longest_s)
        for name, seconds in seconds_per_call.items()
    }


def _measure_idle(ledger: Ledger, idle_s: float) -> None:
    if idle_s:
        with ledger.phase("other"):
            time.sleep(_SETTLE_SHARE * idle_s)
        with ledger.phase("idle"):
            time.sleep((1 - _SETTLE_SHARE) * idle_s)


def _alternate(
    cases: Mapping[str, Callable[[int], Any]],
    calls: Mapping[str, int],
    rounds: Rounds,
    ledger: Ledger,
    enough: Callable[[Rounds], bool],
    deadline_s: float,
    expected_s: float,
    seed: int,
) -> None:
    """Rounds of one window of each case, in an order drawn anew; none that would end too late."""
    order = random.Random(seed)
    looks, done = Looks(), 0
    while (began_s := time.monotonic()) + expected_s <= deadline_s:
        for name in order.sample(rounds.cases, len(rounds.cases)):
            rounds.order.append(name)
            with ledger.phase("train", updates=calls[name]) as phase:
                phase.fence(cases[name](calls[name]))
        expected_s = time.monotonic() - began_s
        done += 1
        if looks.are_enough(done, lambda: enough(rounds)):
            return
