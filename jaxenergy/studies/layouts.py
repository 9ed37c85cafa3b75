"""Others' published measurements as rows that the studies take: `--from_csv`.

Three layouts are known, told apart by their columns (docs/studies.md documents them): a table of
runs of this library, the traces of Zeus, and those of the optimizer-energy-study. What a layout
does not say is absent from the rows, and the studies that need it say so.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.records.files import plain_text
from jaxenergy.units import J_PER_KWH

Row = dict[str, Any]
_MAX_CELL = 1 << 20  # an epoch log in a cell may be long

ZEUS_TRAIN = (
    "dataset",
    "network",
    "batch_size",
    "optimizer",
    "learning_rate",
    "run",
    "target_metric",
    "target_epoch",
)
ZEUS_POWER = (
    "dataset",
    "network",
    "batch_size",
    "optimizer",
    "power_limit",
    "time_per_epoch",
    "average_power",
)
EPOCHS = ("experiment_id", "dataset", "optimizer", "seed", "epoch", "val_acc", "epoch_time")
EMISSIONS = ("project_name", "duration", "energy_consumed")
RUNS = ("config.model", "config.seed", "updates")
_LAYOUTS = {
    "a table of runs": RUNS,
    "Zeus, summary_train": ZEUS_TRAIN,
    "Zeus, summary_power": ZEUS_POWER,
    "optimizer-energy-study, epoch_details": EPOCHS,
    "optimizer-energy-study, emissions": EMISSIONS,
}
# A target that most runs reach can be compared; the hardest of those tells most.
_REACHED_BY = 0.8


def read_csv_rows(
    paths: Sequence[str | Path],
    dataset: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Reads files of one of the layouts.

    Args:
        paths: the files: one table of runs; or Zeus's train and power traces; or epoch_details and
            emissions of the optimizer-energy-study.
        dataset: which of several data sets in the files is meant.
        say: told what of the files is left out, and why.

    Returns:
        Rows as `read_runs` would give them.

    Raises:
        UsageError: a file cannot be read, has other columns, or a value is no number; a second
            file is missing; there are several data sets and none is named.
    """
    files = {}
    for path in paths:
        layout, rows = _read(Path(path))
        if layout in files:
            raise UsageError(f"--from_csv: two files are {layout}.\nAllowed: one of each.")
        files[layout] = rows
    if "a table of runs" in files:
        _only(files, ("a table of runs",))
        rows = _one_dataset(files["a table of runs"], "config.dataset", dataset)
        return [_typed(row) for row in rows]
    if any(name.startswith("Zeus") for name in files):
        wanted = ("Zeus, summary_train", "Zeus, summary_power")
        _only(files, wanted)
        train, power = (_one_dataset(files[name], "dataset", dataset) for name in wanted)
        return _zeus(train, power, say)
    wanted = ("optimizer-energy-study, epoch_details", "optimizer-energy-study, emissions")
    _only(files, wanted)
    return _optimizers(_one_dataset(files[wanted[0]], "dataset", dataset), files[wanted[1]], say)


def _read(path: Path) -> tuple[str, list[dict[str, str]]]:
    """A file's layout and its lines."""
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            rows = list(reader)
    except OSError as error:
        raise UsageError(f"--from_csv={plain_text(path)}: {error.strerror or error}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"--from_csv={plain_text(path)} is no CSV file: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    for layout, wanted in _LAYOUTS.items():
        if set(wanted) <= set(columns):
            if not rows:
                raise UsageError(f"--from_csv={plain_text(path)} has columns and no line.")
            return layout, [{**row, "": f"{path}:{i}"} for i, row in enumerate(rows, start=2)]
    near = max(_LAYOUTS, key=lambda name: len(set(_LAYOUTS[name]) & set(columns)))
    missing = [column for column in _LAYOUTS[near] if column not in columns]
    raise UsageError(
        f"--from_csv={plain_text(path)} is of no known layout.\n"
        f"Nearest: {near}; it lacks {', '.join(missing)}.\n"
        f"Allowed: {'; '.join(_LAYOUTS)} (docs/studies.md)."
    )


def _only(files: Mapping[str, Any], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in files]
    beside = [name for name in files if name not in wanted]
    if missing or beside:
        raise UsageError(
            f"--from_csv: got {'; '.join(files)}.\nAllowed together: {' and '.join(wanted)}."
        )


def _one_dataset(rows: list[dict[str, str]], column: str, wanted: str | None) -> list:
    """The lines of one data set; the only one, or the one that is named."""
    found = sorted({row.get(column) or "" for row in rows})
    if wanted is None:
        if len(found) > 1:
            raise UsageError(
                f"--from_csv: the file has {len(found)} data sets, of which one is meant.\n"
                f"Allowed: --dataset={' or --dataset='.join(map(plain_text, found))}."
            )
        return rows
    if wanted not in found:
        raise unknown_value("--dataset", wanted, found)
    return [row for row in rows if row.get(column) == wanted]


def _number(row: Mapping[str, str], column: str) -> float:
    """A number of a line; NaN where it says so."""
    text = (row.get(column) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--from_csv={row['']}: {column}={plain_text(text, 40)} is no number."
        ) from None


def _positive(row: Mapping[str, str], column: str) -> float:
    value = _number(row, column)
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(
            f"--from_csv={row['']}: {column}={value:g} is not possible; allowed: above 0."
        )
    return value


def _typed(row: Mapping[str, str]) -> Row:
    """A run's line of text with numbers and truths as such; empty cells are absent."""
    words = {"true": True, "false": False, "none": None, "null": None}
    typed: Row = {"state": "completed", "why": "", "provenance": "none"}
    for name, text in row.items():
        if not name or text is None or not str(text).strip():
            continue
        if str(text).lower() in words:
            typed[name] = words[str(text).lower()]
            continue
        try:
            number = float(text)
            typed[name] = int(number) if number.is_integer() and "." not in text else number
        except (ValueError, OverflowError):
            typed[name] = text
    return typed


def _zeus(
    train: list[dict[str, str]], power: list[dict[str, str]], say: Callable[[str], None]
) -> list[Row]:
    """Zeus's traces: epochs to a metric by run, seconds and watts of an epoch by power limit.

    Joules of a run are epochs x seconds x watts at the highest power limit, the card's own.
    Of the metrics in the trace the hardest is taken that 80 % of the runs reach. A run that did not
    reach it ran at least until the last metric that it did reach, which is where it is censored.
    Costs per update are told per epoch over batch size, so that ratios of batch sizes are right.
    """
    highest = max(_positive(row, "power_limit") for row in power)
    epoch = {
        _cell(row): (_positive(row, "time_per_epoch"), _positive(row, "average_power"))
        for row in power
        if _number(row, "power_limit") == highest
    }
    runs: dict[tuple, dict[float, float]] = defaultdict(dict)
    first = {}
    for row in train:
        key = (*_cell(row), row["learning_rate"], row["run"])
        runs[key][_number(row, "target_metric")] = _number(row, "target_epoch")
        first[key] = row
    target = _hardest(list(runs.values()))
    rows = []
    for (network, batch_size, optimizer, rate, run), reached in runs.items():
        cell = (network, batch_size, optimizer)
        if cell not in epoch:
            continue
        seconds, watts = epoch[cell]
        at = reached.get(target, math.nan)
        last = max((value for value in reached.values() if not math.isnan(value)), default=1.0)
        epochs = last if math.isnan(at) else at
        size = int(_positive(first[(*cell, rate, run)], "batch_size"))
        # The number of examples is not in the trace: an epoch counts as 1e6 of them.
        updates = 1e6 / size * epochs
        rows.append(
            {
                "state": "completed",
                "why": "",
                "provenance": "measured",
                "config.model": network,
                "config.batch_size": size,
                "config.optimizer": optimizer.lower(),
                "config.learning_rate": float(rate),
                "config.seed": run,
                "updates": updates,
                "iterations": updates,
                "target.accuracy": target,
                "target.reached_at_update": None if math.isnan(at) else updates,
                "duration_by_phase_s.train": epochs * seconds,
                "duration_s": epochs * seconds,
                "energy_j.by_phase.train": epochs * seconds * watts,
                "energy_j.total": epochs * seconds * watts,
            }
        )
    if not rows:
        raise UsageError(
            "--from_csv: no run of summary_train has its network, batch size and optimizer in "
            "summary_power."
        )
    if len(rows) < len(runs):
        say(
            f"{len(runs) - len(rows)} of {len(runs)} runs are left out: summary_power lacks their "
            "network, batch size and optimizer at its highest power limit"
        )
    return rows


def _cell(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["network"], row["batch_size"], row["optimizer"]


def _hardest(runs: Sequence[Mapping[float, float]]) -> float:
    """The metric that takes most epochs, of the runs that reach it, among those most runs reach."""
    found: dict[float, list[float]] = defaultdict(list)
    for reached in runs:
        for metric, epochs in reached.items():
            if not math.isnan(epochs):
                found[metric].append(epochs)
    mean = {
        metric: sum(epochs) / len(epochs)
        for metric, epochs in found.items()
        if len(epochs) >= _REACHED_BY * len(runs)
    }
    if not mean:
        raise UsageError(
            f"--from_csv: no target_metric is reached by {100 * _REACHED_BY:.0f} % of the runs."
        )
    return max(mean, key=lambda metric: mean[metric])


def _optimizers(
    epochs: list[dict[str, str]], emissions: list[dict[str, str]], say: Callable[[str], None]
) -> list[Row]:
    """The optimizer-energy-study: accuracy by epoch, and joules of each whole experiment.

    The target is the highest validation accuracy, in steps of one per cent, that 80 % of the runs
    reach. Joules until then are those of the run by the share of its time in these epochs. They are
    CodeCarbon's, whose part for memory is a constant guess, so they are `estimated`.
    """
    joules = {
        row["project_name"]: _positive(row, "energy_consumed") * J_PER_KWH for row in emissions
    }
    runs: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in epochs:
        runs[row["experiment_id"]].append(row)
    for rows in runs.values():
        rows.sort(key=lambda row: _number(row, "epoch"))
    best = sorted(max(_number(row, "val_acc") for row in rows) for rows in runs.values())
    target = math.floor(100 * best[math.floor((1 - _REACHED_BY) * len(best))]) / 100
    table = []
    for name, rows in runs.items():
        if name not in joules:
            continue
        seconds = [_positive(row, "epoch_time") for row in rows]
        accuracies = [_number(row, "val_acc") for row in rows]
        reached = next((i for i, value in enumerate(accuracies, 1) if value >= target), None)
        table.append(
            {
                "state": "completed",
                "why": "",
                "provenance": "estimated",
                "config.model": "cnn",
                "config.optimizer": rows[0]["optimizer"].lower(),
                "config.seed": rows[0]["seed"],
                "updates": len(rows),
                "iterations": len(rows),
                "target.accuracy": target,
                "target.reached_at_update": reached,
                "final.validation_accuracy": accuracies[-1],
                "duration_by_phase_s.train": sum(seconds),
                "duration_s": sum(seconds),
                "energy_j.by_phase.train": joules[name],
                "energy_j.total": joules[name],
            }
        )
    if not table:
        raise UsageError(
            "--from_csv: no experiment_id of epoch_details is a project_name of emissions."
        )
    if len(table) < len(runs):
        say(
            f"{len(runs) - len(table)} of {len(runs)} experiments are left out: emissions has no "
            "project_name of theirs"
        )
    return table
