"""The published image sets: what is known of each, where its files are found, how they are read.

One table for both ways to a set, local files and TensorFlow Datasets, so that they cannot differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jaxenergy.data.archives import Archive
from jaxenergy.data.cifar import (
    CIFAR10_BINARY,
    CIFAR10_PYTHON,
    CIFAR100_BINARY,
    CIFAR100_PYTHON,
    Edition,
    find_cifar,
    read_cifar_archive,
)
from jaxenergy.data.dataset import (
    Dataset,
    Facts,
    Split,
    build_dataset,
    class_column,
    hold_out_validation,
)
from jaxenergy.data.idx import FASHION_MNIST, MNIST, IdxSet, find_idx, idx_parts, parse_idx_gz
from jaxenergy.errors import UsageError


@dataclass(frozen=True)
class Official:
    """A published set.

    Args:
        facts: name, classes, citation, licence.
        shape: height, width and channels of an image.
        train_counts: how many examples of each class the training part has.
        test_counts: the same for the test part.
        archives: the files to download when it is not found.
        parse: the training and the test part from the bytes of `archives`, in order; labels may
            have further columns beside the classes.
        find: the same and a sentence on the source, from local files; None if there are none.
        label_columns: how many labels an example has: 2 where there are super-classes.
    """

    facts: Facts
    shape: tuple[int, int, int]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    archives: tuple[Archive, ...]
    parse: Callable[[Sequence[bytes]], tuple[Split, Split]]
    find: Callable[[Path], tuple[Split, Split, str] | None]
    label_columns: int = 1


def build_official(official: Official, train: Split, test: Split, source: str) -> Dataset:
    """A data set from its official parts: counts checked, validation held out.

    Args:
        official: which set it should be.
        train: its training part.
        test: its test part.
        source: a sentence on where they came from.

    Returns:
        The data set, with all labels that an example has.

    Raises:
        UsageError: a part has not the published number of examples of each class.
    """
    name = official.facts.name
    for part, split, expected in (
        ("training", train, official.train_counts),
        ("test", test, official.test_counts),
    ):
        found = np.bincount(class_column(split.labels), minlength=len(expected))
        if len(found) > len(expected):
            raise UsageError(
                f"{name} ({source}): expected {part} labels from 0 to {len(expected) - 1}, "
                f"found {len(found) - 1}."
            )
        wrong = np.flatnonzero(found != expected)
        if wrong.size:
            raise UsageError(
                f"{name} ({source}): expected {expected[wrong[0]]} {part} examples of class "
                f"{wrong[0]}, found {found[wrong[0]]}; the files are altered or of another set."
            )
    rest, validation = hold_out_validation(train)
    return build_dataset(official.facts, rest, validation, test, source)


def _cifar(facts: Facts, binary: Edition, python: Edition) -> Official:
    return Official(
        facts,
        shape=(32, 32, 3),
        train_counts=(50_000 // facts.classes,) * facts.classes,
        test_counts=(10_000 // facts.classes,) * facts.classes,
        archives=(binary.archive,),
        parse=partial(_parse_cifar, binary),
        find=partial(find_cifar, (binary, python)),
        label_columns=2 if binary.has_superclasses else 1,
    )


def _parse_cifar(edition: Edition, contents: Sequence[bytes]) -> tuple[Split, Split]:
    (content,) = contents
    return read_cifar_archive(content, edition)


def _idx(
    facts: Facts, idx_set: IdxSet, train_counts: tuple[int, ...], test_counts: tuple[int, ...]
) -> Official:
    return Official(
        facts,
        shape=(28, 28, 1),
        train_counts=train_counts,
        test_counts=test_counts,
        archives=tuple(file.archive for file in idx_set.files),
        parse=partial(_parse_idx_set, idx_set),
        find=partial(find_idx, idx_set),
    )


def _parse_idx_set(idx_set: IdxSet, contents: Sequence[bytes]) -> tuple[Split, Split]:
    return idx_parts(
        [parse_idx_gz(content, file) for content, file in zip(contents, idx_set.files, strict=True)]
    )


_KRIZHEVSKY = (
    "A. Krizhevsky (2009). Learning Multiple Layers of Features from Tiny Images. Technical "
    "report, University of Toronto. https://www.cs.toronto.edu/~kriz/cifar.html"
)

OFFICIAL: dict[str, Official] = {
    official.facts.name: official
    for official in (
        _cifar(
            Facts("cifar10", 10, True, _KRIZHEVSKY, licence="none stated by its author"),
            CIFAR10_BINARY,
            CIFAR10_PYTHON,
        ),
        _cifar(
            Facts("cifar100", 100, True, _KRIZHEVSKY, licence="none stated by its author"),
            CIFAR100_BINARY,
            CIFAR100_PYTHON,
        ),
        _idx(
            Facts(
                "mnist",
                10,
                False,
                citation=(
                    "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998). Gradient-Based Learning "
                    "Applied to Document Recognition. Proceedings of the IEEE 86(11), 2278-2324. "
                    "https://doi.org/10.1109/5.726791"
                ),
                licence="none stated by its authors",
            ),
            MNIST,
            train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        ),
        _idx(
            Facts(
                "fashion_mnist",
                10,
                True,
                citation=(
                    "H. Xiao, K. Rasul and R. Vollgraf (2017). Fashion-MNIST: a Novel Image "
                    "Dataset for Benchmarking Machine Learning Algorithms. arXiv:1708.07747"
                ),
                licence="MIT",
            ),
            FASHION_MNIST,
            train_counts=(6000,) * 10,
            test_counts=(1000,) * 10,
        ),
    )
}
