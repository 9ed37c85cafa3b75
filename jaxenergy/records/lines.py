"""What a line of `windows.jsonl` and of `metrics.jsonl` must have, so that readers can rely on it.

A line from a folder of unknown origin is checked once, where it is read; whoever sums it up
afterwards needs no further care.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxenergy.records.files import RecordError, plain_text, read_lines
from jaxenergy.records.schema import ROLLBACK

_COUNTS = ("attempt", "first_update", "updates", "iterations", "examples")


def read_windows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Reads `windows.jsonl`, events among the windows, as far as it is finished.

    Args:
        path: the file; nothing is yielded where there is none.

    Yields:
        One dict per line. A window has `phase`, `start_ns`, `end_ns` and `energy_j`; its counts are
        whole numbers where they are given.

    Raises:
        RecordError: the file is none that a run writes; the message names the line.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if fault := _window_fault(line):
            raise RecordError(f"{Path(path).name}: line {number}: {fault}")
        yield line


def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Reads `metrics.jsonl` as far as it is finished.

    Args:
        path: the file; nothing is yielded where there is none.

    Yields:
        One dict per line; it has `update`, and its losses and accuracies are numbers or null.

    Raises:
        RecordError: the file is none that a run writes; the message names the line.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if not _is_count(line.get("update")):
            fault = f"update is {plain_text(line.get('update'), 60)}"
        elif not all(_is_number(line.get(k)) for k in ("train_loss", "validation_accuracy")):
            fault = "train_loss or validation_accuracy is neither number nor null"
        else:
            yield line
            continue
        raise RecordError(f"{Path(path).name}: line {number}: {fault}")


def _window_fault(line: dict[str, Any]) -> str | None:
    """What is wrong with a line, or None."""
    for key in _COUNTS:
        if line.get(key) is not None and not _is_count(line[key]):
            return f"{key} is {plain_text(line[key], 60)}"
    if "event" in line:
        if line["event"] == ROLLBACK:
            for key in ("to_update", *(["evaluated_at"] if "evaluated_at" in line else [])):
                if not _is_count(line.get(key)):
                    return f"{key} is {plain_text(line.get(key), 60)}"
        return None
    if not isinstance(line.get("phase"), str):
        return "it has neither phase nor event"
    if not (_is_count(line.get("start_ns")) and _is_count(line.get("end_ns"))):
        return "start_ns or end_ns is no whole number"
    energy_j, why = line.get("energy_j"), line.get("why", {})
    if not isinstance(energy_j, dict) or not all(map(_is_number, energy_j.values())):
        return "energy_j is no table of numbers and nulls"
    if not isinstance(why, dict):
        return "why is no table"
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return value is None or type(value) in (int, float)
