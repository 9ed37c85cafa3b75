"""Do activations differ in what they cost, and does ReLU cost more?"""

import numpy as np

from jaxenergy.studies import grids
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.inference import MARGIN, mean_of
from jaxenergy.studies.patterns import (
    differ,
    more,
    need,
    need_shape,
    per_update_blocks,
    to_accuracy_blocks,
)
from jaxenergy.studies.table import Blocks, Quantity, Table


def test_differ(table: Table, quantity: Quantity) -> Finding:
    """Whether any two activations differ per update, by the margin or more."""
    found = per_update_blocks(table, quantity, "activation")
    need_shape(found, cells=2, of="activations")
    return differ(found, MARGIN, "activation")


def _relu_against_rest(found: Blocks, why: str) -> Finding:
    need("relu" in found.cells, "no run has the activation relu")
    need_shape(found, cells=2, of="activations")
    is_relu = np.array([cell == "relu" for cell in found.cells])
    relu = found.values[:, is_relu].mean(axis=1)
    return more(mean_of(relu - found.values[:, ~is_relu].mean(axis=1)), why)


def test_relu_per_update(table: Table, quantity: Quantity) -> Finding:
    """ReLU against the mean of the others, per update."""
    return _relu_against_rest(per_update_blocks(table, quantity, "activation"), "")


def test_relu_to_accuracy(table: Table, quantity: Quantity) -> Finding:
    """ReLU against the mean of the others, to the accuracy."""
    return _relu_against_rest(*to_accuracy_blocks(table, quantity, "activation"))


STUDY = Study(
    name="activation",
    claim="The activation matters for energy, and ReLU costs more.",
    source="A widely read summary of Geissler et al., The Power of Training (arXiv 2401.01851).",
    statements=(
        Statement("Activations differ in {cost} per update (by 3 % or more).", test_differ),
        Statement("ReLU takes more {cost} per update than the others.", test_relu_per_update),
        Statement("ReLU takes more {cost} to the accuracy than the others.", test_relu_to_accuracy),
    ),
    minimum="two activations, one of them relu, three seeds of each; a third of the runs that have "
    "an accuracy to reach reach it",
    design=grids.activation,
)
