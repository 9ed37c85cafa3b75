"""Measures what the study `inference` judges: predictions of the networks that its runs trained.

Each network is measured by `experiments.inference` in a process of its own, which writes its
document beside the studies' results. A document that is there already is not measured again.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.errors import RunError
from jaxenergy.records.files import read_document
from jaxenergy.studies.grids import Context
from jaxenergy.studies.table import Row, weakest

FLOAT32, HALF = "float32", "bfloat16"
# Batch sizes, and seconds of a process's measurement of joules.
_CASES = {
    "smoke": ((1, 8, 64), 3.0),
    "small": ((1, 8, 64, 512), 16.0),
    "gpu": ((1, 16, 256, 4096), 40.0),
    "full": ((1, 4, 16, 64, 256, 1024), 120.0),
}


def measure_networks(
    context: Context,
    configs: Sequence[RunConfig],
    rows: Mapping[str, Row],
    folder: Path,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures the predictions of every network that was trained.

    Args:
        context: the budget, and the meters among its settings.
        configs: the runs.
        rows: what `read_runs` says of those that ended, by run id.
        folder: where the documents go.
        say: told what is measured.

    Returns:
        A row per network, batch size and precision: the run's, with `inference.batch_size`,
        `inference.precision`, `inference.per_prediction_j`, `inference.per_prediction_s` and
        `inference.flops_per_prediction`.

    Raises:
        RunError: a process failed.
    """
    sizes, seconds = _CASES[context.budget]
    found: list[Row] = []
    for config in configs:
        row = rows.get(config.id)
        if row is None or row["state"] != "completed":
            continue
        document = folder / f"inference-{row['name']}.json"
        content = read_document(document) if document.is_file() else None
        if not _is_of(content, config, sizes):
            say(f"inference: {row['name']}")
            _measure(config, row, document, sizes, seconds)
            content = read_document(document)
        assert content is not None
        found += rows_of(row, content)
    return found


def _is_of(content: Mapping[str, Any] | None, config: RunConfig, sizes: Sequence[int]) -> bool:
    """Whether a document is of this run and of these cases."""
    if content is None or content.get("id") != config.id:
        return False
    cases = {(case["batch_size"], case["precision"]) for case in content["cases"]}
    return cases == {(size, precision) for size in sizes for precision in (FLOAT32, HALF)}


def _measure(
    config: RunConfig, row: Row, document: Path, sizes: Sequence[int], seconds: float
) -> None:
    flags = {
        "run": row["path"],
        "json": document,
        "batch_sizes": ",".join(map(str, sizes)),
        "precisions": f"{FLOAT32},{HALF}",
        "max_seconds": seconds,
        "meters": config.meters,
        "powercap_root": config.powercap_root,
        "data_dir": config.data_dir,
    }
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.inference"),
            *(f"--{name}={value}" for name, value in flags.items() if value is not None),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise RunError(
            f"Measuring the predictions of {row['name']} failed:\n{ended.stderr.strip()[-1000:]}"
        )


def rows_of(row: Row, document: Mapping[str, Any]) -> list[Row]:
    """A row per case of a document of `experiments.inference`, which has the run's columns too.

    Args:
        row: of the run that trained the network.
        document: of its predictions.
    """
    provenance = weakest([row.get("provenance"), document.get("provenance")])
    found = []
    for case in document["cases"]:
        size, seconds = case["batch_size"], case["measurement"]["seconds_per_call"]
        flops = case["flops_per_call"]
        found.append(
            {
                **row,
                "provenance": provenance,
                "inference.batch_size": size,
                "inference.precision": case["precision"],
                "inference.per_prediction_j": case["per_prediction_j"],
                "inference.per_prediction_s": None if seconds is None else seconds / size,
                "inference.flops_per_prediction": None if flops is None else flops / size,
            }
        )
    return found
