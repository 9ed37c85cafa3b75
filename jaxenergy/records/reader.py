"""Reading run folders: one run in full, or all runs below a folder as a table.

A folder may be unfinished, in use at this moment, written by a newer version, or made by somebody
who means harm; each gives a row with the reason, and none harms or stops the reader. The table
reads two small files per run, so ten thousand runs take seconds.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxenergy.errors import UsageError
from jaxenergy.records.files import (
    RecordError,
    plain_text,
    read_document,
    reason_of,
)
from jaxenergy.records.lines import read_metrics, read_windows
from jaxenergy.records.schema import (
    COMPLETED,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FAILED,
    FOREIGN,
    METRICS_FILE,
    PREEMPTED,
    SCHEMA,
    STATUSES,
    SUMMARY_FILE,
    UNFINISHED,
    WINDOWS_FILE,
)

_MAX_FOLDER_LEVELS = 16
_MAX_COLUMNS = 2000
_RECORD_FILES = frozenset({CONFIG_FILE, WINDOWS_FILE, METRICS_FILE, SUMMARY_FILE})


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder as found.

    Attributes:
        path: the folder.
        state: `completed` (its status may be `target_reached`), `unfinished` (may be continued),
            `failed`, or `foreign` (no run that this version can read).
        why: the reason for any state but `completed`.
        config: `config.json`; None where it cannot be read.
        summary: `summary.json`; None where there is none yet or it cannot be read.
    """

    path: Path
    state: str
    why: str
    config: dict[str, Any] | None
    summary: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def data_digest(self) -> str | None:
        """The digest of the data that it learned from; None where `config.json` does not say.

        Which data these are is no setting: a path or a Python can come to hold others.
        """
        return self._digest_of("dataset")

    @property
    def optimizer_digest(self) -> str | None:
        """The digest of the plug-in's file that it was trained by; None where there is none.

        Of a plug-in the settings hold only the name.
        """
        return self._digest_of("optimizer_source")

    def _digest_of(self, what: str) -> str | None:
        resolved = (self.config or {}).get("resolved")
        found = resolved.get(what) if isinstance(resolved, dict) else None
        digest = found.get("digest") if isinstance(found, dict) else None
        return digest if isinstance(digest, str) else None

    @functools.cached_property
    def environment(self) -> dict[str, Any] | None:
        """`environment.json`; None where there is none. Raises `RecordError`."""
        return read_document(self.path / ENVIRONMENT_FILE)

    @functools.cached_property
    def windows(self) -> list[dict[str, Any]]:
        """The lines of `windows.jsonl` finished so far, events among them. Raises `RecordError`."""
        return list(read_windows(self.path / WINDOWS_FILE))

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` finished so far. Raises `RecordError`."""
        return list(read_metrics(self.path / METRICS_FILE))


@dataclasses.dataclass(frozen=True)
class Found:
    """What a walk through folders came upon.

    Attributes:
        path: the folder, or the file of a document.
        kind: `run` (a folder with a file of a run), `document`, `foreign`, or `nothing`.
        why: the reason of the last two.
    """

    path: Path
    kind: str
    why: str


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Reads a run's folder; windows, metrics and environment are read when they are asked for.

    Args:
        folder: the folder.

    Returns:
        The run; its `state` and `why` say what is wrong with it, if anything.

    Raises:
        UsageError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"{plain_text(path)} is no folder. Give a run's folder, e.g. runs/NAME.")
    return _read_run(path)


def read_runs(
    path: str | os.PathLike[str] = "runs", *, superseded: bool = False
) -> list[dict[str, Any]]:
    """All runs below a folder as a table.

    Args:
        path: a folder of runs at any depth, or one run's folder. Links inside it are not followed;
            one that points to a folder outside gives a row that says so.
        superseded: whether to include the folders that `--overwrite` moved aside.

    Returns:
        One flat dict per run, in the order of their paths: `path`, `name`, `state`, `why`, the
        config as `config.FLAG`, and the summary with dotted names (`energy_j.by_phase.train`,
        `per_update_j.mean`, `per_update_j.ci95_low`). `pandas.DataFrame` takes the list as it is.
        Text has its control characters escaped; it is not escaped for HTML.

    Raises:
        UsageError: there is no such folder.
    """
    return [_row(run) for run in find_runs(path, superseded=superseded)]


def find_runs(path: str | os.PathLike[str], *, superseded: bool = False) -> Iterator[Run]:
    """All runs below a folder, in the order of their paths.

    Args:
        path: as for `read_runs`.
        superseded: whether to include the folders that `--overwrite` moved aside.

    Yields:
        The runs; their windows, metrics and environment are read when they are asked for.

    Raises:
        UsageError: there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"{plain_text(root)} is no folder. Give the folder that holds the runs.")
    for run in _find_runs(root):
        if superseded or not is_superseded(run.name):
            yield run


def is_superseded(name: str) -> bool:
    """Whether a folder's name is one that `--overwrite` gives to what it moves aside."""
    _, separator, number = name.rpartition(".old-")
    return bool(separator) and number.isascii() and number.isdigit()


def _read_run(path: Path) -> Run:
    """Reads what the state depends on: the config and the summary."""
    config, summary = None, None
    try:
        config = read_document(path / CONFIG_FILE)
        if config is None:
            return Run(path, FOREIGN, f"it has no {CONFIG_FILE}", None, None)
        _refuse_newer(config, CONFIG_FILE)
        if not isinstance(config.get("id"), str):
            raise RecordError(f"{CONFIG_FILE} has no id of a run")
        summary = read_document(path / SUMMARY_FILE)
        if summary is not None:
            _refuse_newer(summary, SUMMARY_FILE)
            _refuse_unlike_summary(summary)
    except RecordError as error:
        return Run(path, FOREIGN, plain_text(error), config, None)
    if summary is None:
        return Run(path, UNFINISHED, f"it has no {SUMMARY_FILE} yet", config, None)
    if summary["status"] == PREEMPTED:
        return Run(path, UNFINISHED, "it was preempted and may be continued", config, summary)
    if summary["status"] == FAILED:
        why = summary.get("why")
        reason = why.get("status") if isinstance(why, dict) else None
        return Run(path, FAILED, plain_text(reason or "it failed"), config, summary)
    return Run(path, COMPLETED, "", config, summary)


def _refuse_newer(document: dict[str, Any], name: str) -> None:
    schema = document.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(
            f"{name} has schema {schema}, newer than {SCHEMA}, which this version of jaxenergy "
            "reads; install a newer one"
        )


def _refuse_unlike_summary(summary: dict[str, Any]) -> None:
    schema, status = summary.get("schema"), summary.get("status")
    if schema != SCHEMA or isinstance(schema, bool):
        raise RecordError(f"{SUMMARY_FILE} has no schema number that this version reads")
    if status not in STATUSES:
        raise RecordError(f"{SUMMARY_FILE} has the unknown status {plain_text(status, 60)!r}")


def find_folders(
    root: Path, is_document: Callable[[str, str], bool] = lambda folder, name: False
) -> Iterator[Found]:
    """Walks below `root` in the order of names; a run's folder is not searched further.

    Args:
        root: the folder to begin with.
        is_document: whether a file is looked for, by the name of its folder and its own.

    Yields:
        What was found. A folder that holds nothing of the kind, and no folder, is `nothing`; one
        that belongs to a document, since it is below its folder, is passed over.
    """
    real_root = os.path.realpath(root)
    pending: list[tuple[str, int, bool]] = [(os.fspath(root), 0, False)]
    while pending:
        folder, level, owned = pending.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(Path(folder), FOREIGN, f"it cannot be read: {reason_of(error)}")
            continue
        if any(entry.name in _RECORD_FILES for entry in entries):
            yield Found(Path(folder), "run", "")
            continue
        below, links = [], 0
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif entry.is_symlink():
                links += 1
                if _leads_out(entry, real_root):
                    why = "it is a link that leads out of this folder, and is not followed"
                    yield Found(Path(entry.path), FOREIGN, why)
            elif is_document(os.path.basename(folder), entry.name):
                owned = True
                yield Found(Path(entry.path), "document", "")
        if below and level >= _MAX_FOLDER_LEVELS:
            why = f"its folders are nested deeper than {_MAX_FOLDER_LEVELS} levels"
            yield Found(Path(folder), FOREIGN, why)
        elif not below and not links and not owned and level:
            yield Found(Path(folder), "nothing", "it holds no file of a run")
        else:
            # What lies in the root itself owns nothing: runs and documents stand beside each other.
            owned = owned and level > 0
            pending.extend((path, level + 1, owned) for path in reversed(below))


def _find_runs(root: Path) -> Iterator[Run]:
    for found in find_folders(root):
        if found.kind == "run":
            yield _read_run(found.path)
        elif found.kind == FOREIGN:
            yield Run(found.path, FOREIGN, found.why, None, None)


def _leads_out(entry: os.DirEntry[str], real_root: str) -> bool:
    """Whether a link is to a folder that is not below the root."""
    try:
        target = os.path.realpath(entry.path, strict=True)
        return os.path.isdir(target) and os.path.commonpath([target, real_root]) != real_root
    except OSError:  # a link to nothing, or in a circle
        return False


def _row(run: Run) -> dict[str, Any]:
    """A run as a flat row."""
    found = {
        "path": plain_text(os.fspath(run.path), 4096),
        "name": plain_text(run.name),
        "state": run.state,
        "why": run.why,
    }
    row = dict(found)
    for key, value in (run.config or {}).items():
        _flatten(row, f"config.{key}", value)
    for key, value in (run.summary or {}).items():
        _flatten(row, key, value)
    if len(row) > _MAX_COLUMNS:
        why = f"it has {len(row)} values; at most {_MAX_COLUMNS} are read"
        return {**found, "state": FOREIGN, "why": why}
    row.update(found)  # no key of a file takes the place of these
    return row


def _flatten(row: dict[str, Any], key: str, value: Any) -> None:
    """Adds a value under dotted names; depth is bounded by whoever parsed it."""
    if isinstance(value, dict):
        for part, item in value.items():
            _flatten(row, f"{key}.{part}", item)
    elif isinstance(value, list):
        if key.endswith(".ci95") and len(value) == 2:
            _flatten(row, f"{key}_low", value[0])
            _flatten(row, f"{key}_high", value[1])
        else:
            row[plain_text(key)] = plain_text(", ".join(map(str, value)))
    else:
        row[plain_text(key)] = plain_text(value) if isinstance(value, str) else value
