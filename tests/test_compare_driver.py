"""`experiments.compare` as users start it: whole comparisons of tiny networks, and what it refuses.

PyTorch is missing where a hook says so, and wrong where a hook makes it so: what is refused then is
refused by the real checks.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

TINY = (
    *("--model=mlp", "--depth=1", "--width=8", "--batch_size=32", "--updates=50"),
    *("--processes=2", "--cold_compiles=2", "--seconds=0.3", "--idle_seconds=0.2"),
)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: the extra `torch`"
)

# Put where Python looks for them at its start, they reach every process of a comparison.
WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("No module named 'torch'")

sys.meta_path.insert(0, Missing())
"""
# Where the activations' table is imported, ReLU becomes ELU.
WITH_A_WRONG_ACTIVATION = """
import importlib.abc, importlib.machinery, sys

class Wrong(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "jaxenergy.torch_twin.activations":
            return None
        spec = super().find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.ACTIVATIONS["relu"] = module.ACTIVATIONS["elu"]

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Wrong)
"""


@pytest.fixture
def compare(tmp_path):
    """Starts the driver, with `runs` in the test's folder and code that runs at Python's start."""

    def start(*flags, at_start=""):
        hooks = tmp_path / "hooks"
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(at_start)
        places = [str(hooks), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        command = [
            sys.executable,
            "-m",
            "experiments.compare",
            f"--out={tmp_path / 'runs'}",
            *flags,
        ]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )

    return start


def assert_refused(process, tmp_path, *words):
    _, message = process.communicate()
    assert process.returncode == 2, message
    assert 1 <= len(message.strip().splitlines()) <= 3, message
    for word in words:
        assert word in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--models=all", "--model=cnn"), ("--model=cnn", "--models=all")),
        (("--models=mlp,cnn", "--depth=7"), ("--depth=7", "--models=mlp,cnn")),
        (("--models=all", "--width=7"), ("--width=7",)),
        (("--models=all", "--dataset=digits"), ("--dataset=digits",)),
        (("--processes=2", "--cold_compiles=3"), ("--cold_compiles=3", "at most 2")),
    ],
    ids=lambda value: value[-1],
)
def test_flags_that_would_not_count_are_refused(compare, tmp_path, flags, words):
    assert_refused(compare(*flags), tmp_path, *words)


def test_without_pytorch_it_says_how_to_install_it(compare, tmp_path):
    assert_refused(
        compare(*TINY, at_start=WITHOUT_TORCH),
        tmp_path,
        "pip install -c constraints.txt -e '.[torch]'",
        "https://download.pytorch.org/whl/cpu",
    )


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--optimizer=lion",), ("--optimizer=lion", "no twin", "adamw")),
        (("--activation=swiish",), ("--activation", "silu")),
        (("--frameworks=jax,torch_cuda_graphs",), ("torch_cuda_graphs needs a GPU",)),
        (("--meters=nvlm",), ("--meters=nvlm", "nvml")),
        (("--model_args=dropout=0.5",), ("dropout=0.5", "no twin")),
    ],
    ids=lambda value: value[0],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    compare, tmp_path, flags, words
):
    assert_refused(compare(*TINY, *flags), tmp_path, *words)


@pytest.mark.slow
@needs_torch
def test_programs_that_differ_are_refused_with_the_first_layer(compare, tmp_path):
    process = compare(*TINY, "--name=c", at_start=WITH_A_WRONG_ACTIVATION)
    said, message = process.communicate()
    assert process.returncode == 1, message
    assert "REFUSED: the programs are not the same, first in float64 logits" in said
    document = json.loads((tmp_path / "runs" / "c" / "compare.json").read_text())
    entry = document["models"]["mlp"]
    assert entry["status"] == "refused"
    assert not entry["parity"]["passed"]
    assert entry["frameworks"] == {}
    assert not (tmp_path / "runs" / "c" / "mlp" / "processes").exists()


@pytest.mark.slow
@needs_torch
def test_a_comparison_is_interrupted_and_gone_on_with(compare, tmp_path):
    # As long as the simulated power takes to repeat itself.
    flags = (*TINY, "--seconds=0.6", "--name=c", "--frameworks=jax,torch", "--meters=simulated")
    home = tmp_path / "runs" / "c" / "mlp"
    process = compare(*flags)
    while process.poll() is None and not list(home.glob("processes/*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, message = process.communicate()
    assert process.returncode == 130, said + message
    before = {file: file.read_bytes() for file in home.glob("processes/*.json")}
    assert 1 <= len(before) < 4
    document = json.loads((tmp_path / "runs" / "c" / "compare.json").read_text())
    assert document["models"]["mlp"]["status"] == "unfinished"

    process = compare(*flags)
    said, message = process.communicate()
    assert process.returncode == 0, said + message
    assert "SIMULATED" in said
    assert {file: file.read_bytes() for file in before} == before
    assert len(list(home.glob("processes/*.json"))) == 4
    assert not (home / "cache").exists()
    document = json.loads((tmp_path / "runs" / "c" / "compare.json").read_text())
    entry = document["models"]["mlp"]
    assert (entry["status"], entry["provenance"]) == ("compared", "simulated")
    assert entry["parity"]["passed"]
    assert entry["config"]["schedule"] == "constant"
    assert entry["training_updates"] == 50
    for name in ("jax", "torch"):
        told = entry["frameworks"][name]
        assert told["processes"] == told["cold_compiles"] == 2
        assert told["described"]["threads"] == len(os.sched_getaffinity(0))
        for key in ("per_update_j", "start_up_j", "compile_j", "training_j", "idle_w"):
            assert told[key]["mean"] > 0, key
        assert told["peak_memory"]["host_bytes"]["mean"] > 1e8
    (pair,) = entry["pairs"]
    # The scripted power is the same for both: what they differ in is time.
    assert pair["power_ratio"]["ratio"] == pytest.approx(1, abs=0.3)
    records = [json.loads(file.read_text()) for file in home.glob("processes/*.json")]
    for record in records:
        assert {line["phase"] for line in record["lines"]} >= {"input", "compile", "train", "idle"}
        assert all(line["fenced"] for line in record["lines"] if line["phase"] == "train")
