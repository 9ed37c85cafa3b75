"""A finished run on the terminal: what was trained, what it cost, and how sure that is."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.units import format_duration_s, format_si

PROVENANCE_WORDS = {
    "measured": ("measured by hardware counters", "green"),
    "simulated": ("SIMULATED: a scripted sensor, no joule here was spent", "magenta"),
    "estimated": ("ESTIMATED from CPU time and stated watts, not measured", "yellow"),
    "none": ("not metered", "dim"),
}
_STATUS_WORDS = {
    "completed": "completed",
    "target_reached": "target accuracy reached",
    "preempted": "stopped early; the same command goes on from here",
    "failed": "FAILED",
}
_RATES = (
    ("per iteration", "per_iteration_j"),
    ("per update", "per_update_j"),
    ("per example", "per_example_j"),
    ("per update and parameter", "per_update_per_parameter_j"),
)


def print_summary(summary: Mapping[str, Any], folder: str, console: Console) -> None:
    """Prints a run's summary as tables.

    Args:
        summary: as in `summary.json`.
        folder: where the run's folder is.
        console: where to print.
    """
    console.print(_outcome_table(summary))
    if summary["provenance"] != "none":
        words, style = PROVENANCE_WORDS[summary["provenance"]]
        console.print(Text(f"Energy: {words}.", style=style))
        console.print(_energy_table(summary))
        for reason, key in _reasons(summary["energy_j"]).items():
            console.print(Text(f"{key} is not known: {reason}", style="yellow"))
        console.print(_rates_table(summary))
    for warning in summary["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))
    console.print(Text("Folder: ").append(folder), soft_wrap=True)


def _outcome_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(name, Text(text))

    final = summary["final"]
    status = _STATUS_WORDS[summary["status"]]
    why = summary.get("why", {}).get("status")
    row("status", f"{status}: {why}" if why else status)
    for name, key in (("test accuracy", "test_accuracy"), ("validation", "validation_accuracy")):
        if final[key] is not None:
            row(name, f"{final[key]:.2%}")
    if final["train_loss"] is not None:
        row("train loss", f"{final['train_loss']:.5g}")
    row("updates", f"{summary['updates']:,} ({summary['examples']:,} examples)")
    row("parameters", f"{summary['parameters']:,}")
    row("time", format_duration_s(summary["duration_s"]))
    if summary["attempts"] > 1:
        row("attempts", str(summary["attempts"]))
    target = summary["target"]
    if target is not None and target["reached_at_update"] is not None:
        energy = format_si(target["energy_j"], "J")
        row(
            f"to {target['accuracy']:.2%}",
            f"{energy} after {target['reached_at_update']:,} updates",
        )
    elif target is not None:
        row(f"to {target['accuracy']:.2%}", "not reached")
    compiled = summary["compiled"]
    if compiled:
        cached = " (from the cache)" if compiled["cache_hit"] else ""
        text = format_duration_s(compiled["compile_s"]) + cached
        if compiled["amortised_after_updates"] is not None:
            text += f"; 1 % of the whole after {compiled['amortised_after_updates']:,} updates"
        row("compilation", text)
    return table


def _energy_table(summary: Mapping[str, Any]) -> Table:
    """Joules by phase and by domain, and above idle power."""
    energy = summary["energy_j"]
    total = energy["total"]
    table = Table(title="Joules", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("phase / domain")
    table.add_column("energy", justify="right")
    table.add_column("of total", justify="right")
    for phase, joules in energy["by_phase"].items():
        if joules != 0:
            of_total = "" if phase == "idle" else _share(joules, total)
            table.add_row(Text(phase), format_si(joules, "J"), of_total)
    table.add_section()
    for domain, joules in energy["by_domain"].items():
        table.add_row(Text(domain), format_si(joules, "J"), "")
    table.add_section()
    table.add_row("total (without idle)", format_si(total, "J"), _share(total, total))
    table.add_row(
        "total above idle power", format_si(energy["net_total"], "J"), _half_width(energy)
    )
    for domain, power_w in energy["idle_w"].items():
        table.add_row(Text(f"idle power, {domain}"), format_si(power_w, "W"), "")
    return table


def _half_width(energy: Mapping[str, Any]) -> str:
    if energy["net_total_ci95"] is None:
        return ""
    low, high = energy["net_total_ci95"]
    return f"± {format_si((high - low) / 2, 'J', digits=2)}"


def _reasons(energy: Mapping[str, Any]) -> dict[str, str]:
    """Why a figure of the table is not known; what no figure of it depends on is left out."""
    why = {key: reason for key, reason in energy["why"].items() if key != "unaccounted_j"}
    return {reason: key for key, reason in reversed(why.items())}


def _share(joules: float | None, total: float | None) -> str:
    return f"{joules / total:.1%}" if joules is not None and total else ""


def _rates_table(summary: Mapping[str, Any]) -> Table:
    table = Table(
        title="Training, steady", title_justify="left", title_style="bold", pad_edge=False
    )
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("windows", justify="right")
    for name, key in _RATES:
        rate = summary[key]
        if rate["mean"] is None:
            table.add_row(name, "n/a", Text(rate["why"]), "")
            continue
        low, high = rate["ci95"]
        table.add_row(
            name,
            format_si(rate["mean"], "J", digits=4),
            f"{format_si(low, 'J', digits=4)} to {format_si(high, 'J', digits=4)}",
            str(rate["windows"]),
        )
    return table
