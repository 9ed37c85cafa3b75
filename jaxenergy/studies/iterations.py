"""Is energy linear in iterations? Independent runs of different length, start-up included.

Compiling is left out: the first run of a length compiles and the others find its program in the
cache, so that it would be in some repetitions and not in others. The study `compile` asks for it.
"""

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import METERED, Finding, Statement, Study
from jaxenergy.studies.patterns import need, need_shape
from jaxenergy.studies.table import ENERGY, Blocks, Quantity, Table, blocks

# An iteration of the longer half may cost this much more or less than one of the shorter half.
_MARGIN = np.log(1.10)


def _by_length(table: Table, quantity: Quantity) -> Blocks:
    table = table.most_common("model", "depth", "width", "batch_size", "optimizer")
    lengths = table.numbers("iterations")
    compiling = "energy_j.by_phase.compile" if quantity is ENERGY else "duration_by_phase_s.compile"
    cost = table.of_run(quantity) - np.nan_to_num(table.numbers(compiling))
    found = blocks(table.seeds, lengths.tolist(), np.where(cost > 0, cost, np.nan))
    need_shape(found, cells=4, of="lengths")
    return found


def test_linear(table: Table, quantity: Quantity) -> Finding:
    """Lack of fit against it; for it, that an iteration costs the same in both halves."""
    found = _by_length(table, quantity)
    x = np.array(found.cells)
    middle = len(x) // 2
    low = inference.slopes(x[: middle + 1], found.values[:, : middle + 1])
    high = inference.slopes(x[middle:], found.values[:, middle:])
    p_misfit, _, per_iteration = inference.lack_of_fit(x, found.values)
    # Slopes of single blocks may be negative where noise is large: the ratio is of their means.
    both = np.stack([low, high], axis=1)
    without_one = (both.sum(axis=0) - both) / (len(both) - 1)
    need(bool(np.all(without_one > 0)), "the scatter is larger than what iterations cost")
    ratio = inference.jackknife(both, lambda means: np.log(means[:, 1] / means[:, 0]))
    effect, ci95 = inference.ratio_of(ratio)
    return Finding(
        effect,
        ci95,
        "ratio",
        found.shape[0],
        inference.p_within(ratio, -_MARGIN, _MARGIN),
        p_misfit,
        f"an iteration from {x[middle]:g} to {x[-1]:g} against one from {x[0]:g} to {x[middle]:g}; "
        f"{per_iteration.value:.3g} {quantity.unit} each; lack of fit p = {p_misfit:.2g}",
    )


def test_intercept(table: Table, quantity: Quantity) -> Finding:
    """The cost of no iteration: starting up, without compiling."""
    found = _by_length(table, quantity)
    _, intercept, per_iteration = inference.lack_of_fit(np.array(found.cells), found.values)
    equal_to = intercept.value / per_iteration.value if per_iteration.value > 0 else np.nan
    return Finding(
        intercept.value,
        intercept.interval(),
        quantity.unit,
        found.shape[0],
        inference.p_effect_above(intercept, 0.0),
        # Below a hundredth of the shortest run it is nothing.
        inference.p_below(intercept, 0.01 * float(found.values[:, 0].mean())),
        f"as much as {equal_to:.3g} iterations",
    )


STUDY = Study(
    name="iterations",
    claim="Energy is linear in the number of iterations.",
    source="A widely read summary of Geissler et al., The Power of Training (arXiv 2401.01851).",
    statements=(
        Statement(
            "{cost} is a straight line in iterations (an iteration of long runs costs what one of "
            "short runs costs, to 10 %).",
            test_linear,
            METERED,
            equality=True,
        ),
        Statement(
            "Starting takes {cost} beside the iterations (compiling left out).",
            test_intercept,
            METERED,
        ),
    ),
    minimum="four lengths, three seeds of each, independent runs",
    design=grids.iterations,
)
