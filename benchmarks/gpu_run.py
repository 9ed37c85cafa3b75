"""Whole runs on a GPU: `python -m experiments.run` with its defaults, and a residual network.

    benchmarks/gpu.sh run

Each run is a process of its own, as users start it, in `runs/`; what it leaves (without its
checkpoints) is copied beside the results. A run that was cut off goes on at the next call.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_stage import ROOT, Check, Stage, publishable, run_stage

from jaxenergy.errors import RunError
from jaxenergy.records import read_run
from jaxenergy.records.files import write_json_atomic
from jaxenergy.units import format_duration_s, format_si

_RESNET = ("--model=resnet", "--depth=20", "--dataset=synthetic:32x32x3", "--batch_size=512")
_RUNS = {
    "digits": (),
    "resnet20_float32": (*_RESNET, "--updates=4000"),
    "resnet20_bfloat16": (*_RESNET, "--updates=4000", "--precision=bfloat16"),
}
_SMOKE = ("--model=mlp", "--depth=1", "--width=16", "--updates=40", "--idle_seconds=0.2")
_SMOKE_RUNS = {
    "digits": _SMOKE,
    "synthetic": (*_SMOKE, "--dataset=synthetic:8x8x3,examples=1000"),
}
_CIFAR10 = ("--model=cnn", "--dataset=cifar10", "--augment", "--batch_size=512", "--epochs=20")


def check_run(stage: Stage, name: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """Does one run and copies what it leaves.

    Raises:
        RunError: it failed, or its joules of the GPU were not measured.
    """
    # By the source: a run that other source has finished is not taken for one of this source.
    out = Path("runs") / stage.options.budget / stage.rig.folder_name / stage.source[:10]
    command = ["-m", "experiments.run", f"--out={out}", f"--name={name}", *flags]
    if stage.options.fresh:
        command.append("--overwrite")
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise RunError(f"it ended with status {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    run = read_run(ROOT / out / name)
    if run.summary is None or run.environment is None or run.config is None:
        raise RunError(f"{out / name} lacks its summary, environment or config")
    device = run.environment["devices"][0]
    if device["platform"] != "gpu" and not stage.options.smoke:
        raise RunError(f"it computed on {device['platform']} ({device['name']}), not on a GPU")
    energy = run.summary["energy_j"]
    if stage.rig.domain not in energy["counted_domains"] or run.summary["provenance"] != "measured":
        raise RunError(
            f"{stage.rig.domain} was not measured: it counted {energy['counted_domains']}, "
            f"{run.summary['provenance']}"
        )
    copy = stage.folder / "runs" / name
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for file in ("windows.jsonl", "metrics.jsonl", "summary.json"):
        shutil.copyfile(run.path / file, copy / file)
    # These two say where things are on this machine, which is nobody's business.
    write_json_atomic(copy / "environment.json", publishable(run.environment))
    write_json_atomic(copy / "config.json", {**run.config, "data_dir": None})
    per_update = run.summary["per_update_j"]
    return {
        "command": " ".join(["python", *command]),
        "folder": os.path.relpath(copy, stage.folder),
        "summary": run.summary,
        "says": [
            f"{run.summary['status']}, test accuracy {run.summary['final']['test_accuracy']}, "
            f"{run.summary['updates']} updates in {format_duration_s(run.summary['duration_s'])}",
            f"{format_si(energy['total'], 'J', 4)}, {format_si(per_update['mean'], 'J', 4)} "
            f"per update, 95 %: {per_update.get('ci95', per_update.get('why'))}",
        ],
    }


def make_checks(stage: Stage) -> list[Check]:
    """The checks of this stage: one per run; CIFAR-10 where `--data_dir` says where it is."""
    options = stage.options
    runs = dict(_SMOKE_RUNS if options.smoke else _RUNS)
    if options.data_dir is not None:
        runs["cifar10"] = (*_CIFAR10, f"--data_dir={options.data_dir.resolve()}")
    meters = ("--meters=nvml",) if options.smoke else ()  # the CPU that computes is not the card
    return [
        Check(name, 15 if options.smoke else 120, lambda n=name, f=flags: check_run(stage, n, f))
        for name, flags in ((name, (*flags, *meters)) for name, flags in runs.items())
    ]


if __name__ == "__main__":
    run_stage("run", __doc__, make_checks, computes=False)
