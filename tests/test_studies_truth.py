"""The studies' analyses on runs of known truth: 1,000 seeded repetitions of each scenario.

A true null is rejected in at most 7 %, a stated effect at a stated number of seeds is found with
the stated power. Each scenario runs the study's own statements through the judging that a user
gets, Holm's correction over all of its statements included.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import known_truth as truth
import numpy as np
import pytest

from jaxenergy.studies import STUDIES, Table, judge
from jaxenergy.studies.core import REFUTED, SUPPORTED
from jaxenergy.studies.table import ACCURACY, ENERGY, FLOPS, TIME, Quantity

REPETITIONS = 1000
MOST_FALSE = 0.07

Rng = np.random.Generator


Verdicts = dict[int, tuple[str, float, float]]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is true, and how often the study has to say so.

    Attributes:
        study: its name.
        what: the truth and the number of seeds, in words.
        make: the rows of a repetition.
        verdicts: for statements by number: a verdict, and how often at least and at most it may be
            given.
        quantity: what the statements are asked of.
    """

    study: str
    what: str
    make: Callable[[Rng], list[dict[str, Any]]]
    verdicts: Verdicts
    quantity: Quantity = ENERGY


def never(verdict: str) -> tuple[str, float, float]:
    """A verdict that would be false: at most 7 %."""
    return verdict, 0.0, MOST_FALSE


def found(power: float, verdict: str = SUPPORTED) -> tuple[str, float, float]:
    """A verdict that is true, and with which power it is given."""
    return verdict, power, 1.0


# depth -------------------------------------------------------------------------------------------


def depths(per_doubling: float):
    cells = [{"depth": d, "width": 64, "parameters": 1000 * d} for d in (2, 4, 8)]
    cells += [{"depth": d, "width": w, "parameters": 4000} for d, w in ((2, 90), (8, 45))]
    energy = [math.log(per_doubling) * math.log2(cell["depth"]) for cell in cells]
    return lambda rng: truth.make_runs(rng, cells, 4, energy=energy)


# activation, optimizer ---------------------------------------------------------------------------


def activations(relu: float, needed: float = 1.0):
    cells = [{"activation": name} for name in ("elu", "gelu", "relu", "tanh")]
    is_relu = np.array([cell["activation"] == "relu" for cell in cells])
    energy = np.where(is_relu, math.log(relu), 0.0)
    share = math.log(0.4) + np.where(is_relu, math.log(needed), 0.0)
    return lambda rng: truth.make_reaching(rng, cells, 5, energy=energy, needed=share)


def optimizers(update: float, needed: float, points: float = 0.0, seeds: int = 5):
    cells = [
        {"optimizer": name, "learning_rate": rate, "updates": truth.UPDATES}
        for name in ("sgd", "adam")
        for rate in (0.01, 0.1, 1.0)
    ]
    adam = np.array([cell["optimizer"] == "adam" for cell in cells])
    best = np.array([cell["learning_rate"] == 0.1 for cell in cells])
    energy = np.where(adam, math.log(update), 0.0)
    share = math.log(0.25) + np.where(adam, math.log(needed), 0.0) + np.where(best, 0, math.log(2))

    def make(rng: Rng):
        rows = truth.make_reaching(rng, cells, seeds, energy=energy, needed=share)
        return truth.add_accuracies(
            rows, rng, lambda row: 90 + points * (row["config.optimizer"] == "adam"), 0.3
        )

    return make


def groups_apart(apart: float, noise: float, seeds: int = 3, n: int = 12):
    """Set-ups of growing cost: every other takes more power, every other pair more time a FLOP."""
    flops = [truth.FLOPS * 2 ** (k / 2) for k in range(n)]
    cells = [{"width": k, "compiled.flops_per_update": flops[k]} for k in range(n)]
    time = np.log(flops) + apart * (np.arange(n) // 2 % 2)
    energy = time + apart * (np.arange(n) % 2)
    return lambda rng: truth.make_runs(rng, cells, seeds, energy=energy, time=time, noise=noise)


# iterations --------------------------------------------------------------------------------------


def lengths(exponent: float, start: float = 500.0, seeds: int = 5):
    def make(rng: Rng):
        levels = truth.draw_levels(rng, seeds)
        rows = []
        for seed in range(seeds):
            for updates in (500, 1000, 2000, 4000):
                grown = 1000 * (updates / 1000) ** exponent
                joules = (start + grown) * math.exp(levels[seed] + rng.normal(0, 0.01))
                row = truth.make_row({}, seed, joules, joules)
                # The first run of a length compiles; the others find its program in the cache.
                compiling = 300.0 if seed == 0 else 5.0
                row |= {"iterations": updates, "updates": updates}
                row |= {"energy_j.total": joules + compiling}
                row["energy_j.by_phase.compile"] = compiling
                rows.append(row)
        return rows

    return make


# set-ups of different size -----------------------------------------------------------------------

SIZES = [10_000 * 2**k for k in range(12)]


def setups(
    slope: float = 0.0,
    own: float = 0.02,
    *,
    power_own: float = 0.0,
    time_slope: float = 1.0,
    bytes_slope: float | None = None,
    seeds: int = 3,
    n: int = 12,
):
    """Set-ups whose cost follows parameters, FLOPs or bytes, with a part of their own."""

    def make(rng: Rng):
        cells = [
            {
                "width": k,
                "parameters": SIZES[k],
                "compiled.flops_per_update": truth.FLOPS * 2**k * math.exp(rng.normal(0, 0.5)),
                "compiled.bytes_per_update": 1e8 * 2**k * math.exp(rng.normal(0, 0.5)),
            }
            for k in range(n)
        ]
        size = np.log(SIZES[:n])
        energy = slope * (size - size[0]) + rng.normal(0, own, n)
        if bytes_slope is not None:
            moved = np.log([cell["compiled.bytes_per_update"] / 1e8 for cell in cells])
            counted = np.log([cell["compiled.flops_per_update"] / truth.FLOPS for cell in cells])
            energy = bytes_slope * moved + (1 - bytes_slope) * counted + rng.normal(0, own, n)
        time = energy / time_slope - rng.normal(0, power_own, n)
        return truth.make_runs(rng, cells, seeds, energy=energy, time=time, noise=0.01)

    return make


def compiled(updates: float, families: int = 3):
    """Programs whose compiling is 1 % after so many updates."""

    def make(rng: Rng):
        cells = [{"model": f"family{i}"} for i in range(families)]
        rows = truth.make_runs(rng, cells, 4, energy=[0.0] * families)
        for row in rows:
            per_update = row["per_update_j.mean"]
            row["compiled.cache_hit"] = False
            row["compiled.compile_j"] = updates / 99 * per_update * math.exp(rng.normal(0, 0.1))
        return rows

    return make


# learning rate and batch size --------------------------------------------------------------------


def rates(needed: list[float], seeds: int = 6):
    cells = [{"learning_rate": 10.0**-k} for k in range(len(needed))]
    share = [math.log(0.3 * factor) for factor in needed]
    return lambda rng: truth.make_reaching(
        rng, cells, seeds, energy=[0.0] * len(cells), needed=share
    )


def batches(per_example: list[float], needed: list[float], seeds: int = 6):
    sizes = [16 * 4**k for k in range(len(per_example))]
    cells = [{"batch_size": size, "learning_rate": 0.1} for size in sizes]
    energy = [math.log(cost * size / 16) for cost, size in zip(per_example, sizes, strict=True)]
    # Cost to the accuracy is updates times cost per update: `needed` is the cost's own factor.
    share = [math.log(0.3 * f) - e for f, e in zip(needed, energy, strict=True)]
    return lambda rng: truth.make_reaching(
        rng, cells, seeds, energy=energy, needed=share, reach=0.1
    )


def grid(worst: float, seeds: int = 6):
    """A grid of equal set-ups but for one that needs several times as much."""
    cells = [{"learning_rate": r, "batch_size": b} for r in (0.01, 0.1, 1.0) for b in (16, 64)]
    share = np.full(len(cells), math.log(0.05))
    share[0] += math.log(worst)
    return lambda rng: truth.make_reaching(rng, cells, seeds, energy=[0.0] * 6, needed=share)


# energy against accuracy -------------------------------------------------------------------------


def tradeoffs(gains: list[float], costs: list[float], seeds: int = 5, noise: float = 0.5):
    cells = [{"width": k} for k in range(len(costs))]

    def make(rng: Rng):
        rows = truth.make_runs(rng, cells, seeds, energy=np.log(costs))
        return truth.add_accuracies(rows, rng, lambda row: gains[row["config.width"]], noise)

    return make


# pretraining -------------------------------------------------------------------------------------


def pretrained(tuned: float, head: float, last: float, source: float, seeds: int = 5):
    """Ways to an accuracy and a pretraining, in costs of training from scratch."""
    ways = {"scratch": 1.0, "all": tuned, "head": head, "last:2": last}
    cells: list[dict[str, Any]] = [{"init_from": None, "trainable": "all", "learning_rate": 0.1}]
    share = [math.log(0.1 * source)]
    for way, cost in ways.items():
        for rate, worse in ((0.1, 1.0), (1.0, 2.0)):
            cell: dict[str, Any] = {"learning_rate": rate, "init_from": None, "trainable": "all"}
            if way != "scratch":
                cell |= {"init_from": "setup:0123456789", "trainable": way}
            cells.append(cell)
            share.append(math.log(0.1 * cost * worse))

    def make(rng: Rng):
        rows = truth.make_reaching(rng, cells, seeds, energy=[0.0] * len(cells), needed=share)
        for row in rows[:: len(cells)]:  # the sources ran for a fixed number of updates
            row |= {"target.accuracy": None, "target.reached_at_update": None}
        return rows

    return make


# inference ---------------------------------------------------------------------------------------


def predictions(falls: list[float], half: float = 0.6, training: float = 3.0, seeds: int = 4):
    """Networks whose predictions cost by batch size and precision as told.

    Args:
        falls: joules of a prediction by batch size, from the smallest, over the largest's.
        half: the cost in bfloat16 over that in float32.
        training: that of an example in training over that of a prediction in the largest batch.
        seeds: how many networks.
    """

    def make(rng: Rng):
        rows = []
        for seed, level in enumerate(truth.draw_levels(rng, seeds)):
            each = 1e-4 * math.exp(level)
            total = 1000 * training * each * math.exp(rng.normal(0, 0.03))
            run = truth.make_row({}, seed, total / truth.UPDATES, 1.0) | {"examples": 1000}
            for k, factor in enumerate(falls):
                for precision, less in (("float32", 1.0), ("bfloat16", half)):
                    joules = each * factor * less * math.exp(rng.normal(0, 0.03))
                    case = {"batch_size": 8**k, "precision": precision, "per_prediction_j": joules}
                    rows.append(run | {f"inference.{name}": case[name] for name in case})
        return rows

    return make


# instrument, hardware ----------------------------------------------------------------------------


def probes(
    *, drift: float = 1.0, square: float = 1.0, zeros: float = 0.8, counter: float = 1.0, rounds=10
):
    """Rounds of watts: drift of idle, errors of square load and counter, watts on zeros."""

    def make(rng: Rng):
        rows = []
        for k in range(rounds):
            late = math.log(drift) if k >= rounds // 2 else 0.0
            watts = {"idle": 40 * math.exp(late), "random": 200.0, "zeros": 200 * zeros}
            watts["square"] = square * (0.5 * watts["random"] + 0.5 * watts["idle"])
            for probe, value in watts.items():
                told = value * math.exp(rng.normal(0, 0.02))
                rows.append(
                    {
                        "state": "completed",
                        "provenance": "measured",
                        "probe": probe,
                        "round": k,
                        "power_w": told,
                        "duty": 0.5,
                        "counter_j": told * counter,
                        "integral_j": told * math.exp(rng.normal(0, 0.01)),
                    }
                )
        return rows

    return make


def machines(magnitude: float, places: float, order: float, n: int = 3, cells: int = 10):
    """Machines of their own magnitude, on which set-ups change places, from a common order."""

    def make(rng: Rng):
        common = rng.normal(0, order, cells)
        levels = rng.normal(0, magnitude, n)
        rows = []
        for m in range(n):
            own = common + levels[m] + rng.normal(0, places, cells)
            for i in range(cells):
                joules = truth.JOULES * math.exp(own[i])
                row = truth.make_row({"width": i}, 0, joules, joules)
                row["machine"] = f"machine {m}"
                rows.append(row)
        return rows

    return make


# several tasks, equal computation -----------------------------------------------------------------

TASKS = "digits:tasks=class+parity"


def several_tasks(shared: float, points: float = 0.0, seeds: int = 5):
    """A network of two tasks needs so many times what that of one needs at the best of two rates.

    In the second task its accuracy is other by some points.
    """
    cells = [
        {"dataset": name, "learning_rate": rate}
        for name in (TASKS, "digits", "digits:tasks=parity")
        for rate in (0.01, 0.1)
    ]
    share = [
        math.log(
            0.2
            * (shared if cell["dataset"] == TASKS else 1)
            * (1.5 if cell["learning_rate"] < 0.1 else 1)
        )
        for cell in cells
    ]

    def make(rng: Rng):
        rows = truth.make_reaching(rng, cells, seeds, energy=[0.0] * len(cells), needed=share)
        rows = truth.add_accuracies(rows, rng, lambda row: 97.0, 0.3)
        for row in rows:
            if row["config.dataset"] == TASKS:
                own = rng.normal(0.97, 0.003, 2)
                row["final.test_accuracy_by_task.class"] = own[0]
                row["final.test_accuracy_by_task.parity"] = own[1] + points / 100
        return rows

    return make


def equal_computation(
    by_computation: float, by_width: float = 0.0, beside: float = 1.0, seeds: int = 4
):
    """Three widths at each of three computations.

    Args:
        by_computation: the loss's exponent in the computation.
        by_width: and in the width, at equal computation.
        beside: the loss of the widths beside the middle one, over its.
        seeds: how many.
    """
    cells, logs = [], []
    for computation in (1e12, 3e12, 9e12):
        for width in (16, 32, 64):
            updates = round(computation / (truth.FLOPS * (width / 16) ** 1.5))
            cells.append({"width": width, "updates": updates})
            logs.append(
                by_computation * math.log(computation / 1e12)
                + by_width * math.log(width / 32)
                + (math.log(beside) if width != 32 else 0.0)
            )

    def make(rng: Rng):
        rows = []
        for seed, level in enumerate(truth.draw_levels(rng, seeds)):
            for cell, log_loss in zip(cells, logs, strict=True):
                flops = truth.FLOPS * (cell["width"] / 16) ** 1.5
                row = truth.make_row(cell, seed, flops * 1e-9, flops * 1e-11)
                row["compiled.flops_per_update"] = flops
                joules = flops * cell["updates"] * 1e-9 * math.exp(level + rng.normal(0, 0.03))
                row["energy_j.by_phase.train"] = joules
                for split in ("validation", "test"):
                    row[f"final.{split}_loss"] = 2 * math.exp(log_loss + rng.normal(0, 0.015))
                rows.append(row)
        return rows

    return make


SCENARIOS = [
    Scenario(
        "multitask",
        "as much as two networks, 5 seeds",
        several_tasks(2.0),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "multitask",
        "as much as one network, 5 seeds",
        several_tasks(1.0),
        {0: found(0.9)},
    ),
    Scenario(
        "multitask",
        "2 % less than two networks, which is negligible",
        several_tasks(2.0 * 0.98),
        {0: never(REFUTED)},
    ),
    Scenario(
        "multitask",
        "four times as much as one network, 5 seeds",
        several_tasks(4.0),
        {0: found(0.9, REFUTED)},
    ),
    Scenario(
        "multitask",
        "it needs six times as much and mostly does not arrive",
        several_tasks(6.0),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "multitask",
        "one point less in one task, which is worse",
        several_tasks(1.0, -1.0),
        {1: never(SUPPORTED)},
        ACCURACY,
    ),
    Scenario(
        "multitask",
        "nearly a point less in one task, which is no worse",
        several_tasks(1.0, -0.99),
        {1: never(REFUTED)},
        ACCURACY,
    ),
    Scenario(
        "multitask",
        "equal accuracies, 5 seeds",
        several_tasks(1.0),
        {1: found(0.8)},
        ACCURACY,
    ),
    Scenario(
        "multitask",
        "three points less in one task, 5 seeds",
        several_tasks(1.0, -3.0),
        {1: found(0.8, REFUTED)},
        ACCURACY,
    ),
    Scenario(
        "compute",
        "computation alone counts, 4 seeds",
        equal_computation(-0.15),
        {0: found(0.9), 1: found(0.9), 2: found(0.9)},
        FLOPS,
    ),
    Scenario(
        "compute",
        "nothing counts, 4 seeds",
        equal_computation(0.0),
        {0: never(SUPPORTED), 1: never(SUPPORTED)},
        FLOPS,
    ),
    Scenario(
        "compute",
        "width at equal computation counts as much, 4 seeds",
        # Variances over the grid are as exponent times logarithmic range, squared.
        equal_computation(-0.15, 0.15 * math.log(3) / math.log(2)),
        {1: never(SUPPORTED)},
        FLOPS,
    ),
    Scenario(
        "compute",
        "widths beside the best come to losses 10 % higher, 4 seeds",
        equal_computation(-0.15, beside=1.10),
        {2: never(SUPPORTED)},
        FLOPS,
    ),
    Scenario(
        "compute",
        "widths beside the best come to losses nearly 10 % higher, 4 seeds",
        equal_computation(-0.15, beside=1.099),
        {2: never(REFUTED)},
        FLOPS,
    ),
    Scenario(
        "compute",
        "width counts and computation does not, 4 seeds",
        equal_computation(0.0, -0.4),
        {0: never(SUPPORTED), 1: found(0.9, REFUTED), 2: found(0.9, REFUTED)},
        FLOPS,
    ),
    Scenario(
        "compute",
        "joules follow computation, which alone counts, 4 seeds",
        equal_computation(-0.15),
        {1: found(0.9)},
    ),
    Scenario(
        "depth",
        "no trend, 4 seeds",
        depths(1.0),
        {0: never(SUPPORTED), 1: never(SUPPORTED)},
    ),
    Scenario(
        "depth",
        "10 % per doubling, 4 seeds",
        depths(1.10),
        {0: found(0.9), 1: found(0.9)},
    ),
    Scenario(
        "depth",
        "3 % per doubling, which is not negligible",
        depths(1.031),
        {0: never(REFUTED), 1: never(REFUTED)},
    ),
    Scenario("depth", "10 % less per doubling, 4 seeds", depths(0.9), {0: found(0.9, REFUTED)}),
    Scenario(
        "activation",
        "all alike, 5 seeds",
        activations(1.0),
        {0: never(SUPPORTED), 1: never(SUPPORTED), 2: never(SUPPORTED)},
    ),
    Scenario(
        "activation",
        "ReLU 2 % dearer with little scatter, 5 seeds",
        lambda rng: truth.make_runs(
            rng,
            [{"activation": name} for name in ("elu", "gelu", "relu", "tanh")],
            5,
            energy=[0.0, 0.0, math.log(1.02), 0.0],
            noise=0.003,
        ),
        {0: never(SUPPORTED), 1: found(0.9, REFUTED)},
    ),
    Scenario(
        "activation",
        "ReLU 15 % dearer per update and twice as dear to the accuracy, 5 seeds",
        activations(1.15, 2.0),
        {0: found(0.9), 1: found(0.8), 2: found(0.9)},
    ),
    Scenario(
        "activation",
        "ReLU 3 % dearer, which is not equivalent",
        activations(1.031),
        {0: never(REFUTED), 1: never(REFUTED)},
    ),
    Scenario(
        "activation",
        "ReLU 15 % cheaper, 5 seeds",
        activations(0.85),
        {0: found(0.9), 1: found(0.8, REFUTED)},
    ),
    Scenario(
        "optimizer",
        "SGD and Adam alike, 5 seeds",
        optimizers(1.0, 1.0),
        {0: never(SUPPORTED), 1: never(SUPPORTED), 2: never(SUPPORTED)},
    ),
    Scenario(
        "optimizer",
        "an update of Adam 20 % dearer and so to the accuracy, 5 seeds",
        optimizers(1.2, 1.0),
        {0: found(0.9), 2: never(SUPPORTED)},
    ),
    Scenario(
        "optimizer",
        "Adam needs twice the updates, 5 seeds",
        optimizers(1.0, 2.0),
        {1: found(0.8), 2: found(0.8)},
    ),
    Scenario(
        "optimizer",
        "Adam 10 % dearer per update with half the updates, 5 seeds",
        optimizers(1.1, 0.5),
        {1: found(0.8, REFUTED), 2: found(0.8)},
    ),
    Scenario(
        "optimizer",
        "test accuracies one point apart, which is not the same",
        optimizers(1.0, 1.0, 1.01),
        {3: never(SUPPORTED)},
        ACCURACY,
    ),
    Scenario(
        "optimizer",
        "equal test accuracies, 5 seeds",
        optimizers(1.0, 1.0),
        {3: found(0.6)},
        ACCURACY,
    ),
    Scenario(
        "iterations",
        "a straight line, 5 seeds",
        lengths(1.0),
        {0: never(REFUTED)},
    ),
    Scenario(
        "iterations",
        "a straight line with a start of 500 iterations, 5 seeds",
        lengths(1.0),
        {0: found(0.9), 1: found(0.9)},
    ),
    Scenario(
        "iterations",
        "no start-up cost, 5 seeds",
        lengths(1.0, 0.0),
        {1: never(SUPPORTED)},
    ),
    Scenario(
        "iterations",
        "cost as iterations^1.25, 5 seeds",
        lengths(1.25),
        {0: found(0.9, REFUTED)},
    ),
    Scenario(
        "per_update",
        "constant, 12 set-ups that scatter by 10 %",
        setups(0.0, 0.1),
        {0: never(REFUTED)},
    ),
    Scenario(
        "per_update",
        "as parameters, 12 set-ups that scatter by 10 %",
        setups(1.0, 0.1),
        {0: found(0.9, REFUTED), 1: found(0.9)},
    ),
    Scenario("per_update", "slope at the margin", setups(0.1), {0: never(SUPPORTED)}),
    Scenario(
        "per_update",
        "slope at the margin of the other reading",
        setups(1.1),
        {1: never(SUPPORTED)},
    ),
    Scenario("per_update", "constant, 12 set-ups", setups(0.0, 0.1), {0: found(0.9)}),
    Scenario(
        "per_update",
        "as parameters^0.6, 12 set-ups that scatter by 20 %",
        setups(0.6, 0.2),
        {0: found(0.9, REFUTED), 1: found(0.9, REFUTED)},
    ),
    Scenario(
        "batch_size",
        "flat in every way, 6 seeds",
        batches([1] * 5, [1] * 5),
        {0: never(SUPPORTED), 2: never(SUPPORTED), 3: never(SUPPORTED)},
    ),
    Scenario(
        "batch_size",
        "falling, a plateau, a U, two optima, 6 seeds",
        batches([4, 2, 1.2, 1, 1], [3, 2, 1, 2, 3]),
        {0: found(0.9), 1: found(0.9), 2: found(0.9), 3: found(0.9)},
    ),
    Scenario(
        "batch_size",
        "falling without a plateau, to the accuracy too, 6 seeds",
        batches([3, 2.4, 1.9, 1.5, 1.19], [3, 2, 1.5, 1.2, 1]),
        {1: never(SUPPORTED), 2: never(SUPPORTED)},
    ),
    Scenario(
        "batch_size",
        "one optimum, 6 seeds",
        batches([4, 2, 1, 1.2, 1.4], [4, 2, 1, 2, 3]),
        {3: never(SUPPORTED)},
    ),
    Scenario("learning_rate", "flat, 6 seeds", rates([1, 1, 1, 1, 1]), {0: never(SUPPORTED)}),
    Scenario(
        "learning_rate",
        "ends at twice the best, 6 seeds",
        rates([2, 1.3, 1, 1.3, 2]),
        {0: found(0.9)},
    ),
    Scenario(
        "learning_rate",
        "falling to a plateau, 6 seeds",
        rates([3, 2, 1.2, 1, 1]),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "learning_rate",
        "one end never reaches it, 6 seeds",
        rates([6, 1.3, 1, 1.3, 2]),
        {0: found(0.9)},
    ),
    Scenario(
        "learning_rate",
        "only rising, 6 seeds",
        rates([1, 1.5, 2, 3, 4]),
        {0: found(0.9, REFUTED)},
    ),
    Scenario(
        "five_times",
        "all equal, 6 seeds",
        grid(1.0),
        {0: found(0.9, REFUTED), 1: never(SUPPORTED)},
    ),
    Scenario("five_times", "exactly five times, 6 seeds", grid(5.0), {0: never(SUPPORTED)}),
    Scenario("five_times", "at least five times, 6 seeds", grid(5.0), {0: never(REFUTED)}),
    Scenario("five_times", "twelve times, 6 seeds", grid(12.0), {0: found(0.8), 1: found(0.9)}),
    Scenario(
        "time_is_not_energy",
        "constant power, 3 seeds",
        setups(0.8, 0.1),
        {0: never(SUPPORTED), 1: never(SUPPORTED)},
    ),
    Scenario(
        "time_is_not_energy",
        "energy as time^1.2, 3 seeds",
        setups(0.8, 0.1, time_slope=1.2),
        {0: found(0.9)},
    ),
    Scenario(
        "time_is_not_energy",
        "powers and times per FLOP in two groups 2 % apart, with little scatter, 3 seeds",
        groups_apart(0.02, noise=0.002),
        {1: never(SUPPORTED)},
    ),
    Scenario(
        "time_is_not_energy",
        "times per FLOP in two groups 2 % apart, with little scatter, 3 seeds",
        groups_apart(0.02, noise=0.002),
        {2: never(SUPPORTED)},
        TIME,
    ),
    Scenario(
        "time_is_not_energy",
        "set-ups whose power differs by 10 %, 3 seeds",
        setups(0.8, 0.1, power_own=0.1),
        {1: found(0.9)},
    ),
    Scenario(
        "time_is_not_energy",
        "the same time per FLOP, 3 seeds",
        setups(bytes_slope=0.0, own=0.0),
        {2: never(SUPPORTED)},
        TIME,
    ),
    Scenario(
        "time_is_not_energy",
        "times per FLOP that differ by 10 %, 3 seeds",
        setups(bytes_slope=0.0, own=0.1),
        {2: found(0.9)},
        TIME,
    ),
    Scenario(
        "flops",
        "FLOPs predict to 20 %, bytes tell nothing more, 12 set-ups",
        setups(bytes_slope=0.0, own=0.18),
        {0: never(SUPPORTED), 1: never(SUPPORTED)},
    ),
    Scenario(
        "flops",
        "set-ups have costs of their own, 12 of them",
        setups(bytes_slope=0.0, own=0.8),
        {0: found(0.8)},
    ),
    Scenario(
        "flops",
        "bytes are all that counts, 12 set-ups",
        setups(bytes_slope=1.0, own=0.1),
        {1: found(0.8)},
    ),
    Scenario(
        "compile",
        "10,000 updates in every family, 4 seeds",
        compiled(10_000),
        {0: never(SUPPORTED)},
    ),
    Scenario("compile", "5,000 updates, 4 seeds", compiled(5_000), {0: found(0.8)}),
    Scenario("compile", "20,000 updates, 4 seeds", compiled(20_000), {0: found(0.8, REFUTED)}),
    Scenario(
        "tradeoff",
        "accuracies alike, 5 seeds",
        tradeoffs([90] * 6, [1, 2, 4, 6, 8, 10]),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "tradeoff",
        "a bent front of 16 points, 5 seeds",
        tradeoffs([80, 88, 92, 95, 96], [1, 2, 4, 8, 16]),
        {0: found(0.9), 1: found(0.9)},
    ),
    Scenario(
        "tradeoff",
        "a straight front, 5 seeds",
        tradeoffs([80, 84, 88, 92, 96], [1, 2, 3, 4, 5]),
        {1: never(SUPPORTED)},
    ),
    Scenario(
        "tradeoff",
        "accuracies alike to 0.2 points, 5 seeds",
        tradeoffs([90] * 6, [1, 2, 4, 6, 8, 10], noise=0.2),
        {0: found(0.8, REFUTED)},
    ),
    Scenario(
        "pretraining",
        "tuning costs what training from scratch does, 5 seeds",
        pretrained(1.0, 1.0, 1.0, 2.0),
        {0: never(SUPPORTED), 1: never(SUPPORTED), 2: never(SUPPORTED), 4: never(SUPPORTED)},
    ),
    Scenario(
        "pretraining",
        "tuning saves half and more, pretraining costs 1.5 trainings, 5 seeds",
        pretrained(0.4, 0.5, 0.45, 1.5),
        {0: found(0.8), 1: found(0.8), 2: found(0.8), 3: found(0.8), 4: found(0.7)},
    ),
    Scenario(
        "pretraining",
        "one use costs exactly the same, 5 seeds",
        pretrained(0.5, 0.5, 0.5, 0.5),
        {3: never(SUPPORTED)},
    ),
    Scenario(
        "pretraining",
        "exactly ten reuses pay, 5 seeds",
        pretrained(0.8, 0.5, 0.5, 2.0),
        {4: never(SUPPORTED)},
    ),
    Scenario(
        "pretraining",
        "the head alone takes twice as much, 5 seeds",
        pretrained(0.4, 2.0, 2.0, 1.5),
        {1: found(0.8, REFUTED), 2: found(0.8, REFUTED)},
    ),
    Scenario(
        "inference",
        "neither batch size nor precision matters, a trained example costs a prediction, 4 seeds",
        predictions([1.0] * 4, half=1.0, training=1.0),
        {0: never(SUPPORTED), 2: never(SUPPORTED), 3: never(SUPPORTED), 4: never(SUPPORTED)},
    ),
    Scenario(
        "inference",
        "batches save to a plateau, bfloat16 saves 40 %, a trained example costs 3, 4 seeds",
        predictions([20.0, 4.0, 1.1, 1.0]),
        {0: found(0.9), 1: found(0.9), 2: found(0.9), 3: found(0.9), 4: found(0.9)},
    ),
    Scenario(
        "inference",
        "the last doublings still save 9.1 % each, 4 seeds",
        predictions([4.0, 2.5, 1.1**3 * 1.001, 1.0]),
        {1: never(SUPPORTED)},
    ),
    Scenario(
        "inference",
        "bfloat16 costs twice as much, predictions are cheap, 4 seeds",
        predictions([1.0] * 4, half=2.0, training=3.0),
        {0: found(0.6, REFUTED), 2: found(0.9, REFUTED), 3: found(0.9, REFUTED)},
    ),
    Scenario(
        "instrument",
        "all off by the margin, zeros like random numbers, 10 rounds",
        probes(drift=1.101, square=1.051, zeros=1.0, counter=1.051),
        {0: never(SUPPORTED), 1: never(SUPPORTED), 2: never(SUPPORTED), 3: never(SUPPORTED)},
    ),
    Scenario(
        "instrument",
        "all is well, zeros take 20 % less, 10 rounds",
        probes(),
        {0: found(0.9), 1: found(0.9), 2: found(0.9), 3: found(0.9)},
    ),
    Scenario(
        "instrument",
        "all is well, 10 rounds",
        probes(),
        {0: never(REFUTED), 1: never(REFUTED), 3: never(REFUTED)},
    ),
    Scenario(
        "instrument",
        "counter and square load off by 15 %, 10 rounds",
        probes(counter=1.15, square=1.15),
        {1: found(0.9, REFUTED), 3: found(0.9, REFUTED)},
    ),
    Scenario(
        "hardware",
        "no magnitude of their own, 3 machines",
        machines(0.0, 0.2, 1.0),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "hardware",
        "twice and more, one order, 3 machines",
        machines(0.7, 0.1, 1.0),
        {0: found(0.9), 1: found(0.9)},
    ),
    Scenario(
        "hardware",
        "machines differ no more than set-ups change places, 20 set-ups",
        machines(0.2, 0.2, 1.0, 3, 20),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "hardware",
        "machines differ less than set-ups change places, 4 machines of 20 set-ups",
        machines(0.1, 0.2, 1.0, 4, 20),
        {0: never(SUPPORTED)},
    ),
    Scenario(
        "hardware",
        "no common order, 3 machines",
        machines(1.0, 1.0, 0.0),
        {1: never(SUPPORTED)},
    ),
    Scenario(
        "hardware",
        "no common order, 2 machines",
        machines(1.0, 1.0, 0.0, 2),
        {1: never(SUPPORTED)},
    ),
    Scenario(
        "hardware",
        "no common order at all, 3 machines",
        machines(0.7, 1.0, 0.0),
        {1: found(0.6, REFUTED)},
    ),
]


def _parameters():
    """The first two scenarios of each study, one of them a null; the others are slow together."""
    seen: dict[str, int] = {}
    for scenario in SCENARIOS:
        seen[scenario.study] = seen.get(scenario.study, 0) + 1
        yield pytest.param(
            scenario,
            id=f"{scenario.study}: {scenario.what}",
            marks=() if seen[scenario.study] <= 2 else pytest.mark.slow,
        )


@pytest.mark.parametrize("scenario", list(_parameters()))
def test_known_truth(scenario):
    given = count_verdicts(scenario, REPETITIONS)
    for number, (verdict, least, most) in scenario.verdicts.items():
        share = given[number].get(verdict, 0) / REPETITIONS
        assert least <= share <= most, f"statement {number} was {verdict} in {share:.1%}"


def count_verdicts(scenario: Scenario, repetitions: int) -> dict[int, dict[str, int]]:
    """How often each verdict was given on each statement of a scenario's study."""
    study = STUDIES[scenario.study]
    asked = {
        number: dataclasses.replace(statement, quantities=(scenario.quantity,))
        for number, statement in enumerate(study.statements)
        if scenario.quantity in statement.quantities
    }
    study = dataclasses.replace(study, statements=tuple(asked.values()))
    rng = np.random.default_rng(list(f"{scenario.study} {scenario.what}".encode()))
    given: dict[int, dict[str, int]] = {number: {} for number in asked}
    for _ in range(repetitions):
        verdicts = judge(study, Table(scenario.make(rng)))
        for number, verdict in zip(asked, verdicts, strict=True):
            given[number][verdict.verdict] = given[number].get(verdict.verdict, 0) + 1
    return given


def test_every_statement_has_a_null_and_an_effect():
    for name in STUDIES:
        mine = [scenario for scenario in SCENARIOS if scenario.study == name]
        for number in range(len(STUDIES[name].statements)):
            bounds = [s.verdicts[number] for s in mine if number in s.verdicts]
            assert any(most == MOST_FALSE for _, _, most in bounds), (name, number)
            assert any(least >= 0.6 for _, least, _ in bounds), (name, number)
