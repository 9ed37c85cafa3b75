"""What a training set-up costs in joules, per compiled JAX update, with an interval.

A map of the package, from the ground up:

    errors, units, registry, arguments, runtime   words everyone uses
    config, activations | stats                    settings of a run; intervals
    models, optimizers, data | meters, records     what is trained; what is read and written
    training.steps | energy                        the compiled update; joules by phase
    training, measuring                            the loop that meters itself; a timeit for joules
    sweeps                                         many runs, one process each
    report                                         tables, figures and a page from records

The public names below are imported on first use: `import jaxenergy` loads no framework and touches
no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxenergy.measuring import Comparison, Ledger, Measurement, compare, measure
    from jaxenergy.meters import Meters, open_meters
    from jaxenergy.records import read_run, read_runs

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "jaxenergy.measuring",
    "Ledger": "jaxenergy.measuring",
    "Measurement": "jaxenergy.measuring",
    "compare": "jaxenergy.measuring",
    "measure": "jaxenergy.measuring",
    "Meters": "jaxenergy.meters",
    "open_meters": "jaxenergy.meters",
    "read_run": "jaxenergy.records",
    "read_runs": "jaxenergy.records",
}

__all__ = [
    "Comparison",
    "Ledger",
    "Measurement",
    "Meters",
    "compare",
    "measure",
    "open_meters",
    "read_run",
    "read_runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
