"""Do more layers and parameters cost more? Once at fixed width, once at a fixed number of them."""

import numpy as np

from jaxenergy.studies import grids
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.patterns import need, need_shape, per_update_blocks, trend
from jaxenergy.studies.table import Quantity, Table, setting

# Numbers of parameters this close count as equal; whole widths allow no closer match.
_PARAMETERS_AGREE = 0.1


def _by_depth(table: Table, quantity: Quantity) -> Finding:
    need(len({setting(row, "depth") for row in table.rows}) >= 3, "it needs three depths")
    found = per_update_blocks(table, quantity, "depth")
    need_shape(found, cells=3, of="depths")
    return trend(
        found, np.log2(np.array(found.cells, float)), rising=True, per="doubling of the depth"
    )


def test_fixed_width(table: Table, quantity: Quantity) -> Finding:
    """Costs per update by depth, for the width that has most depths."""
    return _by_depth(_best_series(table, lambda row: setting(row, "width")), quantity)


def test_fixed_parameters(table: Table, quantity: Quantity) -> Finding:
    """Costs per update by depth, for the number of parameters that has most depths."""
    counts = sorted({float(row.get("parameters") or 0) for row in table.rows})
    series = [
        table.where(
            lambda row, low=low: (
                low <= float(row.get("parameters") or 0) <= low * (1 + _PARAMETERS_AGREE)
            )
        )
        for low in counts
    ]
    best = max(series, key=_depths, default=Table([]))
    return _by_depth(best, quantity)


def _best_series(table: Table, key) -> Table:
    """The runs of that value of a setting that comes with most depths."""
    values = sorted({key(row) for row in table.rows if key(row) is not None})
    series = [table.where(lambda row, value=value: key(row) == value) for value in values]
    return max(series, key=_depths, default=Table([]))


def _depths(table: Table) -> int:
    return len({setting(row, "depth") for row in table.rows})


STUDY = Study(
    name="depth",
    claim="More layers and more parameters cost more energy.",
    source="A widely read summary of Geissler et al., The Power of Training (arXiv 2401.01851).",
    statements=(
        Statement("At fixed width, {cost} per update rises with depth.", test_fixed_width),
        Statement(
            "At a fixed number of parameters, {cost} per update rises with depth.",
            test_fixed_parameters,
        ),
    ),
    minimum="three depths, three seeds of each",
    design=grids.depth,
)
