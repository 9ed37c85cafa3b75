"""Runs as columns of numbers: what the studies' tests work on.

A table is made of rows as `jaxenergy.read_runs` gives them. Here it is decided, once for all
studies, what a run's cost is: per update, of its training, to the accuracy it was to reach.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxenergy.config import MEASURES, Target

Row = Mapping[str, Any]

_PROVENANCES = ("measured", "simulated", "estimated", "none")  # from the strongest to the weakest


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What a statement is asked of.

    Attributes:
        name: in verdicts.
        word: in sentences.
        unit: of its amounts.
        train: the column of the whole training.
        compiling: the column of compiling; None where that takes none.
    """

    name: str
    word: str
    unit: str
    train: str
    compiling: str | None


ENERGY = Quantity("energy", "energy", "J", "energy_j.by_phase.train", "compiled.compile_j")
TIME = Quantity("time", "time", "s", "duration_by_phase_s.train", "compiled.compile_s")
FLOPS = Quantity("flops", "computation", "FLOP", "", None)
ACCURACY = Quantity("accuracy", "accuracy", "points", "", None)


def number(row: Row, key: str) -> float:
    """A number of a row; NaN where there is none."""
    value = row.get(key)
    return math.nan if value is None or isinstance(value, str | bool) else float(value)


def setting(row: Row, name: str) -> Any:
    """A setting of a run as it was resolved, else as it was given."""
    value = row.get(f"config.resolved.{name}")
    return row.get(f"config.{name}") if value is None else value


def weakest(provenances: Iterable[Any]) -> str:
    """The weakest of some provenances; `none` where there is none, or one that is not known."""
    ranks = [_PROVENANCES.index(p) if p in _PROVENANCES else 3 for p in provenances]
    return _PROVENANCES[max(ranks, default=3)]


def has_diverged(row: Row) -> bool:
    """Whether a run failed because its numbers were no longer finite."""
    why = str(row.get("why") or "")
    return row.get("state") == "failed" and (
        "not finite" in why or "became nan" in why or "became inf" in why
    )


def target_of(row: Row) -> Target | None:
    """What a run was to reach, or None."""
    found = ((measure, row.get(f"target.{measure}")) for measure in MEASURES)
    return next((Target(measure, value) for measure, value in found if value is not None), None)


class Table:
    """Finished runs.

    Args:
        rows: as `read_runs` gives them. Those that are not completed are left out, but for runs
            with a target whose loss diverged: they are set-ups that never reach it.
    """

    def __init__(self, rows: Sequence[Row]):
        self.rows = [
            row
            for row in rows
            if row.get("state") == "completed" or (has_diverged(row) and target_of(row) is not None)
        ]
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def provenance(self) -> str:
        """The weakest provenance of joules among the runs; `none` where there are none."""
        return weakest({row.get("provenance") for row in self.rows})

    def where(self, keep: Callable[[Row], bool]) -> "Table":
        """The runs that are to be kept."""
        return Table([row for row in self.rows if keep(row)])

    def numbers(self, key: str) -> np.ndarray:
        """A column [runs], NaN where a run has no number."""
        if key not in self._columns:
            self._columns[key] = np.array([number(row, key) for row in self.rows], dtype=float)
            self._columns[key].flags.writeable = False
        return self._columns[key]

    def settings(self, *names: str) -> list[Any]:
        """A setting of each run, or a tuple of several."""
        if len(names) == 1:
            return [setting(row, names[0]) for row in self.rows]
        return [tuple(setting(row, name) for name in names) for row in self.rows]

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [row.get("config.seed") for row in self.rows]

    def of_training(self, quantity: Quantity) -> np.ndarray:
        """The cost of each run's updates [runs], without compiling and evaluations."""
        if quantity is FLOPS:
            return self.numbers("compiled.flops_per_update") * self.numbers("updates")
        return self.numbers(quantity.train)

    def per_update(self, quantity: Quantity) -> np.ndarray:
        """The cost of an update [runs].

        Joules are the mean of the steady windows where every run has one, else those of the whole
        training over its updates, so that all runs are held to one definition.
        """
        if quantity is FLOPS:
            return self.numbers("compiled.flops_per_update")
        if quantity is ENERGY:
            steady = self.numbers("per_update_j.mean")
            if np.all(np.isfinite(steady)):
                return steady
        return self.of_training(quantity) / self.numbers("updates")

    def of_run(self, quantity: Quantity) -> np.ndarray:
        """The cost of each whole process from its start, without the idle phase [runs]."""
        if quantity is ENERGY:
            return self.numbers("energy_j.total")
        idle_s = np.nan_to_num(self.numbers("duration_by_phase_s.idle"))
        return self.numbers("duration_s") - idle_s

    def to_accuracy(self, quantity: Quantity) -> tuple[np.ndarray, np.ndarray]:
        """The cost of training until the target was reached.

        Compiling is left out, since whether it was in the cache says nothing of the set-up; the
        study `compile` asks for it.

        Returns:
            The cost [runs], up to the end of the run where the target was not reached, infinite
            where it never would have been since the loss diverged; and whether it was [runs].
        """
        at = self.numbers("target.reached_at_update")
        reached = np.isfinite(at)
        share = np.where(reached, at / self.numbers("updates"), 1.0)
        cost = self.of_training(quantity) * share
        return np.where([has_diverged(row) for row in self.rows], np.inf, cost), reached

    def with_target(self) -> "Table":
        """The runs that had a target, the one that most of them had."""
        found = Counter(target for row in self.rows if (target := target_of(row)) is not None)
        if not found:
            return Table([])
        (common, _), *_ = found.most_common(1)
        return self.where(lambda row: target_of(row) == common)

    def most_common(self, *names: str) -> "Table":
        """The runs of the combination of settings that occurs most, ties to the first in order."""
        found = Counter(map(str, self.settings(*names)))
        if not found:
            return self
        wanted = min(found, key=lambda text: (-found[text], text))
        keep = [str(value) == wanted for value in self.settings(*names)]
        return Table([row for row, kept in zip(self.rows, keep, strict=True) if kept])


@dataclasses.dataclass(frozen=True)
class Blocks:
    """One number per seed and cell, for the seeds that have all cells.

    Attributes:
        seeds: the seeds, in order.
        cells: the cells, in order.
        values: [seeds, cells].
    """

    seeds: list[Any]
    cells: list[Any]
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of seeds and cells."""
        return len(self.seeds), len(self.cells)


def blocks(seeds: Sequence[Any], cells: Sequence[Any], values: np.ndarray) -> Blocks:
    """Arranges numbers by seed and cell; a seed of which a cell lacks its number is left out.

    Args:
        seeds: of each run.
        cells: of each run; they can be sorted.
        values: of each run [runs].

    Returns:
        The blocks; the mean where a cell has several runs of a seed.
    """
    rows = {seed: i for i, seed in enumerate(sorted(set(seeds), key=_order))}
    columns = {cell: i for i, cell in enumerate(sorted(set(cells), key=_order))}
    total = np.zeros((len(rows), len(columns)))
    count = np.zeros_like(total)
    at = ([rows[seed] for seed in seeds], [columns[cell] for cell in cells])
    np.add.at(total, at, values)
    np.add.at(count, at, 1)
    with np.errstate(invalid="ignore"):
        mean = total / count
    complete = np.flatnonzero(np.isfinite(mean).all(axis=1))
    in_order = list(rows)
    kept = [in_order[i] for i in complete]
    return Blocks(kept, list(columns), mean[complete])


def _order(value: Any) -> tuple:
    """Sorts numbers by size and the rest by text, and tuples by their parts."""
    if isinstance(value, tuple):
        return tuple(_order(part) for part in value)
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def restrict(cost: np.ndarray, reached: np.ndarray) -> tuple[np.ndarray, float]:
    """Log cost to the accuracy, restricted to where every run is known.

    A run that did not reach the accuracy has cost at least what it had when it ended. Up to the
    least of these costs, the horizon, all runs are known without any assumption: min(cost,
    horizon) is seen for each. Its mean is the restricted mean of survival analysis, and the
    comparison keeps its blocks. Differences beyond the horizon are not seen, so that ratios of
    set-ups that failed are told too small, never too large.

    Args:
        cost: to the accuracy or to the end of the run [runs].
        reached: whether the accuracy was reached [runs].

    Returns:
        log(min(cost, horizon)) [runs], and the horizon, infinite where all runs reached it.

    References:
        P. Royston, M. K. B. Parmar, Restricted mean survival time, BMC Medical Research
        Methodology 13, 152 (2013).
    """
    horizon = float(np.min(cost[~reached], initial=math.inf))
    if math.isinf(horizon) and not np.all(reached):  # all the unreached diverged
        horizon = float(np.max(cost[reached], initial=0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.minimum(cost, horizon)), horizon
