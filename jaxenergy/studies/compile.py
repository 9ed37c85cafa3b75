"""After how many updates is compiling amortised, by family of models?

Only programs that were compiled count, not those found in the cache of an earlier run.
"""

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import METERED, Finding, Statement, Study
from jaxenergy.studies.inference import mean_of, p_effect_above, p_effect_below
from jaxenergy.studies.patterns import need, need_shape
from jaxenergy.studies.table import Quantity, Table, blocks

_UPDATES = 10_000
_SHARE = 0.01  # compiling is amortised when it is this share of compiling and updates


def test_amortised(table: Table, quantity: Quantity) -> Finding:
    """In every family compiling is under a hundredth of 10,000 updates."""
    table = table.where(lambda row: row.get("compiled.cache_hit") is False)
    need(len(table) > 0, "every program came from the compilation cache")
    assert quantity.compiling is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = table.numbers(quantity.compiling) / table.per_update(quantity)
        values = np.log((1 / _SHARE - 1) * ratio)
    found = blocks(table.seeds, table.settings("model"), np.where(ratio > 0, values, np.nan))
    need_shape(found, cells=1, of="families")
    families = [mean_of(found.values[:, i]) for i in range(len(found.cells))]
    told, slowest = [], max(range(len(families)), key=lambda i: families[i].value)
    for name, updates in zip(found.cells, families, strict=True):
        effect, (low, high) = inference.ratio_of(updates)
        told.append(f"{name} {effect:,.0f} ({low:,.0f} to {high:,.0f})")
    effect, ci95 = inference.ratio_of(families[slowest])
    limit = float(np.log(_UPDATES))
    return Finding(
        effect,
        ci95,
        "updates",
        found.shape[0],
        max(p_effect_below(updates, limit) for updates in families),
        min(1.0, len(families) * min(p_effect_above(updates, limit) for updates in families)),
        f"updates until compiling is 1 %: {'; '.join(told)}; the effect is of the slowest, "
        f"{found.cells[slowest]}",
    )


STUDY = Study(
    name="compile",
    claim="Compiling is amortised within 10,000 updates: it is then under 1 % of the energy.",
    source="Reports of the first epoch of JAX taking 1.4 to 2.4 times a later one in GPU energy; "
    "the usual answer that compiling is paid once.",
    statements=(
        Statement(
            "In every family, compiling is under 1 % of the {cost} of 10,000 updates.",
            test_amortised,
            METERED,
        ),
    ),
    minimum="three seeds of each family, their programs compiled and not found in a cache",
    design=grids.setups,
)
