"""Does a pretrained network save energy, and after how many reuses has its pretraining paid?

The source is trained on the first half of a data set's classes for a fixed number of updates. On
the other half, a fresh network is trained until an accuracy, and so are copies of the source of the
same seed: all of their layers, the head alone, the last two. Each way has its own learning rate,
chosen for each seed by the other seeds.

A reuse saves what training from scratch takes beyond fine-tuning; after n* = pretraining / saving
of them the pretraining has paid. Where the saving may be zero, n* has no upper bound.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError
from jaxenergy.studies import inference
from jaxenergy.studies.core import Finding, Statement, Study, TooLittleData
from jaxenergy.studies.grids import Context, unique
from jaxenergy.studies.inference import mean_of, p_effect_above, p_effect_below
from jaxenergy.studies.patterns import more, need, need_shape, to_accuracy_blocks, tuned
from jaxenergy.studies.table import Quantity, Row, Table, blocks

SCRATCH, ALL, HEAD, LAST = "scratch", "all", "head", "last:2"
WAYS = (SCRATCH, ALL, HEAD, LAST)

_REUSES = 10  # a pretraining that needs more of them to pay is none for a single user
_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10}


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What this study needs beside the budget's `Scale`.

    Attributes:
        network: settings of the base network.
        pretraining: updates of the source.
        most: updates until the accuracy, at most.
        eval_every: updates between two looks at it.
        rates: learning rates to tune each way by.
        target: the validation accuracy to reach on the other half of the classes.
    """

    network: dict[str, Any]
    pretraining: int
    most: int
    eval_every: int
    rates: tuple[float, ...]
    target: float


_MLP = {"model": "mlp", "depth": 3, "width": 512, "batch_size": 128}
_CNN = {"model": "cnn", "depth": 4, "width": 32, "batch_size": 128}
_SIZES = {
    "smoke": _Sizes({"model": "mlp", "depth": 2, "width": 16}, 16, 16, 4, (0.1,), 0.5),
    "small": _Sizes(_MLP, 100, 400, 1, (0.03, 0.1), 0.97),
    "gpu": _Sizes(_CNN | {"batch_size": 512}, 2_000, 3_000, 25, (0.01, 0.03), 0.7),
    "full": _Sizes(_CNN, 8_000, 16_000, 50, (0.003, 0.01, 0.03, 0.1), 0.7),
}


def design(context: Context) -> list[RunConfig]:
    """The source of each seed, and each way at each learning rate.

    Raises:
        UsageError: the data set is none whose classes can be taken apart.
    """
    sizes = _SIZES[context.budget]
    dataset = context.main_dataset
    name, _, options = dataset.partition(":")
    if name not in _CLASSES or "classes" in options:
        raise UsageError(
            f"--dataset={dataset}: the study pretraining takes the classes of a data set apart.\n"
            f"Allowed: {', '.join(_CLASSES)}, without classes of their own."
        )
    half = _CLASSES[name] // 2
    first, second = (
        f"{dataset}{',' if options else ':'}classes={low}-{low + half - 1}" for low in (0, half)
    )
    runs = []
    for seed in context.seeded(context.scale.target_seeds):
        source = context.run(**sizes.network, dataset=first, updates=sizes.pretraining, seed=seed)
        runs.append(source)
        for way in WAYS:
            begins: dict[str, Any] = {}
            if way != SCRATCH:
                begins = {"init_from": f"setup:{source.setup_id}", "trainable": way}
            runs += [
                context.run(
                    **sizes.network,
                    **begins,
                    dataset=second,
                    updates=sizes.most,
                    eval_every=sizes.eval_every,
                    target_accuracy=sizes.target,
                    learning_rate=rate,
                    seed=seed,
                )
                for rate in sizes.rates
            ]
    return unique(runs)


def _way(row: Row) -> str:
    """How a run with a target was begun."""
    return str(row.get("config.trainable")) if row.get("config.init_from") else SCRATCH


def _pair(table: Table, way: str, quantity: Quantity) -> tuple[list[Any], np.ndarray, str]:
    """Log costs to the accuracy from scratch and by one way, each at its own rate.

    Only these two are restricted to a common horizon, so that a way that fails does not shorten
    what is seen of the others.

    Returns:
        The seeds; [seeds, 2] with scratch first; how it was told.
    """
    both = table.with_target().where(lambda row: _way(row) in (SCRATCH, way))
    found_ways = {_way(row) for row in both.rows}
    need(len(found_ways) == 2, f"it needs runs from scratch and with --trainable={way}")
    marked = Table([{**row, "config.way": _way(row)} for row in both.rows])
    found, why = to_accuracy_blocks(marked, quantity, "way", "learning_rate")
    need_shape(found, cells=2, of="ways")
    best, choice = tuned(found.values, [cell[0] for cell in found.cells], (SCRATCH, way))
    rates = [found.cells[int(np.bincount(choice[:, i]).argmax())][1] for i in range(2)]
    told = f"learning rates chosen by the other seeds, scratch at {rates[0]} and it at {rates[1]}"
    return found.seeds, best, f"{told}; {why}"


def _against_scratch(way: str):
    def test(table: Table, quantity: Quantity) -> Finding:
        _, best, why = _pair(table, way, quantity)
        return more(mean_of(best[:, 0] - best[:, 1]), why)

    return test


def _with_source(
    table: Table, way: str, quantity: Quantity
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Costs by seed: of the pretraining, from scratch, by one way; and how they were told."""
    seeds, best, why = _pair(table, way, quantity)
    sources = table.where(
        lambda row: not row.get("config.init_from") and row.get("target.accuracy") is None
    )
    need(len(sources) > 0, "it needs the runs that were begun with")
    cost = sources.of_training(quantity)
    found = blocks(sources.seeds, ["source"] * len(sources), np.where(cost > 0, cost, np.nan))
    need(found.seeds == seeds, "some seeds lack the cost of the pretraining")
    need(bool(np.isfinite(found.values).all()), "a cost of the pretraining is not known")
    return found.values[:, 0], np.exp(best[:, 0]), np.exp(best[:, 1]), why


def test_single_use(table: Table, quantity: Quantity) -> Finding:
    """Pretraining and one fine-tuning of all layers against training from scratch."""
    pretraining, scratch, tuning, why = _with_source(table, ALL, quantity)
    return more(mean_of(np.log((pretraining + tuning) / scratch)), why)


def test_pays(table: Table, quantity: Quantity) -> Finding:
    """So many reuses save more than the pretraining took."""
    pretraining, scratch, tuning, why = _with_source(table, ALL, quantity)
    saving = scratch - tuning
    gain = mean_of(_REUSES * saving - pretraining)
    reuses, bounds, told = _break_even(pretraining, saving)
    return Finding(
        reuses,
        bounds,
        "reuses",
        len(saving),
        p_effect_above(gain, 0.0),
        p_effect_below(gain, 0.0),
        f"{told}; pretraining {pretraining.mean():.3g} {quantity.unit}, from scratch "
        f"{scratch.mean():.3g}, fine-tuning {tuning.mean():.3g}; {why}",
    )


def _break_even(
    pretraining: np.ndarray, saving: np.ndarray
) -> tuple[float, tuple[float, float], str]:
    """n* = mean pretraining / mean saving with Fieller's interval, and both in words.

    Args:
        pretraining: by seed [seeds].
        saving: of one reuse, by seed [seeds].

    Returns:
        n*, infinite where nothing is saved; its bounds, infinite where there is none; words.
    """
    low, high = inference.ratio_bounds(pretraining, saving)
    ratio = float(pretraining.mean() / saving.mean()) if saving.mean() > 0 else math.inf
    if math.isfinite(high):
        return ratio, (low, high), "break-even after so many reuses"
    if low == 0:
        return ratio, (low, high), "break-even after any number of reuses fits these data"
    if math.isfinite(low):
        return ratio, (low, high), f"break-even after {low:.3g} reuses or more, without upper bound"
    return ratio, (low, high), "no break-even: nothing is saved"


def describe(table: Table, quantity: Quantity) -> list[dict[str, Any]]:
    """Each way with its cost and its break-even, for the record.

    Returns:
        One dict per way: `way`, `cost`, `unit`, `from_scratch`, `pretraining`, `break_even_reuses`
        and its `ci95`; a bound that does not exist is None, and `told` says so.
    """
    found = []
    for way in WAYS[1:]:
        try:
            pretraining, scratch, tuning, _ = _with_source(table, way, quantity)
        except TooLittleData:
            continue
        reuses, bounds, told = _break_even(pretraining, scratch - tuning)
        found.append(
            {
                "way": way,
                "cost": float(tuning.mean()),
                "unit": quantity.unit,
                "from_scratch": float(scratch.mean()),
                "pretraining": float(pretraining.mean()),
                "break_even_reuses": reuses if math.isfinite(reuses) else None,
                "ci95": [bound if math.isfinite(bound) else None for bound in bounds],
                "told": told,
            }
        )
    return found


STUDY = Study(
    name="pretraining",
    claim="Fine-tuning a pretrained network saves energy, and pretraining pays only if it is "
    "reused.",
    source="Geissler et al., The Power of Training (arXiv 2401.01851): pretraining as a factor.",
    statements=(
        Statement(
            "Fine-tuning all layers takes less {cost} to the accuracy than training from scratch.",
            _against_scratch(ALL),
        ),
        Statement(
            "Training only the head of a pretrained network takes less {cost} to the accuracy "
            "than training from scratch.",
            _against_scratch(HEAD),
        ),
        Statement(
            "Training only the last two layers of a pretrained network takes less {cost} to the "
            "accuracy than training from scratch.",
            _against_scratch(LAST),
        ),
        Statement(
            "Used once, pretraining and fine-tuning all layers take more {cost} than training "
            "from scratch.",
            test_single_use,
        ),
        Statement(
            f"After {_REUSES} reuses, pretraining has saved more {{cost}} than it took.",
            test_pays,
        ),
    ),
    minimum="three seeds of a source, of training from scratch and of each way to begin with the "
    "source; a third of the runs of a pair reach the accuracy",
    design=design,
    describe=describe,
)
