"""Findings that several studies make in the same way: one cost above another, a trend, a U, a line.

All work on logarithms of costs in blocks of seeds, and tell effects as ratios.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxenergy.config import Target
from jaxenergy.stats import Estimate
from jaxenergy.studies import inference
from jaxenergy.studies.core import Finding, TooLittleData
from jaxenergy.studies.table import Blocks, Quantity, Table, blocks, restrict, target_of

MIN_SEEDS = 3
_PLATEAU = math.log(1.10)  # a doubling that changes the cost by less is on the plateau


def need(fits: bool, message: str) -> None:
    """Raises `TooLittleData` with what is needed unless it is there."""
    if not fits:
        raise TooLittleData(message)


def need_shape(found: Blocks, *, seeds: int = MIN_SEEDS, cells: int, of: str) -> None:
    """Holds blocks to the least number of seeds and cells, and to positive finite costs."""
    n, k = found.shape
    need(
        n >= seeds and k >= cells,
        f"it needs {seeds} seeds of each of {cells} {of}; complete are {n} seeds of {k}",
    )
    need(bool(np.isfinite(found.values).all()), f"a cost of {of} is zero or not known")


def per_update_blocks(table: Table, quantity: Quantity, *names: str) -> Blocks:
    """Log cost per update by seed and setting."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(table.per_update(quantity))
    return blocks(table.seeds, table.settings(*names), _known(values))


def to_accuracy_blocks(table: Table, quantity: Quantity, *names: str) -> tuple[Blocks, str]:
    """Restricted log cost to the accuracy by seed and setting, and how it was restricted.

    Raises:
        TooLittleData: no run had a target, or fewer than a third reached it.
    """
    table = table.with_target()
    need(len(table) > 0, "no run had an accuracy, or the like, to reach (--target_accuracy)")
    cost, reached = table.to_accuracy(quantity)
    need(
        3 * int(reached.sum()) >= len(reached),
        f"it needs a third of the runs to reach the accuracy; {reached.sum()} of {len(reached)} do",
    )
    need(bool(np.all(cost > 0)), "a cost to the accuracy is not known")
    values, horizon = restrict(cost, reached)
    why = target_words(target_of(table.rows[0]))
    if math.isfinite(horizon):
        why += (
            f", unreached by {int((~reached).sum())} of {len(reached)} runs, which are censored: "
            f"costs are compared up to {horizon:.3g} {quantity.unit}"
        )
    return blocks(table.seeds, table.settings(*names), values), why


def target_words(target: Target | None) -> str:
    """What runs were to reach, in words."""
    assert target is not None
    if target.measure == "accuracy":
        return f"to {100 * target.value:g} % validation accuracy"
    if target.measure == "return":
        return f"to a validation return of {target.value:g}"
    return f"to {target.value:g} bits per character"


def need_accuracies(table: Table) -> None:
    """Refuses runs on control tasks, which are judged by a return and have no accuracy.

    Raises:
        TooLittleData: some run has a return.
    """
    need(
        not np.isfinite(table.numbers("final.validation_return")).any(),
        "it compares accuracies, and runs on a control task have none: they have a return",
    )


def _known(values: np.ndarray) -> np.ndarray:
    """Infinite logarithms (costs of zero) as unknown."""
    return np.where(np.isfinite(values), values, np.nan)


def more(estimate: Estimate, why: str = "", n: int | None = None) -> Finding:
    """The finding that a log ratio is above zero; against it speaks that it is under the margin."""
    effect, ci95 = inference.ratio_of(estimate)
    return Finding(
        effect,
        ci95,
        "ratio",
        n or int(estimate.freedom) + 1,
        inference.p_effect_above(estimate, 0.0),
        inference.p_effect_below(estimate, inference.MARGIN),
        why,
    )


def trend(found: Blocks, x: np.ndarray, *, rising: bool, per: str, why: str = "") -> Finding:
    """The finding that costs rise (or fall) with x, an order claimed beforehand.

    Args:
        found: log costs in the order of x.
        x: where the cells are [cells], in doublings.
        rising: the order claimed.
        per: what the slope is told for, e.g. `doubling of the depth`.
        why: what else to know.
    """
    slope = inference.mean_of(inference.slopes(x, found.values))
    effect, ci95 = inference.ratio_of(slope)
    toward = slope if rising else Estimate(-slope.value, slope.standard_error, slope.freedom)
    return Finding(
        effect,
        ci95,
        f"ratio per {per}",
        found.shape[0],
        # The order is tested by ranks; the effect that is told must be there as well.
        max(
            inference.p_trend(found.values, rising=rising),
            inference.p_effect_above(toward, 0.0),
        ),
        inference.p_effect_below(toward, inference.MARGIN),
        why,
    )


def plateau(found: Blocks, why: str) -> Finding:
    """Equality of the two largest sizes: the last doubling changes the cost by less than a tenth.

    Args:
        found: log costs [seeds, sizes], cells the sizes in rising order.
        why: how it was told.
    """
    doublings = math.log2(found.cells[-1] / found.cells[-2])
    step = inference.mean_of((found.values[:, -1] - found.values[:, -2]) / doublings)
    effect, ci95 = inference.ratio_of(step)
    return Finding(
        effect,
        ci95,
        "ratio per doubling of the batch size",
        found.shape[0],
        inference.p_within(step, -_PLATEAU, _PLATEAU),
        inference.p_outside(step, -_PLATEAU, _PLATEAU),
        why,
    )


def u_shape(found: Blocks, what: str, why: str = "") -> Finding:
    """The finding that a cost has its minimum inside the range: both ends lie above it."""
    first, last = inference.rises_at_ends(found.values)
    lower, name = min(
        (first, f"{what} {found.cells[0]}"),
        (last, f"{what} {found.cells[-1]}"),
        key=lambda end: end[0].value,
    )
    effect, ci95 = inference.ratio_of(lower)
    ends = [inference.ratio_of(end)[0] for end in (first, last)]
    best = found.cells[1 + int(found.values.mean(axis=0)[1:-1].argmin())]
    told = (
        f"against the best inner {what} ({best}) the lowest costs {ends[0]:.3g} times and the "
        f"highest {ends[1]:.3g} times; the effect is of the lower end, {name}"
    )
    return Finding(
        effect,
        ci95,
        "ratio",
        found.shape[0],
        max(inference.p_effect_above(first, 0.0), inference.p_effect_above(last, 0.0)),
        min(
            1.0,
            2
            * min(
                inference.p_below(first, inference.MARGIN),
                inference.p_below(last, inference.MARGIN),
            ),
        ),
        "; ".join(filter(None, (told, why))),
    )


def differ(found: Blocks, margin: float, what: str) -> Finding:
    """The finding that cells differ by the margin or more; against it, that all are equivalent."""
    values = found.values
    largest = inference.spread(values)
    effect, ci95 = inference.ratio_of(largest)
    means = values.mean(axis=0)
    return Finding(
        effect,
        ci95,
        "ratio",
        found.shape[0],
        # That they differ at all is tested with all of them; the effect that is told must be as
        # large as the statement says.
        max(inference.p_differ(values), inference.p_effect_above(largest, margin)),
        inference.p_all_within(values, margin),
        f"dearest {what}: {_told(found.cells[int(means.argmax())])}, cheapest: "
        f"{_told(found.cells[int(means.argmin())])}",
    )


def _told(cell: object) -> str:
    """A cell in words."""
    return " ".join(map(str, cell)) if isinstance(cell, tuple) else str(cell)


def tuned(
    values: np.ndarray, groups: Sequence[object], wanted: Sequence[object]
) -> tuple[np.ndarray, np.ndarray]:
    """Each group's cost at its own best cell, chosen for each seed by the other seeds.

    Args:
        values: log costs [seeds, cells].
        groups: the group of each cell [cells].
        wanted: the groups, in the order of the result.

    Returns:
        [seeds, groups] of costs, and the numbers of the cells chosen [seeds, groups].
    """
    other = inference.others(values)
    choices = []
    for group in wanted:
        cells = np.flatnonzero([other_group == group for other_group in groups])
        choices.append(cells[other[:, cells].argmin(axis=1)])
    choice = np.stack(choices, axis=1)
    return np.take_along_axis(values, choice, axis=1), choice
