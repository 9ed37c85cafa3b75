"""What studies, sweeps and comparisons say, read from their JSON by its stated schema.

The report knows these documents and not the code that writes them, so that it shows those of
another version, or of somebody else's program, as long as the schema's number is one that stands
here. A document that is not understood is listed with the reason.
"""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from jaxenergy.records.files import plain_text

SCHEMA = 1
VERDICTS = ("supported", "refuted", "undecided", "void")
_NAMES = ("study.json", "sweep.json", "compare.json")
_PROVENANCES = ("measured", "simulated", "estimated", "none")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a study says of one statement.

    Attributes:
        study: the study's name.
        statement: what was tested.
        verdict: one of `VERDICTS`.
        effect: the size of it, in `unit`; None where there is none.
        low: low end of its 95 % interval.
        high: high end.
        unit: of the effect.
        quantity: `energy`, `time`, `accuracy` or `flops`.
        provenance: of the joules that it rests on.
        why: the reason, in a sentence.
    """

    study: str
    statement: str
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    unit: str
    quantity: str
    provenance: str
    why: str


@dataclasses.dataclass(frozen=True)
class Study:
    """A study: the claim, where it comes from, and what became of it."""

    path: str
    name: str
    claim: str
    source: str
    budget: str
    provenance: str
    command: str
    runs: int
    verdicts: list[Verdict]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep: what it varies, and how far it is.

    Attributes:
        path: of its document.
        name: its id.
        command: that goes on with it.
        axes: what it varies, in words.
        runs: (state, how many).
        warnings: sentences.
    """

    path: str
    name: str
    command: str
    axes: str
    runs: list[tuple[str, int]]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Known:
    """A number with its 95 % interval, whose ends may be None; `value` None with its reason."""

    value: float | None
    low: float | None
    high: float | None
    why: str

    def tell(self) -> str:
        """The number with its interval, in words; the reason where there is no number."""
        if self.value is None:
            return self.why or "n/a"
        return f"{tell_number(self.value)} ({self.tell_interval() or 'no interval'})"

    def tell_interval(self) -> str:
        """The interval in words; empty where there is none."""
        if self.low is None and self.high is None:
            return ""
        low, high = ("∞" if end is None else tell_number(end) for end in (self.low, self.high))
        return f"{low} to {high}"


@dataclasses.dataclass(frozen=True)
class Framework:
    """One side of a comparison.

    Attributes:
        name: e.g. `torch_compile`.
        processes: how many were metered.
        per_update_j: steady state.
        per_update_s: likewise, in seconds.
        power_w: mean power.
        fixed_j: what a training takes beside its updates: start-up and compilation.
        training_j: the whole training.
    """

    name: str
    processes: int
    per_update_j: Known
    per_update_s: Known
    power_w: Known
    fixed_j: Known
    training_j: Known


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sides of a comparison.

    Attributes:
        framework: the one.
        reference: the other, which ratios divide by.
        energy_ratio: of J per update.
        time_ratio: of seconds per update.
        power_ratio: of mean power.
        crossover: the updates from which one has cost less than the other; None where they do not
            cross. Its ends are None unless the 95 % set is one bounded interval.
        set95: the intervals of updates that may be the crossover, an end of None being infinity;
            None where that is not known.
        verdict: `crosses`, `never` or `undecided`.
        cheaper_at_once: which is cheaper in a training of no updates, where that is sure.
        cheaper_at_last: which is cheaper in the long run, likewise.
    """

    framework: str
    reference: str
    energy_ratio: Known
    time_ratio: Known
    power_ratio: Known
    crossover: Known
    set95: list[tuple[float, float | None]] | None
    verdict: str
    cheaper_at_once: str
    cheaper_at_last: str

    def tell_set(self) -> str:
        """Which updates may be the crossover, in words."""
        if not self.set95:
            return "no interval"
        return "95 %: " + " or ".join(
            f"from {low:,.0f} on, without end" if high is None else f"{low:,.0f} to {high:,.0f}"
            for low, high in self.set95
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The same training in several frameworks.

    Attributes:
        path: of its document.
        name: of the comparison, which may be of several models.
        model: what was trained.
        network: the model with its depth and width, e.g. `mlp 3 x 512`.
        status: `compared`, or why there is nothing: `refused`, `failed`, `unfinished`.
        why: the reason.
        provenance: of the joules.
        device: what it was computed on.
        command: that makes it.
        updates: of the whole training; None where that is not said.
        frameworks: the sides.
        pairs: of them.
        warnings: what a reader should know before believing a ratio, in sentences.
    """

    path: str
    name: str
    model: str
    network: str
    status: str
    why: str
    provenance: str
    device: str
    command: str
    updates: int | None
    frameworks: list[Framework]
    pairs: list[Pair]
    warnings: list[str]

    def processes_of(self, pair: Pair) -> int:
        """How many processes each side of a pair has at least; 0 where that is not said."""
        sides = (pair.framework, pair.reference)
        return min((one.processes for one in self.frameworks if one.name in sides), default=0)


@dataclasses.dataclass(frozen=True)
class Documents:
    """All documents, and (path, reason) of those that are not understood."""

    studies: list[Study]
    sweeps: list[Sweep]
    comparisons: list[Comparison]
    refused: list[tuple[str, str]]

    def name_of(self, comparison: Comparison) -> str:
        """What a comparison is of, with its own name where there are several."""
        if len({other.path for other in self.comparisons}) > 1:
            return f"{comparison.network} ({comparison.name})"
        return comparison.network


def read_documents(found: Sequence[tuple[str, Mapping[str, Any] | str]]) -> Documents:
    """Sorts and reads the documents of an index.

    Args:
        found: path and content, or the reason why there is no content.

    Returns:
        What they say.
    """
    documents = Documents([], [], [], [])
    for path, content in found:
        try:
            if isinstance(content, str):
                raise _RefusedError(content)
            if PurePath(path).name not in _NAMES and "verdicts" not in content:
                continue  # beside a study's result lies what it needed on the way
            schema = content.get("schema")
            if schema != SCHEMA or isinstance(schema, bool):
                shown = plain_text(schema, 60)
                raise _RefusedError(f"its schema is {shown}; this version reads {SCHEMA}")
            if isinstance(content.get("verdicts"), list):
                documents.studies.append(_read_study(path, content))
            elif isinstance(content.get("models"), dict):
                documents.comparisons.extend(_read_comparisons(path, content))
            elif isinstance(content.get("cells"), list):
                documents.sweeps.append(_read_sweep(path, content))
            else:
                raise _RefusedError("it is neither a study, nor a sweep, nor a comparison")
        except _RefusedError as error:
            documents.refused.append((path, str(error)))
    return documents


class _RefusedError(ValueError):
    """A document is not understood; the message says why."""


def _read_study(path: str, content: Mapping[str, Any]) -> Study:
    name = _text(content.get("study")) or PurePath(path).parent.name
    provenance = _provenance(content.get("provenance"))
    verdicts = [
        _read_verdict(name, provenance, entry, number)
        for number, entry in enumerate(content["verdicts"], start=1)
    ]
    runs = content.get("runs")
    return Study(
        path=path,
        name=name,
        claim=_text(content.get("claim")),
        source=_text(content.get("source")),
        budget=_text(content.get("budget")),
        provenance=provenance,
        command=_command(content.get("command")),
        runs=len(runs) if isinstance(runs, list) else 0,
        verdicts=verdicts,
    )


def _read_verdict(study: str, provenance: str, entry: Any, number: int) -> Verdict:
    if not isinstance(entry, dict) or entry.get("verdict") not in VERDICTS:
        got = plain_text(entry.get("verdict") if isinstance(entry, dict) else entry, 60)
        raise _RefusedError(f"verdict {number} is {got}; this version reads {', '.join(VERDICTS)}")
    low, high = _ends(entry.get("ci95"))
    return Verdict(
        study=study,
        statement=_text(entry.get("statement")),
        verdict=entry["verdict"],
        effect=_number(entry.get("effect")),
        low=low,
        high=high,
        unit=_text(entry.get("unit")),
        quantity=_text(entry.get("quantity")),
        provenance=provenance,
        why=_text(entry.get("why")),
    )


def _read_sweep(path: str, content: Mapping[str, Any]) -> Sweep:
    axes = _table(content.get("axes"))
    runs = _table(content.get("runs"))
    return Sweep(
        path=path,
        name=_text(content.get("id")) or PurePath(path).parent.name,
        command=_command(content.get("command")),
        axes="; ".join(
            f"{plain_text(name, 60)}: {plain_text(', '.join(map(str, values)), 300)}"
            for name, values in axes.items()
            if isinstance(values, list)
        ),
        runs=[
            (plain_text(state, 60), count)
            for state, count in runs.items()
            if type(count) is int and count
        ],
        warnings=_texts(content.get("warnings")),
    )


def _read_comparisons(path: str, content: Mapping[str, Any]) -> list[Comparison]:
    """A document's comparisons: one for each model."""
    comparisons = []
    for model, entry in content["models"].items():
        if not isinstance(entry, dict):
            raise _RefusedError(f"its entry of the model {plain_text(model, 60)} is no table")
        frameworks = _table(entry.get("frameworks"))
        pairs = entry.get("pairs")
        updates = entry.get("training_updates")
        name = plain_text(model, 60)
        comparisons.append(
            Comparison(
                path=path,
                name=_text(content.get("name")) or PurePath(path).parent.name,
                model=name,
                network=_with_size(name, _table(entry.get("resolved"))),
                status=_text(entry.get("status")),
                why=plain_text(_text(_table(entry.get("why")).get("status")), 300),
                provenance=_provenance(entry.get("provenance")),
                device=_device(entry.get("device")),
                command=_command(content.get("command")),
                updates=updates if type(updates) is int else None,
                frameworks=[
                    _read_framework(name, side)
                    for name, side in frameworks.items()
                    if isinstance(side, dict)
                ],
                pairs=[
                    _read_pair(pair)
                    for pair in (pairs if isinstance(pairs, list) else ())
                    if isinstance(pair, dict)
                ],
                warnings=_texts(entry.get("warnings")),
            )
        )
    return comparisons


def _read_framework(name: str, side: Mapping[str, Any]) -> Framework:
    processes = side.get("processes")
    return Framework(
        name=plain_text(name, 60),
        processes=processes if type(processes) is int else 0,
        per_update_j=_known(side.get("per_update_j")),
        per_update_s=_known(side.get("per_update_s")),
        power_w=_known(side.get("power_w")),
        fixed_j=_known(side.get("fixed_j")),
        training_j=_known(side.get("training_j")),
    )


def _read_pair(pair: Mapping[str, Any]) -> Pair:
    crossover = _table(pair.get("energy_crossover"))
    sets = _set(crossover.get("set95"))
    ends: Any = list(sets[0]) if sets is not None and len(sets) == 1 else None
    return Pair(
        framework=_text(pair.get("framework")),
        reference=_text(pair.get("reference")),
        energy_ratio=_known(pair.get("energy_ratio"), "ratio"),
        time_ratio=_known(pair.get("time_ratio"), "ratio"),
        power_ratio=_known(pair.get("power_ratio"), "ratio"),
        crossover=_known({**crossover, "ci95": ends}, "updates"),
        set95=sets,
        verdict=_text(crossover.get("verdict")) or "undecided",
        cheaper_at_once=_text(crossover.get("cheaper_without_updates")),
        cheaper_at_last=_text(crossover.get("cheaper_in_the_long_run")),
    )


def _known(value: Any, key: str = "mean") -> Known:
    table = _table(value)
    low, high = _ends(table.get("ci95"))
    return Known(_number(table.get(key)), low, high, _text(table.get("why")))


def _set(value: Any) -> list[tuple[float, float | None]] | None:
    """Intervals whose upper end may be infinite, that is null; None where it is anything else."""
    if not isinstance(value, list):
        return None
    pieces = [(low, high) for low, high in map(_ends, value) if low is not None]
    return pieces if len(pieces) == len(value) else None


def tell_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _with_size(model: str, resolved: Mapping[str, Any]) -> str:
    depth, width = _number(resolved.get("depth")), _number(resolved.get("width"))
    return model if depth is None or width is None else f"{model} {depth} x {width}"


def _command(value: Any) -> str:
    """A command line, given as text or as a list of words."""
    if isinstance(value, list):
        return plain_text(shlex.join(map(str, value)))
    return _text(value)


def _device(value: Any) -> str:
    return _text(value) or _text(_table(value).get("name"))


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return plain_text(value) if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in value] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _ends(value: Any) -> tuple[float | None, float | None]:
    if isinstance(value, list) and len(value) == 2:
        return _number(value[0]), _number(value[1])
    return None, None


def _provenance(value: Any) -> str:
    return value if value in _PROVENANCES else "none"
