"""Unit constants and the one way in which quantities are shown to people.

A unit is part of every name in this project (`energy_j`, `start_ns`); this module holds the factors
between the units that hardware speaks and the ones that are written down, and formats for tables.
"""

import decimal
import math
from collections.abc import Mapping

NS_PER_S = 1_000_000_000
UJ_PER_J = 1_000_000
MJ_PER_J = 1_000
J_PER_KWH = 3_600_000

_SI_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def format_si(value: float | None, unit: str, digits: int = 3) -> str:
    """A quantity with an SI prefix and a fixed number of significant digits, e.g. `12.3 mJ`.

    Args:
        value: the quantity in `unit`, or None for one that could not be had.
        unit: the unit without prefix.
        digits: significant digits.

    Returns:
        The text; `n/a` for None or a value that is not finite.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0:
        return f"0 {unit}"
    factor, prefix = next(
        (pair for pair in _SI_PREFIXES if abs(value) >= pair[0] * (1 - 0.5 * 10**-digits)),
        _SI_PREFIXES[-1],
    )
    scaled = float(f"{value / factor:.{digits}g}")  # rounding may carry into a further digit
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)) + 1e-9))
    return f"{scaled:.{decimals}f} {prefix}{unit}"


def format_percent(share: float | None, digits: int = 2) -> str:
    """A share as per cent with at most so many significant digits, never with an exponent.

    Args:
        share: of one, e.g. half an interval over its mean; None for one that could not be had.
        digits: significant digits; zeros at the end are left out.

    Returns:
        The text, e.g. `0.35 %` or `150 %`; `n/a` for None or a value that is not finite.
    """
    if share is None or not math.isfinite(share):
        return "n/a"
    return f"{decimal.Decimal(f'{100 * share:.{digits}g}'):f} %"


def format_accuracy(accuracy: float, by_task: Mapping[str, float] | None = None) -> str:
    """A share as per cent, where it is the mean of several tasks with each of them."""
    tasks = ", ".join(f"{name} {value:.2%}" for name, value in (by_task or {}).items())
    return f"{accuracy:.2%}" + (f" ({tasks})" if tasks else "")


def format_count(number: int, word: str, words: str | None = None) -> str:
    """How many of something, e.g. `1 run`, `1,200 runs`, `2 studies`."""
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def format_duration_s(duration_s: float | None) -> str:
    """A duration for people: `0.53 s`, `12.3 s`, `4 min 05 s`, `3 h 07 min`."""
    if duration_s is None or not math.isfinite(duration_s):
        return "n/a"
    if duration_s < 1:
        return format_si(duration_s, "s")
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    if duration_s < 3600:
        minutes, seconds = divmod(round(duration_s), 60)
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(duration_s / 60), 60)
    return f"{hours} h {minutes:02d} min"
