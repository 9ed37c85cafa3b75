"""A finished run on the terminal: what was trained, what it cost, and how sure that is."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.units import format_accuracy, format_duration_s, format_si

PROVENANCE_WORDS = {
    "measured": ("measured by hardware counters", "green"),
    "simulated": ("SIMULATED: a scripted sensor, no joule here was spent", "magenta"),
    "estimated": ("ESTIMATED from CPU time and stated watts, not measured", "yellow"),
    "none": ("not metered", "dim"),
}
_STATUS_WORDS = {
    "completed": "completed",
    "target_reached": "target reached",
    "preempted": "stopped early; the same command goes on from here",
    "failed": "FAILED",
}
_WARNINGS_SHOWN = 2
_RATES = (
    ("per iteration", "per_iteration_j"),
    ("per update", "per_update_j"),
    ("per example", "per_example_j"),
    ("per token", "per_token_j"),
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
        if summary["provenance"] == "estimated":
            text = "Its intervals tell how the estimate scatters, not how far it is off."
            console.print(Text(text, style=style))
        console.print(_phase_table(summary))
        console.print(_domain_table(summary))
        for reason, key in _reasons(summary["energy_j"]).items():
            console.print(Text(f"{key} is not known: {reason}", style="yellow"))
        console.print(_rates_table(summary))
    for warning in summary["warnings"][:_WARNINGS_SHOWN]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    if len(summary["warnings"]) > _WARNINGS_SHOWN:
        console.print(Text("Further warnings are in summary.json.", style="yellow"))
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
            row(name, format_accuracy(final[key], final.get(f"{key}_by_task")))
    for split in ("test", "validation"):
        if final.get(f"{split}_return") is not None:
            row(f"{split} return", f"{final[f'{split}_return']:.2f}")
    bits = final.get("test_bits_per_character", final.get("validation_bits_per_character"))
    if bits is not None:
        row("bits per character", f"{bits:.4f}")
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
        row(_target_words(target), f"{energy} after {target['reached_at_update']:,} updates")
    elif target is not None:
        row(_target_words(target), "not reached")
    compiled = summary["compiled"]
    if compiled:
        cached = " (from the cache)" if compiled["cache_hit"] else ""
        text = format_duration_s(compiled["compile_s"]) + cached
        if compiled["amortised_after_updates"] is not None:
            text += (
                f"; under 1 % of the energy after {compiled['amortised_after_updates']:,} updates"
            )
        row("compilation", text)
    return table


def _target_words(target: Mapping[str, Any]) -> str:
    if "return" in target:
        return f"to a return of {target['return']:g}"
    if "bits_per_character" in target:
        return f"to {target['bits_per_character']:g} bits per character"
    return f"to {target['accuracy']:.2%}"


def _phase_table(summary: Mapping[str, Any]) -> Table:
    """Joules by phase: gross, and above idle power where that is known."""
    energy = summary["energy_j"]
    table = _table(
        f"Joules by phase, {summary['provenance']}", "", "gross", "of total", "above idle"
    )
    idle_w = list(energy["idle_w"].values())
    for phase, joules in energy["by_phase"].items():
        net = ""
        if phase != "idle" and joules is not None and idle_w and None not in idle_w:
            net = format_si(joules - sum(idle_w) * summary["duration_by_phase_s"][phase], "J")
        share = "" if phase == "idle" else _share(joules, energy["total"])
        table.add_row(Text(phase), format_si(joules, "J"), share, net)
    table.add_section()
    net = format_si(energy["net_total"], "J")
    if energy["net_total_ci95"] is not None and summary["provenance"] != "estimated":
        low, high = energy["net_total_ci95"]
        net += f" ± {format_si((high - low) / 2, 'J', digits=2)}"
    table.add_row("total without idle", format_si(energy["total"], "J"), "", net)
    table.add_row("all that was metered", format_si(energy["metered"], "J"), "", "")
    return table


def _domain_table(summary: Mapping[str, Any]) -> Table:
    """Joules by domain, and the power that each draws when idle."""
    energy = summary["energy_j"]
    table = _table(
        f"Joules by domain, {summary['provenance']}",
        "",
        "train",
        "all phases",
        "idle power",
        "its drift",
    )
    train = energy["by_phase_and_domain"].get("train", {})
    for domain, joules in energy["by_domain"].items():
        drift_w = ((energy["idle"].get(domain) or {}).get("drift") or {}).get("mean")
        table.add_row(
            Text(domain),
            format_si(train.get(domain), "J"),
            format_si(joules, "J"),
            format_si(energy["idle_w"][domain], "W"),
            format_si(drift_w, "W", digits=2),
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    return table


def _share(joules: float | None, total: float | None) -> str:
    return f"{joules / total:.1%}" if joules is not None and total else ""


def _reasons(energy: Mapping[str, Any]) -> dict[str, str]:
    """Why a figure of the table is not known; what no figure of it depends on is left out."""
    why = {key: reason for key, reason in energy["why"].items() if key != "unaccounted_j"}
    return {reason: key for key, reason in reversed(why.items())}


def _rates_table(summary: Mapping[str, Any]) -> Table:
    table = _table(
        f"Joules of training, {summary['provenance']}", "", "mean", "95 % interval", "windows"
    )
    for name, key in _RATES:
        rate = summary.get(key)
        if rate is None:  # images have no tokens
            continue
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
