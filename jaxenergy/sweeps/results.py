"""What has become of a sweep's runs: found below a folder, told apart by conditions, recorded."""

import contextlib
import dataclasses
import datetime
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.config import PROTOCOL, RunConfig
from jaxenergy.errors import RunError, UsageError
from jaxenergy.records import Run, read_run
from jaxenergy.records.files import write_json_atomic
from jaxenergy.records.reader import find_runs
from jaxenergy.records.schema import COMPLETED, FAILED, FOREIGN, UNFINISHED
from jaxenergy.sweeps.conditions import Conditions, read_conditions
from jaxenergy.sweeps.design import Cell, Sweep

SCHEMA = 1
SWEEPS_FOLDER = "sweeps"
SWEEP_FILE = "sweep.json"
LOGS_FOLDER = "logs"

# States of a cell besides those of a run's folder.
WAITING = "waiting"
RUNNING = "running"


@dataclasses.dataclass(frozen=True)
class CellResult:
    """One run of a sweep, and what has become of it.

    Attributes:
        cell: the run.
        state: `waiting` (not begun), `running`, `completed`, `failed`, or `unfinished` (begun, and
            the same command goes on).
        why: the reason for `failed` and `unfinished`, in words.
        path: its folder; None while it has none.
        name: the folder that it has or will have, below the sweep's `out`.
        conditions: what it was measured on and with; None while that is not known.
        wall_s: how long its process took in this sweep; None where it was not run by it.
        exit_status: how that process ended; None likewise.
    """

    cell: Cell
    state: str
    why: str
    path: Path | None
    name: str
    conditions: Conditions | None = None
    wall_s: float | None = None
    exit_status: int | None = None

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.cell.run_id

    def read(self) -> Run:
        """The run's folder.

        Raises:
            UsageError: it has none yet.
        """
        if self.path is None:
            raise UsageError(f"Run {self.run_id} has no folder: it is {self.state}.")
        return read_run(self.path)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep has come to.

    Attributes:
        sweep: its runs, in order.
        cells: what has become of each, in the same order.
        folder: where `sweep.json` is.
        left_alone: sentences about runs of the same settings that were not taken for this sweep's.
        signum: the signal that ended it, or None.
        devices: what it had locked on this machine, for whoever measures there after it.
    """

    sweep: Sweep
    cells: tuple[CellResult, ...]
    folder: Path
    left_alone: tuple[str, ...] = ()
    signum: int | None = None
    devices: tuple[str, ...] = ()

    def count(self, state: str) -> int:
        """How many cells are in a state."""
        return sum(cell.state == state for cell in self.cells)

    @property
    def complete(self) -> bool:
        """Whether every run is completed."""
        return self.count(COMPLETED) == len(self.cells)

    @property
    def conditions(self) -> dict[Conditions, int]:
        """Under which conditions the completed runs were measured, with how many under each."""
        found = [cell.conditions for cell in self.cells if cell.state == COMPLETED]
        return dict(Counter(conditions for conditions in found if conditions is not None))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be known before the results are put into one table."""
        lines = list(self.left_alone)
        if len(self.conditions) > 1:
            parts = "; ".join(f"{count} on {each}" for each, count in self.conditions.items())
            lines.append(
                f"these results are of different conditions and must not be mixed: {parts}"
            )
        return tuple(lines)

    def comparable(self) -> tuple[CellResult, ...]:
        """The completed runs, all of which were measured under one set of conditions.

        Raises:
            RunError: they were not.
        """
        if len(self.conditions) > 1:
            raise RunError(f"Results are not mixed silently: {self.warnings[-1]}.")
        return tuple(cell for cell in self.cells if cell.state == COMPLETED)

    @property
    def exit_status(self) -> int:
        """The exit status of a process that did this sweep."""
        if self.signum is not None:
            return 128 + self.signum
        return 1 if self.count(FAILED) or self.count(UNFINISHED) else 0


class Ground:
    """The runs that lie below a folder, and which of them belong to a sweep's cells.

    Args:
        out: the folder; it need not exist.
        expected: the conditions under which each run would be measured now, by run id; a run of
            other conditions is left alone. Empty where nothing is expected (another machine runs
            them).
        digests: of the data that each run would learn from now, by run id; a run that learned from
            other data is left alone.
        optimizer_digests: of the file of each run's optimizer now, where that is a plug-in, by run
            id; a run that was trained by other code is left alone.
    """

    def __init__(
        self,
        out: Path,
        expected: Mapping[str, Conditions],
        digests: Mapping[str, str] | None = None,
        optimizer_digests: Mapping[str, str] | None = None,
    ):
        self.out = out
        self.expected = expected
        self.digests = digests or {}
        self.optimizer_digests = optimizer_digests or {}
        self.found: dict[str, list[Run]] = {}
        self.configs: list[tuple[RunConfig, Run]] = []
        for run in find_runs(out) if out.is_dir() else []:
            config = _config_of(run)
            if config is not None:
                self.found.setdefault(config.id, []).append(run)
                self.configs.append((config, run))

    def locate(self, cell: Cell, *, retry_failed: bool = False) -> CellResult:
        """What there is of a cell: a completed run, else an unfinished one, else a failed one.

        Args:
            cell: the cell.
            retry_failed: whether a failed run is passed over, and another one begun.

        Returns:
            The cell's state, with the folder that it has or will have.
        """
        runs = [run for run in self.found.get(cell.run_id, ()) if self._why_not(cell, run) is None]
        for run in runs:
            if run.state == COMPLETED:
                return CellResult(cell, COMPLETED, "", run.path, run.name, read_conditions(run))
        for run in runs:
            # Only there can the command go on with it.
            if run.state == UNFINISHED and run.path.parent == self.out:
                return CellResult(cell, UNFINISHED, run.why, run.path, run.name)
        for run in runs:
            if run.state == FAILED and not retry_failed:
                return CellResult(cell, FAILED, run.why, run.path, run.name, read_conditions(run))
        return CellResult(cell, WAITING, "", None, self._free_name(cell.run_id))

    def look_again(self, cell: CellResult) -> CellResult:
        """A cell by what its own folder says now, while others may be writing it."""
        path = self.out / cell.name
        run = read_run(path) if path.is_dir() else None
        if run is None or run.state == FOREIGN:  # there is none, or it is just being made
            return dataclasses.replace(cell, state=WAITING, why="", path=None)
        return dataclasses.replace(
            cell, state=run.state, why=run.why, path=path, conditions=read_conditions(run)
        )

    def left_alone(self, sweep: Sweep) -> tuple[str, ...]:
        """Sentences about runs of the same settings that are not taken, and why."""
        reasons: Counter[str] = Counter()
        for cell in sweep.cells:
            for run in self.found.get(cell.run_id, ()):
                if run.state in (COMPLETED, FAILED, UNFINISHED):
                    why = self._why_not(cell, run)
                    if why is not None:
                        reasons[why] += 1
        return tuple(
            f"{count} run{'s' if count > 1 else ''} of the same settings below {self.out} "
            f"{'are' if count > 1 else 'is'} left alone: {why}"
            for why, count in reasons.items()
        )

    def _why_not(self, cell: Cell, run: Run) -> str | None:
        """Why a run of a cell's settings is not the cell's; None where it is."""
        protocol = (run.config or {}).get("protocol")
        if protocol != PROTOCOL:
            return f"protocol {protocol}, and this is protocol {PROTOCOL}"
        digest = self.digests.get(cell.run_id)
        if digest is not None and run.data_digest not in (None, digest):
            return "trained on other data than --dataset and --data_dir name now"
        digest = self.optimizer_digests.get(cell.run_id)
        if digest is not None and run.optimizer_digest not in (None, digest):
            return "trained by other code than --optimizer names now"
        expected, conditions = self.expected.get(cell.run_id), read_conditions(run)
        if conditions is None and run.state != UNFINISHED:
            return "its folder does not say what it was measured on and with"
        if expected is None or conditions is None or conditions == expected:
            return None
        return f"measured on {conditions}; this is {expected}"

    def _free_name(self, run_id: str) -> str:
        """`ID-rK`, as an unnamed run would be called, with the first K after all that there are."""
        pattern = re.compile(re.escape(run_id) + r"-r([0-9]{1,9})(\.old-[0-9]+)?")
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = os.listdir(self.out)
        taken = [int(match[1]) for match in map(pattern.fullmatch, names) if match]
        # A process that was killed at its start may have left a folder with nothing in it.
        return f"{run_id}-r{max(taken, default=-1) + 1}"


def _config_of(run: Run) -> RunConfig | None:
    """The config of a run's folder; None where it is not one that this version knows."""
    if run.config is None or run.state == FOREIGN:
        return None
    try:
        return RunConfig.from_json(run.config)
    except (UsageError, TypeError):
        return None


def sweep_folder(out: Path, sweep: Sweep) -> Path:
    """The folder of a sweep's own files: `out/sweeps/ID`."""
    return out / SWEEPS_FOLDER / sweep.id


def write_record(
    result: SweepResult,
    *,
    out: Path,
    launcher: Mapping[str, Any],
    command: Sequence[str],
    python: str,
) -> None:
    """Writes `sweep.json` (docs/sweeps.md), atomically.

    Args:
        result: what has become of the runs so far.
        out: the folder that holds them.
        launcher: which one, and what it has to say.
        command: the command line of the driver.
        python: the interpreter in the runs' command lines.

    Raises:
        RunError: the disk is full.
    """
    known = list(dict.fromkeys(cell.conditions for cell in result.cells if cell.conditions))
    cells = []
    for cell in result.cells:
        cells.append(
            {
                "run_id": cell.run_id,
                "block": cell.cell.block,
                "settings": cell.cell.settings,
                "command": shlex.join([python, *cell.cell.arguments(str(out), cell.name)]),
                "state": cell.state,
                "why": cell.why or None,
                "run": os.path.relpath(cell.path or out / cell.name, out),
                "conditions": known.index(cell.conditions) if cell.conditions else None,
                "exit_status": cell.exit_status,
                "wall_s": None if cell.wall_s is None else round(cell.wall_s, 3),
            }
        )
    write_json_atomic(
        result.folder / SWEEP_FILE,
        {
            "schema": SCHEMA,
            "id": result.sweep.id,
            "protocol": PROTOCOL,
            "command": list(command),
            "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "axes": {name: list(values) for name, values in result.sweep.axes.items()},
            "order_seed": result.sweep.order_seed,
            "launcher": dict(launcher),
            "runs": {
                state: result.count(state)
                for state in (COMPLETED, FAILED, UNFINISHED, RUNNING, WAITING)
            },
            "conditions": [conditions.to_json() for conditions in known],
            "warnings": list(result.warnings),
            "cells": cells,
        },
    )
