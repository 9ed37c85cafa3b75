"""Studies on the terminal: which there are, what they need, and what was decided."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.registry import Registry
from jaxenergy.sweeps import Forecast
from jaxenergy.units import format_duration_s

_STYLES = {"supported": "green", "refuted": "red", "undecided": "yellow", "void": "dim"}


def print_studies(studies: Registry[Any], console: Console) -> None:
    """Prints each study's name and claim.

    Args:
        studies: the table of studies.
        console: where to print.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in studies:
        table.add_row(Text(name, style="bold"), Text(studies.describe(name)))
    console.print(table)


def print_designs(
    designed: Mapping[str, Sequence[Any]], forecast: Forecast | None, console: Console
) -> None:
    """Prints how many runs each study needs, and how long what is left of all will take.

    Args:
        designed: the configs of each study.
        forecast: of the sweep of all of them; None where there is no run.
        console: where to print.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("study")
    table.add_column("runs", justify="right")
    for name, configs in designed.items():
        table.add_row(name, str(len(configs)))
    console.print(table)
    if forecast is None:
        console.print("No run is needed.")
        return
    seconds = [p.seconds for p in forecast.predictions.values()]
    known = [s for s in seconds if s is not None]
    text = f"{len(forecast.result.cells)} runs in all, since studies share them; "
    text += f"{len(seconds)} left"
    unknown = len(seconds) - len(known)
    if known:
        text += f", about {format_duration_s(sum(known))}"
        text += f" and {unknown} of unknown length" if unknown else ""
    elif unknown:
        text += ", of unknown length"
    console.print(text, soft_wrap=True)


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Prints a study's verdicts.

    Args:
        record: the content of its file.
        console: where to print.
    """
    console.print()
    console.print(Text.assemble((record["study"], "bold"), f": {record['claim']}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    for verdict in record["verdicts"]:
        table.add_row(
            Text(verdict["verdict"], style=_STYLES[verdict["verdict"]]),
            verdict["quantity"],
            Text(verdict["statement"]),
            Text(_effect(verdict)),
        )
    console.print(table)
    for reason, count in Counter(
        verdict["why"] for verdict in record["verdicts"] if verdict["effect"] is None
    ).items():
        console.print(Text(f"  {count} x {reason}", style="dim"), soft_wrap=True)


def _effect(verdict: Mapping[str, Any]) -> str:
    if verdict["effect"] is None:
        return ""
    told = f"{verdict['effect']:.3g}"
    if verdict["ci95"] is not None:
        told += " ({:.3g} to {:.3g})".format(*verdict["ci95"])
    return f"{told} {verdict['unit']}, n = {verdict['n']}"


def print_totals(
    records: Sequence[Mapping[str, Any]], files: Sequence[Path], console: Console
) -> None:
    """Prints how many verdicts of each kind there are, of what provenance, and where they lie.

    Args:
        records: the content of each study's file.
        files: these files; they are in one folder.
        console: where to print.
    """
    words = Counter(v["verdict"] for record in records for v in record["verdicts"])
    told = ", ".join(f"{words[word]} {word}" for word in _STYLES)
    provenance = sorted({str(record["provenance"]) for record in records})
    console.print()
    where = f"{len(files)} files in {files[0].parent}" if len(files) > 1 else f"{files[0]}"
    console.print(f"{told}; energy: {', '.join(provenance)}; {where}", markup=False, soft_wrap=True)
