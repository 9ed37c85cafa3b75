"""The table of all families in docs/frameworks.md, from a comparison's `compare.json`.

    python -m experiments.compare --models=all --frameworks=jax,jax_plain,torch,torch_compile
        --cold_compiles=1 --seconds=1.5 --idle_seconds=0 --name=zoo
    python benchmarks/frameworks_table.py runs/zoo/compare.json [results/GPU/frameworks-*.json]

Further files, as `benchmarks/gpu.sh frameworks` leaves them, fill the column of the GPU.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxenergy.units import format_si

_NOT_MEASURED = "not measured yet"


def main(cpu_file: str, *gpu_files: str) -> None:
    """Prints both tables as Markdown."""
    document = json.loads(Path(cpu_file).read_text())
    gpu: dict[str, Any] = {}
    for file in gpu_files:
        gpu.update(json.loads(Path(file).read_text())["models"])
    reference, *others = document["design"]["frameworks"]
    models = document["models"]
    print(f"Time of an update over that of `{reference}` (measured), 95 %:\n")
    _print_row("family", f"`{reference}`", *(f"`{name}`" for name in others), "GPU, energy")
    _print_row("---", *["---:"] * (len(others) + 2))
    for model, entry in models.items():
        cells = [_ratio(entry, reference, name, "time_ratio") for name in others]
        _print_row(_size(model, entry), _own(entry, reference), *cells, _gpu(gpu.get(model)))
    provenance = {entry["provenance"] for entry in models.values()}
    words = "measured" if provenance == {"measured"} else " and ".join(sorted(provenance))
    print(f"\nEnergy of an update over that of `{reference}` ({words}), 95 %, and first calls:\n")
    compiles = [f"`{name}` compiles" for name in (reference, *others)]
    _print_row("family", *(f"`{name}`" for name in others), *compiles)
    _print_row("---", *["---:"] * (2 * len(others) + 1))
    for model, entry in models.items():
        cells = [_ratio(entry, reference, name, "energy_ratio") for name in others]
        seconds = [_compile_s(entry, name) for name in (reference, *others)]
        _print_row(model, *cells, *seconds)


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def _size(model: str, entry: Mapping[str, Any]) -> str:
    resolved = entry["resolved"]
    return f"{model} {resolved['depth']} x {resolved['width']}" if resolved else model


def _own(entry: Mapping[str, Any], reference: str) -> str:
    told = entry["frameworks"].get(reference)
    return format_si(told["per_update_s"]["mean"], "s") if told else entry["status"]


def _ratio(entry: Mapping[str, Any], reference: str, name: str, key: str) -> str:
    for pair in entry["pairs"]:
        if (pair["reference"], pair["framework"]) == (reference, name):
            return _in_words(pair[key])
    return entry["status"]


def _in_words(found: Mapping[str, Any]) -> str:
    if found["ratio"] is None:
        return "n/a"
    if found["ci95"] is None:
        return f"{found['ratio']:.2f}"
    return f"{found['ratio']:.2f} ({found['ci95'][0]:.2f} to {found['ci95'][1]:.2f})"


def _compile_s(entry: Mapping[str, Any], name: str) -> str:
    told = entry["frameworks"].get(name)
    return format_si(told["compile_s"]["mean"], "s", 2) if told else "n/a"


def _gpu(entry: Mapping[str, Any] | None) -> str:
    """The best of PyTorch's ways over JAX's, in joules of an update."""
    if entry is None:
        return _NOT_MEASURED
    best = min(_over_jax(entry), key=lambda pair: pair["energy_ratio"]["ratio"], default=None)
    return f"{best['framework']} {_in_words(best['energy_ratio'])}" if best else entry["status"]


def _over_jax(entry: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (
        pair
        for pair in entry["pairs"]
        if pair["reference"] == "jax"
        and pair["framework"].startswith("torch")
        and pair["energy_ratio"]["ratio"] is not None
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
