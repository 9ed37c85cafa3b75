"""A timeit for joules: what does one call of a function cost, and how sure is that?

`measure` calls a function again and again, in windows that are fenced at both ends, until the
interval of the joules per call is narrow enough or the time is up, and says which. `compare` does
so for several functions in turn, in random order, so that heat and drift favour none. How windows
are made and when they end: `jaxenergy.energy.rounds`. `Ledger` attributes the energy of a loop of
one's own.

All of it works in a notebook too: no signals, no demands on the thread.
"""

import collections
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxenergy import energy
from jaxenergy.energy.rounds import (
    NOTHING_COUNTED,
    TIME_WAS_UP,
    Ratio,
    Rounds,
    line_duration_s,
    measure_rounds,
)
from jaxenergy.errors import UsageError
from jaxenergy.meters import Device, Meters, open_meters
from jaxenergy.stats import Estimate, difference
from jaxenergy.units import format_duration_s, format_percent, format_si

# Calls whose outputs feed nothing are dispatched so far ahead of the one that is waited for.
_CALLS_AHEAD = 2


class Ledger(energy.Ledger):
    """Attributes the energy of this process to phases of a loop of one's own.

        with jaxenergy.Ledger() as ledger:
            with ledger.phase("train", updates=100) as phase:
                for batch in batches:
                    state = update(state, batch)
                phase.fence(state)
        print(ledger.lines)

    Args:
        meters: from `open_meters`; by default it is called with `auto` and closed at the end.
        fence: waits until the device has computed what it is given; by default
            `jax.block_until_ready`.
        **options: as for `jaxenergy.energy.Ledger`.
    """

    def __init__(
        self,
        meters: Meters | None = None,
        fence: Callable[[Any], Any] | None = None,
        **options: Any,
    ):
        self._own_meters = None
        if meters is None:
            meters = self._own_meters = open_meters("auto", read_jax_devices())
        super().__init__(meters, fence or jax_fence, **options)

    def close(self) -> None:
        """Ends the last line, gives out what is left, and closes the meters it opened."""
        super().close()
        if self._own_meters is not None:
            self._own_meters.close()


def jax_fence(state: Any) -> Any:
    """`jax.block_until_ready`, with jax imported on first use."""
    import jax

    return jax.block_until_ready(state)


def read_jax_devices() -> list[Device]:
    """The devices that JAX computes on by default, in the meters' words.

    Raises:
        UsageError: there is none, e.g. since a platform was asked for that is not there.
    """
    import jax

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise UsageError(f"JAX finds no device: {error}") from error
    return [
        Device(platform=device.platform, index=device.id, name=device.device_kind)
        for device in devices
    ]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one call of a function costs.

    What could not be told is None, and `why` has the reason. The interval is that of the long-run
    mean of this process in steady state; a sensor's calibration and what differs from process to
    process are not in it.

    Attributes:
        per_call_j: mean joules per call, idle power included.
        ci95_j: its 95 % interval (low, high).
        net_per_call_j: the same above idle power.
        net_ci95_j: its 95 % interval, the uncertainty of the idle power included.
        power_w: mean power during the calls.
        idle_w: power with everything loaded and nothing running, before and after.
        seconds_per_call: mean duration.
        first_call_j: joules of the first call, compilation included.
        first_call_s: its duration.
        calls: calls in all windows.
        windows: windows that count in the mean.
        domains: what was metered and counted.
        provenance: `measured`, `simulated`, `estimated` or `none`.
        target_relative_ci: the half-width of the interval that was asked for, over the mean.
        reached_target: whether the interval is that narrow; if not, the time was up.
        why: reasons, by the attribute that is None; `per_call_j`'s is also that of its interval
            and of the power.
    """

    per_call_j: float | None
    ci95_j: tuple[float, float] | None
    net_per_call_j: float | None
    net_ci95_j: tuple[float, float] | None
    power_w: float | None
    idle_w: float | None
    seconds_per_call: float | None
    first_call_j: float | None
    first_call_s: float | None
    calls: int
    windows: int
    domains: tuple[str, ...]
    provenance: str
    target_relative_ci: float
    reached_target: bool
    why: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        seconds = format_duration_s(self.seconds_per_call)
        first_j = format_si(self.first_call_j, "J")
        first = f"first call {first_j}, {format_duration_s(self.first_call_s)}"
        # Whoever reads one line alone must see that a joule was not measured.
        provenance = self.provenance if self.provenance == "measured" else self.provenance.upper()
        origin = f"{provenance}, {' + '.join(self.domains)}"
        if self.per_call_j is None or self.ci95_j is None:
            line = f"n/a J per call ({self.why['per_call_j']}); {seconds} per call; {first}"
            return line if self.first_call_j is None else f"{line}; {origin}"
        lines = [
            f"{format_si(self.per_call_j, 'J', 4)} per call,"
            f" {_format_interval(self.ci95_j, self.per_call_j)};"
            f" {origin}",
            f"{seconds} per call at {format_si(self.power_w, 'W')};"
            f" idle {format_si(self.idle_w, 'W')};"
            f" above idle {format_si(self.net_per_call_j, 'J')} per call",
            f"{self.calls:,} calls in {self.windows} windows; {first}",
        ]
        if not self.reached_target:
            lines.append(
                "The time was up before the interval was within"
                f" ± {format_percent(self.target_relative_ci, 3)}."
            )
        return "\n".join(lines)


def _format_interval(ci95_j: tuple[float, float], mean_j: float) -> str:
    low, high = (format_si(end, "J", 4) for end in ci95_j)
    relative = f" (± {(ci95_j[1] - ci95_j[0]) / 2 / mean_j:.2%})" if mean_j > 0 else ""
    return f"95 % {low} to {high}{relative}"


def measure(
    fn: Callable[..., Any],
    *args: Any,
    carry: Callable[[Any, tuple], tuple] | None = None,
    fence: Callable[[Any], Any] | None = None,
    meters: Meters | None = None,
    target_relative_ci: float = 0.02,
    max_seconds: float = 60.0,
    jit: bool = False,
) -> Measurement:
    """Measures the joules of one call of a function.

        print(jaxenergy.measure(jax.jit(jnp.matmul), x, y))

    Args:
        fn: the function; called as it is, so it should be jitted if that is what is to be
            measured. What it computes must be in what it returns: that is what is waited for.
        *args: its arguments, real ones: power depends on the data, and zeros take less. JAX arrays
            among them are copied first, so that a function that donates them leaves the caller's
            alone.
        carry: makes the next call's arguments of the last output and arguments, e.g.
            `lambda out, args: (out, *args[1:])` for a training step. Needed where `fn` donates.
        fence: waits until the device has computed an output; by default `jax.block_until_ready`.
        meters: from `open_meters`; by default it is called with `auto`.
        target_relative_ci: the half-width of the 95 % interval, over the mean, at which the
            measurement may end. It is looked at after ten windows at the earliest.
        max_seconds: when it ends at the latest, compilation and idle included; a call that has
            begun is waited for.
        jit: compile `fn` first.

    Returns:
        The measurement.

    Raises:
        UsageError: a number is out of range; or `fn` donates arguments and there is no `carry` (a
            `ValueError`), and nothing has run then.
    """
    measured = _measure({"": fn}, args, carry, fence, meters, target_relative_ci, max_seconds, jit)
    return _measurement(measured, "", target_relative_ci)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What several functions cost beside each other.

    Attributes:
        measurements: by name.
        baseline: the name that ratios are relative to: the first.
        energy_ratios: joules per call over the baseline's, by name; None where not known.
        time_ratios: seconds per call over the baseline's, by name; None where not known.
        why: the reasons, as `NAME energy` and `NAME time`.
    """

    measurements: Mapping[str, Measurement]
    baseline: str
    energy_ratios: Mapping[str, Ratio | None]
    time_ratios: Mapping[str, Ratio | None]
    why: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {measured}" for name, measured in self.measurements.items()]
        for name in self.energy_ratios:
            ratios = []
            for what, ratio in (
                ("energy", self.energy_ratios[name]),
                ("time", self.time_ratios[name]),
            ):
                ratios.append(f"{what} {ratio or 'n/a: ' + self.why[f'{name} {what}']}")
            lines.append(f"{name} / {self.baseline}: {'; '.join(ratios)}")
        return "\n".join(lines)


def compare(
    functions: Mapping[str, Callable[..., Any]],
    *args: Any,
    carry: Callable[[Any, tuple], tuple] | None = None,
    fence: Callable[[Any], Any] | None = None,
    meters: Meters | None = None,
    target_relative_ci: float = 0.02,
    max_seconds: float = 60.0,
    jit: bool = False,
    seed: int = 0,
) -> Comparison:
    """Measures several functions beside each other.

    Each round gives every function one window, in an order drawn anew, and ratios are taken within
    rounds, so that what changes slowly (heat, clocks, other users) touches all alike. They rest on
    the rounds in which both windows count in their means.

    Args:
        functions: by name, at least two; the first is what the others are held against.
        *args: arguments of each of them, copied for each.
        carry: as for `measure`.
        fence: as for `measure`.
        meters: as for `measure`.
        target_relative_ci: as for `measure`; to be reached by every function.
        max_seconds: when all of it ends at the latest.
        jit: compile each function first.
        seed: of the order.

    Returns:
        The measurements and the ratios.

    Raises:
        UsageError: as for `measure`, or there are fewer than two functions.
    """
    if len(functions) < 2:
        raise UsageError(f"compare takes two functions or more, by name; got {list(functions)}.")
    measured = _measure(
        functions, args, carry, fence, meters, target_relative_ci, max_seconds, jit, seed
    )
    baseline, *others = functions
    ratios: dict[str, dict[str, Ratio | None]] = {"energy": {}, "time": {}}
    why = {}
    for what, ratio_of in (("energy", measured.energy_ratio), ("time", measured.time_ratio)):
        for name in others:
            found = ratio_of(name, baseline)
            if isinstance(found, str):
                why[f"{name} {what}"] = found
            ratios[what][name] = None if isinstance(found, str) else found
    return Comparison(
        measurements={name: _measurement(measured, name, target_relative_ci) for name in functions},
        baseline=baseline,
        energy_ratios=ratios["energy"],
        time_ratios=ratios["time"],
        why=why,
    )


def _measure(
    functions: Mapping[str, Callable[..., Any]],
    args: tuple,
    carry: Callable[[Any, tuple], tuple] | None,
    fence: Callable[[Any], Any] | None,
    meters: Meters | None,
    target_relative_ci: float,
    max_seconds: float,
    jit: bool,
    seed: int = 0,
) -> Rounds:
    """Measures functions in rounds, each with its own copy of the arguments."""
    deadline_s = time.monotonic() + max_seconds
    if not 0 < target_relative_ci < 1:
        raise UsageError(
            f"target_relative_ci={target_relative_ci} is out of range; allowed: above 0, below 1."
        )
    if not 0 < max_seconds < math.inf:
        raise UsageError(f"max_seconds={max_seconds} is out of range; allowed: above 0, finite.")
    if jit:
        import jax

        functions = {name: jax.jit(fn) for name, fn in functions.items()}
    if carry is None:
        for fn in functions.values():
            _refuse_donation(fn, args)
    fence = fence or jax_fence
    calls = {name: _Calls(fn, _copied(args), carry, fence) for name, fn in functions.items()}

    def enough(measured: Rounds) -> bool:
        return not measured.meters.counted_domains or all(
            _is_narrow(measured.long_run(name), target_relative_ci) for name in functions
        )

    with contextlib.ExitStack() as stack:
        if meters is None:
            devices = read_jax_devices() if fence is jax_fence else None
            meters = stack.enter_context(open_meters("auto", devices))
        return measure_rounds(calls, meters, fence, enough, deadline_s, seed)


def _refuse_donation(fn: Any, args: tuple) -> None:
    """Refuses a function that is known, before it has run, to donate its arguments."""
    if "jax" not in sys.modules:
        return
    import jax

    # A jitted function has to be traced to know; a compiled one knows.
    staged = fn.lower(*args) if hasattr(fn, "lower") else fn
    infos = jax.tree.leaves(getattr(staged, "args_info", ()))
    if any(info.donated for info in infos):
        raise _donation_error()


def _donation_error() -> UsageError:
    return UsageError(
        "the function donates its arguments, so a second call cannot use them again.\n"
        "Say what the next call takes, e.g. carry=lambda out, args: (out, *args[1:])."
    )


def _copied(args: tuple) -> tuple:
    """The arguments with their JAX arrays copied; there are none while jax is not imported."""
    if "jax" not in sys.modules:
        return args
    import jax

    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, args)


def _is_any_deleted(args: tuple) -> bool:
    if "jax" not in sys.modules:
        return False
    import jax

    leaves = jax.tree.leaves(args)
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


class _Calls:
    """A function with the arguments of its next call."""

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple,
        carry: Callable[[Any, tuple], tuple] | None,
        fence: Callable[[Any], Any],
    ):
        self._fn = fn
        self._args = args
        self._carry = carry
        self._fence = fence

    def __call__(self, calls: int) -> Any:
        """Calls the function so often; what is returned must be fenced to know that all are done.

        Calls that feed each other end with the last one. Nothing promises that others end in the
        order in which they were dispatched, so each of those is waited for, a little later, lest
        its work leak out of the window.
        """
        output = None
        if self._carry is not None:
            for _ in range(calls):
                output = self._fn(*self._args)
                self._args = self._carry(output, self._args)
            return output, self._args
        ahead: collections.deque[Any] = collections.deque()
        for _ in range(calls):
            ahead.append(self._fn(*self._args))
            if len(ahead) > _CALLS_AHEAD:
                self._fence(ahead.popleft())
        if _is_any_deleted(self._args):  # by donation within a plain function
            raise _donation_error()
        return list(ahead)


def _is_narrow(found: Any, target_relative_ci: float) -> bool:
    if isinstance(found, str):
        return False
    return found.energy_j.half_width() <= target_relative_ci * abs(found.energy_j.value)


def _measurement(measured: Rounds, name: str, target_relative_ci: float) -> Measurement:
    """What was gathered about one function, in one value."""
    first_call = measured.first_call_of(name)
    first_call_j = measured.line_energy_j(first_call) if first_call else None
    energy_j = net_j = power_w = None
    windows = 0
    seconds_per_call = measured.mean_duration_s(name)
    why: dict[str, str] = {}
    idle_w = measured.idle_power_w()
    found = measured.long_run(name)
    if isinstance(found, str):
        why["per_call_j"] = why["net_per_call_j"] = found
    else:
        energy_j, seconds_per_call, windows = found.energy_j, found.duration_s, found.windows
        power_w = energy_j.value / seconds_per_call
        if isinstance(idle_w, str):
            why["net_per_call_j"] = idle_w
        else:
            net_j = difference(energy_j, _scaled(idle_w, seconds_per_call))
    if isinstance(idle_w, str):
        why["idle_w"] = idle_w
    if seconds_per_call is None:
        why["seconds_per_call"] = TIME_WAS_UP
    if first_call is None:
        why["first_call_j"] = why["first_call_s"] = TIME_WAS_UP
    elif first_call_j is None:
        why["first_call_j"] = next(iter(first_call["why"].values()), NOTHING_COUNTED)
    return Measurement(
        per_call_j=energy_j.value if energy_j else None,
        ci95_j=energy_j.interval() if energy_j else None,
        net_per_call_j=net_j.value if net_j else None,
        net_ci95_j=net_j.interval() if net_j else None,
        power_w=power_w,
        idle_w=None if isinstance(idle_w, str) else idle_w.value,
        seconds_per_call=seconds_per_call,
        first_call_j=first_call_j,
        first_call_s=line_duration_s(first_call) if first_call else None,
        calls=sum(line["updates"] for line in measured.windows_of(name)),
        windows=windows,
        domains=measured.meters.counted_domains,
        provenance=measured.meters.provenance,
        target_relative_ci=target_relative_ci,
        reached_target=_is_narrow(found, target_relative_ci),
        why=why,
    )


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.standard_error * factor, estimate.freedom)
