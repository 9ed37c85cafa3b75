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


def render_findings(records: Sequence[Mapping[str, Any]], preface: str = "") -> str:
    """The document.

    Args:
        records: the studies' files.
        preface: what else must be known of how these numbers came about.

    Returns:
        Markdown.
    """
    provenances = [r["provenance"] for r in records if r["runs"] or r["budget"] == "csv"]
    provenance = max(provenances or ["none"], key=list(_ORIGIN).index)
    machine = next((r["machine"] for r in records if r["machine"].get("device")), {})
    where = machine.get("device") or ", ".join(map(str, machine.get("files", ()))) or "this machine"
    words = Counter(v["verdict"] for r in records for v in r["verdicts"])
    lines = [
        f"# Findings ({_ORIGIN[provenance]})",
        "",
        f"On {where}, budget `{records[0]['budget']}`, protocol {records[0]['protocol']}: "
        + ", ".join(f"{words[word]} {word}" for word in VERDICTS)
        + ". Written by",
        "",
        "```sh",
        *dict.fromkeys(record["command"] for record in records),
        "```",
        "",
        "What the words mean and how each statement is tested: [studies.md](studies.md). A ratio "
        "above 1 means dearer. Intervals are of 95 %; p-values are corrected for all statements of "
        "a study (Holm). `n` counts seeds, or set-ups where these are what a statement is about. "
        "Below each table, by the numbers of its rows, stand the p-values and what else to know.",
        "",
    ]
    if preface:
        lines += [preface, ""]
    for record in records:
        lines += [
            f"## {record['study']}",
            "",
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
