"""Is energy to an accuracy U-shaped in the learning rate?"""

from jaxenergy.studies import grids
from jaxenergy.studies.core import Finding, Statement, Study
from jaxenergy.studies.patterns import need_shape, to_accuracy_blocks, u_shape
from jaxenergy.studies.table import Quantity, Table


def test_u_shape(table: Table, quantity: Quantity) -> Finding:
    """Both the lowest and the highest rate above the best between them, at one batch size."""
    table = _middle_batch(table)
    found, why = to_accuracy_blocks(table, quantity, "learning_rate")
    need_shape(found, cells=4, of="learning rates")
    return u_shape(found, "learning rate", why)


def _middle_batch(table: Table) -> Table:
    """The runs of the middle batch size of a grid of several."""
    sizes = sorted({row["config.batch_size"] for row in table.rows})
    middle = sizes[(len(sizes) - 1) // 2] if sizes else None
    return table.where(lambda row: row["config.batch_size"] == middle)


STUDY = Study(
    name="learning_rate",
    claim="Energy to an accuracy is U-shaped in the learning rate.",
    source="Geissler et al., The Power of Training (arXiv 2401.01851), learning rate as a factor.",
    statements=(
        Statement("{cost} to the accuracy is U-shaped in the learning rate.", test_u_shape),
    ),
    minimum="four learning rates, three seeds of each; a third of the runs reach the accuracy",
    design=grids.rates_and_batches,
)
