"""`summary.json`, computed from a run's lines alone, so that it can be computed again by anybody.

Every joule comes from a line of `windows.jsonl`, and is counted in one phase and one domain: the
sums over phases and over domains are the same number. What cannot be told is None, and `why` says
where and for what reason.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from jaxenergy.config import Target, find_target
from jaxenergy.errors import unknown_value
from jaxenergy.records.files import null_unless_finite, plain_text
from jaxenergy.records.schema import LOST, PHASES, ROLLBACK, SCHEMA, STATUSES
from jaxenergy.units import NS_PER_S

Line = Mapping[str, Any]

# Phases that a target's energy is made of, beside the training up to it.
_NEEDED_FOR_TARGET = ("compile", "warmup", "input", "train")
_NO_METER = "no domain was counted"
_NO_LINE = "no such phase was recorded"
_NO_WINDOW = "no window of training was finished"
_MAX_WARNINGS = 20
_FACTS = (
    "status",
    "why",
    "provenance",
    "parameters",
    "tokens_per_example",
    "counted_domains",
    "final",
    "compiled",
    "unaccounted_j",
    "unaccounted_why",
    "warnings",
)


class Estimators(Protocol):
    """The statistics of lines, as in `jaxenergy.energy`, which records do not know."""

    def mean_per(
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

    def idle_account(self, lines: Sequence[Line], domains: Sequence[str]) -> Mapping[str, Any]:
        """Idle power and what was taken above it.

        Args:
            lines: all lines, in time order.
            domains: the domains that are added.

        Returns:
            `idle_w`, `idle`, `net_total`, `net_total_ci95`, and `why` with the reasons of what is
            None.
        """
        ...


def summarise(
    config: Mapping[str, Any],
    windows_lines: Iterable[Line],
    metrics_lines: Iterable[Line],
    facts: Mapping[str, Any],
    *,
    estimators: Estimators,
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        config: the run's config; its target is read from it.
        windows_lines: the lines of `windows.jsonl`, rollback events among them, in file order.
        metrics_lines: the lines of `metrics.jsonl`: `update`, `train_loss`, `validation_accuracy`.
        facts: what the lines do not say. Required: `status`, `provenance`, `parameters` (int or
            None), `counted_domains` (fixed at the start). Optional: `why` (the reason of a
            failure), `tokens_per_example` (int or None), `final` (e.g. `test_accuracy`; takes the
            place of what the metrics say),
            `compiled` (`flops_per_update`, `bytes_per_update`, `cache_hit`), `unaccounted_j` with
            `unaccounted_why`, `warnings` (sentences).
        estimators: of means, idle power and their intervals: `jaxenergy.energy`.

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
    windows_lines, metrics_lines = list(windows_lines), list(metrics_lines)
    domains = tuple(facts["counted_domains"])
    labelled = label_lines(windows_lines)
    by_phase = {
        phase: [line for label, line in labelled if label == phase] for phase in _order(labelled)
    }
    train = by_phase.get("train", [])
    # A kill can take the line of a window that a checkpoint already held, which leaves a gap.
    updates = max((_reaches(line) for line in train if line.get("updates")), default=0)
    recorded = _count(train, "updates")
    scale = updates / recorded if recorded else 0.0
    metrics = _standing_metrics(metrics_lines, updates)
    parameters = facts["parameters"]
    per_update = _mean_per(estimators, train, "updates", domains)
    per_example = _mean_per(estimators, train, "examples", domains)
    tokens = facts.get("tokens_per_example")
    summary = {
        "schema": SCHEMA,
        "status": facts["status"],
        "provenance": facts["provenance"],
        "parameters": parameters,
        "updates": updates,
        "iterations": round(scale * _count(train, "iterations")),
        "examples": round(scale * _count(train, "examples")),
        "attempts": max((line.get("attempt") or 0 for line in windows_lines), default=0) + 1,
        "duration_s": _duration_s(line for _, line in labelled),
        "duration_by_phase_s": {phase: _duration_s(lines) for phase, lines in by_phase.items()},
        "final": _final(metrics, facts.get("final", {})),
        "target": _target(find_target(config), metrics, labelled, domains),
        "energy_j": _energy(by_phase, domains, facts, estimators),
        "per_iteration_j": _mean_per(estimators, train, "iterations", domains),
        "per_update_j": per_update,
        "per_example_j": per_example,
        **({"per_token_j": _divided(per_example, tokens)} if tokens else {}),
        "per_update_per_parameter_j": _divided(per_update, parameters),
        "compiled": _compiled(
            facts.get("compiled", {}), by_phase.get("compile", []), domains, per_update
        ),
        "warnings": _warnings(
            [
                *_restarts(windows_lines),
                *_lost_evaluations(labelled, metrics_lines),
                *facts.get("warnings", ()),
            ],
            labelled,
        ),
    }
    if facts.get("why"):
        summary["why"] = {"status": facts["why"]}
    return summary


def label_lines(windows_lines: Iterable[Line]) -> list[tuple[str, Line]]:
    """Gives each line its phase, or `lost` where a later rollback undid its updates.

    A line that says where in the training it was (`first_update`) and reaches beyond the update
    that a later attempt went on from is lost, and so is an evaluation at that very update which is
    made anew: one that was broken off (`steady` is false), or that the checkpoint does not know of
    (it lies beyond `evaluated_at`). Lines without a place (compiling, loading) were spent in their
    own phase.

    Args:
        windows_lines: the lines of `windows.jsonl` in file order.

    Returns:
        (label, line) of each line but the events, in file order.
    """
    labels: list[str] = []
    lines: list[Line] = []
    standing: list[int] = []  # positions in `lines` that a rollback could still undo
    broken_off: list[int] = []  # positions of training after its attempt's last whole window
    for line in windows_lines:
        if line.get("event") == ROLLBACK:
            for position in standing:
                if _is_undone(lines[position], line):
                    labels[position] = LOST
            for position in broken_off:
                labels[position] = LOST
            broken_off.clear()
            standing = [position for position in standing if labels[position] != LOST]
        elif "phase" in line:
            if line.get("first_update") is not None:
                standing.append(len(lines))
                broken_off.clear()
            elif line["phase"] == "train":
                broken_off.append(len(lines))
            labels.append(line["phase"])
            lines.append(line)
    return list(zip(labels, lines, strict=True))


def _reaches(line: Line) -> int:
    """The number of updates made when the line ended."""
    return line["first_update"] + (line.get("updates") or 0)


def _is_undone(line: Line, rollback: Line) -> bool:
    """Whether what a line was spent on is done again by a training that was rolled back."""
    reached, to_update = _reaches(line), rollback["to_update"]
    if line["phase"] == "eval" and reached == to_update:
        return line.get("steady") is False or reached > rollback.get("evaluated_at", to_update)
    return reached > to_update


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
    by_phase: Mapping[str, Sequence[Line]],
    domains: Sequence[str],
    facts: Mapping[str, Any],
    estimators: Estimators,
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
    idle = dict(estimators.idle_account(sorted(every, key=_order_in_time), domains))
    why.update(idle.pop("why"))
    energy = {
        "counted_domains": list(domains),
        "metered": metered,
        "total": total,
        "by_phase": {
            phase: told(f"by_phase.{phase}", add_energy(lines, domains))
            for phase, lines in by_phase.items()
        },
        "by_phase_and_domain": {
            phase: {domain: add_energy(lines, (domain,))[0] for domain in domains}
            for phase, lines in by_phase.items()
        },
        "by_domain": {
            domain: told(f"by_domain.{domain}", add_energy(every, (domain,))) for domain in domains
        },
        **idle,
        "unaccounted_j": facts.get("unaccounted_j"),
    }
    if energy["unaccounted_j"] is None:
        why["unaccounted_j"] = facts.get(
            "unaccounted_why", "what was spent after the last line is not bounded by a counter"
        )
    return {**energy, "why": why} if why else energy


def _order_in_time(line: Line) -> tuple[int, int]:
    """A process's clock may restart with the machine, its attempts are numbered."""
    return line.get("attempt", 0), line["start_ns"]


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
        **{key: value for key, value in last.items() if key.startswith("validation_")},
        "validation_accuracy": last.get("validation_accuracy"),
        "test_accuracy": None,
    }
    return null_unless_finite({**measured, **given})


def _target(
    target: Target | None,
    metrics: Sequence[Line],
    labelled: Sequence[tuple[str, Line]],
    domains: Sequence[str],
) -> dict[str, Any] | None:
    """When the target was reached first, and what that had taken."""
    if target is None:
        return None
    reached_at = next((line["update"] for line in metrics if target.is_reached(line)), None)
    energy_j, reason = None, "the target was not reached"
    if reached_at is not None:
        energy_j, reason = _energy_until(reached_at, labelled, domains)
    record = {
        target.measure: target.value,
        "reached_at_update": reached_at,
        "energy_j": energy_j,
    }
    return {**record, "why": {"energy_j": reason}} if reason else record


def _energy_until(
    update: int, labelled: Sequence[tuple[str, Line]], domains: Sequence[str]
) -> tuple[float | None, str | None]:
    """What the first `update` updates took, with compiling, warming up and loading until then."""
    ends = [
        position
        for position, (label, line) in enumerate(labelled)
        # Stretches between windows have no place in the training, and end at no update.
        if label == "train" and line.get("first_update") is not None and _reaches(line) == update
    ]
    if not ends:
        return None, f"no window ends at update {update}"
    needed = [line for label, line in labelled[: ends[0] + 1] if label in _NEEDED_FOR_TARGET]
    return add_energy(needed, domains)


def _mean_per(
    estimators: Estimators, train: Sequence[Line], key: str, domains: Sequence[str]
) -> dict[str, Any]:
    if not domains:
        return {"mean": None, "why": _NO_METER}
    if not any(line.get(key) for line in train):
        return {"mean": None, "why": _NO_WINDOW}
    return dict(estimators.mean_per(train, key, domains))


def _divided(rate: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """A mean with its interval per parameter or token."""
    if rate["mean"] is None:
        return dict(rate)
    if not count:
        return {"mean": None, "why": "the number of parameters is not known"}
    return {
        **rate,
        "mean": rate["mean"] / count,
        "ci95": [bound / count for bound in rate["ci95"]],
    }


def _compiled(
    given: Mapping[str, Any],
    lines: Sequence[Line],
    domains: Sequence[str],
    per_update: Mapping[str, Any],
) -> dict[str, Any]:
    """What compiling gave and took; the time and joules are those of the compile phase.

    `amortised_after_updates` is the N at which compiling is 1 % of compiling and N updates:
    E_compile = 0.01 (E_compile + N E_update).
    """
    compile_j, reason = add_energy(lines, domains)
    amortised = None
    if compile_j is not None and per_update["mean"] is not None and per_update["mean"] > 0:
        amortised = math.ceil(99 * compile_j / per_update["mean"])
    compiled = {
        "flops_per_update": given.get("flops_per_update"),
        "bytes_per_update": given.get("bytes_per_update"),
        "compile_s": _duration_s(lines) if lines else None,
        "compile_j": compile_j,
        "amortised_after_updates": amortised,
        "cache_hit": given.get("cache_hit"),
        **{k: v for k, v in given.items() if k not in ("compile_s", "compile_j", "why")},
    }
    why = {**given.get("why", {}), **({"compile_j": reason} if reason else {})}
    return {**compiled, "why": why} if why else compiled


def _restarts(windows_lines: Iterable[Line]) -> list[str]:
    """Of attempts that could not go on where the one before them had come to, why not."""
    return [
        f"attempt {plain_text(line.get('attempt'), 20)} went on from update "
        f"{line['to_update']:,}: {plain_text(line['why'])}"
        for line in windows_lines
        if line.get("event") == ROLLBACK and line.get("why")
    ]


def _lost_evaluations(
    labelled: Sequence[tuple[str, Line]], metrics_lines: Iterable[Line]
) -> list[str]:
    """A warning where evaluations that were made are not among the metrics any more."""
    made = {
        _reaches(line)
        for label, line in labelled
        if label == "eval" and line.get("first_update") is not None
    }
    # The last one has no line either where it was broken off, or its output was not finite.
    lost = made - {line["update"] for line in metrics_lines} - {max(made, default=0)}
    if not lost:
        return []
    return [
        f"metrics.jsonl lacks {len(lost)} of the evaluations that windows.jsonl tells of, the "
        f"first at update {min(lost):,}"
    ]


def _warnings(given: Sequence[str], labelled: Sequence[tuple[str, Line]]) -> list[str]:
    """What a reader should know before believing the joules, each sentence once."""
    found = dict.fromkeys(given)
    for _, line in labelled:
        for conditions in (line.get("conditions") or {}).values():
            found.update(dict.fromkeys(conditions.get("contamination") or ()))
    return list(found)[:_MAX_WARNINGS]
