"""The ledger: which joules belong to which phase of a run.

The run of a process is cut into lines without gaps. At each cut the energy of every domain is
marked once, and that mark ends one line and begins the next; so lines add up to the counters' own
difference whatever the order and nesting of phases, and an error at a cut moves energy between
neighbours without changing the sum.

A cut tells energies apart only if the device had finished what it was given before: that is what a
fence is. So a phase that dispatches work (`DEVICE_PHASES`) must be fenced on the state that its
last step returned before it ends, and what follows must begin fenced; where it is not so, the line
says null and why. Phases of the host (`HOST_PHASES`) end when they end.

With counters that tick fast a line is given to `on_line` by the cut that ends it. A slow counter
settles a mark one to three ticks later (0.1 to 0.3 s on a GPU that ticks every 100 ms), and a
thread then gives the lines out; the training never waits for it.
"""

import collections
import contextlib
import dataclasses
import datetime
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from jaxenergy.energy.timeline import Latest, Mark, SlowTimeline, make_timeline
from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.meters.base import Counter, CounterError
from jaxenergy.units import NS_PER_S

DEVICE_PHASES = ("compile", "warmup", "train", "eval")
HOST_PHASES = ("input", "checkpoint", "idle", "other")
PHASES = DEVICE_PHASES + HOST_PHASES

# Between two phases, time below this is the ledger's own bookkeeping: it belongs to what follows.
SLIVER_NS = 1_000_000
_CONDITIONS_EVERY_NS = NS_PER_S
_IDLE_S = 0.2  # the longest the thread sleeps
_ABANDON_NS = NS_PER_S // 2
_LONGEST_WRITE_S = 1.0
_MOST_TICKS = 2000  # of a line, which must stay below what a reader takes


class Metered(Protocol):
    """What the ledger needs of meters: `jaxenergy.meters.Meters`, or a single `Meter`."""

    @property
    def counters(self) -> tuple[Counter, ...]:
        """The counters to attribute."""
        ...

    def read_conditions(self) -> dict[str, dict]:
        """Temperature, clocks and the like, by domain."""
        ...


@dataclasses.dataclass(slots=True)
class _Cut:
    """An instant at which one line ends and the next begins."""

    time_ns: int
    wall_s: float
    marks: list[Mark]


@dataclasses.dataclass(slots=True)
class _Line:
    """A stretch of the run with one label, waiting for the energies at its ends."""

    label: str
    begin: _Cut
    counts: dict[str, int | None]
    running: str | None = None  # why work of a phase before it may have been running when it began
    end: _Cut | None = None
    steady: bool = True
    fenced: bool = True
    why: str | None = None  # a reason for which no domain's energy means anything
    conditions: dict[str, dict] | None = None


class Phase:
    """An open phase, as `Ledger.phase` gives it; not made by hand."""

    def __init__(self, ledger: "Ledger", label: str, counts: dict[str, int | None], level: int):
        self.label = label
        self._ledger = ledger
        self._counts = counts
        self._level = level
        self._fenced = False  # since the last cut of any phase
        self._cut_once = False

    def fence(self, state: Any = None) -> None:
        """Waits until the device has computed `state`: to be called before the phase is left.

        Args:
            state: what the phase's last step returned; any pytree of arrays.
        """
        if self._ledger._fence is not None:
            self._ledger._fence(state)
        self._ledger._running = None
        self._fenced = True

    def cut(
        self,
        state: Any = None,
        *,
        updates: int | None = None,
        iterations: int | None = None,
        examples: int | None = None,
        first_update: int | None = None,
        steady: bool | None = None,
    ) -> None:
        """Fences on `state`, ends a line and begins the next, of the same phase, at that instant.

        Args:
            state: what the line's last step returned.
            updates: how many updates the line that ends has made.
            iterations: how many iterations; as many as updates where it is not said.
            examples: how many examples it has seen.
            first_update: the number of its first update.
            steady: False for a line known not to be typical, e.g. while a checkpoint is written.
        """
        self.fence(state)
        counts = _counts(updates, iterations, examples, first_update)
        self._ledger._cut_phase(self, counts, steady is not False)

    def __enter__(self) -> "Phase":
        self._ledger._enter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ledger._leave(self, kind)


class Ledger:
    """Attributes the energy of a process to phases.

    Args:
        meters: the counters, e.g. from `open_meters`.
        fence: waits for the device to have computed what it is given, e.g.
            `jax.block_until_ready`. None for a program in which nothing runs asynchronously;
            `phase.fence` then only states that the phase's work is done.
        on_line: gets each finished line, in the order of time, as docs/records.md defines
            `windows.jsonl`, from the thread of the cut or from the ledger's own. None collects
            them in `lines`.
        clock_ns: a monotonic clock.
        attempt: number of this process among those that worked on the run.
        drain: waits for everything that was dispatched so far, whatever it returns. Used where a
            nested phase interrupts one that has not been fenced, and when an exception leaves a
            phase (without it such energies are null), and at the end of a phase that goes on after
            its last cut (without it nothing is taken to have been dispatched since the cut).
        wall_clock: seconds since 1970.
        sleep_s: sleeps, on the same clock.
        threaded: whether a thread drives the polling. A simulation in virtual time says False and
            calls `poll` when `next_poll_ns` is due.

    Raises:
        UsageError: from the methods, for an unknown label or a phase from a second thread.
    """

    def __init__(
        self,
        meters: Metered,
        fence: Callable[[Any], Any] | None = None,
        on_line: Callable[[dict], None] | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        attempt: int = 0,
        *,
        drain: Callable[[], Any] | None = None,
        wall_clock: Callable[[], float] = time.time,
        sleep_s: Callable[[float], None] = time.sleep,
        threaded: bool = True,
    ):
        self.attempt = attempt
        self.lines: list[dict] = []
        self._meters = meters
        self._fence = fence
        self._drain = drain
        self._on_line = on_line or self.lines.append
        self._clock_ns = clock_ns
        self._wall_clock = wall_clock
        self._sleep_s = sleep_s
        self._boot_id = _read_boot_id()
        self._lock = threading.RLock()  # timelines, phases, queue
        self._giving = threading.Lock()  # keeps lines in order
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._closed = self._abandoned = False
        self._owner: int | None = None
        self._stack: list[Phase] = []
        self._running: str | None = None  # why work that was never fenced may still be running
        self._level = 0
        self._queue: collections.deque[_Line] = collections.deque()
        self._ended: _Line | None = None
        self._power: tuple[int, dict[str, Latest], dict[str, float]] | None = None
        self._timelines = [make_timeline(counter, clock_ns) for counter in meters.counters]
        self._slow = [line for line in self._timelines if isinstance(line, SlowTimeline)]
        self._open = _Line("other", self._cut("other", 0), _counts())
        self._conditions_ns = self._open.begin.time_ns
        if threaded and self.next_poll_ns() is not None:
            threading.Thread(target=self._drive, name="jaxenergy-ledger", daemon=True).start()

    # What users call

    def phase(
        self,
        label: str,
        *,
        updates: int | None = None,
        iterations: int | None = None,
        examples: int | None = None,
        first_update: int | None = None,
    ) -> Phase:
        """A phase, for use in a `with` statement.

        A phase within a phase takes its energy out of the outer one, whose line is then in parts;
        the counts stand with the last part.

        Args:
            label: one of `PHASES`.
            updates: how many updates the phase makes, where it is one window.
            iterations: how many iterations; as many as updates where it is not said.
            examples: how many examples it sees.
            first_update: the number of its first update.

        Returns:
            The phase: `phase.fence(state)` before it is left, `phase.cut(state, …)` between
            windows.

        Raises:
            UsageError: unknown label.
        """
        if label not in PHASES:
            raise unknown_value("phase", label, PHASES)
        self._level += 1
        counts = _counts(updates, iterations, examples, first_update)
        return Phase(self, label, counts, self._level)

    def energy_so_far_j(self) -> dict[str, float | str]:
        """Joules by domain since the ledger began, as far as known now.

        Returns:
            By domain the joules, or why a part of them is not known: of a counter that was
            interrupted the rest alone would look like all of it.
        """
        with self._lock:
            return {t.domain.name: t.so_far_j() for t in self._timelines}

    def power_now_w(self) -> dict[str, float]:
        """Mean power by domain over about the last second, for a display.

        Returns:
            Watts; empty at first, and without the domains whose counter tells nothing now.
        """
        with self._lock:
            now_ns = self._clock_ns()
            if self._power is None:
                self._power = (now_ns, self._latest(), {})
                return {}
            since_ns, before, shown = self._power
            if now_ns - since_ns < NS_PER_S // 2:
                return shown
            after = self._latest()
            watts = {}
            for name, new in after.items():
                old = before.get(name)
                if old is None or new.stretch != old.stretch or new.time_ns <= old.time_ns:
                    continue
                # What draws nothing is switched off: a counter that did not move stands still.
                if new.energy_j > old.energy_j:
                    elapsed_s = (new.time_ns - old.time_ns) / NS_PER_S
                    watts[name] = (new.energy_j - old.energy_j) / elapsed_s
            self._power = (now_ns, after, watts)
            return watts

    def close(self) -> None:
        """Ends the last line, waits at most about three ticks for its energy, gives out the rest.

        Raises:
            Exception: what `on_line` raised, if it did.
        """
        self._finish(abandoned=False)

    def abandon(self) -> None:
        """Ends the ledger from a second thread, while the owner is stuck (say, in a compilation).

        The line that is open ends here, unfenced; it keeps its energy, since nothing follows that
        its unfinished work could leak into. Takes half a second at most. What the owner does with
        the ledger afterwards has no effect.
        """
        self._finish(abandoned=True)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a simulation in virtual time calls instead of the thread

    def next_poll_ns(self) -> int | None:
        """When `poll` is due; None while no counter needs polling."""
        with self._lock:
            due = [t.next_poll_ns() for t in self._timelines]
        return min((ns for ns in due if ns is not None), default=None)

    def poll(self) -> None:
        """Reads the counters that are due, and gives out the lines that became known."""
        with self._lock:
            now_ns = self._clock_ns()
            for timeline in self._timelines:
                due_ns = timeline.next_poll_ns()
                if due_ns is not None and due_ns <= now_ns:
                    timeline.poll()
        self._give_lines()

    # Phases

    def _enter(self, phase: Phase) -> None:
        if self._is_over():
            return
        thread = threading.get_ident()
        if self._stack and self._owner != thread:
            raise UsageError(
                f"phase={phase.label!r} was begun by a second thread while "
                f"{self._stack[-1].label!r} is open.\nPhases partition the time of the whole "
                "process; give each phase to one thread."
            )
        self._owner = thread
        unfenced = None
        if self._stack:
            unfenced = self._wait_for(self._stack[-1], f"{phase.label} interrupted it")
        with self._lock:
            if self._closed:
                return
            if not self._stack and self._is_sliver():
                self._relabel(phase)
            else:
                self._end_line(phase, unfenced)
            phase._fenced = phase._cut_once = False
            self._stack.append(phase)
        self._note_conditions()
        self._give_lines()

    def _cut_phase(self, phase: Phase, counts: dict[str, int | None], steady: bool) -> None:
        if self._is_over():
            return
        self._check_innermost(phase)
        with self._lock:
            if self._closed:
                return
            self._end_line(phase, None, counts=counts, steady=steady)
            phase._cut_once = True
        self._note_conditions()
        self._give_lines()

    def _leave(self, phase: Phase, kind: type[BaseException] | None) -> None:
        if self._closed:
            return
        self._check_innermost(phase)
        rest = phase._cut_once and not phase._fenced
        sliver = rest and kind is None and self._is_sliver()
        unfenced = None
        if kind is not None:
            unfenced = self._wait_for(phase, f"it was left by {kind.__name__}")
        elif rest and not sliver and self._drain is not None:
            # The last cut fenced; a drain makes sure that nothing was dispatched since.
            unfenced = self._wait_for(phase, "it went on after its last cut")
        elif not rest and not phase._fenced and phase.label in DEVICE_PHASES:
            unfenced = "it was left without a fence"
        with self._lock:
            if self._closed:
                return
            outer = self._stack[-2] if len(self._stack) > 1 else None
            if sliver:
                self._relabel(outer)
            elif rest or kind is not None:  # nothing that counts, in the phase's place all the same
                place = _counts(first_update=phase._counts["first_update"])
                self._end_line(outer, unfenced, counts=place, steady=False)
            else:
                self._end_line(outer, unfenced, counts=phase._counts)
            self._stack.pop()
        self._note_conditions()
        self._give_lines()

    def _is_sliver(self) -> bool:
        return self._clock_ns() - self._open.begin.time_ns < SLIVER_NS

    def _wait_for(self, phase: Phase, what: str) -> str | None:
        """Waits for the work of a phase that was not fenced; the reason where that cannot be."""
        if phase._fenced or phase.label in HOST_PHASES or self._fence is None:
            return None
        if self._drain is None:
            return f"{what} without a fence"
        try:
            self._drain()
        except Exception as error:  # whatever the device reports; the line carries it
            return f"{what}, and the device could not be waited for: {error}"
        return None

    def _is_over(self) -> bool:
        """True after `abandon`, when nothing counts any more; after `close` it is an error."""
        if self._closed and not self._abandoned:
            raise UsageError("This ledger is closed; make another one.")
        return self._closed

    def _check_innermost(self, phase: Phase) -> None:
        if threading.get_ident() != self._owner:
            raise UsageError(
                f"phase={phase.label!r} was ended by a second thread.\n"
                "Phases partition the time of the whole process; give each phase to one thread."
            )
        if not self._stack or self._stack[-1] is not phase:
            raise UsageError(
                f"phase={phase.label!r} is not the innermost open phase.\nOpen, outermost first: "
                f"{', '.join(p.label for p in self._stack) or 'none'}."
            )

    # Lines

    def _end_line(
        self,
        following: Phase | None,
        unfenced: str | None,
        *,
        counts: dict[str, int | None] | None = None,
        steady: bool = True,
    ) -> None:
        """Ends the open line now, and begins that of the phase that follows (None: `other`).

        Args:
            following: the phase that goes on from here.
            unfenced: why work of the ending phase may still be running.
            counts: what the line counts.
            steady: whether it may stand for the long run.
        """
        line = self._open
        line.fenced = unfenced is None and line.running is None
        if unfenced is not None:
            line.why = f"{line.label}: {unfenced}: call phase.fence(state) on its last outputs"
            self._running = f"{line.label} before it: {unfenced}, so its work may have run on"
        elif line.label != "other":
            line.why = line.running
        line.counts = counts or _counts()
        line.steady = steady and line.fenced
        line.end = self._cut(*self._named(following))
        self._queue.append(line)
        self._ended = line
        label = following.label if following else "other"
        self._open = _Line(label, line.end, _counts(), self._running)
        for phase in self._stack:
            phase._fenced = False

    def _note_conditions(self) -> None:
        """Reads temperature, clocks and the like for the line that just ended, once a second.

        Outside the lock, since it may take milliseconds in which the thread must see ticks.
        """
        end = self._open.begin
        if self._ended is not None and end.time_ns - self._conditions_ns >= _CONDITIONS_EVERY_NS:
            self._conditions_ns = end.time_ns
            with contextlib.suppress(CounterError):
                self._ended.conditions = self._meters.read_conditions() or None

    def _named(self, phase: Phase | None) -> tuple[str, int]:
        """Label and level of the power from here on."""
        if phase is not None:
            return phase.label, phase._level
        self._level += 1
        return "other", self._level

    def _relabel(self, phase: Phase | None) -> None:
        """Gives the line that has just begun to another phase."""
        self._open.label, level = self._named(phase)
        for mark in self._open.begin.marks:
            mark.label, mark.level = self._open.label, level

    def _cut(self, label: str, level: int) -> "_Cut":
        time_ns = self._clock_ns()
        marks = [timeline.mark(time_ns, level, label) for timeline in self._timelines]
        return _Cut(time_ns, self._wall_clock(), marks)

    def _give_lines(self) -> None:
        """Gives out the lines whose energies are known, in order."""
        if not self._queue or not self._giving.acquire(timeout=_LONGEST_WRITE_S):
            return
        try:
            while self._queue:
                with self._lock:
                    line = self._queue[0]
                    assert line.end is not None
                    if not all(mark.settled for mark in (*line.begin.marks, *line.end.marks)):
                        return
                    written = self._written(line)
                self._on_line(written)
                self._queue.popleft()
        finally:
            self._giving.release()

    def _written(self, line: "_Line") -> dict:
        """A line as `windows.jsonl` has it."""
        assert line.end is not None
        energy_j: dict[str, float | None] = {}
        uncertainty_j: dict[str, float | None] = {}
        why: dict[str, str] = {}
        for timeline, begin, end in zip(
            self._timelines, line.begin.marks, line.end.marks, strict=True
        ):
            name = timeline.domain.name
            told = line.why or timeline.between(begin, end)
            if isinstance(told, str):
                energy_j[name] = uncertainty_j[name] = None
                why[name] = told
            else:
                energy_j[name], uncertainty_j[name] = told
        wall = datetime.datetime.fromtimestamp(line.begin.wall_s, datetime.UTC)
        written = {
            "phase": line.label,
            "attempt": self.attempt,
            "boot_id": self._boot_id,
            "wall_time": wall.isoformat(timespec="milliseconds"),
            "start_ns": line.begin.time_ns,
            "end_ns": line.end.time_ns,
            **line.counts,
            "steady": line.steady,
            "fenced": line.fenced,
            "energy_j": energy_j,
            "uncertainty_j": uncertainty_j,
            "provenance": {t.domain.name: t.domain.provenance for t in self._timelines},
            "why": why,
        }
        if line.conditions is not None:
            written["conditions"] = line.conditions
        if ticks_ns := self._ticks_ns(line.begin.time_ns, line.end.time_ns):
            written["ticks_ns"] = ticks_ns
        return written

    def _latest(self) -> dict[str, Latest]:
        """What the counters have told last, without those that tell nothing now."""
        found = {timeline.domain.name: timeline.latest() for timeline in self._timelines}
        return {name: latest for name, latest in found.items() if latest is not None}

    def _ticks_ns(self, begin_ns: int, end_ns: int) -> dict[str, list[int]]:
        """When slow counters ticked within a line, from its start on; none where they are many."""
        found = {}
        for timeline in self._timelines:
            ticks_ns = timeline.take_ticks(begin_ns, end_ns)
            if 0 < len(ticks_ns) <= _MOST_TICKS // len(self._timelines):
                found[timeline.domain.name] = [time_ns - begin_ns for time_ns in ticks_ns]
        return found

    # The end, and the thread

    def _finish(self, abandoned: bool) -> None:
        if self._closed:
            return
        unfenced = None
        if self._stack and not abandoned:
            unfenced = self._wait_for(self._stack[-1], "the ledger was closed within it")
        with self._lock:
            if self._closed:
                return
            if self._stack or not self._is_sliver():
                self._end_line(None, unfenced, steady=not self._stack)
            if self._stack and abandoned:
                self._queue[-1].fenced = False
            self._closed, self._abandoned = True, abandoned
            end = self._open.begin
        deadline_ns = end.time_ns + max((t.patience_ns for t in self._timelines), default=0)
        if abandoned:
            deadline_ns = min(deadline_ns, end.time_ns + _ABANDON_NS)
        while not all(mark.settled for mark in end.marks):
            with self._lock:
                waiting = [
                    timeline.next_poll_ns()
                    for timeline, mark in zip(self._timelines, end.marks, strict=True)
                    if not mark.settled
                ]
            due_ns = min((ns for ns in waiting if ns is not None), default=deadline_ns)
            if due_ns > deadline_ns:
                break
            self._sleep_s(max(0, due_ns - self._clock_ns()) / NS_PER_S)
            self.poll()
        with self._lock:
            for timeline in self._timelines:
                timeline.settle_rest()
        self._stop.set()
        self._give_lines()
        if self._failure is not None:
            raise self._failure

    def _drive(self) -> None:
        """The thread: polls when due, and learns what that costs."""
        spent_s = time.thread_time()
        while not self._stop.is_set():
            due_ns = self.next_poll_ns()
            wait_s = _IDLE_S if due_ns is None else (due_ns - self._clock_ns()) / NS_PER_S
            if wait_s > 0:
                self._stop.wait(min(wait_s, _IDLE_S))
                if wait_s >= _IDLE_S:
                    continue
            try:
                self.poll()
            except Exception as error:  # on_line failed; whoever closes the ledger is told
                self._failure = error
                return
            before_s, spent_s = spent_s, time.thread_time()
            for timeline in self._slow:
                timeline.predictor.spent(spent_s - before_s)


def _counts(
    updates: int | None = None,
    iterations: int | None = None,
    examples: int | None = None,
    first_update: int | None = None,
) -> dict[str, int | None]:
    """The counts of a line, as `windows.jsonl` names them."""
    updates = updates or 0
    return {
        "first_update": first_update,
        "updates": updates,
        "iterations": updates if iterations is None else iterations,
        "examples": examples or 0,
    }


def _read_boot_id() -> str | None:
    """This boot of the machine, which `start_ns` counts from; None where that is not told."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
