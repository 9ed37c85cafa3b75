"""The names a user can choose from, printed with a line each."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy.activations import ACTIVATIONS
from jaxenergy.data import DATASETS
from jaxenergy.meters import METERS
from jaxenergy.models import MODELS
from jaxenergy.optimizers import OPTIMIZERS, SCHEDULES
from jaxenergy.registry import Registry

REGISTRIES: Mapping[str, Registry] = {
    "models": MODELS,
    "activations": ACTIVATIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "datasets": DATASETS,
    "meters": METERS,
}


def print_names(which: str, console: Console) -> None:
    """Prints the entries of one registry, or of all.

    Args:
        which: a key of `REGISTRIES`, or `all`.
        console: where to print.
    """
    for heading, registry in REGISTRIES.items():
        if which not in ("all", heading):
            continue
        table = Table(title=heading, title_justify="left", title_style="bold", box=None)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for name in registry:
            table.add_row(Text(name), Text(registry.describe(name)))
        table.show_header = False
        console.print(table)
        console.print()
