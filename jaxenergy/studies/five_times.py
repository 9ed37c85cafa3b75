"""Do badly set hyper-parameters cost up to five times as much at equal accuracy?

The worst and the best of many set-ups are extreme by luck, too. So they are chosen on one half of
the seeds and compared on the other.
"""

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.inference import mean_of, p_effect_above, p_effect_below
from jaxenergy.studies.patterns import need, need_shape
from jaxenergy.studies.table import Quantity, Table, blocks

_MIN_SEEDS = 6  # three to choose on, three to estimate on
_MIN_CELLS = 4


def _worst_over_best(table: Table, quantity: Quantity, times: float) -> Finding:
    table = table.with_target()
    need(len(table) > 0, "no run had an accuracy to reach (--target_accuracy)")
    cells = table.settings("learning_rate", "batch_size")
    cost, reached = table.to_accuracy(quantity)
    need(bool(np.all(cost > 0)), "a cost to the accuracy is not known")
    share = blocks(table.seeds, cells, reached.astype(float))
    need_shape(share, seeds=_MIN_SEEDS, cells=_MIN_CELLS, of="set-ups")
    n = len(share.seeds)
    first, second = slice(0, n // 2), slice(n // 2, n)
    # Equal accuracy: a set-up that did not reach it in the first half is not one of those compared.
    equal = np.flatnonzero(share.values[first].min(axis=0) == 1)
    need(len(equal) >= 2, "fewer than two set-ups reach the accuracy")
    # A run that diverged has no cost to the accuracy; it is among the dearest at the least.
    known = np.where(np.isfinite(cost), cost, np.max(cost[np.isfinite(cost)], initial=0.0))
    need(bool(np.all(known > 0)), "a cost to the accuracy is not known")
    plain = blocks(table.seeds, cells, np.log(known)).values
    mean = plain[first].mean(axis=0)[equal]
    worst, best = equal[int(mean.argmax())], equal[int(mean.argmin())]
    lost = int((share.values[second][:, [worst, best]] < 1).sum())
    # A run of the second half that did not reach it has cost at least what it had at its end.
    ratio = mean_of(plain[second, worst] - plain[second, best])
    effect, ci95 = inference.ratio_of(ratio)
    told = [
        f"rate {share.cells[cell][0]:g} and batch {share.cells[cell][1]:g}"
        for cell in (worst, best)
    ]
    why = (
        f"worst {told[0]}, best {told[1]}, chosen on {n // 2} seeds; {len(equal)} of "
        f"{len(share.cells)} set-ups reach the accuracy on all of them"
    )
    if lost:
        why += f"; {lost} of the second half are censored, so the ratio is a lower bound"
    best_censored = bool(share.values[second, best].min() < 1)
    return Finding(
        effect,
        ci95,
        "ratio",
        n - n // 2,
        1.0 if best_censored else p_effect_above(ratio, np.log(times)),
        1.0 if lost else p_effect_below(ratio, np.log(times)),
        why,
    )


def test_five(table: Table, quantity: Quantity) -> Finding:
    """Worst over best is at least five."""
    return _worst_over_best(table, quantity, 5.0)


def test_two(table: Table, quantity: Quantity) -> Finding:
    """Worst over best is at least two."""
    return _worst_over_best(table, quantity, 2.0)


STUDY = Study(
    name="five_times",
    claim="Badly set hyper-parameters cost up to five times the energy of the best at equal "
    "accuracy.",
    source="Geissler et al., The Power of Training (arXiv 2401.01851), abstract.",
    statements=(
        Statement(
            "The worst learning rate and batch size take at least 5 times the {cost} of the best "
            "to the same accuracy.",
            test_five,
        ),
        Statement(
            "The worst learning rate and batch size take at least twice the {cost} of the best "
            "to the same accuracy.",
            test_two,
        ),
    ),
    minimum="four set-ups, six seeds of each: three to choose on, three to estimate on",
    design=grids.rates_and_batches,
)
