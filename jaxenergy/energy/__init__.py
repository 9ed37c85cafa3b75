"""Attribution: from counters that tick to joules per phase and per update, with their uncertainty.

`timeline` turns a counter into an energy curve, `ledger` cuts a run into labelled lines on it, and
`windows` makes means with intervals of the lines. No framework is known here: the fence that waits
for the device is passed in.
"""

from jaxenergy.energy.idle import idle_account
from jaxenergy.energy.ledger import DEVICE_PHASES, HOST_PHASES, PHASES, Ledger, Phase
from jaxenergy.energy.windows import mean_per, updates_per_window

__all__ = [
    "DEVICE_PHASES",
    "HOST_PHASES",
    "PHASES",
    "Ledger",
    "Phase",
    "idle_account",
    "mean_per",
    "updates_per_window",
]
