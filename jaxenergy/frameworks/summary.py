"""`compare.json`: what the processes of a comparison say, by framework and by pair."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxenergy.frameworks import analysis
from jaxenergy.frameworks.analysis import Crossover, Interval, Observation
from jaxenergy.meters.base import PROVENANCES
from jaxenergy.stats import group_mean

SCHEMA = 1

Process = Mapping[str, Any]

# Statuses of a model's comparison.
COMPARED = "compared"
REFUSED = "refused"
FAILED = "failed"
UNFINISHED = "unfinished"

# Relative, after nine updates; rounding makes about 1e-5 of it in float32.
_SAME_LOSS = {"float32": 1e-3, "bfloat16": 2e-2}
# Of other programs, from which on a process's times are not its own alone.
_DISTURBING_CORES = 0.2
_TOO_FEW = "an interval needs two processes"
_NO_COLD = "no process of it compiled anew"
_UNITS = {"j": "energy_j", "s": "duration_s"}
# What environments of processes that are compared must agree on, beside the machine.
_SAME = ("versions", "git", "boot_id", "cpu")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model's part of a comparison.

    Attributes:
        config: the training, by setting.
        facts: what was prepared; None where it was not.
        processes: the records of those that finished, with `block`, `position` and `cold`.
        status: one of this module's statuses.
        why: the reason, where it is not `compared`.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any] | None
    processes: Sequence[Process]
    status: str
    why: str | None = None


def summarise(comparison: Comparison, frameworks: Sequence[str]) -> dict[str, Any]:
    """What one model's processes say.

    Args:
        comparison: its processes.
        frameworks: in the order asked for; the first is the reference of tables.

    Returns:
        An entry of `models` in `compare.json`; see docs/frameworks.md.
    """
    facts = comparison.facts or {}
    of = {name: _by_block(comparison.processes, name) for name in frameworks}
    finished = [name for name in frameworks if of[name]]
    updates = facts.get("total_updates")
    entry: dict[str, Any] = {
        "status": comparison.status,
        "provenance": _weakest(comparison.processes),
        "config": dict(comparison.config),
        "resolved": facts.get("resolved"),
        "device": facts.get("device"),
        "tf32": facts.get("tf32"),
        "parity": facts.get("parity"),
        "training_updates": updates,
        "frameworks": {name: _describe(list(of[name].values()), updates) for name in finished},
        "pairs": [
            _compare(of, first, second, updates)
            for first, second in itertools.combinations(finished, 2)
        ],
        "warnings": _warnings(comparison.processes),
    }
    if comparison.why:
        entry["why"] = {"status": comparison.why}
    return entry


def why_losses_differ(processes: Sequence[Process], precision: str) -> str | None:
    """Why the metered programs cannot be one: all began with the same weights and batches.

    Parity is checked in float64 and by few examples; this is what was metered, however compiled.

    Args:
        processes: the records; those that make several updates a call tell of no single loss.
        precision: of the computation.

    Returns:
        What differs; None where nothing does.
    """
    told = [process for process in processes if process["first_losses"] is not None]
    for number, which in enumerate(("first update", "first updates")):
        losses = {process["framework"]: process["first_losses"][number] for process in told}
        if not losses:
            continue
        lost = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if lost:
            return f"the loss of the {which} is {losses[lost[0]]} in {' and '.join(lost)}"
        low, high = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        if losses[high] - losses[low] > _SAME_LOSS[precision] * abs(losses[high]):
            return (
                f"the loss of the {which} is {losses[low]:.6g} in {low} and {losses[high]:.6g}"
                f" in {high}"
            )
    return None


def _by_block(processes: Sequence[Process], framework: str) -> dict[int, Process]:
    own = [process for process in processes if process["framework"] == framework]
    return {process["block"]: process for process in sorted(own, key=lambda p: p["block"])}


def _weakest(processes: Sequence[Process]) -> str:
    found = {process["provenance"] for process in processes}
    if not found or "none" in found:
        return "none"
    return max(found, key=PROVENANCES.index)


def _describe(processes: Sequence[Process], updates: int | None) -> dict[str, Any]:
    """What a framework's processes say of it."""
    cold = [process for process in processes if process["cold"]]
    told: dict[str, Any] = {
        "processes": len(processes),
        "cold_compiles": len(cold),
        "updates_per_call": processes[0]["updates_per_call"],
        "described": processes[0]["described"],
    }
    for unit, key in _UNITS.items():
        told[f"per_update_{unit}"] = _mean_of_updates(
            processes, _per_update(key), f"per_update.{key}"
        )
        told[f"start_up_{unit}"] = _mean(processes, "stages", "start_up", key)
        told[f"compile_{unit}"] = _mean(cold, "stages", "compile", key, empty=_NO_COLD)
        told[f"warmup_{unit}"] = _mean(cold, "stages", "warmup", key, empty=_NO_COLD)
        told[f"fixed_{unit}"] = _mean(cold, "fixed", key, empty=_NO_COLD)
        told[f"training_{unit}"] = _training(cold, key, updates)
    told["power_w"] = _mean_of_updates(processes, _per_update("power_w"), "per_update.power_w")
    told["idle_w"] = _mean(processes, "idle_w")
    told["net_per_update_j"] = _mean_of_updates(processes, _net_update_j, "idle_w")
    told["peak_memory"] = {
        key: _mean(processes, "peak_memory", key) for key in ("host_bytes", "device_bytes")
    }
    return told


def _tell_of_updates(processes: Sequence[Process]) -> tuple[list[Process], list[Process]]:
    """Whose updates are told, and those of whom only the scatter is.

    A process that has compiled makes slower updates than one that found its programs in the cache
    (docs/performance.md), so the two are never taken together: those tell that found them, where
    there are two.
    """
    cold = [process for process in processes if process["cold"]]
    loaded = [process for process in processes if not process["cold"]]
    if len(loaded) >= analysis.MIN_PROCESSES or not cold:
        return loaded, cold
    return cold, loaded


def _per_update(key: str) -> Callable[[Process], float | None]:
    return lambda process: process["per_update"][key]


def _mean_of_updates(
    processes: Sequence[Process], value_of: Callable[[Process], float | None], name: str
) -> dict[str, Any]:
    """The mean of what is told by updates; `name` is that of the value that may be missing."""
    telling, others = _tell_of_updates(processes)
    values, scatter = (
        [value for process in group if (value := value_of(process)) is not None]
        for group in (telling, others)
    )
    found = _mean_in_group(values, scatter) if len(values) == len(telling) else None
    return _to_json(found, "mean", _why(telling, name))


def _mean_in_group(values: Sequence[float], others: Sequence[float]) -> Interval:
    """As `analysis.mean`; other processes, with a mean of their own, are taken to scatter alike."""
    found = group_mean(values, others)
    return Interval(found.value, found.interval() if found.freedom else None, len(values))


def _training(cold: Sequence[Process], key: str, updates: int | None) -> dict[str, Any]:
    """A training that compiles anew, with the updates of the processes that did so."""
    if not cold:
        return _to_json(None, "mean", _NO_COLD)
    seen = [one for process in cold if (one := _observe(process, key)) is not None]
    found = None
    if updates is not None and len(seen) == len(cold):
        found = analysis.whole_training(seen, updates)
    return _to_json(found, "mean", _why(cold, f"per_update.{key}"))


def _observe(process: Process, key: str) -> Observation | None:
    update = process["per_update"][key]
    fixed = process["fixed"][key] if process["cold"] else None
    return None if update is None else Observation(update, fixed)


def _net_update_j(process: Process) -> float | None:
    per_update, idle_w = process["per_update"], process["idle_w"]
    if per_update["energy_j"] is None or idle_w is None:
        return None
    return per_update["energy_j"] - idle_w * per_update["duration_s"]


def _compare(
    of: Mapping[str, Mapping[int, Process]], first: str, second: str, updates: int | None
) -> dict[str, Any]:
    """How the second of two frameworks compares with the first, block by block."""

    def ratio(*path: str, cold: bool = False) -> dict[str, Any]:
        def value_of(process: Process) -> float | None:
            return None if cold and not process["cold"] else _read(process, path)

        return _ratio(of, first, second, value_of)

    def whole(process: Process, key: str) -> float | None:
        seen = _observe(process, key)
        if seen is None or seen.fixed is None or updates is None:
            return None
        return seen.fixed + updates * seen.update

    pair: dict[str, Any] = {"framework": second, "reference": first}
    for what, key in (("energy", "energy_j"), ("time", "duration_s")):
        pair[f"{what}_ratio"] = _ratio_of_updates(of, first, second, key)
        pair[f"start_up_{what}_ratio"] = ratio("stages", "start_up", key)
        pair[f"compile_{what}_ratio"] = ratio("stages", "compile", key, cold=True)
        pair[f"training_{what}_ratio"] = _ratio(
            of, first, second, lambda process, key=key: whole(process, key)
        )
        samples = {
            name: {block: _observe(process, key) for block, process in of[name].items()}
            for name in (first, second)
        }
        # As of `_training`, updates are those of the processes that compiled anew.
        pairs = analysis.by_block(samples, first, second)
        blocks = [(x, y) for x, y in pairs if None not in (x.fixed, y.fixed)]
        found = analysis.crossover(blocks) if blocks else None
        pair[f"{what}_crossover"] = _crossover_to_json(found, first, second)
    pair["power_ratio"] = _ratio_of_updates(of, first, second, "power_w")
    pair["host_memory_ratio"] = ratio("peak_memory", "host_bytes")
    pair["device_memory_ratio"] = ratio("peak_memory", "device_bytes")
    return pair


def _ratio(
    of: Mapping[str, Mapping[int, Process]],
    first: str,
    second: str,
    value_of: Callable[[Process], float | None],
) -> dict[str, Any]:
    pairs = _pairs(of, first, second, value_of)
    if why := _why_no_ratio(pairs):
        return {"ratio": None, "why": why}
    return _to_json(analysis.ratio(pairs), "ratio", "")


def _ratio_of_updates(
    of: Mapping[str, Mapping[int, Process]], first: str, second: str, key: str
) -> dict[str, Any]:
    """As `_ratio`, of blocks whose updates are told; a block's processes are all of one kind."""
    both = [of[first][block] for block in sorted(of[first].keys() & of[second].keys())]
    pairs, scatter = (
        _pairs(
            {name: {p["block"]: of[name][p["block"]] for p in group} for name in (first, second)},
            first,
            second,
            _per_update(key),
        )
        for group in _tell_of_updates(both)
    )
    if why := _why_no_ratio([*pairs, *scatter] if pairs else []):
        return {"ratio": None, "why": why}
    logs = _mean_in_group(*([math.log(x / y) for x, y in group] for group in (pairs, scatter)))
    ci95 = None if logs.ci95 is None else (math.exp(logs.ci95[0]), math.exp(logs.ci95[1]))
    return _to_json(Interval(math.exp(logs.value), ci95, logs.processes), "ratio", "")


def _pairs(
    of: Mapping[str, Mapping[int, Process]],
    first: str,
    second: str,
    value_of: Callable[[Process], float | None],
) -> list[tuple[float, float]]:
    """The values of the second and of the first, by block."""
    values = {
        name: {block: value_of(process) for block, process in of[name].items()}
        for name in (first, second)
    }
    return analysis.by_block(values, second, first)


def _why_no_ratio(pairs: Sequence[tuple[float, float]]) -> str | None:
    if not pairs:
        return "no block has it for both"
    if min(value for pair in pairs for value in pair) <= 0:
        return "a process has a value that is not above zero"
    return None


def _crossover_to_json(found: Crossover | None, first: str, second: str) -> dict[str, Any]:
    if found is None:
        why = "no block in which both compiled anew tells this of both"
        return {"updates": None, "verdict": "undecided", "why": why}
    names = {"first": first, "second": second, None: None}
    told: dict[str, Any] = {
        "updates": found.updates,
        "set95": None if found.set95 is None else [list(ends) for ends in found.set95],
        "verdict": found.verdict,
        "cheaper_without_updates": names[found.cheaper_first],
        "cheaper_in_the_long_run": names[found.cheaper_last],
        "cold_blocks": found.processes[0],
        "blocks": found.processes[1],
    }
    if found.set95 is None:
        told["why"] = "an interval needs two blocks that compiled anew"
    elif found.updates is None:
        told["why"] = "the means do not cross at any number of updates"
    return told


def _read(process: Process, path: Sequence[str]) -> Any:
    value: Any = process
    for key in path:
        value = value[key]
    return value


def _mean(processes: Sequence[Process], *path: str, empty: str = "") -> dict[str, Any]:
    if not processes:
        return {"mean": None, "why": empty}
    values = [_read(process, path) for process in processes]
    return _interval(values, _why(processes, ".".join(path)))


def _interval(values: Sequence[float | None], why: str) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    found = analysis.mean(known) if known and len(known) == len(values) else None
    return _to_json(found, "mean", why)


def _to_json(found: Interval | None, name: str, why: str) -> dict[str, Any]:
    if found is None:
        return {name: None, "why": why}
    told: dict[str, Any] = {
        name: found.value,
        "ci95": None if found.ci95 is None else list(found.ci95),
        "processes": found.processes,
    }
    return told if found.ci95 is not None else {**told, "why": _TOO_FEW}


def _why(processes: Sequence[Process], key: str) -> str:
    """The first reason that a process gives for a number it does not know."""
    for process in processes:
        for name, reason in process["why"].items():
            if name == key or name.partition(".")[2] == key:
                return reason
    return "not known here"


def _warnings(processes: Sequence[Process]) -> list[str]:
    """What a reader should know before believing a ratio."""
    found = []
    for what in _SAME:
        kinds = {repr(process["environment"].get(what)) for process in processes}
        if len(kinds) > 1:
            found.append(f"the processes do not all have the same {what}")
    modified = any((p["environment"].get("git") or {}).get("modified") for p in processes)
    if modified:
        found.append("the source had changes that were not committed")
    busy = [process.get("others_busy_cores") or 0.0 for process in processes]
    if disturbed := [cores for cores in busy if cores > _DISTURBING_CORES]:
        found.append(
            f"in {len(disturbed)} of {len(busy)} processes other programs kept up to"
            f" {max(disturbed):.1f} cores busy, which slows frameworks down unequally"
        )
    contaminated = dict.fromkeys(
        sentence
        for process in processes
        for line in process["lines"]
        for conditions in (line.get("conditions") or {}).values()
        for sentence in conditions.get("contamination") or ()
    )
    return [*found, *list(contaminated)[:5]]
