"""What a sweep is: configs in a random order, and the command line of each.

Nothing here looks at the machine: a sweep is a function of its configs and of one number, so that
the same command describes the same sweep again, on whatever machine goes on with it.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError
from jaxenergy.records.files import plain_text

# Of a run, and never of a sweep: which folder it uses, and what is done with an old one.
FOLDER_SETTINGS = ("out", "name", "resume", "overwrite")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        config: its settings.
    """

    config: RunConfig

    @functools.cached_property
    def run_id(self) -> str:
        """The run's id, by which a finished run of it is found."""
        return self.config.id

    @property
    def block(self) -> int:
        """The block it is run in: its seed."""
        return self.config.seed

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings that are off their defaults and change what is computed or measured."""
        defaults = RunConfig().identity()
        return {
            name: value for name, value in self.config.identity().items() if value != defaults[name]
        }

    def arguments(self, out: str, name: str) -> list[str]:
        """The command line of the run, after `python`.

        Args:
            out: the folder that holds the run folders.
            name: the run's folder.

        Returns:
            `-m experiments.run --flag=value …`, with the flags that are off their defaults.
        """
        config = dataclasses.replace(self.config, out=out, name=name)
        flags = [
            _as_flag(field.name, value)
            for field in dataclasses.fields(config)
            if (value := getattr(config, field.name)) != field.default or field.name == "out"
        ]
        return ["-m", "experiments.run", *flags]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs in the order in which they are to be run; made by `plan`.

    Attributes:
        cells: the runs.
        order_seed: what their order was drawn from.
        axes: the values of each setting that the grid was made of, for people; empty where the
            configs came from elsewhere.
    """

    cells: tuple[Cell, ...]
    order_seed: int
    axes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def id(self) -> str:
        """Ten hexadecimal digits: a hash of the runs and of their order."""
        text = " ".join(cell.run_id for cell in self.cells)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @functools.cached_property
    def varied(self) -> tuple[str, ...]:
        """The settings in which cells differ, the seed aside, in the order of `RunConfig`."""
        seen: dict[str, set] = {}
        for cell in self.cells:
            for name, value in cell.config.identity().items():
                seen.setdefault(name, set()).add(value)
        return tuple(name for name, values in seen.items() if len(values) > 1 and name != "seed")


def plan(
    configs: Sequence[RunConfig],
    *,
    order_seed: int = 0,
    axes: Mapping[str, Sequence[Any]] | None = None,
) -> Sweep:
    """Puts runs into a random order, in blocks by seed.

    A block holds the runs of one seed, and the blocks come in the order of their seeds. Whatever
    drifts meanwhile (heat, a neighbour's load) then falls on all cells of a block alike, and
    a sweep that is cut off has whole blocks. Within a block the order is random: each run's place
    comes from a hash of `order_seed` and its id, so it depends neither on the order in which the
    configs were given nor on the version of a generator, and adding a run leaves the others'
    order as it is. Only a run that another of its block begins with (`init_from=setup:ID`) is moved
    up to before the first that needs it.

    Args:
        configs: the runs; no two with one id.
        order_seed: another number, another order.
        axes: what the configs were made of, for the record.

    Returns:
        The sweep.

    Raises:
        UsageError: there is no run, two are the same, or one names its folder.
    """
    if not configs:
        raise UsageError("The sweep has no runs.\nAllowed: one or more.")
    seen: dict[str, RunConfig] = {}
    for config in configs:
        for name in FOLDER_SETTINGS[1:]:
            default = getattr(RunConfig, name)
            if getattr(config, name) != default:
                raise UsageError(
                    f"--{name}={plain_text(getattr(config, name), 80)} is for a single run: a sweep"
                    " chooses the folders of its runs.\n--out=FOLDER holds them all."
                )
        if config.id in seen:
            flags = " ".join(_as_flag(*item) for item in Cell(config).settings.items())
            shown = plain_text(flags or "the default run", 300)
            raise UsageError(
                f"Two runs of the sweep are the same: {shown}.\n"
                "Allowed: runs that differ in a setting that changes what is computed or measured."
            )
        seen[config.id] = config
    cells = [Cell(config) for config in configs]
    cells.sort(key=lambda cell: (cell.block, _place(order_seed, cell.run_id)))
    return Sweep(_sources_first(cells), order_seed, dict(axes or {}))


def _sources_first(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells in their order, each source moved up to before the first run that needs it."""
    if all(cell.config.source_setup is None for cell in cells):
        return tuple(cells)
    sources = {(cell.block, cell.config.setup_id): cell for cell in cells}
    ordered: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.run_id not in ordered:
            source = sources.get((cell.block, cell.config.source_setup or ""))
            if source is not None:  # an id hashes its own source's, so that there is no circle
                add(source)
            ordered[cell.run_id] = cell

    for cell in cells:
        add(cell)
    return tuple(ordered.values())


def _place(order_seed: int, run_id: str) -> bytes:
    return hashlib.sha256(f"{order_seed} {run_id}".encode()).digest()


def product(base: RunConfig, axes: Mapping[str, Sequence[Any]]) -> list[RunConfig]:
    """The configs of a grid.

    Args:
        base: the settings that all have.
        axes: the values of each setting that is varied.

    Returns:
        One config for each combination of values; what is wrong with a combination is raised by
        `RunConfig`.

    Raises:
        UsageError: a combination is not allowed.
    """
    return [
        dataclasses.replace(base, **dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]


def _as_flag(name: str, value: Any) -> str:
    """A setting as experiments.run takes it."""
    if isinstance(value, bool):
        return f"--{name}={'true' if value else 'false'}"
    return f"--{name}={value}"
