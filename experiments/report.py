"""Makes a report of runs, sweeps, studies and comparisons: a page, figures, tables, JSON.

python -m experiments.report runs --out=report       # then open report/index.html
python -m experiments.report runs --summary          # the same answer on the terminal
python -m experiments.report runs --watch            # made again while a sweep runs
python -m experiments.report runs --to=tensorboard   # metrics for what you already use

FOLDER holds runs at any depth, or is one run's folder; the default is runs.
"""

import functools
from pathlib import Path

from absl import flags

from experiments.flags import define_flag, launch
from jaxenergy.arguments import NOT_NEGATIVE, POSITIVE, Argument
from jaxenergy.errors import UsageError

POSITIONAL = "FOLDER"
TARGETS = ("tensorboard", "wandb")

_OUT = flags.DEFINE_string("out", "report", "Folder of the report: new, empty or a report's.")
_CARBON = define_flag(
    "carbon_intensity",
    Argument(float, None, NOT_NEGATIVE),
    "Grams of CO2-equivalent of a kWh: adds a column. Joules stay the ranking.",
)
_PRICE = define_flag(
    "price",
    Argument(float, None, NOT_NEGATIVE),
    "Price of a kWh in your currency: adds a column. Joules stay the ranking.",
)
_SUMMARY = flags.DEFINE_boolean("summary", False, "Print the answer as a table, write nothing.")
_WATCH = flags.DEFINE_boolean("watch", False, "Make it again whenever runs change, until Ctrl-C.")
_EVERY = define_flag(
    "watch_seconds", Argument(float, 5.0, POSITIVE), "The pause between looks with --watch."
)
_TO = define_flag(
    "to",
    Argument(str, None, choices=TARGETS),
    "Hand configs and metrics over to tensorboard (files in OUT/tensorboard) or wandb.",
)


def run(folder: str) -> None:
    """Reports."""
    if sum([_SUMMARY.value, _WATCH.value, _TO.value is not None]) > 1:
        raise UsageError("--summary, --watch and --to do different things.\nAllowed: one of them.")

    from rich.console import Console

    from jaxenergy.report.answer import Rates

    root, out = Path(folder), Path(_OUT.value)
    rates = Rates(_CARBON.value, _PRICE.value)
    console = Console(highlight=False)
    if _SUMMARY.value:
        from jaxenergy.report.build import read_report
        from jaxenergy.report.overview import print_overview

        print_overview(read_report(root, out, rates), console)
        return
    if _TO.value is not None:
        from jaxenergy.report.export import EXPORTERS

        print(EXPORTERS[_TO.value](root, out))
        return

    from jaxenergy.report.build import build_report, watch

    if _WATCH.value:
        every_s = _EVERY.value
        try:
            watch(
                lambda: build_report(root, out, rates, reload_s=every_s),
                functools.partial(print, flush=True),
                every_s,
            )
        except KeyboardInterrupt:
            print(build_report(root, out, rates).page)
        return
    print(build_report(root, out, rates))


def main() -> None:
    """Entry point of the driver."""
    launch(run, POSITIONAL, default="runs")


if __name__ == "__main__":
    main()
