"""A sweep on the terminal: a live table while it runs, a table at its end, plain lines in a log."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxenergy.config import RunConfig
from jaxenergy.meters.base import PROVENANCES
from jaxenergy.records.files import plain_text
from jaxenergy.records.schema import COMPLETED, FAILED, UNFINISHED
from jaxenergy.report.groups import mean_half_width
from jaxenergy.report.index import without_compiling_j
from jaxenergy.report.terminal import PROVENANCE_WORDS
from jaxenergy.sweeps import RUNNING, WAITING, CellResult, Forecast, Progress, Sweep, SweepResult
from jaxenergy.units import format_duration_s, format_si

_LINES_BESIDE_THE_TABLE = 10
_REASONS_SHOWN = 5


class SweepView:
    """Shows a sweep on a console: a table that is redrawn, or a line per run where it is a log.

    Nothing is drawn by a thread, since drawing costs energy that is being counted. A context
    manager.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console):
        self._console = console
        self._live: Live | None = None
        self._summaries: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()

    def __enter__(self) -> "SweepView":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def say(self, text: str) -> None:
        """Prints a sentence, above the table where there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """Redraws the table, or prints what has ended since."""
        if not self._console.is_terminal:
            self._print_ended(progress)
            return
        table = self._table(progress.result, self._console.height - _LINES_BESIDE_THE_TABLE)
        state = f"{_counts(progress.result)}; {_time_left(progress)}"
        lines = [Text(line, overflow="ellipsis", no_wrap=True) for line in (state, _now(progress))]
        shown = Group(table, *lines)
        live = self._live
        if live is None:
            live = self._live = Live(
                shown, console=self._console, auto_refresh=False, transient=True
            )
            live.start()
        live.update(shown, refresh=True)

    def finish(self, result: SweepResult) -> None:
        """Prints the whole table, what failed, and what must be known of the results."""
        self._close()
        self._console.print(self._table(result, None))
        provenance = _provenance(result)
        if provenance != "none":
            words, style = PROVENANCE_WORDS[provenance]
            self._console.print(Text(f"Energy: {words}.", style=style))
        if compiling := _compiling([s for s in map(self._summary, result.cells) if s]):
            self.say(compiling)
        if _has_target(result.sweep):
            self.say(
                "To target: warm-up, loading and training until the target was reached, without "
                "compiling; the mean over the runs that reached it."
            )
        for sentence in result.warnings:
            self._console.print(Text(f"warning: {sentence}", style="yellow"), soft_wrap=True)
        wrong = [cell for cell in result.cells if cell.state in (FAILED, UNFINISHED)]
        for cell in wrong[:_REASONS_SHOWN]:
            text = f"{_label(result.sweep, cell)}: {cell.state}: {cell.why}"
            self._console.print(Text(text, style="red"), soft_wrap=True)
        if len(wrong) > _REASONS_SHOWN:
            more = len(wrong) - _REASONS_SHOWN
            self._console.print(Text(f"and {more} more, in sweep.json", style="red"))
        self.say(f"{_counts(result)}. Record: {result.folder}")

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_ended(self, progress: Progress) -> None:
        result = progress.result
        for cell in result.cells:
            # Those that were there before this sweep are told at its end.
            if cell.wall_s is None or cell.run_id in self._told:
                continue
            self._told.add(cell.run_id)
            summary = self._summary(cell)
            figures = "" if summary is None else f": {_figures(cell.cell.config, summary)}"
            why = f": {cell.why}" if cell.why else ""
            done = len(result.cells) - result.count(WAITING) - result.count(RUNNING)
            self.say(
                f"{done}/{len(result.cells)}  {_label(result.sweep, cell)}  {cell.state}{figures}"
                f"{why}; {_time_left(progress)}"
            )

    def _summary(self, cell: CellResult) -> dict[str, Any] | None:
        """A completed run's summary, read once."""
        if cell.state != COMPLETED:
            return None
        if cell.run_id not in self._summaries:
            self._summaries[cell.run_id] = cell.read().summary or {}
        return self._summaries[cell.run_id]

    def _table(self, result: SweepResult, height: int | None) -> Table:
        """A row for each set-up, over its seeds; the whole one, of the end, has intervals too."""
        sweep = result.sweep
        at_end = height is None
        means = "Means over runs ± 95 %" if at_end else "Means over runs"
        table = Table(title=f"{means},\nenergy and time without idle and compiling")
        for name in sweep.varied:
            table.add_column(name.replace("_", " "))
        to_target = ("reached", "to target") if _has_target(sweep) else ()
        for heading in ("runs", "energy", "per update", *to_target, "test", "time"):
            table.add_column(heading, justify="right")
        groups = _groups(result)
        shown = groups if height is None else _most_recent(groups, max(3, height))
        for values, cells in shown:
            done = [s for s in map(self._summary, cells) if s]
            states = {cell.state for cell in cells}
            style = "bold" if RUNNING in states else "red" if FAILED in states else ""
            table.add_row(
                *(Text(plain_text("default" if v is None else v, 40)) for v in values),
                f"{len(done)}/{len(cells)}",
                _mean_joules([without_compiling_j(s) for s in done], at_end),
                _mean_joules([_value(s, "per_update_j", "mean") for s in done], at_end),
                *(_reached(done, at_end) if to_target else ()),
                _quality(
                    _mean([_value(s, "final", "test_accuracy") for s in done]),
                    _mean([_value(s, "final", "test_return") for s in done]),
                ),
                format_duration_s(_mean([_duration_s(s) for s in done])) if done else "",
                style=style,
            )
        if len(shown) < len(groups):
            table.caption = f"and {len(groups) - len(shown)} more"
        return table


def print_forecast(found: Forecast, console: Console) -> None:
    """Prints the runs of a sweep in their order, with the time that each will take.

    Args:
        found: what `sweeps.forecast` gave.
        console: where to print.
    """
    result = found.result
    table = Table()
    table.add_column("", justify="right")
    for name in ("seed", *result.sweep.varied):
        table.add_column(name.replace("_", " "))
    table.add_column("time", justify="right")
    table.add_column("")
    for number, cell in enumerate(result.cells, 1):
        prediction = found.predictions.get(cell.run_id)
        if prediction is None:
            seconds, source = "", f"{cell.state} already: {cell.name}"
        else:
            seconds = format_duration_s(prediction.seconds)
            source = prediction.source
        values = [getattr(cell.cell.config, name) for name in ("seed", *result.sweep.varied)]
        table.add_row(
            str(number),
            *(Text(plain_text("default" if v is None else v, 40)) for v in values),
            seconds,
            Text(plain_text(source)),
        )
    console.print(table)
    for sentence in result.left_alone:
        console.print(Text(sentence, style="yellow"), soft_wrap=True)
    seconds = [p.seconds for p in found.predictions.values()]
    known = [s for s in seconds if s is not None]
    unknown = len(seconds) - len(known)
    text = f"{len(result.cells)} runs, {len(seconds)} to be done"
    if known:
        text += f": {format_duration_s(sum(known))}"
        text += f" for {len(known)} of them" if unknown else ""
    if unknown:
        text += f"; the time of {unknown} is not known"
    console.print(f"{text}. Nothing was started.", highlight=False, soft_wrap=True)


def _groups(result: SweepResult) -> list[tuple[list[Any], list[CellResult]]]:
    """The cells of each set-up, in the order of the grid's values."""
    varied = result.sweep.varied
    groups: dict[tuple, list[CellResult]] = {}
    for cell in result.cells:
        values = tuple(getattr(cell.cell.config, name) for name in varied)
        groups.setdefault(values, []).append(cell)
    orders = [list(result.sweep.axes.get(name, ())) for name in varied]

    def place(values: tuple) -> list:
        return [
            (order.index(value), "") if value in order else (len(order), repr(value))
            for order, value in zip(orders, values, strict=True)
        ]

    return [(list(values), groups[values]) for values in sorted(groups, key=place)]


def _most_recent(groups: list, rows: int) -> list:
    """As many groups as there is room for, around the one that is running."""
    if len(groups) <= rows:
        return groups
    running = [
        position
        for position, (_, cells) in enumerate(groups)
        if any(cell.state == RUNNING for cell in cells)
    ]
    start = max(0, min((running or [0])[0] - rows // 2, len(groups) - rows))
    return groups[start : start + rows]


def _label(sweep: Sweep, cell: CellResult) -> str:
    """What sets a cell apart from the others, e.g. `optimizer=adam depth=4 seed=0`."""
    names = [*sweep.varied, "seed"]
    return " ".join(f"{name}={plain_text(getattr(cell.cell.config, name), 60)}" for name in names)


def _now(progress: Progress) -> str:
    """What is running, and how far it is."""
    result = progress.result
    running = [cell for cell in result.cells if cell.state == RUNNING]
    parts = [_label(result.sweep, cell) for cell in running[:3]]
    if progress.begun_s is not None:
        parts.append(format_duration_s(time.monotonic() - progress.begun_s))
    if progress.update is not None:
        parts.append(f"update {progress.update:,}/{progress.total_updates or 0:,}")
    if progress.energy_j is not None:
        word = "" if progress.provenance == "measured" else f" {progress.provenance}"
        parts.append(f"{format_si(progress.energy_j, 'J')}{word}")
    return "  ".join(parts)


def _time_left(progress: Progress) -> str:
    if not progress.unknown:
        return f"{format_duration_s(progress.left_s)} left"
    if not progress.left_s:
        return "time left not known yet"
    return f"{format_duration_s(progress.left_s)} left and {progress.unknown} runs not known yet"


def _counts(result: SweepResult) -> str:
    text = f"{result.count(COMPLETED)} of {len(result.cells)} runs completed"
    for state in (FAILED, UNFINISHED, WAITING):
        if result.count(state):
            text += f", {result.count(state)} {state}"
    return text


def _figures(config: RunConfig, summary: dict[str, Any]) -> str:
    """A run in a line: the figures of the table, what compiling took, what became of its target."""
    joules = without_compiling_j(summary)
    provenance = summary.get("provenance", "none")
    parts = [
        "" if joules is None else format_si(joules, "J"),
        "" if provenance in ("measured", "none") else provenance,
        _quality(
            _value(summary, "final", "test_accuracy"), _value(summary, "final", "test_return")
        ),
        format_duration_s(_duration_s(summary)),
    ]
    text = " ".join(part for part in parts if part)
    cached = " (from the cache)" if _value(summary, "compiled", "cache_hit") else ""
    text = f"{text}, compiling {_compile_cost([summary])}{cached}"
    target = config.target
    if target is None:
        return text
    text += f", target {target.measure.replace('_', ' ')} {target.value:g}"
    update = _value(summary, "target", "reached_at_update")
    if update is None:
        return f"{text} not reached"
    joules = _to_target_j(summary)
    cost = "" if joules is None else f" for {format_si(joules, 'J')}"
    return f"{text} reached after {update:,} updates{cost}"


def _duration_s(summary: dict[str, Any]) -> float | None:
    """Seconds without idle and compiling; None where either part is not known."""
    idle_s = _value(summary, "duration_by_phase_s", "idle") or 0.0  # it may not be asked for
    working_s = _less(_value(summary, "duration_s"), idle_s)
    return _less(working_s, _value(summary, "compiled", "compile_s"))


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part


def _has_target(sweep: Sweep) -> bool:
    """Whether any run of a sweep ends where a target is reached."""
    varied = any(name.startswith("target_") for name in sweep.varied)
    return varied or sweep.cells[0].config.target is not None


def _reached(summaries: Sequence[dict[str, Any]], with_interval: bool) -> tuple[str, str]:
    """How many of the runs with a target reached it, and their mean joules until there."""
    runs = [s for s in summaries if s.get("target")]
    reached = [s for s in runs if _value(s, "target", "reached_at_update") is not None]
    joules = _mean_joules([_to_target_j(s) for s in reached], with_interval)
    return (f"{len(reached)}/{len(runs)}" if runs else ""), joules


def _to_target_j(summary: dict[str, Any]) -> float | None:
    """Joules until the target was reached, without compiling, which is done before training."""
    return _less(_value(summary, "target", "energy_j"), _value(summary, "compiled", "compile_j"))


def _compiling(summaries: Sequence[dict[str, Any]]) -> str:
    """What compiling took, told apart by whether runs found their programs in the cache."""
    parts = []
    for cached, did in ((False, "compiled anew"), (True, "found their programs in the cache")):
        runs = [s for s in summaries if _value(s, "compiled", "cache_hit") is cached]
        if runs:
            number = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
            parts.append(f"{_compile_cost(runs)} in {number} that {did}")
    return f"Compiling took {' and '.join(parts)}." if parts else ""


def _compile_cost(summaries: Sequence[dict[str, Any]]) -> str:
    """From how much to how much compiling took: joules, or seconds where joules are not known."""
    joules = [_value(s, "compiled", "compile_j") for s in summaries]
    if None not in joules:
        ends = [format_si(end, "J") for end in (min(joules), max(joules))]
    else:
        seconds = [_value(s, "compiled", "compile_s") for s in summaries]
        if None in seconds:
            return "n/a"
        ends = [format_duration_s(end) for end in (min(seconds), max(seconds))]
    return " to ".join(dict.fromkeys(ends))


def _provenance(result: SweepResult) -> str:
    """The weakest provenance among the completed runs' energy."""
    found = [conditions.provenance for conditions in result.conditions]
    known = [provenance for provenance in found if provenance in PROVENANCES]
    return max(known, key=PROVENANCES.index) if known else "none"


def _value(summary: dict[str, Any], *path: str) -> Any:
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean over runs; None where there is none, or one of them has no value."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _mean_joules(values: Sequence[float | None], with_interval: bool) -> str:
    """The mean over runs in words, with half its 95 % interval as a share of it."""
    if not values:
        return ""
    mean = _mean(values)
    known = [value for value in values if value is not None]
    text = format_si(mean, "J")
    if not with_interval or not mean or len(known) < 2:
        return text
    percent = 100 * mean_half_width(known) / mean
    return f"{text} ± {round(percent, 2):.2g}%" if percent < 10 else f"{text} ± {percent:.0f}%"


def _quality(accuracy: float | None, mean_return: float | None) -> str:
    """How well the network does on the test part, in words that say what it is."""
    if mean_return is not None:
        return f"return {mean_return:.1f}"
    return "" if accuracy is None else f"accuracy {accuracy:.2%}"
