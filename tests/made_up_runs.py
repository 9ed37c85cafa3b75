"""Run folders, and documents beside them, as runs, studies, sweeps and comparisons leave them.

Made up in milliseconds, for the tests and the benchmark of reports: their joules mean nothing, and
say `measured` only where a test is about that.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPTIMIZERS = ("sgd", "adam", "adamw", "lion")
ACTIVATIONS = ("relu", "gelu", "tanh", "swish", "elu")
DEPTHS = (2, 4, 6, 8)


def make_runs(root: Path, count: int, windows: int = 40, evaluations: int = 20) -> None:
    """Writes folders as runs leave them.

    Args:
        root: where.
        count: how many.
        windows: windows of training of each.
        evaluations: evaluations of each.
    """
    rng = random.Random(0)
    for number in range(count):
        optimizer = OPTIMIZERS[number % 4]
        activation = ACTIVATIONS[number // 4 % 5]
        depth = DEPTHS[number // 20 % 4]
        update_j = 0.5 * depth * (1 + 0.07 * (optimizer != "sgd")) * rng.lognormvariate(0, 0.05)
        make_run(
            root / f"run-{number:05d}",
            optimizer=optimizer,
            activation=activation,
            depth=depth,
            seed=number // 80,
            update_j=update_j,
            accuracy=min(0.99, rng.betavariate(20, 4) + 0.01 * depth),
            windows=windows,
            evaluations=evaluations,
        )


def make_run(
    folder: Path,
    *,
    optimizer: str = "sgd",
    activation: str = "relu",
    depth: int = 2,
    seed: int = 0,
    update_j: float = 1.0,
    accuracy: float = 0.9,
    windows: int = 40,
    evaluations: int = 20,
    updates_per_window: int = 20,
    compile_j: float | None = None,
    provenance: str = "simulated",
    domains: Sequence[str] = ("gpu:0",),
    device: str = "a made-up GPU",
    jaxlib: str = "0.9.9",
    digest: str = "sha256:0123456789abcdef",
    forms: Sequence[str] = (),
    status: str = "completed",
    why: str = "",
) -> None:
    """Writes one folder; its energies add up as those of a real run do.

    Args:
        folder: where.
        optimizer: of the config; as are `activation`, `depth` and `seed`.
        activation: see `optimizer`.
        depth: see `optimizer`.
        seed: see `optimizer`.
        update_j: joules of an update, in all domains.
        accuracy: the last on validation.
        windows: of training.
        evaluations: lines of metrics.
        updates_per_window: updates of a window.
        compile_j: joules of compiling; those of 60 updates by default.
        provenance: of the joules.
        domains: the counted ones; the first takes three quarters.
        device: what it computed on.
        jaxlib: the version of the compiler.
        digest: of the data set.
        forms: those in use.
        status: of the summary; none is written for the empty one.
        why: the reason of a failure.
    """
    folder.mkdir(parents=True)
    updates = windows * updates_per_window
    window_j, window_ns = updates_per_window * update_j, 200_000_000
    rng = random.Random(f"{optimizer} {activation} {depth} {seed}")
    lines, time_ns = [], 5_000_000_000
    totals: dict[str, float] = {}
    shares = {domains[0]: 1.0}
    if len(domains) > 1:
        shares = {domains[0]: 0.75} | {name: 0.25 / (len(domains) - 1) for name in domains[1:]}

    def line(phase: str, joules: float, duration_ns: int, **counts: int) -> None:
        nonlocal time_ns
        lines.append(
            {
                "phase": phase,
                "attempt": 0,
                "boot_id": "made-up",
                "wall_time": "2026-01-01T00:00:00.000+00:00",
                "start_ns": time_ns,
                "end_ns": time_ns + duration_ns,
                **{"first_update": None, "updates": 0, "iterations": 0, "examples": 0, **counts},
                "steady": True,
                "fenced": True,
                "energy_j": {name: joules * share for name, share in shares.items()},
                "uncertainty_j": dict.fromkeys(shares, 0.02 * update_j),
                "provenance": dict.fromkeys(shares, provenance),
                "why": {},
                "ticks_ns": {
                    domains[0]: list(range(30_000_000, min(duration_ns, 10**9), 100_000_000))
                },
            }
        )
        time_ns += duration_ns
        totals[phase] = totals.get(phase, 0.0) + joules

    line("input", 4.0 * update_j, 50_000_000)
    compile_j = 60.0 * update_j if compile_j is None else compile_j
    line("compile", compile_j, 900_000_000)
    begun_j = sum(totals.values())  # before the first update
    line("idle", 20.0 * update_j, 1_000_000_000)
    for number in range(windows):
        joules = window_j * rng.lognormvariate(0, 0.02)
        line(
            "train",
            joules,
            window_ns,
            first_update=number * updates_per_window,
            updates=updates_per_window,
            iterations=updates_per_window,
            examples=128 * updates_per_window,
        )
    line("eval", 10.0 * update_j, 100_000_000)
    total_j = sum(totals.values()) - totals["idle"]
    metrics = []
    for number in range(1, evaluations + 1):
        part = number / evaluations
        metrics.append(
            {
                "update": round(updates * part),
                "train_loss": 2.3 * (1 - part) + 0.1,
                "validation_accuracy": accuracy * (1 - 0.9 * (1 - part) ** 2),
                "energy_j": begun_j + (total_j - begun_j) * part,
                "provenance": provenance,
            }
        )
    config = {
        "id": folder.name,
        "protocol": 1,
        "model": "mlp",
        "depth": depth,
        "activation": activation,
        "optimizer": optimizer,
        "batch_size": 128,
        "accumulate": 1,
        "augment": False,
        "precision": "float32",
        "seed": seed,
        "dataset": "digits",
        "meters": "simulated",
        "resolved": {
            "depth": depth,
            "width": 128,
            "activation": activation,
            "learning_rate": 0.1,
            "counted_domains": list(domains),
            "provenance": provenance,
            "forms": list(forms),
            "dataset": {"source": "made up", "digest": digest},
        },
    }
    mean = {"mean": update_j, "ci95": [0.98 * update_j, 1.02 * update_j], "windows": windows}
    summary: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "provenance": provenance,
        "parameters": 26_122,
        "updates": updates,
        "iterations": updates,
        "examples": 128 * updates,
        "attempts": 1,
        "duration_s": (time_ns - 5_000_000_000) / 1e9,
        "final": {
            "train_loss": 0.1,
            "validation_accuracy": accuracy,
            "test_accuracy": accuracy - 0.005,
        },
        "target": None,
        "energy_j": {
            "counted_domains": list(domains),
            "metered": sum(totals.values()),
            "total": total_j,
            "net_total": None,
            "by_phase": totals,
            "by_domain": {name: share * sum(totals.values()) for name, share in shares.items()},
            "idle_w": {name: 20.0 * update_j * share for name, share in shares.items()},
        },
        "per_update_j": mean,
        "per_iteration_j": mean,
        "per_example_j": {"mean": update_j / 128, "ci95": None, "windows": windows},
        "compiled": {"flops_per_update": 1.8e7, "compile_j": compile_j},
        "warnings": [],
    }
    if why:
        summary["why"] = {"status": why}
    environment = {
        "recorded_at": "2026-01-01T00:00:00+00:00",
        "python": "3.11",
        "versions": {"jaxlib": jaxlib},
        "devices": [{"platform": "gpu", "index": 0, "name": device}],
        "meters": [
            {"name": name, "provenance": provenance, "tick_s": 0.001 if place else 0.1}
            for place, name in enumerate(domains)
        ],
    }
    for name, document in (
        ("config", config),
        ("summary", summary),
        ("environment", environment),
    ):
        if name != "summary" or status:
            (folder / f"{name}.json").write_text(json.dumps(document))
    for name, rows in (("windows", lines), ("metrics", metrics)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Names that mean harm to a page, a path, a table or a terminal.
HOSTILE_NAMES = (
    "<script>alert(1)",
    "<img src=x onerror=alert(1)>",
    "..&#47;..&amp;",
    '=HYPERLINK("http:&quot;)',
    "'\"}];alert(1)",
    "{{ 7*7 }}{% raw %}",
    "größe-Δ-運行-🔥",
    "right\u202eto-left",
    "n" * 250,
    "CON",
    "con",
)


def make_demo(root: Path) -> None:
    """A folder with something of everything that a report can meet."""
    rng = random.Random(1)
    number = 0
    for optimizer in OPTIMIZERS[:3]:
        for depth in DEPTHS[:3]:
            for seed in range(3):
                number += 1
                make_run(
                    root / "optimizers" / f"{optimizer}-{depth}-{seed}",
                    optimizer=optimizer,
                    depth=depth,
                    seed=seed,
                    update_j=0.4
                    * depth
                    * (1.09 if optimizer != "sgd" else 1)
                    * rng.uniform(0.97, 1.03),
                    accuracy=0.8 + 0.02 * depth + rng.uniform(0, 0.04),
                    provenance="measured",
                    domains=("gpu:0", "cpu:package-0"),
                    device="NVIDIA Made-up 100",
                )
    for activation in ACTIVATIONS:
        for seed in range(2):
            make_run(
                root / "activations" / f"{activation}-{seed}",
                activation=activation,
                seed=seed,
                update_j=0.02 * rng.uniform(0.9, 1.1),
                accuracy=rng.uniform(0.85, 0.95),
                provenance="estimated",
                domains=("cpu:estimate",),
                device="AMD EPYC, 2 cores",
            )
    for name in HOSTILE_NAMES:
        make_run(root / name)
    make_run(root / "failed", status="failed", why="the loss became nan at update 12")
    make_run(root / "stopped", status="preempted")
    make_run(root / "running", status="")
    (root / "notes").mkdir()
    (root / "notes" / "todo.txt").write_text("no run")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    newer = root / "newer"
    newer.mkdir()
    (newer / "config.json").write_text('{"id": "x"}')
    (newer / "summary.json").write_text('{"schema": 99}')
    lines = root / "damaged-lines"
    make_run(lines)
    (lines / "windows.jsonl").write_text('{"phase": 3}\n')
    make_documents(root)


def make_documents(root: Path) -> None:
    """A study, a sweep and a comparison, and some that are not understood."""
    study = {
        "schema": 1,
        "study": "optimizer",
        "claim": "SGD is cheaper than Adam",
        "source": "a summary of arXiv 2401.01851",
        "budget": "small",
        "provenance": "measured",
        "verdicts": [
            {
                "statement": "an update of Adam takes more joules than one of SGD",
                "verdict": "supported",
                "effect": 9.1,
                "ci95": [7.0, 11.3],
                "unit": "%",
                "why": "paired by seed, n = 9",
                "quantity": "energy",
            },
            {
                "statement": "Adam takes more joules to 85 % accuracy",
                "verdict": "undecided",
                "effect": -4.0,
                "ci95": [-15.0, 8.5],
                "unit": "%",
                "why": "the interval holds zero",
                "quantity": "energy",
            },
            {
                "statement": "an update of Adam takes longer",
                "verdict": "refuted",
                "effect": 0.1,
                "ci95": [-0.4, 0.6],
                "unit": "%",
                "why": "within the margin of 1 %",
                "quantity": "time",
            },
            {
                "statement": "the ranking holds on another <b>machine</b>",
                "verdict": "void",
                "effect": None,
                "ci95": None,
                "unit": "",
                "why": "one machine only",
                "quantity": "energy",
            },
        ],
        "runs": ["0123456789"],
        "command": "python -m experiments.study optimizer --budget=small",
        "protocol": 1,
    }
    sweep = {
        "schema": 1,
        "id": "5weep",
        "command": ["python", "-m", "experiments.sweep", "--grid=optimizer=sgd,adam"],
        "axes": {"optimizer": ["sgd", "adam"]},
        "runs": {"completed": 27, "failed": 1, "waiting": 2},
        "warnings": ["two cells were measured under other versions"],
        "cells": [],
    }

    def interval(mean: float, share: float = 0.03) -> dict[str, Any]:
        ends = [mean * (1 - share), mean * (1 + share)]
        return {"mean": mean, "ci95": ends, "processes": 5}

    def side(fixed_j: float, update_j: float, update_s: float) -> dict[str, Any]:
        return {
            "processes": 5,
            "per_update_j": interval(update_j),
            "per_update_s": interval(update_s),
            "power_w": interval(update_j / update_s),
            "fixed_j": interval(fixed_j, 0.1),
            "training_j": interval(fixed_j + 2000 * update_j),
        }

    def ratio(value: float) -> dict[str, Any]:
        return {"ratio": value, "ci95": [0.95 * value, 1.05 * value], "processes": 5}

    compare = {
        "schema": 1,
        "name": "resnet",
        "command": ["python", "-m", "experiments.compare", "--model=resnet"],
        "reference": "jax",
        "models": {
            "resnet": {
                "status": "compared",
                "provenance": "measured",
                "device": "NVIDIA Made-up 100",
                "resolved": {"depth": 8, "width": 16},
                "training_updates": 2000,
                "frameworks": {
                    "jax": side(900.0, 1.5, 0.010),
                    "torch": side(150.0, 2.1, 0.013),
                    "torch_compile": side(1400.0, 1.7, 0.011),
                },
                "pairs": [
                    {
                        "framework": "torch",
                        "reference": "jax",
                        "energy_ratio": ratio(1.4),
                        "time_ratio": ratio(1.3),
                        "power_ratio": ratio(1.077),
                        "energy_crossover": {
                            "updates": 1250.0,
                            "set95": [[1100.0, 1420.0]],
                            "verdict": "crosses",
                            "cheaper_without_updates": "torch",
                            "cheaper_in_the_long_run": "jax",
                        },
                    },
                    {
                        "framework": "torch_compile",
                        "reference": "jax",
                        "energy_ratio": ratio(1.13),
                        "time_ratio": ratio(1.1),
                        "power_ratio": ratio(1.03),
                        "energy_crossover": {
                            "updates": None,
                            "set95": [],
                            "verdict": "never",
                            "cheaper_without_updates": "jax",
                            "cheaper_in_the_long_run": "jax",
                            "why": "the means do not cross at any number of updates",
                        },
                    },
                ],
                "warnings": ["other programs kept up to 1.6 cores busy"],
            },
            "vit": {"status": "refused", "why": {"status": "parity fails at block 2"}},
        },
    }
    for path, document in (
        (root / "studies" / "optimizer.json", study),
        (root / "studies" / "on-the-way.json", {"gate": None}),
        (root / "elsewhere" / "study.json", {**study, "schema": 99}),
        (root / "sweeps" / "5weep" / "sweep.json", sweep),
        (root / "compare" / "compare.json", compare),
        (root / "compare-old" / "compare.json", [1, 2]),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
