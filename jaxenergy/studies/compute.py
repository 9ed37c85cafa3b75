"""Does the loss depend mostly on total computation, and little on how width and data share it?"""

from typing import NamedTuple

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.inference import (
    mean_of,
    p_effect_above,
    p_effect_below,
    p_outside,
    p_within,
)
from jaxenergy.studies.patterns import need, need_shape, trend
from jaxenergy.studies.table import FLOPS, Blocks, Quantity, Table, blocks

_FLAT = np.log(1.10)  # losses that differ by less are the same
_SAME_COMPUTATION = 1.25  # set-ups of one computation agree to this factor,
_OTHER_COMPUTATION = 1.5  # and those of different ones differ by more than that
_MOSTLY = 0.5  # of the variance


class _Grid(NamedTuple):
    """Runs of several widths at each of several computations.

    Attributes:
        table: the runs.
        computations: floating point operations of a training [computations].
        widths: [widths].
        of_run: the cell (number of the computation, width) of each run.
    """

    table: Table
    computations: list[float]
    widths: list[int]
    of_run: list[tuple[int, int]]

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """A number of each run as [seeds, computations, widths]."""
        found = blocks(self.table.seeds, self.of_run, values)
        need_shape(
            found, cells=len(self.computations) * len(self.widths), of="widths and computations"
        )
        return found.values.reshape(len(found.seeds), len(self.computations), len(self.widths))


def _grid(table: Table) -> _Grid:
    """The runs of the family and data set of which there are most, by computation and width."""
    table = table.most_common("model", "dataset", "depth", "batch_size")
    table = table.where(lambda row: row.get("final.test_loss") is not None)
    total = table.of_training(FLOPS)
    need(len(table) > 0 and bool(np.all(total > 0)), "it needs runs whose FLOPs are known")
    cells = list(zip(table.settings("width"), table.numbers("updates"), strict=True))
    mean = {cell: float(np.mean(total[[c == cell for c in cells]])) for cell in set(cells)}
    number, computations = {}, []
    group: list[float] = []
    for cell in sorted(mean, key=lambda cell: mean[cell]):
        if group and mean[cell] > _OTHER_COMPUTATION * group[-1]:
            computations.append(float(np.mean(group)))
            group = []
        group.append(mean[cell])
        need(
            group[-1] <= _SAME_COMPUTATION * group[0],
            f"computations of {group[0]:.3g} and {group[-1]:.3g} FLOP are neither the same nor "
            "different",
        )
        number[cell] = len(computations)
    computations.append(float(np.mean(group)))
    widths = sorted({width for width, _ in mean})
    need(
        len(mean) == len({(number[cell], cell[0]) for cell in mean})
        and len(mean) == len(computations) * len(widths),
        "it needs every width once at every computation",
    )
    need(
        len(computations) >= 3 and len(widths) >= 3,
        f"it needs three computations and three widths; there are {len(computations)} and "
        f"{len(widths)}",
    )
    return _Grid(table, computations, widths, [(number[cell], cell[0]) for cell in cells])


def _log_loss(grid: _Grid, split: str) -> np.ndarray:
    """Log loss of a split [seeds, computations, widths]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return grid.arrange(np.log(grid.table.numbers(f"final.{split}_loss")))


def test_falls(table: Table, quantity: Quantity) -> Finding:
    """Loss falls from computation to computation, in the mean of the widths."""
    grid = _grid(table)
    loss = _log_loss(grid, "test").mean(axis=2)
    doublings = np.log2(grid.computations)
    found = Blocks(list(range(len(loss))), grid.computations, loss)
    return trend(found, doublings, rising=False, per="doubling of the computation")


def test_mostly(table: Table, quantity: Quantity) -> Finding:
    """The share of the loss's variance that total cost explains is over a half."""
    grid = _grid(table)
    cost = grid.table.of_training(quantity)
    need(bool(np.all(cost > 0)), f"the {quantity.word} of a training is not known")
    loss = _log_loss(grid, "test")
    share = mean_of(_explained(grid.arrange(np.log(cost)), loss))
    others = {
        name: _explained(grid.arrange(np.log(values)), loss).mean()
        for name, values in (
            ("width", np.array(grid.table.settings("width"), float)),
            ("examples seen", grid.table.numbers("updates")),
        )
    }
    told = ", ".join(f"{name} {value:.0%}" for name, value in others.items())
    return Finding(
        share.value,
        share.interval(),
        "of the variance of log loss",
        len(loss),
        p_effect_above(share, _MOSTLY),
        p_effect_below(share, _MOSTLY),
        f"by a straight line in the logarithm; by lines of their own: {told}",
    )


def _explained(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The squared correlation over the grid, seed by seed [seeds]."""
    x, y = (values.reshape(len(values), -1) for values in (x, y))
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    power = np.sum(x**2, axis=1) * np.sum(y**2, axis=1)
    return np.sum(x * y, axis=1) ** 2 / np.where(power > 0, power, np.nan)


def test_flat(table: Table, quantity: Quantity) -> Finding:
    """The widths beside the best inner one come to the same loss, at every computation.

    The best is chosen for each seed by the others' validation loss.
    """
    grid = _grid(table)
    validation, test = _log_loss(grid, "validation"), _log_loss(grid, "test")
    estimates = {}
    for number, computation in enumerate(grid.computations):
        inner = 1 + inference.others(validation[:, number])[:, 1:-1].argmin(axis=1)
        best = inference.chosen(test[:, number], inner)
        for step, name in ((-1, "next smaller"), (1, "next larger")):
            beside = inference.chosen(test[:, number], inner + step)
            estimates[f"{name} width at {computation:.2g} FLOP"] = mean_of(beside - best)
    largest = max(estimates, key=lambda name: abs(estimates[name].value))
    effect, ci95 = inference.ratio_of(estimates[largest])
    every = estimates.values()
    return Finding(
        effect,
        ci95,
        "ratio of losses",
        len(test),
        max(p_within(one, -_FLAT, _FLAT) for one in every),
        min(1.0, len(estimates) * min(p_outside(one, -_FLAT, _FLAT) for one in every)),
        f"the largest of {len(estimates)} differences, {largest}; widths "
        f"{', '.join(map(str, grid.widths))}",
    )


STUDY = Study(
    name="compute",
    claim="The loss depends mostly on total computation, and within wide limits little on how it "
    "is shared between the network's size and the number of examples.",
    source="Kaplan et al., Scaling Laws for Neural Language Models (arXiv 2001.08361); the grid of "
    "equal computation is that of Hoffmann et al. (arXiv 2203.15556).",
    statements=(
        Statement("The loss falls with total {cost}.", test_falls, (FLOPS,)),
        Statement(
            "Over widths and numbers of examples, total {cost} explains more than half of the "
            "loss's variance.",
            test_mostly,
        ),
        Statement(
            "At equal {cost} the widths beside the best come to the same loss, to 10 %.",
            test_flat,
            (FLOPS,),
            equality=True,
        ),
    ),
    minimum="three computations, three widths at each, three seeds of each",
    design=grids.compute,
)
