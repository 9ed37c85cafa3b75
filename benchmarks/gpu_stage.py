"""What the stages of `gpu.sh` share: their GPU, and a results file that is filled check by check.

A machine with a GPU is often to be had for minutes only. So each check's result is saved as soon as
it is known, a stage that is called again goes on where it was, and no stage begins a check that it
may not finish in its time. Results are published, so what they say of the machine is its kind
(versions, models, driver) and not whose it is (host name, folders).
"""

import argparse
import dataclasses
import datetime
import hashlib
import os
import platform
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jaxenergy
from jaxenergy import runtime
from jaxenergy.errors import JaxenergyError, RunError, UsageError, unknown_value
from jaxenergy.meters import Device, Meters, open_meters
from jaxenergy.records.environment import read_environment
from jaxenergy.records.files import dump_json, read_document, write_json_atomic
from jaxenergy.records.lock import FolderLock

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = 1
BUDGETS = ("full", "smoke")
# How long a call may take; `gpu.sh` has the same number and ends what takes longer.
CALL_S = 475
_LEAST_CALL_S = 60
# No check is begun that may end in the last of it: checks take longer than is thought.
_MARGIN_S = 35
CALL_AGAIN = 75  # the exit status of a stage with checks left (EX_TEMPFAIL)


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line of a stage.

    Attributes:
        budget: `full`, or `smoke` for a try of every check in seconds, on any machine with NVML.
        results: the folder that gets a folder per GPU.
        data_dir: where official data sets are; None for embedded and generated data only.
        commit: the commit of this source, where git cannot be asked.
        fresh: discard what an earlier call left.
        only: the names of the checks to run; all where empty.
        seconds: how long the call may take.
    """

    budget: str
    results: Path
    data_dir: Path | None
    commit: str | None
    fresh: bool
    only: tuple[str, ...]
    seconds: float = CALL_S

    @property
    def smoke(self) -> bool:
        """Whether this is only a try."""
        return self.budget == "smoke"

    @property
    def stage_s(self) -> float:
        """How long after its begin a stage should end."""
        return self.seconds - _MARGIN_S


def read_options(description: str | None) -> Options:
    """Reads the command line; anything wrong with it ends the process with status 2."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--budget", choices=BUDGETS, default="full")
    parser.add_argument("--results", type=Path, help="default: results, or runs/smoke for a try")
    parser.add_argument("--data_dir", type=Path, help="where official data sets are")
    parser.add_argument("--commit", help="of this source, where git cannot be asked")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--only", default="", help="names of checks, with commas between")
    parser.add_argument("--seconds", type=int, default=CALL_S, help="of this call, at most")
    given = parser.parse_args()
    if given.seconds < _LEAST_CALL_S:
        parser.error(f"--seconds={given.seconds} is out of range; allowed: {_LEAST_CALL_S} or more")
    smoke = given.budget == "smoke"
    return Options(
        budget=given.budget,
        results=given.results or ROOT / ("runs/smoke" if smoke else "results"),
        data_dir=given.data_dir,
        commit=given.commit,
        fresh=given.fresh,
        only=tuple(filter(None, given.only.split(","))),
        seconds=given.seconds,
    )


@dataclasses.dataclass(frozen=True)
class Rig:
    """The GPU under test.

    Attributes:
        devices: the device that computes, for `open_meters`; None where this process computes
            nothing.
        domain: the domain that is about it.
        name: its model, e.g. `NVIDIA H200`.
        uuid: which one.
        environment: what was measured on and with.
    """

    devices: tuple[Device, ...] | None
    domain: str
    name: str
    uuid: str
    environment: Mapping[str, Any]

    def open_meters(self) -> Meters:
        """The GPU's meter, opened anew; a context manager."""
        return open_meters("nvml", self.devices)

    @property
    def folder_name(self) -> str:
        """The name of its folder of results, e.g. `nvidia-h200`."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def find_rig(options: Options, *, computes: bool) -> Rig:
    """Finds the GPU that JAX computes on, or the first visible one.

    Args:
        options: the command line.
        computes: whether this process computes. JAX takes most of a GPU's memory, which a stage
            that only starts other processes must leave to them.

    Returns:
        The GPU.

    Raises:
        UsageError: JAX computes on no GPU (but for a try), or NVML has none; the message says why.
    """
    facts = runtime.prepare()
    devices = None
    if computes:
        from jaxenergy.measuring import read_jax_devices

        devices = tuple(read_jax_devices()[:1])  # where JAX puts arrays
        if devices[0].platform != "gpu" and not options.smoke:
            raise UsageError(
                f"JAX computes on {devices[0].platform} ({devices[0].name}), not on a GPU.\n"
                "--budget=smoke tries the checks on whatever NVML lists."
            )
    with open_meters("nvml", devices) as meters:
        environment = publishable(
            read_environment(devices=devices or (), meters=meters, runtime=facts)
        )
        domain, card = next(iter(meters.describe()["nvml"]["gpus"].items()))
    return Rig(devices, domain, card["name"], card["uuid"], environment)


def publishable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What an environment says of the kind of machine, without whose it is or where files are."""
    left_out = {"host", "boot_id", "command", "os", "nvml_library", "runtime"}
    kept = {key: value for key, value in environment.items() if key not in left_out}
    kept["os"] = f"{platform.system()} {platform.machine()}"
    library = environment["nvml_library"]
    if library is not None:
        kept["nvml_library"] = {**library, "path": os.path.basename(library["path"])}
    kept["runtime"] = {
        key: value for key, value in environment["runtime"].items() if key != "compilation_cache"
    }
    return kept


def read_source_digest() -> str:
    """SHA-256 over the Python files that make the numbers: tells what no git is there to tell."""
    digest = hashlib.sha256()
    for folder in ("jaxenergy", "experiments", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


class Unfinished(Exception):
    """A check that has kept what it did, and goes on with the rest at the next call."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One part of a stage.

    Attributes:
        name: a key of the results file.
        seconds: how long it takes at most, about.
        run: gives its result as JSON; `says` in it is a list of sentences for people, and `failed`,
            where it is there, says what is missing of it (`without …`): the rest is kept, and a
            later call does the check again.
    """

    name: str
    seconds: float
    run: Callable[[], dict[str, Any]]


class Stage:
    """A results file and the checks that fill it.

    Args:
        name: of the stage, and of its file.
        rig: the GPU.
        options: the command line.
        begun_s: when the call began, on `time.monotonic`; now where None.

    Raises:
        UsageError: there is a file of other source, versions or budget, whose results must not be
            mixed with these; or another stage works on this GPU's folder.
    """

    def __init__(self, name: str, rig: Rig, options: Options, begun_s: float | None = None):
        self.name = name
        self.rig = rig
        self.options = options
        self.source = read_source_digest()
        self.folder = options.results / rig.folder_name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        self._path = self.folder / f"{name}.json"
        self._begun_s = time.monotonic() if begun_s is None else begun_s
        self._again = f"call it again{', without --fresh,' if options.fresh else ''} to go on"
        try:
            self._record = self._read_or_begin()
        except BaseException:
            self.close()
            raise

    def _read_or_begin(self) -> dict[str, Any]:
        new = {
            "schema": SCHEMA,
            "stage": self.name,
            "command": self._command(),
            "budget": self.options.budget,
            "gpu": self.rig.name,
            "driver": self.rig.environment["meter_facts"]["nvml"]["driver"],
            "jaxenergy": jaxenergy.__version__,
            "commit": self._commit(),
            "source_sha256": self.source,
            "begun_at": _now(),
            "duration_s": 0.0,
            "complete": False,
            "environment": dict(self.rig.environment),
            "checks": {},
            "failed": {},
        }
        old = None if self.options.fresh else read_document(self._path)
        if old is None or not old["checks"]:
            return new
        fields = ("schema", "budget", "driver", "source_sha256")
        differing = [field for field in fields if old.get(field) != new[field]]
        if old["environment"]["versions"] != new["environment"]["versions"]:
            differing.append("versions")
        if differing:
            state = "is complete" if old["complete"] else "was begun"
            raise UsageError(
                f"{self._path} {state}, with another {' and another '.join(differing)}.\n"
                "Results of both cannot stand in one file. To discard it and begin a new one:\n"
                f"    {shlex.join(['benchmarks/gpu.sh', self.name, *sys.argv[1:], '--fresh'])}"
            )
        return old

    def _command(self) -> str:
        options = self.options
        words = ["benchmarks/gpu.sh", self.name]
        words += ["--budget=smoke"] if options.smoke else []
        words += ["--data_dir=DIR"] if options.data_dir else []
        return " ".join(words)

    def _commit(self) -> str | None:
        git = self.rig.environment["git"]
        if git is None:
            return self.options.commit
        return git["commit"] + (" and changes" if git["modified"] else "")

    def run(self, checks: Sequence[Check]) -> int:
        """Runs the checks that are not finished, as far as the time allows.

        Args:
            checks: all checks of the stage, in order.

        Returns:
            The exit status: 0 where all are finished, 1 where one failed, `CALL_AGAIN` where some
            are left.

        Raises:
            UsageError: `--only` names a check there is not.
        """
        names = [check.name for check in checks]
        for name in self.options.only:
            if name not in names:
                raise unknown_value("--only", name, names)
        chosen = [c for c in checks if not self.options.only or c.name in self.options.only]
        # What has a part of its result waits for what has nothing yet.
        for check in sorted(chosen, key=lambda check: self._has_part(check.name)):
            if self._is_finished(check.name):
                print(f"{self.name}: {check.name} is finished already", flush=True)
                continue
            # One that is too long for any call is begun all the same, while most of it is left.
            if check.seconds > self.left_s and self.left_s < 0.75 * self.options.stage_s:
                print(f"{self.name}: time is up before {check.name}; {self._again}")
                return CALL_AGAIN
            try:
                self._run_one(check)
            except Unfinished as left:
                print(f"{self.name}: {check.name} is not finished ({left}); {self._again}")
                return CALL_AGAIN
            self._record["complete"] = all(map(self._is_finished, names))
            self._save()
        print(f"{self.name}: {self._path}")
        return 1 if self._record["failed"] else 0

    def _run_one(self, check: Check) -> None:
        print(f"{self.name}: {check.name}, about {check.seconds:.0f} s …", flush=True)
        begun_s, begun_at = time.monotonic(), _now()
        try:
            result = _rounded(check.run())
            dump_json(result, check.name)  # a number that JSON has not is this check's failure
        except Unfinished:
            raise
        except Exception as error:  # whatever the GPU or a library does, the other checks go on
            traceback.print_exc()
            self._record["failed"][check.name] = f"{type(error).__name__}: {error}"[-2000:]
            return
        duration_s = time.monotonic() - begun_s
        self._record["failed"].pop(check.name, None)
        if "failed" in result:
            self._record["failed"][check.name] = result["failed"]
        self._record["checks"][check.name] = {
            "begun_at": begun_at,
            "duration_s": _rounded(duration_s),
            "gpu_uuid": self.rig.uuid,
            **result,
        }
        self._record["duration_s"] = _rounded(self._record["duration_s"] + duration_s)
        for sentence in result.get("says", ()):
            print(f"    {sentence}", flush=True)
        if "failed" in result:
            print(f"    kept {result['failed']}; a later call does it again", flush=True)

    def _is_finished(self, name: str) -> bool:
        return name in self._record["checks"] and name not in self._record["failed"]

    def _has_part(self, name: str) -> bool:
        return name in self._record["checks"] and name in self._record["failed"]

    def result(self, name: str) -> Mapping[str, Any] | None:
        """What a check found, be it a part of what it should; None where there is nothing yet."""
        return self._record["checks"].get(name)

    def _save(self) -> None:
        write_json_atomic(self._path, self._record)

    def save_table(self, name: str, columns: Mapping[str, Iterable[float]]) -> str:
        """Writes raw numbers as CSV beside the results.

        Args:
            name: of the file, after the stage's.
            columns: by heading, with units; all of one length.

        Returns:
            The file's name, for the result.
        """
        file = f"{self.name}-{name}.csv"
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(columns), *(",".join(f"{value:.10g}" for value in row) for row in rows)]
        (self.folder / file).write_text("\n".join(lines) + "\n")
        return file

    @property
    def left_s(self) -> float:
        """What is left of this call's time, but for what is kept for checks that take longer."""
        return self.options.stage_s - (time.monotonic() - self._begun_s)

    def close(self) -> None:
        """Lets others work on the folder."""
        self._lock.release()


def run_stage(
    name: str,
    description: str | None,
    make_checks: Callable[[Stage], Sequence[Check]],
    *,
    computes: bool,
) -> NoReturn:
    """Runs a stage as a program.

    Args:
        name: of the stage.
        description: for `--help`.
        make_checks: gives its checks.
        computes: whether this process computes on the GPU itself.
    """
    begun_s = time.monotonic()  # to find the GPU takes seconds too
    options = read_options(description)
    try:
        stage = Stage(name, find_rig(options, computes=computes), options, begun_s)
        try:
            status = stage.run(make_checks(stage))
        finally:
            stage.close()
    except JaxenergyError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1 if isinstance(error, RunError) else 2
    sys.exit(status)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _rounded(value: Any) -> Any:
    """The same with numbers to six digits, which is more than any of them is known to."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
