"""Runs made up by rules of known truth, as `read_runs` would give them, for the studies' tests.

One repetition is one set of runs of a whole study. Costs are log-normal: a set-up's own, times the
level of the seed's day, times noise. Accuracies are reached at a log-normal cost, or not before the
end of the run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.10  # of a seed's day, on all of its runs
NOISE = 0.03  # of one run's cost per update
REACH = 0.15  # of the cost at which a run reaches an accuracy
UPDATES = 1000
JOULES, SECONDS, FLOPS = 0.5, 0.005, 1e9

Rows = list[dict[str, Any]]


def draw_levels(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """Log levels of the seeds' days."""
    return rng.normal(0, LEVEL, seeds)


def make_runs(
    rng: np.random.Generator,
    cells: Sequence[Mapping[str, Any]],
    seeds: int,
    *,
    energy: Sequence[float] | np.ndarray,
    time: Sequence[float] | np.ndarray | None = None,
    noise: float = NOISE,
) -> Rows:
    """Runs of fixed length.

    Args:
        rng: draws.
        cells: settings by their names (`depth`), and whole columns by theirs (`parameters`,
            `compiled.bytes_per_update`).
        seeds: how many of each.
        energy: log factor of each cell's cost per update [cells].
        time: the same of its time; like energy where not given.
        noise: of a run.

    Returns:
        The rows, seed by seed.
    """
    time = energy if time is None else time
    levels = draw_levels(rng, seeds)
    scatter = rng.normal(0, noise, (2, seeds, len(cells)))
    rows = []
    for seed in range(seeds):
        for i, cell in enumerate(cells):
            joules = JOULES * math.exp(levels[seed] + energy[i] + scatter[0, seed, i])
            seconds = SECONDS * math.exp(levels[seed] + time[i] + scatter[1, seed, i])
            rows.append(make_row(cell, seed, joules, seconds))
    return rows


def make_row(cell: Mapping[str, Any], seed: int, joules: float, seconds: float) -> dict[str, Any]:
    """One completed run of `UPDATES` updates at a cost per update."""
    row: dict[str, Any] = {
        "state": "completed",
        "why": "",
        "provenance": "measured",
        "config.seed": seed,
        "config.model": "mlp",
        "config.optimizer": "sgd",
        "config.batch_size": 128,
        "updates": UPDATES,
        "iterations": UPDATES,
        "parameters": 10_000,
        "per_update_j.mean": joules,
        "energy_j.by_phase.train": joules * UPDATES,
        "energy_j.total": joules * UPDATES,
        "duration_by_phase_s.train": seconds * UPDATES,
        "duration_s": seconds * UPDATES,
        "compiled.flops_per_update": FLOPS,
    }
    for name, value in cell.items():
        row[name if "." in name or name in row else f"config.{name}"] = value
    return row


def make_reaching(
    rng: np.random.Generator,
    cells: Sequence[Mapping[str, Any]],
    seeds: int,
    *,
    energy: Sequence[float] | np.ndarray,
    needed: Sequence[float] | np.ndarray,
    reach: float = REACH,
) -> Rows:
    """Runs that end at an accuracy, or after `UPDATES` without it.

    Args:
        rng: draws.
        cells: as for `make_runs`.
        seeds: how many of each.
        energy: log factor of each cell's cost per update [cells].
        needed: log of the share of `UPDATES` that each cell needs [cells]; above 0 it is mostly
            not reached.
        reach: scatter of the updates needed.

    Returns:
        The rows.
    """
    rows = make_runs(rng, cells, seeds, energy=energy)
    luck = rng.normal(0, reach, (seeds, len(cells)))
    for position, row in enumerate(rows):
        seed, i = divmod(position, len(cells))
        share = math.exp(needed[i] + luck[seed, i])
        done = min(share, 1.0)
        row["target.accuracy"] = 0.9
        row["updates"] = UPDATES * done
        row["target.reached_at_update"] = row["updates"] if share <= 1 else None
        for column in ("energy_j.by_phase.train", "duration_by_phase_s.train"):
            row[column] *= row["updates"] / UPDATES
    return rows


def add_accuracies(
    rows: Rows, rng: np.random.Generator, accuracy: Callable[[dict[str, Any]], float], noise: float
) -> Rows:
    """Gives each run a validation and a test accuracy.

    Args:
        rows: of any runs.
        rng: draws.
        accuracy: a run's true accuracy in per cent.
        noise: in points: half of it is the run's own and shared by both, half is each one's.
    """
    for row in rows:
        own = accuracy(row) + rng.normal(0, noise / math.sqrt(2))
        for split in ("validation", "test"):
            value = own + rng.normal(0, noise / math.sqrt(2))
            row[f"final.{split}_accuracy"] = value / 100
    return rows
