"""Runs a comparison: its processes one at a time, in random order in blocks, and what they say.

The process is the unit. A block is one process of each framework, in an order drawn anew, so that
what drifts over minutes touches all of a block alike. Only one is alive at a time, since frameworks
take memory in advance and hold power states. Whatever is finished is kept: the same command goes on
after Ctrl-C, a kill or a failure.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.errors import RunError, UsageError
from jaxenergy.frameworks.inputs import read_facts
from jaxenergy.frameworks.request import Request
from jaxenergy.frameworks.summary import (
    COMPARED,
    FAILED,
    REFUSED,
    SCHEMA,
    UNFINISHED,
    Comparison,
    summarise,
    why_losses_differ,
)
from jaxenergy.records.files import check_can_be_made, make_folder, read_document, write_json_atomic
from jaxenergy.records.lock import FolderLock
from jaxenergy.units import format_si

DESIGN_FILE = "design.json"
RESULT_FILE = "compare.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Settings that say where things are, and not what is compared.
_PLACES = (
    *("data_dir", "powercap_root", "out", "name"),
    *("resume", "overwrite", "keep", "quiet", "verbose"),
)


@dataclasses.dataclass(frozen=True)
class Design:
    """What is compared, and how.

    Attributes:
        configs: the trainings, by name.
        frameworks: names of `FRAMEWORKS`; the first is what the others are held against in tables.
        processes: of each framework.
        cold_compiles: how many of them compile anew, with an empty cache; the others take what the
            first one left, and tell of updates alone.
        seconds: of training that each meters.
        tf32: whether a GPU may round the factors of float32 products to TF32, in all frameworks.
        seed: of the order.
    """

    configs: Mapping[str, RunConfig]
    frameworks: tuple[str, ...]
    processes: int
    cold_compiles: int
    seconds: float
    tf32: bool
    seed: int

    def to_json(self) -> dict[str, Any]:
        """All of it but where files are, for `design.json`."""
        given = {**dataclasses.asdict(self), "frameworks": list(self.frameworks)}
        given["configs"] = {
            name: {key: value for key, value in config.to_json().items() if key not in _PLACES}
            for name, config in self.configs.items()
        }
        return {"schema": SCHEMA, **given}

    @property
    def id(self) -> str:
        """Ten hexadecimal digits of what is compared, and how."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def order(self, model: str) -> list[tuple[int, int, str]]:
        """The processes of one model as (block, position in the block, framework), in order."""
        drawn = []
        for block in range(self.processes):
            chance = random.Random(f"{self.seed}/{model}/{block}")
            names = chance.sample(self.frameworks, len(self.frameworks))
            drawn += [(block, position, name) for position, name in enumerate(names)]
        return drawn


@dataclasses.dataclass(frozen=True)
class Result:
    """What a comparison ended with.

    Attributes:
        path: its folder.
        document: as in `compare.json`.
        signum: the signal that ended it, or None.
    """

    path: Path
    document: Mapping[str, Any]
    signum: int | None

    @property
    def exit_status(self) -> int:
        """The exit status of a process that did it: 1 where a model was refused or failed."""
        if self.signum is not None:
            return 128 + self.signum
        statuses = {entry["status"] for entry in self.document["models"].values()}
        return 0 if statuses == {COMPARED} else 1


def run(
    design: Design,
    folder: Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Does a comparison, or what is left of it.

    Args:
        design: what is compared.
        folder: where it is kept.
        overwrite: start anew; what is there is moved aside first.
        say: told how it goes.

    Returns:
        What it ended with.

    Raises:
        UsageError: the comparison cannot be had; nothing was written. Or the folder holds another.
        RunError: a process failed before anything was written.
    """
    with _Stop() as stop, contextlib.ExitStack() as stack:
        if overwrite and folder.exists():
            _move_aside(folder)
        begun = read_document(folder / DESIGN_FILE) if folder.is_dir() else None
        if begun is None and folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds something else; give the comparison another --name.")
        if begun is not None:
            _refuse_another(begun, design, folder)
        first = None
        check_can_be_made(folder)  # what takes minutes comes after it
        if begun is None:
            # What is wrong with a comparison, its first preparation finds, before anything is kept.
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            first = scratch / "inputs"
            name = next(iter(design.configs))
            say(f"{name}: preparing, and checking that the programs are the same")
            _prepare(design, name, first, stop)
        if stop.signum is None:
            make_folder(folder)
            lock = FolderLock(folder)
            stack.callback(lock.release)
            write_json_atomic(folder / DESIGN_FILE, design.to_json())
            if first is not None:
                shutil.copytree(first, folder / next(iter(design.configs)) / "inputs")
            for name in design.configs:
                _compare(design, name, folder, stop, say)
                if stop.signum is not None:
                    break
        document = _document(design, folder)
        if folder.is_dir():
            write_json_atomic(folder / RESULT_FILE, document)
        return Result(folder, document, stop.signum)


def _compare(
    design: Design, model: str, folder: Path, stop: "_Stop", say: Callable[[str], None]
) -> None:
    """Runs what is left of one model's processes; what goes wrong is written down."""
    home = folder / model
    home.mkdir(exist_ok=True)
    failure = home / "failure.json"
    failure.unlink(missing_ok=True)
    todo = [
        (block, position, name)
        for block, position, name in design.order(model)
        if not _process_file(home, block, name).exists()
    ]
    if not todo:
        return
    try:
        facts = read_facts(home / "inputs")
        if facts is None or _why_refused(facts) is not None:
            say(f"{model}: preparing, and checking that the programs are the same")
            facts = _prepare(design, model, home / "inputs", stop)
        if stop.signum is not None:
            return
        for note in facts["meter_notes"]:
            say(note)
        refused = _why_refused(facts)
        if refused is not None:
            say(f"{model}: REFUSED: {refused}")
            return
        (home / "processes").mkdir(exist_ok=True)
        for number, (block, position, name) in enumerate(todo, 1):
            record = _measure(design, model, home, block, position, name, stop)
            if record is None:
                say(f"{model}: stopped; {len(todo) - number + 1} processes are left")
                return
            say(f"{model}: block {block + 1} of {design.processes}, {name}: {_in_words(record)}")
            refused = why_losses_differ(
                _read_processes(design, model, home), design.configs[model].precision
            )
            if refused is not None:
                say(f"{model}: REFUSED: {refused}")
                return
    except (UsageError, RunError) as error:
        write_json_atomic(failure, {"why": str(error)})
        say(f"{model}: {error}")
        return
    shutil.rmtree(home / "cache", ignore_errors=True)


def _in_words(record: Mapping[str, Any]) -> str:
    per_update = record["per_update"]
    words = f"{format_si(per_update['duration_s'], 's')} an update"
    if per_update["energy_j"] is not None:
        words += f", {format_si(per_update['energy_j'], 'J')} {record['provenance']}"
    first = format_si(record["stages"]["compile"]["duration_s"], "s")
    return f"{words}, first call {first}{' (compiled anew)' if record['cold'] else ''}"


def _why_refused(facts: Mapping[str, Any]) -> str | None:
    """Why a model may not be compared; None where its programs are the same."""
    parity = facts["parity"]
    if parity is None or parity["passed"]:
        return None
    return f"the programs are not the same, first in {parity['first_difference']}"


def _prepare(design: Design, model: str, inputs: Path, stop: "_Stop") -> dict[str, Any]:
    request = Request(
        task="prepare",
        config=design.configs[model].to_json(),
        inputs=str(inputs),
        framework=",".join(design.frameworks),
        tf32=design.tf32,
    )
    done = _run_process(request, {}, stop, "preparing")
    return done or {"parity": None, "meter_notes": []}


def _measure(
    design: Design,
    model: str,
    home: Path,
    block: int,
    position: int,
    framework: str,
    stop: "_Stop",
) -> dict[str, Any] | None:
    """Runs one process and keeps its record; None where it was stopped."""
    cold = block < design.cold_compiles
    # The first one's cache is what those that do not compile anew begin with.
    cache = home / "cache" / (framework if block == 0 or not cold else f"{framework}-anew")
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    request = Request(
        task="measure",
        config=design.configs[model].to_json(),
        inputs=str(home / "inputs"),
        framework=framework,
        seconds=design.seconds,
        tf32=design.tf32,
    )
    what = f"{framework}, block {block + 1},"
    record = _run_process(request, _caches(cache.resolve()), stop, what)
    if record is None:
        return None
    record = {**record, "block": block, "position": position, "cold": cold}
    write_json_atomic(_process_file(home, block, framework), record)
    return record


def _caches(folder: Path) -> dict[str, str]:
    """The environment variables that send every compiler's cache to one folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),
    }


def _run_process(
    request: Request, variables: Mapping[str, str], stop: "_Stop", what: str
) -> dict[str, Any] | None:
    """Runs one process to its end.

    Returns:
        Its result; None where it was stopped.

    Raises:
        UsageError: what it was asked is not possible.
        RunError: it failed; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered, log = (Path(scratch) / name for name in ("request", "result", "log"))
        write_json_atomic(asked, dataclasses.asdict(request))
        command = [sys.executable, "-m", "jaxenergy.frameworks.worker", str(asked), str(answered)]
        with open(log, "wb") as output:
            status = stop.run(command, {**os.environ, **variables}, output)
        result = read_document(answered)
        words = log.read_text(errors="replace")
    if stop.signum is not None:
        return None
    error = (result or {}).get("error")
    if status == 2 and error:
        raise UsageError(error)
    if status != 0 or result is None or error:
        last = "\n".join(words.strip().splitlines()[-15:])
        raise RunError(f"{what} ended with status {status}: {error or 'no result'}\n{last}".strip())
    return result


class _Stop(contextlib.AbstractContextManager):
    """Runs processes, and ends the one that is alive when SIGINT or SIGTERM comes.

    Attributes:
        signum: the signal that came; None so far.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "_Stop":
        self._old = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def run(self, command: Sequence[str], environment: Mapping[str, str], output: Any) -> int:
        """Runs one process, in a group of its own; its exit status."""
        if self.signum is not None:
            return 128 + self.signum
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        if self.signum is not None:  # it came while the process was being started
            self._kill()
        try:
            return self._process.wait()
        finally:
            self._kill()  # what it may have left behind, such as a compiler's helpers
            self._process = None

    def _handle(self, signum: int, frame: object) -> None:
        del frame
        self.signum = self.signum or signum
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _process_file(home: Path, block: int, framework: str) -> Path:
    return home / "processes" / f"{block:02d}-{framework}.json"


def _read_processes(design: Design, model: str, home: Path) -> list[dict[str, Any]]:
    """The records of the processes that have finished, in the order of the design."""
    files = [_process_file(home, block, name) for block, _, name in design.order(model)]
    return [record for file in files if (record := read_document(file)) is not None]


def _refuse_another(begun: Mapping[str, Any], design: Design, folder: Path) -> None:
    now = json.loads(json.dumps(design.to_json()))
    differing = [key for key in now if begun.get(key) != now[key]]
    if differing:
        raise UsageError(
            f"{folder} holds a comparison that differs in {', '.join(differing)}.\n"
            "Give this one another --name, or --overwrite, which moves the old one aside."
        )


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)


def _document(design: Design, folder: Path) -> dict[str, Any]:
    """`compare.json` from what is in the folder."""
    models, environment = {}, None
    for model, config in design.configs.items():
        home = folder / model
        processes = _read_processes(design, model, home)
        failure = read_document(home / "failure.json")
        facts = read_facts(home / "inputs")
        missing = design.processes * len(design.frameworks) - len(processes)
        refused = why_losses_differ(processes, config.precision)
        if facts is not None:
            refused = _why_refused(facts) or refused
        status, why = COMPARED, None
        if refused is not None:
            status, why = REFUSED, refused
        elif failure is not None:
            status, why = FAILED, failure["why"]
        elif missing:
            status, why = UNFINISHED, f"{missing} processes have not been run"
        given = {k: v for k, v in config.to_json().items() if k not in _PLACES}
        models[model] = summarise(
            Comparison(given, facts, processes, status, why), design.frameworks
        )
        for process in processes:
            environment = environment or process["environment"]
    return {
        "schema": SCHEMA,
        "name": folder.name,
        "id": design.id,
        "command": sys.argv,
        "design": design.to_json(),
        "reference": design.frameworks[0],
        "environment": environment,
        "models": models,
    }
