"""Hands the metrics of runs over to what people already use.

Each target is an optional package, imported when it is asked for. What goes over: the config, the
evaluations by update (loss, accuracy, joules so far), the power of each window, and the summary's
figures with their provenance, so that an estimate is not taken for a measurement there either.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxenergy.errors import RunError, UsageError
from jaxenergy.records import Run, read_run
from jaxenergy.records.files import RecordError, plain_text
from jaxenergy.records.schema import FOREIGN
from jaxenergy.report.build import check_out, read_report
from jaxenergy.report.index import CACHE_FILE, Record, check_root
from jaxenergy.report.writing import write_text
from jaxenergy.units import NS_PER_S

_PROJECT = "jaxenergy"
_SUMMARY_KEYS = (
    *("energy_j", "without_compiling_j", "net_j"),
    *("per_update_j", "per_update_low_j", "per_update_high_j"),
    *("per_example_j", "test_accuracy", "validation_accuracy", "train_loss", "target_energy_j"),
    *("updates", "parameters", "duration_s"),
)
_CONFIG_KEYS = (
    *("provenance", "device", "model", "dataset", "optimizer", "activation", "depth", "width"),
    *("batch_size", "learning_rate", "precision", "seed", "protocol", "command", "id"),
)


def to_tensorboard(root: Path, out: Path) -> str:
    """Writes an event file for each run, for `tensorboard --logdir`.

    Args:
        root: the folder of the runs.
        out: the report's folder; the files go to `tensorboard` in it.

    Returns:
        A sentence for the user.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise _missing("tensorboard", "tensorboardX") from None
    check_root(root)
    check_out(out)
    count = 0
    for run, record in _readable(root, out):
        folder = out / "tensorboard" / Path(record["page"]).stem
        if folder.exists():  # events are added to, never replaced
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        with SummaryWriter(os.fspath(folder)) as writer:
            for update, values in _series(run):
                for name, value in values.items():
                    writer.add_scalar(name, value, update)
            last = record["updates"] or 0
            for name, value in _summary(record).items():
                writer.add_scalar(f"summary/{name}", value, last)
            rows = "\n".join(f"    {name}: {value}" for name, value in _config(record).items())
            writer.add_text("config", rows, last)
        count += 1
    if count and not (out / CACHE_FILE).exists():
        write_text(out / CACHE_FILE, "{}")
    return f"{count:,} runs; look at them with: tensorboard --logdir {out / 'tensorboard'}"


def to_wandb(root: Path, out: Path) -> str:
    """Gives each run to Weights & Biases; `WANDB_MODE=offline` keeps it on the disk.

    Args:
        root: the folder of the runs.
        out: the report's folder; what wandb keeps goes to `wandb` in it.

    Returns:
        A sentence for the user.

    Raises:
        UsageError: the package is not installed.
        RunError: wandb could not take them.
    """
    try:
        import wandb
    except ImportError:
        raise _missing("wandb", "wandb") from None
    check_root(root)
    check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / CACHE_FILE).exists():
        write_text(out / CACHE_FILE, "{}")
    count = 0
    for run, record in _readable(root, out):
        try:
            taken = wandb.init(
                project=_PROJECT,
                id=Path(record["page"]).stem[:100],
                name=record["name"],
                config=_config(record),
                dir=os.fspath(out),
                resume="allow",
                reinit="finish_previous",
            )
            for update, values in _series(run):
                taken.log(values, step=update)
            taken.summary.update(_summary(record))
            taken.finish()
        except wandb.Error as error:
            raise RunError(f"wandb did not take {record['name']}: {plain_text(error)}") from error
        count += 1
    return f"{count:,} runs handed to wandb, project {_PROJECT}."


EXPORTERS: dict[str, Callable[[Path, Path], str]] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
}


def _missing(target: str, package: str) -> UsageError:
    return UsageError(
        f"--to={target} needs {package}, which is not installed.\n"
        f"Install it: pip install -c constraints.txt -e '.[{target}]'"
    )


def _readable(root: Path, out: Path) -> Iterator[tuple[Run, Record]]:
    report = read_report(root, out)
    for record in report.index.runs:
        if record["state"] == FOREIGN or record["page"] is None:
            continue
        yield read_run(record["folder"]), record


def _series(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Update and values, in the order of updates."""
    found: dict[int, dict[str, float]] = {}
    try:
        for line in run.metrics:
            values = found.setdefault(line["update"], {})
            for name, value in line.items():
                if name != "update" and type(value) in (int, float):
                    values[f"metrics/{plain_text(name, 60)}"] = value
        for line in run.windows:
            if line.get("phase") != "train" or not line.get("updates"):
                continue
            if line.get("first_update") is None:
                continue
            duration_s = (line["end_ns"] - line["start_ns"]) / NS_PER_S
            values = found.setdefault(line["first_update"] + line["updates"], {})
            for domain, joules in line["energy_j"].items():
                if joules is not None and duration_s > 0:
                    values[f"power_w/{plain_text(domain, 60)}"] = joules / duration_s
    except RecordError:
        pass  # what was read until then is handed over; the report names the fault
    for update in sorted(found):
        yield update, found[update]


def _summary(record: Record) -> dict[str, Any]:
    return {key: record[key] for key in _SUMMARY_KEYS if record[key] is not None}


def _config(record: Record) -> dict[str, Any]:
    return {key: record[key] for key in _CONFIG_KEYS if record[key] not in (None, "")}
