"""Does the magnitude change more between machines than the ranking of set-ups does?

Over folders of results from several machines. Set-ups are the units, machines the blocks.
"""

import itertools

import numpy as np
from scipy import special, stats

from jaxenergy.studies import inference
from jaxenergy.studies.core import METERED, Finding, Statement, Study
from jaxenergy.studies.patterns import need
from jaxenergy.studies.per_update import SETUP
from jaxenergy.studies.table import Blocks, Quantity, Table, blocks

_MIN_MACHINES = 2
_MIN_CELLS = 6
_AGREE = 0.5  # Kendall's tau below this is no common ranking: a quarter of the pairs is reversed
_DRAWS = 1000


def _by_machine(table: Table, quantity: Quantity) -> Blocks:
    """Log cost per update by machine and set-up, of the set-ups that every machine has."""
    machines = [row.get("machine") for row in table.rows]
    distinct = {machine for machine in machines if machine is not None}
    need(
        len(distinct) >= _MIN_MACHINES,
        f"it needs result folders of {_MIN_MACHINES} machines (--machines); there are "
        f"{len(distinct)}",
    )
    cells = [str(cell) for cell in table.settings(*SETUP)]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(table.per_update(quantity))
    common = set.intersection(
        *(
            {cell for cell, other in zip(cells, machines, strict=True) if other == machine}
            for machine in distinct
        )
    )
    kept = np.array([cell in common for cell in cells]) & np.isfinite(values)
    pick = np.flatnonzero(kept)
    found = blocks([str(machines[i]) for i in pick], [cells[i] for i in pick], values[pick])
    need(
        found.shape[0] >= _MIN_MACHINES and found.shape[1] >= _MIN_CELLS,
        f"it needs {_MIN_CELLS} set-ups that every machine has; there are {found.shape[1]}",
    )
    return found


def test_magnitude(table: Table, quantity: Quantity) -> Finding:
    """Variance of machines above the variance of set-ups changing places.

    Of m machines' means over c set-ups, c times the variance over the mean square of the places
    is F-distributed times (c v + w) / w, where v is the machines' own variance and w that of the
    places, in which the scatter of repetitions is. At v = w, the edge of the claim, that is 1 + c.
    """
    found = _by_machine(table, quantity)
    values = found.values
    machines, cells = values.shape
    level = values.mean(axis=1)
    place = values - level[:, None] - values.mean(axis=0) + values.mean()
    freedom = (machines - 1) * (cells - 1)
    between = cells * float(np.var(level, ddof=1))
    within = max(float(np.sum(place**2)) / freedom, 1e-30)
    dear, cheap = int(level.argmax()), int(level.argmin())
    ratio = inference.mean_of(values[dear] - values[cheap])
    effect, ci95 = inference.ratio_of(ratio)
    f = between / within / (1 + cells)
    return Finding(
        effect,
        ci95,
        "ratio",
        cells,
        float(special.fdtrc(machines - 1, freedom, f)),
        float(special.fdtr(machines - 1, freedom, f)),
        f"{found.seeds[dear]} against {found.seeds[cheap]}, geometric mean over set-ups; factors "
        f"of machines {_factor(between / cells - within / cells)}, of set-ups changing places "
        f"{_factor(within)} (standard deviations)",
    )


def _factor(variance: float) -> str:
    """The standard deviation of a logarithm as a factor, in words."""
    return f"{np.exp(np.sqrt(max(variance, 0.0))):.3g}"


def _tau(values: np.ndarray) -> tuple[float, float, float, float]:
    """Mean Kendall tau of all pairs of machines, its interval, and the share of draws above 0.5."""
    cells = values.shape[1]
    first, second = np.triu_indices(cells, 1)
    order = np.sign(values[:, first] - values[:, second])
    agree = np.mean(
        [order[i] * order[j] for i, j in itertools.combinations(range(len(values)), 2)], axis=0
    )
    draws = np.random.default_rng(0).integers(cells, size=(_DRAWS, cells))
    counts = (draws[:, :, None] == np.arange(cells)).sum(axis=1)
    weight = counts[:, first] * counts[:, second]
    taus = weight @ agree / weight.sum(axis=1)
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(agree.mean()), float(low), float(high), float(np.mean(taus >= _AGREE))


def test_ranking(table: Table, quantity: Quantity) -> Finding:
    """Machines rank set-ups alike: Kendall's tau, and W where there are three or more."""
    found = _by_machine(table, quantity)
    values = found.values
    tau, low, high, above = _tau(values)
    if len(values) == 2:
        _, found_p = stats.kendalltau(*values, alternative="greater")
        p = float(np.asarray(found_p))
        why = f"tau of {found.seeds[0]} and {found.seeds[1]}"
    else:
        statistic, p = (float(number) for number in stats.friedmanchisquare(*values.T))
        w = statistic / (len(values) * (values.shape[1] - 1))
        why = f"mean tau of all pairs of {len(values)} machines; Kendall's W = {w:.3g}"
    return Finding(tau, (low, high), "Kendall's tau", values.shape[1], p, above, why)


STUDY = Study(
    name="hardware",
    claim="Between machines the magnitude of energy changes more than the ranking of set-ups.",
    source="Geissler et al., The Power of Training (arXiv 2401.01851): three hardware systems.",
    statements=(
        Statement(
            "Machines differ more in {cost} per update as a whole than set-ups change places.",
            test_magnitude,
            METERED,
        ),
        Statement("Machines rank set-ups alike by {cost} per update.", test_ranking, METERED),
    ),
    minimum="two machines with six set-ups in common",
    design=lambda context: [],
)
