"""Choosing, creating and writing a run's folder.

`choose_folder` only looks; `FolderChoice.create` is the first thing that writes, and what it
returns owns the folder until it is closed. Lines are appended as they are finished and documents
replaced atomically, so a process may be killed at any moment and another may read at any moment.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jaxenergy.config import RESUME_MODES
from jaxenergy.errors import RunError, UsageError, unknown_value
from jaxenergy.records.account import Account
from jaxenergy.records.files import (
    TEMPORARY_FILES,
    LineWriter,
    RecordError,
    dump_json,
    null_unless_finite,
    plain_text,
    read_document,
    reason_of,
    temporary_path,
    write_json_atomic,
)
from jaxenergy.records.lines import read_metrics, read_windows
from jaxenergy.records.lock import FolderLock
from jaxenergy.records.reader import Run, is_superseded, read_run
from jaxenergy.records.schema import (
    CHECKPOINTS_FOLDER,
    COMPLETED,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FAILED,
    LOCK_FILE,
    METRICS_FILE,
    ROLLBACK,
    SUMMARY_FILE,
    UNFINISHED,
    WINDOWS_FILE,
)

MAX_NAME_BYTES = 200  # leaves room below the 255 of most file systems for `.old-N`

# What `FolderChoice.action` may be.
START = "start"
RESUME = "resume"
OVERWRITE = "overwrite"
NOTHING = "nothing"

_MAX_FLAGS_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class FolderChoice:
    """The folder a run will use, and what has to be done with it; nothing is written yet.

    Attributes:
        path: the folder.
        action: `start` (there is none yet), `resume`, `overwrite` (the old one is moved aside
            first), or `nothing`: the named run is complete.
        message: one sentence for the user; empty for `start`.
        config: what goes to `config.json`.
    """

    path: Path
    action: str
    message: str
    config: Mapping[str, Any]

    def create(self, check: Callable[[Path], None] = lambda path: None) -> "RunFolder":
        """Takes the folder: makes and locks it, moves an old one aside, writes `config.json`.

        Args:
            check: called with a folder that is to be resumed, once it is locked and before anything
                in it is altered; may refuse it by an exception.

        Returns:
            The folder, ready to be written.

        Raises:
            UsageError: another process uses or has just used it, its file system cannot lock, it
                cannot be made there, or there is nothing to do. A folder that was made for it is
                removed again.
            RecordError: a file of the folder to be resumed is corrupt; it is left as it is.
            RunError: the disk is full.
        """
        if self.action == NOTHING:
            raise UsageError(self.message)
        if self.action == RESUME:
            return self._resume(check)
        dump_json(self.config, CONFIG_FILE)  # refuses a bad config before anything is touched
        if self.action == OVERWRITE:
            self._move_aside()
        return self._start()

    def _resume(self, check: Callable[[Path], None]) -> "RunFolder":
        lock = FolderLock(self.path)
        try:
            found = read_run(self.path)  # another process may have finished it meanwhile
            if found.state != UNFINISHED or (found.config or {}).get("id") != self.config["id"]:
                raise UsageError(f"{self.path} was changed by another process; try again.")
            check(self.path)
            folder = RunFolder(self.path, lock, resumed=True)  # refuses a corrupt one
        except BaseException:
            lock.release()
            raise
        try:
            for orphan in self.path.glob(TEMPORARY_FILES):  # of a process killed while it wrote
                orphan.unlink()
            # A summary says that no process works on the folder any more; now one does.
            with contextlib.suppress(FileNotFoundError):
                (self.path / SUMMARY_FILE).unlink()
        except OSError as error:
            folder.close()
            raise RunError(f"{self.path} cannot be written: {reason_of(error)}.") from error
        return folder

    def _start(self) -> "RunFolder":
        lock, made = None, False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # It is there already where a process was killed before it had written anything.
            with contextlib.suppress(FileExistsError):
                self.path.mkdir()
                made = True
            lock = FolderLock(self.path)
            _refuse_content(self.path)
            try:
                write_json_atomic(self.path / CONFIG_FILE, dict(self.config))
                return RunFolder(self.path, lock, resumed=False)
            except BaseException:
                for name in (CONFIG_FILE, WINDOWS_FILE, METRICS_FILE):
                    with contextlib.suppress(OSError):
                        (self.path / name).unlink()
                raise
        except BaseException as error:
            if lock is not None:
                lock.release()
            if made:
                with contextlib.suppress(OSError):
                    self.path.rmdir()  # only succeeds where nothing is in it
            if isinstance(error, OSError):
                raise UsageError(
                    f"{self.path} cannot be made: {reason_of(error)}.\nChoose another --out."
                ) from error
            raise

    def _move_aside(self) -> None:
        """Renames the old folder to the first free `NAME.old-K`."""
        lock = FolderLock(self.path)
        try:
            number = 1
            while os.path.lexists(aside := _aside(self.path, number)):
                number += 1
            try:
                self.path.rename(aside)
            except OSError as error:
                raise UsageError(
                    f"{self.path} cannot be moved aside: {reason_of(error)}."
                ) from error
            lock.moved(aside)
        finally:
            lock.release()


class RunFolder:
    """A run's folder, owned by this process; made by `FolderChoice.create`.

    A context manager: leaving it closes the files and gives the lock back. Methods may be called
    from any thread.

    Attributes:
        path: the folder.
        resumed: whether an earlier process worked on it.
        attempt: this process's number, from 0, for the lines of `windows.jsonl`.
        notes: what was mended when the folder was opened, for the user.
        checkpoints: where checkpoints belong; made by whoever saves the first.
    """

    def __init__(self, path: Path, lock: FolderLock, *, resumed: bool):
        self.path = path
        self.resumed = resumed
        self.checkpoints = path / CHECKPOINTS_FOLDER
        self._lock = lock
        self._environment_is_earlier = resumed
        if self.checkpoints.is_symlink():  # old checkpoints are deleted below it
            raise RecordError(f"{self.checkpoints} is a symbolic link, which is not followed.")
        with contextlib.ExitStack() as opened:
            self._windows = LineWriter(path / WINDOWS_FILE)
            opened.callback(self._windows.close)
            self._metrics = LineWriter(path / METRICS_FILE)
            opened.callback(self._metrics.close)
            # A corrupt line shows here, before anything is added to the file.
            self._account, last_attempt = Account(), -1
            for line in read_windows(path / WINDOWS_FILE):
                self._account.add(line)
                last_attempt = max(last_attempt, line.get("attempt") or 0)
            for _ in read_metrics(path / METRICS_FILE):
                pass
            opened.pop_all()
        self._appending = threading.Lock()  # the account follows the order of the file
        self.attempt = last_attempt + 1
        self.notes = tuple(w.note for w in (self._windows, self._metrics) if w.note)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append_window(self, line: Mapping[str, Any]) -> None:
        """Appends a line to `windows.jsonl`; when this returns, it survives the process's death.

        Args:
            line: as a `Ledger` gives it.

        Raises:
            RecordError: a number in it is not finite; nothing was written.
            RunError: the disk is full or the file is gone; no part of the line is left.
        """
        with self._appending:
            self._windows.append(line)
            self._account.add(line)

    def append_rollback(
        self, to_update: int, evaluated_at: int | None = None, why: str | None = None
    ) -> None:
        """Records that this process goes on from a checkpoint, and so which windows are lost.

        Args:
            to_update: updates made at that checkpoint; 0 where there was none.
            evaluated_at: the update of the last evaluation that it knows, where one at its own
                update is due and will be made, perhaps anew; None where none is.
            why: what was amiss, for the summary's warnings; None where nothing was.

        Raises:
            RunError: as for `append_window`.
        """
        event: dict[str, Any] = {"event": ROLLBACK, "to_update": to_update, "attempt": self.attempt}
        if evaluated_at is not None:
            event["evaluated_at"] = evaluated_at
        if why is not None:
            event["why"] = why
        self.append_window(event)

    def account(self) -> dict[str, Any]:
        """What the lines so far say of the energy, for a checkpoint: see `Account.to_json`."""
        with self._appending:
            return self._account.to_json()

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`; a number that is not finite becomes null with why.

        Args:
            line: `update`, `train_loss`, `validation_accuracy`, `energy_j` so far.

        Raises:
            RunError: as for `append_window`.
        """
        self._metrics.append(null_unless_finite(line))

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes `environment.json`; an earlier attempt's is kept as `environment-N.json`.

        Args:
            environment: versions, host, devices, meters and so on.

        Raises:
            RunError: it cannot be written.
        """
        path = self.path / ENVIRONMENT_FILE
        # Where no attempt has left a line, nothing was measured in the environment that is there.
        is_kept = self._environment_is_earlier and self.attempt > 0
        earlier = read_document(path) if is_kept else None
        aside = path.with_name(f"environment-{self.attempt - 1}.json")
        # It is there already where a process in between ended before its first line.
        if earlier not in (None, _as_read(environment)) and not os.path.lexists(aside):
            write_json_atomic(aside, earlier)
        write_json_atomic(path, dict(environment))
        self._environment_is_earlier = False

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, the last thing a process does with the folder.

        Args:
            summary: as `summarise` gives it.

        Raises:
            RunError: it cannot be written.
        """
        self.sync()
        write_json_atomic(self.path / SUMMARY_FILE, dict(summary))

    def sync(self) -> None:
        """Makes all lines durable against a power cut too, e.g. with a checkpoint."""
        self._windows.sync()
        self._metrics.sync()

    def read(self) -> Run:
        """The run as anybody would read it now, this process's lines included."""
        return read_run(self.path)

    def close(self) -> None:
        """Closes the files and gives the lock back; a second call does nothing."""
        self._windows.close()
        self._metrics.close()
        self._lock.release()


def lines_begin_with(folder: Path, account: Mapping[str, Any]) -> bool:
    """Whether the lines that an earlier `RunFolder.account` was made of are all still there.

    Args:
        folder: the run's folder.
        account: from this process or from one before it.

    Raises:
        RecordError: `windows.jsonl` is none that a run writes.
    """
    lines = account.get("lines")
    if not isinstance(lines, int) or lines < 0:
        return False
    first = itertools.islice(read_windows(folder / WINDOWS_FILE), lines)
    return Account(first).to_json() == account


def choose_folder(
    out: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    name: str | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    identity: Collection[str] | None = None,
) -> FolderChoice:
    """Says which folder a run will use. Writes nothing.

    Args:
        out: the folder that holds the runs' folders; it need not exist.
        config: what `config.json` will say: every flag as resolved, and the run's `id`.
        name: the folder's name; None for `ID-rK`: the newest unfinished one, else the next K.
        resume: `auto` continues an unfinished folder, `never` refuses one, `require` demands one.
        overwrite: start anew; an existing folder is moved aside to `NAME.old-K` first.
        identity: the keys of `config` that the id stands for, which are compared when ids differ;
            None for all.

    Returns:
        The choice.

    Raises:
        UsageError: the name could leave `out` or cannot be one; the folder there is no run's, is
            another config's (the differing flags are listed), failed, corrupt, or of a newer
            version; or `resume` forbids what would be done.
    """
    if resume not in RESUME_MODES:
        raise unknown_value("--resume", resume, RESUME_MODES)
    if overwrite and resume == "require":
        raise UsageError("--overwrite and --resume=require contradict each other.")
    out = Path(out)
    if os.path.lexists(out) and not out.is_dir():
        raise UsageError(f"--out={plain_text(out)} is no folder.")
    if name is None:
        path = _numbered(out, config["id"], resume, overwrite)
    else:
        check_name(name)
        path = out / name
    action, message = _choose_action(path, config, resume, overwrite, identity)
    if action == START and resume == "require":
        raise UsageError(
            f"--resume=require: there is no unfinished run {plain_text(path)} to continue."
        )
    return FolderChoice(path, action, message, dict(config))


def check_name(name: str) -> None:
    """Refuses a run's name that could leave `--out`, hide, or break a terminal or a file system.

    Args:
        name: the name.

    Raises:
        UsageError: with the name got and what is allowed.
    """
    if not name or name != name.strip():
        fault = "is empty or begins or ends with a space"
    elif "/" in name or "\\" in name:
        fault = "has a slash"
    elif name.startswith("."):
        fault = "begins with a dot"
    elif not name.isprintable():  # controls, text direction, spaces that look like none
        fault = "has a control character or a space other than the plain one"
    elif len(name.encode()) > MAX_NAME_BYTES:
        fault = f"is longer than {MAX_NAME_BYTES} bytes"
    elif is_superseded(name):
        fault = "has an ending that --overwrite gives to old folders"
    else:
        return
    raise UsageError(
        f"--name={plain_text(name, 80)} {fault}.\n"
        f"Allowed: up to {MAX_NAME_BYTES} bytes of letters, digits, -, _, . and the like, "
        "without slash, leading dot or control characters."
    )


def _choose_action(
    path: Path,
    config: Mapping[str, Any],
    resume: str,
    overwrite: bool,
    identity: Collection[str] | None,
) -> tuple[str, str]:
    """What to do with a folder, and the sentence that says so."""
    if not os.path.lexists(path):
        return START, ""
    if path.is_symlink() or not path.is_dir():
        raise UsageError(f"{path} exists and is no folder. Give the run another --name.")
    if _is_empty(path):
        return START, ""
    found = read_run(path)
    theirs = found.config or {}
    if not theirs and not os.path.lexists(path / CONFIG_FILE):
        raise UsageError(
            f"{path} exists and is no run's folder ({found.why}). Give the run another --name."
        )
    if overwrite:
        return OVERWRITE, f"{path} exists and is moved aside; the run starts anew."
    again = "--overwrite moves it aside and starts anew."
    if found.state == FAILED:
        raise UsageError(f"{path} failed: {found.why}.\n{again}")
    if found.state not in (COMPLETED, UNFINISHED):
        raise UsageError(f"{path} cannot be continued: {found.why}.\n{again}")
    if theirs["id"] != config["id"]:
        state = "complete" if found.state == COMPLETED else "unfinished"
        raise UsageError(
            f"{path} is {state} and belongs to another config. It differs in\n"
            f"{_differences(theirs, _as_read(config), identity)}.\n"
            f"Give the same flags, or another --name; {again}"
        )
    if found.state == COMPLETED:
        return NOTHING, f"{path} is complete ({(found.summary or {})['status']}). {again}"
    if resume == "never":
        raise UsageError(f"{path} is unfinished and --resume=never.\n{again}")
    return RESUME, f"{path} is unfinished and is continued."


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], identity: Collection[str] | None
) -> str:
    """The flags in which two configs differ, e.g. `--optimizer=adam there, sgd here`."""
    keys = identity if identity is not None else [key for key in ours if key != "id"]
    differing = [
        f"--{key}={plain_text(theirs.get(key), 60)} there, {plain_text(ours.get(key), 60)} here"
        for key in keys
        if theirs.get(key) != ours.get(key)
    ]
    if not differing:
        name = "id" if theirs.get("protocol") == ours.get("protocol") else "protocol"
        return f"its {name}: {plain_text(theirs.get(name), 60)} there, {ours.get(name)} here"
    more = len(differing) - _MAX_FLAGS_SHOWN
    shown = "; ".join(differing[:_MAX_FLAGS_SHOWN])
    return f"{shown}; and {more} more" if more > 0 else shown


def _numbered(out: Path, run_id: str, resume: str, overwrite: bool) -> Path:
    """`ID-rK`: the newest unfinished one, else the next; with `overwrite` the newest."""
    pattern = re.compile(re.escape(run_id) + r"-r([0-9]{1,9})")
    try:
        names = os.listdir(out)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise UsageError(f"--out={plain_text(out)} cannot be read: {reason_of(error)}.") from error
    numbers = sorted(
        (int(match[1]) for match in map(pattern.fullmatch, names) if match), reverse=True
    )
    if overwrite and numbers:
        return out / f"{run_id}-r{numbers[0]}"
    if resume != "never":
        for number in numbers:
            path = out / f"{run_id}-r{number}"
            if path.is_dir() and not path.is_symlink() and _may_be_continued(path, run_id):
                return path
    return out / f"{run_id}-r{numbers[0] + 1 if numbers else 0}"


def _may_be_continued(path: Path, run_id: str) -> bool:
    found = read_run(path)
    return found.state == UNFINISHED and (found.config or {})["id"] == run_id


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old-{number}")


def _is_empty(path: Path) -> bool:
    """Whether nothing is recorded there: at most what a process killed at its start leaves."""
    leftovers = {LOCK_FILE, temporary_path(path / CONFIG_FILE).name}
    try:
        return set(os.listdir(path)) <= leftovers
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason_of(error)}.") from error


def _refuse_content(path: Path) -> None:
    """Under the lock: another process may have used the folder since it was chosen."""
    if not _is_empty(path):
        raise UsageError(f"{path} was just made by another process; try again.")


def _as_read(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as it will be read back: tuples become lists."""
    return json.loads(dump_json(dict(value), "a record"))
