"""Data sets of several tasks: other readings of a set's labels, and several sets as one.

An example then carries one label a task, or `UNLABELLED` where it has none. Which examples are held
out or taken as a part is decided by the set's own classes, before tasks are chosen: so a network of
one task and one of several are trained on the same images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxenergy.data.dataset import (
    UNLABELLED,
    Dataset,
    Facts,
    Split,
    Task,
    build_dataset,
    class_column,
)
from jaxenergy.errors import UsageError, unknown_value

JOINED = "joined"
SEPARATOR = "+"
_BRIGHTEST = 255


@dataclass(frozen=True)
class Reading:
    """A task that a set's labels allow.

    Attributes:
        classes: how many there are; None for as many as the set has.
        read: from the set's labels, int32 `[examples]` or `[examples, columns]`, to those of the
            task, `[examples]`.
        needs_columns: whether that takes labels of several columns.
    """

    classes: int | None
    read: Callable[[np.ndarray], np.ndarray]
    needs_columns: bool = False


_CLASS = Reading(None, class_column)
_PARITY = Reading(2, lambda labels: class_column(labels) % 2)
READINGS: dict[str, dict[str, Reading]] = {
    "digits": {"class": _CLASS, "parity": _PARITY},
    "mnist": {"class": _CLASS, "parity": _PARITY},
    "cifar100": {
        "class": _CLASS,
        "superclass": Reading(20, lambda labels: labels[:, 1], needs_columns=True),
    },
}


def readings_of(name: str) -> dict[str, Reading]:
    """The tasks of a set by name; its classes where nothing else is known of it."""
    return READINGS.get(name, {"class": _CLASS})


def split_tasks(text: str) -> tuple[str, ...]:
    """`class+parity` as names; none of an empty text."""
    return tuple(text.split(SEPARATOR)) if text else ()


def choose_tasks(
    facts: Facts, splits: Sequence[Split], names: Sequence[str]
) -> tuple[Facts, list[Split]]:
    """The labels of some tasks in place of a set's own.

    Args:
        facts: of the set.
        splits: its parts, with all labels it has.
        names: of the tasks; none for the set's classes.

    Returns:
        The facts and the parts: labels `[examples]` of one task, `[examples, tasks]` of several.

    Raises:
        UsageError: a task is unknown or given twice, or its labels were not read.
    """
    readings, what = readings_of(facts.name), f"--dataset={facts.name}: task"
    for name in names:
        if name not in readings:
            raise unknown_value(what, name, readings)
    if len(set(names)) < len(names):
        raise UsageError(f"{what}s {SEPARATOR.join(names)} have one twice.\nAllowed: each once.")
    chosen = [readings[name] for name in names or ("class",)]
    if any(r.needs_columns for r in chosen) and any(split.labels.ndim == 1 for split in splits):
        raise UsageError(
            f"{what} {SEPARATOR.join(names)}: this copy of {facts.name} was prepared without these "
            "labels.\nGive the official files, or remove TFDS's folder so that it is prepared anew."
        )
    tasks = tuple(
        Task(name, reading.classes or facts.classes)
        for name, reading in zip(names or ("class",), chosen, strict=True)
    )
    for task, reading in zip(tasks, chosen, strict=True):
        most = max(int(reading.read(split.labels).max(initial=0)) for split in splits)
        if most >= task.classes:
            raise UsageError(
                f"{facts.name}: labels of the task {task.name} go up to {most}; allowed: 0 to "
                f"{task.classes - 1}. The files are altered or of another set."
            )
    if len(tasks) > 1:
        labels = [np.stack([r.read(split.labels) for r in chosen], axis=1) for split in splits]
    else:
        labels = [chosen[0].read(split.labels) for split in splits]
    if names:
        facts = replace(
            facts,
            name=f"{facts.name}:tasks={SEPARATOR.join(names)}",
            classes=sum(task.classes for task in tasks),
            tasks=tasks if len(tasks) > 1 else (),
        )
    return facts, [
        Split(split.inputs, np.ascontiguousarray(own, np.int32))
        for split, own in zip(splits, labels, strict=True)
    ]


def load_joined(
    options: str, data_dir: Path | None, load: Callable[[str, Path | None], Dataset]
) -> Dataset:
    """Several image sets as one of as many tasks, padded to one shape.

    Images are centred on zeros, grey is repeated where another set has colours, and the pixels of
    each set are scaled such that its brightest training pixel is 255.

    Args:
        options: names of sets, e.g. `mnist+fashion_mnist:examples=5000`.
        data_dir: where they are.
        load: loads one of them.

    Returns:
        The set; an example is labelled for its own set's task alone. Examples lie set by set.

    Raises:
        UsageError: fewer than two sets, one twice, one of text or of several tasks, or channels
            that cannot be made equal.
    """
    what = f"--dataset={JOINED}:{options}"
    names = split_tasks(options)
    if len(names) < 2 or not all(names):
        raise UsageError(f"{what}: it joins two sets or more, e.g. {JOINED}:mnist+fashion_mnist.")
    members = [load(name, data_dir) for name in names]
    titles = [task_names(name)[0] for name in names]
    for name, member in zip(names, members, strict=True):
        if member.tokens_per_example is not None or member.tasks:
            raise UsageError(f"{what}: {name} is no set of images with one task, which it must be.")
    if len(set(titles)) < len(titles):
        raise UsageError(f"{what}: the tasks {', '.join(titles)} have one twice.")
    shapes = np.array([member.input_shape for member in members])
    shape = shapes.max(axis=0)
    if not np.all((shapes[:, 2] == 1) | (shapes[:, 2] == shape[2])):
        raise UsageError(
            f"{what}: images of {' and '.join(str(c) for c in sorted(set(shapes[:, 2])))} channels "
            "cannot be joined; allowed: one number of channels, and grey."
        )
    facts = Facts(
        name=f"{JOINED}:{options}",
        classes=sum(member.classes for member in members),
        flips=all(member.flips for member in members),
        citation="; ".join(dict.fromkeys(member.citation for member in members)),
        licence="; ".join(dict.fromkeys(member.licence for member in members)),
        tasks=tuple(
            Task(title, member.classes) for title, member in zip(titles, members, strict=True)
        ),
    )
    brightest = [max(1, int(member.train.inputs.max(initial=0))) for member in members]

    def join(part: str) -> Split:
        splits = [getattr(member, part) for member in members]
        labels = np.full((sum(s.examples for s in splits), len(splits)), UNLABELLED, np.int32)
        start = 0
        for column, split in enumerate(splits):
            labels[start : start + split.examples, column] = split.labels
            start += split.examples
        padded = [_pad(s.inputs, shape, top) for s, top in zip(splits, brightest, strict=True)]
        return Split(np.concatenate(padded), labels)

    height, width, channels = map(int, shape)
    return build_dataset(
        facts,
        *map(join, ("train", "validation", "test")),
        source=f"padded to {height}x{width}x{channels}: "
        + "; ".join(f"{name}: {m.source}" for name, m in zip(names, members, strict=True)),
    )


def _pad(images: np.ndarray, shape: np.ndarray, brightest: int) -> np.ndarray:
    """Images uint8 `[n, h, w, c]` scaled to 255 and centred in zeros, uint8 `[n, *shape]`."""
    height, width, channels = shape
    scaled = np.minimum(images.astype(np.uint16) * _BRIGHTEST // brightest, _BRIGHTEST)
    top, left = (height - images.shape[1]) // 2, (width - images.shape[2]) // 2
    padded = np.zeros((len(images), *shape), np.uint8)
    inner = padded[:, top : top + images.shape[1], left : left + images.shape[2]]
    inner[...] = np.broadcast_to(scaled, (*scaled.shape[:3], channels))
    return padded


def task_names(dataset: str) -> tuple[str, ...]:
    """The names of a set's tasks, from its name alone, e.g. of `digits:tasks=class+parity`.

    A set of which no tasks are named has one, by its own name.
    """
    name, _, options = dataset.partition(":")
    if name == JOINED:
        return tuple(task_names(member)[0] for member in options.split(SEPARATOR))
    for part in options.split(","):
        key, _, text = part.partition("=")
        if key == "tasks":
            return split_tasks(text)
    return (name,)


def single_task_names(dataset: str) -> tuple[str, ...]:
    """The data sets of one task each that a set of several is made of, in the order of tasks."""
    name, _, options = dataset.partition(":")
    if name == JOINED:
        return tuple(options.split(SEPARATOR))
    tasks = task_names(dataset)
    if len(tasks) < 2:
        return (dataset,)
    rest = [part for part in options.split(",") if not part.startswith("tasks=")]
    own = next(iter(readings_of(name)))  # the classes proper, which need no naming

    def alone(task: str) -> str:
        parts = rest if task == own else [*rest, f"tasks={task}"]
        return ":".join(filter(None, (name, ",".join(parts))))

    return tuple(map(alone, tasks))
