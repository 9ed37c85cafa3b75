"""Energy against accuracy: what lies on the front, and what a further point of accuracy costs.

Set-ups are chosen by validation accuracy and by the other seeds; what is told of them is test
accuracy.
"""

import dataclasses
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


def _per_point(means: np.ndarray) -> np.ndarray:
    """Cost per point from [n, (cost, points)]; infinite where no point was gained."""
    return np.where(means[:, 1] > 0, means[:, 0] / np.maximum(means[:, 1], 1e-12), np.inf)


def test_costs(table: Table, quantity: Quantity) -> Finding:
    """The most accurate set-up is more accurate than the cheapest, and takes more."""
    outcomes = _outcomes(table, quantity)
    cheapest = inference.others(outcomes.cost).argmin(axis=1)
    best = inference.others(outcomes.validation).argmax(axis=1)
    points = inference.chosen(outcomes.test, best) - inference.chosen(outcomes.test, cheapest)
    cost = inference.chosen(outcomes.cost, best) - inference.chosen(outcomes.cost, cheapest)
    ratio = np.log(
        inference.chosen(outcomes.cost, best) / inference.chosen(outcomes.cost, cheapest)
    )
    both = np.stack([cost, points], axis=1)
    return Finding(
        float(_per_point(both.mean(axis=0)[None])[0]),
        inference.block_bootstrap(both, _per_point),
        f"{quantity.unit} per point of test accuracy",
        len(points),
        max(p_effect_above(mean_of(points), 0.0), p_effect_above(mean_of(ratio), 0.0)),
        p_effect_below(mean_of(points), _POINTS),
        f"{points.mean():.3g} points for {np.exp(ratio.mean()):.3g} times the cost",
    )


def test_ever_more(table: Table, quantity: Quantity) -> Finding:
    """Points of the upper half of the front cost more than those of the lower half."""
    outcomes = _outcomes(table, quantity)
    anchors = _anchors(outcomes)
    cost = np.diff(np.take_along_axis(outcomes.cost, anchors, axis=1), axis=1)
    points = np.diff(np.take_along_axis(outcomes.test, anchors, axis=1), axis=1)
    both = np.concatenate([cost, points], axis=1)  # lower and upper cost, lower and upper points

    def bend(means: np.ndarray) -> np.ndarray:
        """Above zero where the upper points are dearer, without a quotient."""
        return means[:, 1] * means[:, 2] - means[:, 0] * means[:, 3]

    def ratio(means: np.ndarray) -> np.ndarray:
        lower = _per_point(means[:, [0, 2]])
        return _per_point(means[:, [1, 3]]) / np.where(lower > 0, lower, np.nan)

    found = inference.jackknife(both, bend)
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = float(ratio(both.mean(axis=0)[None])[0])
        ci95 = inference.block_bootstrap(both, lambda means: np.nan_to_num(ratio(means), nan=0.0))
    return Finding(
        effect,
        ci95,
        "ratio of costs per point",
        len(both),
        p_effect_above(found, 0.0),
        p_effect_below(found, 0.0),
        "upper half of the front against the lower",
    )


def describe_front(table: Table, quantity: Quantity) -> list[dict[str, Any]]:
    """The front with a bootstrap band of test accuracy, for the record.

    Returns:
        One dict per set-up on the front: `setup`, `cost`, `unit`, `test_accuracy` in per cent with
        `ci95`, and `on_front`, the share of the draws of seeds in which it is there.
    """
    try:
        outcomes = _outcomes(table, quantity)
    except TooLittleData:
        return []
    n = len(outcomes.cost)
    draws = np.random.default_rng(0).integers(n, size=(_BAND, n))
    cost, validation, test = (
        values[draws].mean(axis=1) for values in (outcomes.cost, outcomes.validation, outcomes.test)
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
            "ci95": [float(bound) for bound in np.quantile(test[:, cell], [0.025, 0.975])],
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
