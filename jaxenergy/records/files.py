"""Files that survive a kill, a full disk and a hostile author.

Two kinds of file make up a run's folder: whole JSON documents, which are replaced atomically, and
files of lines, which only grow. Both are strict JSON (no NaN, no infinity), both may be read
while they are written, and both are read with bounds on size, depth and numbers, since a folder may
come from anybody.
"""

import contextlib
import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxenergy.errors import RunError, UsageError

# Bounds of what is read. A summary takes about 3 kB, a line 0.5 kB; a month of windows of 2 s makes
# 1.3 million lines.
MAX_DOCUMENT_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 16
MAX_LINES = 2_000_000
MAX_LINES_BYTES = 1 << 30
MAX_DEPTH = 32
MAX_TEXT = 1000

# The names that `write_json_atomic` prepares files under.
TEMPORARY_FILES = ".*.json.tmp"

# Neither a link at the end of a path is followed, nor is a pipe waited for.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK


class RecordError(UsageError):
    """A file of a run's folder is not what this version writes; the message says which and why."""


def plain_text(value: object, limit: int = MAX_TEXT) -> str:
    """A value from a file or a name as text that no terminal, encoding or memory suffers from.

    Args:
        value: anything; what is no text is converted.
        limit: characters kept.

    Returns:
        The text, with control characters and lone surrogates as backslash escapes, cut to `limit`.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def reason_of(error: OSError) -> str:
    """What the operating system says was wrong, without the path, which the message names."""
    return error.strerror or type(error).__name__


# --------------------------------------------------------------------------------------- writing


def make_folder(folder: Path) -> None:
    """Makes a folder below `--out`, with those above it.

    Raises:
        UsageError: it cannot be made, or nothing can be written into it.
    """
    check_can_be_made(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(folder, error) from error


def check_can_be_made(folder: Path) -> None:
    """Looks whether a folder can be made and written to; leaves nothing behind.

    Raises:
        UsageError: it cannot.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _cannot_be_made(folder, error) from error


def _cannot_be_made(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{folder} cannot be made or written to: {reason_of(error)}.\nChoose another --out."
    )


def dump_json(value: object, what: str, indent: int | None = None) -> str:
    """Strict JSON, ASCII only.

    Args:
        value: made of dict with text keys, list, tuple, str, int, float, bool and None.
        what: the file or line, for errors.
        indent: spaces per level; None for one line.

    Returns:
        The text.

    Raises:
        RecordError: a number that is not finite, or something JSON cannot hold; the message says
            where in `value` it is.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except (ValueError, TypeError, RecursionError) as error:
        fault = _find_fault(value) or str(error)
        raise RecordError(
            f"{what} was not written: {fault}.\n"
            "A number that cannot be had is null with a reason, never NaN or infinite."
        ) from error


def _find_fault(value: object, where: str = "") -> str | None:
    """The first place in `value` that strict JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where or 'the value'} is {value}"
    if value is None or isinstance(value, bool | int | float | str):
        return None
    if where.count(".") > MAX_DEPTH:
        return f"it is nested deeper than {MAX_DEPTH} levels at {where[:60]}…"
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(position), item) for position, item in enumerate(value)]
    else:
        return f"{where or 'the value'} is of type {type(value).__name__}"
    for key, item in items:
        if fault := _find_fault(item, f"{where}.{key}" if where else key):
            return fault
    return None


def null_unless_finite(values: Mapping[str, object]) -> dict[str, object]:
    """Values in which a number that is not finite became null, with its reason under `why`.

    A loss may be NaN by right, when a training diverges; a record says so in words.

    Args:
        values: a flat mapping; an existing `why` in it is kept and added to.

    Returns:
        The same keys; `why` only where there is something to say.
    """
    kept = {key: value for key, value in values.items() if key != "why"}
    given = values.get("why")
    why: dict[str, object] = dict(given) if isinstance(given, Mapping) else {}
    for key, value in kept.items():
        if isinstance(value, float) and not math.isfinite(value):
            kept[key] = None
            why[key] = f"it was {value}"
    return {**kept, "why": why} if why else kept


def write_json_atomic(path: str | os.PathLike[str], value: object) -> None:
    """Replaces a JSON document so that a reader sees the old one or the new one, never a part.

    The caller holds the folder's lock: the temporary file has one fixed name, so that the next
    owner finds and removes what a killed one left.

    Args:
        path: the file.
        value: what `dump_json` takes.

    Raises:
        RecordError: `value` is not strict JSON; nothing was touched.
        RunError: it could not be written; the old file stands and no temporary file is left.
    """
    path = Path(path)
    content = (dump_json(value, path.name, indent=2) + "\n").encode()
    temporary = temporary_path(path)
    try:
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            # Exclusive: a link planted under this name is never written through.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise RunError(f"{path} could not be written: {reason_of(error)}.") from error


def temporary_path(path: Path) -> Path:
    """Where `write_json_atomic` prepares the new content of `path`."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    """One `write` for everything; more only where the system took a part."""
    written = os.write(descriptor, content)
    while written < len(content):
        written += os.write(descriptor, content[written:])


class LineWriter:
    """A file of JSON lines that grows by whole lines.

    A line goes to the kernel by one write, so a process killed at any moment leaves whole lines;
    what a power cut or a full disk tore is cut off when the file is opened again, only that.

    Args:
        path: the file; made where it is missing.

    Attributes:
        note: what was mended on opening, for people; empty where nothing was.

    Raises:
        RecordError: the file is a link, no plain file, or ends in something that no writer left.
        RunError: it cannot be opened for writing.
    """

    def __init__(self, path: Path):
        self.path = path
        self.note = ""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFELY
        try:
            self._descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RecordError(f"{path} is a symbolic link, which is not followed.") from error
            raise RunError(f"{path} cannot be opened: {reason_of(error)}.") from error
        try:
            _refuse_special(self._descriptor, path)
            self._mend_last_line()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _mend_last_line(self) -> None:
        """Ends or cuts off a last line that has no newline."""
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - MAX_LINE_BYTES - 1)
        end = os.pread(self._descriptor, size - start, start)
        if not end or end.endswith(b"\n"):
            return
        line_start = start + end.rfind(b"\n") + 1
        if line_start == start > 0:
            raise RecordError(
                f"{self.path}: its last line is longer than {MAX_LINE_BYTES} bytes, "
                "which no run writes; it is left as it is."
            )
        tail = end[line_start - start :]
        try:
            try:
                parse_json(tail, self.path.name)
            except RecordError:
                os.ftruncate(self._descriptor, line_start)
                self.note = f"{self.path.name}: a torn last line of {len(tail)} bytes was cut off."
            else:  # the line is whole, only its newline is missing
                _write_all(self._descriptor, b"\n")
                self.note = f"{self.path.name}: the newline of the last line was added."
        except OSError as error:
            raise RunError(f"{self.path} cannot be mended: {reason_of(error)}.") from error

    def append(self, line: Mapping[str, object]) -> None:
        """Appends one line; when this returns, the line survives the death of the process.

        Args:
            line: what `dump_json` takes.

        Raises:
            RecordError: `line` is not strict JSON or longer than a reader takes; nothing was
                written.
            RunError: the disk is full, or the file was deleted; the message names file and reason,
                and no part of the line is left.
        """
        content = (dump_json(line, f"a line of {self.path.name}") + "\n").encode()
        if len(content) > MAX_LINE_BYTES:
            raise RecordError(
                f"a line of {self.path.name} has {len(content)} bytes; "
                f"at most {MAX_LINE_BYTES} are written."
            )
        before = os.fstat(self._descriptor)
        if before.st_nlink == 0:  # writing would succeed and go nowhere
            raise RunError(f"{self.path} cannot be written: it was deleted while the run used it.")
        try:
            _write_all(self._descriptor, content)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before.st_size)
            raise RunError(f"{self.path} could not be written: {reason_of(error)}.") from error

    def sync(self) -> None:
        """Makes all lines durable against a power cut too; takes milliseconds."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise RunError(f"{self.path} could not be written: {reason_of(error)}.") from error

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


# --------------------------------------------------------------------------------------- reading


def read_document(path: str | os.PathLike[str], max_bytes: int = MAX_DOCUMENT_BYTES) -> dict | None:
    """Reads a JSON document that anybody may have written.

    Args:
        path: the file.
        max_bytes: the largest that is read.

    Returns:
        The object, or None where there is no such file.

    Raises:
        RecordError: a link, no plain file, too large, not strict JSON, no object.
    """
    descriptor = _open_to_read(path)
    if descriptor is None:
        return None
    try:
        # One more byte than allowed, so that a file that grows meanwhile is bounded too.
        content = _read_up_to(descriptor, max_bytes + 1)
    except OSError as error:
        raise RecordError(f"{_shown(path)} cannot be read: {reason_of(error)}") from error
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise RecordError(f"{_shown(path)} is larger than {max_bytes} bytes")
    return parse_json(content, _shown(path))


def read_lines(path: str | os.PathLike[str]) -> Iterator[dict]:
    """Reads a file of JSON lines, which may be growing.

    A last line without newline is being written just now, or was torn by a power cut; it is left
    out.

    Args:
        path: the file; nothing is yielded where there is none.

    Yields:
        One object per line.

    Raises:
        RecordError: a link, no plain file, beyond the bounds, or a line that is no strict JSON
            object; the message says which line.
    """
    descriptor = _open_to_read(path)
    if descriptor is None:
        return
    shown = _shown(path)
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > MAX_LINES_BYTES:
            raise RecordError(f"{shown} is larger than {MAX_LINES_BYTES} bytes")
        for number in range(1, MAX_LINES + 2):
            try:
                line = file.readline(MAX_LINE_BYTES + 1)
            except OSError as error:
                raise RecordError(f"{shown} cannot be read: {reason_of(error)}") from error
            if len(line) > MAX_LINE_BYTES:
                raise RecordError(f"{shown}: line {number} is longer than {MAX_LINE_BYTES} bytes")
            if not line.endswith(b"\n"):
                return
            if number > MAX_LINES:
                raise RecordError(f"{shown} has more than {MAX_LINES} lines")
            yield parse_json(line, f"{shown}: line {number}")


def parse_json(content: bytes, what: str) -> dict:
    """Parses a strict JSON object.

    Args:
        content: UTF-8.
        what: the file or line, for errors.

    Returns:
        The object; its numbers are finite and its integers fit 64 bits.

    Raises:
        RecordError: it is not strict JSON, no object, too deep, or holds a number out of range.
    """
    try:
        value = _DECODER.decode(content.decode())
        _refuse_depth(value)
    except RecursionError:
        raise RecordError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise RecordError(f"{what} is not strict JSON: {plain_text(error, 200)}") from None
    if not isinstance(value, dict):
        raise RecordError(f"{what} is no JSON object")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is out of range")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= (value := int(digits)) < 1 << 64:
        raise ValueError(f"the number {digits[:40]} is out of range")
    return value


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int
)


def _refuse_depth(value: object, level: int = 0) -> None:
    """Refuses what would exhaust the stack of whoever walks or prints it."""
    if level > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        if isinstance(item, dict | list):
            _refuse_depth(item, level + 1)


def _open_to_read(path: str | os.PathLike[str]) -> int | None:
    """A descriptor of a plain file, or None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RecordError(f"{_shown(path)} is a symbolic link, which is not followed") from None
        raise RecordError(f"{_shown(path)} cannot be read: {reason_of(error)}") from error
    try:
        _refuse_special(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_special(descriptor: int, path: str | os.PathLike[str]) -> None:
    """Refuses pipes, devices and folders: reading them may never end."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise RecordError(f"{_shown(path)} is no plain file")


def _read_up_to(descriptor: int, limit: int) -> bytes:
    """All of a file up to `limit` bytes; a plain file gives them in one read, mostly."""
    content = os.read(descriptor, limit)
    while 0 < len(content) < limit and (more := os.read(descriptor, limit - len(content))):
        content += more
    return content


def _shown(path: str | os.PathLike[str]) -> str:
    """The file's name as a message shows it; which folder it is in, the caller says."""
    return plain_text(os.path.basename(path), 200)
