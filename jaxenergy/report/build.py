"""Makes a report: reads what changed, draws, and leaves page, figures, tables and `report.json`."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy import __version__
from jaxenergy.errors import RunError, UsageError
from jaxenergy.records.files import plain_text, reason_of
from jaxenergy.records.schema import FOREIGN
from jaxenergy.report import figures, groups, page, tables
from jaxenergy.report.answer import Rates, Statement, make_answer
from jaxenergy.report.documents import Documents, read_documents
from jaxenergy.report.index import (
    CACHE_FILE,
    Index,
    Record,
    build_index,
    check_root,
    reader_version,
)
from jaxenergy.report.style import on_paper
from jaxenergy.report.writing import write_text
from jaxenergy.units import format_count

SCHEMA = 1
NO_RATES = Rates()
# What the script of the pages calls; all of Vega comes with it.
_BUNDLE = "window.vegaEmbed = vegaEmbed;"
_RUNS_FOLDER, _ASSETS_FOLDER = "runs", "assets"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What making a report came to.

    Attributes:
        page: the page to open.
        root: the folder that was looked through.
        runs: how many runs are in it.
        read: how many of them were read anew.
        foreign: how many folders are no run, or none that this version can read.
        documents: how many documents of studies, sweeps and comparisons there are.
        changed: whether anything was written.
    """

    page: Path
    root: Path
    runs: int
    read: int
    foreign: int
    documents: int
    changed: bool

    def __str__(self) -> str:
        if self.runs:
            done = f"{self.read:,} read anew" if self.changed else "nothing changed"
            text = f"{format_count(self.runs, 'run')}, {done}"
        else:
            text = f"no run was found in {plain_text(self.root)}"
            if self.documents:
                text += f", but {format_count(self.documents, 'document')} of studies and the like"
        if self.foreign:
            text += f"; {format_count(self.foreign, 'folder')} without a readable run"
        return f"{self.page}: {text}"


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a report says, before it is written down."""

    index: Index
    documents: Documents
    answer: list[Statement]
    figures: list[figures.Figure]
    rates: Rates
    command: str
    made_at: str


def build_report(
    root: Path, out: Path, rates: Rates = NO_RATES, *, reload_s: float | None = None
) -> Outcome:
    """Makes the report of a folder, or leaves it as it is where nothing changed.

    Args:
        root: the folder that holds runs, at any depth, or one run's folder.
        out: where the report goes: a new or empty folder, or that of an earlier report.
        rates: of carbon and money.
        reload_s: how often the page loads itself anew; None for never.

    Returns:
        What was done.

    Raises:
        UsageError: there is no such folder, `out` holds something else, or a library is missing.
        RunError: it cannot be written.
    """
    check_root(root)
    check_out(out)
    cache = _read_cache(out)
    pages = out / _RUNS_FOLDER
    vega = _drawing_library(out / _ASSETS_FOLDER)
    try:
        pages.mkdir(parents=True, exist_ok=True)
        if not cache:  # first of all, so that a report that was interrupted is known for ours
            write_text(out / CACHE_FILE, "{}")
        index, new_cache = build_index(
            root,
            cache,
            skip=out,
            visit=functools.partial(page.write_run_page, folder=pages),
            is_fresh=lambda record: record["page"] is None or (pages / record["page"]).exists(),
        )
        command = _command(root, out, rates)
        stamp = _stamp(index, new_cache, command, reload_s)
        foreign = len(index.in_state(FOREIGN))
        outcome = Outcome(
            page=out / "index.html",
            root=root,
            runs=len(index.runs) - foreign,
            read=len(index.changed),
            foreign=foreign,
            documents=len(index.documents),
            changed=False,
        )
        if cache.get("stamp") == stamp and outcome.page.exists():
            return outcome
        _remove_old_pages(pages, cache, new_cache)
        made_at = datetime.datetime.now(datetime.UTC).isoformat(" ", timespec="seconds")
        report = assemble(index, rates, command, made_at)
        page.write_assets(out / _ASSETS_FOLDER, vega)
        _write_tables(report, out / "tables")
        _write_figures(report.figures, out / "figures")
        write_text(
            out / "report.json", json.dumps(to_json(report), allow_nan=False, indent=1) + "\n"
        )
        write_text(
            outcome.page,
            page.render_index(
                report.index,
                report.documents,
                report.answer,
                report.figures,
                rates,
                made_at=made_at,
                command=command,
                vega=vega,
                reload_s=reload_s,
            ),
        )
        write_text(out / CACHE_FILE, json.dumps({**new_cache, "stamp": stamp}))
    except OSError as error:
        raise RunError(f"{out} could not be written: {reason_of(error)}.") from error
    return dataclasses.replace(outcome, changed=True)


def read_report(root: Path, out: Path, rates: Rates = NO_RATES) -> Report:
    """What a report would say, with nothing written; quick where one was made before.

    Args:
        root: the folder that holds the runs.
        out: where an earlier report may be.
        rates: of carbon and money.

    Returns:
        The report, without figures.
    """
    index, _ = build_index(root, _read_cache(out), skip=out)
    documents = read_documents(index.documents)
    statements = make_answer(index, documents, rates)
    return Report(index, documents, statements, [], rates, _command(root, out, rates), "")


def assemble(index: Index, rates: Rates, command: str, made_at: str) -> Report:
    """Everything that a report says of an index."""
    documents = read_documents(index.documents)
    drawn = figures.make_figures(index, documents, command)
    if (power := _power_of_best(index)) is not None:
        drawn.append(power)
    return Report(
        index,
        documents,
        make_answer(index, documents, rates),
        drawn,
        rates,
        command,
        made_at,
    )


def to_json(report: Report) -> dict[str, Any]:
    """`report.json`: everything that the page says, for programs."""
    return {
        "schema": SCHEMA,
        "made_at": report.made_at,
        "version": __version__,
        "command": report.command,
        "root": plain_text(report.index.root),
        "carbon_intensity_g_per_kwh": report.rates.carbon_g_per_kwh,
        "price_per_kwh": report.rates.price_per_kwh,
        "answer": [dataclasses.asdict(statement) for statement in report.answer],
        "studies": [dataclasses.asdict(study) for study in report.documents.studies],
        "sweeps": [dataclasses.asdict(sweep) for sweep in report.documents.sweeps],
        "comparisons": [dataclasses.asdict(one) for one in report.documents.comparisons],
        "figures": [
            {
                "name": figure.name,
                "title": figure.title,
                "caption": figure.caption,
                "command": figure.command,
                "why_not_drawn": figure.why or None,
                "data": f"tables/{figure.name}.csv" if figure.spec else None,
            }
            for figure in report.figures
        ],
        "runs": [
            {
                key: value
                for key, value in page.run_row(run, report.rates).items()
                if key not in ("curve", "folder")
            }
            for run in report.index.runs
            if run["state"] != FOREIGN
        ],
        "problems": [
            {key: problem[key] for key in ("path", "state", "why")}
            for problem in page.list_problems(report.index, report.documents)
        ],
    }


def check_out(out: Path) -> None:
    """Refuses a folder that holds anything but a report.

    Raises:
        UsageError: it is a file, or has other contents.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out={plain_text(out)} is a file.\nAllowed: a folder, new or empty.")
    if not (out / CACHE_FILE).exists() and any(out.iterdir()):
        raise UsageError(
            f"--out={plain_text(out)} holds something that is no report.\n"
            "Allowed: a new or empty folder, or that of an earlier report."
        )


def watch(build: Callable[[], Outcome], say: Callable[[str], None], every_s: float) -> None:
    """Makes a report again and again, until it is interrupted.

    Args:
        build: makes it.
        say: told when something changed.
        every_s: the pause in between.
    """
    while True:
        outcome = build()
        if outcome.changed:
            say(str(outcome))
        time.sleep(every_s)


def _power_of_best(index: Index) -> figures.Figure | None:
    """Power over time of the most accurate run of the largest set, as an example."""
    from jaxenergy.records import read_run

    for runs in groups.comparable(index.runs).values():
        front = groups.pareto_front(runs) or sorted(runs, key=lambda run: run["path"])
        best = front[-1]
        try:
            run = read_run(best["folder"]) if best["page"] else None
            if run is None:
                continue
            figure = figures.make_power(best, run.windows, run.environment)
        except UsageError:
            continue
        return dataclasses.replace(figure, section="Power over time")
    return None


def _command(root: Path, out: Path, rates: Rates) -> str:
    words = [
        "python -m experiments.report",
        shlex.quote(plain_text(root)),
        f"--out={shlex.quote(plain_text(out))}",
    ]
    if rates.carbon_g_per_kwh is not None:
        words.append(f"--carbon_intensity={rates.carbon_g_per_kwh:g}")
    if rates.price_per_kwh is not None:
        words.append(f"--price={rates.price_per_kwh:g}")
    return " ".join(words)


def _stamp(index: Index, cache: Mapping[str, Any], command: str, reload_s: float | None) -> str:
    """Changes whenever the page would."""
    known = [(path, entry[0]) for path, entry in cache["runs"].items()]
    foreign = [(run["path"], run["why"]) for run in index.runs if run["state"] == FOREIGN]
    text = json.dumps([known, foreign, index.documents, command, reload_s, reader_version()])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_cache(out: Path) -> dict[str, Any]:
    try:
        cache = json.loads((out / CACHE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _remove_old_pages(pages: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Removes the pages of runs that are gone; no other file."""
    kept = {entry[1]["page"] for entry in new["runs"].values()}
    for entry in old.get("runs", {}).values():
        name = entry[1].get("page")
        if name and name not in kept and Path(name).name == name:
            with contextlib.suppress(OSError):
                (pages / name).unlink()


def _drawing_library(folder: Path) -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; made once, since that takes seconds."""
    _load_vl_convert()
    mark = f"// vl-convert-python {importlib.metadata.version('vl-convert-python')}\n"
    with contextlib.suppress(OSError):
        text = (folder / "vega.js").read_text()
        if text.startswith(mark):
            return text
    return mark + _bundle()


@functools.cache
def _bundle() -> str:
    return _load_vl_convert().javascript_bundle(_BUNDLE)


def _load_vl_convert():
    try:
        import vl_convert
    except ImportError:
        raise UsageError(
            "Figures need vl-convert-python, which is not installed.\n"
            "Install it: pip install -c constraints.txt -e '.[report]'"
        ) from None
    return vl_convert


def _write_figures(drawn: Sequence[figures.Figure], folder: Path) -> None:
    """Each figure as SVG and PDF for a paper."""
    vl_convert = _load_vl_convert()
    folder.mkdir(exist_ok=True)
    for figure in drawn:
        if figure.spec is None:
            continue
        spec = on_paper(figure.with_data())
        write_text(folder / f"{figure.name}.svg", vl_convert.vegalite_to_svg(spec))
        write_text(folder / f"{figure.name}.pdf", vl_convert.vegalite_to_pdf(spec))


def _write_tables(report: Report, folder: Path) -> None:
    """The runs, the verdicts, and the data of each figure as CSV, Markdown and LaTeX."""
    folder.mkdir(exist_ok=True)
    columns = [
        (key, _with_unit(key, heading)) for key, heading, *_ in page.run_columns(report.rates)
    ]
    runs: list[Record] = [
        page.run_row(run, report.rates) for run in report.index.runs if run["state"] != FOREIGN
    ]
    runs.sort(key=groups.rank_of)
    paper = [column for column in columns if column[0] in _PAPER_COLUMNS]
    _write_table(
        folder, "runs", columns, runs, "Runs, by joules without idle and compiling", paper=paper
    )
    verdicts = [
        {**dataclasses.asdict(verdict), "claim": study.claim}
        for study in report.documents.studies
        for verdict in study.verdicts
    ]
    if verdicts:
        _write_table(folder, "verdicts", _VERDICT_COLUMNS, verdicts, "Claims and verdicts")
    if pairs := page.pair_rows(report.documents):
        _write_table(folder, "pairs", page.PAIR_COLUMNS, pairs, "Frameworks, in pairs")
    problems = page.list_problems(report.index, report.documents)
    if problems:
        names = [("path", "folder"), ("state", "state"), ("why", "reason")]
        _write_table(folder, "problems", names, problems, "Not finished, failed or not readable")
    for figure in report.figures:
        if figure.spec is not None:
            rows = figure.rows
            if figure.name == "power":
                rows = [row for row in rows if row["kind"] == "power"]
            _write_table(folder, figure.name, figure.columns, rows, figure.title)


def _write_table(
    folder: Path,
    name: str,
    columns: tables.Columns,
    rows: tables.Rows,
    title: str,
    paper: tables.Columns | None = None,
) -> None:
    write_text(folder / f"{name}.csv", tables.to_csv(columns, rows))
    write_text(folder / f"{name}.md", tables.to_markdown(paper or columns, rows))
    write_text(folder / f"{name}.tex", tables.to_latex(paper or columns, rows, title))


# What of a run has room in a paper.
_PAPER_COLUMNS = (
    *("name", "model", "dataset", "optimizer", "accuracy", "without_compiling_j", "energy_j"),
    *("per_update_j", "per_update_relative", "provenance", "carbon_g", "price"),
)
_VERDICT_COLUMNS = (
    ("study", "study"),
    ("statement", "statement"),
    ("verdict", "verdict"),
    ("effect", "effect"),
    ("low", "95 % low"),
    ("high", "95 % high"),
    ("unit", "unit"),
    ("quantity", "about"),
    ("provenance", "joules"),
    ("why", "why"),
)
_UNITS = {
    "energy_j": "J",
    "without_compiling_j": "J",
    "net_j": "J",
    "target_energy_j": "J",
    "per_update_j": "J",
    "per_example_j": "J",
    "duration_s": "s",
    "carbon_g": "g",
}


def _with_unit(key: str, heading: str) -> str:
    heading = {"per_update_relative": "± of J per update (95 %, relative)"}.get(key, heading)
    return f"{heading} ({_UNITS[key]})" if key in _UNITS else heading
