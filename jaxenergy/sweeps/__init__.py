"""Many runs on one machine or cluster: one process each, in a random order, resumable.

    sweep = sweeps.plan([RunConfig(optimizer=o, seed=s) for o in ("sgd", "adam") for s in range(5)])
    result = sweeps.run(sweep, out="runs")
    for cell in result.comparable():
        cell.read().summary

A run is found again by its id, so sweeps that share runs do them once. Studies build on these
names; the rest of the package is behind them. What the files say: docs/sweeps.md.
"""

from jaxenergy.sweeps.conditions import Conditions
from jaxenergy.sweeps.design import Cell, Sweep, plan, product
from jaxenergy.sweeps.device_lock import DeviceLocks
from jaxenergy.sweeps.prediction import Prediction
from jaxenergy.sweeps.results import RUNNING, WAITING, CellResult, SweepResult
from jaxenergy.sweeps.running import (
    LAUNCHERS,
    Forecast,
    Observer,
    Progress,
    SilentObserver,
    forecast,
    run,
)
from jaxenergy.sweeps.slurm import SlurmOptions
from jaxenergy.sweeps.survey import find_devices

__all__ = [
    "LAUNCHERS",
    "RUNNING",
    "WAITING",
    "Cell",
    "CellResult",
    "Conditions",
    "DeviceLocks",
    "Forecast",
    "Observer",
    "Prediction",
    "Progress",
    "SilentObserver",
    "SlurmOptions",
    "Sweep",
    "SweepResult",
    "find_devices",
    "forecast",
    "plan",
    "product",
    "run",
]
