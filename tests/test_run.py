"""The main job in real processes: what it leaves, that it repeats itself, and that it survives."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import powercap_tree
import pytest
import simulated_nvml

from jaxenergy.records import read_run

SMALL = ["--model=mlp", "--depth=1", "--width=16", "--idle_seconds=0", "--updates=40"]


def command(out, *flags):
    return [sys.executable, "-m", "experiments.run", f"--out={out}", *SMALL, *flags]


def read(folder) -> Any:
    """A run whose documents are there; Any spares each test to say so."""
    record = read_run(folder)
    assert None not in (record.config, record.environment, record.summary)
    return record


def run(out, *flags, status=0, env=None):
    """Runs the driver to its end; its folder and what it printed."""
    ended = subprocess.run(
        command(out, *flags), capture_output=True, text=True, check=False, env=env, timeout=300
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    folders = sorted(path for path in Path(out).iterdir() if path.is_dir())
    return read(folders[-1]), ended.stdout


def phases_of(run_):
    return [line["phase"] for line in run_.windows if "phase" in line]


def assert_account_is_sound(run_):
    """Lines are contiguous, phases and domains both add up to what was metered."""
    lines = run_.windows
    for before, after in itertools.pairwise(lines):
        assert before["end_ns"] == after["start_ns"]
    energy = run_.summary["energy_j"]
    assert math.isclose(math.fsum(energy["by_phase"].values()), energy["metered"], rel_tol=1e-9)
    assert math.isclose(math.fsum(energy["by_domain"].values()), energy["metered"], rel_tol=1e-9)
    updates = [line for line in lines if line["phase"] == "train" and line["updates"]]
    assert sum(line["updates"] for line in updates) == run_.summary["updates"]
    position = 0
    for line in updates:
        assert line["first_update"] == position
        position += line["updates"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with estimated energy, named and complete."""
    out = tmp_path_factory.mktemp("runs")
    return out, *run(out, "--name=first", "--meters=auto", "--idle_seconds=0.2")


def test_a_run_leaves_its_folder(finished):
    _, record, printed = finished
    names = {path.name for path in record.path.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "windows.jsonl",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
    } <= names
    assert record.state == "completed"
    summary = record.summary
    assert summary["updates"] == 40
    assert summary["examples"] == 40 * 128
    assert summary["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert summary["provenance"] == "estimated"
    assert set(phases_of(record)) == {
        "input",
        "compile",
        "warmup",
        "train",
        "eval",
        "checkpoint",
        "idle",
        "other",
    }
    assert_account_is_sound(record)
    # Forward and weight gradients of both layers, input gradient of the second alone.
    products = 2 * 128 * (2 * (64 * 16 + 16 * 10) + 16 * 10)
    assert products < summary["compiled"]["flops_per_update"] < 1.3 * products
    assert str(record.path) in printed
    assert "ESTIMATED" in printed
    assert record.config["resolved"]["dataset"]["digest"].startswith("sha256:")


def test_the_environment_says_what_was_measured_on(finished):
    environment = finished[1].environment
    assert environment["versions"]["jax"]
    assert [device["platform"] for device in environment["devices"]] == ["cpu"]
    assert environment["meters"][0]["provenance"] == "estimated"
    assert {"allocator", "xla_flags", "compilation_cache", "threads"} <= set(environment["runtime"])


def test_a_finished_run_is_not_run_again(finished):
    out, record, _ = finished
    before = (record.path / "windows.jsonl").read_bytes()
    _, printed = run(out, "--name=first", "--meters=auto", "--idle_seconds=0.2")
    assert "complete" in printed
    assert (record.path / "windows.jsonl").read_bytes() == before


def test_a_finished_run_is_not_taken_for_one_of_other_flags(finished):
    out, _, _ = finished
    ended = subprocess.run(
        command(out, "--name=first", "--meters=auto", "--idle_seconds=0.2", "--depth=2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "--depth=1 there, 2 here" in ended.stderr
    assert ended.stdout == ""


def test_the_same_config_gives_the_same_numbers_bit_for_bit(finished, tmp_path):
    first = finished[1]
    again, _ = run(tmp_path, "--meters=none")
    for one, other in zip(first.metrics, again.metrics, strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one["validation_accuracy"] == other["validation_accuracy"]
    assert first.summary["final"] == again.summary["final"]


def test_without_a_meter_energy_is_null_with_a_reason(tmp_path):
    record, printed = run(tmp_path, "--meters=none")
    energy = record.summary["energy_j"]
    assert energy["total"] is energy["metered"] is None
    assert energy["why"]["total"]
    assert record.summary["per_update_j"]["mean"] is None
    assert record.summary["provenance"] == "none"
    assert " J" not in printed


def test_the_target_stops_the_run_and_has_its_energy(tmp_path):
    record, _ = run(
        tmp_path,
        "--target_accuracy=0.5",
        "--eval_every=10",
        "--learning_rate=0.1",
        "--meters=estimate",
        "--updates=2000",
    )
    summary = record.summary
    assert summary["status"] == "target_reached"
    reached = summary["target"]["reached_at_update"]
    assert reached == summary["updates"] < 2000
    assert summary["final"]["validation_accuracy"] >= 0.5
    needed = [
        line["energy_j"]["cpu:estimate"]
        for line in record.windows
        if line["phase"] in ("compile", "warmup", "input", "train")
    ]
    assert math.isclose(summary["target"]["energy_j"], math.fsum(needed), rel_tol=1e-9)


def test_a_loss_that_is_not_finite_ends_the_run_as_failed(tmp_path):
    record, _ = run(tmp_path, "--learning_rate=1e30", "--meters=estimate", status=1)
    assert record.state == "failed"
    assert "loss" in record.summary["why"]["status"]
    assert record.summary["updates"] >= 1
    assert record.summary["energy_j"]["total"] > 0


@pytest.mark.parametrize(
    "package",
    [
        "tensorflow_datasets",
        pytest.param("pyRAPL", marks=pytest.mark.slow),
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("matplotlib", marks=pytest.mark.slow),
    ],
)
def test_optional_packages_are_not_needed(package, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / f"{package}.py").write_text("raise ImportError('blocked by the test')\n")
    env = {**os.environ, "PYTHONPATH": f"{blocked}{os.pathsep}{os.getcwd()}"}
    record, _ = run(tmp_path / "runs", "--updates=2", env=env)
    assert record.state == "completed"


# A training that lasts until it is stopped, with a window every quarter of a second or so.
ENDLESS = ["--updates=100000000", "--eval_every=2000", "--meters=estimate", "--name=x"]


def start(out, *flags):
    return subprocess.Popen(
        command(out, *ENDLESS, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(holds, process):
    """Waits until `holds()`; fails if the process ends first."""
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_the_run_goes_on_from_there(signum, status, tmp_path):
    process = start(tmp_path)
    wait_for(lambda: lines_in(tmp_path / "x" / "metrics.jsonl") >= 2, process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    record = read(tmp_path / "x")
    assert record.summary["status"] == "preempted"
    assert_account_is_sound(record)
    stopped_at = record.summary["updates"]
    assert stopped_at > 0

    process = start(tmp_path)
    wait_for(lambda: lines_in(tmp_path / "x" / "metrics.jsonl") > len(record.metrics), process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    resumed = read(tmp_path / "x")
    event = next(line for line in resumed.windows if line.get("event") == "rollback")
    assert event == {"event": "rollback", "to_update": stopped_at, "attempt": 1}
    assert resumed.summary["attempts"] == 2
    assert resumed.summary["updates"] > stopped_at
    assert resumed.windows[: len(record.windows)] == record.windows


def test_a_signal_amid_compilation_leaves_a_folder_that_says_so(tmp_path):
    process = start(tmp_path)
    folder = tmp_path / "x"
    wait_for(lambda: (folder / "environment.json").exists(), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    record = read(folder)
    assert record.summary["status"] == "preempted"
    assert record.summary["updates"] == 0


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    flags = ["--updates=3000", "--eval_every=500", "--meters=none", "--name=x"]
    whole, _ = run(tmp_path / "whole", *flags)
    process = subprocess.Popen(command(tmp_path / "cut", *flags), stdout=subprocess.DEVNULL)
    metrics = tmp_path / "cut" / "x" / "metrics.jsonl"
    wait_for(lambda: lines_in(metrics) >= 1, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    cut, _ = run(tmp_path / "cut", *flags)
    assert cut.summary["final"] == whole.summary["final"]
    assert [line["train_loss"] for line in cut.metrics] == [
        line["train_loss"] for line in whole.metrics
    ]


def test_a_simulated_gpu_is_metered_through_the_real_binding(tmp_path):
    library = simulated_nvml.build(tmp_path)
    cards = simulated_nvml.Cards(tmp_path / "state", [simulated_nvml.Card(power_w=250.0)])
    cards.write()
    env = simulated_nvml.environment(library, tmp_path / "state")
    record, printed = run(
        tmp_path / "runs",
        "--meters=nvml",
        "--updates=3000",
        "--eval_every=1500",
        "--idle_seconds=0.5",
        env=env,
    )
    summary = record.summary
    assert summary["provenance"] == "measured"
    assert summary["energy_j"]["counted_domains"] == ["gpu:0"]
    assert_account_is_sound(record)
    assert summary["energy_j"]["metered"] == pytest.approx(250 * summary["duration_s"], rel=0.05)
    assert summary["energy_j"]["idle_w"]["gpu:0"] == pytest.approx(250, rel=0.15)
    assert record.environment["nvml_library"]["path"] == str(library.resolve())
    assert "gpu:0" in printed


def test_rapl_is_metered_below_the_powercap_root(tmp_path):
    tree = powercap_tree.intel(tmp_path / "powercap", sockets=2)
    with powercap_tree.Writer(tree):
        record, _ = run(tmp_path / "runs", "--meters=rapl", f"--powercap_root={tmp_path}/powercap")
    assert set(record.summary["energy_j"]["counted_domains"]) == {
        "cpu:package-0",
        "cpu:package-1",
        "dram:package-0",
        "dram:package-1",
    }
    assert record.summary["energy_j"]["total"] > 0
    assert_account_is_sound(record)


def test_several_devices_are_refused(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ended = subprocess.run(
        command(tmp_path / "runs"), capture_output=True, text=True, check=False, env=env
    )
    assert ended.returncode == 2
    assert "2 devices" in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_complete_run_is_not_that_of_other_data(tmp_path):
    text = tmp_path / "text"
    flags = ["--model=lstm", "--dataset=text:length=8", f"--data_dir={text}", "--name=x"]
    flags += ["--updates=3", "--batch_size=8", "--meters=none"]
    text.write_text("one text, and " * 100)
    run(tmp_path / "runs", *flags)
    text.write_text("of another one " * 100)
    ended = subprocess.run(
        command(tmp_path / "runs", *flags), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "other data" in ended.stderr
    assert "--overwrite" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 3
    text.unlink()  # there is nothing else to train on
    _, printed = run(tmp_path / "runs", *flags)
    assert "complete" in printed


def test_quiet_prints_nothing_and_verbose_says_what_was_set_up(tmp_path):
    _, printed = run(tmp_path / "a", "--quiet", "--updates=2")
    assert printed == ""
    _, printed = run(tmp_path / "b", "--verbose", "--updates=2")
    assert "allocator" in printed


def test_config_json_is_the_config(finished):
    config = json.loads((finished[1].path / "config.json").read_text())
    assert config["optimizer"] == "sgd"
    assert config["resolved"]["updates"] == 40


def test_a_run_is_not_continued_with_other_data_or_other_meters(tmp_path):
    process = start(tmp_path)
    wait_for(lambda: lines_in(tmp_path / "x" / "metrics.jsonl") >= 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    config_file = tmp_path / "x" / "config.json"
    config = json.loads(config_file.read_text())
    config["resolved"]["dataset"]["digest"] = "sha256:other"
    config["resolved"]["counted_domains"] = ["cpu:package-0"]
    config_file.write_text(json.dumps(config))
    before = (tmp_path / "x" / "windows.jsonl").read_bytes()
    ended = subprocess.run(command(tmp_path, *ENDLESS), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "sha256:other" in ended.stderr
    assert "counted_domains" in ended.stderr
    assert (tmp_path / "x" / "windows.jsonl").read_bytes() == before


def test_flops_of_micro_batches_are_counted_though_the_program_loops_over_them(finished, tmp_path):
    record, _ = run(tmp_path, "--accumulate=4", "--updates=2", "--meters=none")
    whole = finished[1].summary["compiled"]["flops_per_update"]
    assert record.summary["compiled"]["flops_per_update"] == pytest.approx(whole, rel=0.1)
    assert record.summary["compiled"]["bytes_per_update"] is None
    assert "loops" in record.summary["compiled"]["why"]["bytes_per_update"]
    assert record.summary["iterations"] == 8


def test_an_optimizer_of_the_user_s_own_is_trained_with(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import optax\n"
        "def halved(learning_rate=0.1, *, momentum: float = 0.0):\n"
        "    return optax.chain(optax.scale(0.5), optax.sgd(learning_rate, momentum))\n"
    )
    paths = [str(tmp_path), os.getcwd()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    flags = ["--optimizer=mine:halved", "--optimizer_args=momentum=0.9", "--meters=none"]
    record, _ = run(tmp_path / "runs", *flags, env=env)
    assert record.state == "completed"
    assert record.config["resolved"]["optimizer_args"] == {"momentum": 0.9}
    assert record.config["resolved"]["learning_rate"] == 0.1
    assert record.config["resolved"]["schedule"] == "cosine"


@pytest.mark.slow
def test_a_run_is_not_that_of_other_code_of_its_optimizer(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "import optax\ndef plain(learning_rate=0.1):\n    return optax.sgd(learning_rate)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    flags = ["--optimizer=mine:plain", "--name=x", "--meters=none"]
    record, _ = run(tmp_path / "runs", *flags, env=env)
    assert record.config["resolved"]["optimizer_source"]["file"] == "mine.py"
    assert record.optimizer_digest.startswith("sha256:")
    code.write_text(code.read_text().replace("(learning_rate)", "(learning_rate * 0)"))

    def refused(*words):
        ended = subprocess.run(
            command(tmp_path / "runs", *flags), capture_output=True, text=True, check=False, env=env
        )
        assert ended.returncode == 2
        assert all(word in ended.stderr for word in (*words, "--overwrite"))
        assert len(ended.stderr.strip().splitlines()) <= 3

    refused("is complete", "other code", record.optimizer_digest)
    summary = (record.path / "summary.json").read_bytes()
    (record.path / "summary.json").unlink()
    refused("cannot be continued", "optimizer_source.digest was", record.optimizer_digest)

    # A record from before the code was told is taken as it is, unfinished and complete.
    config = json.loads((record.path / "config.json").read_text())
    del config["resolved"]["optimizer_source"]
    (record.path / "config.json").write_text(json.dumps(config))
    _, printed = run(tmp_path / "runs", *flags, env=env)
    assert "going on from update 40" in printed
    (record.path / "summary.json").write_bytes(summary)
    _, printed = run(tmp_path / "runs", *flags, env=env)
    assert "is complete" in printed


@pytest.mark.slow
def test_the_default_run_learns_the_digits(tmp_path):
    """The README's first command, less its two seconds of idle before and after."""
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.run", f"--out={tmp_path}", "--idle_seconds=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (folder,) = tmp_path.iterdir()
    assert read(folder).summary["final"]["test_accuracy"] >= 0.97
