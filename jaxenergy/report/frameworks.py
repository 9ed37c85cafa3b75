"""A comparison of frameworks on the terminal, from `compare.json` alone."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.report.terminal import PROVENANCE_WORDS
from jaxenergy.units import format_duration_s, format_si

_UNKNOWN = "n/a"


def print_comparison(document: Mapping[str, Any], folder: str, console: Console) -> None:
    """Prints what a comparison found.

    Args:
        document: as in `compare.json`.
        folder: where it is.
        console: where to print.
    """
    models = document["models"]
    for name, entry in models.items():
        _print_model(name, entry, document["reference"], console)
    if len(models) > 1:
        console.print(_zoo_table(document))
    console.print(
        Text(
            "A process is one observation; intervals are 95 %, each for itself, and need two of"
            " them. Ratios are means of ratios within blocks."
        )
    )
    console.print(Text("Folder: ").append(folder), soft_wrap=True)


def _print_model(name: str, entry: Mapping[str, Any], reference: str, console: Console) -> None:
    console.print()
    console.print(Text(_headline(name, entry), style="bold"))
    if entry["status"] != "compared":
        why = entry.get("why", {}).get("status", "")
        console.print(Text(f"{entry['status']}: {why}", style="yellow"), soft_wrap=True)
    if not entry["frameworks"]:
        return
    parity = entry["parity"]
    if parity is not None and parity["passed"]:
        console.print(Text("The programs are the same: parity was checked first."))
    words, style = PROVENANCE_WORDS[entry["provenance"]]
    console.print(Text(f"Energy: {words}. Times are measured.", style=style))
    for told in list(entry["frameworks"].values())[:1]:
        cold = told["cold_compiles"]
        console.print(Text(f"n = {told['processes']} processes each, {cold} compiled anew."))
    console.print(_costs_table(entry))
    if entry["pairs"]:
        console.print(_ratios_table(entry, reference))
        for pair in entry["pairs"]:
            if reference in (pair["reference"], pair["framework"]):
                for what in ("energy", "time"):
                    console.print(Text(_crossover_in_words(pair, what, entry)), soft_wrap=True)
    for warning in entry["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _headline(name: str, entry: Mapping[str, Any]) -> str:
    resolved, config = entry["resolved"], entry["config"]
    if resolved is None:
        return name
    device = entry["device"]["name"]
    return (
        f"{name} of depth {resolved['depth']} and width {resolved['width']},"
        f" {resolved['parameters']:,} parameters, {config['optimizer']}, updates of"
        f" {config['batch_size']} on {config['dataset']}, {device}"
    )


def _costs_table(entry: Mapping[str, Any]) -> Table:
    updates = entry["training_updates"]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.title_justify, table.title_style = "left", "bold"
    table.title = (
        f"An update; starting and compiling; a training of {updates:,} updates; peak memory"
    )
    for heading in ("", "time", "power", "energy, 95 %", "start", "compile", f"{updates:,}"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    for name, told in entry["frameworks"].items():
        peak = told["peak_memory"]
        which = "device_bytes" if peak["device_bytes"].get("mean") is not None else "host_bytes"
        table.add_row(
            name,
            format_si(told["per_update_s"]["mean"], "s"),
            format_si(told["power_w"]["mean"], "W"),
            format_si(told["per_update_j"]["mean"], "J") + _half_width(told["per_update_j"]),
            _cost(told, "start_up"),
            _cost(told, "compile"),
            _cost(told, "training"),
            format_si(peak[which]["mean"], "B"),
        )
    return table


def _cost(told: Mapping[str, Any], stage: str) -> str:
    """Joules, or seconds where there are no joules."""
    joules = told[f"{stage}_j"]["mean"]
    if joules is not None:
        return format_si(joules, "J")
    seconds = told[f"{stage}_s"]["mean"]
    return _UNKNOWN if seconds is None else format_duration_s(seconds)


def _ratios_table(entry: Mapping[str, Any], reference: str) -> Table:
    marked = "" if entry["provenance"] == "measured" else f", {entry['provenance']}"
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
    table.title = f"Over {reference}"
    for heading in ("", "", "ratio", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for pair in entry["pairs"]:
        if pair["reference"] != reference:
            continue
        for key, what in (
            ("time_ratio", "time of an update"),
            ("power_ratio", f"power{marked}"),
            ("energy_ratio", f"energy of an update{marked}"),
            ("training_energy_ratio", f"energy of the whole training{marked}"),
            ("training_time_ratio", "time of the whole training"),
        ):
            name = pair["framework"] if key == "time_ratio" else ""
            table.add_row(name, what, *_ratio_cells(pair[key]))
    return table


def _zoo_table(document: Mapping[str, Any]) -> Table:
    """Time and energy of an update over the reference's, a row for each model."""
    reference = document["reference"]
    others = [name for name in document["design"]["frameworks"] if name != reference]
    table = _table("", f"{reference}, an update")
    table.title = f"An update's time over that of {reference} (measured)"
    for name in others:
        table.add_column(name, justify="right")
    for model, entry in document["models"].items():
        pairs = {
            pair["framework"]: pair for pair in entry["pairs"] if pair["reference"] == reference
        }
        own = entry["frameworks"].get(reference)
        seconds = format_si(own["per_update_s"]["mean"], "s") if own else entry["status"]
        table.add_row(
            model,
            seconds,
            *(_ratio(pairs[name]["time_ratio"]) if name in pairs else "" for name in others),
        )
    return table


def _crossover_in_words(pair: Mapping[str, Any], what: str, entry: Mapping[str, Any]) -> str:
    """One sentence on whether, and where, one framework overtakes the other."""
    found = pair[f"{what}_crossover"]
    first, second = pair["reference"], pair["framework"]
    subject = f"{second} against {first}, whole training, {what}"
    if what == "energy" and entry["provenance"] != "measured":
        subject += f" ({entry['provenance']})"
    if found.get("set95") is None:
        number = "" if found["updates"] is None else f"about {found['updates']:,.0f} updates; "
        return f"{subject}: {number}no interval: {found['why']}."
    if found["verdict"] == "never":
        cheaper = found["cheaper_in_the_long_run"] or found["cheaper_without_updates"]
        return f"{subject}: {cheaper} takes less at any number of updates."
    within = " or ".join(
        f"from {low:,.0f} on" if high is None else f"{low:,.0f} to {high:,.0f}"
        for low, high in found["set95"]
    )
    if found["verdict"] == "crosses":
        winner = found["cheaper_in_the_long_run"]
        return f"{subject}: {winner} takes less beyond {found['updates']:,.0f} updates ({within})."
    return f"{subject}: it is not told which takes less at {within} updates."


def _ratio_cells(found: Mapping[str, Any]) -> tuple[str, str]:
    if found["ratio"] is None:
        return _UNKNOWN, found["why"]
    if found["ci95"] is None:
        return f"{found['ratio']:.3g}", "none"
    return f"{found['ratio']:.3g}", f"{found['ci95'][0]:.3g} to {found['ci95'][1]:.3g}"


def _ratio(found: Mapping[str, Any]) -> str:
    if found["ratio"] is None:
        return _UNKNOWN
    if found["ci95"] is None:
        return f"{found['ratio']:.3g}"
    return f"{found['ratio']:.3g} ({found['ci95'][0]:.3g} to {found['ci95'][1]:.3g})"


def _half_width(found: Mapping[str, Any]) -> str:
    if found["mean"] is None or found["ci95"] is None or found["mean"] <= 0:
        return ""
    return f" ± {(found['ci95'][1] - found['ci95'][0]) / 2 / found['mean']:.1%}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="right" if position else "left", no_wrap=position == 0)
    return table
