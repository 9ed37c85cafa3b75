"""One run from its config to its summary: the order in which things are opened, run and closed.

Everything that can be wrong with a config is found before the folder is made. From then on, however
the run ends (done, target, stop, failure, a signal amid a compilation), its folder ends with a
summary that says so, and no finished window is lost.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxenergy import data, energy, optimizers
from jaxenergy.config import RunConfig
from jaxenergy.energy import Ledger
from jaxenergy.energy.windows import TARGET_RELATIVE_SE, relative_window_error
from jaxenergy.errors import RunError, UsageError
from jaxenergy.meters import Device, Meters, compare_sources, open_meters
from jaxenergy.models import Model
from jaxenergy.records import FolderChoice, Run, RunFolder, choose_folder, read_run, summarise
from jaxenergy.records.environment import read_device_name, read_environment
from jaxenergy.records.files import plain_text
from jaxenergy.records.folder import lines_begin_with
from jaxenergy.records.schema import CHECKPOINTS_FOLDER
from jaxenergy.records.summary import add_energy
from jaxenergy.training.checkpoint import (
    Checkpoints,
    Progress,
    UnusableCheckpoints,
    refuse_unusable,
)
from jaxenergy.training.control import (
    ControlPlan,
    ControlPrograms,
    compile_control,
    make_control_plan,
)
from jaxenergy.training.initial import Initial
from jaxenergy.training.interruption import Interruption, exit_status
from jaxenergy.training.loop import Account, Loop, Observer, Outcome, evaluation_record
from jaxenergy.training.plan import Plan, make_plan
from jaxenergy.training.programs import Programs, compile_programs, transfer
from jaxenergy.training.trained import read_initial

# Seconds between the end of work and an idle measurement, in which clocks and fans come to rest.
_SETTLE_S = 0.5


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        path: the run's folder.
        message: why there was nothing to do; empty where the run was run.
        summary: as in `summary.json`.
        signum: the signal that ended it, or None.
    """

    path: Path
    message: str
    summary: Mapping[str, Any]
    signum: int | None = None

    @property
    def exit_status(self) -> int:
        """The exit status of a process that did this run."""
        if self.signum is not None:
            return exit_status(self.signum)
        return 1 if self.summary["status"] == "failed" else 0


def run(config: RunConfig, observer: Observer, runtime_facts: Mapping[str, Any]) -> Result:
    """Does one run, or what is left of it.

    Args:
        config: the settings.
        observer: told how it goes.
        runtime_facts: what was set up before jax was imported, for `environment.json`.

    Returns:
        What it ended with.

    Raises:
        UsageError: a setting cannot be satisfied; nothing was written.
        RunError: it failed while running; the folder says so.
    """
    choice = choose_folder(
        config.out,
        config.to_json(),
        name=config.name,
        resume=config.resume,
        overwrite=config.overwrite,
        identity=config.identity(),
    )
    if choice.action == "nothing":
        return _as_it_is(config, choice)
    device = one_device()
    described = Device(platform=device.platform, index=device.id, name=device.device_kind)
    with open_meters(config.meters, [described], powercap_root=config.powercap_root) as meters:
        lines = _Lines()
        ledger = Ledger(meters, fence=jax.block_until_ready, on_line=lines.add, drain=_drain)
        try:
            with ledger.phase("input"):
                source = load_source(config)
            plan = _plan(config, source, device.platform, observer.say)
            observer.say(_headline(plan, device))
            for sentence in meters.notes:
                observer.say(sentence)
            sessions: list[_Session] = []
            with (
                Interruption(
                    lambda signum: [s.write_when_stuck(signum) for s in sessions]
                ) as interruption,
                _create(choice, plan, meters, described) as folder,
            ):
                # Only now: until the folder was locked, another process might have had it.
                for sentence in (choice.message, *folder.notes):
                    if sentence:
                        observer.say(sentence)
                environment = read_environment(
                    devices=[described], meters=meters, runtime=runtime_facts
                )
                folder.write_environment(environment)
                lines.attach(folder)
                session = _Session(plan, folder, ledger, meters, observer, device.platform)
                sessions.append(session)
                return session.run(interruption)
        finally:
            ledger.close()


def _as_it_is(config: RunConfig, choice: FolderChoice) -> Result:
    """The result of a run that is complete already.

    Raises:
        UsageError: the data, or the plug-in's code, that the same settings name are no longer those
            that it was trained with.
    """
    found = read_run(choice.path)
    if found.data_digest is not None:
        source = None
        with contextlib.suppress(UsageError):  # they are gone: there are no others to train on
            source = load_source(config)
        if source is not None and source.digest != found.data_digest:
            on = f"on other data than --dataset={plain_text(config.dataset)} is now"
            raise _trained_otherwise(choice.path, on, found.data_digest, source.digest)
    code = optimizers.read_plug_in_source(
        config.optimizer, optimizers.parse_args(config.optimizer_args)
    )
    if code is not None and found.optimizer_digest not in (None, code["digest"]):
        by = f"by other code than --optimizer={plain_text(config.optimizer)} is now"
        raise _trained_otherwise(choice.path, by, found.optimizer_digest, code["digest"])
    return Result(choice.path, choice.message, found.summary or {})


def _trained_otherwise(path: Path, how: str, was: str | None, is_now: str) -> UsageError:
    """The refusal of a complete run that the same settings would not give again."""
    return UsageError(
        f"{path} is complete, and was trained {how}: its digest was {plain_text(was)}, "
        f"and is {is_now}.\n"
        "Give the run another --name, or start anew: --overwrite moves the folder aside."
    )


def load_source(config: RunConfig) -> data.Dataset | data.ControlTask:
    """What a config's network learns from: a data set, or an environment to act in."""
    if data.is_control(config.dataset):
        return data.load_task(config.dataset)
    return data.load(config.dataset, data_dir=config.data_dir)


def make_any_plan(
    config: RunConfig,
    source: data.Dataset | data.ControlTask,
    platform: str,
    read_initial: Callable[[Model], Initial] | None = None,
) -> Plan | ControlPlan:
    """Resolves a config, whichever kind of source it has; see `make_plan`."""
    if isinstance(source, data.ControlTask):
        return make_control_plan(config, source, platform)
    return make_plan(config, source, platform, read_initial)


def _plan(
    config: RunConfig, source: data.Dataset | data.ControlTask, platform: str, say: Callable
) -> Plan | ControlPlan:
    if config.init_from is None or isinstance(source, data.ControlTask):
        return make_any_plan(config, source, platform)
    return make_any_plan(
        config, source, platform, lambda model: read_initial(config, source, model, platform, say)
    )


def _drain() -> None:
    """Waits for all that was dispatched, whatever holds it."""
    jax.block_until_ready(jax.live_arrays())


def one_device() -> jax.Device:
    """The device that a run trains on; refuses where there is more than one, or none."""
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a platform was asked for that is not there
        raise UsageError(f"JAX finds no device: {error}") from error
    if jax.process_count() > 1 or len(devices) > 1:
        raise UsageError(
            f"JAX sees {len(devices)} devices in {jax.process_count()} process(es); "
            "a run trains on one.\nChoose one, e.g. with CUDA_VISIBLE_DEVICES=0."
        )
    return devices[0]


def _headline(plan: Plan | ControlPlan, device: jax.Device) -> str:
    model, config = plan.program.model, plan.config
    kind, platform = device.device_kind, device.platform
    where = kind if kind == platform else f"{kind} ({platform})"
    return (
        f"{model.family} of depth {model.depth} and width {model.width}, {plan.parameters:,} "
        f"parameters, {model.activation}, {config.optimizer}, {plan.total_updates:,} updates of "
        f"{config.batch_size} on {config.dataset}, {where}"
    )


def _create(
    choice: FolderChoice, plan: Plan | ControlPlan, meters: Meters, device: Device
) -> RunFolder:
    """Makes or takes the folder, its config completed by what was resolved.

    What is resumed must go on as it began: with the same data, the same code of a plug-in, on the
    same domains, and on the same kind of device.
    """
    resolved = {
        **plan.resolved(),
        "device": read_device_name(device),
        "counted_domains": list(meters.counted_domains),
        "provenance": meters.provenance,
    }
    if choice.action == "resume":
        began = _leaves((read_run(choice.path).config or {}).get("resolved", {}))
        now = _leaves(json.loads(json.dumps(resolved)))
        if "optimizer_source.digest" not in began:  # an older record does not tell the code
            now = {k: v for k, v in now.items() if not k.startswith("optimizer_source.")}
        differing = [
            f"{name} was {began.get(name)} and is {now.get(name)}"
            for name in {**began, **now}
            if began.get(name) != now.get(name)
        ]
        if differing:
            raise UsageError(
                f"{choice.path} cannot be continued, for this would be another run: "
                f"{plain_text('; '.join(differing), 400)}.\n"
                "Mend what differs, or start anew: --overwrite moves the folder aside."
            )
    config = {**choice.config, "resolved": resolved}
    return dataclasses.replace(choice, config=config).create(_refuse_unusable)


def _refuse_unusable(folder: Path) -> None:
    """Refuses a run that cannot be gone on with, as far as that can be told beforehand."""
    refuse_unusable(folder / CHECKPOINTS_FOLDER, lambda account: _fault_of_account(folder, account))


def _fault_of_account(folder: Path, account: Mapping[str, Any]) -> str | None:
    """Why a checkpoint cannot be gone on from with the energy account whole, or None."""
    if not account or lines_begin_with(folder, account):
        return None
    return f"windows.jsonl has no longer the {account.get('lines')} lines of its account"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_leaves(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class _Lines:
    """Hands the ledger's lines to the run's folder; keeps them until there is one."""

    def __init__(self):
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._folder: RunFolder | None = None

    def add(self, line: dict[str, Any]) -> None:
        """Takes a finished line, from any thread."""
        with self._lock:
            if self._folder is None:
                self._waiting.append(line)
            else:
                self._append(self._folder, line)

    def attach(self, folder: RunFolder) -> None:
        """Writes what has gathered, and from now on every line as it comes."""
        with self._lock:
            for line in self._waiting:
                self._append(folder, line)
            self._waiting.clear()
            self._folder = folder

    @staticmethod
    def _append(folder: RunFolder, line: dict[str, Any]) -> None:
        # Which attempt this is was known only when the folder had been locked.
        folder.append_window({**line, "attempt": folder.attempt})


@dataclasses.dataclass
class _Session:
    """One process's work on a folder that it owns."""

    plan: Plan | ControlPlan
    folder: RunFolder
    ledger: Ledger
    meters: Meters
    observer: Observer
    platform: str

    def __post_init__(self):
        self._facts: dict[str, Any] = {
            "provenance": self.meters.provenance,
            "counted_domains": self.meters.counted_domains,
            "parameters": self.plan.parameters,
            "tokens_per_example": self.plan.tokens_per_example,
        }
        self._earlier_j = self._read_earlier_j()
        self._writing = threading.Lock()
        self._summary: dict[str, Any] | None = None

    def run(self, interruption: Interruption) -> Result:
        """Compiles, trains, evaluates, measures idle, and writes the summary."""
        try:
            outcome = self._train(lambda: interruption.signum is not None)
        except UnusableCheckpoints as error:
            # No fault of the run: it stays unfinished, with the summary that was removed as this
            # process began to work on it, and what the attempt took.
            self.ledger.close()
            self._write_summary("preempted", str(error).partition("\n")[0])
            raise
        except RunError:
            # The disk is full or the like, no fault of the run: it stays unfinished, without a
            # summary, and the same command goes on. The lines that still can be written are.
            with contextlib.suppress(RunError):
                self.ledger.close()
            raise
        except BaseException as error:
            self.ledger.close()
            self._write_summary("failed", f"{type(error).__name__}: {plain_text(error)}")
            raise
        self.ledger.close()
        summary = self._write_summary(outcome.status, outcome.why)
        signum = interruption.signum if outcome.status == "preempted" else None
        return Result(self.folder.path, "", summary, signum)

    def _train(self, stop_requested) -> Outcome:
        checkpoints = Checkpoints(self.folder.checkpoints, self.plan.config.keep)
        with contextlib.closing(checkpoints):  # also where no phase can be begun any more
            try:
                return self._train_with(checkpoints, stop_requested)
            finally:
                with self.ledger.phase("checkpoint"):
                    checkpoints.close()

    def _train_with(self, checkpoints: Checkpoints, stop_requested) -> Outcome:
        plan, ledger = self.plan, self.ledger
        with ledger.phase("input") as phase:
            splits = {} if isinstance(plan, ControlPlan) else transfer(plan)
            phase.fence(splits)
        with ledger.phase("compile") as phase:
            programs: Programs | ControlPrograms
            if isinstance(plan, ControlPlan):
                programs = compile_control(plan)
            else:
                programs = compile_programs(plan, splits, self.platform)
            phase.fence(splits)
        self._facts["compiled"] = programs.facts
        with ledger.phase("warmup") as phase:
            programs.warm_up()
            state = jax.block_until_ready(programs.init(programs.state_key))
            phase.fence(state)
        state, progress = self._resumed(checkpoints, state)
        self._measure_idle(stop_requested)
        loop = Loop(
            plan=plan,
            programs=programs,
            ledger=ledger,
            account=Account(
                ledger, self.meters.counted_domains, self.meters.provenance, self._earlier_j
            ),
            checkpoints=checkpoints,
            folder=self.folder,
            stop_requested=stop_requested,
            observer=self.observer,
            tick_s=max((d.tick_s for d in self.meters.domains if d.counted), default=0.0),
        )
        outcome = loop.run(state, progress)
        if outcome.status in ("completed", "target_reached"):
            evaluation = loop.evaluate(outcome.state, outcome.update, "test")
            if evaluation is None:  # stopped at the very end: what is left is done next time
                return dataclasses.replace(outcome, status="preempted")
            self._facts["final"] = evaluation_record(self.plan, evaluation, "test")
            with ledger.phase("checkpoint"):
                checkpoints.wait()  # while it is written, nothing is idle
            self._measure_idle(stop_requested)
        return outcome

    def _resumed(self, checkpoints: Checkpoints, state):
        """The state to go on from: the newest checkpoint's, or the fresh one."""
        if not self.folder.resumed:
            return state, Progress()
        with self.ledger.phase("checkpoint"):
            restored = checkpoints.restore(
                state,
                self.observer.say,
                lambda progress: _fault_of_account(self.folder.path, progress.account),
            )
        why = None
        if restored is None:
            restored = state, Progress()
            if self._had_trained():
                why = "no checkpoint is there, and what was trained before is lost"
                self.observer.say(why)
        state, progress = restored
        update, evaluated_at = progress.update, progress.evaluated_at
        # Saved amid an evaluation, it does not know of one that an attempt has made since.
        is_due = self.plan.evaluates_at(update) and update > evaluated_at
        self.folder.append_rollback(update, evaluated_at if is_due else None, why)
        self.observer.say(f"going on from update {progress.update:,}")
        return state, progress

    def _had_trained(self) -> bool:
        """Whether an attempt at this run, as far as it is recorded, had made an update."""
        record = self.folder.read()
        return bool(record.metrics) or any(line.get("updates") for line in record.windows)

    def _read_earlier_j(self) -> float | None:
        """The counted joules of earlier attempts at this run."""
        if not self.folder.resumed:
            return 0.0
        record = self.folder.read()
        earlier = [line for line in _lines_of(record) if line["attempt"] < self.folder.attempt]
        return add_energy(earlier, self.meters.counted_domains)[0] if earlier else 0.0

    def _measure_idle(self, stop_requested) -> None:
        """Power with the programs loaded and nothing dispatched; sleeps in short naps."""
        idle_s = self.plan.config.idle_seconds
        if not idle_s or not self.meters.domains:
            return
        with self.ledger.phase("other"):
            _nap(_SETTLE_S, stop_requested)
        if stop_requested():  # an instant of idle would tell no power
            return
        with self.ledger.phase("idle"):
            _nap(idle_s, stop_requested)

    def write_when_stuck(self, signum: int) -> None:
        """In the watcher thread: the main thread did not answer a signal in time."""
        self.ledger.abandon()
        self._write_summary("preempted", f"signal {signum} came while the main thread was busy")
        self.observer.say(
            f"ended by signal {signum} amid a compilation or the like; the same command goes on "
            "from the last checkpoint"
        )

    def _write_summary(self, status: str, why: str | None) -> dict[str, Any]:
        """Writes `summary.json`; only the first call does, so two threads cannot both."""
        with self._writing:
            if self._summary is None:
                record = self.folder.read()
                facts = {"status": status, "why": why, "warnings": self._warnings(record)}
                self._summary = summarise(
                    self.plan.config.to_json(),
                    record.windows,
                    record.metrics,
                    {**self._facts, **facts},
                    estimators=energy,
                )
                self.folder.write_summary(self._summary)
            return self._summary

    def _warnings(self, record: Run) -> list[str]:
        """Where two sensors of a domain disagree, and where windows were too short."""
        own = [line for line in _lines_of(record) if line["attempt"] == self.folder.attempt]
        joules = {domain.name: add_energy(own, [domain.name])[0] for domain in self.meters.domains}
        checks = (
            *self.meters.cross_checks(),
            *compare_sources(joules, self.meters.counted_domains),
        )
        warnings = [str(check) for check in checks if not check.agrees]
        training = [line for line in own if line["phase"] == "train"]
        error = relative_window_error(training, self.meters.counted_domains)
        if error is not None and error > TARGET_RELATIVE_SE:
            warnings.append(
                f"a window's joules are uncertain by {error:.1%} (median), more than the "
                f"{TARGET_RELATIVE_SE:.0%} aimed at: windows were too short for the counter's tick"
            )
        return warnings


def _lines_of(record: Run) -> list[dict[str, Any]]:
    """The lines of a run's `windows.jsonl` without the events among them."""
    return [line for line in record.windows if "phase" in line]


def _nap(duration_s: float, stop_requested) -> None:
    end_s = time.monotonic() + duration_s
    while (left_s := end_s - time.monotonic()) > 0 and not stop_requested():
        time.sleep(min(left_s, 0.2))
