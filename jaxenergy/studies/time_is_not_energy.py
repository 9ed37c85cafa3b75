"""Is time enough to know the energy? log E on log T: the slope, and what the set-up adds.

Energy is time times power. If power were the same for every set-up, one would measure time and be
done. Where joules are not measured this cannot be told; that FLOPs are not time can.
"""

import numpy as np

from jaxenergy.stats import Estimate
from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.inference import MARGIN, p_outside, p_within
from jaxenergy.studies.patterns import MIN_SEEDS, differ, need, need_shape
from jaxenergy.studies.per_update import SETUP
from jaxenergy.studies.table import ENERGY, FLOPS, TIME, Blocks, Quantity, Table, blocks

_SLOPE_MARGIN = 0.05  # a tenfold of time then changes mean power by 12 %
_MIN_CELLS = 6


def _blocks(table: Table, quantity: Quantity) -> Blocks:
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(table.per_update(quantity))
    cells = [str(cell) for cell in table.settings(*SETUP)]
    found = blocks(table.seeds, cells, np.where(np.isfinite(values), values, np.nan))
    need_shape(found, seeds=MIN_SEEDS, cells=_MIN_CELLS, of="set-ups")
    return found


def _both(table: Table) -> tuple[Blocks, Blocks]:
    """Log joules and log seconds per update by seed and set-up."""
    energy, time = _blocks(table, ENERGY), _blocks(table, TIME)
    need(energy.seeds == time.seeds, "some runs lack their energy")
    need(float(np.ptp(time.values.mean(axis=0))) >= np.log(2), "times are within a factor of two")
    return energy, time


def test_slope(table: Table, quantity: Quantity) -> Finding:
    """The slope of log energy on log time, set-ups being the units."""
    energy, time = _both(table)
    slope = inference.line(time.values.mean(axis=0), energy.values.mean(axis=0))
    return Finding(
        slope.value,
        slope.interval(),
        "slope of log energy on log time",
        energy.shape[1],
        p_outside(slope, 1.0, 1.0),
        p_within(slope, 1 - _SLOPE_MARGIN, 1 + _SLOPE_MARGIN),
    )


def test_power(table: Table, quantity: Quantity) -> Finding:
    """What set-ups add to the line of log energy on log time: a test of nested models."""
    energy, time = _both(table)
    n, cells = energy.shape
    line = inference.line(time.values.mean(axis=0), energy.values.mean(axis=0))
    rest = energy.values - line.value * time.values
    largest: Estimate = inference.spread(rest)
    effect, ci95 = inference.ratio_of(largest)
    means = rest.mean(axis=0)
    # One degree of freedom of the set-ups went into the slope.
    centred = rest - rest.mean(axis=1, keepdims=True)
    within = float(np.sum((centred - centred.mean(axis=0)) ** 2)) / ((n - 1) * (cells - 1))
    between = n * float(np.sum(centred.mean(axis=0) ** 2)) / (cells - 2)
    p_for = float(
        inference.special.fdtrc(cells - 2, (n - 1) * (cells - 1), between / max(within, 1e-30))
    )
    return Finding(
        effect,
        ci95,
        "ratio",
        n,
        max(p_for, inference.p_effect_above(largest, MARGIN)),
        inference.p_all_within(rest, MARGIN),
        f"after energy ~ time^{line.value:.3g}; most: {energy.cells[int(means.argmax())]}, least: "
        f"{energy.cells[int(means.argmin())]}",
    )


def test_time_per_flop(table: Table, quantity: Quantity) -> Finding:
    """Whether set-ups take the same time per FLOP."""
    time, flops = _blocks(table, TIME), _blocks(table, FLOPS)
    need(time.seeds == flops.seeds, "some runs lack their FLOPs")
    return differ(Blocks(time.seeds, time.cells, time.values - flops.values), MARGIN, "set-up")


STUDY = Study(
    name="time_is_not_energy",
    claim="Time is not energy: set-ups of equal time differ in energy.",
    source="You et al., Zeus (NSDI 2023); to the contrary: common practice to report hours.",
    statements=(
        Statement("Energy is not proportional to time (log-log slope 1).", test_slope, (ENERGY,)),
        Statement(
            "At equal time per update set-ups differ in energy (by 3 % or more).",
            test_power,
            (ENERGY,),
        ),
        Statement(
            "At equal FLOPs set-ups differ in time (by 3 % or more).", test_time_per_flop, (TIME,)
        ),
    ),
    minimum="six set-ups whose times span a factor of two, three seeds of each",
    design=grids.setups,
)
