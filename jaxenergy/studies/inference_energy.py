"""What does a prediction cost, by batch size and precision, and when has it cost what training did?

Each seed's network is trained and then measured by a process of its own (`inference_probe.py`),
which measures all batch sizes and precisions beside each other. A seed's network and process are a
block.

When predictions have taken what the training took depends on the length of the training. So it is
held to the examples that the training was made of: counting operations, an example costs three
times as much in training as in a prediction, whatever the network.
"""

import math

import numpy as np

from jaxenergy.config import RunConfig
from jaxenergy.data import is_control
from jaxenergy.errors import UsageError
from jaxenergy.studies import inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.grids import Context, unique
from jaxenergy.studies.inference import mean_of, p_effect_above, p_effect_below
from jaxenergy.studies.inference_probe import FLOAT32, HALF, measure_networks
from jaxenergy.studies.patterns import more, need, need_shape, plateau, trend
from jaxenergy.studies.table import ENERGY, FLOPS, TIME, Blocks, Quantity, Table, blocks

_MIN_SIZES = 3
_PER_PREDICTION = {
    ENERGY: "inference.per_prediction_j",
    TIME: "inference.per_prediction_s",
    FLOPS: "inference.flops_per_prediction",
}


def design(context: Context) -> list[RunConfig]:
    """The base run of each seed, which other studies have as well.

    Raises:
        UsageError: the data set is a control task, which has no examples to predict.
    """
    if is_control(context.main_dataset):
        raise UsageError(
            f"--dataset={context.main_dataset}: the study inference predicts examples, and a "
            "control task has none.\nAllowed: data sets of images or text."
        )
    return unique(context.run(seed=seed) for seed in context.seeded())


def _measured(table: Table) -> Table:
    table = table.where(lambda row: row.get("inference.batch_size") is not None)
    need(len(table) > 0, "no prediction was measured")
    return table


def _per_prediction(table: Table, quantity: Quantity, precision: str = FLOAT32) -> Blocks:
    """Log cost of a prediction by seed and batch size, in one precision."""
    table = _measured(table).where(lambda row: row.get("inference.precision") == precision)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(table.numbers(_PER_PREDICTION[quantity]))
    values = np.where(np.isfinite(values), values, np.nan)
    found = blocks(table.seeds, table.numbers("inference.batch_size").tolist(), values)
    need_shape(found, cells=_MIN_SIZES, of=f"batch sizes in {precision}")
    return found


def test_falls(table: Table, quantity: Quantity) -> Finding:
    """Cost per prediction falls from batch size to batch size."""
    found = _per_prediction(table, quantity)
    first, last = (math.exp(found.values[:, i].mean()) for i in (0, -1))
    return trend(
        found,
        np.log2(found.cells),
        rising=False,
        per="doubling of the batch size",
        why=f"{first:.3g} {quantity.unit} in batches of {found.cells[0]:g}, {last:.3g} in batches "
        f"of {found.cells[-1]:g}",
    )


def test_plateau(table: Table, quantity: Quantity) -> Finding:
    """Cost per prediction no longer changes between the two largest batch sizes."""
    found = _per_prediction(table, quantity)
    return plateau(found, f"from batches of {found.cells[-2]:g} to {found.cells[-1]:g}")


def test_half(table: Table, quantity: Quantity) -> Finding:
    """A prediction in float32 against one in bfloat16, in the largest batches."""
    full, half = (_per_prediction(table, quantity, name) for name in (FLOAT32, HALF))
    need(full.seeds == half.seeds and full.cells == half.cells, "some seeds lack a precision")
    ratios = full.values - half.values
    told = ", ".join(
        f"{inference.ratio_of(mean_of(column))[0]:.3g} in batches of {size:g}"
        for size, column in zip(full.cells, ratios.T, strict=True)
    )
    return more(mean_of(ratios[:, -1]), f"float32 over bfloat16: {told}")


def _break_even(table: Table, quantity: Quantity, *, largest: bool) -> Finding:
    """After how many predictions they have taken what the training took, against its examples."""
    found = _per_prediction(table, quantity)
    of_runs = _measured(table)
    total = of_runs.of_training(quantity) if quantity is FLOPS else of_runs.of_run(quantity)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = np.log([total, of_runs.numbers("examples")])
    columns = np.where(np.isfinite(columns), columns, np.nan)
    one = ["run"] * len(of_runs)
    training, examples = (blocks(of_runs.seeds, one, column) for column in columns)
    need(
        training.seeds == examples.seeds == found.seeds,
        "what the training took, or of how many examples it was, is not known",
    )
    predictions = training.values[:, 0] - found.values[:, -1 if largest else 0]
    beyond = mean_of(predictions - examples.values[:, 0])
    effect, ci95 = inference.ratio_of(mean_of(predictions))
    most, least = p_effect_above(beyond, 0.0), p_effect_below(beyond, 0.0)
    size = found.cells[-1 if largest else 0]
    return Finding(
        effect,
        ci95,
        "predictions",
        found.shape[0],
        most if largest else least,
        least if largest else most,
        f"in batches of {size:g}; the training was of {math.exp(examples.values.mean()):,.0f} "
        f"examples, {inference.ratio_of(beyond)[0]:.3g} predictions to each",
    )


def test_single(table: Table, quantity: Quantity) -> Finding:
    """In the smallest batches, fewer predictions than the training had examples."""
    return _break_even(table, quantity, largest=False)


def test_batched(table: Table, quantity: Quantity) -> Finding:
    """In the largest batches, more predictions than the training had examples."""
    return _break_even(table, quantity, largest=True)


STUDY = Study(
    name="inference",
    claim="A prediction costs less in large batches and in half precision, and in the end "
    "inference costs more than training.",
    source="Named as missing in a widely read summary of Geissler et al. (arXiv 2401.01851); "
    "Desislavov, Martinez-Plumed, Hernandez-Orallo (arXiv 2109.05472).",
    statements=(
        Statement("{cost} per prediction falls with the batch size.", test_falls),
        Statement(
            "{cost} per prediction reaches a plateau: the last doubling of the batch size changes "
            "it by less than 10 %.",
            test_plateau,
            equality=True,
        ),
        Statement(
            "In the largest batches, a prediction in bfloat16 takes less {cost} than one in "
            "float32.",
            test_half,
        ),
        Statement(
            "One at a time, fewer predictions than the training had examples take as much {cost} "
            "as the training.",
            test_single,
        ),
        Statement(
            "In the largest batches, it takes more predictions than the training had examples to "
            "take as much {cost} as the training.",
            test_batched,
        ),
    ),
    minimum="three batch sizes in float32 and bfloat16, three seeds of each",
    design=design,
    measure=measure_networks,
)
