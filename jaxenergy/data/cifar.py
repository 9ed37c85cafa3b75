"""CIFAR-10 and CIFAR-100 as their author publishes them: binary and Python versions.

The archives' members are read in memory; nothing is extracted to disk.

References:
    A. Krizhevsky (2009). Learning Multiple Layers of Features from Tiny Images.
    https://www.cs.toronto.edu/~kriz/cifar.html describes the formats. The SHA-256 are those of the
    TensorFlow Datasets and Keras tables; the MD5 of the page belong to the same files.
"""

import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxenergy.data.archives import (
    Archive,
    check_bound,
    check_size,
    read_bounded,
    read_sized,
    read_verified,
)
from jaxenergy.data.dataset import Split
from jaxenergy.data.plain_pickle import read_plain_pickle
from jaxenergy.errors import UsageError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Edition:
    """One published form of one of the sets.

    Args:
        archive: the `.tar.gz`.
        folder: the folder inside it.
        train: the names of the training files in it, in order.
        test: the name of the test file.
        train_examples: how many examples each training file holds.
        test_examples: how many examples the test file holds.
        label_bytes: for the binary version, the bytes before the pixels of a record, of which the
            last is the label.
        label_key: for the Python version, the key of the labels; None for the binary version.
        superclass_key: for the Python version, the key of the super-classes; None where there are
            none, and for the binary version, where they come before the label.
    """

    archive: Archive
    folder: str
    train: tuple[str, ...]
    test: str
    train_examples: int
    test_examples: int
    label_bytes: int = 0
    label_key: str | None = None
    superclass_key: str | None = None

    @property
    def has_superclasses(self) -> bool:
        """Whether labels have a second column, of super-classes."""
        return self.superclass_key is not None or self.label_bytes == 2

    def max_bytes(self, name: str) -> int:
        """What a file cannot be larger than; pickles hold names and labels beside the pixels."""
        examples = self.test_examples if name == self.test else self.train_examples
        return examples * 4 * _PIXELS


CIFAR10_BINARY = Edition(
    archive=Archive(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    train_examples=10_000,
    test_examples=10_000,
    label_bytes=1,
)
CIFAR10_PYTHON = Edition(
    archive=Archive(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    train_examples=10_000,
    test_examples=10_000,
    label_key="labels",
)
CIFAR100_BINARY = Edition(
    archive=Archive(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    train_examples=50_000,
    test_examples=10_000,
    label_bytes=2,  # the super-class, then the class
)
CIFAR100_PYTHON = Edition(
    archive=Archive(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        169_001_437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    folder="cifar-100-python",
    train=("train",),
    test="test",
    train_examples=50_000,
    test_examples=10_000,
    label_key="fine_labels",
    superclass_key="coarse_labels",
)


def find_cifar(editions: tuple[Edition, ...], data_dir: Path) -> tuple[Split, Split, str] | None:
    """Reads the first edition found, archives before folders since they can be verified.

    Args:
        editions: the forms to look for, in order of preference.
        data_dir: an archive, the folder that holds it, an extracted folder or its parent.

    Returns:
        The training part, the test part and a sentence on the source; None if there is none.

    Raises:
        UsageError: what was found is truncated or altered.
    """
    for edition in editions:
        for path in (data_dir, data_dir / edition.archive.name):
            if path.is_file() and path.name == edition.archive.name:
                return (
                    *read_cifar_archive(read_verified(path, edition.archive), edition),
                    f"official archive {path.name}, held to its published SHA-256",
                )
    for edition in editions:
        for folder in (data_dir / edition.folder, data_dir):
            if any((folder / name).is_file() for name in (*edition.train, edition.test)):
                return (
                    *_read_folder(folder, edition),
                    f"extracted files in {folder.name}, held to their sizes and class counts",
                )
    return None


def read_cifar_archive(content: bytes, edition: Edition) -> tuple[Split, Split]:
    """Reads the training and the test part from the bytes of a verified archive."""
    members: dict[str, bytes] = {}
    wanted = {f"{edition.folder}/{name}": name for name in (*edition.train, edition.test)}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r|gz") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                stream = tar.extractfile(member) if name and member.isreg() else None
                if name and stream:
                    # Nothing is ever written to where a member says; this bounds the memory.
                    check_bound(member.size, edition.max_bytes(name), member.name)
                    members[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{edition.archive.name} is not a whole archive: {error}.") from error
    missing = sorted(set(wanted.values()) - set(members))
    if missing:
        raise UsageError(f"{edition.archive.name} lacks {', '.join(missing)}.")
    return _parse(edition, lambda name: members.pop(name))


def _read_folder(folder: Path, edition: Edition) -> tuple[Split, Split]:
    """Reads the training and the test part from extracted files."""
    if edition.label_key is not None:  # pickles differ in size with who wrote them

        def read(name: str) -> bytes:
            return read_bounded(folder / name, edition.max_bytes(name))

    else:
        record = edition.label_bytes + _PIXELS

        def read(name: str) -> bytes:
            examples = edition.test_examples if name == edition.test else edition.train_examples
            return read_sized(folder / name, examples * record)

    return _parse(edition, read)


def _parse(edition: Edition, read: Callable[[str], bytes]) -> tuple[Split, Split]:
    """The training and the test part from the content of the files, by name."""

    def part(names: tuple[str, ...], examples_a_file: int) -> Split:
        images = np.empty((len(names) * examples_a_file, 32, 32, 3), np.uint8)
        columns = (2,) if edition.has_superclasses else ()
        labels = np.empty((len(images), *columns), np.int32)
        for number, name in enumerate(names):
            block = slice(number * examples_a_file, (number + 1) * examples_a_file)
            if edition.label_key is not None:
                planes, found = _parse_pickle(read(name), name, edition, examples_a_file)
            else:
                planes, found = _parse_records(
                    read(name), name, edition.label_bytes, examples_a_file
                )
            images[block] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels[block] = found
        return Split(images, labels)

    train = part(edition.train, edition.train_examples)
    return train, part((edition.test,), edition.test_examples)


def _parse_records(
    content: bytes, what: str, label_bytes: int, examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel planes `[examples, 3072]` and labels of a file of the binary version.

    Labels are `[examples]`, or `[examples, 2]`, class and super-class.
    """
    record = label_bytes + _PIXELS
    check_size(content, examples * record, what)
    records = np.frombuffer(content, np.uint8).reshape(examples, record)
    labels = records[:, label_bytes - 1 :: -1] if label_bytes > 1 else records[:, 0]
    return records[:, label_bytes:], labels


def _parse_pickle(
    content: bytes, what: str, edition: Edition, examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel planes and labels, shaped as of the binary version, of a file of the Python version."""
    batch = read_plain_pickle(content, what)
    planes = batch.get("data")
    if not isinstance(planes, np.ndarray) or planes.shape != (examples, _PIXELS):
        shape = list(planes.shape) if isinstance(planes, np.ndarray) else type(planes).__name__
        raise UsageError(f"{what}: expected data [{examples}, {_PIXELS}], found {shape}.")
    columns = []
    for key in filter(None, (edition.label_key, edition.superclass_key)):
        labels = batch.get(key)
        if not isinstance(labels, list) or len(labels) != examples:
            found = f"{len(labels)} values" if isinstance(labels, list) else type(labels).__name__
            raise UsageError(f"{what}: expected {key} with {examples} values, found {found}.")
        if not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise UsageError(f"{what}: expected {key} to be whole numbers from 0 to 255.")
        columns.append(np.array(labels, np.int32))
    return planes, np.stack(columns, axis=1) if len(columns) > 1 else columns[0]
