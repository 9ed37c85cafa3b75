"""Shown against known energy: the errors of attribution and of intervals, on a simulated card.

    python benchmarks/attribution.py            everything, in a few minutes
    python benchmarks/attribution.py placement  errors of a phase's energy, beside Zeus if installed
    python benchmarks/attribution.py swings     swings of other periods: is the uncertainty right?
    python benchmarks/attribution.py intervals  how often an interval holds the truth
    python benchmarks/attribution.py turns      the same where windows take turns with others
    python benchmarks/attribution.py ratios     how often the interval of a ratio does
    python benchmarks/attribution.py cost       what metering takes of a processor

Time is virtual: the library's own ledger and timelines run on a clock that the simulation moves.
What `docs/measuring.md` quotes is printed here.
"""

import importlib.metadata
import logging
import math
import random
import sys
import time
from collections.abc import Callable

import numpy as np

from jaxenergy.energy import Ledger, mean_per
from jaxenergy.energy.timeline import SLOW_TICK_S
from jaxenergy.energy.windows import without_lag
from jaxenergy.meters.simulated import PowerCurve, SimulatedCounter, SimulatedMeter, VirtualClock
from jaxenergy.stats import long_run_mean, long_run_ratio
from jaxenergy.units import NS_PER_S

LOW_W, HIGH_W = 80.0, 400.0
NAME = "simulated:0"


class Simulation:
    """A program on a simulated card whose power it decides as it goes.

    Args:
        tick_s: the counter's period.
        jitter: of the period, relative.
        seed: of the counter.
        power_w: power at first.
        options: of the counter.
    """

    def __init__(self, tick_s: float, jitter: float, seed: int, power_w: float = LOW_W, **options):
        self.clock = VirtualClock(NS_PER_S)
        self.curve = PowerCurve([0.0], [power_w])
        self.counter = SimulatedCounter(
            self.curve, tick_s=tick_s, jitter=jitter, seed=seed, clock_ns=self.clock, **options
        )
        self.ledger = Ledger(
            SimulatedMeter([self.counter]),
            clock_ns=self.clock,
            wall_clock=lambda: 0.0,
            sleep_s=self.clock.sleep_s,
            threaded=False,
        )

    @property
    def now_s(self) -> float:
        """Seconds since the simulation began."""
        return (self.clock() - NS_PER_S) / NS_PER_S

    def set_power(self, power_w: float) -> None:
        """Power from now on."""
        self.curve.add(self.now_s, power_w)

    def script(self, begin_s: float, times_s: np.ndarray, powers_w: np.ndarray) -> None:
        """Power to come, at times after `begin_s`."""
        for time_s, power_w in zip(times_s, powers_w, strict=True):
            self.curve.add(begin_s + float(time_s), float(power_w))

    def run(self, duration_s: float) -> None:
        """Lets time pass."""
        self.clock.run_until(self.clock() + round(duration_s * NS_PER_S), self.ledger)

    def true_j(self, line: dict) -> float:
        """What really flowed during a line."""
        return self.counter.true_energy_j(line["start_ns"], line["end_ns"])


# Errors of a phase's energy


def _square(length_s: float, period_s: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Times and powers of a square wave between the two powers, begun anywhere in its period."""
    times, powers, at, high = [0.0], [], -offset * period_s, True
    while at <= 0:
        at += period_s / 2
        high = not high
    powers.append(LOW_W if high else HIGH_W)
    while at < length_s:
        times.append(at)
        powers.append(HIGH_W if high else LOW_W)
        at += period_s / 2
        high = not high
    return np.array(times), np.array(powers)


# What power does in a phase, and between phases: a period of a square wave in s, or a power in W.
CASES: dict[str, tuple[float, float]] = {
    "constant 400 W": (HIGH_W, HIGH_W),
    "10 ms square wave": (0.010, 0.010),
    "steps 80 -> 400 W": (HIGH_W, LOW_W),
    "37 ms swing, steps": (0.037, LOW_W),
    "410 ms swing, steps": (0.410, LOW_W),
    "37 ms swing throughout": (0.037, 0.037),
    "410 ms swing throughout": (0.410, 0.410),
}


def phase_errors(
    case: str,
    length_s: float,
    tick_s: float,
    jitter: float,
    phases: int,
    seed: int,
    vary: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relative errors of the energies of phases that begin anywhere in a tick.

    Args:
        case: one of `CASES`.
        length_s: the phases' length.
        tick_s: the counter's period.
        jitter: of the period, relative.
        phases: how many.
        seed: of everything random.
        vary: how far lengths are drawn around that one, relative.

    Returns:
        Errors over the true energy [phases], their stated standard errors likewise, and the
        errors of Zeus (of the difference of two readings, where it is not installed).
    """
    inside, outside = CASES[case]
    rng = random.Random(seed)
    simulation = Simulation(tick_s, jitter, seed, power_w=LOW_W)

    def draw(what: float, duration_s: float) -> None:
        begin_s = simulation.now_s
        if what >= LOW_W:
            simulation.set_power(what)
        else:
            simulation.script(begin_s, *_square(duration_s, what, rng.random()))

    def pause(duration_s: float) -> None:
        draw(outside, duration_s)
        simulation.run(duration_s)

    pause(1.0 + rng.random())
    other = open_zeus(simulation.counter) or TwoReadings(simulation.counter)
    others_j = []
    lengths_s = length_s * np.random.default_rng(seed).uniform(1 - vary, 1 + vary, phases)
    for this_s in lengths_s:
        draw(inside, this_s)
        with simulation.ledger.phase("train", updates=1) as phase:
            other.begin_window()
            simulation.run(this_s)
            others_j.append(other.end_window())
            phase.fence()
        pause(0.3 + 0.7 * rng.random())
    simulation.ledger.close()
    lines = [line for line in simulation.ledger.lines if line["phase"] == "train"]
    true_j = np.array([simulation.true_j(line) for line in lines])
    energy_j = np.array([line["energy_j"][NAME] for line in lines])
    stated_j = np.array([line["uncertainty_j"][NAME] for line in lines])
    return (energy_j - true_j) / true_j, stated_j / true_j, (np.array(others_j) - true_j) / true_j


def many_phase_errors(
    case, length_s, tick_s=0.1, jitter=0.02, phases=20, runs=10, seed=0, vary=0.0
):
    """`phase_errors` over several simulations."""
    parts = [
        phase_errors(case, length_s, tick_s, jitter, phases, seed + run, vary)
        for run in range(runs)
    ]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


class TwoReadings:
    """The energy between two readings, as every tracker without a timeline has it."""

    def __init__(self, counter: SimulatedCounter):
        self._counter = counter
        self._begin_j = 0.0

    def begin_window(self) -> None:
        """Begins a window."""
        self._begin_j = self._counter.read_j()

    def end_window(self) -> float:
        """Joules since the window began."""
        return self._counter.read_j() - self._begin_j


def zeus_version() -> str | None:
    """The version of the zeus package; None where it is not installed."""
    try:
        return importlib.metadata.version("zeus")
    except importlib.metadata.PackageNotFoundError:
        return None


def open_zeus(counter: SimulatedCounter):
    """A ZeusMonitor whose GPU is the simulated card; None where Zeus is not installed."""
    if zeus_version() is None:
        return None
    import zeus.monitor.energy as zeus

    class Card:
        """What ZeusMonitor asks of its GPUs."""

        def supports_get_total_energy_consumption(self, gpu_index: int) -> bool:
            return True

        def get_total_energy_consumption(self, gpu_index: int) -> float:
            return 1000 * counter.read_j()  # in mJ, as NVML

    class Window:
        """The monitor with one window, without fences, which a simulation does not need."""

        def __init__(self):
            logging.disable(logging.WARNING)  # it announces each window without a tick
            zeus.get_gpus = lambda: Card()  # type: ignore[assignment]
            self._monitor = zeus.ZeusMonitor(gpu_indices=[0], cpu_indices=[])

        def begin_window(self) -> None:
            self._monitor.begin_window("phase", sync_execution=False)

        def end_window(self) -> float:
            return self._monitor.end_window("phase", sync_execution=False).gpu_energy[0]

    return Window()


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def print_placement() -> None:
    """A table of the errors of a phase's energy."""
    version = zeus_version()
    beside = f"Zeus {version}" if version else "two readings"
    print("Errors of a phase's energy, % of it; tick 100 ms, jitter 2 %, 400 phases a row.")
    print("stated: rms of the standard errors; 1 se, 2 se: how often the error was within 1, 1.96.")
    heads = f"{'rms':>7}{'bias':>8}{'stated':>8}{'1 se':>6}{'2 se':>6}  | {beside + ': rms':>18}"
    print(f"{'power':24}{'length':>7} {heads}{'bias':>8}")
    for case in CASES:
        for length_s in (1.0, 0.5, 0.2, 0.1, 0.05):
            error, stated, naive = many_phase_errors(case, length_s, runs=20)
            print(
                f"{case:24}{length_s:5.2f} s {100 * rms(error):7.3f}{100 * error.mean():8.3f}"
                f"{100 * rms(stated):8.3f}{np.mean(abs(error) < stated):6.2f}"
                f"{np.mean(abs(error) < 1.96 * stated):6.2f}"
                f"  | {100 * rms(naive):18.2f}{100 * naive.mean():8.2f}"
            )


# Drawn once the method stood, evenly in the logarithm (`default_rng(3)`): none was chosen by.
OTHER_PERIODS_S = (
    0.0111, 0.0166, 0.0172, 0.0189, 0.0236, 0.0341, 0.0427, 0.0445, 0.0457, 0.0492, 0.0712, 0.0859,
    0.0869, 0.1082, 0.1295, 0.1770, 0.1810, 0.2430, 0.3050, 0.3663, 0.3720, 0.5036, 1.0551, 1.1454,
)  # fmt: skip
KEEPING_STEP_S = (0.010, 0.020, 0.025, 1 / 30, 0.050, 0.100)


def swing_errors(
    period_s: float, length_s: float, runs: int = 20, seed: int = 1000, vary: float = 0.0
):
    """`many_phase_errors` of a swing throughout, of any period."""
    CASES["swing"] = (period_s, period_s)
    try:
        return many_phase_errors("swing", length_s, runs=runs, seed=seed, vary=vary)
    finally:
        del CASES["swing"]


def print_swings() -> None:
    """A table of how often the stated uncertainty covers the error, by period of the swing."""
    print("Swings between 80 and 400 W throughout; tick 100 ms, jitter 2 %, 400 phases a row.")
    print("stated/rms: of the standard errors over that of the errors; 2 se: within 1.96 of them.")
    lengths = (1.0, 0.5, 0.2)
    print(f"{'period':>10}" + "".join(f" | {x:.1f} s: rms  stated/rms  2 se" for x in lengths))
    for name, periods in (("other", OTHER_PERIODS_S), ("in step", KEEPING_STEP_S)):
        print(name)
        held, varied = [], []
        for period_s in periods:
            row = f"{1e3 * period_s:7.1f} ms"
            for length_s in lengths:
                error, stated, _ = swing_errors(period_s, length_s)
                held.append(abs(error) < 1.96 * stated)
                row += f" | {100 * rms(error):10.2f} {rms(stated) / rms(error):11.2f}"
                row += f" {held[-1].mean():5.3f}"
                error, stated, _ = swing_errors(period_s, length_s, vary=0.2)
                varied.append(abs(error) < 1.96 * stated)
            print(row, flush=True)
        for what, table in (("", held), (", lengths drawn within 20 %", varied)):
            phases = np.reshape(table, (len(periods), len(lengths), -1, 20))  # 20 to a run
            cells = phases.mean(axis=(2, 3))
            print(
                f"2 se{what}: mean "
                + ", ".join(f"{mean:.3f}" for mean in cells.mean(axis=0))
                + f", all {cells.mean():.3f} ({cells.min():.3f} to {cells.max():.3f}); first ten "
                f"phases of a run {phases[..., :10].mean():.3f}, "
                f"last ten {phases[..., 10:].mean():.3f}"
            )


# Intervals of joules per update

MEAN_W = 300.0
UPDATE_S = 0.0125
UPDATES = 20  # per window, of a quarter of a second
WINDOWS = 60
_PIECE_S = 0.05  # power is constant for so long


def _white(rng: np.random.Generator, pieces: int) -> np.ndarray:
    return MEAN_W * (1 + 0.2 * rng.uniform(-1, 1, pieces))


def _autocorrelated(rng: np.random.Generator, pieces: int) -> np.ndarray:
    """A first-order process with a correlation time of 0.3 s, longer than a window."""
    keep = math.exp(-_PIECE_S / 0.3)
    noise = rng.standard_normal(pieces) * math.sqrt(1 - keep**2)
    values = np.empty(pieces)
    values[0] = rng.standard_normal()
    for index in range(1, pieces):
        values[index] = keep * values[index - 1] + noise[index]
    return MEAN_W * (1 + 0.05 * values)


def _drifting(rng: np.random.Generator, pieces: int) -> np.ndarray:
    """Autocorrelated, after a start that is 20 % too high and decays with 0.8 s."""
    start = np.exp(-np.arange(pieces) * _PIECE_S / 0.8)
    return _autocorrelated(rng, pieces) * (1 + 0.2 * start)


def _constant(rng: np.random.Generator, pieces: int) -> np.ndarray:
    return np.full(pieces, MEAN_W)


def _swinging(rng: np.random.Generator, pieces: int) -> np.ndarray:
    """A sine with a period of 1.7 s from a random phase."""
    return MEAN_W * (1 + 0.2 * np.sin(2 * np.pi * (np.arange(pieces) / 34 + rng.random())))


RANDOM: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "white": _white,
    "autocorrelated": _autocorrelated,
    "drifting, then steady": _drifting,
}
DETERMINISTIC: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "constant": _constant,
    "sine of 1.7 s": _swinging,
}


def interval_holds(
    power: Callable, tick_s: float, seed: int, other_w: float | None = None
) -> tuple[bool, float, float]:
    """One run of windows.

    Args:
        power: of `RANDOM` or `DETERMINISTIC`.
        tick_s: the counter's period, with a jitter of 2 %.
        seed: of everything random.
        other_w: the power of another program, which has a window after each of these, of a length
            drawn within 20 % of theirs; None where they adjoin.

    Returns:
        Whether the interval of joules per update holds the long-run truth, half its width, and
        the error of the mean.
    """
    rng = np.random.default_rng(seed)
    simulation = Simulation(tick_s, 0.02, seed, power_w=LOW_W)
    simulation.run(0.4)
    window_s = UPDATES * UPDATE_S
    pieces = round(window_s / _PIECE_S)
    power_w = power(rng, WINDOWS * pieces + 20)
    if other_w is None:
        simulation.script(simulation.now_s, np.arange(len(power_w)) * _PIECE_S, power_w)
        with simulation.ledger.phase("train") as phase:
            for _ in range(WINDOWS):
                simulation.run(window_s)
                phase.cut(updates=UPDATES)
    else:
        for first in range(0, WINDOWS * pieces, pieces):
            own_w = power_w[first : first + pieces]
            simulation.script(simulation.now_s, np.arange(pieces) * _PIECE_S, own_w)
            _window(simulation, window_s)
            simulation.set_power(other_w)
            _window(simulation, window_s * rng.uniform(0.8, 1.2))
    simulation.ledger.close()
    lines = simulation.ledger.lines
    if other_w is not None:
        fast = {NAME: tick_s} if tick_s < SLOW_TICK_S else {}
        lines = without_lag(lines, fast)  # as `compare` takes them
    lines = [line for line in lines if line["phase"] == "train"]
    lines = lines if other_w is None else lines[::2]
    found = mean_per(lines, "updates", [NAME])
    true_j = MEAN_W * UPDATE_S
    low_j, high_j = found["ci95"]
    return low_j <= true_j <= high_j, (high_j - low_j) / 2, found["mean"] - true_j


def _window(simulation: Simulation, length_s: float) -> None:
    with simulation.ledger.phase("train", updates=UPDATES) as phase:
        simulation.run(length_s)
        phase.fence()


def coverage(
    power: Callable, tick_s: float, repetitions: int, other_w: float | None = None
) -> tuple[float, float, float]:
    """Part of runs whose interval holds the truth, mean half-width over rms error, rms error."""
    runs = [interval_holds(power, tick_s, seed, other_w) for seed in range(repetitions)]
    held, half_widths, errors = (np.array(column) for column in zip(*runs, strict=True))
    return float(held.mean()), float(half_widths.mean() / rms(errors)), rms(errors)


def print_intervals(repetitions: int) -> None:
    """A table of coverages."""
    print(f"95 % intervals of J per update, {repetitions} runs of {WINDOWS} windows of 0.25 s")
    print(f"{'power':32}{'tick':>8} {'holds':>8} {'half-width / rms error':>24}{'rms error':>11}")
    for name, power in (RANDOM | DETERMINISTIC).items():
        for tick_s in (0.001, 0.02, 0.1):
            _print_interval(name, power, tick_s, repetitions, None)


def print_turns(repetitions: int) -> None:
    """The same of windows that take turns with those of another program."""
    print(f"95 % intervals of J per update, {repetitions} runs of {WINDOWS} windows of 0.25 s,")
    print(f"each followed by one of another program; constant power is {MEAN_W:.0f} W")
    for name in ("constant", "white"):
        for tick_s in (0.001, 0.02, 0.1):
            for other_w in (MEAN_W, LOW_W):
                power = (RANDOM | DETERMINISTIC)[name]
                _print_interval(
                    f"{name}, the other {other_w:.0f} W", power, tick_s, repetitions, other_w
                )


def _print_interval(
    name: str, power: Callable, tick_s: float, repetitions: int, other_w: float | None
) -> None:
    held, ratio, error_j = coverage(power, tick_s, repetitions, other_w)
    relative = 100 * error_j / (MEAN_W * UPDATE_S)
    print(f"{name:32}{1e3 * tick_s:5.0f} ms {100 * held:7.1f}% {ratio:24.2f}{relative:10.3f}%")
    sys.stdout.flush()


# Intervals of a ratio of two programs that are measured by turns

RATIO = 2.0


def ratios_hold(
    rounds: int, scatter: float, repetitions: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the intervals of a ratio that is `RATIO` in truth.

    Args:
        rounds: of one window each.
        scatter: of a window, relative to the mean; half of its variance is the round's, shared.
        repetitions: how many intervals.
        seed: of the draws.

    Returns:
        The ends by Fieller's method, infinite where there are none, and those of the ratio's own
        standard error, which is the same on both sides [repetitions, 2].
    """
    rng = np.random.default_rng(seed)
    fieller, symmetric = [], []
    for _ in range(repetitions):
        shape = 2 / scatter**2
        shared, *own = rng.gamma(shape, 1 / shape, (3, rounds))
        above, below = RATIO * shared * own[0], shared * own[1]
        fieller.append(long_run_ratio(above, below)[1:])
        symmetric.append(long_run_mean(above, below).interval())
    return np.array(fieller), np.array(symmetric)


def print_ratios(repetitions: int) -> None:
    """A table of how often intervals of a ratio hold it, and on which side it is missed."""
    print(f"95 % intervals of a ratio of {RATIO:g}, {repetitions} measurements a row")
    names = ("Fieller:", "symmetric:")
    heads = f"{'bounded':>9}{'holds':>7}{'too high':>9}{'too low':>8}"
    print(f"{'scatter':>8}{'rounds':>7}" + "".join(f" | {name} {heads}" for name in names))
    for scatter in (0.05, 0.2, 0.4):
        for rounds in (5, 10, 40):
            row = f"{scatter:8.0%}{rounds:7}"
            for name, ends in zip(names, ratios_hold(rounds, scatter, repetitions), strict=True):
                low, high = ends[np.isfinite(ends[:, 1])].T
                held = np.mean((low <= RATIO) & (high >= RATIO))
                row += f" | {'':{len(name)}} {len(low) / repetitions:9.1%}{held:7.1%}"
                row += f"{np.mean(low > RATIO):9.1%}{np.mean(high < RATIO):8.1%}"
            print(row, flush=True)


# Cost


def cost(update_s: float, duration_s: float = 6.0) -> tuple[float, float, float, float]:
    """What metering takes of a processor, in real time.

    Args:
        update_s: how long an update takes; it is spent in numpy.
        duration_s: how long to train.

    Returns:
        CPU time of the ledger's thread, of the fences on a state of 60 arrays and of the cuts,
        over the CPU time of the process; and that over the time on the clock. Polls come by the
        clock: on a machine that gives the process half a core their share is twice what it is.
    """
    import jax

    from jaxenergy.energy import updates_per_window

    counters = [
        SimulatedCounter(PowerCurve([0.0], [200.0]), name="gpu:0", tick_s=0.1, jitter=0.01),
        SimulatedCounter(PowerCurve([0.0], [90.0]), name="cpu:package-0", tick_s=0.001),
    ]
    updates = updates_per_window(update_s, 0.1)
    matrix = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    state = [jax.numpy.asarray(matrix) + number for number in range(60)]
    jax.block_until_ready(state)

    def update() -> None:
        end = time.perf_counter() + update_s
        while time.perf_counter() < end:
            for _ in range(10):
                np.matmul(matrix, matrix)

    update()
    start_s, fences_s, cuts_s = time.perf_counter(), 0.0, 0.0
    process_s, main_s = time.process_time(), time.thread_time()
    ledger = Ledger(SimulatedMeter(counters), fence=jax.block_until_ready)
    with ledger, ledger.phase("train") as phase:
        for _ in range(round(duration_s / (updates * update_s))):
            for _ in range(updates):
                update()
            before_s = time.thread_time()
            phase.fence(state)
            fenced_s = time.thread_time()
            phase.cut(updates=updates)  # waits for nothing more
            fences_s += fenced_s - before_s
            cuts_s += time.thread_time() - fenced_s
    process_s, main_s = time.process_time() - process_s, time.thread_time() - main_s
    had = process_s / (time.perf_counter() - start_s)
    return (process_s - main_s) / process_s, fences_s / process_s, cuts_s / process_s, had


def time_per_window(begin: Callable, end: Callable, windows: int) -> float:
    """Seconds of a begun and ended window."""
    start_s = time.perf_counter()
    for _ in range(windows):
        begin()
        end()
    return (time.perf_counter() - start_s) / windows


def print_cost() -> None:
    """A table of what metering costs."""
    print("CPU time of metering over that of the process: a counter of 100 ms and one of 1 ms")
    for update_s in (0.001, 0.020):
        thread, fences, cuts, had = cost(update_s)
        print(
            f"updates of {1e3 * update_s:3.0f} ms: thread {100 * thread:.2f} %, fences "
            f"{100 * fences:.3f} %, cuts {100 * cuts:.3f} % (the process had {had:.2f} of a core)"
        )
    counter = SimulatedCounter(PowerCurve([0.0], [90.0]), tick_s=0.001)
    ledger = Ledger(SimulatedMeter([counter]), on_line=lambda line: None)
    with ledger.phase("train") as phase:
        window_s = time_per_window(lambda: None, lambda: phase.cut(updates=1), 5000)
    print(f"a window of ours, one counter of 1 ms: {1e6 * window_s:.0f} us")
    zeus = open_zeus(counter)
    if zeus is None:
        print("Zeus is not installed here")
    else:
        window_s = time_per_window(zeus.begin_window, zeus.end_window, 2000)
        print(f"a window of Zeus {zeus_version()} on it: {1e6 * window_s:.0f} us")
    try:
        from codecarbon import OfflineEmissionsTracker  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("CodeCarbon is not installed here")
        return
    tracker = OfflineEmissionsTracker(country_iso_code="DEU", save_to_file=False, log_level="error")
    tracker.start_task("begin")
    tracker.stop_task("begin")
    window_s = time_per_window(lambda: tracker.start_task("w"), lambda: tracker.stop_task("w"), 5)
    print(f"a task of CodeCarbon: {1e6 * window_s:.0f} us")


PARTS = {
    "placement": print_placement,
    "swings": print_swings,
    "intervals": lambda: print_intervals(2000),
    "turns": lambda: print_turns(400),
    "ratios": lambda: print_ratios(20000),
    "cost": print_cost,
}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
