"""Is one network for several tasks cheaper than a network for each, at equal accuracy in each?"""

from typing import NamedTuple

import numpy as np

from jaxenergy.data.tasks import single_task_names, task_names
from jaxenergy.stats import Estimate
from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.inference import (
    MARGIN,
    mean_of,
    p_above,
    p_below,
    p_effect_above,
    p_effect_below,
)
from jaxenergy.studies.patterns import need, need_shape, tuned
from jaxenergy.studies.table import ACCURACY, Blocks, Quantity, Table, blocks, restrict

_POINTS = 1.0  # a task's test accuracy that is lower by less is no worse


class _Runs(NamedTuple):
    """The runs of one set of tasks, each network at its own learning rate.

    Attributes:
        table: the runs, of the network of all tasks and of those of one.
        tasks: the names of the tasks.
        seeds: the seeds that have all cells.
        choice: the cells (data set, learning rate) chosen [seeds, 1 + tasks]; the network of all
            tasks comes first.
        why: which learning rates these mostly are.
    """

    table: Table
    tasks: tuple[str, ...]
    seeds: list
    choice: np.ndarray
    why: str

    def chosen(self, values: np.ndarray) -> np.ndarray:
        """A number of each run [runs] at the cells chosen [seeds, 1 + tasks]."""
        found = _by_cell(self.table, values)
        need(found.seeds == self.seeds, "a number of some runs is not known")
        return np.take_along_axis(found.values, self.choice, axis=1)


def _by_cell(table: Table, values: np.ndarray) -> Blocks:
    return blocks(table.seeds, table.settings("dataset", "learning_rate"), values)


def _runs(table: Table, cost: str | Quantity) -> _Runs:
    """The runs, and the learning rate at which the other seeds reach the accuracy cheapest.

    Args:
        table: all runs.
        cost: a quantity, or the column of what the rate is chosen by.
    """
    table = table.with_target()
    names = table.settings("dataset")
    several = [name for name in names if len(task_names(str(name))) > 1]
    need(bool(several), "no run learned several tasks until an accuracy")
    shared = max(sorted(set(several)), key=several.count)
    wanted = [shared, *single_task_names(shared)]
    table = table.where(lambda row: row.get("config.dataset") in wanted)
    lacking = [name for name in wanted if name not in table.settings("dataset")]
    need(not lacking, f"it needs runs of {' and '.join(lacking)} until the accuracy, too")
    spent, reached = _to_accuracy(table, cost)
    need(bool(np.all(spent > 0)), "a cost to the accuracy is not known")
    found = _by_cell(table, restrict(spent, reached)[0])
    need_shape(found, cells=len(wanted), of="networks of all tasks and of each")
    _, choice = tuned(found.values, [cell[0] for cell in found.cells], wanted)
    rates = [found.cells[int(np.bincount(column).argmax())][1] for column in choice.T]
    told = ", ".join(f"{name} at {rate}" for name, rate in zip(wanted, rates, strict=True))
    why = f"learning rates tuned by the other seeds: {told}"
    return _Runs(table, task_names(shared), found.seeds, choice, why)


def _to_accuracy(table: Table, cost: str | Quantity) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(cost, Quantity):
        return table.to_accuracy(cost)
    reached = np.isfinite(table.numbers("target.reached_at_update"))
    return table.numbers(cost), reached


def test_cheaper(table: Table, quantity: Quantity) -> Finding:
    """The network of all tasks over those of one together, to the accuracy in every task."""
    runs = _runs(table, quantity)
    spent, reached = _to_accuracy(runs.table, quantity)
    # What diverged never arrives: infinite, for which blocks have no place.
    spent = runs.chosen(np.where(np.isinf(spent), -1.0, spent))
    spent = np.where(spent < 0, np.inf, spent)
    reached = runs.chosen(reached.astype(float)) == 1
    together = np.stack([spent[:, 0], spent[:, 1:].sum(axis=1)], axis=1)
    arrived = np.stack([reached[:, 0], reached[:, 1:].all(axis=1)], axis=1)
    need(2 * int(arrived.sum()) >= arrived.size, "more than half did not reach the accuracy")
    # Networks of which one did not arrive had cost at least their sum by then.
    values, horizon = restrict(together.ravel(), arrived.ravel())
    values = values.reshape(together.shape)
    ratio = mean_of(values[:, 0] - values[:, 1])
    effect, ci95 = inference.ratio_of(ratio)
    target = runs.table.rows[0]["target.accuracy"]
    why = f"to {100 * target:g} % validation accuracy in each of {', '.join(runs.tasks)}"
    if np.isfinite(horizon):
        why += (
            f", missed by {int((~arrived).sum())} of {arrived.size}: compared up to "
            f"{horizon:.3g} {quantity.unit}"
        )
    return Finding(
        effect,
        ci95,
        "ratio",
        len(values),
        p_effect_below(ratio, 0.0),
        p_effect_above(ratio, -MARGIN),
        f"{why}; {runs.why}",
    )


def test_accuracy(table: Table, quantity: Quantity) -> Finding:
    """The network of all tasks less that of one, in each task's test accuracy.

    Every task has to be shown no worse, so that the largest p-value decides and none has to be
    corrected; against it speaks any one, corrected for their number.
    """
    runs = _runs(table, "updates")
    alone = runs.chosen(100 * runs.table.numbers("final.test_accuracy"))[:, 1:]
    changes: list[Estimate] = []
    for column, task in enumerate(runs.tasks):
        own = 100 * runs.table.numbers(f"final.test_accuracy_by_task.{task}")
        shared = runs.chosen(np.where(np.isfinite(own), own, 0.0))[:, 0]
        need(bool(np.all(shared > 0)), f"the shared network's accuracy of {task} is not known")
        changes.append(mean_of(shared - alone[:, column]))
    worst = min(changes, key=lambda change: change.value)
    told = ", ".join(
        "{} {:+.2f} ({:+.2f} to {:+.2f})".format(task, change.value, *change.interval())
        for task, change in zip(runs.tasks, changes, strict=True)
    )
    return Finding(
        worst.value,
        worst.interval(),
        "points",
        int(worst.freedom) + 1,
        max(p_above(change, -_POINTS) for change in changes),
        min(1.0, 2 * len(changes) * min(p_below(change, -_POINTS) for change in changes)),
        f"the effect is of the worst task; {told}; runs end at the validation accuracy asked for; "
        f"{runs.why}",
    )


STUDY = Study(
    name="multitask",
    claim="One network that learns several tasks takes less energy than one network for each.",
    source="Geissler et al. (arXiv 2401.01851), multitask training as a factor; R. Caruana, "
    "Multitask Learning, Machine Learning 28, 41 (1997), on accuracy.",
    statements=(
        Statement(
            "One trunk with a head for each task takes less {cost} to the accuracy in every task "
            "than a network for each task, added up.",
            test_cheaper,
        ),
        Statement(
            "In no task is its test accuracy lower by a point or more.",
            test_accuracy,
            (ACCURACY,),
            equality=True,
        ),
    ),
    minimum="runs of all tasks together and of each alone, three seeds of each; half of them reach "
    "the accuracy",
    design=grids.multitask,
)
