"""CPU time of this process with its children, and of the whole machine.

Two meters rest on it: the estimate is CPU time times watts, and on a metered CPU package the part
of the machine's busy time that is not ours is contamination.
"""

import os
import resource
import threading
import time

# Looking for new children costs a walk through /proc; their time is counted from their start
# whenever they are found, so a late look loses nothing that lives longer than this.
_LOOK_FOR_CHILDREN_EVERY_S = 1.0


class ProcessTreeClock:
    """CPU seconds (user and system) of this process and all its descendants, never going back.

    Own time has nanosecond resolution and one read costs some microseconds while there are no
    children. A live child is read from its own CPU clock; once it has been waited for, its
    time comes back through `RUSAGE_CHILDREN` and is not counted twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own_s = time.process_time()
        self._waited_s = _waited_children_s()
        self._seen_s: dict[int, float] = {}
        self._gone_s = 0.0  # counted for children that ended, not yet seen in RUSAGE_CHILDREN
        self._looked_at = -_LOOK_FOR_CHILDREN_EVERY_S
        self._total_s = 0.0
        self._count_children()
        self._total_s = 0.0  # the clock starts now, also for children that live already

    def read_s(self) -> float:
        """CPU seconds since this clock was made."""
        with self._lock:
            own_s = time.process_time()
            self._total_s += own_s - self._own_s
            self._own_s = own_s
            self._count_children()
            return self._total_s

    def descendants(self) -> frozenset[int]:
        """Process ids of the descendants known at the last reading."""
        return frozenset(self._seen_s)

    def _count_children(self) -> None:
        if _has_children():
            now = time.monotonic()
            if now - self._looked_at >= _LOOK_FOR_CHILDREN_EVERY_S:
                self._looked_at = now
                for pid in _live_descendants(os.getpid()):
                    self._seen_s.setdefault(pid, 0.0)
        for pid, seen_s in list(self._seen_s.items()):
            cpu_s = _process_cpu_s(pid)
            if cpu_s is None:
                self._gone_s += self._seen_s.pop(pid)
            else:
                self._total_s += max(0.0, cpu_s - seen_s)
                self._seen_s[pid] = cpu_s
        waited_s = _waited_children_s()
        grown_s = waited_s - self._waited_s
        self._waited_s = waited_s
        counted_before_s = min(grown_s, self._gone_s)
        self._gone_s -= counted_before_s
        self._total_s += grown_s - counted_before_s


class OtherProcesses:
    """How many cores other processes kept busy, between one reading and the next."""

    # The kernel counts busy time in hundredths of a second per core; shorter stretches say nothing.
    SHORTEST_S = 0.2

    def __init__(self, stat_path: str = "/proc/stat") -> None:
        self._stat_path = stat_path
        self._own = ProcessTreeClock()
        self._start = self._read()
        self._latest: tuple[float, float] | None = None

    def read_busy_cores(self) -> tuple[float, float] | None:
        """Mean number of cores kept busy by others and by us since the reading before.

        Returns:
            `(others, ours)`; the values of the stretch before where less than `SHORTEST_S` has
            passed; None before the first stretch is over.
        """
        now = self._read()
        elapsed_s, machine_s, own_s = (b - a for a, b in zip(self._start, now, strict=True))
        if elapsed_s >= self.SHORTEST_S:
            self._start = now
            self._latest = (max(0.0, machine_s - own_s) / elapsed_s, own_s / elapsed_s)
        return self._latest

    def _read(self) -> tuple[float, float, float]:
        return time.monotonic(), read_machine_busy_s(self._stat_path), self._own.read_s()


def read_machine_busy_s(stat_path: str = "/proc/stat") -> float:
    """CPU seconds that all cores together have been busy since boot.

    Args:
        stat_path: the kernel's statistics.

    Returns:
        Seconds in user, nice, system, irq and softirq; not idle, waiting for disks or stolen.

    References:
        proc_stat(5).
    """
    with open(stat_path) as stat:
        fields = stat.readline().split()
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _waited_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _has_children() -> bool:
    try:
        # Asks only: nothing is waited for and no child is taken from whoever will wait for it.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _live_descendants(pid: int) -> list[int]:
    found: list[int] = []
    parents = [pid]
    while parents:
        parent = parents.pop()
        for child in _children(parent):
            found.append(child)
            parents.append(child)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as listed:
                children.extend(int(child) for child in listed.read().split())
    except OSError:  # the process or thread ended while we looked
        pass
    return children


def _process_cpu_s(pid: int) -> float | None:
    """CPU seconds of another process by its CPU-time clock; None once it is gone.

    References:
        clock_getcpuclockid(3); the kernel's include/linux/posix-timers_types.h, CPUCLOCK_SCHED.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None
