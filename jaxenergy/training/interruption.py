"""Stopping on SIGINT and SIGTERM without losing what was finished.

The training loop asks `Interruption.signum` between compiled calls and ends in its own time: it
closes the window, saves, writes the summary. Python runs signal handlers in the main thread only
between byte codes, so during a long XLA compilation nothing would happen; a watcher thread, woken
through the interpreter's wake-up file descriptor, then records the state itself and ends the
process. A second signal ends it in the same way at once, and a third in any case; the same one
again within `REPEAT_S` is none, since some programs send each twice. Where not even the record can
be written in time (a disk that hangs), the process ends without it.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds from a signal to the end of the process at the latest, in two parts: what the main thread
# has for its own orderly end, and what the watcher's record may take after that. A cluster's
# scheduler kills 30 s after SIGTERM, some 10 s after.
GRACE_S = 8.0
RECORD_S = 1.5

# Seconds within which the same signal again is the same wish: GNU timeout sends SIGTERM to its
# child and then to the whole group, microseconds apart.
REPEAT_S = 0.5


def exit_status(signum: int) -> int:
    """The shell's exit status of a process that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signum


def end_at_signals() -> None:
    """Has SIGINT and SIGTERM end the process at once and without a word, until told otherwise.

    For a driver that has nothing to save yet: an exception amid the import of an extension comes
    out as any other. What comes later, an `Interruption` or the end, takes the place of this.
    """
    for signum in _SIGNALS:
        signal.signal(signum, lambda signum, frame: os._exit(exit_status(signum)))


class Interruption(contextlib.AbstractContextManager):
    """Listens for SIGINT and SIGTERM while it is entered; main thread only.

    Args:
        on_stuck: called in a thread of its own with the signal's number when the main thread has
            not left the `with` block `grace_s` seconds after the first signal, or at a second one;
            the process ends when it returns, with the signal's status.
        grace_s: seconds the main thread has.
        record_s: seconds that `on_stuck` has; then the process ends all the same.
    """

    def __init__(
        self,
        on_stuck: Callable[[int], object],
        grace_s: float = GRACE_S,
        record_s: float = RECORD_S,
    ):
        self.signum: int | None = None
        self._last: tuple[int, float] | None = None  # the last signal that counted, and when
        self._on_stuck = on_stuck
        self._grace_s = grace_s
        self._record_s = record_s

    def __enter__(self) -> "Interruption":
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._leave_read_fd, self._leave_write_fd = os.pipe()
        self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._old_handlers = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="interruption", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.write(self._leave_write_fd, b"x")
        self._watcher.join()
        for fd in (self._read_fd, self._write_fd, self._leave_read_fd, self._leave_write_fd):
            os.close(fd)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """Runs in the main thread; the watcher deals with the second signal."""
        del frame
        self.signum = self.signum or signum

    def _watch(self) -> None:
        """Waits for a first signal, then for the end, the second signal or the end of patience."""
        first = self._next_signal(None)
        if first is None:
            return
        second = self._next_signal(self._grace_s)
        if second is None:
            return
        # Out of patience, or a second signal: what is known is recorded, and that is all. Neither
        # a third signal nor a disk that hangs waits for it.
        status = exit_status(second or first)
        recorder = threading.Thread(target=self._record, args=(first, status), daemon=True)
        recorder.start()
        third = self._next_signal(self._record_s)
        if third is None:  # the main thread has ended in order after all
            recorder.join(self._record_s)
        os._exit(exit_status(third) if third else status)

    def _record(self, signum: int, status: int) -> None:
        try:
            self._on_stuck(signum)
        finally:
            os._exit(status)

    def _next_signal(self, timeout_s: float | None) -> int | None:
        """The next signal's number; 0 when the time is up; None once the `with` block is left."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            ready, _, _ = select.select([self._read_fd, self._leave_read_fd], [], [], left_s)
            if self._leave_read_fd in ready:
                return None
            if not ready:
                return 0
            signum, now_s = os.read(self._read_fd, 1)[0], time.monotonic()
            if signum in _SIGNALS and not self._repeats(signum, now_s):
                self._last = signum, now_s
                return signum

    def _repeats(self, signum: int, now_s: float) -> bool:
        """Whether it is the last signal, sent twice."""
        return (
            self._last is not None and self._last[0] == signum and now_s - self._last[1] < REPEAT_S
        )
