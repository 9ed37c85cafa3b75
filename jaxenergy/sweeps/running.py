"""Runs a sweep: one process per run, one run at a time, and the same call goes on where it was.

The process of the sweep computes nothing and loads no framework; between two runs it looks at what
the last one left, and writes `sweep.json`.
"""

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.records import RecordError, read_run
from jaxenergy.records.files import plain_text, reason_of
from jaxenergy.records.schema import COMPLETED, FAILED, UNFINISHED
from jaxenergy.sweeps import device_lock
from jaxenergy.sweeps.conditions import read_conditions
from jaxenergy.sweeps.design import Sweep
from jaxenergy.sweeps.device_lock import DeviceLocks
from jaxenergy.sweeps.prediction import Prediction, Predictor, add_up
from jaxenergy.sweeps.results import (
    LOGS_FOLDER,
    RUNNING,
    WAITING,
    CellResult,
    Ground,
    SweepResult,
    sweep_folder,
    write_record,
)
from jaxenergy.sweeps.slurm import SlurmOptions, SlurmSweep, check_slurm_is_here
from jaxenergy.sweeps.survey import Survey, survey

LAUNCHERS = ("local", "slurm")

_LOOK_EVERY_S = 1.0
_LOG_LINES_SHOWN = 2


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a sweep is, for whoever shows it.

    Attributes:
        result: what has become of each run so far.
        begun_s: `time.monotonic()` at which the present run began; None between runs.
        update: updates of the present run at its last evaluation.
        total_updates: updates that it was given.
        energy_j: its joules until then; None where they are not known.
        provenance: of these joules.
        left_s: time that the runs yet to be done will take, as far as that is known.
        unknown: how many of them there is nothing to go by for.
    """

    result: SweepResult
    begun_s: float | None = None
    update: int | None = None
    total_updates: int | None = None
    energy_j: float | None = None
    provenance: str = "none"
    left_s: float = 0.0
    unknown: int = 0


class Observer(Protocol):
    """Told how a sweep goes."""

    def say(self, text: str) -> None:
        """A sentence."""

    def show(self, progress: Progress) -> None:
        """Called at each change, and about once a second."""


class SilentObserver:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Drops the sentence."""

    def show(self, progress: Progress) -> None:
        """Nothing to show."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a sweep would do, without doing it.

    Attributes:
        result: what there is already.
        predictions: for each cell that is not completed or failed, in order; by run id.
    """

    result: SweepResult
    predictions: dict[str, Prediction]


def forecast(sweep: Sweep, *, out: Path, retry_failed: bool = False, here: bool = True) -> Forecast:
    """Says what a sweep would do, and how long that would take. Writes nothing.

    Args:
        sweep: the runs.
        out: the folder that holds the runs.
        retry_failed: as for `run`.
        here: whether this machine would run it. Otherwise it is not looked at, and runs of any
            machine count.

    Returns:
        The runs' states and times.

    Raises:
        UsageError: a config cannot be run here; the message says which and why.
    """
    out = _checked_folder(out)
    found = survey(sweep, machine=here)
    ground = _ground(out, found)
    result = _look_around(sweep, ground, out, retry_failed)
    predictor = _predictor(found, ground)
    return Forecast(
        result,
        {
            cell.run_id: predictor.predict(cell.cell)
            for cell in result.cells
            if cell.state in (WAITING, UNFINISHED)
        },
    )


def run(
    sweep: Sweep,
    *,
    out: str | os.PathLike[str] = "runs",
    observer: Observer | None = None,
    launcher: str = "local",
    slurm: SlurmOptions | None = None,
    stop_requested: Callable[[], int | None] = lambda: None,
    retry_failed: bool = False,
    wait: bool = True,
    lock_dir: str | os.PathLike[str] = device_lock.DEFAULT_FOLDER,
    command: Sequence[str] = (),
) -> SweepResult:
    """Runs what is left of a sweep.

    Args:
        sweep: the runs, from `plan`.
        out: the folder that holds the runs' folders. Completed runs anywhere below it are found by
            their ids and not run again, whichever sweep or person ran them.
        observer: told how it goes.
        launcher: `local`, or `slurm` for a job array.
        slurm: how that array is submitted.
        stop_requested: asked about once a second; a signal's number ends the present run by that
            signal, and the sweep with it. In the main thread SIGINT, SIGTERM and SIGHUP do the same
            by themselves.
        retry_failed: whether runs that failed are run anew.
        wait: whether to wait where another sweep has the devices; else that is an error.
        lock_dir: where the locks of this machine's devices are.
        command: the command line of the driver, for the record.

    Returns:
        What has become of each run. A run that failed does not end the sweep.

    Raises:
        UsageError: a config cannot be run, which is known before anything is started; the devices
            are in use and `wait` is False; a name is unknown.
        RunError: the record cannot be written.
    """
    if launcher not in LAUNCHERS:
        raise unknown_value("--launcher", launcher, LAUNCHERS)
    observer = observer or SilentObserver()
    path = _checked_folder(out)
    if launcher == "local":  # which runs a source before what begins with it
        local = _Local(sweep, path, observer, retry_failed, command)
        return local.run(stop_requested, wait=wait, lock_dir=lock_dir)
    setups = {cell.config.setup_id for cell in sweep.cells}
    if any(cell.config.source_setup in setups for cell in sweep.cells):
        raise UsageError(
            "A run of the sweep begins with another of it (--init_from=setup:ID), and the tasks of "
            "a job array are run in any order.\n"
            "Allowed: --launcher=local, or the sources in a sweep before it."
        )
    return _run_by_slurm(
        sweep, path, observer, retry_failed, command, slurm or SlurmOptions(), stop_requested
    )


def _run_by_slurm(
    sweep: Sweep,
    out: Path,
    observer: Observer,
    retry_failed: bool,
    command: Sequence[str],
    options: SlurmOptions,
    stop_requested: Callable[[], int | None],
) -> SweepResult:
    check_slurm_is_here()
    found = survey(sweep, machine=False)  # what the nodes are is not known here
    ground = _ground(out, found)
    result = _look_around(sweep, ground, out, retry_failed)
    for sentence in result.left_alone:
        observer.say(sentence)

    def show(result: SweepResult) -> None:
        predictor = _predictor(found, ground)
        for cell in result.cells:
            if cell.state == COMPLETED and cell.path is not None:
                predictor.add(cell.cell.config, cell.read())
        ahead = [c.cell for c in result.cells if c.state in (WAITING, UNFINISHED, RUNNING)]
        left_s, unknown = add_up([predictor.predict(cell) for cell in ahead])
        observer.show(Progress(result=result, left_s=left_s, unknown=unknown))

    array = SlurmSweep(sweep, ground, result, out, options, command)
    with Signals() as signals:
        return array.run(observer.say, show, lambda: signals.signum or stop_requested())


class _Local:
    """A sweep on this machine."""

    def __init__(
        self,
        sweep: Sweep,
        out: Path,
        observer: Observer,
        retry_failed: bool,
        command: Sequence[str],
    ):
        self.sweep = sweep
        self.out = out
        self.observer = observer
        self.retry_failed = retry_failed
        self.command = command
        self.found = survey(sweep)

    def run(
        self,
        stop_requested: Callable[[], int | None],
        *,
        wait: bool,
        lock_dir: str | os.PathLike[str],
    ) -> SweepResult:
        with Signals() as self.signals:

            def stop() -> int | None:
                return self.signals.signum or stop_requested()

            try:
                locks = DeviceLocks(
                    self.found.devices,
                    lock_dir,
                    who=f"a sweep into {os.path.abspath(self.out)}",
                    wait=wait,
                    say=self.observer.say,
                    stop_requested=stop,
                )
            except device_lock.Stopped:
                self._look()
                return dataclasses.replace(self.result, signum=stop())
            with locks:
                # Only now: another sweep may have done some of it while this one waited.
                self._look()
                self._make_folder()
                for sentence in self.result.left_alone:
                    self.observer.say(sentence)
                self._write()
                for position in range(len(self.sweep.cells)):
                    if stop():
                        break
                    self._run_one(position, locks, stop)
            self.result = dataclasses.replace(
                self.result, signum=stop(), devices=self.found.devices
            )
            self._write()
            return self.result

    def _look(self) -> None:
        self.ground = _ground(self.out, self.found)
        self.result = _look_around(self.sweep, self.ground, self.out, self.retry_failed)
        self.predictor = _predictor(self.found, self.ground)

    def _make_folder(self) -> None:
        try:
            (self.result.folder / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--out={self.out}: {error.filename} cannot be made: {reason_of(error)}."
            ) from error

    def _run_one(self, position: int, locks: DeviceLocks, stop: Callable[[], int | None]) -> None:
        """Runs a cell that is not completed, and notes what became of it."""
        before = self.result.cells[position]
        if before.state not in (WAITING, UNFINISHED):
            return
        path = self.out / before.name
        log = self.result.folder / LOGS_FOLDER / f"{before.name}.log"
        arguments = before.cell.arguments(str(self.out), before.name)
        self._set(position, dataclasses.replace(before, state=RUNNING, why="", path=path))
        begun_s = time.monotonic()
        with open(log, "ab") as output:
            log_start = output.tell()
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C goes to the sweep alone, which hands it on once.
                start_new_session=True,
                pass_fds=locks.descriptors,
            )
        locks.note_run(process.pid)
        stopped = self._attend(process, path, begun_s, stop)
        locks.note_run(None)
        wall_s = time.monotonic() - begun_s
        after = _what_became(before, path, process.returncode, wall_s, log, log_start)
        if stopped and after.state == FAILED and after.path is None:
            # The signal came before the run had begun; it has left nothing.
            after = dataclasses.replace(after, state=WAITING, why="")
        self._set(position, after)
        if after.state == COMPLETED:
            self.predictor.add(after.cell.config, after.read())

    def _attend(
        self,
        process: subprocess.Popen,
        path: Path,
        begun_s: float,
        stop: Callable[[], int | None],
    ) -> bool:
        """Waits for a run's end, shows how far it is, and hands a signal on; whether it did."""
        handed_on = 0
        try:
            while not _ends_within(process, _LOOK_EVERY_S):
                signum = stop()
                if signum and handed_on < max(1, self.signals.count):
                    if not handed_on:
                        self.observer.say("stopping: the run saves what it has")
                    process.send_signal(
                        signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
                    )
                    handed_on += 1
                self._show(path, begun_s)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        return handed_on > 0

    def _set(self, position: int, cell: CellResult) -> None:
        cells = list(self.result.cells)
        cells[position] = cell
        self.result = dataclasses.replace(self.result, cells=tuple(cells))
        self._write()
        self._show()

    def _show(self, path: Path | None = None, begun_s: float | None = None) -> None:
        running = [cell.cell for cell in self.result.cells if cell.state == RUNNING]
        ahead = [cell.cell for cell in self.result.cells if cell.state in (WAITING, UNFINISHED)]
        left_s, unknown = add_up([self.predictor.predict(cell) for cell in ahead])
        latest = _latest_metrics(path) if path else {}
        update, total_updates = latest.get("update"), None
        for cell in running:
            seconds = self.predictor.predict(cell).seconds
            elapsed_s = time.monotonic() - (begun_s or time.monotonic())
            total_updates = self.found.sizes[cell.run_id].updates
            if seconds is None and update:
                seconds = elapsed_s * total_updates / update
            left_s += max(0.0, (seconds or 0.0) - elapsed_s)
            unknown += seconds is None
        self.observer.show(
            Progress(
                result=self.result,
                begun_s=begun_s,
                update=update,
                total_updates=total_updates,
                energy_j=latest.get("energy_j"),
                provenance=latest.get("provenance") or "none",
                left_s=left_s,
                unknown=unknown,
            )
        )

    def _write(self) -> None:
        write_record(
            self.result,
            out=self.out,
            launcher={"name": "local"},
            command=self.command,
            python=sys.executable,
        )


class Signals(contextlib.AbstractContextManager):
    """Notes SIGINT, SIGTERM and SIGHUP while it is entered, in the main thread; else does nothing.

    Attributes:
        signum: the first that came, or None.
        count: how many came; a second one ends a run without further ado.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.signum: int | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in self._SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = self.signum or signum
        self.count += 1


def _checked_folder(out: str | os.PathLike[str]) -> Path:
    path = Path(out)
    if os.path.lexists(path) and not path.is_dir():
        raise UsageError(f"--out={plain_text(path)} is no folder.")
    return path


def _ground(out: Path, found: Survey) -> Ground:
    return Ground(out, found.conditions, found.digests, found.optimizer_digests)


def _look_around(sweep: Sweep, ground: Ground, out: Path, retry_failed: bool) -> SweepResult:
    return SweepResult(
        sweep=sweep,
        cells=tuple(ground.locate(cell, retry_failed=retry_failed) for cell in sweep.cells),
        folder=sweep_folder(out, sweep),
        left_alone=ground.left_alone(sweep),
    )


def _predictor(found: Survey, ground: Ground) -> Predictor:
    """A predictor that knows the completed runs measured under the conditions of this machine."""
    predictor = Predictor(found.sizes, found.startup_s)
    here = set(found.conditions.values())
    for config, run in ground.configs:
        if run.state == COMPLETED and (not here or read_conditions(run) in here):
            predictor.add(config, run)
    return predictor


def _ends_within(process: subprocess.Popen, timeout_s: float) -> bool:
    """Waits for a process; whether it has ended.

    Without waking up meanwhile, since this machine's joules are being counted.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # before Linux 5.3, or the process has been waited for
        if process.poll() is None:
            time.sleep(min(timeout_s, 0.2))
    else:
        try:
            select.select([descriptor], [], [], timeout_s)
        finally:
            os.close(descriptor)
    return process.poll() is not None


def _latest_metrics(path: Path) -> dict[str, Any]:
    """The last evaluation of a run; empty where there is none yet."""
    try:
        metrics = read_run(path).metrics
    except (UsageError, RecordError):
        return {}
    return metrics[-1] if metrics else {}


def _what_became(
    before: CellResult, path: Path, status: int, wall_s: float, log: Path, log_start: int
) -> CellResult:
    """A cell after its process ended, by what its folder says."""
    ended = dataclasses.replace(before, exit_status=status, wall_s=wall_s, path=None)
    said = _last_lines(log, log_start)
    run = read_run(path) if path.is_dir() else None
    if run is None or run.config is None:  # it was refused, or ended before it had begun
        return dataclasses.replace(ended, state=FAILED, why=said or _how_it_ended(status))
    ended = dataclasses.replace(
        ended, path=path, why=run.why, state=run.state, conditions=read_conditions(run)
    )
    if run.state in (COMPLETED, FAILED):
        return ended
    if run.state == UNFINISHED and status in (130, 143):
        return ended
    # It was killed, its disk was full, or its folder was refused: the next call tries again.
    state = UNFINISHED if run.state == UNFINISHED else FAILED
    why = f"{_how_it_ended(status)}{f': {said}' if said and status > 0 else ''}"
    return dataclasses.replace(ended, state=state, why=why)


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _last_lines(log: Path, start: int) -> str:
    """What a process printed last, in one line."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, os.path.getsize(log) - 2000))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return plain_text(" ".join(line.strip() for line in lines[-_LOG_LINES_SHOWN:]), 300)
