"""Can this machine's counters be believed? It runs first and gates the other studies' joules.

Rounds of idle, a load on random numbers, the same on zeros, and a load that is on and off in turn
(`probe.py`). Each round is a block.
"""

import numpy as np

from jaxenergy.stats import difference
from jaxenergy.studies import inference
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.inference import mean_of, p_outside, p_within
from jaxenergy.studies.patterns import more, need
from jaxenergy.studies.table import ENERGY, Quantity, Table

_MIN_ROUNDS = 5
_IDLE_AGREES = np.log(1.10)
_LOAD_AGREES = np.log(1.05)
IDLE, RANDOM, ZEROS, SQUARE = "idle", "random", "zeros", "square"


def _watts(table: Table, probe: str, key: str = "power_w") -> np.ndarray:
    """A probe's watts, or another column, by round [rounds]; rounds are whole or not recorded."""
    rows = sorted(
        (row for row in table.rows if row.get("probe") == probe), key=lambda row: row["round"]
    )
    values = np.array([row[key] if row.get(key) is not None else np.nan for row in rows])
    need(
        len(values) >= _MIN_ROUNDS,
        f"it needs {_MIN_ROUNDS} rounds of {probe}; there are {len(values)}",
    )
    return values


def _agreement(logs: np.ndarray, margin: float, why: str = "") -> Finding:
    """The finding that two ways to the same watts agree, round by round."""
    need(bool(np.isfinite(logs).all()), "the joules of some rounds are not known")
    ratio = mean_of(logs)
    effect, ci95 = inference.ratio_of(ratio)
    return Finding(
        effect,
        ci95,
        "ratio",
        len(logs),
        p_within(ratio, -margin, margin),
        p_outside(ratio, -margin, margin),
        why,
    )


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


def test_idle(table: Table, quantity: Quantity) -> Finding:
    """Idle watts of the later rounds against the earlier ones."""
    watts = _log(_watts(table, IDLE))
    need(bool(np.isfinite(watts).all()), "the joules of some rounds are not known")
    half = len(watts) // 2
    drift = difference(mean_of(watts[half:]), mean_of(watts[:half]))
    effect, ci95 = inference.ratio_of(drift)
    return Finding(
        effect,
        ci95,
        "ratio",
        len(watts),
        p_within(drift, -_IDLE_AGREES, _IDLE_AGREES),
        p_outside(drift, -_IDLE_AGREES, _IDLE_AGREES),
        f"idle {np.exp(watts.mean()):.3g} W",
    )


def test_square(table: Table, quantity: Quantity) -> Finding:
    """A load on and off in turn against what its parts take, by their shares of the time."""
    duty = _watts(table, SQUARE, "duty")
    expected = duty * _watts(table, RANDOM) + (1 - duty) * _watts(table, IDLE)
    return _agreement(
        _log(_watts(table, SQUARE) / expected), _LOAD_AGREES, f"on {duty.mean():.2f} of the time"
    )


def test_zeros(table: Table, quantity: Quantity) -> Finding:
    """The same product of random numbers and of zeros."""
    logs = _log(_watts(table, RANDOM) / _watts(table, ZEROS))
    need(bool(np.isfinite(logs).all()), "the joules of some rounds are not known")
    return more(mean_of(logs))


def test_integral(table: Table, quantity: Quantity) -> Finding:
    """The counter against integrated power, over each round with its idle and its loads."""
    counter, integral = (_watts(table, RANDOM, key) for key in ("counter_j", "integral_j"))
    known = bool(np.isfinite(counter).all() and np.isfinite(integral).all())
    need(known, "it needs an energy counter with readings of power beside it, and rounds of 5 s")
    return _agreement(_log(counter / integral), _LOAD_AGREES)


STUDY = Study(
    name="instrument",
    claim="The counters of this machine are fit for the other studies.",
    source="Yang et al., Part-time Power Measurements (arXiv 2312.02741), and reports of counters "
    "that disagree with integrated power; power depends on the values computed with.",
    statements=(
        Statement("Idle power is steady, to 10 %.", test_idle, (ENERGY,), equality=True),
        Statement(
            "A load that is on and off in turn takes what its parts take, to 5 %.",
            test_square,
            (ENERGY,),
            equality=True,
        ),
        Statement("Random numbers take more energy than zeros.", test_zeros, (ENERGY,)),
        Statement(
            "The energy counter agrees with integrated power, to 5 %.",
            test_integral,
            (ENERGY,),
            equality=True,
        ),
    ),
    minimum="five rounds of idle, random numbers, zeros and a square load on a counter",
    design=lambda context: [],
    probes=True,
)
