"""Which runs may be compared with each other, and what comparing them gives.

Joules of another kind (`Kind`) are never put together: a mean or a sum over them says nothing
about any of them.
"""

import dataclasses
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxenergy.records.schema import COMPLETED

Record = Mapping[str, Any]

# For each factor: the settings that come with it, and may differ between the levels compared.
FACTORS = {
    "optimizer": ("optimizer", "optimizer_args", "weight_decay"),
    "activation": ("activation",),
    "depth": ("depth",),
}


class Kind(NamedTuple):
    """What runs share whose joules may be put together.

    Attributes:
        dataset: its name.
        data: the digest of its content.
        provenance: of the joules.
        counted: the domains that are added up.
        device: what was computed on.
        protocol: of measuring.
        jaxlib: the version of the compiler.
    """

    dataset: str
    data: str
    provenance: str
    counted: str
    device: str
    protocol: float | None
    jaxlib: str


def kind_of(run: Record) -> Kind:
    """The kind of a run's joules."""
    return Kind(*(run[name] for name in Kind._fields))


def by_kind(runs: Iterable[Record]) -> dict[Kind, list[Record]]:
    """Runs by kind, the kind of most runs first."""
    kinds: dict[Kind, list[Record]] = {}
    for run in runs:
        kinds.setdefault(kind_of(run), []).append(run)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def name_kind(kind: Kind, among: Collection[Kind]) -> str:
    """A kind in words: its data set, and all else in which it differs from others."""
    words = {
        "device": f"on {kind.device or 'a device that was not recorded'}",
        "counted": f"counting {kind.counted or 'no domain'}",
        "jaxlib": f"by jaxlib {kind.jaxlib or 'of no known version'}",
        "protocol": f"of protocol {kind.protocol}",
        "data": f"with data of digest {kind.data.removeprefix('sha256:')[:8] or 'unknown'}",
    }
    differ = [
        text for field, text in words.items() if len({getattr(other, field) for other in among}) > 1
    ]
    return ", ".join([kind.dataset or "no data set", *differ])


@dataclasses.dataclass(frozen=True)
class Level:
    """The runs of one level of a factor, all else equal.

    Attributes:
        name: the level, e.g. `adam`.
        runs: how many.
        mean_j: joules per update, mean over the runs.
        low_j: low end of the 95 % interval.
        high_j: high end.
        interval: what the interval is over: `runs` (their spread) or `windows` (within the one
            run).
    """

    name: str
    runs: int
    mean_j: float
    low_j: float
    high_j: float
    interval: str


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Runs that differ in one factor, in seeds, learning rates and lengths only.

    Attributes:
        factor: the factor.
        shared: the settings and the context that they share, by name.
        levels: at least two.
    """

    factor: str
    shared: dict[str, Any]
    levels: list[Level]


def find_strata(runs: Sequence[Record], factor: str) -> list[Stratum]:
    """The sets of runs in which a factor varies alone, those with the most levels first.

    Args:
        runs: records of the index.
        factor: a key of `FACTORS`.

    Returns:
        The strata with two levels or more.
    """
    free = FACTORS[factor]
    found: dict[Hashable, tuple[dict[str, Any], dict[Any, list[Record]]]] = {}
    for run in runs:
        if run["state"] != COMPLETED or run["per_update_j"] is None:
            continue
        level = run["settings"].get(factor)
        if level is None:
            continue
        shared = {name: value for name, value in run["settings"].items() if name not in free}
        shared |= {**kind_of(run)._asdict(), "framework": run["framework"]}
        _, levels = found.setdefault(tuple(shared.items()), (shared, {}))
        # What comes with the factor makes a level of its own: momentum is not plain descent.
        extras = [str(run["settings"][name]) for name in free[1:] if run["settings"].get(name)]
        levels.setdefault((level, *extras), []).append(run)
    strata = []
    for shared, levels in found.values():
        if len(levels) > 1:
            made = [make_level(" ".join(map(str, key)), group) for key, group in levels.items()]
            made.sort(key=lambda level: level.mean_j)
            if factor == "depth":
                made.sort(key=lambda level: _size_of(level.name))
            strata.append(Stratum(factor, shared, made))
    strata.sort(key=lambda stratum: -sum(level.runs for level in stratum.levels))
    strata.sort(key=lambda stratum: -len(stratum.levels))
    return strata


def _size_of(name: str) -> float:
    """The number that a level is named by; others' configs may have anything, which comes last."""
    try:
        size = float(name)
    except ValueError:
        return math.inf
    return size if math.isfinite(size) else math.inf


def make_level(name: str, runs: Sequence[Record]) -> Level:
    """Joules per update over runs that are alike, with the interval that they allow."""
    means = [run["per_update_j"] for run in runs]
    mean = math.fsum(means) / len(means)
    if len(runs) > 1:
        half = mean_half_width(means)
        return Level(name, len(runs), mean, mean - half, mean + half, "runs")
    (run,) = runs
    low, high = run["per_update_low_j"], run["per_update_high_j"]
    return Level(
        name, 1, mean, mean if low is None else low, mean if high is None else high, "windows"
    )


def mean_half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean of independent values (Student); two at least."""
    # scipy takes a third of a second to load, which a report without repetitions does not need.
    from jaxenergy.stats import student_quantile

    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return student_quantile(0.975, len(values) - 1) * math.sqrt(variance / len(values))


def accuracy_of(run: Record) -> float | None:
    """Test accuracy; of a run without one, the last validation accuracy."""
    test = run.get("test_accuracy")
    return run.get("validation_accuracy") if test is None else test


def pareto_front(runs: Sequence[Record]) -> list[Record]:
    """The runs that no other beats in both joules and accuracy, from the cheapest up."""
    known = [
        run
        for run in runs
        if accuracy_of(run) is not None and run["without_compiling_j"] is not None
    ]
    front: list[Record] = []
    best = -math.inf
    for run in sorted(
        known, key=lambda run: (run["without_compiling_j"], -(accuracy_of(run) or 0.0))
    ):
        accuracy = accuracy_of(run) or 0.0
        if accuracy > best:
            front.append(run)
            best = accuracy
    return front


def rank_of(run: Record) -> tuple[bool, float]:
    """What runs are sorted by: the joules by which they are compared; unknown ones come last."""
    return run["without_compiling_j"] is None, run["without_compiling_j"] or 0.0


def comparable(runs: Sequence[Record]) -> dict[Kind, list[Record]]:
    """Finished runs by what their joules and accuracies may be compared within."""
    return by_kind(
        run for run in runs if run["state"] == COMPLETED and run["without_compiling_j"] is not None
    )
