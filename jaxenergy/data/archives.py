"""Published files and what they are held to.

A benchmark on data that were cut off or altered on the way compares nothing, so an archive is used
only if its size and SHA-256 are the published ones, and a folder of extracted files only if their
sizes are.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from jaxenergy.errors import UsageError


@dataclass(frozen=True)
class Archive:
    """A file as its authors publish it.

    Args:
        name: its file name.
        url: where it is published.
        size_bytes: its size.
        sha256: the hash of its bytes, in hexadecimal.
    """

    name: str
    url: str
    size_bytes: int
    sha256: str


def read_verified(path: Path, archive: Archive) -> bytes:
    """The bytes of an archive, if they are the published ones.

    Args:
        path: the file.
        archive: what it should be.

    Returns:
        Its bytes.

    Raises:
        UsageError: its size or hash is another one, with what was expected and what was found.
    """
    found_bytes = path.stat().st_size
    if found_bytes != archive.size_bytes:
        raise UsageError(
            f"{path} is truncated or altered: expected {archive.size_bytes} bytes, found "
            f"{found_bytes}.\nGet it again from {archive.url}"
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != archive.sha256:
        raise UsageError(
            f"{path} is altered: expected SHA-256 {archive.sha256}, found {found}.\n"
            f"Get it again from {archive.url}"
        )
    return content


def read_sized(path: Path, size_bytes: int) -> bytes:
    """The bytes of an extracted file, if there are as many as there should be.

    Args:
        path: the file.
        size_bytes: its published size.

    Returns:
        Its bytes.

    Raises:
        UsageError: the file is absent or of another size.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing; expected a file of {size_bytes} bytes there.")
    _check_size(path.stat().st_size, size_bytes, str(path))  # before memory is filled with it
    return path.read_bytes()


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of an extracted file whose size depends on who wrote it.

    Args:
        path: the file.
        max_bytes: what it cannot be larger than.

    Returns:
        Its bytes.

    Raises:
        UsageError: the file is absent or larger.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing; the other files are there.")
    check_bound(path.stat().st_size, max_bytes, str(path))
    return path.read_bytes()


def check_bound(size_bytes: int, max_bytes: int, what: str) -> None:
    """Refuses what says it is larger than it can be; `what` names it in the message."""
    if size_bytes > max_bytes:
        raise UsageError(
            f"{what} is altered: expected at most {max_bytes} bytes, found {size_bytes}."
        )


def check_size(content: bytes, size_bytes: int, what: str) -> None:
    """Refuses content that is not `size_bytes` long; `what` names it in the message."""
    _check_size(len(content), size_bytes, what)


def _check_size(found_bytes: int, size_bytes: int, what: str) -> None:
    if found_bytes != size_bytes:
        raise UsageError(
            f"{what} is truncated or altered: expected {size_bytes} bytes, found {found_bytes}."
        )


def gunzip(content: bytes, what: str) -> bytes:
    """Decompresses gzip content; `what` names it in the error if it is broken."""
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{what} is not a whole gzip file: {error}.") from error
