"""The names a user can choose from, printed with a line each; and what each optimizer costs."""

from collections.abc import Mapping

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxenergy import data, models, optimizers
from jaxenergy.activations import ACTIVATIONS
from jaxenergy.arguments import split_arguments
from jaxenergy.config import RunConfig
from jaxenergy.data import DATASETS
from jaxenergy.meters import METERS
from jaxenergy.models import MODELS, PRESETS
from jaxenergy.optimizers import OPTIMIZERS, SCHEDULES
from jaxenergy.optimizers.cost import update_cost
from jaxenergy.registry import Registry
from jaxenergy.units import format_si

REGISTRIES: Mapping[str, Registry] = {
    "models": MODELS,
    "presets": PRESETS,
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
        table = _table(heading, "", "")
        table.show_header = False
        for name in sorted(registry):
            table.add_row(Text(name), Text(registry.describe(name).splitlines()[0]))
        console.print(table)
        console.print()


def print_optimizer_costs(config: RunConfig, console: Console) -> None:
    """Prints what each optimizer's own part of an update costs for a model.

    Args:
        config: names the model and the data set that gives its shapes.
        console: where to print.
    """
    dataset = data.load(config.dataset, data_dir=config.data_dir)
    model = models.build(
        config.model,
        depth=config.depth,
        width=config.width,
        activation=config.activation,
        input_shape=dataset.train.inputs.shape[1:],
        classes=dataset.classes,
        precision=config.precision,
        **split_arguments(config.model_args, "--model_args"),
    )
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    table = _table(
        f"optimizers, for {config.model} of depth {model.depth} and width {model.width} "
        f"({parameters:,} parameters), per update beside the gradients",
        "",
        "state",
        "FLOPs",
        "read and written",
        "passes",
    )
    unknown = []
    for name in sorted(OPTIMIZERS):
        optimizer = optimizers.build(name, total_updates=100)
        cost = update_cost(optimizer, params)
        passes = optimizer.iterations_per_update
        table.add_row(
            Text(name),
            format_si(cost.state_bytes, "B"),
            format_si(cost.flops, "").strip(),
            format_si(cost.bytes_accessed, "B"),
            "varies" if passes is None else f"{passes:g}",
        )
        if cost.why:
            unknown.append(f"n/a for {name}: {cost.why}.")
    console.print(table)
    for sentence in unknown:
        console.print(Text(sentence, style="yellow"))


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for position, heading in enumerate(headings):
        first = position == 0
        table.add_column(
            heading,
            style="cyan" if first else "",
            no_wrap=first,
            justify="right" if heading else "left",
        )
    return table
