"""Energy against accuracy: what lies on the front, and what a further point of accuracy costs.

Set-ups are chosen by validation accuracy and by the other seeds; what is told of them is test
accuracy.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study, TooLittleData
from jaxenergy.studies.inference import mean_of, p_effect_above, p_effect_below
from jaxenergy.studies.patterns import need_accuracies, need_shape
from jaxenergy.studies.per_update import SETUP
from jaxenergy.studies.table import Blocks, Quantity, Table, blocks

_MIN_CELLS = 4
_POINTS = 0.5  # a gain in accuracy below this many points is none
_BAND = 500


@dataclasses.dataclass(frozen=True)
class _Outcomes:
    """Costs and accuracies [seeds, cells], and the cells' names."""

    cost: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    cells: list[str]


def _outcomes(table: Table, quantity: Quantity) -> _Outcomes:
    need_accuracies(table)
    cells = [" ".join(map(str, cell)) for cell in table.settings(*SETUP, "updates")]
    cost = table.of_training(quantity)
    cost = np.where(cost > 0, cost, np.nan)
    both = cost + table.numbers("final.validation_accuracy") + table.numbers("final.test_accuracy")
    known = np.isfinite(both)

    def arrange(values: np.ndarray) -> Blocks:
        return blocks(table.seeds, cells, np.where(known, values, np.nan))

    costs = arrange(cost)
    need_shape(costs, cells=_MIN_CELLS, of="set-ups")
    validation = arrange(100 * table.numbers("final.validation_accuracy"))
    test = arrange(100 * table.numbers("final.test_accuracy"))
    return _Outcomes(costs.values, validation.values, test.values, costs.cells)


def front(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """The numbers of the set-ups that none beats in both, from the cheapest on."""
    order = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(accuracy[order])
    return order[np.concatenate([[True], best[1:] > best[:-1]])]


def _anchors(outcomes: _Outcomes) -> np.ndarray:
    """Cheapest, middle and most accurate of the front, chosen by the other seeds [seeds, 3]."""
    cost, accuracy = inference.others(outcomes.cost), inference.others(outcomes.validation)
    found = []
    for seed in range(len(cost)):
        on_front = front(cost[seed], accuracy[seed])
        if len(on_front) < 3:
            raise TooLittleData("fewer than three set-ups are on the front")
        low, high = accuracy[seed][on_front[[0, -1]]]
        inner = on_front[1:-1]
        middle = inner[np.abs(accuracy[seed][inner] - (low + high) / 2).argmin()]
        found.append((on_front[0], middle, on_front[-1]))
    return np.array(found)


def _per_point(cost: float, points: float) -> float:
    """Infinite where no point was gained."""
    return float(cost / points) if points > 0 else math.inf


def test_costs(table: Table, quantity: Quantity) -> Finding:
    """The most accurate set-up is more accurate than the cheapest, and takes more.

    Decided by the two differences (Student's t over seeds); what is told is their ratio, with
    Fieller's interval, which has no bounds where it is not sure that a point was gained.
    """
    outcomes = _outcomes(table, quantity)
    cheapest = inference.others(outcomes.cost).argmin(axis=1)
    best = inference.others(outcomes.validation).argmax(axis=1)
    points = inference.chosen(outcomes.test, best) - inference.chosen(outcomes.test, cheapest)
    cost = inference.chosen(outcomes.cost, best) - inference.chosen(outcomes.cost, cheapest)
    ratio = np.log(
        inference.chosen(outcomes.cost, best) / inference.chosen(outcomes.cost, cheapest)
    )
    return Finding(
        _per_point(cost.mean(), points.mean()),
        inference.ratio_bounds(cost, points),
        f"{quantity.unit} per point of test accuracy",
        len(points),
        max(p_effect_above(mean_of(points), 0.0), p_effect_above(mean_of(ratio), 0.0)),
        p_effect_below(mean_of(points), _POINTS),
        f"{points.mean():.3g} points for {np.exp(ratio.mean()):.3g} times the cost",
    )


def test_ever_more(table: Table, quantity: Quantity) -> Finding:
    """Points of the upper half of the front cost more than those of the lower half.

    Decided by upper cost x lower points - lower cost x upper points, which needs no quotient, with
    its jackknife error and Student's t over seeds; what is told is the ratio of these two
    products, with Fieller's interval, which leaves out 1 where that decides.
    """
    outcomes = _outcomes(table, quantity)
    anchors = _anchors(outcomes)
    cost = np.diff(np.take_along_axis(outcomes.cost, anchors, axis=1), axis=1)
    points = np.diff(np.take_along_axis(outcomes.test, anchors, axis=1), axis=1)
    both = np.concatenate([cost, points], axis=1)  # lower and upper cost, lower and upper points

    upper = inference.pseudo_values(both, lambda means: means[:, 1] * means[:, 2])
    lower = inference.pseudo_values(both, lambda means: means[:, 0] * means[:, 3])
    bend = mean_of(upper - lower)
    mean_cost, mean_points = cost.mean(axis=0), points.mean(axis=0)
    each = [_per_point(*ends) for ends in zip(mean_cost, mean_points, strict=True)]
    return Finding(
        each[1] / each[0] if each[0] > 0 else math.nan,
        inference.ratio_bounds(upper, lower),
        "ratio of costs per point",
        len(both),
        p_effect_above(bend, 0.0),
        p_effect_below(bend, 0.0),
        "upper half of the front against the lower",
    )


def describe_front(table: Table, quantity: Quantity) -> list[dict[str, Any]]:
    """The front with test accuracies, for the record.

    Returns:
        One dict per set-up on the front: `setup`, `cost`, `unit`, `test_accuracy` in per cent with
        `ci95` (Student's, over seeds), and `on_front`, the share of the bootstrap draws of seeds in
        which it is there.
    """
    try:
        outcomes = _outcomes(table, quantity)
    except TooLittleData:
        return []
    n = len(outcomes.cost)
    draws = np.random.default_rng(0).integers(n, size=(_BAND, n))
    cost, validation = (
        values[draws].mean(axis=1) for values in (outcomes.cost, outcomes.validation)
    )
    share = np.zeros(len(outcomes.cells))
    for i in range(_BAND):
        share[front(cost[i], validation[i])] += 1 / _BAND
    on_front = front(outcomes.cost.mean(axis=0), outcomes.validation.mean(axis=0))
    return [
        {
            "setup": outcomes.cells[cell],
            "cost": float(outcomes.cost[:, cell].mean()),
            "unit": quantity.unit,
            "test_accuracy": float(outcomes.test[:, cell].mean()),
            "ci95": list(mean_of(outcomes.test[:, cell]).interval()),
            "on_front": float(share[cell]),
        }
        for cell in on_front
    ]


STUDY = Study(
    name="tradeoff",
    claim="Accuracy costs energy, and each further point costs more than the one before.",
    source="Named as missing in a widely read summary of Geissler et al. (arXiv 2401.01851).",
    statements=(
        Statement(
            "The most accurate set-up takes more {cost} than the cheapest, and is more accurate.",
            test_costs,
        ),
        Statement(
            "A further point of accuracy takes more {cost} on the upper half of the front.",
            test_ever_more,
        ),
    ),
    minimum="four set-ups, three of them on the front, three seeds of each",
    design=grids.tradeoff,
    describe=describe_front,
)
