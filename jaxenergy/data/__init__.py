"""Data sets of fixed-shape images or texts, read once into memory as `uint8`.

`load(name, data_dir=...)` is the door; the part that runs on the device is in
`jaxenergy.data.pipeline`, the only module here that imports jax. A new set is one row of
`DATASETS`, or of `official.OFFICIAL` if it is a published one. Environments to act in stand beside
them by name, and `load_task` is their door.
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from jaxenergy.arguments import COUNT, Argument, read_arguments, split_arguments
from jaxenergy.data.control import TASKS, ControlTask, load_task
from jaxenergy.data.dataset import (
    Dataset,
    Facts,
    Split,
    Task,
    build_dataset,
    read_classes,
    take_classes,
    take_evenly,
)
from jaxenergy.data.digits import load_digits
from jaxenergy.data.official import OFFICIAL, build_official
from jaxenergy.data.synthetic import load_synthetic
from jaxenergy.data.tasks import JOINED, choose_tasks, load_joined, readings_of, split_tasks
from jaxenergy.data.text import load_stdlib, load_text
from jaxenergy.errors import UsageError
from jaxenergy.registry import Registry

__all__ = [
    "DATASETS",
    "ControlTask",
    "Dataset",
    "Facts",
    "Split",
    "Task",
    "build_dataset",
    "is_control",
    "kind_of",
    "load",
    "load_task",
]


def load(name: str, *, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: a name of `DATASETS`, with options after a colon for those that take any, e.g.
            `digits:classes=0-4`, `digits:tasks=class+parity`, `cifar10`,
            `joined:mnist+fashion_mnist`, `synthetic:32x32x3,classes=10,examples=50000`.
        data_dir: for published sets, an official archive, the folder that holds it, the folder of
            extracted files, its parent, or a folder of TensorFlow Datasets; for `text`, the file.

    Returns:
        The data set, in memory.

    Raises:
        UsageError: there is no such set, it cannot be had here, or its files are truncated or
            altered.
    """
    key, _, options = name.partition(":")
    loader = DATASETS[key]
    folder = None if data_dir is None else Path(os.path.expanduser(data_dir))
    try:
        return loader(options, folder)
    except OSError as error:
        raise UsageError(f"--dataset={name} --data_dir={data_dir}: {error}") from error


def is_control(name: str) -> bool:
    """Whether a name of `DATASETS` is that of an environment, which `load_task` loads."""
    return name.partition(":")[0] in TASKS


def kind_of(name: str) -> Literal["image", "text", "control"]:
    """What a name of `DATASETS` gives to learn from: images, sequences of tokens, or a task."""
    key, _, options = name.partition(":")
    first = options.partition(",")[0]
    if key in ("stdlib", "text") or (key == "synthetic" and first.isdecimal()):
        return "text"
    return "control" if is_control(name) else "image"


Loader = Callable[[str, Path | None], Dataset]

DATASETS: Registry[Loader] = Registry("--dataset")


_PART = {
    "examples": Argument(int, None, COUNT, optional=True),
    "classes": Argument(str, None, optional=True),
    "tasks": Argument(str, ""),
}


def _load_part(
    name: str, load_whole: Callable[[Path | None], Dataset], options: str, data_dir: Path | None
) -> Dataset:
    """Loads a set, or of each split the examples of some classes, or so many of them, or both.

    Tasks are chosen at the end, so that each is learned from the same examples.
    """
    what = f"--dataset={name}"
    given = read_arguments(split_arguments(options, what), _PART, what)
    tasks = split_tasks(str(given["tasks"]))
    if tasks and given["classes"]:
        raise UsageError(f"{what}: classes and tasks are both given.\nAllowed: one of the two.")
    part, told = load_whole(data_dir), []
    if not options and part.train.labels.ndim == 1:
        return part
    facts, train, validation, test = part.facts, part.train, part.validation, part.test
    if not tasks:
        facts, (train, validation, test) = choose_tasks(facts, (train, validation, test), ())
    if isinstance(given["classes"], str):
        classes = read_classes(given["classes"], facts.classes, f"{what}: classes")
        facts = dataclasses.replace(
            facts, classes=len(classes), vocabulary=tuple(map(str, classes))
        )
        train, validation, test = (take_classes(s, classes) for s in (train, validation, test))
        told.append(f"classes {', '.join(map(str, classes))}, now called 0 to {len(classes) - 1}")
    if isinstance(given["examples"], int):
        most = given["examples"]
        train, validation, test = (take_evenly(s, most) for s in (train, validation, test))
        told.append(f"of each split at most {most} examples, classes in equal number")
    if tasks:
        facts, (train, validation, test) = choose_tasks(facts, (train, validation, test), tasks)
    return build_dataset(facts, train, validation, test, "; ".join([part.source, *told]))


def _load_official(name: str, data_dir: Path | None) -> Dataset:
    """Loads a published set: local files first, then TensorFlow Datasets."""
    official = OFFICIAL[name]
    if data_dir is not None:
        if not data_dir.exists():
            raise UsageError(f"--data_dir={data_dir} does not exist.")
        parts = official.find(data_dir)
        if parts is not None:
            return build_official(official, *parts)
        if data_dir.is_file():
            wanted = ", ".join(archive.name for archive in official.archives)
            raise UsageError(
                f"--data_dir={data_dir} is a file but none of {name}; expected e.g. {wanted}."
            )
    try:  # an optional package that takes a third of a second to import
        from jaxenergy.data import tfds_builders
    except ImportError as error:
        why = f"TensorFlow Datasets is not installed ({error})"
    else:
        try:
            return build_official(official, *tfds_builders.load_with_tfds(name, data_dir))
        except tfds_builders.NotAvailable as error:
            why = str(error)
    raise UsageError(_ways_to_get(name, data_dir, why))


def _ways_to_get(name: str, data_dir: Path | None, why: str) -> str:
    """The message for a set that is neither here nor to be had: why, and the three ways to it."""
    found = f"not found in --data_dir={data_dir}" if data_dir else "no --data_dir is given"
    archives = OFFICIAL[name].archives
    files = " ".join(archive.name for archive in archives)
    address = archives[0].url.removesuffix(archives[0].name)
    return (
        f"--dataset={name}: {found}, and it cannot be downloaded: {why}.\n"
        f"Three ways to get it: (1) put {files} from {address} into a folder and give it as "
        "--data_dir; (2) with a network, pip install -c constraints.txt -e '.[tfds]' and run "
        f"again; (3) give as --data_dir a folder in which TensorFlow Datasets has prepared {name} "
        "as array_record.\n"
        "--dataset=digits is in the package and --dataset=synthetic needs no files."
    )


def _refuse_task(name: str, options: str, data_dir: Path | None) -> Dataset:
    """Stands in for the loader of a control task, for whoever needs examples."""
    del options, data_dir
    raise UsageError(
        f"--dataset={name} is an environment to act in, and has no examples.\n"
        "Allowed here: data sets of examples; experiments.run, sweep and study train on it."
    )


DATASETS.add(
    "digits",
    partial(_load_part, "digits", load_digits),
    "1,797 handwritten digits, 8x8 grey, 10 classes; in the package; a part: digits:classes=0-4; "
    "tasks: class, parity (digits:tasks=class+parity)",
)
for _name, _description in {
    "cifar10": "50,000 + 10,000 colour images, 32x32, 10 classes",
    "cifar100": "50,000 + 10,000 colour images, 32x32, 100 classes, 20 super-classes",
    "mnist": "60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes",
    "fashion_mnist": "60,000 + 10,000 images of clothes, 28x28 grey, 10 classes",
}.items():
    DATASETS.add(
        _name,
        partial(_load_part, _name, partial(_load_official, _name)),
        f"{_description}; a part: {_name}:classes=5-9,examples=5000"
        + (f"; tasks: {', '.join(readings_of(_name))}" if len(readings_of(_name)) > 1 else ""),
    )
DATASETS.add(
    "synthetic",
    load_synthetic,
    "random images, e.g. synthetic:32x32x3,classes=10,examples=50000,seed=0, or tokens, e.g. "
    "synthetic:256,classes=65",
)
DATASETS.add(
    "stdlib",
    load_stdlib,
    "the source of the running Python as characters, e.g. stdlib:length=128,characters=2000000",
)
DATASETS.add(
    JOINED,
    partial(load_joined, load=lambda name, data_dir: load(name, data_dir=data_dir)),
    "several sets as one of as many tasks, padded to one shape, e.g. joined:mnist+fashion_mnist",
)
DATASETS.add("text", load_text, "characters of your own text, --data_dir=FILE; options as stdlib")
for _name in TASKS:
    DATASETS.add(
        _name,
        partial(_refuse_task, _name),
        f"to act in: {TASKS.describe(_name)}; e.g. {_name}:environments=16,steps=64",
    )
