"""How long a run will take, from runs that are finished; unknown where there is none to go by."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.records import Run
from jaxenergy.sweeps.design import Cell
from jaxenergy.sweeps.survey import Size

# Phases whose length does not grow with the number of updates.
_ONCE = ("compile", "warmup", "input", "idle", "other")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The time of one run.

    Attributes:
        seconds: None where there is nothing to go by.
        source: what it was taken from, in words.
    """

    seconds: float | None
    source: str


@dataclasses.dataclass(frozen=True)
class _Known:
    """A finished run."""

    config: RunConfig
    key: str
    identity: Mapping[str, Any]
    summary: Mapping[str, Any]
    size: Size


class Predictor:
    """Predicts from finished runs, which may grow in number meanwhile.

    Args:
        sizes: of the sweep's runs, by run id.
        startup_s: what a process takes before its clock starts.
    """

    def __init__(self, sizes: Mapping[str, Size], startup_s: float):
        self._sizes = sizes
        self._startup_s = startup_s
        self._known: dict[str, _Known] = {}
        self._predicted: dict[str, Prediction] = {}  # asked for again at each redraw

    def add(self, config: RunConfig, run: Run) -> None:
        """Notes a finished run, of this sweep or of another; one without figures is passed over."""
        summary = run.summary or {}
        try:
            size = self._sizes.get(config.id) or Size(
                updates=summary["updates"],
                parameters=summary["parameters"],
                batch_size=config.batch_size,
                flops_per_update=summary["compiled"]["flops_per_update"],
            )
            usable = summary["duration_s"] > 0 and summary["updates"] > 0
            if usable and summary["duration_by_phase_s"] and size.parameters > 0:
                self._known[config.id] = _Known(
                    config, _without_seed(config), config.identity(), summary, size
                )
                self._predicted.clear()
        except (KeyError, TypeError):  # a summary with less in it than this version writes
            return

    def predict(self, cell: Cell) -> Prediction:
        """The time of a cell: that of the same set-up with other seeds, else of the nearest one.

        The nearest set-up is that which differs in the fewest settings. Its time for compiling and
        the like is taken as it is, and the rest scaled by updates and by operations per update.
        """
        if cell.run_id not in self._predicted:
            self._predicted[cell.run_id] = self._predict(cell)
        return self._predicted[cell.run_id]

    def _predict(self, cell: Cell) -> Prediction:
        key = _without_seed(cell.config)
        same = [known.summary["duration_s"] for known in self._known.values() if known.key == key]
        if same:
            seconds = statistics.median(same) + self._startup_s
            runs = f"{len(same)} finished run{'s' if len(same) > 1 else ''}"
            return Prediction(seconds, f"{runs} of the same settings")
        if not self._known:
            return Prediction(None, "unknown: no run is finished yet that it could be taken from")
        identity = cell.config.identity()
        nearest = min(self._known.values(), key=lambda known: _distance(identity, known.identity))
        seconds, by = self._scale(self._sizes[cell.run_id], nearest)
        names = _differing(identity, nearest.identity)
        source = f"run {nearest.config.id} with other {', '.join(names)}, scaled by {by}"
        return Prediction(seconds, source)

    def _scale(self, size: Size, nearest: _Known) -> tuple[float, str]:
        phases_s = nearest.summary["duration_by_phase_s"]
        once_s = sum(phases_s.get(phase) or 0.0 for phase in _ONCE)
        # A run that reached its target made fewer updates than it was given.
        growing_s = max(0.0, nearest.summary["duration_s"] - once_s) / nearest.summary["updates"]
        if size.flops_per_update and nearest.size.flops_per_update:
            factor = size.flops_per_update / nearest.size.flops_per_update
            by = "operations and updates"
        else:
            factor = (size.parameters * size.batch_size) / (
                nearest.size.parameters * nearest.size.batch_size
            )
            by = "parameters, batch size and updates"
        return self._startup_s + once_s + growing_s * size.updates * factor, by


def add_up(predictions: Sequence[Prediction]) -> tuple[float, int]:
    """The seconds of all that are known, and how many are not."""
    known = [p.seconds for p in predictions if p.seconds is not None]
    return sum(known), len(predictions) - len(known)


def _without_seed(config: RunConfig) -> str:
    return config.setup_id


# What changes the work most; any other setting counts as one.
_WEIGHTS = {"model": 10, "dataset": 10, "precision": 5}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The settings in which two configs differ, the seed aside."""
    return [name for name, value in one.items() if value != other[name] and name != "seed"]


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    return sum(_WEIGHTS.get(name, 1) for name in _differing(one, other))
