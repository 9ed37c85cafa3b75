"""`summary.json`, computed from a run's lines alone, so that it can be computed again by anybody.

Every joule comes from a line of `windows.jsonl`, and is counted in one phase and one domain: the
sums over phases and over domains are the same number. What cannot be told is None, and `why` says
where and for what reason.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from jaxenergy.errors import unknown_value
from jaxenergy.records.files import null_unless_finite
from jaxenergy.records.schema import LOST, PHASES, ROLLBACK, SCHEMA, STATUSES
from jaxenergy.units import NS_PER_S

Line = Mapping[str, Any]

# Phases that a target's energy is made of, beside the training up to it.
_NEEDED_FOR_TARGET = ("compile", "warmup", "input", "train")
_NO_METER = "no domain was counted"
_NO_LINE = "no such phase was recorded"
_NO_WINDOW = "no window of training was finished"
_FACTS = (
    "status",
    "why",
    "provenance",
    "parameters",
    "counted_domains",
    "final",
    "compiled",
    "unaccounted_j",
    "unaccounted_why",
)


class MeanPer(Protocol):
    """The estimator of a mean with its interval, as in `jaxenergy.energy.windows.mean_per`."""

    def __call__(
        self, lines: Sequence[Line], key: str, domains: Sequence[str]
    ) -> Mapping[str, Any]:
        """Joules of `domains` per unit of `key`.

        Args:
            lines: windows of training, in time order; the estimator leaves out unsteady ones.
            key: `updates`, `iterations` or `examples`.
            domains: the domains that are added.

        Returns:
            `mean`, `ci95` [low, high] and `windows`, or `mean` None and `why`.
        """
        ...


def summarise(
    config: Mapping[str, Any],
    windows_lines: Iterable[Line],
    metrics_lines: Iterable[Line],
    facts: Mapping[str, Any],
    *,
    mean_per: MeanPer,
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        config: the run's config; `target_accuracy` is read from it.
        windows_lines: the lines of `windows.jsonl`, rollback events among them, in file order.
        metrics_lines: the lines of `metrics.jsonl`: `update`, `train_loss`, `validation_accuracy`.
        facts: what the lines do not say. Required: `status`, `provenance`, `parameters` (int or
            None), `counted_domains` (fixed at the start). Optional: `why` (the reason of a
            failure), `final` (e.g. `test_accuracy`; takes the place of what the metrics say),
            `compiled` (`flops_per_update`, `bytes_per_update`, `cache_hit`), `unaccounted_j` with
            `unaccounted_why`.
        mean_per: the estimator of means and intervals.

    Returns:
        The summary, ready for `RunFolder.write_summary`.

    Raises:
        UsageError: an unknown status or fact.
    """
    for name in facts:
        if name not in _FACTS:
            raise unknown_value("fact", name, _FACTS)
    if facts["status"] not in STATUSES:
        raise unknown_value("status", facts["status"], STATUSES)
    windows_lines = list(windows_lines)
    domains = tuple(facts["counted_domains"])
    labelled = label_lines(windows_lines)
    by_phase = {
        phase: [line for label, line in labelled if label == phase] for phase in _order(labelled)
    }
    train = by_phase.get("train", [])
    updates = _count(train, "updates")
    metrics = _standing_metrics(metrics_lines, updates)
    parameters = facts["parameters"]
    per_update = _mean_per(mean_per, train, "updates", domains)
    summary = {
        "schema": SCHEMA,
        "status": facts["status"],
        "provenance": facts["provenance"],
        "parameters": parameters,
        "updates": updates,
        "iterations": _count(train, "iterations"),
        "examples": _count(train, "examples"),
        "attempts": max((line.get("attempt") or 0 for line in windows_lines), default=0) + 1,
        "duration_s": _duration_s(line for _, line in labelled),
        "final": _final(metrics, facts.get("final", {})),
        "target": _target(config.get("target_accuracy"), metrics, labelled, domains),
        "energy_j": _energy(by_phase, domains, facts),
        "per_iteration_j": _mean_per(mean_per, train, "iterations", domains),
        "per_update_j": per_update,
        "per_example_j": _mean_per(mean_per, train, "examples", domains),
        "per_update_per_parameter_j": _per_parameter(per_update, parameters),
        "compiled": _compiled(facts.get("compiled", {}), by_phase.get("compile", []), domains),
    }
    if facts.get("why"):
        summary["why"] = {"status": facts["why"]}
    return summary


def label_lines(windows_lines: Iterable[Line]) -> list[tuple[str, Line]]:
    """Gives each line its phase, or `lost` where a later rollback undid its updates.

    A line that says where in the training it was (`first_update`) and reaches beyond the update
    that a later attempt went on from is lost; lines without a place (compiling, loading) were spent
    in their own phase.

    Args:
        windows_lines: the lines of `windows.jsonl` in file order.

    Returns:
        (label, line) of each line but the events, in file order.
    """
    labels: list[str] = []
    lines: list[Line] = []
    standing: list[int] = []  # positions in `lines` that a rollback could still undo
    for line in windows_lines:
        if line.get("event") == ROLLBACK:
            to_update = line["to_update"]
            for position in standing:
                if _reaches(lines[position]) > to_update:
                    labels[position] = LOST
            standing = [position for position in standing if labels[position] != LOST]
        elif "phase" in line:
            if line.get("first_update") is not None:
                standing.append(len(lines))
            labels.append(line["phase"])
            lines.append(line)
    return list(zip(labels, lines, strict=True))


def _reaches(line: Line) -> int:
    """The number of updates made when the line ended."""
    return line["first_update"] + (line.get("updates") or 0)


def _count(lines: Iterable[Line], key: str) -> int:
    """The sum of a count; a stretch of training that was broken off has none."""
    return sum(line.get(key) or 0 for line in lines)


def _order(labelled: Iterable[tuple[str, Line]]) -> list[str]:
    """The labels that occur, in the order of tables."""
    found = {label for label, _ in labelled}
    known = [phase for phase in (*PHASES, LOST) if phase in found]
    return known + sorted(found.difference(known))


def _duration_s(lines: Iterable[Line]) -> float:
    return sum(line["end_ns"] - line["start_ns"] for line in lines) / NS_PER_S


def add_energy(lines: Sequence[Line], domains: Sequence[str]) -> tuple[float | None, str | None]:
    """The joules of some lines in some domains.

    Args:
        lines: lines of `windows.jsonl`.
        domains: the domains that are added.

    Returns:
        (joules, None), or (None, reason) where a single one of them is null.
    """
    if not domains:
        return None, _NO_METER
    if not lines:
        return None, _NO_LINE
    joules = []
    for domain in domains:
        unknown = [line for line in lines if line["energy_j"].get(domain) is None]
        if unknown:
            reason = (unknown[0].get("why") or {}).get(domain, "no reason was recorded")
            return None, f"{domain}, in {len(unknown)} of {len(lines)} lines: {reason}"
        joules.extend(line["energy_j"][domain] for line in lines)
    return math.fsum(joules), None


def _energy(
    by_phase: Mapping[str, Sequence[Line]], domains: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The account: the same joules by phase and by domain, gross and net of idle."""
    every = [line for lines in by_phase.values() for line in lines]
    working = [line for phase, lines in by_phase.items() if phase != "idle" for line in lines]
    why: dict[str, str] = {}

    def told(key: str, value_and_reason: tuple[float | None, str | None]) -> float | None:
        value, reason = value_and_reason
        if reason is not None:
            why[key] = reason
        return value

    metered = told("metered", add_energy(every, domains))
    total = told("total", add_energy(working, domains))
    idle_w = {
        domain: told(f"idle_w.{domain}", _mean_power_w(by_phase.get("idle", ()), domain))
        for domain in domains
    }
    energy = {
        "counted_domains": list(domains),
        "metered": metered,
        "total": total,
        "net_total": told("net_total", _above_idle(total, idle_w, _duration_s(working))),
        "by_phase": {
            phase: told(f"by_phase.{phase}", add_energy(lines, domains))
            for phase, lines in by_phase.items()
        },
        "by_domain": {
            domain: told(f"by_domain.{domain}", add_energy(every, (domain,))) for domain in domains
        },
        "idle_w": idle_w,
        "unaccounted_j": facts.get("unaccounted_j"),
    }
    if energy["unaccounted_j"] is None:
        why["unaccounted_j"] = facts.get(
            "unaccounted_why", "what was spent after the last line is not bounded by a counter"
        )
    return {**energy, "why": why} if why else energy


def _mean_power_w(lines: Sequence[Line], domain: str) -> tuple[float | None, str | None]:
    joules, reason = add_energy(lines, (domain,))
    if joules is None:
        return None, reason
    duration_s = _duration_s(lines)
    return (joules / duration_s, None) if duration_s > 0 else (None, "the idle phase had no length")


def _above_idle(
    total: float | None, idle_w: Mapping[str, float | None], duration_s: float
) -> tuple[float | None, str | None]:
    """`total` less what idling for the same time would have taken."""
    if total is None:
        return None, "the total is not known"
    powers = []
    for domain, power_w in idle_w.items():
        if power_w is None:
            return None, f"the idle power of {domain} is not known"
        powers.append(power_w)
    return total - math.fsum(powers) * duration_s, None


def _standing_metrics(metrics_lines: Iterable[Line], updates: int) -> list[Line]:
    """The evaluations of the training as it stands, by update.

    After a rollback an evaluation is made again; the later one counts. One beyond the last update
    was undone and not made again yet.
    """
    latest = {line["update"]: line for line in metrics_lines}
    return [latest[update] for update in sorted(latest) if update <= updates]


def _final(metrics: Sequence[Line], given: Mapping[str, Any]) -> dict[str, Any]:
    last = metrics[-1] if metrics else {}
    measured = {
        "train_loss": last.get("train_loss"),
        "validation_accuracy": last.get("validation_accuracy"),
        "test_accuracy": None,
    }
    return null_unless_finite({**measured, **given})


def _target(
    accuracy: float | None,
    metrics: Sequence[Line],
    labelled: Sequence[tuple[str, Line]],
    domains: Sequence[str],
) -> dict[str, Any] | None:
    """When the target was reached first, and what that had taken."""
    if accuracy is None:
        return None
    reached_at = None
    for line in metrics:
        validation = line.get("validation_accuracy")
        if validation is not None and validation >= accuracy:
            reached_at = line["update"]
            break
    energy_j, reason = None, "the target was not reached"
    if reached_at is not None:
        energy_j, reason = _energy_until(reached_at, labelled, domains)
    target = {"accuracy": accuracy, "reached_at_update": reached_at, "energy_j": energy_j}
    return {**target, "why": {"energy_j": reason}} if reason else target


def _energy_until(
    update: int, labelled: Sequence[tuple[str, Line]], domains: Sequence[str]
) -> tuple[float | None, str | None]:
    """What the first `update` updates took, with compiling, warming up and loading until then."""
    ends = [
        position
        for position, (label, line) in enumerate(labelled)
        if label == "train" and _reaches(line) == update
    ]
    if not ends:
        return None, f"no window ends at update {update}"
    needed = [line for label, line in labelled[: ends[0] + 1] if label in _NEEDED_FOR_TARGET]
    return add_energy(needed, domains)


def _mean_per(
    mean_per: MeanPer, train: Sequence[Line], key: str, domains: Sequence[str]
) -> dict[str, Any]:
    if not domains:
        return {"mean": None, "why": _NO_METER}
    windows = [line for line in train if line.get(key)]
    if not windows:
        return {"mean": None, "why": _NO_WINDOW}
    return dict(mean_per(windows, key, domains))


def _per_parameter(per_update: Mapping[str, Any], parameters: int | None) -> dict[str, Any]:
    if per_update["mean"] is None:
        return dict(per_update)
    if not parameters:
        return {"mean": None, "why": "the number of parameters is not known"}
    return {
        **per_update,
        "mean": per_update["mean"] / parameters,
        "ci95": [bound / parameters for bound in per_update["ci95"]],
    }


def _compiled(
    given: Mapping[str, Any], lines: Sequence[Line], domains: Sequence[str]
) -> dict[str, Any]:
    """What compiling gave and took; the time and joules are those of the compile phase."""
    compile_j, reason = add_energy(lines, domains)
    compiled = {
        "flops_per_update": given.get("flops_per_update"),
        "bytes_per_update": given.get("bytes_per_update"),
        "compile_s": _duration_s(lines) if lines else None,
        "compile_j": compile_j,
        "cache_hit": given.get("cache_hit"),
        **{key: value for key, value in given.items() if key not in ("compile_s", "compile_j")},
    }
    return {**compiled, "why": {"compile_j": reason}} if reason else compiled
