"""Tests published claims about the energy of training, each with a verdict.

python -m experiments.study --list
python -m experiments.study all --budget=small
python -m experiments.study optimizer --budget=full --data_dir=DIR
python -m experiments.study batch_size --from_csv=summary_train.csv,summary_power_v100.csv

NAME is a study's or `all`. Runs that studies share are done once, finished ones never again, and a
stopped call goes on when it is repeated. Results: OUT/studies/NAME.json;
NAME-csv.json of others' CSV files.
"""

import os
from pathlib import Path

from absl import flags

from experiments.flags import define_flag, define_run_flags, launch
from jaxenergy.arguments import COUNT, Argument
from jaxenergy.errors import RunError, UsageError, unknown_value

POSITIONAL = "NAME"
_BUDGETS = ("smoke", "small", "gpu", "full")
_LIST = ("all",)

define_run_flags(["out", "data_dir", "meters", "powercap_root"])
define_flag(
    "budget",
    Argument(str, "small", choices=_BUDGETS),
    "smoke: whether it works, in seconds; small: within an hour on two cores; gpu: the same for a "
    "GPU; full: for a paper.",
)
define_flag("seeds", Argument(int, None, COUNT, optional=True), "Seeds; default: the budget's.")
define_flag(
    "dataset",
    Argument(str, None, optional=True),
    "Data set of the runs, or the one that is meant of --from_csv; default: the budget's.",
)
flags.DEFINE_list("from_csv", [], "Judge others' measurements: their CSV files (docs/studies.md).")
flags.DEFINE_list("machines", [], "Folders of runs, one per machine, for the study hardware.")
flags.DEFINE_string("write_findings", None, "Write all verdicts below --out to this file, too.")
flags.DEFINE_string("preface", "", "A sentence for that file on how the numbers came about.")
flags.DEFINE_boolean("dry_run", False, "Print the runs and how long they take, and end.")
flags.DEFINE_string(
    "lock_dir",
    "/tmp/jaxenergy-locks",
    "Folder of this machine's locks, one per metered device; all its sweeps must name the same.",
)
flags.DEFINE_string("list", None, "Print the studies with their claims, and end.")
for _name in ("from_csv", "machines", "write_findings", "preface", "dry_run", "lock_dir", "list"):
    flags.declare_key_flag(_name)


def run(name: str) -> int:
    """Runs and judges; returns the exit status.

    Args:
        name: a study's name or `all`; empty where none is given, as with --list.
    """
    given = flags.FLAGS
    if given.list is not None and given.list not in _LIST:
        raise unknown_value("--list", given.list, _LIST)
    if not name and given.list is None:
        raise UsageError(f"{POSITIONAL} is missing: a study's name, or all; --list prints them.")

    from rich.console import Console

    from jaxenergy import sweeps
    from jaxenergy.records.files import reason_of
    from jaxenergy.report import verdicts as report
    from jaxenergy.report.sweep import SweepView
    from jaxenergy.report.writing import write_text
    from jaxenergy.studies import STUDIES, Context, running
    from jaxenergy.studies.findings import GUIDE, render_findings

    console = Console()
    if given.list is not None:
        report.print_studies(STUDIES, console)
        return 0
    if name not in ("all", *STUDIES):
        raise unknown_value(POSITIONAL, name, ("all", *STUDIES))
    if given.from_csv and (given.machines or given.dry_run):
        raise UsageError("--from_csv takes the place of runs: no --machines, no --dry_run.")
    context = Context(
        given.budget,
        data_dir=given.data_dir,
        settings={
            "meters": given.meters,
            "powercap_root": given.powercap_root,
            "out": given.out,
        },
        seeds=given.seeds,
        dataset=None if given.from_csv else given.dataset,
    )
    request = running.Request(
        names=running.possible(context, console.print) if name == "all" else (name,),
        context=context,
        out=Path(given.out),
        meters=given.meters,
        powercap_root=given.powercap_root,
        lock_dir=given.lock_dir,
        command=_command(name),
        machines=tuple(map(Path, given.machines)),
        csv=tuple(map(Path, given.from_csv)),
        csv_dataset=given.dataset if given.from_csv else None,
    )
    findings = Path(given.write_findings) if given.write_findings else None
    if findings is not None:  # said now, not after the runs
        _check_writable(findings, request.out)
    for folder in request.machines:
        if not folder.is_dir():
            raise UsageError(f"--machines: {folder} is no folder; allowed: folders of runs.")
    if given.dry_run:
        designed = running.designs(request)
        configs = running.all_runs(designed)
        forecast = sweeps.forecast(sweeps.plan(configs), out=request.out) if configs else None
        report.print_designs(designed, forecast, console)
        return 0
    with SweepView(console) as view:
        outcome = running.run(request, view, lambda record: report.print_record(record, console))
    for text in outcome.failed:
        console.print(text, markup=False)
    if not outcome.records:
        console.print("stopped; the same command goes on")
        return outcome.exit_status
    report.print_totals(outcome.records, outcome.files, console)
    if findings is not None:
        text = render_findings(
            running.read_records(request.out),
            given.preface,
            beside_the_guide=(findings.parent / GUIDE).is_file(),
        )
        try:
            write_text(findings, text)
        except OSError as error:
            raise RunError(f"{findings} could not be written: {reason_of(error)}.") from error
    return outcome.exit_status


def _check_writable(path: Path, out: Path) -> None:
    """Refuses a file that could not be written.

    Args:
        path: the file.
        out: the folder of the runs, which will be made where it is not there.

    Raises:
        UsageError: it is a folder, or its folder is not there or may not be written to.
    """
    why = ""
    if path.is_dir():
        why = "is a folder"
    elif path.parent.absolute() == out.absolute() and not out.exists():
        return
    elif not path.parent.is_dir():
        why = f"cannot be written: no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        why = f"cannot be written: {path.parent} may not be written to"
    if why:
        raise UsageError(f"--write_findings={path} {why}.\nAllowed: a file in a folder of yours.")


def _command(name: str) -> str:
    """The command line that repeats it; what folders are called is nobody's business."""
    given = flags.FLAGS
    parts = ["python -m experiments.study", name]
    if given.from_csv:
        parts.append("--from_csv=" + ",".join(Path(path).name for path in given.from_csv))
    else:
        parts.append(f"--budget={given.budget}")
    parts += [f"--{flag}={given[flag].value}" for flag in ("seeds", "dataset") if given[flag].value]
    if given.meters != "auto":
        parts.append(f"--meters={given.meters}")
    if given.data_dir:
        parts.append("--data_dir=DIR")
    if given.out != given["out"].default:
        parts.append("--out=OUT")
    if given.machines:
        parts.append("--machines=" + ",".join(Path(path).name for path in given.machines))
    return " ".join(parts)


def main() -> None:
    """Entry point of the driver."""
    launch(run, POSITIONAL, default="")


if __name__ == "__main__":
    main()
