"""MNIST and Fashion-MNIST as published: four files in the idx format, gzipped or not.

References:
    Y. LeCun, C. Cortes, C. J. C. Burges. The MNIST database of handwritten digits, whose page
    describes the format: two zero bytes, the type of an element (8: uint8), the number of
    dimensions, each dimension as a big-endian 32-bit number, then the elements. The SHA-256 are
    those of the TensorFlow Datasets tables; torchvision's MD5 belong to the same files.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxenergy.data.archives import Archive, gunzip, read_bounded, read_verified
from jaxenergy.data.dataset import Split
from jaxenergy.errors import UsageError


@dataclass(frozen=True)
class IdxFile:
    """One published file.

    Args:
        archive: the `.gz`.
        shape: the dimensions that its header states.
    """

    archive: Archive
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file's name when it is decompressed."""
        return self.archive.name.removesuffix(".gz")

    @property
    def max_bytes(self) -> int:
        """More than the decompressed file has."""
        return 100 + math.prod(self.shape)


@dataclass(frozen=True)
class IdxSet:
    """The files of one set.

    Args:
        folders: where others keep them below `--data_dir` (torchvision among them).
        files: training images, training labels, test images, test labels.
    """

    folders: tuple[str, ...]
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]


def _idx_set(
    base_url: str, folders: tuple[str, ...], published: tuple[tuple[int, str], ...]
) -> IdxSet:
    """A set of the usual four files from their sizes in bytes and SHA-256."""
    names_and_shapes = (
        ("train-images-idx3-ubyte.gz", (60_000, 28, 28)),
        ("train-labels-idx1-ubyte.gz", (60_000,)),
        ("t10k-images-idx3-ubyte.gz", (10_000, 28, 28)),
        ("t10k-labels-idx1-ubyte.gz", (10_000,)),
    )
    train_images, train_labels, test_images, test_labels = (
        IdxFile(Archive(name, base_url + name, size_bytes, sha256), shape)
        for (name, shape), (size_bytes, sha256) in zip(names_and_shapes, published, strict=True)
    )
    return IdxSet(folders, (train_images, train_labels, test_images, test_labels))


MNIST = _idx_set(
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ("mnist", "MNIST/raw"),
    (
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
)
FASHION_MNIST = _idx_set(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    (
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)


def find_idx(idx_set: IdxSet, data_dir: Path) -> tuple[Split, Split, str] | None:
    """Reads the four files, gzipped or not, from the first folder that has any of them.

    Args:
        idx_set: the files to look for.
        data_dir: the folder that holds them, a parent of it as named in `idx_set.folders`, or one
            of the files.

    Returns:
        The training part, the test part and a sentence on the source; None if there is none.

    Raises:
        UsageError: a file is missing, truncated or altered.
    """
    names = {name for file in idx_set.files for name in (file.name, file.archive.name)}
    if data_dir.is_file() and data_dir.name in names:
        data_dir = data_dir.parent
    for folder in (data_dir, *(data_dir / name for name in idx_set.folders)):
        if any((folder / name).is_file() for name in names):
            break
    else:
        return None
    arrays, verified = [], 0
    for file in idx_set.files:
        packed, unpacked = folder / file.archive.name, folder / file.name
        if packed.is_file():
            content, verified = read_verified(packed, file.archive), verified + 1
            arrays.append(parse_idx_gz(content, file))
        elif unpacked.is_file():
            arrays.append(
                _parse_idx(read_bounded(unpacked, file.max_bytes), file.shape, str(unpacked))
            )
        else:
            raise UsageError(f"{packed} is missing; the other files of the set are there.")
    return (
        *idx_parts(arrays),
        f"official files, {verified} of 4 held to their published SHA-256"
        + ("" if verified == 4 else ", the others to their sizes and class counts"),
    )


def parse_idx_gz(content: bytes, file: IdxFile) -> np.ndarray:
    """The array in the bytes of a verified gzipped file."""
    return _parse_idx(gunzip(content, file.archive.name), file.shape, file.archive.name)


def idx_parts(arrays: list[np.ndarray]) -> tuple[Split, Split]:
    """Training and test part from the arrays of the four files, in order."""
    train_images, train_labels, test_images, test_labels = arrays
    return (
        Split(train_images[..., None], train_labels.astype(np.int32)),
        Split(test_images[..., None], test_labels.astype(np.int32)),
    )


def _parse_idx(content: bytes, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The array of an idx file, uint8 of the shape it should have."""
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    if content[: len(header)] != header:
        raise UsageError(
            f"{what} is not the idx file expected: expected the header {header.hex()} (uint8 "
            f"{list(shape)}), found {content[: len(header)].hex() or 'nothing'}."
        )
    elements = np.frombuffer(content, np.uint8, offset=len(header))
    if elements.size != np.prod(shape):
        raise UsageError(
            f"{what} is truncated or altered: expected {len(header) + int(np.prod(shape))} bytes, "
            f"found {len(content)}."
        )
    return elements.reshape(shape)
