"""Is energy per parameter update constant across set-ups? Both readings of the sentence.

"Energy per parameter update" is joules of an update, or joules of an update divided by the
parameters. Constant means a slope in the logarithm of the number of parameters: 0 in the first
reading, 1 for joules of an update in the second.
"""

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.patterns import need
from jaxenergy.studies.table import Quantity, Table

_MARGIN = 0.1  # of a slope: a tenfold of parameters then changes the cost by a quarter
_MIN_CELLS = 6
# What changes the cost of an update; runs that share it are averaged.
SETUP = (
    *("dataset", "model", "depth", "width", "batch_size", "optimizer", "activation"),
    *("accumulate", "precision", "forms"),
)


def _slope(table: Table, quantity: Quantity, constant: float) -> Finding:
    """The log-log slope of cost per update on parameters, set-ups being the units."""
    cells = [str(cell) for cell in table.settings(*SETUP)]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.log(table.per_update(quantity))
        size = np.log(table.numbers("parameters"))
    mean = {
        cell: (np.mean(size[at]), np.mean(cost[at]))
        for cell in sorted(set(cells))
        if np.isfinite(cost[at := np.array([c == cell for c in cells])]).all()
        and np.isfinite(size[at]).all()
    }
    need(len(mean) >= _MIN_CELLS, f"it needs {_MIN_CELLS} set-ups; there are {len(mean)}")
    x, y = (np.array(values) for values in zip(*mean.values(), strict=True))
    need(np.ptp(x) >= np.log(4), "the numbers of parameters are within a factor of four")
    slope = inference.line(x, y)
    return Finding(
        slope.value,
        slope.interval(),
        "slope of log cost on log parameters",
        len(mean),
        inference.p_within(slope, constant - _MARGIN, constant + _MARGIN),
        inference.p_outside(slope, constant - _MARGIN, constant + _MARGIN),
        f"{np.exp(x.min()):,.0f} to {np.exp(x.max()):,.0f} parameters; constant is "
        f"{constant:g} +- {_MARGIN:g}",
    )


def test_per_update(table: Table, quantity: Quantity) -> Finding:
    """The first reading: slope 0."""
    return _slope(table, quantity, 0.0)


def test_per_update_and_parameter(table: Table, quantity: Quantity) -> Finding:
    """The second reading: slope 1."""
    return _slope(table, quantity, 1.0)


STUDY = Study(
    name="per_update",
    claim="Energy per parameter update is about constant across set-ups.",
    source="A widely read summary of Geissler et al., The Power of Training (arXiv 2401.01851).",
    statements=(
        Statement(
            "{cost} per update does not depend on the number of parameters.",
            test_per_update,
            equality=True,
        ),
        Statement(
            "{cost} per update and parameter does not depend on the number of parameters.",
            test_per_update_and_parameter,
            equality=True,
        ),
    ),
    minimum="six set-ups whose numbers of parameters span a factor of four",
    design=grids.setups,
)
