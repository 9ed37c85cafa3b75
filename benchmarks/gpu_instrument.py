"""The instrument checks on a real GPU: what its sensors do, and what attribution makes of them.

    benchmarks/gpu.sh instrument

What is shown on simulated cards (`benchmarks/attribution.py`) rests on assumptions about sensors.
Here they are looked at: how the energy counter ticks, whether it agrees with integrated power, what
data values do to power, whether intervals hold what they should, and how well a phase shorter than
a few ticks is known. Nothing of the card's settings is changed.

A long run has no known truth on a real card. So each check says what it holds a number against, and
what else may be in the difference.
"""

import collections
import dataclasses
import functools
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gpu_stage import Check, Stage, run_stage
from scipy import special

from jaxenergy.energy import Ledger, windows
from jaxenergy.measuring import compare, jax_fence
from jaxenergy.meters import CounterError
from jaxenergy.meters.nvml import list_gpus
from jaxenergy.stats import Estimate, difference, long_run_mean, student_quantile
from jaxenergy.units import NS_PER_S, format_si

Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long and how large the checks are.

    Attributes:
        counter_s: seconds of polling the energy counter, busy and then idle.
        sensors_s: seconds of polling the power sensors, busy.
        settle_s: after a change between busy and idle, before what stands for one of them.
        stretches: name (begins with `busy` or `idle`) and seconds, for counter against power.
        product_size: rows and columns of the matrices of zeros, constants and random numbers.
        compare_s: seconds for each precision.
        coverage_s: seconds of updates of each length.
        window_s: the length of a window of them.
        blocks: how many windows make a block.
        short_phases: how often each length in seconds comes.
        long_phases: how many, busy and idle each.
        long_s: their length, in which `settle_s` come first.
        width: units of the layers of the network that makes the load.
        examples: its batch size to begin with.
        dtype: its precision.
    """

    counter_s: tuple[float, float]
    sensors_s: float
    settle_s: float
    stretches: tuple[tuple[str, float], ...]
    product_size: int
    compare_s: float
    coverage_s: float
    window_s: float
    blocks: tuple[int, ...]
    short_phases: Mapping[float, int]
    long_phases: int
    long_s: float
    width: int
    examples: int
    dtype: str


FULL = Budget(
    counter_s=(10.0, 5.0),
    sensors_s=6.0,
    settle_s=2.0,
    stretches=(("idle before", 10.0), ("busy", 20.0), ("idle after", 20.0)),
    product_size=8192,
    compare_s=18.0,
    coverage_s=70.0,
    window_s=0.25,
    blocks=(10, 20, 40),
    short_phases={0.2: 30, 0.5: 20, 1.0: 12},
    long_phases=3,
    long_s=5.0,
    width=4096,
    examples=2048,
    dtype="bfloat16",
)
# A stretch of counter against power must last 5 s for the library's own check of them.
SMOKE = Budget(
    counter_s=(1.2, 0.6),
    sensors_s=0.3,
    settle_s=0.2,
    stretches=(("busy", 5.2), ("idle after", 0.9)),
    product_size=128,
    compare_s=0.8,
    coverage_s=1.6,
    window_s=0.1,
    blocks=(5, 6),
    short_phases={0.2: 3, 0.3: 2},
    long_phases=2,
    long_s=0.5,
    width=64,
    examples=64,
    dtype="float32",
)

# The two lengths of an update that intervals and costs are stated for.
SHORT_UPDATE_S, LONG_UPDATE_S = 0.001, 0.020
PRECISIONS = {
    # dtype and precision as jax.lax.Precision has it; the float32 default may be TF32 on a GPU.
    "bfloat16": ("bfloat16", "default"),
    "float32, default precision": ("float32", "default"),
    "float32, highest precision": ("float32", "highest"),
}
_POLL_PAUSE_S = 0.0005
_AHEAD = 4
_BLOCKS_OF_STRETCH = 10
# Of which a quarter, the least that is kept after a start that differs, still gives an interval.
_LEAST_WINDOWS = 4 * windows.MIN_WINDOWS


class Load:
    """Updates of a small network, made to last about as long as asked.

    Three layers with tanh and plain SGD, on normal random numbers. The learning rate is so small
    that the data, on which power depends, stay what they are.

    Args:
        seconds: how long an update should take.
        budget: says how the network begins; its batch size is then fitted.
    """

    def __init__(self, seconds: float, budget: Budget):
        import jax

        self._update = jax.jit(_update, donate_argnums=0)
        examples = budget.examples
        self.seconds_per_update = self._fit(budget, examples := budget.examples)
        wanted = examples * seconds / self.seconds_per_update
        self.examples = max(8, 8 * round(min(wanted, 64 * examples) / 8))
        self.seconds_per_update = self._fit(budget, self.examples)

    def _fit(self, budget: Budget, examples: int) -> float:
        """Makes parameters and data, and gives the duration of an update on them."""
        import jax

        keys = jax.random.split(jax.random.key(0), 5)
        normal = functools.partial(jax.random.normal, dtype=budget.dtype)
        width = budget.width
        self._params = [normal(key, (width, width)) / width**0.5 for key in keys[:3]]
        self._inputs = normal(keys[3], (examples, width))
        self._targets = normal(keys[4], (examples, width))
        self.run(1)  # compiles
        updates, elapsed_s = 1, 0.0
        while elapsed_s < 0.1:
            updates *= 2
            begun_s = time.perf_counter()
            self.run(updates)
            elapsed_s = time.perf_counter() - begun_s
        return elapsed_s / updates

    def run(self, updates: int) -> Any:
        """Makes so many updates and waits for them; returns the parameters they ended with."""
        return self._run(lambda made: made < updates)

    def run_for(self, seconds: float) -> int:
        """Makes updates for about so long and waits for them; returns how many."""
        end_s, made = time.perf_counter() + seconds, 0

        def goes_on(count: int) -> bool:
            nonlocal made
            made = count
            return time.perf_counter() < end_s

        self._run(goes_on)
        return made

    def _run(self, goes_on: Callable[[int], bool]) -> Any:
        import jax

        losses: collections.deque[Any] = collections.deque()
        for made in itertools.count():
            if not goes_on(made):
                return jax.block_until_ready(self._params)
            self._params, loss = self._update(self._params, self._inputs, self._targets)
            losses.append(loss)
            if len(losses) > _AHEAD:
                jax.block_until_ready(losses.popleft())


def _update(params, inputs, targets):
    """One update of plain SGD: the new parameters, and the loss before."""
    import jax
    import jax.numpy as jnp

    def find_loss(params):
        x = inputs
        for weights in params:
            x = jnp.tanh(x @ weights)
        return jnp.mean(jnp.square((x - targets).astype(jnp.float32)))

    loss, gradients = jax.value_and_grad(find_loss)(params)
    return [weights - 0.01 * g for weights, g in zip(params, gradients, strict=True)], loss


@dataclasses.dataclass(frozen=True)
class Readings:
    """Every reading of one sensor.

    Attributes:
        begin_ns: when the reading began [n].
        end_ns: when it ended [n].
        values: what it gave [n].
    """

    begin_ns: np.ndarray
    end_ns: np.ndarray
    values: np.ndarray

    @property
    def time_ns(self) -> np.ndarray:
        """The middle of each reading [n]."""
        return (self.begin_ns + self.end_ns) / 2

    def changes(self) -> "Changes":
        """When the value changed: between the last reading of the old and the first of the new."""
        first_new = np.flatnonzero(np.diff(self.values)) + 1
        begin_ns, end_ns = self.begin_ns[first_new - 1], self.end_ns[first_new]
        return Changes((begin_ns + end_ns) / 2, end_ns - begin_ns, self.values[first_new])


@dataclasses.dataclass(frozen=True)
class Changes:
    """When a value changed: `time_ns`, amid brackets `width_ns` wide, and the new `values`."""

    time_ns: np.ndarray
    width_ns: np.ndarray
    values: np.ndarray


class Recorder:
    """A thread that reads sensors again and again and keeps every reading.

    Args:
        readers: a function per sensor.
        pause_s: between two rounds.
    """

    def __init__(self, readers: Mapping[str, Callable[[], float]], pause_s: float = _POLL_PAUSE_S):
        self._readers = dict(readers)
        self._pause_s = pause_s
        self._rows: dict[str, list[tuple[int, int, float]]] = {name: [] for name in readers}
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s):
                for name, read in self._readers.items():
                    begin_ns = time.perf_counter_ns()
                    value = read()
                    self._rows[name].append((begin_ns, time.perf_counter_ns(), value))
        except Exception as error:  # raised again where the readings are asked for
            self._failure = error

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __getitem__(self, name: str) -> Readings:
        """The readings of a sensor, after the end; raises what a reading raised."""
        if self._failure is not None:
            raise self._failure
        begin_ns, end_ns, values = zip(*self._rows[name], strict=True)
        return Readings(np.array(begin_ns), np.array(end_ns), np.array(values, dtype=float))


class Bench:
    """The GPU with its counter, its power sensors and two loads, shared by the checks.

    Args:
        stage: the stage, which knows the GPU.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        self.domain = stage.rig.domain
        self.budget = SMOKE if stage.options.smoke else FULL

    @functools.cached_property
    def short_load(self) -> Load:
        """Updates of about 1 ms."""
        return Load(SHORT_UPDATE_S, self.budget)

    @functools.cached_property
    def long_load(self) -> Load:
        """Updates of about 20 ms."""
        return Load(LONG_UPDATE_S, self.budget)

    def open_meters(self):
        """The GPU's meter, opened anew."""
        return self.stage.rig.open_meters()

    def counter_of(self, meters) -> Callable[[], float]:
        """The function that reads the energy counter, in joules."""
        (counter,) = (c for c in meters.counters if c.domain.name == self.domain)
        return counter.read_j

    def power_readers(self) -> dict[str, Callable[[], float]]:
        """The card's power sensors that answer, in watts; NVML must have been started."""
        import pynvml

        (handle,) = (g.handle for g in list_gpus(pynvml) if g.uuid == self.stage.rig.uuid)

        def read_field_w(field: int) -> float:
            (answer,) = pynvml.nvmlDeviceGetFieldValues(handle, [field])
            if answer.nvmlReturn != pynvml.NVML_SUCCESS:
                raise pynvml.NVMLError(answer.nvmlReturn)
            return answer.value.uiVal / 1e3

        readers = {
            "instant power (field 186)": lambda: read_field_w(pynvml.NVML_FI_DEV_POWER_INSTANT),
            "average power (field 185)": lambda: read_field_w(pynvml.NVML_FI_DEV_POWER_AVERAGE),
            "nvmlDeviceGetPowerUsage": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        }
        found = {}
        for name, read in readers.items():
            try:
                if read() > 0:  # some drivers accept a field and answer 0
                    found[name] = read
            except pynvml.NVMLError:
                continue
        return found

    def spend(self, state: str, seconds: float) -> None:
        """Is busy or idle for so long."""
        if state.startswith("busy"):
            self.long_load.run_for(seconds)
        else:
            time.sleep(seconds)

    def conditions(self) -> dict[str, Any]:
        """Temperature, clocks and the like at this moment."""
        with self.open_meters() as meters:
            return meters.read_conditions()[self.domain]


# Ticks


def check_ticks(bench: Bench) -> dict[str, Any]:
    """How the energy counter ticks, busy and idle, and how often the power sensors change."""
    busy_s, idle_s = bench.budget.counter_s
    result: dict[str, Any] = {"says": []}
    with bench.open_meters() as meters:
        read_j = bench.counter_of(meters)
        for state, seconds in (("busy", busy_s), ("idle", idle_s)):
            bench.spend(state, bench.budget.settle_s)
            with Recorder({"counter": read_j}) as recorder:
                bench.spend(state, seconds)
            readings = recorder["counter"]
            result[f"counter_{state}"] = facts = counter_facts(readings)
            changes = readings.changes()
            if len(changes.time_ns):
                facts["raw"] = bench.stage.save_table(
                    f"ticks-{state}",
                    {
                        "time_ms": (changes.time_ns - changes.time_ns[0]) / 1e6,
                        "bracket_ms": changes.width_ns / 1e6,
                        "counter_j": changes.values - changes.values[0],
                    },
                )
            result["says"].append(f"energy counter, {state}: {_say_interval(facts)}")
        readers = bench.power_readers()
        with Recorder(readers) as recorder:
            bench.spend("busy", bench.budget.sensors_s)
        result["power_sensors_busy"] = {}
        for name in readers:
            facts = change_facts(recorder[name])
            result["power_sensors_busy"][name] = facts
            result["says"].append(f"{name}, busy: {_say_interval(facts)}")
    return result


def change_facts(readings: Readings) -> dict[str, Any]:
    """How often a sensor's value changes.

    Two equal values in a row hide an update, so the interval between changes is an upper bound of
    the update period; its median is close for a value that seldom repeats.

    Returns:
        `readings`, the time a reading takes, the `changes`, and, where there are three at least,
        the `interval_ms` between them and the `bracket_ms` in which each is known to lie.
    """
    changes = readings.changes()
    facts = {
        "readings": len(readings.values),
        "reading_ms": distribution((readings.end_ns - readings.begin_ns) / 1e6),
        "changes": len(changes.time_ns),
    }
    if len(changes.time_ns) < 3:
        return {**facts, "interval_ms": None, "why": "it changed less than three times"}
    intervals_ms = np.diff(changes.time_ns) / 1e6
    return {
        **facts,
        "interval_ms": distribution(intervals_ms),
        "bracket_ms": distribution(changes.width_ns / 1e6),
        "intervals_over_1.5_medians": int(np.sum(intervals_ms > 1.5 * np.median(intervals_ms))),
    }


def counter_facts(readings: Readings) -> dict[str, Any]:
    """As `change_facts`, with the counter's steps in mJ and the mean power between its ticks."""
    facts = change_facts(readings)
    changes = readings.changes()
    if facts["interval_ms"] is not None:
        steps_mj = np.round(np.diff(changes.values) * 1e3).astype(int)
        facts["step_mj"] = distribution(steps_mj)
        facts["resolution_mj"] = int(np.gcd.reduce(steps_mj))
        duration_s = (changes.time_ns[-1] - changes.time_ns[0]) / NS_PER_S
        facts["power_w"] = float((changes.values[-1] - changes.values[0]) / duration_s)
    return facts


def distribution(values: np.ndarray) -> dict[str, Any]:
    """Count, mean with its 95 % interval, spread and quantiles of some numbers, at least two."""
    mean = long_run_mean(list(values))
    p5, median, p95 = np.percentile(values, [5, 50, 95])
    return {
        "count": len(values),
        "mean": mean.value,
        "ci95": list(mean.interval()),
        "sd": float(np.std(values, ddof=1)),
        "min": float(np.min(values)),
        "p5": float(p5),
        "median": float(median),
        "p95": float(p95),
        "max": float(np.max(values)),
    }


def _say_interval(facts: Mapping[str, Any]) -> str:
    interval = facts["interval_ms"]
    if interval is None:
        return facts["why"]
    return (
        f"changes every {interval['median']:.4g} ms (5-95 %: {interval['p5']:.4g} to "
        f"{interval['p95']:.4g}), {facts['changes']} times; a reading takes "
        f"{facts['reading_ms']['median']:.2g} ms"
        + (f"; steps of {facts['resolution_mj']} mJ" if "resolution_mj" in facts else "")
    )


# Counter against integrated power


def check_counter_against_power(bench: Bench) -> dict[str, Any]:
    """The energy counter over the integral of instant power, idle and busy.

    Once by the library's own check (`meters.cross_checks`: power ten times a second, with its
    bound) and once with power polled as fast as it goes, in blocks that end at ticks, which gives
    an interval.
    """
    result: dict[str, Any] = {"stretches": [], "says": []}
    for name, seconds in bench.budget.stretches:
        bench.spend(name, bench.budget.settle_s)
        with bench.open_meters() as meters:
            sensor, read_w = next(iter(bench.power_readers().items()))
            readers = {"counter": bench.counter_of(meters), "power": read_w}
            with Recorder(readers) as recorder:
                bench.spend(name, seconds)
            checks = meters.cross_checks()
            conditions = meters.read_conditions()[bench.domain]
        blocks = energy_by_both(recorder["counter"], recorder["power"], _BLOCKS_OF_STRETCH)
        ratio = long_run_mean(list(blocks[:, 0]), list(blocks[:, 1]))
        library = next((c for c in checks if c.domain == bench.domain), None)
        result["stretches"].append(
            {
                "state": name,
                "seconds": seconds,
                "sensor": sensor,
                "counter_j": float(blocks[:, 0].sum()),
                "integrated_j": float(blocks[:, 1].sum()),
                "ratio": ratio.value,
                "ci95": list(ratio.interval()),
                "blocks_j": blocks.tolist(),
                "library_check": None
                if library is None
                else {**dataclasses.asdict(library), "agrees": library.agrees},
                "why": None
                if library
                else "the library checks stretches of 5 s or more on cards with both sensors",
                "conditions": conditions,
            }
        )
        low, high = ratio.interval()
        result["says"].append(
            f"{name}, {seconds:g} s: counter over integrated power {ratio.value:.4f} "
            f"({low:.4f} to {high:.4f}); {library or 'no check by the library'}"
        )
    return result


def energy_by_both(counter: Readings, power: Readings, blocks: int) -> np.ndarray:
    """Joules by the counter and by trapezoids under power, in blocks from tick to tick.

    Args:
        counter: readings in joules.
        power: readings in watts, over the same time.
        blocks: how many; fewer where there are fewer ticks.

    Returns:
        [blocks, 2].

    Raises:
        CounterError: the counter ticked less than three times.
    """
    ticks = counter.changes()
    inside = (ticks.time_ns >= power.time_ns[0]) & (ticks.time_ns <= power.time_ns[-1])
    time_ns, counter_j = ticks.time_ns[inside], ticks.values[inside]
    if len(time_ns) < 3:
        raise CounterError(f"the counter ticked {len(time_ns)} times, too few to compare")
    trapezoids_j = np.diff(power.time_ns) / NS_PER_S * (power.values[1:] + power.values[:-1]) / 2
    integral_j = np.concatenate([[0.0], np.cumsum(trapezoids_j)])
    edges = np.unique(np.linspace(0, len(time_ns) - 1, blocks + 1).round().astype(int))
    by_power_j = np.interp(time_ns[edges], power.time_ns, integral_j)
    return np.stack([np.diff(counter_j[edges]), np.diff(by_power_j)], axis=1)


# Zeros, constants, random numbers


def check_data_values(bench: Bench) -> dict[str, Any]:
    """The same matrix product on random, zero and constant numbers, side by side."""
    import jax
    import jax.numpy as jnp

    size = bench.budget.product_size
    shape = (size, size)
    keys = jax.random.split(jax.random.key(0))
    result: dict[str, Any] = {"size": size, "flops": 2 * size**3, "products": {}, "says": []}
    for name, (dtype, precision) in PRECISIONS.items():
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        data = {
            "random": tuple(jax.random.normal(key, shape, dtype) for key in keys),
            "zeros": (jnp.zeros(shape, dtype),) * 2,
            "constant": (jnp.ones(shape, dtype),) * 2,
        }
        functions = {what: functools.partial(product, *both) for what, both in data.items()}
        with bench.open_meters() as meters:
            found = compare(
                functions,
                meters=meters,
                target_relative_ci=0.001,
                max_seconds=bench.budget.compare_s,
            )
        power_w = {what: measured.power_w for what, measured in found.measurements.items()}
        random_w = power_w["random"]
        result["products"][name] = {
            **dataclasses.asdict(found),
            "power_ratios": {
                what: watts / random_w if watts and random_w else None
                for what, watts in power_w.items()
            },
        }
        for what, energy_ratio in found.energy_ratios.items():
            result["says"].append(
                f"{name}, {what} over random: energy {energy_ratio or 'n/a'}, "
                f"time {found.time_ratios[what] or 'n/a'}, "
                f"{format_si(power_w[what], 'W')} against {format_si(random_w, 'W')}"
            )
    return result


# Intervals


def check_coverage(bench: Bench, load: Load, what: str) -> dict[str, Any]:
    """Whether the interval of one block of windows holds the mean of the next as it should."""
    budget = bench.budget
    load.run_for(budget.settle_s)
    updates = max(1, math.ceil(budget.window_s / load.seconds_per_update))
    before = bench.conditions()
    with bench.open_meters() as meters:
        ledger = Ledger(meters, fence=jax_fence)
        end_s = time.perf_counter() + budget.coverage_s
        with ledger.phase("train") as phase:
            made = 0
            while time.perf_counter() < end_s or made < _LEAST_WINDOWS:
                made += 1
                phase.cut(load.run(updates), updates=updates)
        ledger.close()
    lines = [line for line in ledger.lines if line["phase"] == "train" and line["updates"]]
    found = windows.mean_per(lines, "updates", [bench.domain])
    result = {
        "examples": load.examples,
        "updates_per_window": updates,
        "seconds_per_update": sum(map(_duration_s, lines)) / updates / len(lines),
        "per_update_j": found,
        "power_w": _power_w(lines, bench.domain).value,
        "blocks": [cover_of_blocks(lines, bench.domain, size) for size in budget.blocks],
        "halves": cover_of_blocks(lines, bench.domain, len(lines) // 2),
        "raw": bench.stage.save_table(
            f"windows-{what}",
            {
                "start_s": [(x["start_ns"] - lines[0]["start_ns"]) / NS_PER_S for x in lines],
                "duration_s": map(_duration_s, lines),
                "updates": (x["updates"] for x in lines),
                "energy_j": energies_j(lines, bench.domain),
                "uncertainty_j": (x["uncertainty_j"][bench.domain] for x in lines),
            },
        ),
        "conditions": {"before": before, "after": bench.conditions()},
        "says": [],
    }
    if found["mean"] is not None:
        low_j, high_j = found["ci95"]
        result["says"].append(
            f"{format_si(found['mean'], 'J', 4)} per update of "
            f"{format_si(result['seconds_per_update'], 's')}, 95 %: "
            f"{format_si(low_j, 'J', 4)} to {format_si(high_j, 'J', 4)}, {found['windows']} windows"
        )
    for row in filter(None, result["blocks"]):
        next_mean, gap = row["holds_next_mean"], row["difference_holds_zero"]
        result["says"].append(
            f"blocks of {row['windows']} windows, {row['pairs']} pairs: the interval of one holds "
            f"the mean of the next {next_mean['share']:.0%} of the time (a right one: "
            f"{next_mean['expected']:.0%}), that of the difference zero {gap['share']:.0%} (95 %)"
        )
    return result


def cover_of_blocks(lines: Sequence[Line], domain: str, size: int) -> dict[str, Any] | None:
    """How often the interval of a block of windows holds the mean of the block after it.

    An interval m_A ± t s_A with v degrees of freedom is made to hold the long-run mean in 95 % of
    cases. The mean m_B of another block is not the long-run mean: it has an error of its own. With
    independent blocks of a and b windows, whose variances are as 1/a and 1/b,

        (m_B - m_A) / (s_A sqrt(1 + a/b))   has a t distribution with v degrees of freedom,

    so that a right interval holds m_B with probability

        P(|t_v| <= t_(v, 0.975) / sqrt(1 + a/b)) = 2 F_v(t_(v, 0.975) / sqrt(1 + a/b)) - 1,

    which for equal blocks is 83 % with many degrees of freedom and 89 % with three: not 95 %. The
    interval of the difference m_A - m_B (Welch) has both errors in it and holds zero in 95 %.

    What is slower than a block (heat, a fan) makes both shares smaller, which is then true: such
    a block does not tell the long run.

    Args:
        lines: windows in the order of time, without gaps.
        domain: whose energy.
        size: windows per block. Blocks are paired, first with second, third with fourth.

    Returns:
        Shares with their 95 % interval (Clopper and Pearson) beside what is expected; None where
        there is not one pair.

    References:
        Clopper, Pearson, The use of confidence or fiducial limits, Biometrika 26, 404 (1934).
    """
    starts = range(0, len(lines) - 2 * size + 1, 2 * size)
    holds_mean, holds_zero, expected = [], [], []
    for start in starts:
        one, other = (
            windows.estimate_per(lines[begin : begin + size], "updates", [domain])
            for begin in (start, start + size)
        )
        if isinstance(one, str) or isinstance(other, str):
            continue
        first, second = one.energy_j, other.energy_j
        low_j, high_j = first.interval()
        holds_mean.append(low_j <= second.value <= high_j)
        low_j, high_j = difference(first, second).interval()
        holds_zero.append(low_j <= 0 <= high_j)
        expected.append(expected_share(first, one.windows / other.windows))
    if not holds_mean:
        return None
    return {
        "windows": size,
        "seconds": float(np.mean([sum(map(_duration_s, lines[s : s + size])) for s in starts])),
        "pairs": len(holds_mean),
        "pairs_without_interval": len(starts) - len(holds_mean),
        "holds_next_mean": {**share_of(holds_mean), "expected": float(np.mean(expected))},
        "difference_holds_zero": {**share_of(holds_zero), "expected": 0.95},
    }


def expected_share(estimate: Estimate, windows_ratio: float) -> float:
    """The probability that a right 95 % interval holds the mean of another block.

    Args:
        estimate: of the block that has the interval.
        windows_ratio: its windows over those of the other block.
    """
    quantile = student_quantile(0.975, estimate.freedom) / math.sqrt(1 + windows_ratio)
    if math.isinf(estimate.freedom):
        return float(2 * special.ndtr(quantile) - 1)
    return float(2 * special.stdtr(estimate.freedom, quantile) - 1)


def share_of(held: Sequence[bool]) -> dict[str, Any]:
    """The share of true values and its 95 % interval."""
    n, k = len(held), sum(held)
    low = special.betaincinv(k, n - k + 1, 0.025) if k else 0.0
    high = special.betaincinv(k + 1, n - k, 0.975) if k < n else 1.0
    return {"share": k / n, "ci95": [float(low), float(high)]}


# Edges


def check_edges(bench: Bench) -> dict[str, Any]:
    """Alternating busy and idle phases: are joules conserved, and what is a short phase known to?

    The truth of a short phase is its duration times the power of long phases of its kind in the
    same alternation. A card may really draw something else in its first moments (clocks rise, it is
    cooler), and its sensor may lag: both are in `bias_percent`, not in `sd_percent`, and show in
    `lag`.
    """
    budget, load, rng = bench.budget, bench.short_load, random.Random(0)
    kinds: list[tuple[str, float | None]] = []  # of each line: its state, and its nominal length
    naive_j: list[float] = []
    with bench.open_meters() as meters:
        read_j = bench.counter_of(meters)
        # Seldom enough not to stand in the way of the ledger's own reading.
        with Recorder({"counter": read_j}, pause_s=0.005) as recorder:
            time.sleep(budget.settle_s)  # so that there are ticks before the first line
            ledger = Ledger(meters, fence=jax_fence)

            def spend(state: str, seconds: float) -> Any:
                if state == "busy":
                    return load.run(max(1, round(seconds / load.seconds_per_update)))
                time.sleep(seconds)
                return None

            def long_phase(state: str) -> None:
                with ledger.phase("train" if state == "busy" else "idle") as phase:
                    phase.cut(spend(state, budget.settle_s))
                    phase.fence(spend(state, budget.long_s - budget.settle_s))
                kinds.extend([("settling", None), (state, None)])
                naive_j.extend([math.nan] * 2)

            def short_phase(state: str, seconds: float) -> None:
                with ledger.phase("train" if state == "busy" else "idle") as phase:
                    begin_j = read_j()
                    state_after = spend(state, seconds)
                    naive_j.append(read_j() - begin_j)
                    phase.fence(state_after)
                kinds.append((state, seconds))

            for _ in range(budget.long_phases):
                long_phase("idle")
                long_phase("busy")
            short = [length for length, count in budget.short_phases.items() for _ in range(count)]
            for length in rng.sample(short, len(short)):
                # The idle phase is longer by a random part, so that edges fall anywhere in a tick.
                short_phase("idle", length + rng.uniform(0, 0.1))
                kinds[-1] = ("idle", length)
                short_phase("busy", length)
            with ledger.phase("idle"):
                time.sleep(budget.settle_s)
            kinds.append(("settling", None))
            naive_j.append(math.nan)
            ledger.close()
    every_line = ledger.lines
    lines = [line for line in every_line if line["phase"] != "other"]
    ticks = recorder["counter"].changes()
    states = {
        state: _power_w(
            [line for line, kind in zip(lines, kinds, strict=True) if kind == (state, None)],
            bench.domain,
        )
        for state in ("busy", "idle")
    }
    result: dict[str, Any] = {
        "long_run_power_w": {
            state: {"mean": power.value, "ci95": list(power.interval())}
            for state, power in states.items()
        },
        "conservation": conservation(every_line, bench.domain, ticks),
        "lag": lags(lines, kinds, states, ticks),
        "short_phases": [],
        "says": [],
    }
    for (state, power), length in itertools.product(states.items(), budget.short_phases):
        chosen = [at for at, kind in enumerate(kinds) if kind == (state, length)]
        short_lines = [lines[at] for at in chosen]
        true_j = power.value * np.array([_duration_s(line) for line in short_lines])
        energy_j = energies_j(short_lines, bench.domain)
        stated_j = np.array([line["uncertainty_j"][bench.domain] for line in short_lines])
        facts = {
            "state": state,
            "length_s": length,
            "mean_duration_s": float(np.mean([_duration_s(line) for line in short_lines])),
            "phases": len(short_lines),
            "mean_j": float(energy_j.mean()),
            **error_facts(energy_j - true_j, true_j, stated_j),
            "two_readings": error_facts(np.array(naive_j)[chosen] - true_j, true_j),
        }
        result["short_phases"].append(facts)
        result["says"].append(
            f"{state} phases of {length:g} s: error {facts['rms_percent']:.2f} % rms (bias "
            f"{facts['bias_percent']:+.2f} %, sd {facts['sd_percent']:.2f} %; stated "
            f"{facts['stated_percent']:.2f} %); by two readings "
            f"{facts['two_readings']['rms_percent']:.1f} %"
        )
    kept = result["conservation"]
    result["says"].insert(
        0,
        f"the lines add up to {kept['lines_j']:.6g} J, the counter moved by "
        f"{kept['counter_j']:.6g} J ({100 * kept['relative']:+.3f} %)",
    )
    lag = result["lag"]
    for direction in ("rising", "falling"):
        if lag[direction] is not None:
            result["says"].append(
                f"{direction} edges come {1e3 * lag[direction]['mean']:.0f} ms late"
            )
    return result


def error_facts(
    error_j: np.ndarray, true_j: np.ndarray, stated_j: np.ndarray | None = None
) -> dict[str, Any]:
    """Errors of some phases, in percent of their true energy; how many the stated ones cover."""
    percent = 100 * error_j / true_j
    facts = {
        "bias_percent": float(percent.mean()),
        "sd_percent": float(percent.std(ddof=1)),
        "rms_percent": float(np.sqrt(np.mean(percent**2))),
    }
    if stated_j is None:
        return facts
    return {
        **facts,
        "stated_percent": float(np.sqrt(np.mean((100 * stated_j / true_j) ** 2))),
        "within_1_stated": float(np.mean(np.abs(error_j) <= stated_j)),
        "within_2_stated": float(np.mean(np.abs(error_j) <= 1.96 * stated_j)),
    }


def conservation(lines: Sequence[Line], domain: str, ticks: Changes) -> dict[str, Any]:
    """The sum of a ledger's lines against the counter's own difference between their ends.

    Args:
        lines: all lines, which begin and end in idle, where a straight line between ticks is right.
        domain: whose energy.
        ticks: of the counter, recorded apart.
    """
    lines_j = math.fsum(energies_j(lines, domain))
    first_j, last_j = _energy_at(ticks, [lines[0]["start_ns"], lines[-1]["end_ns"]])
    counter_j = float(last_j - first_j)
    return {
        "lines": len(lines),
        "lines_j": lines_j,
        "counter_j": counter_j,
        "difference_j": lines_j - counter_j,
        "relative": lines_j / counter_j - 1,
    }


def lags(
    lines: Sequence[Line],
    kinds: Sequence[tuple[str, float | None]],
    states: Mapping[str, Estimate],
    ticks: Changes,
) -> dict[str, Any]:
    """How late the counter sees power step, at the edges of long phases.

    Where power steps from P to Q at the edge and the counter shows it a time `lag` later, it moves,
    from x before the edge to y after it, by P (x + lag) + Q (y - lag). So
    lag = (P x + Q y - moved) / (Q - P). A slow rise of the card's own power looks the same.

    Returns:
        Seconds by direction, as mean, interval and every value; or None and why.
    """
    found: dict[str, list[float]] = {"rising": [], "falling": []}
    busy_w, idle_w = states["busy"].value, states["idle"].value
    if abs(busy_w - idle_w) < 0.05 * busy_w:
        return {"rising": None, "falling": None, "why": "busy and idle draw the same power"}
    for at in range(1, len(lines)):
        settled, settling = kinds[at - 1], kinds[at]
        if settling != ("settling", None) or settled not in (("busy", None), ("idle", None)):
            continue
        rising = settled[0] == "idle"
        before_w, after_w = (idle_w, busy_w) if rising else (busy_w, idle_w)
        edge_ns = lines[at]["start_ns"]
        before_s = _duration_s(lines[at - 1]) / 2
        after_s = _duration_s(lines[at])
        edges_ns = [edge_ns - before_s * NS_PER_S, edge_ns + after_s * NS_PER_S]
        begin_j, end_j = _energy_at(ticks, edges_ns)
        late_j = before_w * before_s + after_w * after_s - float(end_j - begin_j)
        found["rising" if rising else "falling"].append(late_j / (after_w - before_w))
    return {direction: _summary(values) for direction, values in found.items()}


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    if len(values) < 2:
        return None
    mean = long_run_mean(values)
    return {"mean": mean.value, "ci95": list(mean.interval()), "values": list(values)}


def _energy_at(ticks: Changes, times_ns: Sequence[float]) -> np.ndarray:
    """The counter at some instants, along straight lines between ticks."""
    return np.interp(times_ns, ticks.time_ns, ticks.values)


def _power_w(lines: Sequence[Line], domain: str) -> Estimate:
    """Mean power of some lines, with the spread between them."""
    return long_run_mean(list(energies_j(lines, domain)), [_duration_s(line) for line in lines])


def energies_j(lines: Sequence[Line], domain: str) -> np.ndarray:
    """Joules of some lines; a line without them ends the check, with its reason."""
    for line in lines:
        if line["energy_j"][domain] is None:
            raise CounterError(line["why"][domain])
    return np.array([line["energy_j"][domain] for line in lines])


def _duration_s(line: Line) -> float:
    return (line["end_ns"] - line["start_ns"]) / NS_PER_S


def make_checks(stage: Stage) -> list[Check]:
    """The checks of this stage."""
    bench = Bench(stage)
    budget = bench.budget
    alternation_s = 2 * sum(length * n for length, n in budget.short_phases.items())
    long_s = 2 * budget.long_phases * budget.long_s
    settle_s = budget.settle_s
    stretches_s = sum(seconds + settle_s for _, seconds in budget.stretches)
    coverage_s = budget.coverage_s + settle_s
    prepare_s = 1.0 if stage.options.smoke else 8.0  # to compile
    return [
        Check(
            "ticks",
            sum(budget.counter_s) + budget.sensors_s + 2 * settle_s + prepare_s,
            lambda: check_ticks(bench),
        ),
        Check(
            "counter_against_power",
            stretches_s + prepare_s,
            lambda: check_counter_against_power(bench),
        ),
        Check(
            "data_values",
            len(PRECISIONS) * (budget.compare_s + 1) + prepare_s,
            lambda: check_data_values(bench),
        ),
        Check(
            "edges", alternation_s + long_s + 3 * settle_s + prepare_s, lambda: check_edges(bench)
        ),
        Check(
            "coverage_1ms",
            coverage_s + prepare_s,
            lambda: check_coverage(bench, bench.short_load, "1ms"),
        ),
        Check(
            "coverage_20ms",
            coverage_s + prepare_s,
            lambda: check_coverage(bench, bench.long_load, "20ms"),
        ),
    ]


if __name__ == "__main__":
    run_stage("instrument", __doc__, make_checks, computes=True)
