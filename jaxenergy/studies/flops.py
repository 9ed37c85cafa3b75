"""Do FLOPs and parameters predict energy, and do they do better with the bytes that are moved?

Judged by prediction: each set-up's cost is foretold from the others' alone.
"""

import numpy as np

from jaxenergy.studies import grids, inference
from jaxenergy.studies.core import METERED, Finding, Statement, Study
from jaxenergy.studies.inference import mean_of, p_effect_above, p_effect_below
from jaxenergy.studies.patterns import need
from jaxenergy.studies.per_update import SETUP
from jaxenergy.studies.table import Quantity, Table

_MIN_CELLS = 8
_GOOD = np.log(1.2)  # a prediction within 20 % would do for planning


def _errors(table: Table, quantity: Quantity) -> tuple[np.ndarray, np.ndarray]:
    """Absolute log errors of leave-one-set-up-out predictions, without and with bytes [cells]."""
    names = [str(cell) for cell in table.settings(*SETUP)]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = np.log(
            np.stack(
                [
                    table.per_update(quantity),
                    table.numbers("compiled.flops_per_update"),
                    table.numbers("parameters"),
                    table.numbers("compiled.bytes_per_update"),
                ],
                axis=1,
            )
        )
    cells = [columns[[name == cell for name in names]].mean(axis=0) for cell in sorted(set(names))]
    data = np.array([cell for cell in cells if np.isfinite(cell).all()]).reshape(-1, 4)
    need(
        len(data) >= _MIN_CELLS,
        f"it needs {_MIN_CELLS} set-ups with FLOPs, parameters and bytes; there are {len(data)}",
    )
    return _left_out(data[:, 0], data[:, 1:3]), _left_out(data[:, 0], data[:, 1:])


def _left_out(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """|y_i - prediction from all but i| of a linear model, by its leverages."""
    design = np.column_stack([np.ones(len(y)), x - x.mean(axis=0)])
    basis, values, _ = np.linalg.svd(design, full_matrices=False)
    # Columns that are the same up to rounding tell nothing twice.
    basis = basis[:, values > 1e-8 * values[0]]
    leverage = np.minimum(np.sum(basis**2, axis=1), 1 - 1e-9)
    return np.abs((y - basis @ (basis.T @ y)) / (1 - leverage))


def test_not_enough(table: Table, quantity: Quantity) -> Finding:
    """The mean error of prediction from FLOPs and parameters is over 20 %."""
    error = mean_of(_errors(table, quantity)[0])
    effect, ci95 = inference.ratio_of(error)
    return Finding(
        effect,
        ci95,
        "ratio, typical error of prediction",
        int(error.freedom) + 1,
        p_effect_above(error, _GOOD),
        p_effect_below(error, _GOOD),
        "each set-up predicted from all others",
    )


def test_bytes_help(table: Table, quantity: Quantity) -> Finding:
    """The error becomes smaller when bytes are known as well."""
    without, with_bytes = _errors(table, quantity)
    gain = mean_of(without - with_bytes)
    effect, ci95 = inference.ratio_of(gain)
    return Finding(
        effect,
        ci95,
        "ratio of errors",
        int(gain.freedom) + 1,
        p_effect_above(gain, 0.0),
        p_effect_below(gain, 0.0),
        f"typical error {np.exp(without.mean()):.3g} times without, "
        f"{np.exp(with_bytes.mean()):.3g} times with bytes",
    )


STUDY = Study(
    name="flops",
    claim="FLOPs and parameters alone do not predict energy; with the bytes moved they do better.",
    source="Tripp et al., BUTTER-E (arXiv 2403.08151): energy is not monotone in either.",
    statements=(
        Statement(
            "FLOPs and parameters do not predict {cost} per update to 20 %.",
            test_not_enough,
            METERED,
        ),
        Statement(
            "With the bytes moved {cost} per update is predicted better.", test_bytes_help, METERED
        ),
    ),
    minimum="eight set-ups with FLOPs, parameters and bytes",
    design=grids.setups,
)
