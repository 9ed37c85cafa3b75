"""The answer of a report on the terminal, without the libraries that draw."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.report import groups
from jaxenergy.report.build import Report
from jaxenergy.report.page import (
    PAIR_COLUMNS,
    list_problems,
    pair_rows,
    pair_warnings,
    show_effect,
)
from jaxenergy.report.terminal import PROVENANCE_WORDS
from jaxenergy.units import format_si

_MOST_RUNS = 10
_MOST_PROBLEMS = 10
_VERDICT_STYLES = {"supported": "blue", "refuted": "red", "undecided": "dim", "void": "dim"}


def print_overview(report: Report, console: Console) -> None:
    """Prints the answer, the verdicts, the runs that none beats, and what is not finished.

    Args:
        report: what a report says.
        console: where to print.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for statement in report.answer:
        style = PROVENANCE_WORDS[statement.provenance][1] if statement.provenance else ""
        table.add_row(statement.label, Text(statement.text, style=style))
    console.print(table)
    for study in report.documents.studies:
        verdicts = _table(f"{study.name}: {study.claim}", "statement", "verdict", "effect", "why")
        for verdict in study.verdicts:
            verdicts.add_row(
                Text(verdict.statement),
                Text(verdict.verdict, style=_VERDICT_STYLES[verdict.verdict]),
                Text(show_effect(verdict)),
                Text(verdict.why),
            )
        console.print(verdicts)
    if rows := pair_rows(report.documents):
        pairs = _table("Frameworks, in pairs", *(heading for _, heading in PAIR_COLUMNS))
        for row in rows:
            pairs.add_row(*(Text(row.get(key, "")) for key, _ in PAIR_COLUMNS))
        console.print(pairs)
        for warning in pair_warnings(report.documents):
            console.print(Text(f"warning: {warning}", style="yellow"))
    kinds = groups.comparable(report.index.runs)
    for kind, runs in kinds.items():
        front = groups.pareto_front(runs)
        if not front:
            continue
        title = (
            f"{groups.name_kind(kind, kinds)}, {kind.provenance}, {kind.device or 'no device'}:"
            " what no run beats in both"
        )
        energy = "energy without idle and compiling"
        best = _table(title, "run", "accuracy", energy, "J per update", "optimizer")
        for run in front[-_MOST_RUNS:]:
            best.add_row(
                Text(run["name"]),
                f"{groups.accuracy_of(run) or 0.0:.2%}",
                format_si(run["without_compiling_j"], "J"),
                format_si(run["per_update_j"], "J"),
                Text(run["optimizer"]),
            )
        console.print(best)
    problems = list_problems(report.index, report.documents)
    if problems:
        table = _table("Not finished, failed, or not readable", "folder", "state", "reason")
        for problem in problems[:_MOST_PROBLEMS]:
            table.add_row(*(Text(problem[key]) for key in ("path", "state", "why")))
        console.print(table)
    if len(problems) > _MOST_PROBLEMS:
        console.print(Text(f"… and {len(problems) - _MOST_PROBLEMS:,} more.", style="dim"))


def _table(title: str, *headings: str) -> Table:
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for heading in headings:
        table.add_column(heading)
    return table
