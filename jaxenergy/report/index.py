"""What a report knows of each run, read once and remembered until a file of the run changes.

Ten thousand run folders take a minute to read and milliseconds to recognise: of each folder the
sizes and times of its files are kept beside what was read, so that a report made again reads what
changed. Everything here comes from files that anybody may have written, so a value is taken for
what it should be (a number, a line of text) or not at all.
"""

import bisect
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy import __version__
from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError
from jaxenergy.records import Run, read_run
from jaxenergy.records.files import RecordError, plain_text, read_document
from jaxenergy.records.reader import find_folders, is_superseded
from jaxenergy.records.schema import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FOREIGN,
    LOST,
    METRICS_FILE,
    SUMMARY_FILE,
    WINDOWS_FILE,
)
from jaxenergy.records.summary import add_energy, label_lines

# What studies, sweeps and comparisons leave beside their runs; a study's may be studies/NAME.json.
DOCUMENTS = frozenset({"study.json", "sweep.json", "compare.json"})
STUDIES_FOLDER = "studies"
_MAX_DOCUMENT_BYTES = 1 << 25
CACHE_FILE = ".index.json"

_FILES = (CONFIG_FILE, SUMMARY_FILE, WINDOWS_FILE, METRICS_FILE, ENVIRONMENT_FILE)
_MOST_CURVE_POINTS = 40
_BATCH = 25  # runs that a process reads at a time
_PARALLEL_FROM = 100  # fewer are read before another process has started
_LONGEST_NAME = 80

# Settings that change what an update costs; runs that share them all differ in their seeds, their
# lengths and their learning rates only.
COST_SETTINGS = (
    *("model", "depth", "width", "model_args", "activation"),
    *("optimizer", "optimizer_args", "weight_decay", "clip_norm"),
    *("batch_size", "accumulate", "augment", "precision", "forms", "dataset", "trainable"),
    *("task_weights", "task_sampling"),
)
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Index:
    """All that was found below a folder.

    Attributes:
        root: the folder.
        runs: a record per run's folder, foreign ones among them, in the order of their paths; the
            keys are those of `make_record`.
        documents: the JSON documents of studies, sweeps and comparisons: path relative to `root`
            and content, or a reason instead of it.
        changed: paths, relative to `root`, of the runs that were read anew, foreign folders not
            among them.
    """

    root: Path
    runs: list[Record]
    documents: list[tuple[str, dict[str, Any] | str]]
    changed: frozenset[str]

    def in_state(self, *states: str) -> list[Record]:
        """The runs in some states."""
        return [run for run in self.runs if run["state"] in states]


def build_index(
    root: Path,
    cache: Mapping[str, Any],
    *,
    skip: Path | None = None,
    visit: Callable[[Run, Record], None] | None = None,
    is_fresh: Callable[[Record], bool] = lambda record: True,
) -> tuple[Index, dict[str, Any]]:
    """Reads what is below a folder, as far as it is not known from the last time.

    Args:
        root: the folder.
        cache: what the last call returned beside the index; empty for none.
        skip: a folder to leave out: the report's own.
        visit: called with each run that is read anew, maybe in another process.
        is_fresh: whether what `visit` made of a run is still there.

    Returns:
        The index, and the cache for the next call.

    Raises:
        UsageError: there is no such folder.
    """
    check_root(root)
    real_skip = os.path.realpath(skip) if skip is not None else None
    known = cache.get("runs", {}) if cache.get("reader") == reader_version() else {}
    runs, documents, places = [], [], []
    for found in find_folders(root, _is_document):
        if real_skip is not None and _is_below(found.path, real_skip):
            continue
        relative = os.path.relpath(found.path, root)
        if relative == ".":  # the folder given is itself a run
            relative = os.path.realpath(root).rpartition(os.sep)[2] or "run"
        if found.kind == "document":
            documents.append((plain_text(relative, 4096), _read_json(found.path)))
        elif found.kind == "run" and not is_superseded(found.path.name):
            places.append((relative, found.path))
        elif found.kind == FOREIGN or (
            found.kind == "nothing"
            and not _is_hidden(relative)
            and not _is_of_a_report(found.path, root)
        ):
            runs.append(_foreign(relative, found.path, found.why))
    pages = choose_page_names([relative for relative, _ in places])
    remembered: dict[str, Any] = {}
    missing = []
    for relative, path in places:
        signature = _signature(path)
        page, old = pages[relative], known.get(relative)
        if (
            old is None
            or old[0] != signature
            or old[1].get("page") not in (page, None)
            or not is_fresh(old[1])
        ):
            missing.append((relative, path, page))
        remembered[relative] = [signature, old[1] if old else None]
    for relative, record in _read_all(missing, visit):
        remembered[relative][1] = record
    for relative, path in places:
        record = remembered[relative][1]
        runs.append({**record, "folder": os.fspath(path)})
    runs.sort(key=lambda record: record["path"])
    changed = frozenset(
        relative for relative, _, _ in missing if remembered[relative][1]["state"] != FOREIGN
    )
    index = Index(root, runs, documents, changed)
    return index, {"reader": reader_version(), "runs": remembered}


def check_root(root: Path) -> None:
    """Raises `UsageError` where there is no such folder."""
    if not root.is_dir():
        raise UsageError(f"{plain_text(root)} is no folder. Give the folder that holds the runs.")


@functools.cache
def reader_version() -> str:
    """Changes with whatever decides what a report says: its own files, the package's version."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def choose_page_names(relatives: Sequence[str]) -> dict[str, str]:
    """A file name for each run's page that is safe everywhere, and unlike the others.

    Args:
        relatives: paths of the runs, relative to the folder that was searched.

    Returns:
        Path -> name. A run in that folder itself, of plain letters, keeps its name; anything else
        gets a hash of its path behind what is plain in it.
    """
    taken: set[str] = set()
    names = {}
    for relative in relatives:
        name = relative
        # Also where another differs by capital letters alone, which some file systems do not tell.
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.+-]{{0,{_LONGEST_NAME}}}", name) or (
            name.casefold() in taken
        ):
            digest = hashlib.sha256(relative.encode(errors="surrogatepass")).hexdigest()[:10]
            plain = re.sub(r"[^A-Za-z0-9]+", "-", relative)[:_LONGEST_NAME].strip("-")
            name = f"{plain}-{digest}".removeprefix("-")
        taken.add(name.casefold())
        names[relative] = f"{name}.html"
    return names


# ------------------------------------------------------------------------------- one run's record


def make_record(run: Run, relative: str, page: str) -> Record:
    """What the report shows and compares of a run.

    Args:
        run: the run.
        relative: its path, relative to the folder that was searched.
        page: the file name of its page.

    Returns:
        A flat record of text and numbers (None where there is none; text is fit to be shown, only
        `folder` is the path as the system has it), and: `by_phase` and
        `by_domain` {name: [joules or None, standard error or None]}, `curve` [[update, joules
        without compiling, validation accuracy], …], `settings` (those of `COST_SETTINGS`, as
        resolved), `warnings` (sentences), `idle_w` {domain: watts}. `energy_j` is the run's own
        account; runs are compared by `without_compiling_j`.
    """
    if run.state == FOREIGN:
        return {**_foreign(relative, run.path, run.why), "page": None}
    config, summary = run.config or {}, run.summary or {}
    resolved = _table(config.get("resolved"))
    faults: list[str] = []

    def read(what: str) -> Any:
        try:
            return getattr(run, what)
        except RecordError as error:
            faults.append(plain_text(error))
            return [] if what != "environment" else None

    environment, windows, metrics = read("environment") or {}, read("windows"), read("metrics")
    labelled = label_lines(windows)
    domains = _counted_domains(summary, resolved)
    energy = _table(summary.get("energy_j"))
    final, target = _table(summary.get("final")), _table(summary.get("target"))
    per_update, per_example = (
        _table(summary.get(key)) for key in ("per_update_j", "per_example_j")
    )
    settings = {name: _shown(resolved.get(name, config.get(name))) for name in COST_SETTINGS}
    if isinstance(resolved.get("dataset"), dict):  # facts about the data set, not its name
        settings["dataset"] = _shown(config.get("dataset"))
    settings["weight_decay"] = _shown(config.get("weight_decay"))
    settings["optimizer_args"] = _shown(config.get("optimizer_args"))
    settings["model_args"] = _shown(config.get("model_args"))
    learning_rate = _number(resolved.get("learning_rate"))
    if learning_rate is None:
        learning_rate = _number(config.get("learning_rate"))
    low, high = _interval(per_update.get("ci95"))
    net_low, net_high = _interval(energy.get("net_total_ci95"))
    provenance = summary.get("provenance") or resolved.get("provenance")
    compiled = _table(summary.get("compiled"))
    why = run.why
    if faults:
        why = "; ".join([*([why] if why else []), *faults])
    return {
        "name": plain_text(run.name, 300),
        "path": plain_text(relative, 1000),
        "page": page,
        "state": run.state,
        "why": why,
        "status": plain_text(summary.get("status") or run.state),
        "provenance": _provenance(provenance),
        "id": _line(config.get("id")),
        "protocol": _number(config.get("protocol")),
        "framework": _line(config.get("framework")) or "jax",
        "device": _device(environment),
        "counted": plain_text(" + ".join(domains), 200),
        "jaxlib": _line(_table(environment.get("versions")).get("jaxlib")),
        "data": _line(_table(resolved.get("dataset")).get("digest")),
        "recorded_at": _line(environment.get("recorded_at")),
        "model": _line(config.get("model")),
        "dataset": _line(config.get("dataset")),
        "depth": _number(settings["depth"]),
        "width": _number(settings["width"]),
        "activation": _line(settings["activation"]),
        "optimizer": _line(config.get("optimizer")),
        "batch_size": _number(config.get("batch_size")),
        "learning_rate": learning_rate,
        "precision": _line(config.get("precision")),
        "seed": _number(config.get("seed")),
        "parameters": _number(summary.get("parameters")),
        "updates": _number(summary.get("updates")),
        "examples": _number(summary.get("examples")),
        "duration_s": _number(summary.get("duration_s")),
        "energy_j": _number(energy.get("total")),
        "without_compiling_j": without_compiling_j(summary),
        "energy_se_j": _error_of_sum(
            [line for label, line in labelled if label != "idle"], domains
        ),
        "energy_why": _line(_table(energy.get("why")).get("total")),
        "metered_j": _number(energy.get("metered")),
        "net_j": _number(energy.get("net_total")),
        "net_low_j": net_low,
        "net_high_j": net_high,
        "per_update_j": _number(per_update.get("mean")),
        "per_update_low_j": low,
        "per_update_high_j": high,
        "per_update_windows": _number(per_update.get("windows")),
        "per_update_why": _line(per_update.get("why")),
        "per_example_j": _number(per_example.get("mean")),
        "per_token_j": _number(_table(summary.get("per_token_j")).get("mean")),
        "bits_per_character": _number(
            final.get("test_bits_per_character", final.get("validation_bits_per_character"))
        ),
        "return": _number(final.get("test_return", final.get("validation_return"))),
        "train_loss": _number(final.get("train_loss")),
        "validation_accuracy": _number(final.get("validation_accuracy")),
        "test_accuracy": _number(final.get("test_accuracy")),
        "target_accuracy": _number(target.get("accuracy")),
        "target_energy_j": _number(target.get("energy_j")),
        "compile_j": _number(compiled.get("compile_j")),
        "flops_per_update": _number(compiled.get("flops_per_update")),
        "idle_w": {
            plain_text(name, 60): _number(watts)
            for name, watts in _table(energy.get("idle_w")).items()
        },
        "by_phase": _joules_with_error(energy.get("by_phase"), labelled, domains),
        "by_domain": {
            name: [joules, _error_of_sum([line for _, line in labelled], (name,))]
            for name, joules in _numbers(energy.get("by_domain")).items()
        },
        "curve": _curve(metrics, labelled, domains),
        "settings": settings,
        "warnings": [
            plain_text(text) for text in summary.get("warnings") or () if isinstance(text, str)
        ]
        if isinstance(summary.get("warnings"), list)
        else [],
        "command": command_of(config),
    }


def without_compiling_j(summary: Mapping[str, Any]) -> float | None:
    """The joules by which runs are compared with each other: without idle and without compiling.

    A run that found its programs in the compilation cache took a part of what compiling anew takes,
    and which run of a set-up comes first is chance.

    Args:
        summary: as in `summary.json`.

    Returns:
        Joules; None where the whole, or the part of compiling, is not known.
    """
    total_j = _number(_table(summary.get("energy_j")).get("total"))
    compile_j = _number(_table(summary.get("compiled")).get("compile_j"))
    return None if total_j is None or compile_j is None else total_j - compile_j


def command_of(config: Mapping[str, Any]) -> str:
    """The command line that makes a run of a config: its settings that are not the default."""
    words = ["python -m experiments.run"]
    for field in dataclasses.fields(RunConfig):
        value = config.get(field.name, field.default)
        if field.name in ("out", "name", "resume", "overwrite", "keep", "quiet", "verbose"):
            continue
        if value == field.default or not isinstance(value, bool | int | float | str):
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else f"--no{field.name}")
        else:
            # All digits of a number: with fewer it would be another run's command.
            shown = repr(value) if isinstance(value, float) else plain_text(value)
            words.append(f"--{field.name}={shlex.quote(shown)}")
    return " ".join(words)


def _foreign(relative: str, path: Path, why: str) -> Record:
    return {
        "name": plain_text(path.name, 300),
        "path": plain_text(relative, 1000),
        "page": None,
        "folder": os.fspath(path),
        "state": FOREIGN,
        "why": plain_text(why),
    }


def _counted_domains(summary: Mapping[str, Any], resolved: Mapping[str, Any]) -> tuple[str, ...]:
    for source in (_table(summary.get("energy_j")), resolved):
        domains = source.get("counted_domains")
        if isinstance(domains, list):
            return tuple(name for name in domains if isinstance(name, str))
    return ()


def _joules_with_error(
    by_phase: Any, labelled: Sequence[tuple[str, Mapping]], domains: Sequence[str]
) -> dict[str, list[float | None]]:
    lines: dict[str, list[Mapping]] = {}
    for label, line in labelled:
        lines.setdefault(label, []).append(line)
    return {
        phase: [joules, _error_of_sum(lines.get(phase, []), domains)]
        for phase, joules in _numbers(by_phase).items()
    }


def _error_of_sum(lines: Iterable[Mapping[str, Any]], domains: Sequence[str]) -> float | None:
    """One standard error of the joules of lines: an edge between two of them cancels.

    Args:
        lines: lines of `windows.jsonl`, in file order.
        domains: the domains that are added.

    Returns:
        Joules, or None where a line does not say.
    """
    variance, ended_ns, last_j2 = 0.0, None, 0.0
    for line in lines:
        errors = line.get("uncertainty_j")
        values = [_number(_table(errors).get(name)) for name in domains]
        known = [value for value in values if value is not None]
        if not values or len(known) < len(values):
            return None
        half_j2 = sum(value * value for value in known) / 2
        if line["start_ns"] != ended_ns:
            variance += last_j2 + half_j2
        ended_ns, last_j2 = line["end_ns"], half_j2
    return math.sqrt(variance + last_j2) if ended_ns is not None else None


def _curve(
    metrics: Sequence[Mapping], labelled: Sequence[tuple[str, Mapping]], domains: Sequence[str]
) -> list[list[float]]:
    """Evaluations as [update, joules without compiling, validation accuracy], evenly thinned."""
    latest = {line["update"]: line for line in metrics}
    compiled_j = _compiled_until(labelled, domains)
    reached = sorted(compiled_j)
    points = []
    for update in sorted(latest):
        joules = _number(latest[update].get("energy_j"))
        accuracy = latest[update].get("validation_accuracy")
        place = bisect.bisect_right(reached, update) - 1
        compile_j = compiled_j[reached[max(place, 0)]] if reached else None
        if joules is not None and compile_j is not None and accuracy is not None:
            points.append([update, joules - compile_j, accuracy])
    step = max(1, math.ceil(len(points) / _MOST_CURVE_POINTS))
    return points[::-1][::step][::-1]


def _compiled_until(
    labelled: Sequence[tuple[str, Mapping]], domains: Sequence[str]
) -> dict[int, float | None]:
    """What had been spent on compiling, by the update that was reached; an attempt adds its own."""
    compiling: list[Mapping] = []
    compile_j: float | None = None
    found = {}
    for label, line in labelled:
        if label == "compile":
            compiling.append(line)
            compile_j, _ = add_energy(compiling, domains)
        elif label != LOST and line.get("first_update") is not None:
            found[line["first_update"] + (line.get("updates") or 0)] = compile_j
    return found


def _device(environment: Mapping[str, Any]) -> str:
    """The devices a run computed on, in words."""
    names: dict[str, int] = {}
    cpu = _table(environment.get("cpu"))
    devices = environment.get("devices")
    for device in devices if isinstance(devices, list) else ():
        if isinstance(device, dict):
            name = _line(device.get("name"))
            if device.get("platform") == "cpu":
                name = f"{_line(cpu.get('model'))}, {cpu.get('usable_cores')} cores"
            names[name] = names.get(name, 0) + 1
    return plain_text(
        "; ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items()), 200
    )


def _provenance(value: Any) -> str:
    return value if value in ("measured", "simulated", "estimated") else "none"


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | int | None:
    """A number that JSON gave, or None."""
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _numbers(value: Any) -> dict[str, float | None]:
    return {plain_text(name, 60): _number(number) for name, number in _table(value).items()}


def _interval(value: Any) -> tuple[float | None, float | None]:
    if isinstance(value, list) and len(value) == 2:
        low, high = _number(value[0]), _number(value[1])
        if low is not None and high is not None:
            return low, high
    return None, None


def _line(value: Any) -> str:
    return "" if value is None else plain_text(value, 200)


def _shown(value: Any) -> Any:
    """A setting as a value that can be compared: a number, a truth, text or None."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return plain_text(value if isinstance(value, str) else json.dumps(value, sort_keys=True), 300)


# --------------------------------------------------------------------------------- many runs


def _signature(path: Path) -> list[list[int]]:
    """Changes when a file of a run does."""
    found = []
    for name in _FILES:
        try:
            facts = os.lstat(os.path.join(path, name))
        except OSError:
            found.append([])
        else:
            found.append([facts.st_mtime_ns, facts.st_size, facts.st_ino])
    return found


def _read_all(
    missing: Sequence[tuple[str, Path, str]], visit: Callable[[Run, Record], None] | None
) -> Iterable[tuple[str, Record]]:
    """Reads runs, with all processors where there are many."""
    processes = min(len(os.sched_getaffinity(0)), 8)
    if len(missing) < _PARALLEL_FROM or processes < 2:
        yield from _read_some(missing, visit)
        return
    batches = [missing[start : start + _BATCH] for start in range(0, len(missing), _BATCH)]
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        for records in pool.map(functools.partial(_read_some, visit=visit), batches):
            yield from records


def _read_some(
    places: Sequence[tuple[str, Path, str]], visit: Callable[[Run, Record], None] | None
) -> list[tuple[str, Record]]:
    records = []
    for relative, path, page in places:
        try:
            run = read_run(path)
            record = make_record(run, relative, page)
        except (UsageError, OSError) as error:  # it vanished, or cannot be read, meanwhile
            record = _foreign(relative, path, str(error))
        else:
            if visit is not None and record["page"] is not None:
                visit(run, record)
        records.append((relative, record))
    return records


def _read_json(path: Path) -> dict[str, Any] | str:
    try:
        document = read_document(path, _MAX_DOCUMENT_BYTES)
    except RecordError as error:
        return plain_text(error)
    return document if document is not None else "it vanished while it was read"


def _is_document(folder: str, name: str) -> bool:
    return name in DOCUMENTS or (folder == STUDIES_FOLDER and name.endswith(".json"))


def _is_below(path: Path, real_folder: str) -> bool:
    real = os.path.realpath(path)
    return real == real_folder or real.startswith(real_folder + os.sep)


def _is_of_a_report(path: Path, root: Path) -> bool:
    """Whether a folder below the root is one that some report wrote, or lies in such a one."""
    folders = (path, *path.parents)
    below = folders[: folders.index(root)] if root in folders else ()
    return any((folder / CACHE_FILE).exists() for folder in below)


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in Path(relative).parts)
