"""Learning-rate schedules by name, with lengths as shares of the run, so that one fits any run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from jaxenergy.arguments import (
    FRACTION,
    POSITIVE,
    PROPORTION,
    Argument,
    Interval,
    read_arguments,
    split_arguments,
)
from jaxenergy.registry import Registry


@dataclass(frozen=True)
class Schedule:
    """A schedule's formula and arguments.

    Attributes:
        make: from the run's updates and the arguments to an Optax schedule with peak 1.
        arguments: its arguments by name.
    """

    make: Callable[..., optax.Schedule]
    arguments: Mapping[str, Argument]


def _constant(updates: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def _cosine(updates: int, end: float) -> optax.Schedule:
    return optax.cosine_decay_schedule(1.0, updates, alpha=end)


def _linear(updates: int, end: float) -> optax.Schedule:
    return optax.linear_schedule(1.0, end, updates)


def _exponential(updates: int, end: float) -> optax.Schedule:
    return optax.exponential_decay(1.0, updates, end)


def _step(updates: int, first: float, second: float, factor: float) -> optax.Schedule:
    return optax.piecewise_constant_schedule(
        1.0, {round(updates * first): factor, round(updates * second): factor}
    )


def _warmup_constant(updates: int, warmup: float) -> optax.Schedule:
    warmup_updates = _warmup_updates(updates, warmup)
    return optax.warmup_constant_schedule(1.0 / warmup_updates, 1.0, warmup_updates)


def _warmup_cosine(updates: int, warmup: float, end: float) -> optax.Schedule:
    warmup_updates = _warmup_updates(updates, warmup)
    return optax.warmup_cosine_decay_schedule(
        1.0 / warmup_updates, 1.0, warmup_updates, max(updates, warmup_updates + 1), end
    )


def _one_cycle(updates: int, warmup: float) -> optax.Schedule:
    return optax.cosine_onecycle_schedule(max(updates, 2), 1.0, pct_start=warmup)


def _inverse_sqrt(updates: int, warmup: float) -> optax.Schedule:
    warmup_updates = _warmup_updates(updates, warmup)
    rise = optax.linear_schedule(1.0 / warmup_updates, 1.0, warmup_updates)
    fall = lambda count: (1.0 + count / warmup_updates) ** -0.5  # noqa: E731
    return optax.join_schedules([rise, fall], [warmup_updates])


def _warmup_updates(updates: int, warmup: float) -> int:
    return max(round(updates * warmup), 1)


_END = Argument(float, 0.0, PROPORTION)
_WARMUP = Argument(float, 0.05, FRACTION)

SCHEDULES: Registry[Schedule] = Registry("--schedule")
for _name, _make, _arguments, _description in (
    ("constant", _constant, {}, "the same all the time"),
    ("cosine", _cosine, {"end": _END}, "half a cosine from 1 to `end`"),
    ("linear", _linear, {"end": _END}, "a straight line from 1 to `end`"),
    (
        "exponential",
        _exponential,
        {"end": Argument(float, 0.01, Interval(0.0, 1.0, closed_low=False, closed_high=True))},
        "exponential decay from 1 to `end`",
    ),
    (
        "step",
        _step,
        {
            "first": Argument(float, 0.5, FRACTION),
            "second": Argument(float, 0.75, FRACTION),
            "factor": Argument(float, 0.1, POSITIVE),
        },
        "times `factor` after the shares `first` and `second` of the run (He et al. 2016)",
    ),
    (
        "warmup_constant",
        _warmup_constant,
        {"warmup": _WARMUP},
        "a rise over the share `warmup` of the run, then constant",
    ),
    (
        "warmup_cosine",
        _warmup_cosine,
        {"warmup": _WARMUP, "end": _END},
        "a rise over the share `warmup`, then half a cosine to `end`",
    ),
    (
        "one_cycle",
        _one_cycle,
        {"warmup": Argument(float, 0.3, Interval(0.0, 1.0, closed_low=False))},
        "a cosine up from 1/25 over the share `warmup`, a cosine down to 1/10000 (Smith 2018)",
    ),
    (
        "inverse_sqrt",
        _inverse_sqrt,
        {"warmup": _WARMUP},
        "a rise over the share `warmup`, then as one over the root of time (Vaswani et al. 2017)",
    ),
):
    SCHEDULES.add(_name, Schedule(_make, _arguments), _description)


def build_schedule(spec: str, total_updates: int) -> tuple[optax.Schedule | None, dict[str, Any]]:
    """A schedule from its name and arguments, as `cosine` or `warmup_cosine:warmup=0.1,end=0.01`.

    Args:
        spec: the schedule as typed.
        total_updates: updates of the run.

    Returns:
        A function from the update's number to the factor on the peak learning rate, None for
        `constant`; and the arguments as resolved.

    Raises:
        UsageError: an unknown schedule or argument, or a value not allowed.
    """
    name, _, text = spec.partition(":")
    schedule = SCHEDULES[name]
    what = f"--schedule={name}"
    arguments = read_arguments(split_arguments(text, what), schedule.arguments, what)
    if name == "constant":
        return None, arguments
    return schedule.make(max(total_updates, 1), **arguments), arguments
