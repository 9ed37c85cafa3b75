"""Does energy per example fall to a plateau with the batch size while energy to accuracy is a U?"""

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.patterns import (
    more,
    need,
    need_shape,
    plateau,
    to_accuracy_blocks,
    trend,
    tuned,
    u_shape,
)
from jaxenergy.studies.table import Blocks, Quantity, Table, blocks


def _per_example(table: Table, quantity: Quantity) -> Blocks:
    """Log cost per example by seed and batch size."""
    size = np.array([float(row["config.batch_size"]) for row in table.rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(table.per_update(quantity) / size)
    values = np.where(np.isfinite(values), values, np.nan)
    found = blocks(table.seeds, size.tolist(), values)
    need_shape(found, cells=4, of="batch sizes")
    return found


def _to_accuracy(table: Table, quantity: Quantity) -> tuple[Blocks, str]:
    """Restricted log cost to the accuracy by seed and batch size, each at its own best rate."""
    found, why = to_accuracy_blocks(table, quantity, "batch_size", "learning_rate")
    sizes = sorted({cell[0] for cell in found.cells})
    need_shape(found, cells=4, of="batch sizes")
    best, _ = tuned(found.values, [cell[0] for cell in found.cells], sizes)
    found = Blocks(found.seeds, sizes, best)
    need_shape(found, cells=4, of="batch sizes")
    return found, f"each batch size at the learning rate that the other seeds found best; {why}"


def test_falls(table: Table, quantity: Quantity) -> Finding:
    """Cost per example falls from batch size to batch size."""
    found = _per_example(table, quantity)
    return trend(found, np.log2(found.cells), rising=False, per="doubling of the batch size")


def test_plateau(table: Table, quantity: Quantity) -> Finding:
    """Cost per example no longer changes between the two largest batch sizes."""
    found = _per_example(table, quantity)
    return plateau(found, f"from {found.cells[-2]:g} to {found.cells[-1]:g} examples")


def test_u_shape(table: Table, quantity: Quantity) -> Finding:
    """Cost to the accuracy is higher at both ends."""
    return u_shape(*_arguments(_to_accuracy(table, quantity)))


def _arguments(found_and_why: tuple[Blocks, str]) -> tuple[Blocks, str, str]:
    found, why = found_and_why
    return found, "batch size", why


def test_optima_differ(table: Table, quantity: Quantity) -> Finding:
    """The batch size that is best per example costs more to the accuracy than the best there."""
    per_example = _per_example(table.with_target(), quantity)
    to_accuracy, why = _to_accuracy(table, quantity)
    need(per_example.seeds == to_accuracy.seeds, "some seeds lack runs")
    cheapest = inference.others(per_example.values).argmin(axis=1)
    best = inference.others(to_accuracy.values).argmin(axis=1)
    loss = inference.chosen(to_accuracy.values, cheapest) - inference.chosen(
        to_accuracy.values, best
    )
    sizes = [
        found.cells[int(found.values.mean(axis=0).argmin())] for found in (per_example, to_accuracy)
    ]
    return more(
        inference.mean_of(loss),
        f"cheapest per example: {sizes[0]:g}, to the accuracy: {sizes[1]:g}; {why}",
    )


STUDY = Study(
    name="batch_size",
    claim="Energy per example falls to a plateau with the batch size, while energy to an accuracy "
    "is U-shaped; the optima differ.",
    source="You, Chung, Chowdhury, Zeus (NSDI 2023), from its published traces; Geissler et al. "
    "(arXiv 2401.01851), batch size as a factor.",
    statements=(
        Statement("{cost} per example falls with the batch size.", test_falls),
        Statement(
            "{cost} per example reaches a plateau: the last doubling changes it by less than 10 %.",
            test_plateau,
            equality=True,
        ),
        Statement("{cost} to the accuracy is U-shaped in the batch size.", test_u_shape),
        Statement(
            "The batch size of least {cost} per example is not that of least {cost} to the "
            "accuracy.",
            test_optima_differ,
        ),
    ),
    minimum="four batch sizes, three seeds of each; a third of the runs reach the accuracy",
    design=grids.rates_and_batches,
)
