"""From lines to answers: joules per update with an interval, which windows count, and idle power.

Everything here is computed from lines of `windows.jsonl` alone, so that anybody can compute it
again.

**Which windows count.** A window is left out of a mean, never out of the account, if

1. the line says so (`steady` false: a checkpoint was being written, or it was not fenced);
2. its energy is null in a domain that is added;
3. the device was slowed down by heat or a power brake in it, and in less than half of the windows
   of which that is known (a device that is always slowed down is in its long run). Conditions are
   read once a second, so a reading stands for the windows since the one before, without a gap;
4. it belongs to a start that differs from the rest. Whether one does is tested: the second half of
   the windows gives a mean and a long-run variance, and the first half, in blocks of a twentieth of
   all, is compared with it at the 5 % level (Bonferroni). If it differs, MSER says where the
   series becomes steady (the cut that minimises the standard error of what remains), and as much
   again is left out, since an approach that is exponential is not over where MSER stops seeing it.

Without the test MSER would cut random series too and make their intervals too narrow.

References:
    K. P. White, An effective truncation heuristic for bias reduction in simulation output,
    Simulation 69, 323 (1997).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxenergy.energy.timeline import SLOW_TICK_S
from jaxenergy.stats import Estimate, difference, long_run_mean, student_quantile
from jaxenergy.units import NS_PER_S

Line = Mapping[str, Any]

MIN_WINDOWS = 5
_START_LEVEL = 0.05
_BLOCKS = 20
_BATCH = 5  # MSER-5
_LEAST_FOR_BATCHES = 50
# What placing an edge leaves, in ticks: of a slow tick after splitting, of a fast one unsplit.
_SLOW_EDGE_TICKS = 0.1
_FAST_EDGE_TICKS = 1 / math.sqrt(12)
TARGET_RELATIVE_SE = 0.01  # what the tick may add to a window's error, over its energy
_SHORTEST_WINDOW_S = 0.02  # a fence costs up to 0.1 ms, to stay below 1 %
# In the words of `meters.nvml`; a hardware slowdown is by heat or by a power brake.
_SLOWED = ("thermal", "brake", "hardware slowdown")


@dataclasses.dataclass(frozen=True)
class _Window:
    """Whole units of work between two edges."""

    start_ns: int
    end_ns: int
    duration_s: float  # less than from start to end where another phase took its place for a while
    process: tuple
    count: float
    energy_j: float
    edges_j2: float  # variance of the energy, from its edges
    slowed: bool | None  # None where no conditions were read


def updates_per_window(
    seconds_per_update: float,
    tick_s: float,
    target_relative_se: float = TARGET_RELATIVE_SE,
    max_seconds: float = 4.0,
    min_seconds: float = 0.0,
) -> int:
    """How many updates make a window in which the tick contributes less than the target.

    Each edge of a window is uncertain by a part of the tick (a tenth of a slow one, which is split;
    a tick over sqrt(12) of a fast one), so the window must last sqrt(2) times that over the target.
    Longer windows would only be fewer.

    Args:
        seconds_per_update: how long an update takes.
        tick_s: the longest tick of the counted domains.
        target_relative_se: the standard error that the tick may contribute, over the energy.
        max_seconds: the longest window.
        min_seconds: the shortest, where the tick would allow a shorter one.

    Returns:
        The number of updates, at least one.
    """
    edge_ticks = _SLOW_EDGE_TICKS if tick_s >= SLOW_TICK_S else _FAST_EDGE_TICKS
    needed_s = math.sqrt(2) * edge_ticks * tick_s / target_relative_se
    length_s = min(max(needed_s, min_seconds, _SHORTEST_WINDOW_S), max_seconds)
    return max(1, math.ceil(length_s / seconds_per_update - 1e-9))


def mean_per(
    lines: Iterable[Line], key: str = "updates", domains: Sequence[str] = ()
) -> dict[str, Any]:
    """Joules per update, iteration or example in the long run, with a 95 % interval.

    Args:
        lines: the lines of one phase, in the order of time.
        key: `updates`, `iterations` or `examples`.
        domains: the domains that are added.

    Returns:
        `mean`, `ci95` [low, high] in joules and `windows` (how many counted), or `mean` None and
        `why`.
    """
    found = estimate_per(lines, key, domains)
    if isinstance(found, str):
        return {"mean": None, "why": found}
    return {
        "mean": found.energy_j.value,
        "ci95": list(found.energy_j.interval()),
        "windows": found.windows,
    }


@dataclasses.dataclass(frozen=True)
class LongRun:
    """What one update (or iteration, or example) takes in the long run.

    Attributes:
        energy_j: joules.
        duration_s: mean duration, in the windows that the joules come from.
        windows: how many windows counted.
        ends_ns: when each of these ended.
    """

    energy_j: Estimate
    duration_s: float
    windows: int
    ends_ns: frozenset[int]


def without_lag(lines: Iterable[Line], ticks_s: Mapping[str, float]) -> list[Line]:
    """Lines with the joules where they flowed that a fast counter showed half a tick late.

    Its readings are half a tick old on average. So a line of P1 watts that follows one of P2 is
    told T/2 (P1 - P2) too low. Where lines take turns that is the same in each, and no mean of many
    has less of it. The powers are those of the lines.

    Args:
        lines: in the order of time, without gaps.
        ticks_s: the tick of each domain whose counter ticks fast; others are left as they are.

    Returns:
        The lines. One of less than two ticks, which tells no power, is as it was, and so is one
        with nothing known before it.
    """
    found: list[Line] = []
    before_w: dict[str, float] = {}
    for line in lines:
        duration_s = (line["end_ns"] - line["start_ns"]) / NS_PER_S
        energy_j = dict(line["energy_j"])
        for domain, tick_s in ticks_s.items():
            told_j, lag_s = energy_j.get(domain), tick_s / 2
            if told_j is None:
                before_w.pop(domain, None)
            elif duration_s >= 2 * tick_s:
                if domain in before_w:
                    spent_j = (told_j - lag_s * before_w[domain]) / (1 - lag_s / duration_s)
                    energy_j[domain] = max(0.0, spent_j)
                before_w[domain] = energy_j[domain] / duration_s
        found.append({**line, "energy_j": energy_j})
    return found


def estimate_per(lines: Iterable[Line], key: str, domains: Sequence[str]) -> LongRun | str:
    """As `mean_per`, with the duration, or the reason why not."""
    if not domains:
        return "no domain was counted"
    windows, why = _windows(lines, key, domains)
    if not windows:
        return why or "no steady window was finished"
    slowed = _slowed(windows)
    known = [one for one in slowed if one is not None]
    if sum(known) < len(known) / 2:
        windows = [window for window, one in zip(windows, slowed, strict=True) if not one]
    start = first_steady([window.energy_j / window.count for window in windows])
    windows = windows[start:]
    if len(windows) < MIN_WINDOWS:
        return (
            f"{len(windows)} steady windows are too few for an interval, "
            f"which needs {MIN_WINDOWS}" + (f"; {why}" if why else "")
        )
    estimate = long_run_mean(
        [window.energy_j for window in windows],
        [window.count for window in windows],
        # What edges err by is in the series: where windows adjoin it cancels, where they lie apart
        # it scatters. The two outermost are added, which a very regular series may not show.
        known_variance=(windows[0].edges_j2 + windows[-1].edges_j2) / 2,
    )
    duration_s = math.fsum(window.duration_s for window in windows)
    count = math.fsum(window.count for window in windows)
    ends_ns = frozenset(window.end_ns for window in windows)
    return LongRun(estimate, duration_s / count, len(windows), ends_ns)


def relative_window_error(lines: Iterable[Line], domains: Sequence[str]) -> float | None:
    """What ticks and resolution leave uncertain of a typical window.

    Args:
        lines: the lines of one phase, in the order of time.
        domains: the domains that are added.

    Returns:
        The median over windows of the standard error over the energy; None where no window counts.
    """
    found = [
        math.sqrt(window.edges_j2) / window.energy_j
        for window in _windows(lines, "updates", domains)[0]
        if window.energy_j > 0
    ]
    return float(np.median(found)) if found else None


def first_steady(values: Sequence[float]) -> int:
    """How many values at the start are not yet steady, by the rule this module states.

    Args:
        values: joules per update of each window, in the order of time.

    Returns:
        The number to leave out, at most three quarters of all.
    """
    series = np.asarray(values, dtype=float)
    n = len(series)
    if n < 2 * MIN_WINDOWS or not _start_differs(series):
        return 0
    return min(2 * _mser(series, _BATCH if n >= _LEAST_FOR_BATCHES else 1), 3 * n // 4)


def _start_differs(series: np.ndarray) -> bool:
    half = len(series) // 2
    later = long_run_mean(series[half:])
    length = max(1, len(series) // _BLOCKS)
    blocks = half // length
    means = series[: blocks * length].reshape(blocks, length).mean(axis=1)
    # The long-run variance of one value; that of a block's mean is at most this over its length.
    value_variance = later.standard_error**2 * (len(series) - half)
    error = math.sqrt(value_variance / length + later.standard_error**2)
    quantile = student_quantile(1 - _START_LEVEL / 2 / blocks, later.freedom)
    return bool(np.any(np.abs(means - later.value) > quantile * error))


def _mser(series: np.ndarray, batch: int) -> int:
    """The truncation point of White's marginal standard error rule, over means of batches."""
    count = len(series) // batch
    odd = len(series) - count * batch  # values at the start that fill no batch
    means = series[odd:].reshape(count, batch).mean(axis=1)
    scores = [means[cut:].var() / (count - cut) for cut in range(count // 2 + 1)]
    best = int(np.argmin(scores))
    return best * batch + odd if best else 0


def _windows(
    lines: Iterable[Line], key: str, domains: Sequence[str]
) -> tuple[list[_Window], str | None]:
    """The windows among lines that can count, and why others cannot.

    A line without a count is a part of the next one: a phase inside took its place for a while.
    """
    windows: list[_Window] = []
    why: str | None = None
    parts: list[Line] = []
    for line in lines:
        if not line["steady"] or not line["fenced"]:
            parts = []
            if line.get(key):
                why = why or (
                    "others were not fenced"
                    if not line["fenced"]
                    else "others were marked unsteady, as while a checkpoint is being written"
                )
            continue
        unknown = [name for name in domains if line["energy_j"].get(name) is None]
        if unknown:
            why = line["why"].get(unknown[0], f"{unknown[0]} was not metered")
            parts = []
            continue
        parts.append(line)
        if not line.get(key):
            continue
        windows.append(
            _Window(
                start_ns=parts[0]["start_ns"],
                end_ns=line["end_ns"],
                duration_s=sum(part["end_ns"] - part["start_ns"] for part in parts) / NS_PER_S,
                process=(line.get("boot_id"), line.get("attempt")),
                count=line[key],
                energy_j=math.fsum(part["energy_j"][name] for part in parts for name in domains),
                edges_j2=math.fsum(
                    part["uncertainty_j"][name] ** 2 for part in parts for name in domains
                ),
                slowed=_read_slowed(parts, domains),
            )
        )
        parts = []
    return windows, why


def _read_slowed(parts: Sequence[Line], domains: Sequence[str]) -> bool | None:
    """Whether a window's conditions say that the device was slowed down; None without any."""
    reasons = [
        part["conditions"].get(name, {}).get("throttle_reasons")
        for part in parts
        if part.get("conditions")
        for name in domains
    ]
    if all(one is None for one in reasons):
        return None
    return any(word in reason for one in reasons for reason in one or () for word in _SLOWED)


def _slowed(windows: Sequence[_Window]) -> list[bool | None]:
    """Whether the device was slowed down in each window, by the next reading of its stretch."""
    told: list[bool | None] = []
    reading: bool | None = None
    after: _Window | None = None
    for window in reversed(windows):
        if window.slowed is not None:
            reading = window.slowed
        elif after is None or not _adjoin(window, after):
            reading = None
        told.append(reading)
        after = window
    return told[::-1]


def _adjoin(first: _Window, second: _Window) -> bool:
    return first.process == second.process and first.end_ns == second.start_ns


@dataclasses.dataclass(frozen=True)
class IdlePower:
    """Idle power of a domain, in watts.

    Attributes:
        before: as measured first.
        after: as measured last; None where it was measured once.
        drift: after less before; None where it was measured once.
        during: its value in between, whose error includes the drift.
    """

    before: Estimate
    after: Estimate | None
    drift: Estimate | None
    during: Estimate


def idle_power_w(lines: Iterable[Line], domain: str) -> IdlePower | str:
    """Idle power before and after a run.

    Where it changed from one to the other nothing says when: in between it is taken as their mean,
    with the variance of a value that could lie anywhere between them, (after - before)^2 / 12.

    Args:
        lines: all lines of a process.
        domain: the domain.

    Returns:
        The power, or the reason why it is not known.
    """
    groups: list[list[Line]] = []
    within = False
    for line in lines:
        if line["phase"] == "idle":
            if not within:
                groups.append([])
            groups[-1].append(line)
        within = line["phase"] == "idle"
    if not groups:
        return "idle power was not measured"
    for line in (*groups[0], *groups[-1]):
        if line["energy_j"].get(domain) is None:
            return line["why"].get(domain, f"{domain} was not metered")
    before = _mean_power_w(groups[0], domain)
    if len(groups) == 1:
        return IdlePower(before, None, None, before)
    after = _mean_power_w(groups[-1], domain)
    drift = difference(after, before)
    error = math.hypot(drift.standard_error / 2, drift.value / math.sqrt(12))
    during = Estimate((before.value + after.value) / 2, error, drift.freedom)
    return IdlePower(before, after, drift, during)


def _mean_power_w(lines: Sequence[Line], domain: str) -> Estimate:
    joules = [line["energy_j"][domain] for line in lines]
    seconds = [(line["end_ns"] - line["start_ns"]) / NS_PER_S for line in lines]
    first, last = (lines[i]["uncertainty_j"][domain] for i in (0, -1))
    edges_j2 = (first**2 + last**2) / 2
    if len(lines) < MIN_WINDOWS:
        return Estimate(math.fsum(joules) / math.fsum(seconds), math.sqrt(edges_j2) / sum(seconds))
    return long_run_mean(joules, seconds, known_variance=edges_j2)


def net_energy_j(lines: Iterable[Line], idle: IdlePower, domain: str) -> Estimate | str:
    """Energy above idle, with the uncertainty of the idle power in it.

    Args:
        lines: the lines whose energy it is, in the order of time.
        idle: the idle power.
        domain: the domain.

    Returns:
        Joules, or the reason why they are not known.
    """
    joules, seconds, edges_j2, ended_ns, last_j2 = [], [], 0.0, None, 0.0
    for line in lines:
        if line["energy_j"].get(domain) is None:
            return line["why"].get(domain, f"{domain} was not metered")
        joules.append(line["energy_j"][domain])
        seconds.append((line["end_ns"] - line["start_ns"]) / NS_PER_S)
        half_j2 = line["uncertainty_j"][domain] ** 2 / 2
        if line["start_ns"] != ended_ns:
            edges_j2 += last_j2 + half_j2
        ended_ns, last_j2 = line["end_ns"], half_j2
    duration_s = math.fsum(seconds)
    idle_j = idle.during.value * duration_s
    error = math.hypot(idle.during.standard_error * duration_s, math.sqrt(edges_j2 + last_j2))
    return Estimate(math.fsum(joules) - idle_j, error, idle.during.freedom)
