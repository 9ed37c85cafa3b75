"""Reads what a person types for a grid: `depth=2,4,8`, `--seeds=5`.

Values have commas between them. Values that may hold commas themselves have semicolons instead, and
where a text could be read in both ways it is refused and not guessed:

    --grid=depth=2,4,8
    --grid='optimizer_args=momentum=0.9,nesterov=true; momentum=0.5; '   (the third one is empty)
"""

import dataclasses
import itertools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

from jaxenergy.config import RunConfig, field_type, parse_setting
from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.records.files import plain_text

MAX_RUNS = 10_000
MAX_SEED = 2**32 - 1

# Settings one value of which may hold commas.
_COMMAS_WITHIN = ("model_args", "optimizer_args", "meters", "dataset")

_AXES = {field.name: field for field in dataclasses.fields(RunConfig) if field.metadata["identity"]}


def read_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each setting that is varied.

    Args:
        texts: what each `--grid` says: `name=value,value`.

    Returns:
        Values by setting, in the order given.

    Raises:
        UsageError: no setting, no value, one that is not allowed, or one given twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(
                f"--grid={plain_text(text, 80)} is not of the form name=value,value.\n"
                "Allowed: e.g. --grid=optimizer=sgd,adam."
            )
        if name not in _AXES:
            raise _refused_name(name)
        if name in axes:
            raise UsageError(f"--grid={name} is given twice.\nAllowed: one --grid per setting.")
        axes[name] = _read_values(name, values)
    return axes


def read_seeds(text: str) -> list[int]:
    """The seeds of `--seeds`: `5` is 0 to 4, `3,7` is these two, `7,` this one.

    Raises:
        UsageError: it is neither; or a seed is given twice or is out of range.
    """
    allowed = f"Allowed: how many (5), or a list of seeds from 0 to {MAX_SEED} (3,7 or 7,)."
    try:
        if "," not in text:
            count = int(text)
            seeds = list(range(count)) if 1 <= count <= MAX_RUNS else []
        else:
            parts = text.rstrip().removesuffix(",").split(",")
            seeds = [int(part) for part in parts]
    except ValueError:
        seeds = []
    if not seeds or any(not 0 <= seed <= MAX_SEED for seed in seeds):
        raise UsageError(f"--seeds={plain_text(text, 80)} is not possible.\n{allowed}")
    _refuse_twice("--seeds", seeds)
    return seeds


def check_size(axes: Mapping[str, Sequence[Any]]) -> None:
    """Refuses a grid of more runs than anybody means.

    Raises:
        UsageError: there are more than `MAX_RUNS`.
    """
    runs = math.prod(len(values) for values in axes.values())
    if runs > MAX_RUNS:
        parts = " x ".join(f"{len(values)} {name}" for name, values in axes.items())
        raise UsageError(f"The grid has {runs:,} runs: {parts}.\nAllowed: up to {MAX_RUNS:,}.")


def _refused_name(name: str) -> UsageError:
    every = {field.name for field in dataclasses.fields(RunConfig)}
    if name not in every:
        return unknown_value("--grid: setting", plain_text(name, 80), _AXES)
    return UsageError(
        f"--grid={name} does not change what a run computes or measures.\n"
        f"Allowed: {', '.join(sorted(_AXES))}."
    )


def _read_values(name: str, text: str) -> list[Any]:
    flag = f"--grid={name}"
    if ";" in text:
        parts = [part.strip() for part in text.split(";")]
    elif _is_ambiguous(name, text):
        raise UsageError(
            f"{flag}={plain_text(text, 200)} can be read in two ways, since a value of {name} may "
            "hold commas.\nAllowed: semicolons between the values, in quotes: "
            f"'{flag}=a; b'; or one after a single value."
        )
    else:
        parts = [part.strip() for part in text.split(",")]
    if name not in ("model_args", "optimizer_args"):
        # After one value with commas stands a semicolon, which does not begin another.
        if ";" in text and parts[-1] == "":
            parts = parts[:-1]
        if not parts or "" in parts:
            raise UsageError(
                f"{flag}={plain_text(text, 200)} has an empty value.\n"
                f"Allowed: one or more values with {'semicolons' if ';' in text else 'commas'} "
                "between."
            )
    values = [_read_value(name, part) for part in parts]
    for value in values:
        _check_alone(name, value)
    _refuse_twice(flag, values)
    return values


def _is_ambiguous(name: str, text: str) -> bool:
    if name not in _COMMAS_WITHIN or "," not in text:
        return False
    return name != "dataset" or ":" in text  # digits,cifar10 is plain


def _read_value(name: str, text: str) -> Any:
    """A value; `none` stands for a number that is not given."""
    optional = isinstance(_AXES[name].type, types.UnionType)
    if optional and field_type(name) is not str and text.lower() == "none":
        return None
    return parse_setting(name, text)


def _check_alone(name: str, value: Any) -> None:
    """Refuses a value that is out of range whatever the other settings are."""
    if name == "accumulate":
        return  # depends on the batch size
    RunConfig(**{name: value})


def _refuse_twice(flag: str, values: Sequence[Any]) -> None:
    for one, other in itertools.combinations(values, 2):
        if one == other and type(one) is type(other):
            raise UsageError(f"{flag} has the value {one!s} twice.\nAllowed: different values.")
