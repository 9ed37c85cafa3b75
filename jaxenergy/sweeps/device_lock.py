"""One sweep at a time per metered device: locks that die with the last process that uses them.

A package counter counts all cores of its package, and a GPU's counts whoever computes on it, so
two runs at once would each be charged with the other's work. The locks are `flock`s on files in one
folder of the machine. A sweep's runs inherit them: should the sweep be killed, the devices are
free when the run that it had started ends too, and not before.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxenergy.errors import RunError, UsageError
from jaxenergy.records.files import RecordError, parse_json, plain_text, reason_of

# Not below $TMPDIR, which differs between users and jobs of one machine.
DEFAULT_FOLDER = "/tmp/jaxenergy-locks"

_LOOK_EVERY_S = 0.5
_MAX_OWNER_BYTES = 2000


class DeviceLocks:
    """The exclusive right to be measured on some devices, held until `release`.

    Args:
        devices: their names, e.g. `cpu`, `GPU-5f…`.
        folder: where the locks of this machine are; made where it is missing.
        who: what holds them, for the message that others get.
        wait: whether to wait for other holders; else they are an error.
        say: told once for whom it waits.
        stop_requested: asked while waiting; anything but None or False ends the wait.

    Raises:
        UsageError: a device is in use and `wait` is False, or the folder cannot hold locks.
        Stopped: a stop was asked for while waiting.
    """

    def __init__(
        self,
        devices: Iterable[str],
        folder: str | os.PathLike[str] = DEFAULT_FOLDER,
        *,
        who: str,
        wait: bool = True,
        say: Callable[[str], None] = lambda text: None,
        stop_requested: Callable[[], object] = lambda: None,
    ):
        self._who = who
        self._held: list[int] = []
        try:
            root = _open_folder(Path(folder))
            for device in sorted(set(devices)):  # in one order, so that two never wait in a circle
                self._held.append(_acquire(root, device, wait, say, stop_requested))
            self.note_run(None)
        except BaseException:
            self.release()
            raise

    @property
    def descriptors(self) -> Sequence[int]:
        """What a run's process has to inherit, so that the locks last as long as it does."""
        return tuple(self._held)

    def note_run(self, pid: int | None) -> None:
        """Notes which run is going on, for the message that others get."""
        owner = {"pid": os.getpid(), "run_pid": pid, "host": socket.gethostname(), "who": self._who}
        line = (json.dumps(owner) + "\n").encode()
        for descriptor in self._held:
            with contextlib.suppress(OSError):  # another user's file: it stays without a name
                os.pwrite(descriptor, line, 0)  # whoever reads meanwhile takes the first line
                os.ftruncate(descriptor, len(line))

    def release(self) -> None:
        """Gives the devices back; a second call does nothing."""
        while self._held:
            os.close(self._held.pop())

    def __enter__(self) -> "DeviceLocks":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class Stopped(RunError):
    """A stop was asked for while a sweep waited for its devices."""


def _open_folder(folder: Path) -> Path:
    """The folder, open to all users of the machine like /tmp itself."""
    try:
        if not folder.is_dir():
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                folder.chmod(0o1777)
    except OSError as error:
        raise UsageError(f"--lock_dir={folder} cannot be made: {reason_of(error)}.") from error
    return folder


def _acquire(
    folder: Path,
    device: str,
    wait: bool,
    say: Callable[[str], None],
    stop_requested: Callable[[], object],
) -> int:
    path = folder / (re.sub(r"[^A-Za-z0-9.-]", "_", device) + ".lock")
    said = False
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_owner(descriptor)
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(
                    f"{path} cannot be locked: {reason_of(error)}.\n"
                    "Choose a --lock_dir on another file system."
                ) from error
        else:
            if _is_the_file(descriptor, path):
                return descriptor
            os.close(descriptor)  # the file was removed meanwhile: that lock says nothing
            continue
        if not wait:
            raise UsageError(
                f"{device} is being measured by {holder}.\n"
                "Wait for it to end: two runs at once would each be charged with the other's work."
            )
        if not said:
            say(f"waiting for {device}, which is being measured by {holder}")
            said = True
        if stop_requested():
            raise Stopped(f"stopped while {device} was being measured by {holder}")
        time.sleep(_LOOK_EVERY_S)


def _open(path: Path) -> int:
    """Opens a lock's file, of whichever user, for writing where that is allowed."""
    safely = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        for flags in (os.O_RDWR, os.O_RDONLY):
            with contextlib.suppress(PermissionError):
                try:
                    descriptor = os.open(path, flags | safely)
                except FileNotFoundError:
                    try:
                        descriptor = os.open(
                            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | safely, 0o644
                        )
                    except FileExistsError:
                        return _open(path)
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return descriptor
                os.close(descriptor)
                raise UsageError(f"{path} is no plain file, and cannot be a lock.")
    except OSError as error:
        raise UsageError(f"{path} cannot be opened: {reason_of(error)}.") from error
    raise UsageError(f"{path} cannot be opened: permission denied.")


def _is_the_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def _read_owner(descriptor: int) -> str:
    """Who holds a lock, in words."""
    try:
        owner = parse_json(os.pread(descriptor, _MAX_OWNER_BYTES, 0).partition(b"\n")[0], "lock")
    except (OSError, RecordError):
        return "another process"
    text = f"process {plain_text(owner.get('pid'), 20)} ({plain_text(owner.get('who'), 200)})"
    run_pid = owner.get("run_pid")
    return f"{text}, whose run is process {plain_text(run_pid, 20)}" if run_pid else text
