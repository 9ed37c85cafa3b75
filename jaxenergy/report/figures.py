"""The figures of a report: each is its data, a drawing of it, and the words that go with them.

A figure is one function that takes what is known and returns a `Figure`; adding one is a function
and a row of `FIGURES`. The drawing is a Vega-Lite specification, from which come the figure on the
page and the SVG and PDF beside it; the data that it draws stands in `rows`, and is what the reader
of the page can open and download.

References:
    A. Satyanarayan, D. Moritz, K. Wongsuphasawat, J. Heer, Vega-Lite: a grammar of interactive
    graphics, IEEE Trans. Visualization & Computer Graphics 23, 341 (2017).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxenergy.records.schema import FOREIGN, PHASES
from jaxenergy.records.summary import label_lines
from jaxenergy.report import groups
from jaxenergy.report.documents import Comparison, Documents, Framework, Pair
from jaxenergy.report.groups import FACTORS
from jaxenergy.report.index import Index
from jaxenergy.report.style import (
    FAINT,
    GREY,
    INK,
    PHASE_COLORS,
    PROVENANCE_COLORS,
    PROVENANCE_SHAPES,
    SERIES,
)
from jaxenergy.units import NS_PER_S, format_count, format_si

Record = Mapping[str, Any]
Row = dict[str, Any]

_MOST_OF_A_KIND = 2  # figures that differ in the runs they are about
_MOST_CURVES = 24
_MOST_WINDOWS = 1500
_MOST_TICKS = 1000
_Z95 = 1.959964
_OVERLAP = {"labelOverlap": "greedy", "labelSeparation": 6}
_VEGA_LITE = "https://vega.github.io/schema/vega-lite/v6.json"  # its name, never fetched


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its files and its place on the page.
        title: what it is about.
        caption: how to read it, and what it does not say.
        columns: (key, heading with its unit) of the data beside it.
        rows: the data.
        spec: the drawing, in Vega-Lite, without data; None where there is nothing to draw.
        command: what makes it again.
        section: the heading of the page under which it stands.
        why: why there is nothing to draw.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    spec: dict[str, Any] | None
    command: str = ""
    section: str = ""
    why: str = ""

    def with_data(self) -> dict[str, Any]:
        """The drawing with its data inside."""
        return {**(self.spec or {}), "data": {"name": "rows", "values": list(self.rows)}}


def make_figures(index: Index, documents: Documents, command: str) -> list[Figure]:
    """All figures that the runs and documents give, in the order of the page.

    Args:
        index: the runs.
        documents: studies and comparisons.
        command: the command that makes the report.

    Returns:
        The figures; one that cannot be drawn says why.
    """
    figures = []
    for section, make in FIGURES:
        for figure in make(index, documents):
            figures.append(
                dataclasses.replace(figure, section=section, command=figure.command or command)
            )
    return figures


# ------------------------------------------------------------------------- energy and accuracy


def make_accuracy(index: Index, documents: Documents) -> list[Figure]:
    """Energy against accuracy, with the front of runs that none beats in both."""
    del documents
    columns = (
        ("run", "run"),
        ("without_compiling_j", "energy without idle and compiling (J)"),
        ("accuracy", "accuracy"),
        ("of", "accuracy of"),
        ("optimizer", "optimizer"),
        ("provenance", "provenance"),
        ("front", "on the front"),
        ("page", "page"),
    )
    figures = []
    for kind, runs in groups.comparable(index.runs).items():
        dataset, provenance = kind.dataset, kind.provenance
        known = [run for run in runs if groups.accuracy_of(run) is not None]
        if not known:
            continue
        front = {run["path"] for run in groups.pareto_front(known)}
        rows = [
            {
                "run": run["name"],
                "without_compiling_j": run["without_compiling_j"],
                "accuracy": groups.accuracy_of(run),
                "of": "test" if run["test_accuracy"] is not None else "validation",
                "optimizer": run["optimizer"],
                "provenance": provenance,
                "front": run["path"] in front,
                "page": f"runs/{run['page']}",
            }
            for run in sorted(known, key=lambda run: run["without_compiling_j"])
        ]
        color = PROVENANCE_COLORS[provenance]
        scale, scaled = _joules_scale([row["without_compiling_j"] for row in rows])
        x = {
            "field": "without_compiling_j",
            "type": "quantitative",
            "title": f"energy without idle and compiling, {provenance}{scaled}",
            "scale": scale,
            "axis": {**_OVERLAP, "labelExpr": _with_unit("J"), "tickCount": 6},
        }
        y = _accuracy_axis(rows, "accuracy")
        figures.append(
            Figure(
                name=_numbered("accuracy", figures),
                title=f"Energy against accuracy: {dataset}, {provenance}",
                caption=(
                    f"Each mark is a run {_on(kind._asdict())}; joules are {provenance}, without"
                    " idle and compiling, since runs that found their programs in the cache did"
                    " not compile. The line joins the runs that no other beats in both (the Pareto"
                    " front); what lies below it to the right costs more for less. One run is one"
                    " draw of its seed: near ties are not settled here."
                ),
                columns=columns,
                rows=rows,
                spec={
                    "$schema": _VEGA_LITE,
                    "height": 320,
                    "layer": [
                        {
                            "transform": [{"filter": "datum.front"}],
                            "mark": {
                                "type": "line",
                                "interpolate": "step-after",
                                "color": INK,
                                "strokeWidth": 1.5,
                                "opacity": 0.7,
                            },
                            "encoding": {"x": x, "y": y},
                        },
                        {
                            "mark": {
                                "type": "point",
                                "filled": True,
                                "shape": PROVENANCE_SHAPES[provenance],
                                "cursor": "pointer",
                                "stroke": INK,
                            },
                            "encoding": {
                                "x": x,
                                "y": y,
                                "color": {"value": color},
                                "size": {
                                    "condition": {"test": "datum.front", "value": 90},
                                    "value": 45,
                                },
                                "opacity": {
                                    "condition": {"test": "datum.front", "value": 1},
                                    "value": 0.6,
                                },
                                "strokeWidth": {
                                    "condition": {"test": "datum.front", "value": 1.5},
                                    "value": 0,
                                },
                                "href": {"field": "page"},
                                "tooltip": [
                                    {"field": "run", "title": "run"},
                                    _tip("without_compiling_j", "without compiling (J)", ".4~s"),
                                    _tip("accuracy", "accuracy", ".2%"),
                                    {"field": "of", "title": "accuracy of"},
                                    {"field": "optimizer", "title": "optimizer"},
                                    {"field": "provenance", "title": "joules"},
                                ],
                            },
                        },
                    ],
                },
            )
        )
        if len(figures) == _MOST_OF_A_KIND:
            break
    return figures or [
        _empty(
            "accuracy",
            "Energy against accuracy",
            "no finished run has both its joules without compiling and an accuracy",
        )
    ]


def make_curves(index: Index, documents: Documents) -> list[Figure]:
    """Accuracy over joules without compiling, as the training went on."""
    del documents
    columns = (
        ("run", "run"),
        ("optimizer", "optimizer"),
        ("update", "update"),
        ("energy_j", "energy so far without compiling (J)"),
        ("accuracy", "validation accuracy"),
        ("provenance", "joules are"),
    )
    for kind, runs in groups.comparable(index.runs).items():
        dataset, provenance = kind.dataset, kind.provenance
        curved = [run for run in runs if len(run["curve"]) > 1]
        if not curved:
            continue
        curved.sort(key=lambda run: -(groups.accuracy_of(run) or 0.0))
        shown = curved[:_MOST_CURVES]
        names = _most_common([run["optimizer"] for run in shown], len(SERIES) - 1)
        rows = [
            {
                "run": run["name"],
                "path": run["path"],
                "optimizer": run["optimizer"] if run["optimizer"] in names else "others",
                "update": update,
                "energy_j": joules,
                "accuracy": accuracy,
                "provenance": provenance,
                "page": f"runs/{run['page']}",
            }
            for run in shown
            for update, joules, accuracy in run["curve"]
        ]
        present = sorted(
            {row["optimizer"] for row in rows}, key=lambda name: (name == "others", name)
        )
        left_out = len(curved) - len(shown)
        scale, scaled = _joules_scale([row["energy_j"] for row in rows])
        return [
            Figure(
                name="curves",
                title=f"Energy to accuracy: {dataset}, {provenance}",
                caption=(
                    "Validation accuracy over the joules spent until then, start-up among them and"
                    f" compiling not, {_on(kind._asdict())}; joules are {provenance}. Read across"
                    " at an accuracy to see what it took."
                    + (
                        f" Of {len(curved)} runs the {len(shown)} of highest accuracy are drawn."
                        if left_out
                        else ""
                    )
                ),
                columns=columns,
                rows=rows,
                spec={
                    "$schema": _VEGA_LITE,
                    "height": 320,
                    "mark": {"type": "line", "point": {"size": 22}, "strokeWidth": 1.5},
                    "encoding": {
                        "x": {
                            "field": "energy_j",
                            "type": "quantitative",
                            "title": f"energy so far without compiling, {provenance}{scaled}",
                            "axis": {**_OVERLAP, "labelExpr": _with_unit("J"), "tickCount": 6},
                            "scale": scale,
                        },
                        "y": _accuracy_axis(rows, "validation accuracy"),
                        "detail": {"field": "path"},
                        "color": {
                            "field": "optimizer",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": present, "range": _colors(present)},
                            "legend": {"columns": 4},
                        },
                        "strokeDash": {
                            "field": "optimizer",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": present, "range": _dashes(len(present))},
                            "legend": {"columns": 4},
                        },
                        "href": {"field": "page"},
                        "tooltip": [
                            {"field": "run", "title": "run"},
                            {"field": "optimizer", "title": "optimizer"},
                            _tip("update", "update", ","),
                            _tip("energy_j", "energy so far (J)", ".4~s"),
                            _tip("accuracy", "validation accuracy", ".2%"),
                        ],
                    },
                },
            )
        ]
    return [_empty("curves", "Energy to accuracy", "no finished run has evaluations with joules")]


# ------------------------------------------------------------------------------- where joules go


def make_phases(index: Index, documents: Documents) -> list[Figure]:
    """Joules by phase, over the runs of a kind."""
    del documents
    order = [*PHASES, "lost"]
    return _sums(index, "by_phase", "phases", "Joules by phase", "phase", order)


def make_domains(index: Index, documents: Documents) -> list[Figure]:
    """Joules by domain, over the runs of a kind."""
    del documents
    return _sums(index, "by_domain", "domains", "Joules by domain", "domain", [])


def _sums(
    index: Index, key: str, name: str, title: str, what: str, order: Sequence[str]
) -> list[Figure]:
    columns = (
        (what, what),
        ("energy_j", "energy (J)"),
        ("low_j", "95 % low (J)"),
        ("high_j", "95 % high (J)"),
        ("share", "share"),
        ("runs", "runs"),
        ("unknown", "runs in which it is not known"),
        ("provenance", "joules are"),
    )
    figures: list[Figure] = []
    kinds = groups.by_kind(run for run in index.runs if run["state"] != FOREIGN and run[key])
    chosen = [
        kind
        for provenance in PROVENANCE_COLORS
        for kind in [kind for kind in kinds if kind.provenance == provenance][:_MOST_OF_A_KIND]
    ]
    for kind in chosen:
        runs, provenance = kinds[kind], kind.provenance
        sums: dict[str, list] = {}
        for run in runs:
            for part, (joules, error) in run[key].items():
                entry = sums.setdefault(part, [0.0, 0.0, 0, 0])
                if joules is None or error is None:  # a bar without its interval is not drawn
                    entry[3] += 1
                else:
                    entry[0] += joules
                    entry[1] += error**2
                    entry[2] += 1
        if not any(entry[2] for entry in sums.values()):
            continue
        total = math.fsum(entry[0] for entry in sums.values())
        rows = []
        for part in sorted(sums, key=lambda p: order.index(p) if p in order else len(order)):
            joules, variance, known, unknown = sums[part]
            half = _Z95 * math.sqrt(variance)
            rows.append(
                {
                    what: part,
                    "energy_j": joules if known else None,
                    "low_j": joules - half if known else None,
                    "high_j": joules + half if known else None,
                    "share": joules / total if total > 0 and known else None,
                    "runs": known,
                    "unknown": unknown,
                    "provenance": provenance,
                }
            )
        missing = sum(row["unknown"] for row in rows)
        room = 1.15 * max(row["high_j"] or 0.0 for row in rows)  # for the words behind a bar
        shape = PROVENANCE_COLORS[provenance]
        figures.append(
            Figure(
                name=_numbered(name, figures),
                title=f"{title}, {provenance}: {groups.name_kind(kind, chosen)}",
                caption=(
                    f"The sum over {format_count(len(runs), 'run')} {_on(kind._asdict())},"
                    f" {provenance}; runs of another kind are not in it. The interval (95 %) is"
                    " the error of reading the counters at the edges; the sensor's calibration is"
                    " not in it."
                    + (
                        f" Left out: {format_count(missing, 'sum')} that some run does not know, or"
                        " not how well."
                        if missing
                        else ""
                    )
                ),
                columns=columns,
                rows=rows,
                spec={
                    "$schema": _VEGA_LITE,
                    "height": 30 * len(rows),
                    "encoding": {
                        "y": {
                            "field": what,
                            "type": "nominal",
                            "title": None,
                            "sort": [row[what] for row in rows],
                        },
                    },
                    "layer": [
                        {
                            "mark": {"type": "bar", "color": shape, "height": {"band": 0.66}},
                            "encoding": {
                                "x": _joules_axis("energy_j", f"energy, {provenance}", room),
                                "tooltip": [
                                    {"field": what, "title": what},
                                    _tip("energy_j", "energy (J)", ".4~s"),
                                    _tip("low_j", "95 % low (J)", ".4~s"),
                                    _tip("high_j", "95 % high (J)", ".4~s"),
                                    _tip("share", "share", ".1%"),
                                    _tip("runs", "runs", ","),
                                ],
                            },
                        },
                        *_interval_layers("low_j", "high_j"),
                        {
                            "mark": {
                                "type": "text",
                                "align": "left",
                                "dx": 8,
                                "color": FAINT,
                                "fontSize": 11.5,
                            },
                            "encoding": {
                                "x": {"field": "high_j", "type": "quantitative"},
                                "text": {"field": "share", "format": ".1%"},
                            },
                        },
                    ],
                },
            )
        )
    return figures or [_empty(name, title, "no run was metered")]


# --------------------------------------------------------------------------------- by factor


def make_factor(factor: str) -> Callable[[Index, Documents], list[Figure]]:
    """The figure of joules per update by the levels of a factor."""

    def make(index: Index, documents: Documents) -> list[Figure]:
        del documents
        figures: list[Figure] = []
        for stratum in groups.find_strata(index.runs, factor)[:_MOST_OF_A_KIND]:
            figures.append(_factor_figure(stratum, _numbered(factor, figures)))
        return figures or [
            _empty(
                factor,
                f"Joules per update by {factor}",
                f"no two finished runs differ in the {factor} and in nothing else that changes what"
                " an update costs",
            )
        ]

    return make


def _factor_figure(stratum: groups.Stratum, name: str) -> Figure:
    factor, shared = stratum.factor, stratum.shared
    provenance = shared["provenance"]
    rows = [
        {
            "level": level.name,
            "per_update_j": level.mean_j,
            "low_j": level.low_j,
            "high_j": level.high_j,
            "drawn_low_j": max(level.low_j, 0.0),
            "runs": level.runs,
            "interval": level.interval,
            "provenance": provenance,
        }
        for level in stratum.levels
    ]
    shape = [f"{shared['model']}"]
    shape += [
        f"{word} {shared[key]}"
        for key, word in (("depth", "depth"), ("width", "width"))
        if key in shared
    ]
    shape += [str(shared[key]) for key in ("activation", "optimizer") if key in shared]
    described = ", ".join(
        [
            *shape,
            f"batch of {shared['batch_size']}",
            f"{shared['precision']}",
            f"{shared['dataset']}",
        ]
    )
    shown = ", ".join(
        f"depth {shared['depth']}" if key == "depth" else str(shared[key])
        for key in ("model", *FACTORS)
        if key in shared
    )
    return Figure(
        name=name,
        title=f"Joules per update by {factor}: {shown}",
        caption=(
            f"{described}; {_on(shared)}; {provenance}. All that changes the cost of an update but"
            f" the {factor} is the same; seeds, lengths and learning rates may differ. The interval"
            " (95 %) is that of the mean over runs, or within the run where there is one."
        ),
        columns=(
            ("level", factor),
            ("per_update_j", "per update (J)"),
            ("low_j", "95 % low (J)"),
            ("high_j", "95 % high (J)"),
            ("runs", "runs"),
            ("interval", "interval over"),
            ("provenance", "joules are"),
        ),
        rows=rows,
        spec={
            "$schema": _VEGA_LITE,
            "height": 34 * len(rows),
            "encoding": {
                "y": {
                    "field": "level",
                    "type": "nominal",
                    "title": factor,
                    "sort": [row["level"] for row in rows],
                }
            },
            "layer": [
                {
                    "mark": {
                        "type": "bar",
                        "color": PROVENANCE_COLORS[provenance],
                        "height": {"band": 0.62},
                    },
                    "encoding": {
                        "x": _joules_axis("per_update_j", f"energy per update, {provenance}"),
                        "tooltip": [
                            {"field": "level", "title": factor},
                            _tip("per_update_j", "per update (J)", ".4~s"),
                            _tip("low_j", "95 % low (J)", ".4~s"),
                            _tip("high_j", "95 % high (J)", ".4~s"),
                            _tip("runs", "runs", ","),
                            {"field": "interval", "title": "interval over"},
                        ],
                    },
                },
                *_interval_layers("drawn_low_j", "high_j"),
            ],
        },
    )


# --------------------------------------------------------------------------------- one run


def make_power(
    record: Record, windows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any] | None
) -> Figure:
    """Power over time of one run, its phases shaded, the ticks of its counters below.

    Args:
        record: the run's record.
        windows: the lines of its `windows.jsonl`.
        environment: its `environment.json`; the periods of the counters are read from it.

    Returns:
        The figure.
    """
    every = [line for _, line in label_lines(windows)]
    lines = _thin(every)
    undrawn = sum(_length_ns(line) for line in every) - sum(_length_ns(line) for line in lines)
    labels = _labels(windows, lines)
    rows: list[Row] = []
    origin: dict[Any, int] = {}
    offset_s = 0.0
    domains: list[str] = []
    ticks = 0
    for label, line in zip(labels, lines, strict=True):
        process = (line.get("attempt"), line.get("boot_id"))
        if process not in origin:  # attempts follow each other; the pause between is not drawn
            origin[process] = line["start_ns"] - round(offset_s * NS_PER_S)
        start_s = (line["start_ns"] - origin[process]) / NS_PER_S
        end_s = (line["end_ns"] - origin[process]) / NS_PER_S
        offset_s = max(offset_s, end_s)
        rows.append({"kind": "phase", "phase": label, "start_s": start_s, "end_s": end_s})
        duration_s = end_s - start_s
        errors = _errors(line)
        for domain, joules in line["energy_j"].items():
            if domain not in domains:
                domains.append(domain)
            if joules is None or duration_s <= 0:
                continue
            half_w = _Z95 * errors.get(domain, 0.0) / duration_s
            power_w = joules / duration_s
            rows.append(
                {
                    "kind": "power",
                    "domain": domain,
                    "phase": label,
                    "start_s": start_s,
                    "end_s": end_s,
                    "power_w": power_w,
                    "low_w": max(power_w - half_w, 0.0),
                    "high_w": power_w + half_w,
                    "energy_j": joules,
                    "updates": line.get("updates"),
                    "provenance": _provenance(line, domain) or record["provenance"],
                }
            )
        for domain, instants in _ticks(line).items():
            ticks += len(instants)
            rows += [
                {
                    "kind": "tick",
                    "domain": domain,
                    "start_s": (instant - origin[process]) / NS_PER_S,
                }
                for instant in instants
            ]
    if ticks > _MOST_TICKS:
        rows = [row for row in rows if row["kind"] != "tick"]
    present = [phase for phase in PHASE_COLORS if any(row.get("phase") == phase for row in rows)]
    name = f"Power over time: {record['name']}"
    if not domains:
        return _empty("power", name, "the run has no lines with joules")
    return Figure(
        name="power",
        title=name,
        caption=(
            f"Mean power of each window or phase with its interval (95 %), {record['provenance']};"
            " phases are shaded; what of an interval reaches beyond the frame is in the data. "
            + (
                f"There are too many lines to draw: {format_si(undrawn / NS_PER_S, 's')} of the run"
                " are left out, evenly. "
                if undrawn > 0
                else ""
            )
            + _tick_words(environment, domains, ticks)
        ),
        columns=(
            ("domain", "domain"),
            ("phase", "phase"),
            ("start_s", "start (s)"),
            ("end_s", "end (s)"),
            ("power_w", "mean power (W)"),
            ("low_w", "95 % low (W)"),
            ("high_w", "95 % high (W)"),
            ("energy_j", "energy (J)"),
            ("updates", "updates"),
            ("provenance", "joules are"),
        ),
        rows=rows,
        command=record["command"],
        spec=_power_spec(
            present,
            domains,
            bool(ticks) and ticks <= _MOST_TICKS,
            max((row["power_w"] for row in rows if row["kind"] == "power"), default=0.0),
        ),
    )


_POWER_HEIGHT = 280


def _power_spec(
    phases: Sequence[str], domains: Sequence[str], ticks: bool, most_w: float
) -> dict[str, Any]:
    x = {
        "field": "start_s",
        "type": "quantitative",
        "title": "time since the first line (s)",
        "scale": {"nice": False},
        "axis": {"grid": False, "tickCount": 8, "labelOverlap": True},
    }
    y = {
        "field": "power_w",
        "type": "quantitative",
        "title": "mean power (W)",
        "axis": {"tickCount": 6},
        # The interval of a window shorter than a tick may be many times its power: it is cut.
        "scale": {"domain": [0, 1.25 * most_w or 1.0]},
    }
    dashes = {
        "field": "domain",
        "type": "nominal",
        "title": "domain",
        "scale": {"domain": list(domains), "range": _dashes(len(domains))},
        "legend": {"symbolType": "stroke", "symbolStrokeColor": INK, "orient": "bottom"}
        if len(domains) > 1
        else None,
    }
    layers: list[dict[str, Any]] = [
        {
            "transform": [{"filter": "datum.kind == 'phase'"}],
            "mark": {"type": "rect", "opacity": 0.22},
            "encoding": {
                "x": x,
                "x2": {"field": "end_s"},
                "color": {
                    "field": "phase",
                    "type": "nominal",
                    "title": "phase",
                    "scale": {
                        "domain": list(phases),
                        "range": [PHASE_COLORS[phase] for phase in phases],
                    },
                    "legend": {"symbolType": "square", "symbolOpacity": 0.5, "columns": 4},
                },
                "tooltip": [
                    {"field": "phase", "title": "phase"},
                    _tip("start_s", "from (s)", ".4~r"),
                    _tip("end_s", "to (s)", ".4~r"),
                ],
            },
        },
        {
            "transform": [{"filter": "datum.kind == 'power'"}],
            "mark": {"type": "rect", "color": INK, "opacity": 0.18, "clip": True},
            "encoding": {
                "x": x,
                "x2": {"field": "end_s"},
                "y": {**y, "field": "low_w"},
                "y2": {"field": "high_w"},
            },
        },
        {
            "transform": [{"filter": "datum.kind == 'power'"}],
            "mark": {"type": "rule", "color": INK, "strokeWidth": 2},
            "encoding": {
                "x": x,
                "x2": {"field": "end_s"},
                "y": y,
                "strokeDash": dashes,
                "tooltip": [
                    {"field": "domain", "title": "domain"},
                    {"field": "phase", "title": "phase"},
                    _tip("power_w", "mean power (W)", ".4~r"),
                    _tip("low_w", "95 % low (W)", ".4~r"),
                    _tip("high_w", "95 % high (W)", ".4~r"),
                    _tip("energy_j", "energy (J)", ".4~r"),
                    _tip("updates", "updates", ","),
                    _tip("start_s", "from (s)", ".4~r"),
                    _tip("end_s", "to (s)", ".4~r"),
                ],
            },
        },
    ]
    if ticks:
        layers.append(
            {
                "transform": [{"filter": "datum.kind == 'tick'"}],
                "mark": {"type": "rule", "color": INK, "strokeWidth": 1, "opacity": 0.7},
                "encoding": {
                    "x": x,
                    "y": {"value": _POWER_HEIGHT},
                    "y2": {"value": _POWER_HEIGHT - 9},
                },
            }
        )
    return {
        "$schema": _VEGA_LITE,
        "height": _POWER_HEIGHT,
        "layer": layers,
        "resolve": {"legend": {"color": "independent", "strokeDash": "independent"}},
    }


def _ticks(line: Mapping[str, Any]) -> dict[str, list[int]]:
    """The instants at which slow counters ticked within a line, in the clock of `start_ns`."""
    found = line.get("ticks_ns")
    if not isinstance(found, dict):
        return {}
    return {
        domain: [line["start_ns"] + after for after in afters if type(after) is int]
        for domain, afters in found.items()
        if isinstance(afters, list)
    }


def _tick_words(environment: Mapping[str, Any] | None, domains: Sequence[str], drawn: int) -> str:
    periods = []
    meters = (environment or {}).get("meters")
    for meter in meters if isinstance(meters, list) else ():
        if isinstance(meter, dict) and meter.get("name") in domains:
            tick_s = meter.get("tick_s")
            if not isinstance(tick_s, int | float):
                continue
            if tick_s > 0:
                periods.append(f"{meter['name']} ticks every {format_si(tick_s, 's')}")
            else:
                periods.append(f"{meter['name']} has no ticks: it is read when it is asked")
    words = "; ".join(periods)
    if 0 < drawn <= _MOST_TICKS:
        marked = "The strokes at the bottom are the ticks of the counters that were seen"
        return f"{marked} ({words})." if words else f"{marked}."
    if drawn:
        return f"{drawn:,} ticks were seen, too many to draw ({words})."
    return f"Counters: {words}." if words else ""


def _thin(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As many lines as can be drawn: neighbours of the same phase are added up.

    Where phases alternate and there are no such neighbours, each phase is thinned evenly over the
    run, those of fewest lines the least.
    """
    lines = list(lines)
    if len(lines) <= _MOST_WINDOWS:
        return lines
    together = math.ceil(2 * len(lines) / _MOST_WINDOWS)
    thinned: list[Any] = []
    counts: list[int] = []
    for line in lines:
        last = thinned[-1] if thinned else None
        if (
            last is not None
            and counts[-1] < together
            and last["phase"] == line["phase"]
            and last.get("attempt") == line.get("attempt")
            and last["end_ns"] == line["start_ns"]
        ):
            thinned[-1] = _added(last, line)
            counts[-1] += 1
        else:
            thinned.append(line)
            counts.append(1)
    if len(thinned) <= _MOST_WINDOWS:
        return thinned
    places: dict[str, list[int]] = {}
    for place, line in enumerate(thinned):
        places.setdefault(line["phase"], []).append(place)
    kept: list[int] = []
    for number, some in enumerate(sorted(places.values(), key=len)):
        quota = max(1, (_MOST_WINDOWS - len(kept)) // (len(places) - number))
        count = min(len(some), quota)
        kept += [some[round(i * (len(some) - 1) / max(count - 1, 1))] for i in range(count)]
    return [thinned[place] for place in sorted(kept)]


def _provenance(line: Mapping[str, Any], domain: str) -> str | None:
    """The provenance of a domain's joules, as the line gives it."""
    given = line.get("provenance")
    found = given.get(domain) if isinstance(given, dict) else None
    return found if found in PROVENANCE_COLORS else None


def _length_ns(line: Mapping[str, Any]) -> int:
    return line["end_ns"] - line["start_ns"]


def _errors(line: Mapping[str, Any]) -> dict[str, float]:
    """The standard errors that a line gives, by domain."""
    given = line.get("uncertainty_j")
    return {
        domain: error
        for domain, error in (given.items() if isinstance(given, dict) else ())
        if type(error) in (int, float)
    }


def _added(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two lines that adjoin as one; of their errors the outer edges stay."""

    def add(domain: str) -> float | None:
        a, b = first["energy_j"].get(domain), second["energy_j"].get(domain)
        return None if a is None or b is None else a + b

    before, after = _errors(first), _errors(second)
    domains = list(first["energy_j"])
    return {
        **first,
        "end_ns": second["end_ns"],
        "updates": (first.get("updates") or 0) + (second.get("updates") or 0),
        "energy_j": {domain: add(domain) for domain in domains},
        "uncertainty_j": {
            domain: math.sqrt((before[domain] ** 2 + after[domain] ** 2) / 2)
            for domain in domains
            if domain in before and domain in after
        },
        "ticks_ns": {},
    }


def _labels(windows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each line that is drawn, `lost` where a rollback undid it."""
    by_start = {
        (line.get("attempt"), line["start_ns"]): label for label, line in label_lines(windows)
    }
    known = {*PHASE_COLORS}
    labels = [by_start.get((line.get("attempt"), line["start_ns"]), "other") for line in lines]
    return [label if label in known else "other" for label in labels]


# --------------------------------------------------------------------------------- frameworks


def make_frameworks(index: Index, documents: Documents) -> list[Figure]:
    """What the same training takes in each framework, and where one overtakes another."""
    del index
    figures: list[Figure] = []
    for comparison in documents.comparisons:
        sides = [side for side in comparison.frameworks if side.per_update_j.value is not None]
        if not sides:
            continue
        figures.append(
            _sides_figure(
                comparison, documents.name_of(comparison), sides, _numbered("frameworks", figures)
            )
        )
        if len(figures) == _MOST_OF_A_KIND:
            break
    crossovers: list[Figure] = []
    for comparison in documents.comparisons[:_MOST_OF_A_KIND]:
        figure = _crossover_figure(
            comparison, documents.name_of(comparison), _numbered("crossover", crossovers)
        )
        if figure is not None:
            crossovers.append(figure)
    return [*figures, *crossovers]


def _sides_figure(
    comparison: Comparison, model: str, sides: Sequence[Framework], name: str
) -> Figure:
    provenance = comparison.provenance
    rows = [
        {
            "framework": side.name,
            "per_update_j": side.per_update_j.value,
            "low_j": side.per_update_j.low,
            "high_j": side.per_update_j.high,
            "per_update_s": side.per_update_s.value,
            "power_w": side.power_w.value,
            "fixed_j": side.fixed_j.value,
            "training_j": side.training_j.value,
            "processes": side.processes,
            "provenance": provenance,
        }
        for side in sides
    ]
    on = f" on {comparison.device}" if comparison.device else ""
    return Figure(
        name=name,
        title=f"Joules per update by framework: {model}",
        caption=(
            f"The same training{on}, {provenance}, one process at a time, in random order by"
            " blocks. The interval (95 %) is that of the mean over processes. What time and watts"
            " contribute stands in the data and in the table."
        ),
        columns=(
            ("framework", "framework"),
            ("per_update_j", "per update (J)"),
            ("low_j", "95 % low (J)"),
            ("high_j", "95 % high (J)"),
            ("per_update_s", "per update (s)"),
            ("power_w", "mean power (W)"),
            ("fixed_j", "start-up and compilation (J)"),
            ("training_j", "whole training (J)"),
            ("processes", "processes"),
            ("provenance", "joules are"),
        ),
        rows=rows,
        command=comparison.command,
        spec={
            "$schema": _VEGA_LITE,
            "height": 34 * len(rows),
            "encoding": {
                "y": {
                    "field": "framework",
                    "type": "nominal",
                    "title": None,
                    "sort": [row["framework"] for row in rows],
                }
            },
            "layer": [
                {
                    "mark": {
                        "type": "bar",
                        "color": PROVENANCE_COLORS[provenance],
                        "height": {"band": 0.62},
                    },
                    "encoding": {
                        "x": _joules_axis("per_update_j", f"energy per update, {provenance}"),
                        "tooltip": [
                            {"field": "framework", "title": "framework"},
                            _tip("per_update_j", "per update (J)", ".4~s"),
                            _tip("low_j", "95 % low (J)", ".4~s"),
                            _tip("high_j", "95 % high (J)", ".4~s"),
                            _tip("per_update_s", "per update (s)", ".4~s"),
                            _tip("power_w", "mean power (W)", ".4~r"),
                            _tip("processes", "processes", ","),
                        ],
                    },
                },
                *_interval_layers("low_j", "high_j"),
            ],
        },
    )


def _crossover_figure(comparison: Comparison, model: str, name: str) -> Figure | None:
    """Joules of a training over its length, for each framework; where lines cross, it turns."""
    provenance = comparison.provenance
    sides = [
        (side.name, side.fixed_j.value, side.per_update_j.value)
        for side in comparison.frameworks
        if side.fixed_j.value is not None and side.per_update_j.value is not None
    ]
    if len(sides) < 2:
        return None
    lines = {side: (fixed_j, update_j) for side, fixed_j, update_j in sides}
    pairs = [p for p in comparison.pairs if p.framework in lines and p.reference in lines]
    crossings = [pair for pair in pairs if pair.crossover.value is not None]
    lengths = [pair.crossover.value or 0.0 for pair in crossings] + [comparison.updates or 0]
    longest = max(10.0, 1.25 * max(lengths))
    names = [side for side, _, _ in sides]
    rows: list[Row] = [
        {
            "kind": "line",
            "framework": side,
            "updates": longest * part / 40,
            "energy_j": fixed_j + update_j * longest * part / 40,
            "provenance": provenance,
        }
        for side, fixed_j, update_j in sides
        for part in range(41)
    ]
    for pair in crossings:
        fixed_j, update_j = lines[pair.framework]
        at = pair.crossover.value or 0.0
        told: Row = {
            "framework": f"{pair.framework} and {pair.reference}",
            "energy_j": fixed_j + update_j * at,
            "provenance": provenance,
        }
        rows.append(
            {
                **told,
                "kind": "crossover",
                "updates": at,
                "interval": pair.tell_set(),
                "verdict": pair.verdict,
            }
        )
        # A piece without an upper end is drawn to the edge; one beyond the edge is in words only.
        rows += [
            {
                **told,
                "kind": "interval",
                "low": low,
                "high": high,
                "drawn_high": longest if high is None else min(high, longest),
            }
            for low, high in pair.set95 or ()
            if low < longest
        ]
    axis = {
        "field": "updates",
        "type": "quantitative",
        "title": "updates of the training",
        "axis": {**_OVERLAP, "labelExpr": "format(datum.value, '~s')", "tickCount": 6},
        "scale": {"nice": False},
    }
    joules = _joules_axis("energy_j", f"energy of the training, {provenance}")
    return Figure(
        name=name,
        title=f"Energy of a whole training by its length: {model}",
        caption=(
            "Start-up and compilation, and the updates on top. Where two lines cross (marked, with"
            " its 95 % interval, which goes to the edge where it has no end) the dearer becomes the"
            " cheaper. " + " ".join(map(_crossing_words, pairs))
        ),
        columns=(
            ("kind", "what"),
            ("framework", "framework"),
            ("updates", "updates"),
            ("energy_j", "energy (J)"),
            ("interval", "95 % interval (updates)"),
            ("low", "95 % low (updates)"),
            ("high", "95 % high (updates)"),
            ("verdict", "verdict"),
            ("provenance", "joules are"),
        ),
        rows=rows,
        command=comparison.command,
        spec={
            "$schema": _VEGA_LITE,
            "height": 300,
            "layer": [
                {
                    "transform": [{"filter": "datum.kind == 'line'"}],
                    "mark": {"type": "line", "strokeWidth": 2},
                    "encoding": {
                        "x": axis,
                        "y": joules,
                        "color": {
                            "field": "framework",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": names, "range": list(SERIES[: len(names)])},
                        },
                        "strokeDash": {
                            "field": "framework",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": names, "range": _dashes(len(names))},
                        },
                        "tooltip": [
                            {"field": "framework", "title": "framework"},
                            _tip("updates", "updates", ",.0f"),
                            _tip("energy_j", "energy (J)", ".4~s"),
                        ],
                    },
                },
                {
                    "transform": [{"filter": "datum.kind == 'interval'"}],
                    "mark": {"type": "rule", "color": INK, "strokeWidth": 1.5},
                    "encoding": {
                        "x": {"field": "low", "type": "quantitative"},
                        "x2": {"field": "drawn_high"},
                        "y": joules,
                    },
                },
                {
                    "transform": [{"filter": "datum.kind == 'crossover'"}],
                    "mark": {"type": "point", "filled": True, "color": INK, "size": 70},
                    "encoding": {
                        "x": axis,
                        "y": joules,
                        "tooltip": [
                            {"field": "framework", "title": "crossing of"},
                            _tip("updates", "updates", ",.0f"),
                            {"field": "interval", "title": "95 % interval (updates)"},
                            {"field": "verdict", "title": "verdict"},
                        ],
                    },
                },
            ],
        },
    )


def _crossing_words(pair: Pair) -> str:
    """A sentence on where two frameworks cross, as far as it is known."""
    both = f"{pair.framework} and {pair.reference}"
    if pair.crossover.value is not None:
        return f"{both}: at {pair.crossover.value:,.0f} updates ({pair.tell_set()})."
    if pair.verdict == "never":
        return f"{both} do not cross at any length."
    if pair.set95:
        return f"{both}: the means do not cross, but a crossing is not excluded: {pair.tell_set()}."
    return f"{both}: whether they cross is not known ({pair.crossover.why or 'no reason given'})."


FIGURES: tuple[tuple[str, Callable[[Index, Documents], list[Figure]]], ...] = (
    ("Energy and accuracy", make_accuracy),
    ("Energy and accuracy", make_curves),
    ("Where the joules went", make_phases),
    ("Where the joules went", make_domains),
    ("What an update costs", make_factor("optimizer")),
    ("What an update costs", make_factor("activation")),
    ("What an update costs", make_factor("depth")),
    ("Frameworks", make_frameworks),
)


# --------------------------------------------------------------------------------- small parts


def _interval_layers(low: str, high: str) -> list[dict[str, Any]]:
    """A line over the interval with a stroke at each end, on top of a bar."""
    line = {"type": "rule", "color": INK, "strokeWidth": 1.5}
    end = {"type": "tick", "color": INK, "thickness": 1.5, "size": 9}
    return [
        {
            "mark": line,
            "encoding": {"x": {"field": low, "type": "quantitative"}, "x2": {"field": high}},
        },
        {"mark": end, "encoding": {"x": {"field": low, "type": "quantitative"}}},
        {"mark": end, "encoding": {"x": {"field": high, "type": "quantitative"}}},
    ]


def _joules_axis(field: str, title: str, most: float | None = None) -> dict[str, Any]:
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"domain": [0, most]} if most else {"zero": True, "nice": True},
        "axis": {**_OVERLAP, "labelExpr": _with_unit("J"), "tickCount": 6},
    }


def _with_unit(unit: str) -> str:
    """An axis label such as `1.5 kJ`, whatever the size."""
    return f"replace(format(datum.value, '~s'), regexp('([a-zA-Zµ]?)$'), ' $1{unit}')"


def _joules_scale(values: Sequence[float]) -> tuple[dict[str, Any], str]:
    """A scale for joules of runs, logarithmic where they differ much, and what to call that."""
    if max(values) == min(values):
        return {"domain": [0, 2 * max(values) or 1.0]}, ""
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and positive and max(positive) > 8 * min(positive):
        return {"type": "log"}, ", logarithmic"
    return {"zero": False, "nice": True}, ""


def _accuracy_axis(rows: Sequence[Row], title: str) -> dict[str, Any]:
    accuracies = [row["accuracy"] for row in rows]
    spread = max(accuracies) - min(accuracies)
    scale: dict[str, Any] = {"zero": False, "nice": True}
    if spread == 0:
        scale = {"domain": [max(0.0, accuracies[0] - 0.01), min(1.0, accuracies[0] + 0.01)]}
    return {
        "field": "accuracy",
        "type": "quantitative",
        "title": title,
        "scale": scale,
        "axis": {"format": ".0%" if spread > 0.05 else ".1%", "tickCount": 6},
    }


def _tip(field: str, title: str, format: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, "format": format}


def _empty(name: str, title: str, why: str) -> Figure:
    return Figure(name, title, "", (), (), None, why=why)


def _numbered(name: str, figures: Sequence[Figure]) -> str:
    return name if not figures else f"{name}-{len(figures) + 1}"


def _on(shared: Mapping[str, Any]) -> str:
    """What a kind of runs computed on, with, and which domains were counted, in words."""
    words = f"on {shared['device'] or 'a device that was not recorded'}"
    if shared["counted"]:
        words += f", counting {shared['counted']}"
    return words + (f", with jaxlib {shared['jaxlib']}" if shared["jaxlib"] else "")


def _most_common(names: Sequence[str], limit: int) -> set[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return set(ordered if len(ordered) <= limit else ordered[: limit - 1])


def _colors(names: Sequence[str]) -> list[str]:
    return [GREY if name == "others" else SERIES[place] for place, name in enumerate(names)]


def _dashes(count: int) -> list[list[int]]:
    patterns = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 1], [1, 3], [10, 4]]
    return [patterns[place % len(patterns)] for place in range(count)]
