"""The page of all runs, and a page for each run, as HTML that needs no network.

`index.html` holds all it needs, data and drawing library included, so that it can be sent as one
file. A run's page shares the library with its siblings: ten thousand pages of a megabyte each help
nobody.
Templates escape every text; data for scripts is JSON in which no markup can begin.
"""

import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy import __version__
from jaxenergy.errors import UsageError
from jaxenergy.records import Run
from jaxenergy.records.files import RecordError, plain_text
from jaxenergy.records.schema import COMPLETED, FOREIGN
from jaxenergy.records.summary import label_lines
from jaxenergy.report import groups
from jaxenergy.report.answer import PROVENANCE_MEANING, Rates, Statement
from jaxenergy.report.documents import Documents, Pair, Verdict
from jaxenergy.report.figures import Figure, make_power
from jaxenergy.report.index import Index, Record
from jaxenergy.report.style import CONFIG
from jaxenergy.report.writing import write_text
from jaxenergy.units import NS_PER_S, format_duration_s, format_si

ASSETS = Path(__file__).parent / "assets"
_MOST_LINES = 2000
_MOST_FACTS = 400
_Z95 = 1.959964

WHY_JOULES = (
    "Runs are ranked by joules without idle and compiling: a run that found its programs in the"
    " cache did not compile. Carbon and money are joules times a rate of a place and an hour:"
    " they order runs of one machine as joules do, and between machines they may turn the order"
    " round by where the power came from, which says nothing of the training."
)

# (key, heading, kind, whether it can be chosen by, help)
_RUN_COLUMNS = (
    ("name", "run", "name", False, "opens the run's page"),
    ("without_compiling_j", "energy without compiling", "joules", False, "nor idle; the ranking"),
    ("energy_j", "energy", "joules", False, "joules of all phases but idle"),
    ("per_update_j", "J per update", "joules", False, "mean of steady windows"),
    ("per_update_relative", "95 %", "relative", False, "half the 95 % interval of J per update"),
    ("accuracy", "accuracy", "percent", False, "test; validation where there is no test"),
    ("provenance", "joules are", "provenance", True, "measured, estimated or simulated"),
    ("state", "state", "text", True, ""),
    ("model", "model", "text", True, ""),
    ("dataset", "data", "text", True, ""),
    ("optimizer", "optimizer", "text", True, ""),
    ("activation", "activation", "text", True, ""),
    ("depth", "depth", "count", False, ""),
    ("width", "width", "count", False, ""),
    ("batch_size", "batch", "count", False, "examples per update"),
    ("learning_rate", "rate", "number", False, "peak learning rate"),
    ("seed", "seed", "count", False, ""),
    ("parameters", "parameters", "count", False, ""),
    ("updates", "updates", "count", False, ""),
    ("per_example_j", "J per example", "joules", False, "mean of steady windows"),
    ("per_token_j", "J per token", "joules", False, "of text"),
    ("bits_per_character", "bits per character", "number", False, "of text; lower is better"),
    ("return", "return", "number", False, "of a control task: test; else validation"),
    ("net_j", "above idle", "joules", False, "joules above idle power"),
    ("target_energy_j", "to target", "joules", False, "joules until the target was reached"),
    ("duration_s", "time", "duration", False, "all phases"),
    ("device", "device", "text", True, ""),
)
_RATE_COLUMNS = (
    ("carbon_g", "CO2e", "grams", False, "joules times --carbon_intensity"),
    ("price", "price", "number", False, "joules times --price"),
)
_PROBLEM_COLUMNS = (
    ("path", "folder", "name", False, ""),
    ("state", "state", "text", True, ""),
    ("why", "reason", "wide", False, ""),
)
_METRIC_COLUMNS = (
    ("update", "update", "count"),
    ("train_loss", "train loss", "number"),
    ("validation_accuracy", "validation accuracy", "percent"),
    ("validation_return", "validation return", "number"),
    ("energy_j", "energy so far", "joules"),
)


@functools.cache
def _environment():
    try:
        import jinja2
    except ImportError:
        raise UsageError(
            "The page needs jinja2, which is not installed.\n"
            "Install it: pip install -c constraints.txt -e '.[report]'"
        ) from None
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def safe_json(value: Any) -> Any:
    """JSON to stand in a script element: no markup can begin in it, and templates leave it."""
    import markupsafe

    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def run_columns(rates: Rates) -> list[tuple[str, str, str, bool, str]]:
    """The columns of the table of runs: key, heading, kind, whether to choose by it, help."""
    columns = list(_RUN_COLUMNS)
    given = {"carbon_g": rates.carbon_g_per_kwh, "price": rates.price_per_kwh}
    columns += [column for column in _RATE_COLUMNS if given[column[0]] is not None]
    return columns


def run_row(run: Record, rates: Rates) -> dict[str, Any]:
    """A run's values by column; simulated joules have no carbon and no price."""
    energy_j = run["energy_j"] if run["provenance"] != "simulated" else None
    low, high, mean = (run[f"per_update_{end}"] for end in ("low_j", "high_j", "j"))
    relative = (high - low) / 2 / mean if low is not None and (mean or 0.0) > 0 else None
    return {
        **run,
        "accuracy": groups.accuracy_of(run),
        "per_update_relative": relative,
        "carbon_g": rates.carbon_g(energy_j),
        "price": rates.price(energy_j),
    }


def render_index(
    index: Index,
    documents: Documents,
    answer: Sequence[Statement],
    figures: Sequence[Figure],
    rates: Rates,
    *,
    made_at: str,
    command: str,
    vega: str,
    reload_s: float | None,
) -> str:
    """The page of all runs.

    Args:
        index: the runs.
        documents: studies, sweeps and comparisons.
        answer: the statements it opens with.
        figures: the figures, in their order.
        rates: of carbon and money.
        made_at: date and time.
        command: what makes the report.
        vega: the drawing library.
        reload_s: how often the page loads itself anew; None for never.

    Returns:
        HTML.
    """
    runs = [run for run in index.runs if run["state"] != FOREIGN]
    runs.sort(key=groups.rank_of)
    columns = run_columns(rates)
    problems = list_problems(index, documents)
    rows = [run_row(run, rates) for run in runs]
    # A column in which no run has anything only takes room.
    columns = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    tables = {
        "runs": _table(columns, rows, sort="without_compiling_j"),
        "problems": _table(_PROBLEM_COLUMNS, problems),
    }
    data = {
        "config": CONFIG,
        "figures": {item.name: _drawn(item) for item in figures if item.spec is not None},
        "tables": tables,
        "reload_s": reload_s,
    }
    return (
        _environment()
        .get_template("index.html")
        .render(
            root=plain_text(index.root, 200),
            counts=f"{len(runs):,} run{'' if len(runs) == 1 else 's'}",
            made_at=made_at,
            version=__version__,
            answer=answer,
            documents=documents,
            sections=_sections(figures, documents, bool(problems)),
            has_rates=rates != Rates(),
            rates_note="Carbon and price stand beside the joules; they do not rank.",
            problem_count=len(problems),
            meanings=list(PROVENANCE_MEANING.items()),
            why_joules=WHY_JOULES,
            command=command,
            effect=show_effect,
            css=_asset("page.css"),
            vega=_script(vega),
            js=_asset("page.js"),
            data=safe_json(data),
        )
    )


def list_problems(index: Index, documents: Documents) -> list[dict[str, Any]]:
    """Folders and documents that are not finished, failed or cannot be read, with the reason."""
    problems = [run for run in index.runs if run["state"] != COMPLETED]
    refused = [
        {"path": path, "page": None, "state": "not understood", "why": why}
        for path, why in documents.refused
    ]
    return [*problems, *refused]


def show_effect(verdict: Verdict) -> str:
    """An effect with its interval and unit; empty where there is none."""
    if verdict.effect is None:
        return ""
    text = f"{verdict.effect:.3g}"
    if verdict.low is not None or verdict.high is not None:
        low, high = ("…" if end is None else f"{end:.3g}" for end in (verdict.low, verdict.high))
        text += f" ({low} to {high})"
    return f"{text} {verdict.unit}".strip()


def write_run_page(run: Run, record: Record, *, folder: Path) -> None:
    """Writes a run's page.

    Args:
        run: the run.
        record: its record; `page` is the file's name.
        folder: where the pages of runs are.
    """

    def read(what: str) -> Any:
        try:
            return getattr(run, what)
        except RecordError:  # the record's `why` says it
            return None

    windows = read("windows") or []
    metrics = read("metrics") or []
    environment = read("environment")
    power = make_power(record, windows, environment)
    lines = [(label, line) for label, line in label_lines(windows)]
    window_rows, columns = _window_rows(lines[:_MOST_LINES])
    note = ""
    if len(lines) > _MOST_LINES:
        note = f"The first {_MOST_LINES:,} of {len(lines):,} lines; all are in windows.jsonl."
    data = {
        "config": CONFIG,
        "figures": {"power": _drawn(power, only=["kind", "power"])} if power.spec else {},
        "tables": {
            "windows": _table(columns, window_rows),
            "metrics": _table(
                [(key, heading, kind, False, "") for key, heading, kind in _METRIC_COLUMNS], metrics
            ),
        },
        "reload_s": None,
    }
    sums = [
        (
            kind,
            name,
            format_si(joules, "J", 4),
            format_si(_Z95 * error, "J", 2) if error is not None else "n/a",
        )
        for kind, key in (("phase", "by_phase"), ("domain", "by_domain"))
        for name, (joules, error) in record[key].items()
    ]
    text = (
        _environment()
        .get_template("run.html")
        .render(
            record=record,
            answer=_run_answer(record),
            power=power,
            sums=sums,
            tables=[
                ("Config", _facts(run.config)),
                ("Environment", _facts(environment)),
            ],
            windows_note=note,
            data=safe_json(data),
        )
    )
    write_text(folder / record["page"], text)


def _run_answer(run: Record) -> list[Statement]:
    provenance = run["provenance"]
    why = f": {run['why']}" if run["why"] else ""
    statements = [Statement("state", f"{run['status'].replace('_', ' ')}{why}.")]
    shape = ", ".join(
        part
        for part in (
            run["model"],
            f"depth {run['depth']}" if run["depth"] is not None else "",
            f"width {run['width']}" if run["width"] is not None else "",
            run["activation"],
            f"{run['parameters']:,} parameters" if run["parameters"] is not None else "",
        )
        if part
    )
    length = ""
    if run["updates"] is not None:
        length = f"; {run['updates']:,} updates in {format_duration_s(run['duration_s'])}"
    statements.append(
        Statement(
            "trained", f"{shape} on {run['dataset'] or '?'} with {run['optimizer'] or '?'}{length}."
        )
    )
    if run["energy_j"] is not None:
        text = f"{format_si(run['energy_j'], 'J')} without idle"
        if run["net_j"] is not None:
            text += f", {format_si(run['net_j'], 'J')} above idle power"
        statements.append(
            Statement("cost", f"{text}; {PROVENANCE_MEANING[provenance]}.", provenance)
        )
    else:
        why = run["energy_why"] or "the run has no summary with its joules"
        statements.append(Statement("cost", f"not known: {why}.", provenance))
    if run["per_update_j"] is not None and run["per_update_low_j"] is not None:
        low, high = (format_si(run[f"per_update_{end}_j"], "J", 4) for end in ("low", "high"))
        mean = format_si(run["per_update_j"], "J", 4)
        statements.append(
            Statement(
                "per update",
                f"{mean} ({low} to {high}, 95 %, {run['per_update_windows']} windows).",
                provenance,
            )
        )
    elif run["per_update_why"]:
        statements.append(Statement("per update", f"not known: {run['per_update_why']}.", None))
    accuracies = [
        f"{name} {run[key]:.2%}"
        for name, key in (("test", "test_accuracy"), ("validation", "validation_accuracy"))
        if run[key] is not None
    ]
    if accuracies:
        statements.append(Statement("accuracy", f"{', '.join(accuracies)}."))
    if run["return"] is not None:
        statements.append(Statement("return", f"{run['return']:.2f}, the mean of episodes."))
    statements += [Statement("warning", warning) for warning in run["warnings"]]
    return statements


def _window_rows(
    lines: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str, bool, str]]]:
    domains = list(dict.fromkeys(domain for _, line in lines for domain in line["energy_j"]))
    origin_ns = lines[0][1]["start_ns"] if lines else 0
    rows = []
    for label, line in lines:
        errors = line.get("uncertainty_j")
        why = line.get("why") or {}
        row: dict[str, Any] = {
            "phase": plain_text(label, 60),
            "attempt": line.get("attempt"),
            "start_s": (line["start_ns"] - origin_ns) / NS_PER_S,
            "duration_s": (line["end_ns"] - line["start_ns"]) / NS_PER_S,
            "updates": line.get("updates"),
            "steady": line.get("steady") if isinstance(line.get("steady"), bool) else None,
            "why": "; ".join(
                f"{plain_text(domain, 60)}: {plain_text(reason, 300)}"
                for domain, reason in why.items()
            ),
        }
        for place, domain in enumerate(domains):
            row[f"energy {place}"] = line["energy_j"].get(domain)
            error = errors.get(domain) if isinstance(errors, dict) else None
            row[f"error {place}"] = error if type(error) in (int, float) else None
        rows.append(row)
    columns = [
        ("phase", "phase", "text", True, ""),
        ("start_s", "start (s)", "number", False, "since the first line"),
        ("duration_s", "lasted", "duration", False, ""),
        ("updates", "updates", "count", False, ""),
        ("steady", "steady", "text", True, "whether it counts in means"),
    ]
    for place, domain in enumerate(domains):
        shown = plain_text(domain, 60)
        columns.append((f"energy {place}", shown, "joules", False, "energy"))
        columns.append(
            (f"error {place}", "± (1 se)", "joules", False, f"standard error of {shown}")
        )
    if any((line.get("attempt") or 0) > 0 for _, line in lines):
        columns.append(("attempt", "attempt", "count", False, ""))
    if any(row["why"] for row in rows):
        columns.append(("why", "why not known", "wide", False, ""))
    return rows, columns


def _facts(document: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A document as dotted names and text."""
    facts: list[tuple[str, str]] = []

    def add(key: str, value: Any) -> None:
        if len(facts) >= _MOST_FACTS:
            return
        if isinstance(value, dict) and value:
            for part, item in value.items():
                add(f"{key}.{part}" if key else str(part), item)
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            for place, item in enumerate(value):
                add(f"{key}.{place}", item)
        else:
            if isinstance(value, list):
                shown = ", ".join(map(str, value))
            else:
                shown = value if isinstance(value, str) else json.dumps(value)
            facts.append((plain_text(key, 200), plain_text(shown)))

    add("", document or {})
    return facts


def _table(
    columns: Sequence[tuple[str, str, str, bool, str]],
    rows: Sequence[Mapping[str, Any]],
    sort: str | None = None,
) -> dict[str, Any]:
    """A table for the page's script; a row's page stands behind its values."""
    return {
        "columns": [
            {
                "key": key,
                "heading": heading,
                "kind": kind,
                **({"choose": True} if choose else {}),
                **({"help": help} if help else {}),
            }
            for key, heading, kind, choose, help in columns
        ],
        "rows": [
            [
                *(_compact(row.get(key)) for key, *_ in columns),
                *([f"runs/{row['page']}"] if row.get("page") else []),
            ]
            for row in rows
        ],
        "sort": sort,
    }


def _drawn(figure: Figure, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A figure for the page's script: its data as arrays, which take a third of the room."""
    keys = list(dict.fromkeys(key for row in figure.rows for key in row))
    columns = []
    for key, heading in figure.columns:
        if key == "page":
            continue
        numeric = any(type(row.get(key)) in (int, float) for row in figure.rows)
        kind = "percent" if key in ("accuracy", "share") else "number" if numeric else "text"
        columns.append({"key": key, "heading": heading, "kind": kind})
    return {
        "keys": keys,
        "values": [[_compact(row.get(key)) for key in keys] for row in figure.rows],
        "columns": columns,
        "spec": figure.spec,
        "only": only,
    }


def _compact(value: Any) -> Any:
    """A number with as many digits as anybody reads off a page; files have all of them."""
    if type(value) is not float:
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _sections(
    figures: Sequence[Figure], documents: Documents, problems: bool
) -> list[dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for item in figures:
        section = sections.setdefault(
            item.section,
            {
                "id": item.section.lower().replace(" ", "-"),
                "title": item.section,
                "figures": [],
                "tables": [],
            },
        )
        section["figures"].append(item)
    made = list(sections.values())
    if documents.comparisons:
        frameworks = sections.get("Frameworks")
        if frameworks is None:
            frameworks = {"id": "frameworks", "title": "Frameworks", "figures": [], "tables": []}
            made.append(frameworks)
        frameworks["tables"].append(_pairs_table(documents))
    if documents.studies:
        made.insert(0, {"id": "claims", "title": "Claims", "figures": [], "tables": []})
    made.append({"id": "runs", "title": "Runs", "figures": [], "tables": []})
    if problems:
        made.append(
            {"id": "problems", "title": "Not finished or failed", "figures": [], "tables": []}
        )
    if documents.sweeps:
        made.append({"id": "sweeps", "title": "Sweeps", "figures": [], "tables": []})
    made.append({"id": "reading", "title": "How to read this", "figures": [], "tables": []})
    return made


PAIR_COLUMNS = (
    ("model", "model"),
    ("framework", "framework"),
    ("reference", "against"),
    ("energy", "energy ratio"),
    ("time", "time ratio"),
    ("power", "power ratio"),
    ("crossover", "crossover (updates)"),
    ("says", "what it says"),
    ("processes", "processes each"),
    ("provenance", "joules"),
)


def pair_rows(documents: Documents) -> list[dict[str, str]]:
    """The comparisons, a row a pair of frameworks, in words."""
    rows = []
    for comparison in documents.comparisons:
        model = documents.name_of(comparison)
        common = {"model": model, "provenance": comparison.provenance}
        if not comparison.pairs:
            says = f"{comparison.status or 'no comparison'}: {comparison.why or 'no reason given'}"
            rows.append({**common, "says": says})
        for pair in comparison.pairs:
            first, last = pair.cheaper_at_once, pair.cheaper_at_last
            if pair.verdict == "crosses":
                says = f"{first} is cheaper in short trainings, {last} in long ones"
            elif pair.verdict == "never" and (last or first):
                says = f"{last or first} is cheaper at every length"
            else:
                says = "which is cheaper, and from where, is not settled"
            rows.append(
                {
                    **common,
                    "framework": pair.framework,
                    "reference": pair.reference,
                    "energy": pair.energy_ratio.tell(),
                    "time": pair.time_ratio.tell(),
                    "power": pair.power_ratio.tell(),
                    "crossover": _show_crossover(pair),
                    "says": says,
                    "processes": str(comparison.processes_of(pair) or ""),
                }
            )
    return rows


def pair_warnings(documents: Documents) -> list[str]:
    """What a reader should know before believing a ratio of the comparisons."""
    return [
        f"{documents.name_of(comparison)}: {warning}"
        for comparison in documents.comparisons
        for warning in comparison.warnings
    ]


def _pairs_table(documents: Documents) -> dict[str, Any]:
    return {
        "title": "Ratios with their 95 % intervals",
        "headings": [heading for _, heading in PAIR_COLUMNS],
        "rows": [[row.get(key, "") for key, _ in PAIR_COLUMNS] for row in pair_rows(documents)],
        "warnings": pair_warnings(documents),
    }


def _show_crossover(pair: Pair) -> str:
    if pair.set95 and pair.crossover.value is not None:
        return f"{pair.crossover.value:,.0f} ({pair.tell_set()})"
    return pair.crossover.tell()


@functools.cache
def _asset(name: str) -> Any:
    return _script((ASSETS / name).read_text())


def _script(text: str) -> Any:
    """Our own script or style for an element of the page, which only its end tag could end."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"</(?=script|style)", r"<\\/", text, flags=re.IGNORECASE))


def write_assets(folder: Path, vega: str) -> None:
    """Writes what the pages of runs share."""
    os.makedirs(folder, exist_ok=True)
    for name in ("page.css", "page.js"):
        write_text(folder / name, (ASSETS / name).read_text())
    write_text(folder / "vega.js", vega)
