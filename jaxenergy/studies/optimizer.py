"""Is SGD cheaper than Adam: per update, and to an accuracy, each with its own learning rate?

An update of Adam does more work, and it may need fewer of them. So the answer may differ between
the two readings of the claim, and that difference is tested by itself.
"""

import numpy as np

from jaxenergy.stats import Estimate
from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import ACCURACY, Finding, Statement, Study
from jaxenergy.studies.inference import MARGIN, mean_of, p_outside, p_within
from jaxenergy.studies.patterns import (
    more,
    need,
    need_accuracies,
    need_shape,
    per_update_blocks,
    to_accuracy_blocks,
    tuned,
)
from jaxenergy.studies.table import Quantity, Table, blocks

_PAIR = ("sgd", "adam")
_POINTS = 1.0  # test accuracies within one point count as equal


def _pair(table: Table) -> Table:
    table = table.where(lambda row: row.get("config.optimizer") in _PAIR)
    found = {row.get("config.optimizer") for row in table.rows}
    need(len(found) == 2, "it needs runs of both sgd and adam")
    return table


def _per_update(table: Table, quantity: Quantity) -> np.ndarray:
    """log(Adam / SGD) per update by seed, over all learning rates, which do not change it."""
    found = per_update_blocks(_pair(table), quantity, "optimizer")
    need_shape(found, cells=2, of="optimizers")
    return found.values[:, found.cells.index("adam")] - found.values[:, found.cells.index("sgd")]


def _to_accuracy(table: Table, quantity: Quantity) -> tuple[np.ndarray, str]:
    """log(Adam / SGD) to the accuracy by seed, each at its own best learning rate."""
    found, why = to_accuracy_blocks(_pair(table), quantity, "optimizer", "learning_rate")
    need_shape(found, cells=2, of="optimizers")
    best, choice = tuned(found.values, [cell[0] for cell in found.cells], _PAIR)
    rates = [found.cells[int(np.bincount(choice[:, i]).argmax())][1] for i in range(2)]
    told = ", ".join(f"{name} at {rate}" for name, rate in zip(_PAIR, rates, strict=True))
    return best[:, 1] - best[:, 0], f"learning rates tuned by the other seeds: {told}; {why}"


def test_per_update(table: Table, quantity: Quantity) -> Finding:
    """Adam over SGD per update."""
    return more(mean_of(_per_update(table, quantity)))


def test_to_accuracy(table: Table, quantity: Quantity) -> Finding:
    """Adam over SGD to the accuracy."""
    ratios, why = _to_accuracy(table, quantity)
    return more(mean_of(ratios), f"{why}; {_log_rank(table, quantity)}")


def _log_rank(table: Table, quantity: Quantity) -> str:
    """The log-rank test beside, which takes censored runs as they are and no blocks."""
    found = [
        table.with_target().where(lambda row, name=name: row["config.optimizer"] == name)
        for name in _PAIR
    ]
    costs = [runs.to_accuracy(quantity) for runs in found]
    every = np.concatenate([cost for cost, _ in costs])
    # A run that diverged never reaches it: it is censored behind all others.
    last = float(np.max(every[np.isfinite(every)], initial=0.0))
    groups = []
    for runs, (cost, reached) in zip(found, costs, strict=True):
        cost = np.minimum(cost, last)
        rates = np.array([str(rate) for rate in runs.settings("learning_rate")])
        tried = sorted(set(rates))
        mean = [float(np.mean(cost[rates == rate])) for rate in tried]
        best = rates == tried[int(np.argmin(mean))]
        groups += [cost[best], reached[best]]
    return f"log-rank p = {inference.log_rank(*groups):.2g} (unblocked, best rates)"


def test_interaction(table: Table, quantity: Quantity) -> Finding:
    """Whether the ratio to the accuracy differs from the ratio per update."""
    per_update = _per_update(table, quantity)
    to_accuracy, why = _to_accuracy(table, quantity)
    need(len(per_update) == len(to_accuracy), "some seeds lack runs")
    change = mean_of(to_accuracy - per_update)
    effect, ci95 = inference.ratio_of(change)
    n = len(per_update)
    return Finding(
        effect,
        ci95,
        "ratio of ratios",
        n,
        p_outside(change, 0.0, 0.0),
        p_within(change, -MARGIN, MARGIN),
        why,
    )


def test_accuracy(table: Table, quantity: Quantity) -> Finding:
    """Test accuracy of Adam less that of SGD, each at the rate of the best validation accuracy."""
    table = _pair(table)
    need_accuracies(table)
    cells = table.settings("optimizer", "learning_rate")
    validation = blocks(table.seeds, cells, table.numbers("final.validation_accuracy"))
    test = blocks(table.seeds, cells, table.numbers("final.test_accuracy"))
    need_shape(test, cells=2, of="optimizers")
    need(validation.seeds == test.seeds, "some runs lack an accuracy")
    _, choice = tuned(-validation.values, [cell[0] for cell in validation.cells], _PAIR)
    accuracy = 100 * np.take_along_axis(test.values, choice, axis=1)
    change: Estimate = mean_of(accuracy[:, 1] - accuracy[:, 0])
    return Finding(
        change.value,
        change.interval(),
        "points",
        len(accuracy),
        p_within(change, -_POINTS, _POINTS),
        p_outside(change, -_POINTS, _POINTS),
        "runs end when they reach the validation accuracy that was asked for",
    )


STUDY = Study(
    name="optimizer",
    claim="SGD is cheaper than Adam.",
    source="A widely read summary of Geissler et al., The Power of Training (arXiv 2401.01851); "
    "to the contrary, to an accuracy: T. Almog, optimizer-energy-study (15 seeds, CIFAR-10).",
    statements=(
        Statement("SGD takes less {cost} per update than Adam.", test_per_update),
        Statement("SGD takes less {cost} to the accuracy than Adam.", test_to_accuracy),
        Statement(
            "Adam over SGD in {cost} is another ratio to the accuracy than it is per update.",
            test_interaction,
        ),
        Statement(
            "At their own learning rates SGD and Adam end with the same test accuracy, to one "
            "point.",
            test_accuracy,
            (ACCURACY,),
            equality=True,
        ),
    ),
    minimum="sgd and adam, three seeds of each; a third of the runs reach the accuracy",
    design=grids.optimizer,
)
