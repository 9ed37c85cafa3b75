"""The verdicts as a document: `experiments.study --write_findings` writes `docs/findings.md`.

Its first line says where joules come from, since no reader should have to look for that.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxenergy.studies.core import VERDICTS

_ORIGIN = {
    "measured": "energy MEASURED by the machine's own counters",
    "simulated": "energy SIMULATED: it says nothing of any machine",
    "estimated": "energy ESTIMATED, not measured: no verdict on joules is given",
    "none": "energy NOT METERED: no verdict on joules is given",
}
_MARKS = {"supported": "**supported**", "refuted": "**refuted**"}
_MOST_WHY = 400
GUIDE = "studies.md"  # in docs/, where the findings of this project are too


def render_findings(
    records: Sequence[Mapping[str, Any]], preface: str = "", *, beside_the_guide: bool = False
) -> str:
    """The document.

    Args:
        records: the studies' files. Where they are not all of one machine, data set, budget and
            protocol, each section says its own.
        preface: what else must be known of how these numbers came about.
        beside_the_guide: whether it will lie beside `GUIDE`, so that it can link to it.

    Returns:
        Markdown.
    """
    provenances = [r["provenance"] for r in records if r["runs"] or r["budget"] == "csv"]
    provenance = max(provenances or ["none"], key=list(_ORIGIN).index)
    origins = [_origin(record) for record in records]
    mixed = any(len({origin[key] for origin in origins} - {None}) > 1 for key in origins[0])
    if mixed:
        title, where = "of several origins", "Of several origins, which each section tells"
    else:
        title = _ORIGIN[provenance]
        where = _tell_origin(
            {key: next(filter(None, [o[key] for o in origins]), None) for key in origins[0]}
        )
    words = Counter(v["verdict"] for r in records for v in r["verdicts"])
    guide = f"[{GUIDE}]({GUIDE})" if beside_the_guide else f"`docs/{GUIDE}` of jaxenergy"
    lines = [
        f"# Findings ({title})",
        "",
        f"{where}: " + ", ".join(f"{words[word]} {word}" for word in VERDICTS) + ". Written by",
        "",
        "```sh",
        *dict.fromkeys(record["command"] for record in records),
        "```",
        "",
        f"What the words mean and how each statement is tested: {guide}. A ratio above 1 means "
        "dearer. Intervals are of 95 %; p-values are corrected for all statements of a study "
        "(Holm). `n` counts seeds, or set-ups where these are what a statement is about. "
        "Below each table, by the numbers of its rows, stand the p-values and what else to know.",
        "",
    ]
    if preface:
        lines += [preface, ""]
    for record, origin in zip(records, origins, strict=True):
        of_csv = " (from CSV)" if record["budget"] == "csv" else ""
        lines += [f"## {record['study']}{of_csv}", ""]
        if mixed:
            lines += [f"{_tell_origin(origin)}; {_ORIGIN[record['provenance']]}.", ""]
        lines += [
            f"{record['claim']} *{record['source']}*",
            "",
            "| | statement | of | verdict | effect (95 %) | n |",
            "| ---: | --- | --- | --- | --- | ---: |",
        ]
        notes: dict[str, list[str]] = {}  # the numbers of the rows that each is about
        for number, verdict in enumerate(record["verdicts"], start=1):
            lines.append(
                f"| {number} | {_cell(verdict['statement'])} | {verdict['quantity']} | "
                f"{_MARKS.get(verdict['verdict'], verdict['verdict'])} | "
                f"{_cell(tell_effect(verdict))} | {verdict['n'] or ''} |"
            )
            note = f"({verdict['quantity']}): {_shortened(verdict['why'])}"
            notes.setdefault(note, []).append(str(number))
        lines += ["", *[f"- {', '.join(rows)} {note}" for note, rows in notes.items()], ""]
    return "\n".join(lines).rstrip() + "\n"


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where a study's result is from; None for what it does not say."""
    machine = record["machine"]
    where = machine.get("device") or ", ".join(map(str, machine.get("files", ()))) or None
    if machine.get("counted_domains"):
        where = f"{where} ({', '.join(map(str, machine['counted_domains']))})"
    if machine.get("jaxlib"):
        where = f"{where}, jaxlib {machine['jaxlib']}"
    return {
        "where": where,
        "dataset": record.get("dataset"),
        "budget": record["budget"],
        "protocol": record["protocol"],
    }


def _tell_origin(origin: Mapping[str, Any]) -> str:
    """The same in words."""
    dataset = f", main data set `{origin['dataset']}`" if origin["dataset"] else ""
    return (
        f"On {origin['where'] or 'this machine'}{dataset}, budget `{origin['budget']}`, "
        f"protocol {origin['protocol']}"
    )


def tell_effect(verdict: Mapping[str, Any]) -> str:
    """An effect with its interval and unit, short; empty where there is none."""
    effect, ci95 = verdict["effect"], verdict["ci95"]
    if effect is None:
        return ""
    told = f"{effect:.3g}"
    if ci95 is not None:
        told += f" ({ci95[0]:.3g} to {ci95[1]:.3g})"
    return f"{told} {verdict['unit']}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _shortened(text: str) -> str:
    text = _cell(text)
    return text if len(text) <= _MOST_WHY else text[: _MOST_WHY - 1] + "…"
