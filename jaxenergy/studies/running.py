"""From names of studies to their verdicts on disk: probe, sweep, judge, record.

The runs of all studies are one sweep, in which equal runs are one. The instrument is judged first,
since it says whether joules may be judged at all. Each study's result is `OUT/studies/NAME.json`,
`NAME-csv.json` where others' data were judged, written atomically.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy import sweeps
from jaxenergy.config import PROTOCOL, RunConfig
from jaxenergy.errors import RunError, UsageError
from jaxenergy.records import read_runs
from jaxenergy.records.files import make_folder, plain_text, read_document, write_json_atomic
from jaxenergy.studies import STUDIES
from jaxenergy.studies.core import SCHEMA, Study, Verdict, gate_of, judge, to_json
from jaxenergy.studies.grids import Context
from jaxenergy.studies.layouts import read_csv_rows
from jaxenergy.studies.probe import run_probe
from jaxenergy.studies.table import ENERGY, TIME, Quantity, Row, Table, has_diverged

RESULTS_FOLDER = "studies"
_OF_CSV = "-csv"  # behind a study's name: others' data never take the place of one's own
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Rounds of the instrument's probe, and seconds of each of its four parts.
_PROBE = {"smoke": (2, 0.2), "small": (8, 1.0), "gpu": (8, 1.5), "full": (20, 3.0)}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes:
        names: of studies.
        context: budget and settings of the runs.
        out: the folder of runs and results.
        meters: as for a run.
        powercap_root: where the powercap tree is.
        lock_dir: where the locks of this machine's devices are.
        command: the command line that repeats it, as it may be published.
        machines: folders of results of several machines, for the study `hardware`.
        csv: others' files in place of runs.
        csv_dataset: which data set of those files.
    """

    names: tuple[str, ...]
    context: Context
    out: Path
    meters: str
    powercap_root: str
    lock_dir: str
    command: str
    machines: tuple[Path, ...] = ()
    csv: tuple[Path, ...] = ()
    csv_dataset: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        records: the content of each study's file, in order.
        files: where they are.
        failed: sentences about runs that failed.
        exit_status: of a process that did this.
    """

    records: tuple[Mapping[str, Any], ...]
    files: tuple[Path, ...]
    failed: tuple[str, ...] = ()
    exit_status: int = 0


def designs(request: Request) -> dict[str, list[RunConfig]]:
    """The runs of each study."""
    return {name: STUDIES[name].design(request.context) for name in request.names}


def possible(context: Context, leave_out: Callable[[str], None]) -> tuple[str, ...]:
    """The studies that have a design for a data set; `leave_out` is told of each other, and why.

    Raises:
        UsageError: none has.
    """
    names, refusal = [], None
    for name in STUDIES:
        try:
            STUDIES[name].design(context)
        except UsageError as error:
            refusal = error
            leave_out(f"{name} is left out: {str(error).splitlines()[0]}")
        else:
            names.append(name)
    if refusal is not None and not names:
        raise refusal
    return tuple(names)


def all_runs(designed: Mapping[str, Sequence[RunConfig]]) -> list[RunConfig]:
    """The runs of all studies, each once."""
    return list({config.id: config for runs in designed.values() for config in runs}.values())


def run(
    request: Request,
    observer: sweeps.Observer,
    judged: Callable[[Mapping[str, Any]], None] = lambda record: None,
) -> Outcome:
    """Does what is left of the runs, judges every study, writes their files.

    Args:
        request: what is wanted.
        observer: told how the sweep goes.
        judged: called with each study's record as soon as it is written.

    Returns:
        The records; none of them where the sweep was stopped, which the same call goes on with.

    Raises:
        UsageError: a run cannot be run here, a file is of no known layout, or two folders of
            `machines` have one name.
        RunError: runs of different conditions would have to be mixed.
    """
    if request.csv:
        return _judge_csv(request, judged, observer.say)
    _machine_names(request.machines)  # refused before the runs, not after them
    make_folder(request.out / RESULTS_FOLDER)
    designed = designs(request)
    configs = all_runs(designed)
    rows: dict[str, Row] = {}
    machine: dict[str, Any] = {}
    failed: list[str] = []
    status = 0
    if configs:
        _use_own_cache(request.out)
        result = sweeps.run(
            sweeps.plan(configs),
            out=request.out,
            observer=observer,
            lock_dir=request.lock_dir,
            command=request.command.split(),
        )
        if result.signum is not None:
            return Outcome((), (), exit_status=result.exit_status)
        result.comparable()  # refuses a mixture
        devices = result.devices
        for conditions in result.conditions:
            machine = conditions.to_json()
        for cell in result.cells:
            if cell.path is not None:
                rows[cell.run_id] = read_runs(cell.path)[0]
            if cell.state != "completed":
                failed.append(f"{cell.name}: {cell.state}, {plain_text(cell.why, 200)}")
                # Some set-ups of a grid diverge, which is a finding and no fault.
                if not has_diverged({"state": cell.state, "why": cell.why}):
                    status = 1
    else:
        devices = sweeps.find_devices(request.meters, request.powercap_root)
    rounds, seconds = _PROBE[request.context.budget]
    observer.say("instrument: idle and loads")
    folder, say = request.out / RESULTS_FOLDER, observer.say
    who = f"a study that measures into {folder}"
    with sweeps.DeviceLocks(devices, request.lock_dir, who=who, say=say):
        probed = run_probe(
            folder / "instrument-probe.json",
            request.meters,
            request.powercap_root,
            rounds,
            seconds,
        )
    machine = machine or {"provenance": probed["provenance"]}
    instrument = STUDIES["instrument"]
    probe_table = Table(probed["rows"])
    instrument_verdicts = _judge_instrument(instrument, probe_table, probed)
    gate = gate_of(instrument, instrument_verdicts)
    records, files = [], []
    for name in request.names:
        study = STUDIES[name]
        provenance, ids = probed["provenance"], [config.id for config in designed[name]]
        if study.probes:
            table, verdicts = probe_table, instrument_verdicts
        elif name == "hardware":
            table = Table(_machine_rows(request.machines))
            verdicts, provenance = judge(study, table), table.provenance
            ids = sorted({row["config.id"] for row in table.rows})
        else:
            found = [rows[one] for one in ids if one in rows]
            if study.measure is not None:
                with sweeps.DeviceLocks(devices, request.lock_dir, who=who, say=say):
                    found = study.measure(request.context, designed[name], rows, folder, say)
            table = Table(found)
            verdicts, provenance = judge(study, table, gate=gate), table.provenance
        record = _record(request, study, table, verdicts, provenance, ids, machine)
        records.append(record)
        files.append(_write(request.out, record))
        judged(record)
    return Outcome(tuple(records), tuple(files), tuple(failed), status)


def _judge_instrument(study: Study, table: Table, probed: Mapping[str, Any]) -> list[Verdict]:
    """The instrument's verdicts; void with the meters' own words where there is no counter."""
    verdicts = judge(study, table)
    if probed["rows"]:
        return verdicts
    why = f"no counter to be judged here: {probed['why']}"
    return [dataclasses.replace(verdict, verdict="void", why=why) for verdict in verdicts]


def _record(
    request: Request,
    study: Study,
    table: Table,
    verdicts: Sequence[Verdict],
    provenance: str,
    ids: Sequence[str],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    record = to_json(
        study,
        verdicts,
        budget="csv" if request.csv else request.context.budget,
        provenance=provenance,
        runs=ids,
        command=request.command,
        protocol=0 if request.csv else PROTOCOL,
        machine=machine,
    )
    record["dataset"] = request.csv_dataset if request.csv else request.context.main_dataset
    if study.describe is not None:
        quantities: tuple[Quantity, ...] = (ENERGY, TIME)
        record["details"] = {
            quantity.name: study.describe(table, quantity) for quantity in quantities
        }
    return record


def _write(out: Path, record: Mapping[str, Any]) -> Path:
    suffix = _OF_CSV if record["budget"] == "csv" else ""
    path = out / RESULTS_FOLDER / f"{record['study']}{suffix}.json"
    write_json_atomic(path, record)
    return path


def _use_own_cache(out: Path) -> None:
    """Keeps the runs' compiled programs with them, unless the user has chosen a place.

    In the common place they may have been compiled by other work, and nothing could be told of
    what compiling costs.
    """
    if _CACHE_VARIABLE in os.environ:
        return
    cache = (out / RESULTS_FOLDER / "compiled").resolve()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.chmod(0o700)  # what is in it is run unasked
    os.environ[_CACHE_VARIABLE] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _machine_names(folders: Sequence[Path]) -> list[str]:
    """What each machine is called: its folder's name.

    Raises:
        UsageError: two are called the same, and would be taken for one machine.
    """
    names = [folder.resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"--machines: {names.count(name)} folders are named {plain_text(name, 60)}, and a "
                "machine is called by its folder's name.\nAllowed: a name for each."
            )
    return names


def _machine_rows(folders: Sequence[Path]) -> list[Row]:
    """The runs of several folders, each marked with its folder's name.

    Raises:
        RunError: they are of different protocols.
    """
    rows: list[Row] = []
    for folder, name in zip(folders, _machine_names(folders), strict=True):
        rows.extend({**row, "machine": name} for row in read_runs(folder))
    protocols = sorted(
        {str(row.get("config.protocol")) for row in rows if row["state"] == "completed"}
    )
    if len(protocols) > 1:
        raise RunError(
            f"The folders hold runs of protocols {' and '.join(protocols)}, which are not compared."
        )
    return rows


def _judge_csv(
    request: Request, judged: Callable[[Mapping[str, Any]], None], say: Callable[[str], None]
) -> Outcome:
    """Judges others' measurements by the same tests."""
    left_out: list[str] = []
    table = Table(read_csv_rows(request.csv, request.csv_dataset, left_out.append))
    for text in left_out:
        say(text)
    make_folder(request.out / RESULTS_FOLDER)
    machine = {
        "files": [path.name for path in request.csv],
        "data set": request.csv_dataset,
        "left out": left_out,
    }
    records, files = [], []
    for name in request.names:
        study = STUDIES[name]
        verdicts = judge(study, table)
        record = _record(request, study, table, verdicts, table.provenance, [], machine)
        records.append(record)
        files.append(_write(request.out, record))
        judged(record)
    return Outcome(tuple(records), tuple(files))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The studies' files below a folder, in the order of `STUDIES`.

    Raises:
        UsageError: there is none.
    """
    found = []
    for name in (f"{name}{suffix}" for name in STUDIES for suffix in ("", _OF_CSV)):
        path = folder / RESULTS_FOLDER / f"{name}.json"
        record = read_document(path) if path.is_file() else None
        if record is not None and record.get("schema") == SCHEMA:
            found.append(record)
    if not found:
        raise UsageError(
            f"{plain_text(folder)} holds no study's result ({RESULTS_FOLDER}/NAME.json)."
        )
    return found
