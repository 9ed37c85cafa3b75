"""What a data set is to the rest of the library, and the rules that are the same for all of them.

A data set is small enough to live in memory, and on the device, as `uint8`: no input pipeline runs
while energy is measured. Everything derived from its arrays (held-out part, statistics, digest) is
computed here by rule, so the same examples give the same data set wherever they were read from.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxenergy.errors import UsageError

UNLABELLED = -1  # stands where an example has no label of a task


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        inputs: images, uint8 `[examples, height, width, channels]`, or sequences of tokens, uint8
            `[examples, length]`.
        labels: of images the classes, int32 `[examples]`, or, for several tasks, `[examples,
            tasks]` with -1 where an example has no label of a task; of tokens the one that follows
            each, int32 `[examples, length]`.

    Raises:
        ValueError: a dtype or shape is another one; it names the one got.
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        if self.inputs.dtype != np.uint8 or self.inputs.ndim not in (2, 4):
            raise ValueError(
                f"inputs are {self.inputs.dtype}{list(self.inputs.shape)}; uint8 [examples, "
                "height, width, channels] or [examples, length] is wanted."
            )
        wanted = self.inputs.shape if self.inputs.ndim == 2 else self.inputs.shape[:1]
        if self.inputs.ndim == 4 and self.labels.ndim == 2:
            wanted = (*wanted, self.labels.shape[1])
        if self.labels.dtype != np.int32 or self.labels.shape != wanted:
            raise ValueError(
                f"labels are {self.labels.dtype}{list(self.labels.shape)}; "
                f"int32 {list(wanted)} is wanted."
            )

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """One of the tasks of a set that has several.

    Args:
        name: what it is called.
        classes: how many its labels name.
    """

    name: str
    classes: int


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before any of it is read.

    Args:
        name: as typed after `--dataset`.
        classes: how many classes its labels name, those of all tasks together; of tokens, how many
            kinds there are.
        flips: whether an image mirrored left to right keeps its label.
        citation: how its authors want it cited.
        licence: under which terms it may be used, or that none are stated.
        vocabulary: what each token stands for, by its number; of a part of a set's classes, what
            each is called in the whole set; empty where neither is to be said.
        tasks: the tasks in the order of the labels' columns, where there are several.
    """

    name: str
    classes: int
    flips: bool
    citation: str
    licence: str
    vocabulary: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Args:
        facts: what was known of it beforehand.
        train: the part that is trained on.
        validation: held out of the official training part; tuning and stopping use it.
        test: the official test part; looked at once, at the end.
        mean: mean of the training pixels per channel, in the units of the stored pixels; empty for
            tokens.
        std: standard deviation of the same; 1 for a channel that is constant.
        source: a sentence on where the arrays came from and what they were held to.
        digest: `sha256:` and the hash of all arrays; equal for equal examples in equal order.
    """

    facts: Facts
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    digest: str

    @property
    def name(self) -> str:
        """As typed after `--dataset`."""
        return self.facts.name

    @property
    def classes(self) -> int:
        """How many classes the labels name, those of all tasks together."""
        return self.facts.classes

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, where there are several."""
        return self.facts.tasks

    @property
    def flips(self) -> bool:
        """Whether an image mirrored left to right keeps its label."""
        return self.facts.flips

    @property
    def citation(self) -> str:
        """How its authors want it cited."""
        return self.facts.citation

    @property
    def licence(self) -> str:
        """Under which terms it may be used."""
        return self.facts.licence

    @property
    def tokens_per_example(self) -> int | None:
        """The length of a sequence of tokens; None for images."""
        return self.train.inputs.shape[1] if self.train.inputs.ndim == 2 else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width and channels of one image, or the length of a sequence."""
        return self.train.inputs.shape[1:]

    @property
    def padding(self) -> int:
        """Pixels of padding on each side before a random crop: an eighth of the height.

        It is 4 for 32x32 images, the usual amount, and scales with the image.
        """
        return self.input_shape[0] // 8


def build_dataset(
    facts: Facts, train: Split, validation: Split, test: Split, source: str
) -> Dataset:
    """A data set from its parts, with its statistics and digest.

    Args:
        facts: what was known of it beforehand.
        train: the part that is trained on, the only one that enters `mean` and `std`.
        validation: the held-out part.
        test: the test part.
        source: a sentence on where the arrays came from.

    Returns:
        The data set; its arrays are made read-only.
    """
    mean, std = _channel_statistics(train.inputs) if train.inputs.ndim == 4 else ((), ())
    digest = hashlib.sha256()
    for split in (train, validation, test):
        digest.update(repr(split.inputs.shape).encode())
        for array in (split.inputs, split.labels.astype("<i4", copy=False)):
            digest.update(np.ascontiguousarray(array).data)
        split.inputs.flags.writeable = False
        split.labels.flags.writeable = False
    return Dataset(
        facts, train, validation, test, mean, std, source, f"sha256:{digest.hexdigest()}"
    )


def read_classes(text: str, available: int, what: str) -> tuple[int, ...]:
    """Reads `0-4`, `0+3+7` or `0-2+7` as classes.

    Args:
        text: as typed: classes and ranges of them, both ends included, joined by a plus.
        available: how many classes there are.
        what: the option as the user knows it, for errors.

    Returns:
        The classes in the order in which they were named.

    Raises:
        UsageError: it is not of that form, a class does not exist or comes twice, or there is but
            one.
    """
    classes: list[int] = []
    for part in text.split("+"):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < available:
            raise UsageError(
                f"{what}={text} is not possible; allowed: classes of 0 to {available - 1}, "
                f"ranges among them, and several joined by a plus, e.g. 0+1; got {part!r}."
            )
        classes += range(first, last + 1)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UsageError(
            f"{what}={text} is not possible; allowed: two classes or more, each of them once."
        )
    return tuple(classes)


def take_classes(split: Split, classes: Sequence[int]) -> Split:
    """The examples of some classes, in their order, labelled by the classes' places in the list.

    Args:
        split: the whole.
        classes: which; the first becomes class 0.

    Returns:
        A copy of that part.
    """
    place = np.full(1 + max(*classes, int(split.labels.max(initial=0))), -1, np.int32)
    place[list(classes)] = np.arange(len(classes))
    part = take(split, place[split.labels] >= 0)
    return Split(part.inputs, place[part.labels])


def take_evenly(split: Split, examples: int) -> Split:
    """The first examples of each class, in their order, as many of every class to within one.

    Args:
        split: the whole.
        examples: how many to take; all where there are no more.

    Returns:
        A copy of that part.
    """
    if examples >= split.examples:
        return split
    ranks = rank_within_class(class_column(split.labels))
    first = np.sort(np.argsort(ranks, kind="stable")[:examples])
    return Split(split.inputs[first], split.labels[first])


def rank_within_class(labels: np.ndarray) -> np.ndarray:
    """For each example, how many of its class come before it.

    Held-out parts are picked by this rank: the same number of every class to within one, spread
    evenly over the file, and independent of any random generator's version.

    Args:
        labels: classes `[examples]`.

    Returns:
        Ranks, int64 `[examples]`.
    """
    order = np.argsort(labels, kind="stable")
    in_order = labels[order]
    starts = np.searchsorted(in_order, in_order, side="left")
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - starts
    return ranks


def hold_out_validation(official: Split) -> tuple[Split, Split]:
    """Splits an official training part: of each class, every tenth example is for validation.

    Args:
        official: the training part as its authors published it, in their order.

    Returns:
        The part to train on and the validation part, each in the official order.
    """
    held_out = rank_within_class(class_column(official.labels)) % 10 == 9
    return take(official, ~held_out), take(official, held_out)


def class_column(labels: np.ndarray) -> np.ndarray:
    """The classes proper, the first column, of labels that may have more."""
    return labels if labels.ndim == 1 else labels[:, 0]


def take(split: Split, chosen: np.ndarray) -> Split:
    """The examples of a part where `chosen`, a bool array `[examples]`, is true."""
    return Split(split.inputs[chosen], split.labels[chosen])


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from exact integer sums.

    Sums of integers do not depend on the order of summation, so the same images give the same
    bits on every machine.

    Args:
        images: uint8 `[examples, height, width, channels]`.

    Returns:
        Mean and standard deviation (divided by the count; 1 where it is 0) per channel.
    """
    count, *shape = images.shape
    total = np.zeros(shape, np.int64)
    total_of_squares = np.zeros(shape, np.int64)
    for start in range(0, count, 1000):  # bounds the memory of the widened copy
        block = images[start : start + 1000].astype(np.uint16)
        total += block.sum(axis=0, dtype=np.uint32)
        total_of_squares += np.square(block).sum(axis=0, dtype=np.uint32)  # 255**2 fits 16 bits
    pixels = count * shape[0] * shape[1]
    means, stds = [], []
    for channel in range(shape[2]):
        first, second = (int(t[:, :, channel].sum()) for t in (total, total_of_squares))
        means.append(first / pixels)
        stds.append((second * pixels - first * first) ** 0.5 / pixels or 1.0)
    return tuple(means), tuple(stds)
