"""The published claims, judged on a GPU with measured joules: `python -m experiments.study all`.

    benchmarks/gpu.sh studies

The runs lie in `runs/`; a call that is cut off is gone on with by the next. The verdicts of all
studies are written to the results when the last run is done.
"""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_stage import ROOT, Check, Stage, Unfinished, run_stage

from jaxenergy.errors import RunError

_LEAST_S = 120.0  # what is worth beginning with; it is stopped when the call's time is up


def check_studies(stage: Stage) -> dict[str, Any]:
    """Runs what is left of all studies and gathers their verdicts.

    Raises:
        Unfinished: the time was up before the last run.
        RunError: it failed, or the joules were not measured.
    """
    options = stage.options
    # By the source: what other source has begun is not gone on with.
    out = Path("runs") / options.budget / stage.rig.folder_name / stage.source[:10] / "studies"
    budget = "smoke" if options.smoke else "gpu"
    command = ["-m", "experiments.study", "all", f"--budget={budget}", "--meters=nvml"]
    beside = [f"--data_dir={options.data_dir.resolve()}"] if options.data_dir else []
    if options.smoke:  # a try waits for no other
        beside.append(f"--lock_dir={out / 'locks'}")
    said, status = _run([*command, f"--out={out}", *beside], stage.left_s)
    files = sorted((ROOT / out / "studies").glob("*.json"))
    documents = [json.loads(file.read_text()) for file in files]
    records = [d for d in documents if "study" in d]  # beside them lies what they needed on the way
    if status not in (0, 1) or not records:  # 1: a run failed, and its study says what it lacks
        raise RunError(f"it ended with status {status}:\n{said[-2000:]}")
    judged = [r for r in records if r["runs"]]
    if not options.smoke and any(record["provenance"] != "measured" for record in judged):
        raise RunError("the joules were not measured")
    return {
        "command": " ".join(
            ["python", *command, *(["--data_dir=DIR"] if options.data_dir else [])]
        ),
        "studies": {record["study"]: record for record in records},
        "says": [
            f"{record['study']}: {verdict['statement']} {verdict['verdict']}"
            for record in records
            for verdict in record["verdicts"]
            if verdict["quantity"] == "energy"
        ],
    }


def _run(command: list[str], seconds: float) -> tuple[str, int]:
    """Runs the studies; what takes too long is stopped, and goes on at the next call."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise Unfinished("runs are left") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def make_checks(stage: Stage) -> list[Check]:
    """The check of this stage."""
    return [Check("studies", _LEAST_S, lambda: check_studies(stage))]


if __name__ == "__main__":
    run_stage("studies", __doc__, make_checks, computes=False)
