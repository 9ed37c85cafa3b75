"""The plain answer: what was trained, what it cost, by which kind of figures, and how sure that is.

The page opens with it and the terminal prints it, from the same statements.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.records.files import plain_text
from jaxenergy.records.schema import COMPLETED, FAILED, FOREIGN, UNFINISHED
from jaxenergy.report import groups
from jaxenergy.report.documents import VERDICTS, Comparison, Documents, Pair, tell_number
from jaxenergy.report.index import Index
from jaxenergy.units import format_count, format_duration_s, format_percent, format_si

Record = Mapping[str, Any]

PROVENANCE_MEANING = {
    "measured": "measured by hardware counters",
    "estimated": "estimated from CPU time and stated watts, not measured",
    "simulated": "simulated: a scripted sensor, no joule of it was spent",
    "none": "not metered",
}
J_PER_KWH = 3.6e6
_Z95 = 1.959964
_MOST_NAMES = 4


@dataclasses.dataclass(frozen=True)
class Statement:
    """One line of the answer.

    Attributes:
        label: what it is about, e.g. `cost`.
        text: the statement.
        provenance: of the joules in it, or None where there are none.
    """

    label: str
    text: str
    provenance: str | None = None


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a kilowatt-hour stands for beside joules; None where the user gave nothing.

    Attributes:
        carbon_g_per_kwh: grams of CO2-equivalent.
        price_per_kwh: money, in the user's own currency.
    """

    carbon_g_per_kwh: float | None = None
    price_per_kwh: float | None = None

    def carbon_g(self, energy_j: float | None) -> float | None:
        """Grams of CO2-equivalent of some joules."""
        return _times(energy_j, self.carbon_g_per_kwh)

    def price(self, energy_j: float | None) -> float | None:
        """The price of some joules."""
        return _times(energy_j, self.price_per_kwh)


def make_answer(index: Index, documents: Documents, rates: Rates) -> list[Statement]:
    """The answer.

    Args:
        index: the runs.
        documents: what studies and comparisons say.
        rates: of carbon and money.

    Returns:
        Statements, the most important first.
    """
    runs = [run for run in index.runs if run["state"] != FOREIGN]
    beside = documents.studies or documents.sweeps or documents.comparisons
    statements = [_trained(runs, index.root)] if runs or not beside else []
    for provenance in PROVENANCE_MEANING:
        some = [run for run in runs if run["provenance"] == provenance]
        if some:
            statements += _cost(some, provenance, rates)
    statements += _best(index)
    if verdicts := [verdict for study in documents.studies for verdict in study.verdicts]:
        counts = [
            f"{count} {word}"
            for word in VERDICTS
            if (count := sum(verdict.verdict == word for verdict in verdicts))
        ]
        many = format_count(len(verdicts), "statement")
        studies = format_count(len(documents.studies), "study", "studies")
        statements.append(Statement("claims", f"{many} of {studies} tested: {', '.join(counts)}."))
    statements += _frameworks(documents)
    if troubles := _troubles(index):
        statements.append(Statement("to look at", troubles))
    return statements


def _trained(runs: Sequence[Record], root: Path) -> Statement:
    if not runs:
        return Statement("trained", f"No run was found in {plain_text(root)}.")
    done = [run for run in runs if run["state"] == COMPLETED]
    updates = sum(run["updates"] or 0 for run in runs)
    duration_s = math.fsum(run["duration_s"] or 0.0 for run in runs)
    text = (
        f"{format_count(len(runs), 'run')} ({len(done):,} finished) of"
        f" {_names(run['model'] for run in runs)} on {_names(run['dataset'] for run in runs)},"
        f" with {_names(run['optimizer'] for run in runs)}:"
        f" {updates:,} updates in {format_duration_s(duration_s)}."
    )
    return Statement("trained", text)


def _cost(runs: Sequence[Record], provenance: str, rates: Rates) -> list[Statement]:
    if provenance == "none":
        unmetered = f"{format_count(len(runs), 'run')} not metered, or without a summary yet."
        return [Statement("cost", unmetered, provenance)]
    kinds = groups.by_kind(runs)
    statements = []
    for kind, some in list(kinds.items())[:_MOST_NAMES]:
        name = f"{groups.name_kind(kind, kinds)}: " if len(kinds) > 1 else ""
        statements += _cost_of_kind(some, name, provenance, rates)
    if (left := len(kinds) - _MOST_NAMES) > 0:
        text = (
            f"{format_count(left, 'further set')} of runs ({provenance}) of another data set,"
            " device or the like: each run is in the table."
        )
        statements.append(Statement("cost", text, provenance))
    return statements


def _cost_of_kind(
    runs: Sequence[Record], name: str, provenance: str, rates: Rates
) -> list[Statement]:
    """What runs of one kind cost together; only such are added up."""
    known = [run for run in runs if run["energy_j"] is not None]
    unknown = len(runs) - len(known)
    statements = []
    if known:
        total_j = math.fsum(run["energy_j"] for run in known)
        text = f"{name}{format_si(total_j, 'J')} without idle, {PROVENANCE_MEANING[provenance]}"
        text += f" ({format_count(len(known), 'run')})."
        if unknown:
            text += f" Of {format_count(unknown, 'further run')} the joules are not known."
        if provenance != "simulated":
            extras = []
            if (carbon_g := rates.carbon_g(total_j)) is not None:
                extras.append(f"{format_si(carbon_g, 'g')} of CO2e")
            if (price := rates.price(total_j)) is not None:
                extras.append(f"a price of {price:.3g}")
            if extras:
                text += f" At the rates given: {' and '.join(extras)}."
        statements.append(Statement("cost", text, provenance))
        statements.append(Statement("how sure", name + _sureness(known, provenance), provenance))
    elif unknown:
        text = f"{name}Of {format_count(unknown, 'run')} ({provenance}) the joules are not known."
        statements.append(Statement("cost", text, provenance))
    return statements


def _sureness(runs: Sequence[Record], provenance: str) -> str:
    widths = [
        (run["per_update_high_j"] - run["per_update_low_j"]) / 2 / run["per_update_j"]
        for run in runs
        if run["per_update_low_j"] is not None and (run["per_update_j"] or 0.0) > 0
    ]
    errors = [run["energy_se_j"] for run in runs]
    parts = []
    if widths:
        parts.append(
            f"J per update has an interval (95 %) of ± {format_percent(statistics.median(widths))}"
            f" in the median of {format_count(len(widths), 'run')}"
        )
    else:
        parts.append("No run has an interval of J per update")
    if provenance != "estimated" and all(error is not None for error in errors):
        half_j = _Z95 * math.sqrt(math.fsum(error**2 for error in errors))
        parts.append(f"the sum is read to ± {format_si(half_j, 'J', 2)}")
    caveat = {
        "measured": "the sensor's calibration and what differs from run to run are not in it.",
        "estimated": "an estimate from a processor's watts errs by some 30 %, which is not in it.",
        "simulated": "nothing here says anything of a real machine.",
    }[provenance]
    return f"{'; '.join(parts)}; {caveat}"


def _best(index: Index) -> list[Statement]:
    """The most accurate run, and the cheapest within a point of it, of the largest set of runs."""
    statements = []
    kinds = groups.comparable(index.runs)
    for kind, runs in list(kinds.items())[:2]:
        front = groups.pareto_front(runs)
        if not front:
            continue
        top = front[-1]
        best = groups.accuracy_of(top) or 0.0
        near = next(run for run in front if (groups.accuracy_of(run) or 0.0) >= best - 0.01)
        text = (
            f"{groups.name_kind(kind, kinds)}: {best:.2%} by {_short(top)} for"
            f" {format_si(top['without_compiling_j'], 'J')} without idle and compiling"
            f" ({kind.provenance})"
        )
        if near is not top:
            text += (
                f"; within a point of it the cheapest is {_short(near)},"
                f" {groups.accuracy_of(near):.2%} for"
                f" {format_si(near['without_compiling_j'], 'J')}"
            )
        statements.append(Statement("best", text + ".", kind.provenance))
    return statements


def _frameworks(documents: Documents) -> list[Statement]:
    """For each model what a framework takes of another and how sure, the first few of them."""
    statements = []
    for comparison in documents.comparisons:
        ratios = [
            _energy_ratio(pair, comparison)
            for pair in comparison.pairs
            if pair.energy_ratio.value is not None
        ]
        if ratios:
            text = f"{documents.name_of(comparison)}, {comparison.provenance}:"
            text += f" {'; '.join(ratios[:_MOST_NAMES])}."
            if comparison.warnings:
                first, *others = comparison.warnings
                text += f" Warning: {first}{f'; and {len(others)} more' if others else ''}."
            statements.append(Statement("frameworks", text, comparison.provenance))
    return statements[:_MOST_NAMES]


def _energy_ratio(pair: Pair, comparison: Comparison) -> str:
    ratio, processes = pair.energy_ratio, comparison.processes_of(pair)
    interval = ratio.tell_interval()
    sureness = f"95 %: {interval}; " if interval else "no interval: "
    many = format_count(processes, "process", "processes")
    return (
        f"{pair.framework} takes {tell_number(ratio.value or 0.0)} times the joules of"
        f" {pair.reference} an update ({sureness}{many if processes else 'unknown processes'} each)"
    )


def _troubles(index: Index) -> str:
    words = (
        (UNFINISHED, "unfinished"),
        (FAILED, "failed"),
        (FOREIGN, "no run that this version can read"),
    )
    counts = [f"{count:,} {word}" for state, word in words if (count := len(index.in_state(state)))]
    return f"{'; '.join(counts)}. Each is listed with its reason." if counts else ""


def _short(run: Record) -> str:
    name = run["name"]
    return name if len(name) <= 60 else name[:59] + "…"


def _names(values: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for value in values:
        counts[value or "?"] = counts.get(value or "?", 0) + 1
    names = sorted(counts, key=lambda name: (-counts[name], name))
    shown = names[:_MOST_NAMES]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def _times(energy_j: float | None, per_kwh: float | None) -> float | None:
    return None if energy_j is None or per_kwh is None else energy_j / J_PER_KWH * per_kwh
