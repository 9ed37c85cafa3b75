"""The shares inside an update on the terminal: joules and seconds of each part, with intervals."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.report.terminal import PROVENANCE_WORDS
from jaxenergy.stats import Estimate
from jaxenergy.training.plan import Plan
from jaxenergy.training.shares import Shares
from jaxenergy.units import format_percent, format_si


def print_shares(plan: Plan, shares: Shares, console: Console) -> None:
    """Prints what the parts of an update take.

    Args:
        plan: what the update was of.
        shares: what was measured.
        console: where to print.
    """
    for note in shares.notes:
        console.print(Text(note))
    model, config = plan.program.model, plan.config
    console.print(
        Text(
            f"One update of {config.batch_size} on {config.dataset}: {model.family} of depth"
            f" {model.depth} and width {model.width}, {plan.parameters:,} parameters,"
            f" {config.optimizer}",
            style="bold",
        )
    )
    words, style = PROVENANCE_WORDS[shares.provenance]
    console.print(Text(f"Energy: {words}.", style=style))
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for what in ("energy", "time"):
        table.add_column(what, justify="right")
        table.add_column("± (95 %)", justify="right")
        table.add_column("of update", justify="right")
    known = shares.energy_j or shares.duration_s or {}
    for name in known:
        if name == "update":
            table.add_section()
        table.add_row(
            name, *_cells(shares.energy_j, name, "J"), *_cells(shares.duration_s, name, "s")
        )
    if known:
        console.print(table)
        console.print(Text(f"{shares.rounds} rounds; differences may be negative."))
    for what, why in shares.why.items():
        console.print(Text(f"{what} n/a: {why}", style="yellow"))
    if shares.energy_j is not None and not shares.reached_target:
        console.print(
            Text(
                "The time was up before every interval was within"
                f" ± {format_percent(shares.target_relative_ci, 3)} of the update.",
                style="yellow",
            )
        )


def _cells(parts: Mapping[str, Estimate] | None, name: str, unit: str) -> tuple[str, str, str]:
    """A part's value, half the width of its interval, and its share of the whole."""
    if parts is None:
        return "n/a", "", ""
    part, whole = parts[name], parts["update"].value
    share = f"{part.value / whole:.1%}" if whole > 0 else "n/a"
    return format_si(part.value, unit), format_si(part.half_width(), unit, 2), share
