"""Typed arguments by name: how `momentum=0.9,nesterov=true` becomes checked Python values.

Optimizers, schedules and model families each have hyper-parameters of their own. They are declared
once as `Argument`s; what a user gives is held to that, and the rest is refused with the list.
"""

import dataclasses
import math
from collections.abc import Mapping

from jaxenergy.errors import UsageError, unknown_value

_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KIND_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a name",
    object: "anything",
}


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers between two bounds.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        closed_low: whether the lower bound itself belongs to the interval.
        closed_high: whether the upper bound itself belongs to the interval.
    """

    low: float = -math.inf
    high: float = math.inf
    closed_low: bool = True
    closed_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low or (self.closed_low and number == self.low)
        below = number < self.high or (self.closed_high and number == self.high)
        return above and below

    def __str__(self) -> str:
        low = f"{'at least' if self.closed_low else 'above'} {self.low:g}"
        high = f"{'at most' if self.closed_high else 'below'} {self.high:g}"
        bounds = [
            text for text, bound in ((low, self.low), (high, self.high)) if math.isfinite(bound)
        ]
        return " and ".join(bounds) or "finite"


NOT_NEGATIVE = Interval(low=0.0)
POSITIVE = Interval(low=0.0, closed_low=False)
FRACTION = Interval(low=0.0, high=1.0)
PROPORTION = Interval(low=0.0, high=1.0, closed_high=True)
COUNT = Interval(low=1.0)


@dataclasses.dataclass(frozen=True)
class Argument:
    """One named argument: its type, its default, and which values it takes.

    Attributes:
        kind: bool, int, float or str; object for whichever of them the text looks like; or a tuple
            of these, for a value written as `0.9/0.999`.
        default: the value where none is given.
        interval: for numbers, where they must lie.
        choices: for names, which are allowed; empty for any.
        optional: whether `none` is a value.
    """

    kind: type | tuple[type, ...]
    default: object = None
    interval: Interval = Interval()
    choices: tuple[str, ...] = ()
    optional: bool = False

    def read(self, value: object, what: str) -> object:
        """A value as the user gave it (text or already typed), as a checked Python value.

        Args:
            value: what was given.
            what: the argument as the user knows it, for errors, e.g. `--optimizer_args: momentum`.

        Returns:
            The value: bool, int, float, str, None, or a tuple of them.

        Raises:
            UsageError: it is not of this type or not allowed.
        """
        if self.optional and (value is None or str(value).lower() == "none"):
            return None
        if not isinstance(self.kind, tuple):
            return self._read_one(value, self.kind, what)
        parts = value.split("/") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or len(parts) != len(self.kind):
            raise UsageError(f"{what}={value} is not possible; allowed: {self.describe()}.")
        return tuple(
            self._read_one(part, kind, what) for part, kind in zip(parts, self.kind, strict=True)
        )

    def describe(self) -> str:
        """The values allowed, in words."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        names = {**_KIND_NAMES, str: ", ".join(self.choices) or _KIND_NAMES[str]}
        words = " / ".join(names[kind] for kind in kinds)
        if {int, float} & set(kinds) and str(self.interval) != "finite":
            words += f" {self.interval}"
        return words + (", or none" if self.optional else "")

    def _read_one(self, value: object, kind: type, what: str) -> object:
        error = UsageError(f"{what}={value} is not possible; allowed: {self.describe()}.")
        if kind is object:
            return _guess(value)
        if kind is bool:
            truth = value if isinstance(value, bool) else _TRUTHS.get(str(value).lower())
            if truth is None:
                raise error
            return truth
        if isinstance(value, bool):
            raise error
        if kind is str:
            if self.choices and value not in self.choices:
                raise unknown_value(what, value, self.choices)
            return str(value)
        try:
            number = float(value)  # type: ignore[arg-type]  # what is no number raises TypeError
        except (TypeError, ValueError):
            raise error from None
        if not math.isfinite(number) or number not in self.interval:
            raise error
        if kind is int and not number.is_integer():
            raise error
        return kind(number)


def _guess(value: object) -> object:
    """The value a text looks like: true, 3, 0.5, none, else the text; what is no text as it is."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(value.lower(), value)


def read_arguments(
    given: Mapping[str, object], arguments: Mapping[str, Argument], what: str
) -> dict[str, object]:
    """Every argument's value: what was given where it was, the default elsewhere.

    Args:
        given: values by name, text or typed.
        arguments: the arguments there are.
        what: where they were given, for errors, e.g. `--optimizer_args`.

    Returns:
        A value for each of `arguments`.

    Raises:
        UsageError: an unknown name, or a value that is not allowed.
    """
    for name in given:
        if name not in arguments:
            if not arguments:
                raise UsageError(f"{what}: {name} is unknown; there are no arguments here.")
            raise unknown_value(f"{what}: argument", name, arguments)
    return {
        name: argument.read(given[name], f"{what}: {name}") if name in given else argument.default
        for name, argument in arguments.items()
    }


def split_arguments(text: str, what: str) -> dict[str, str]:
    """Splits `momentum=0.9,nesterov=true` into names and the texts of their values.

    Args:
        text: the arguments as typed; empty for none.
        what: where they were given, for errors.

    Returns:
        Texts by name.

    Raises:
        UsageError: a part is not of the form name=value, or a name comes twice.
    """
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UsageError(f"{what}: {part!r} is not of the form name=value.")
        if name in given:
            raise UsageError(f"{what}: {name} is given twice.")
        given[name] = value
    return given
