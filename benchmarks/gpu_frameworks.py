"""JAX against PyTorch on a GPU: the same trainings, parity shown first, processes as observations.

    benchmarks/gpu.sh frameworks

Each check is one model's comparison by `experiments.compare`, in `runs/`; one that was cut off goes
on at the next call. What it found is copied beside the results.
"""

import contextlib
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_stage import ROOT, Check, Stage, Unfinished, publishable, run_stage

from jaxenergy.errors import RunError
from jaxenergy.records.files import read_document, write_json_atomic
from jaxenergy.units import format_si

_FRAMEWORKS = "jax,jax_plain,torch,torch_compile,torch_cuda_graphs"
# Sizes that keep a card busy: launches are not all there is to an update.
_IMAGES = ("--dataset=synthetic:32x32x3,examples=20000", "--batch_size=512")
_TEXT = ("--dataset=synthetic:128,classes=65,examples=20000", "--batch_size=128")
_MODELS = {
    "mlp": ("--depth=3", "--width=2048", *_IMAGES),
    "cnn": ("--depth=6", "--width=64", *_IMAGES),
    "resnet": ("--depth=20", "--width=32", *_IMAGES),
    "wide_resnet": ("--depth=16", "--width=4", *_IMAGES),
    "mobilenet": ("--depth=6", "--width=64", *_IMAGES),
    "convnext": ("--depth=6", "--width=64", *_IMAGES),
    "vit": ("--depth=6", "--width=256", *_IMAGES),
    "mixer": ("--depth=6", "--width=256", *_IMAGES),
    "transformer_lm": ("--depth=6", "--width=256", *_TEXT),
    "lstm": ("--depth=1", "--width=256", *_TEXT),
}
_FULL = ("--processes=5", "--cold_compiles=3", "--seconds=5", f"--frameworks={_FRAMEWORKS}")
_LEAST_S = 120.0  # what is worth beginning with; it is stopped when the call's time is up
_SMOKE_MODELS = {"mlp": ("--depth=1", "--width=8")}
_SMOKE = (
    # Ten ticks of a card, so that one that was seen late, on a busy machine, does not tell.
    *("--processes=2", "--cold_compiles=2", "--seconds=1", "--frameworks=jax,torch"),
    *("--idle_seconds=0.2", "--meters=nvml"),  # the CPU that computes is not the card
)


def check_model(stage: Stage, model: str) -> dict[str, Any]:
    """Compares the frameworks on one model.

    Raises:
        Unfinished: the time was up before its last process.
        RunError: it failed or was refused, or its joules of the GPU were not measured.
    """
    options = stage.options
    # By the source: what other source has begun is not gone on with.
    out = Path("runs") / options.budget / stage.rig.folder_name / stage.source[:10] / "frameworks"
    flags = (*_SMOKE_MODELS[model], *_SMOKE) if options.smoke else (*_MODELS[model], *_FULL)
    command = ["-m", "experiments.compare", f"--model={model}", *flags]
    command += [f"--out={out}", f"--name={model}"] + ["--overwrite"] * options.fresh
    ended = _run(command, stage.left_s)
    document = read_document(ROOT / out / model / "compare.json")
    if document is None:
        raise RunError(f"it ended with nothing:\n{ended[-2000:]}")
    entry = document["models"][model]
    if entry["status"] != "compared":
        raise RunError(f"{entry['status']}: {entry.get('why', {}).get('status')}\n{ended[-2000:]}")
    if not options.smoke and entry["device"]["platform"] != "gpu":
        raise RunError(f"it computed on {entry['device']['name']}, not on a GPU")
    if entry["provenance"] != "measured":
        raise RunError(f"the joules are {entry['provenance']}, not measured")
    file = stage.folder / f"frameworks-{model}.json"
    environment = publishable(document["environment"])
    write_json_atomic(file, {**document, "environment": environment, "command": command})
    return {
        "command": " ".join(["python", *command]),
        "file": file.name,
        "says": [_say(name, told) for name, told in entry["frameworks"].items()]
        + [_say_pair(pair) for pair in entry["pairs"] if pair["reference"] == "jax"],
    }


def _run(command: list[str], seconds: float) -> str:
    """Runs a comparison; one that takes too long is stopped, and goes on at the next call."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
        stopped = [line for line in said.splitlines() if "are left" in line]
        raise Unfinished(stopped[-1] if stopped else "it was being prepared") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def _say(name: str, told: dict[str, Any]) -> str:
    update_j = told["per_update_j"]
    return (
        f"{name}: {format_si(told['per_update_s']['mean'], 's')} an update at "
        f"{format_si(told['power_w']['mean'], 'W')}, {format_si(update_j['mean'], 'J', 4)}, "
        f"95 %: {json.dumps(update_j['ci95'])}, n = {update_j['processes']}"
    )


def _say_pair(pair: dict[str, Any]) -> str:
    parts = []
    for what in ("time", "power", "energy"):
        found = pair[f"{what}_ratio"]
        low, high = found["ci95"]
        parts.append(f"{what} {found['ratio']:.3f} ({low:.3f} to {high:.3f})")
    return f"{pair['framework']} over {pair['reference']}: {', '.join(parts)}"


def make_checks(stage: Stage) -> list[Check]:
    """The checks of this stage: one per model."""
    models = _SMOKE_MODELS if stage.options.smoke else _MODELS
    return [
        Check(model, _LEAST_S, functools.partial(check_model, stage, model)) for model in models
    ]


if __name__ == "__main__":
    run_stage("frameworks", __doc__, make_checks, computes=False)
