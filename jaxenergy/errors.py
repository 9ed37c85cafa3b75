"""The errors a user meets: bad input reads as one to three clear lines, never as a traceback.

`UsageError` is what a person can mend by typing something else (exit status 2); `RunError` is a
failure while running (exit status 1). Both are shown by the drivers as plain text.
"""

import difflib
from collections.abc import Iterable

_MOST_NAMES = 100  # more of them fill the screen and help nobody


class JaxenergyError(Exception):
    """Anything this library raises on purpose."""


class UsageError(JaxenergyError, ValueError):
    """Bad input: the message names the value got, the values allowed and the nearest match."""


class RunError(JaxenergyError, RuntimeError):
    """Something failed while running; what was finished until then is kept."""


def unknown_value(what: str, got: object, allowed: Iterable[str], hint: str = "") -> UsageError:
    """The error for a value that is not one of a known set.

    Args:
        what: what the value is, as the user typed it, e.g. `--optimizer`.
        got: the value got.
        allowed: the values allowed.
        hint: one more sentence for the end, e.g. where to find more.

    Returns:
        The error, to be raised by the caller: value got, nearest match, values allowed.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(got).lower(), names, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    shown = names
    if len(names) > _MOST_NAMES:
        shown = difflib.get_close_matches(str(got), names, n=5, cutoff=0.0)
    listed = ", ".join(shown) or "nothing"
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    lines = [f"{what}={got!s} is unknown.{guess}", f"Allowed: {listed}{more}."]
    if hint:
        lines.append(hint)
    return UsageError("\n".join(lines))
