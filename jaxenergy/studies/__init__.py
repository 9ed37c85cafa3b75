"""Published claims about the energy of training, each tested: one file a claim.

A study says what is claimed and by whom, which runs decide it, and how. `judge` turns a table of
runs into verdicts: supported, refuted, undecided, or void where the quantity was not measured.
The statistics are in `inference.py`, the runs in `grids.py`, others' files in `layouts.py`.
"""

from jaxenergy.registry import Registry
from jaxenergy.studies import (
    activation,
    batch_size,
    compile,
    compute,
    depth,
    five_times,
    flops,
    hardware,
    inference_energy,
    instrument,
    iterations,
    learning_rate,
    multitask,
    optimizer,
    per_update,
    pretraining,
    time_is_not_energy,
    tradeoff,
)
from jaxenergy.studies.core import Finding, Statement, Study, Verdict, gate_of, judge, to_json
from jaxenergy.studies.grids import BUDGETS, Context
from jaxenergy.studies.table import Table

STUDIES: Registry[Study] = Registry("study")
# The instrument comes first: it gates what the others may say of joules.
for _module in (
    instrument,
    depth,
    activation,
    optimizer,
    iterations,
    per_update,
    batch_size,
    learning_rate,
    five_times,
    time_is_not_energy,
    flops,
    compile,
    tradeoff,
    multitask,
    compute,
    hardware,
    pretraining,
    inference_energy,
):
    STUDIES.add(_module.STUDY.name, _module.STUDY, _module.STUDY.claim)

__all__ = [
    "BUDGETS",
    "STUDIES",
    "Context",
    "Finding",
    "Statement",
    "Study",
    "Table",
    "Verdict",
    "gate_of",
    "judge",
    "to_json",
]
