"""A sweep as a Slurm job array: each task is the command line of one run, and nothing else.

What is submitted lies beside the results and can be read, edited and submitted by hand:
`commands.txt` has one command line per run, and task N of `job.sbatch` runs line N + 1. The runs
have names, so a task that is requeued goes on with its run, and one whose run is completed says so
and ends. Nothing here remembers a job's number: the array is found in the queue by its name.
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxenergy.arguments import Argument
from jaxenergy.errors import RunError, UsageError
from jaxenergy.records.files import plain_text, reason_of
from jaxenergy.records.lock import FolderLock
from jaxenergy.records.schema import COMPLETED, FAILED, UNFINISHED
from jaxenergy.sweeps.design import Sweep
from jaxenergy.sweeps.results import (
    LOGS_FOLDER,
    RUNNING,
    WAITING,
    CellResult,
    Ground,
    SweepResult,
    write_record,
)

COMMANDS_FILE = "commands.txt"
SCRIPT_FILE = "job.sbatch"
EXCLUSIVE = Argument(str, "node", choices=("gpu", "node"))

# Before a time limit ends a task, its run gets this long to save; then the task is requeued.
_WARNING_S = 120
_LOOK_EVERY_S = 5.0
_LINES_SHOWN = 2
# Meters that count nothing but the task's own GPU.
_OF_THE_GPU_ALONE = {"nvml", "none"}


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """How the array is submitted.

    Attributes:
        exclusive: `node` for tasks that have a node to themselves, `gpu` for tasks that have a GPU.
        gres: the GPU that a task asks for, where `exclusive` is `gpu`.
        parallel: most tasks at a time; None for as many as the cluster gives.
        sbatch: further options of sbatch, e.g. `partition=gpu`.
        setup: lines of shell before the run, e.g. `module load cuda`.
        watch: whether to wait for the array's end, and show how far it is.
    """

    exclusive: str = "node"
    gres: str = "gpu:1"
    parallel: int | None = None
    sbatch: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    watch: bool = True

    def __post_init__(self):
        EXCLUSIVE.read(self.exclusive, "--exclusive")
        for option in self.sbatch:
            if not option.strip("-") or "\n" in option:
                raise UsageError(
                    f"--sbatch={plain_text(option, 80)} is no option of sbatch.\n"
                    "Allowed: e.g. --sbatch=partition=gpu."
                )


def check_slurm_is_here() -> None:
    """Refuses a machine that cannot submit to Slurm.

    Raises:
        UsageError: a program of Slurm's is missing.
    """
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise UsageError(
                f"--launcher=slurm: {program} was not found on the PATH.\n"
                "Allowed: a machine that submits to Slurm, or --launcher=local."
            )


def write_job(
    cells: Sequence[CellResult],
    pending: Iterable[int],
    folder: Path,
    out: Path,
    options: SlurmOptions,
) -> Path:
    """Writes the command lines and the script.

    Args:
        cells: every cell of the sweep, with its run's name.
        pending: the positions of those that are to be run.
        folder: the sweep's own folder; it exists.
        out: the folder that holds the runs.
        options: how it is submitted.

    Returns:
        The script.

    Raises:
        RunError: it cannot be written.
    """
    commands = [
        shlex.join([sys.executable, *cell.cell.arguments(str(out), cell.name)]) for cell in cells
    ]
    script = folder / SCRIPT_FILE
    try:
        (folder / COMMANDS_FILE).write_text("\n".join(commands) + "\n")
        script.write_text(_script(cells, sorted(pending), folder.resolve(), options))
        script.chmod(0o755)
    except OSError as error:
        raise RunError(f"{script} could not be written: {reason_of(error)}.") from error
    return script


def _script(
    cells: Sequence[CellResult], pending: Sequence[int], folder: Path, options: SlurmOptions
) -> str:
    """The text of job.sbatch."""
    most, why = _most_at_once(cells, options)
    options_of_sbatch = [
        f"job-name={_job_name(folder)}",
        f"array={_ranges(pending)}{f'%{most}' if most else ''}",
        "exclusive" if options.exclusive == "node" else f"gres={options.gres}",
        "requeue",
        "open-mode=append",
        f'output="{folder / LOGS_FOLDER}/task-%a.log"',
        f'chdir="{os.getcwd()}"',
        f"signal=B:USR1@{_WARNING_S}",
        *(option.lstrip("-") for option in options.sbatch),
    ]
    setup = list(options.setup)
    if "PYTHONPATH" in os.environ:
        setup.insert(0, f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}")
    return _SCRIPT.format(
        pending=len(pending),
        cells=len(cells),
        options="\n".join(f"#SBATCH --{option}" for option in options_of_sbatch),
        why=f"# {why}\n" if why else "",
        setup="".join(f"{line}\n" for line in setup),
        commands=shlex.quote(str(folder / COMMANDS_FILE)),
    )


_SCRIPT = """\
#!/bin/bash
# {pending} of the {cells} runs of a sweep, a task each: task N runs line N + 1 of commands.txt.
# A run that is stopped saves and ends with status 143; its task, queued again, goes on with it.
{why}{options}

{setup}
# Slurm's own SIGTERM (preemption, requeueing, scancel) reaches the run by itself. USR1 comes before
# a time limit: the run is told to save, and the task is queued again.
trap 'interrupted=yes' TERM
trap 'interrupted=yes; again=yes; kill -TERM "$run"' USR1

command=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {commands})
echo "$command"
eval "$command &"
run=$!
interrupted= again=
wait "$run"
status=$?
while [[ $interrupted ]]; do # the wait was: the run is still saving
  interrupted=
  wait "$run"
  status=$?
done
if [[ $again && $status == 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _most_at_once(cells: Sequence[CellResult], options: SlurmOptions) -> tuple[int | None, str]:
    """How many tasks may run at a time, and why."""
    if options.exclusive == "gpu":
        meters = {name for cell in cells for name in cell.cell.config.meters.split(",")}
        if not meters <= _OF_THE_GPU_ALONE:
            return 1, (
                "One at a time: tasks on one node share its package counters. With --meters=nvml "
                "they need not."
            )
    return options.parallel, ""


def _job_name(folder: Path) -> str:
    return f"jaxenergy-{folder.name}"


def _ranges(positions: Sequence[int]) -> str:
    """Positions as sbatch takes them: `0-3,7`."""
    parts: list[list[int]] = []
    for position in positions:
        if parts and position == parts[-1][1] + 1:
            parts[-1][1] = position
        else:
            parts.append([position, position])
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in parts)


class SlurmSweep:
    """A sweep that Slurm runs; made and used by `sweeps.run`.

    Args:
        sweep: the runs.
        ground: what there is of them already.
        result: what has become of each so far.
        out: the folder that holds the runs.
        options: how the array is submitted.
        command: the command line of the driver, for the record.
    """

    def __init__(
        self,
        sweep: Sweep,
        ground: Ground,
        result: SweepResult,
        out: Path,
        options: SlurmOptions,
        command: Sequence[str],
    ):
        self.sweep = sweep
        self.ground = ground
        self.result = result
        self.out = out
        self.options = options
        self.command = command
        self.job_id: str | None = None

    def run(
        self,
        say: Callable[[str], None],
        show: Callable[[SweepResult], None],
        stop: Callable[[], int | None],
    ) -> SweepResult:
        """Submits what is left, unless it is in the queue already, and waits for its end.

        Args:
            say: told sentences.
            show: shown the result at each change.
            stop: a signal's number ends the waiting; the array goes on.

        Returns:
            What has become of each run.

        Raises:
            UsageError: Slurm refuses the array.
            RunError: Slurm does not answer.
        """
        try:
            (self.result.folder / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out={self.out} cannot be written: {reason_of(error)}.") from error
        lock = FolderLock(self.result.folder)  # two calls at once would submit everything twice
        try:
            queued = self._read_queue()
            if queued:
                say(f"the array {self._name} is in the queue already: {len(queued)} tasks")
            else:
                self._submit(say)
            self._record(queued or self._read_queue())
            show(self.result)
            return self._watch(say, show, stop) if self.options.watch else self.result
        finally:
            lock.release()

    @property
    def _name(self) -> str:
        return _job_name(self.result.folder)

    def _submit(self, say: Callable[[str], None]) -> None:
        pending = [
            position
            for position, cell in enumerate(self.result.cells)
            if cell.state in (WAITING, UNFINISHED)
        ]
        if not pending:
            return
        script = write_job(self.result.cells, pending, self.result.folder, self.out, self.options)
        ended = _ask("sbatch", "--parsable", str(script))
        if ended.returncode != 0:
            raise UsageError(
                f"Slurm refused {script}: {_complaint(ended)}\n"
                "What it takes: --sbatch=OPTION=VALUE, --exclusive, --gres."
            )
        self.job_id = ended.stdout.strip().partition(";")[0]
        say(f"submitted {len(pending)} tasks as job array {self.job_id}: {script}")

    def _watch(
        self,
        say: Callable[[str], None],
        show: Callable[[SweepResult], None],
        stop: Callable[[], int | None],
    ) -> SweepResult:
        while True:
            queued = self._read_queue()
            self._record(queued)
            show(self.result)
            if not queued:
                return self.result
            end_s = time.monotonic() + _LOOK_EVERY_S
            while time.monotonic() < end_s:
                if signum := stop():
                    say(
                        f"the array goes on; scancel --name={self._name} ends it, "
                        "and the same command shows it again"
                    )
                    self.result = dataclasses.replace(self.result, signum=signum)
                    return self.result
                time.sleep(0.2)

    def _record(self, queued: dict[int, str]) -> None:
        """Notes what has become of each run that was not completed when last looked at."""
        cells = []
        for position, cell in enumerate(self.result.cells):
            if cell.state != COMPLETED:
                cell = self._look_again(position, cell, queued)
            cells.append(cell)
        self.result = dataclasses.replace(self.result, cells=tuple(cells))
        launcher = {
            "name": "slurm",
            "job_name": self._name,
            "job_id": self.job_id,
            "script": SCRIPT_FILE,
            "commands": COMMANDS_FILE,
        }
        write_record(
            self.result,
            out=self.out,
            launcher=launcher,
            command=self.command,
            python=sys.executable,
        )

    def _look_again(self, position: int, cell: CellResult, queued: dict[int, str]) -> CellResult:
        found = self.ground.look_again(cell)
        if found.state in (COMPLETED, FAILED):
            return found
        if position in queued:
            state = RUNNING if queued[position] == "RUNNING" else found.state
            return dataclasses.replace(found, state=state, why="")
        log = self.result.folder / LOGS_FOLDER / f"task-{position}.log"
        if found.state == WAITING and log.exists():
            why = f"its task ended without a run's folder; see {log}"
            return dataclasses.replace(found, state=FAILED, why=why)
        return found

    def _read_queue(self) -> dict[int, str]:
        """The array's tasks that are not ended: state by task number."""
        ended = _ask(
            "squeue",
            "--me",
            "--noheader",
            "--array",
            f"--name={self._name}",
            "--format=%K %T",
        )
        if ended.returncode != 0:
            raise RunError(f"squeue failed: {_complaint(ended)}")
        queued = {}
        for line in ended.stdout.splitlines():
            number, _, state = line.strip().partition(" ")
            if number.isdigit():
                queued[int(number)] = state
        return queued


def _complaint(ended: subprocess.CompletedProcess) -> str:
    """The last lines that a program of Slurm's printed, which say what was wrong."""
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    said = [plain_text(line, 300) for line in lines[-_LINES_SHOWN:]]
    return "\n".join(said) or f"it ended with status {ended.returncode}"


def _ask(*command: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{command[0]} does not answer: {error}") from error
