"""One process per folder: a lock that dies with its owner, however the owner dies.

The lock is `flock` on a file in the folder. The kernel gives it back when the process ends, by
kill -9 too, so nobody ever has to break a stale one; what the file says is only for the message
that the second process gets.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import weakref
from pathlib import Path

from jaxenergy.errors import UsageError
from jaxenergy.records.files import RecordError, parse_json, plain_text, reason_of
from jaxenergy.records.schema import LOCK_FILE

_MAX_OWNER_BYTES = 1000


class FolderLock:
    """The exclusive right to write into a folder, held until `release` or the process's end.

    Args:
        folder: the folder; it exists.

    Raises:
        UsageError: another process holds it (the message says which), the file system cannot lock,
            or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._descriptor = -1
        # Whoever held the lock may remove its file between our opening and our locking; then the
        # lock got is one that nobody else sees, and the file is opened anew.
        while self._descriptor < 0:
            descriptor = _open_lock_file(folder)
            try:
                _lock(descriptor, folder)
                if _is_the_file(descriptor, folder / LOCK_FILE):
                    _write_owner(descriptor)
                    self._descriptor = descriptor
            finally:
                if self._descriptor < 0:
                    os.close(descriptor)
        _held.add(self)

    def moved(self, folder: Path) -> None:
        """Notes that the folder has another name now."""
        self.folder = folder

    def release(self) -> None:
        """Gives the folder back and removes the lock's file; a second call does nothing."""
        if self._descriptor < 0:
            return
        lock_file = self.folder / LOCK_FILE
        with contextlib.suppress(OSError):
            if _is_the_file(self._descriptor, lock_file):
                lock_file.unlink()
        self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _leave_locks_to_parent() -> None:
    """A forked child shares the parent's lock, and would keep it alive after the parent's death."""
    for lock in list(_held):
        if lock._descriptor >= 0:
            lock._close()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def _open_lock_file(folder: Path) -> int:
    path = folder / LOCK_FILE
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise UsageError(f"{folder} cannot be locked: {path.name}: {reason_of(error)}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{folder} cannot be locked: {path.name} is no plain file.")
    return descriptor


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UsageError(
                f"{folder} is in use by {_read_owner(descriptor)}.\n"
                "Wait for it to end, or give the run another --name."
            ) from None
        with contextlib.suppress(OSError):
            (folder / LOCK_FILE).unlink()
        raise UsageError(
            f"{folder} is on a file system that cannot lock files ({reason_of(error)}),\n"
            "so two processes could write into it. Choose an --out on another file system."
        ) from error


def _is_the_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def _write_owner(descriptor: int) -> None:
    """Says who holds the lock; a full disk, which the run's own files will report, is no reason."""
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)


def _read_owner(descriptor: int) -> str:
    """Who holds the lock, in words."""
    try:
        owner = parse_json(os.pread(descriptor, _MAX_OWNER_BYTES, 0), LOCK_FILE)
    except (OSError, RecordError):
        return "another process"
    pid = plain_text(owner.get("pid"), 20)
    return f"process {pid} on {plain_text(owner.get('host'), 100)}"
