"""`benchmarks/gpu.sh` without a GPU: its command line, its results file, its checks' arithmetic.

The instrument stage runs once, in a process over a simulated `libnvidia-ml.so.1` of known truth.
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simulated_nvml
from simulated_nvml import Card, Cards

from jaxenergy.errors import UsageError
from jaxenergy.meters import open_meters
from jaxenergy.records.lock import FolderLock
from jaxenergy.stats import Estimate
from jaxenergy.studies import STUDIES
from jaxenergy.training.programs import compile_programs, transfer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("benchmarks are not part of an installed package", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import gpu_instrument  # noqa: E402
import gpu_stage  # noqa: E402
import gpu_tests  # noqa: E402
import gpu_zoo  # noqa: E402
from zoo import CASES, build_plan  # noqa: E402

POWER_W = 300.0


def gpu_sh(*arguments, env=None, **variables):
    return subprocess.run(
        [BENCHMARKS / "gpu.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**(env or os.environ), "PYTHON": sys.executable, **variables},
    )


# --- the command line -----------------------------------------------------------------------------


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", BENCHMARKS / "gpu.sh"], check=True)


def test_an_unknown_stage_is_refused_with_the_nearest():
    refused = gpu_sh("instrumnet")
    assert refused.returncode == 2
    assert "STAGE=instrumnet is unknown. Did you mean instrument?" in refused.stderr
    assert "instrument run tests measure zoo frameworks studies all" in refused.stderr


@pytest.mark.parametrize("seconds", ["soon", "-5", "20"])
def test_a_call_of_no_length_is_refused(seconds):
    refused = gpu_sh("instrument", f"--seconds={seconds}")
    assert refused.returncode == 2
    assert f"--seconds={seconds} is" in refused.stderr
    assert "llowed: " in refused.stderr


def test_without_a_stage_it_says_how_it_is_used():
    refused = gpu_sh()
    assert refused.returncode == 2
    for stage in ("instrument", "run", "tests", "measure", "zoo", "frameworks", "studies", "all"):
        assert f" {stage} " in refused.stderr


def test_every_package_that_is_missing_is_named_at_once(tmp_path):
    bare = tmp_path / "python"  # without site-packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    refused = gpu_sh("instrument", f"--results={tmp_path / 'results'}", PYTHON=str(bare))
    assert refused.returncode == 2
    assert "lacks: jax, numpy, scipy, nvidia-ml-py.\n" in refused.stderr
    assert len(refused.stderr.splitlines()) == 2
    assert not (tmp_path / "results").exists()


def test_a_machine_without_a_gpu_is_refused_in_words(tmp_path):
    refused = gpu_sh("instrument", f"--results={tmp_path}")
    assert refused.returncode == 2
    assert "not on a GPU" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_ending_the_script_ends_its_stage(tmp_path):
    library = simulated_nvml.build(tmp_path)
    Cards(tmp_path / "state", [Card(name="NVIDIA H200", power_w=POWER_W)]).write()
    with subprocess.Popen(
        [
            BENCHMARKS / "gpu.sh",
            "instrument",
            "--budget=smoke",
            f"--results={tmp_path / 'results'}",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **simulated_nvml.environment(library, tmp_path / "state"),
            "PYTHON": sys.executable,
        },
    ) as script:
        assert script.stdout is not None
        assert "ticks" in script.stdout.readline()
        script.terminate()
        script.stdout.read()  # until nobody is left who could write
        assert script.wait() == 143
    folder = tmp_path / "results" / "nvidia-h200"
    assert not (folder / "instrument.json").exists()  # it did not go on to its first check's end
    FolderLock(folder).release()  # nobody holds it


# --- the instrument stage over a simulated card ---------------------------------------------------


@pytest.fixture(scope="module")
def instrument(tmp_path_factory):
    """The stage's results on a card of constant power, and what it printed."""
    folder = tmp_path_factory.mktemp("instrument")
    library = simulated_nvml.build(folder)
    Cards(folder / "state", [Card(name="NVIDIA H100 80GB HBM3", power_w=POWER_W)]).write()
    done = gpu_sh(
        "instrument",
        "--budget=smoke",
        "--only=ticks,counter_against_power,edges,coverage_1ms",
        f"--results={folder / 'results'}",
        env=simulated_nvml.environment(library, folder / "state"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    path = folder / "results" / "nvidia-h100-80gb-hbm3" / "instrument.json"
    return json.loads(path.read_text()), path


@pytest.mark.slow
def test_the_results_say_what_they_were_made_with(instrument):
    record, path = instrument
    assert record["gpu"] == "NVIDIA H100 80GB HBM3"
    assert record["driver"] == "550.54.15"
    assert record["command"] == "benchmarks/gpu.sh instrument --budget=smoke"
    assert record["environment"]["versions"]["jax"]
    assert record["failed"] == {}
    assert not record["complete"]  # not all checks were asked for
    assert 0 < record["duration_s"] < 300
    assert record["begun_at"]
    text = path.read_text()
    for private in (os.uname().nodename, str(Path.home()), str(BENCHMARKS.parent)):
        assert f'"{private}' not in text
    assert not [file for file in path.parent.iterdir() if file.suffix not in (".json", ".csv")]


@pytest.mark.slow
def test_ticks_are_those_of_the_card(instrument):
    ticks = instrument[0]["checks"]["ticks"]
    for state in ("busy", "idle"):
        counter = ticks[f"counter_{state}"]
        assert counter["interval_ms"]["median"] == pytest.approx(100, rel=0.1)
        assert counter["interval_ms"]["mean"] == pytest.approx(100, rel=0.1)
        assert counter["resolution_mj"] % 30_000 == 0  # 300 W for whole ticks
        assert counter["power_w"] == pytest.approx(POWER_W, rel=0.1)
        rows = (instrument[1].parent / counter["raw"]).read_text().splitlines()
        assert rows[0] == "time_ms,bracket_ms,counter_j"
        assert len(rows) == 1 + counter["changes"]
    field = ticks["power_sensors_busy"]["instant power (field 186)"]
    assert field["changes"] == 0  # constant power: nothing tells when the sensor looks
    assert field["interval_ms"] is None
    assert field["why"]


@pytest.mark.slow
def test_counter_and_power_agree_and_a_short_stretch_says_why_not_checked(instrument):
    busy, idle = instrument[0]["checks"]["counter_against_power"]["stretches"]
    assert busy["state"] == "busy"
    assert busy["ratio"] == pytest.approx(1, abs=0.02)
    assert busy["ci95"][0] <= busy["ratio"] <= busy["ci95"][1]
    assert busy["library_check"]["agrees"]
    assert busy["library_check"]["bound_j"] > 0
    assert idle["ratio"] == pytest.approx(1, abs=0.05)
    assert idle["library_check"] is None
    assert idle["why"]


@pytest.mark.slow
def test_phases_conserve_joules_and_short_ones_are_known(instrument):
    edges = instrument[0]["checks"]["edges"]
    assert edges["conservation"]["counter_j"] > 100
    assert abs(edges["conservation"]["relative"]) < 0.01
    assert edges["lag"]["rising"] is None
    assert edges["lag"]["why"] == "busy and idle draw the same power"
    for state in ("busy", "idle"):
        assert edges["long_run_power_w"][state]["mean"] == pytest.approx(POWER_W, rel=0.05)
    for phases in edges["short_phases"]:
        # Not by the length asked for: on a busy machine a phase lasts longer.
        assert phases["mean_j"] == pytest.approx(POWER_W * phases["mean_duration_s"], rel=0.2)
        assert phases["rms_percent"] < 3 * phases["stated_percent"] + 1


@pytest.mark.slow
def test_updates_cost_their_duration_times_the_power(instrument):
    coverage = instrument[0]["checks"]["coverage_1ms"]
    assert coverage["power_w"] == pytest.approx(POWER_W, rel=0.05)
    assert coverage["per_update_j"]["mean"] == pytest.approx(
        POWER_W * coverage["seconds_per_update"], rel=0.5
    )
    for blocks in filter(None, coverage["blocks"]):
        assert 0 <= blocks["holds_next_mean"]["share"] <= 1
        assert 0.5 < blocks["holds_next_mean"]["expected"] < 0.95


# --- the frameworks stage -------------------------------------------------------------------------


@pytest.mark.slow
def test_frameworks_are_compared_by_the_joules_of_the_card(tmp_path):
    library = simulated_nvml.build(tmp_path)
    Cards(tmp_path / "state", [Card(name="NVIDIA H100 80GB HBM3", power_w=POWER_W)]).write()
    arguments = ("frameworks", "--budget=smoke", f"--results={tmp_path / 'results'}", "--fresh")
    env = simulated_nvml.environment(library, tmp_path / "state")
    done = gpu_sh(*arguments, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "results" / "nvidia-h100-80gb-hbm3"
    stage = json.loads((folder / "frameworks.json").read_text())
    assert stage["complete"]
    document = json.loads((folder / stage["checks"]["mlp"]["file"]).read_text())
    entry = document["models"]["mlp"]
    assert entry["parity"]["passed"]
    assert entry["provenance"] == "measured"
    for told in entry["frameworks"].values():
        assert told["processes"] == 2
        # Constant power, so that joules are seconds times it, whatever the framework.
        assert told["power_w"]["mean"] == pytest.approx(POWER_W, rel=0.1)
        # The idle power is that too, as well as a few ticks of it tell.
        assert abs(told["net_per_update_j"]["mean"]) < 0.5 * told["per_update_j"]["mean"]
    (pair,) = entry["pairs"]
    assert pair["energy_ratio"]["ratio"] == pytest.approx(pair["time_ratio"]["ratio"], rel=0.1)
    text = (folder / "frameworks-mlp.json").read_text()
    for private in (os.uname().nodename, str(BENCHMARKS.parent)):
        assert f'"{private}' not in text


# --- the zoo stage over a simulated card ----------------------------------------------------------


@pytest.mark.slow
def test_the_zoo_tells_joules_time_and_share_of_the_peak_of_every_family(tmp_path):
    library = simulated_nvml.build(tmp_path)
    Cards(tmp_path / "state", [Card(name="NVIDIA H200", power_w=POWER_W)]).write()
    networks = [f"{name}_bfloat16" for name in CASES]
    alone = ["convnext_bfloat16_forms", "mlp_bfloat16_forms", "mlp_bfloat16_kernels"]
    command = [
        "zoo",
        "--budget=smoke",
        f"--only={','.join(['peak_bfloat16', *networks, *alone])}",
        f"--results={tmp_path / 'results'}",
    ]
    environment = simulated_nvml.environment(library, tmp_path / "state")
    done = gpu_sh(*command, env=environment)
    if done.returncode == 1 and "the time was up before the first window" in done.stderr:
        done = gpu_sh(*command, env=environment)  # a busy machine: what failed is done again
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads((tmp_path / "results" / "nvidia-h200" / "zoo.json").read_text())["checks"]
    # Two hidden layers of 8 units over 3072 numbers: 2 FLOPs a weight, forward, three times over.
    flops = 3 * 16 * 2 * (3072 * 8 + 8 * 8 + 8 * 10)
    assert checks["mlp_bfloat16"]["flops_per_update"] == flops
    peak, joules_known = checks["peak_bfloat16"]["flop_per_s"], 0
    for network in networks:
        found = checks[network]
        result = found["frameworks"]["jax"]
        if result["j_per_update"] is None:  # a busy machine: too few windows in the time
            assert "windows" in result["measurement"]["why"]["per_call_j"], network
        else:
            joules_known += 1
            joules = POWER_W * result["seconds_per_update"]
            assert result["j_per_update"] == pytest.approx(joules, rel=0.5), network
        assert result["mfu"] == pytest.approx(result["flop_per_s"] / peak, rel=1e-4), network
        assert found["losses_differ"] is None, network
        if "torch_eager" in found["frameworks"]:
            assert found["frameworks"]["torch_eager"]["seconds_per_update"] > 0, network
        else:
            assert "PyTorch" in found["why"]["torch_eager"], network
    assert joules_known > len(networks) / 2
    # The forms of the CPU, which computes here; and no GPU's kernels.
    assert "depthwise" in checks["convnext_bfloat16_forms"]["forms"]
    ratios = checks["convnext_bfloat16_forms"]["time_over_default"]
    assert set(ratios) == {"plain Flax", "without depthwise"}
    assert all(ratio["value"] > 0 for ratio in ratios.values())
    assert checks["mlp_bfloat16_forms"]["forms"] == checks["mlp_bfloat16_kernels"]["kernels"] == []


def test_a_traces_kernels_are_summed_by_name_and_update():
    def line(name, *events):
        return SimpleNamespace(
            name=name, events=[SimpleNamespace(name=n, duration_ns=ns) for n, ns in events]
        )

    device = [
        line("Stream #1(Compute)", ("gemm", 4e6), ("add", 1e6), ("gemm", 2e6)),
        line("Stream #2(Memset)", ("add", 1e6)),
        line("XLA Ops", ("gemm", 9e6)),  # the same time again, by operation
    ]
    planes = [
        SimpleNamespace(name="/device:GPU:0", lines=device),
        SimpleNamespace(name="/host:CPU", lines=[line("Stream", ("gemm", 9e6))]),
    ]
    seconds, launches = gpu_zoo.sum_kernels(planes, 2)
    assert seconds == {"gemm": pytest.approx(3e-3), "add": pytest.approx(1e-3)}
    assert launches == {"gemm": 1, "add": 1}


def test_trainings_of_the_zoo_are_waited_for_at_the_end_of_a_window_alone():
    done = []

    def call():
        time.sleep(0.5e-3)
        done.append("call")

    training = gpu_zoo.Training(call, lambda: done.append("wait"), (1.0, 1.0))
    with open_meters("none") as meters:
        found, ratios = gpu_zoo.measure_trainings({"jax": training, "torch": training}, meters, 5.0)
    in_a_row = [len(list(run)) for what, run in itertools.groupby(done) if what == "call"]
    assert statistics.median(in_a_row) >= 5  # calls of a window, some 20 ms long
    assert done[-1] == "wait"
    assert found["jax"].seconds_per_call == pytest.approx(found["torch"].seconds_per_call, rel=0.5)
    assert set(ratios) == {"time", "energy"}


def check_mlp():
    """A check of the zoo that measures no joules."""
    stage = SimpleNamespace(
        options=SimpleNamespace(smoke=True),
        rig=SimpleNamespace(open_meters=lambda: open_meters("none")),
        result=lambda name: None,
    )
    return gpu_zoo.check_network(stage, "mlp", "float32", 2.0)


def test_what_pytorch_cannot_do_is_said_and_is_done_again(monkeypatch):
    def fail(*arguments):
        raise MemoryError("all of it\nis taken")

    monkeypatch.setattr(gpu_zoo, "why_without_torch", lambda: None)
    monkeypatch.setattr(gpu_zoo, "begin_torch", fail)
    found = check_mlp()
    assert found["frameworks"]["jax"]["seconds_per_update"] > 0
    assert found["why"] == {"torch_eager": "MemoryError: all of it\nis taken"}
    assert "torch_eager was not measured: MemoryError: all of it" in found["says"]
    assert found["failed"] == "without torch_eager"


def test_after_a_graph_that_failed_another_process_goes_on(monkeypatch):
    """On this machine every graph fails: it has no CUDA device."""
    pytest.importorskip("torch")
    monkeypatch.setattr(gpu_zoo, "_failed_graphs", [])
    plan = build_plan("mlp", "cpu", width=4, batch_size=8)
    programs = compile_programs(plan, transfer(plan), "cpu")
    trainings, failed = gpu_zoo.begin_trainings(programs, 1, ("cuda_graphs",), "cpu")
    assert list(trainings) == ["jax"]
    assert "torch_cuda_graphs" in failed
    with pytest.raises(gpu_stage.Unfinished, match="CUDA graph failed"):
        check_mlp()


def test_a_training_that_differs_is_told_by_its_losses(monkeypatch):
    begin = gpu_zoo.begin_jax
    as_pytorch = gpu_zoo.Training(lambda: None, lambda: None, (2.3, 9.9), {"LSTM": "float16"})
    monkeypatch.setattr(gpu_zoo, "why_without_torch", lambda: None)
    monkeypatch.setattr(gpu_zoo, "begin_torch", lambda *given: as_pytorch)
    monkeypatch.setattr(
        gpu_zoo, "begin_jax", lambda *given: dataclasses.replace(begin(*given), losses=(2.3, 2.2))
    )
    found = check_mlp()
    assert (
        found["losses_differ"]
        == "the loss of the first updates is 2.2 in jax and 9.9 in torch_eager"
    )
    assert any("NOT THE SAME TRAINING" in sentence for sentence in found["says"])
    assert any("LSTM gives float16" in sentence for sentence in found["says"])


def test_the_zoo_needs_no_pytorch(monkeypatch):
    monkeypatch.setattr(gpu_zoo, "why_without_torch", lambda: "there is none")
    found = check_mlp()
    assert list(found["frameworks"]) == ["jax"]
    assert found["why"] == {"torch_eager": "there is none"}
    assert "failed" not in found
    assert found["preparing_s"].keys() == {"jax"}
    assert found["preparing_s"]["jax"] > found["frameworks"]["jax"]["seconds_per_update"]


@pytest.mark.slow
def test_a_process_compiles_more_networks_than_pytorch_allows_programs_of_a_function(monkeypatch):
    torch = pytest.importorskip("torch")
    # TorchInductor takes ten seconds for each; what is counted comes before it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    made = []
    # By PyTorch's own means: what pytest puts back is hidden from PyTorch then.
    with torch._dynamo.config.patch(recompile_limit=1):
        for width, size in ((4, 8), (6, 8), (4, 16)):
            plan = build_plan("mlp", "cpu", width=width, batch_size=size)
            programs = compile_programs(plan, transfer(plan), "cpu")
            trainings, failed = gpu_zoo.begin_trainings(programs, 1, ("compile",), "cpu")
            assert not failed
            made.append(trainings["torch_compile"])
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for training in made:  # those from before are as they were
            training.call()
            training.wait()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


# --- the studies stage ----------------------------------------------------------------------------


@pytest.mark.slow
def test_studies_are_judged_on_the_joules_of_the_card(tmp_path):
    library = simulated_nvml.build(tmp_path)
    Cards(tmp_path / "state", [Card(name="NVIDIA H100 80GB HBM3", power_w=POWER_W)]).write()
    arguments = ("studies", "--budget=smoke", f"--results={tmp_path / 'results'}", "--fresh")
    env = simulated_nvml.environment(library, tmp_path / "state")
    done = gpu_sh(*arguments, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    stage = json.loads((tmp_path / "results/nvidia-h100-80gb-hbm3/studies.json").read_text())
    assert stage["complete"]
    studies = stage["checks"]["studies"]["studies"]
    assert set(studies) == set(STUDIES)
    assert studies["depth"]["provenance"] == "measured"
    # A seed each is too little for any verdict, and joules that were measured are not void.
    verdicts = {v["verdict"] for v in studies["depth"]["verdicts"] if v["quantity"] == "energy"}
    assert verdicts == {"undecided"}


# --- the results file -----------------------------------------------------------------------------


@pytest.fixture
def open_stage(tmp_path):
    """Opens a stage over a results folder, as a call of the script does."""
    opened = []

    def open_it(versions=None, **options):
        environment = {
            "versions": versions or {"jax": "1"},
            "meter_facts": {"nvml": {"driver": "550"}},
            "git": {"commit": "abc", "modified": False},
        }
        rig = gpu_stage.Rig(None, "gpu:0", "NVIDIA H200", "GPU-1", environment)
        given = {"budget": "full", "data_dir": None, "commit": None, "fresh": False, "only": ()}
        chosen = gpu_stage.Options(results=tmp_path, **{**given, **options})
        opened.append(gpu_stage.Stage("stage", rig, chosen))
        return opened[-1]

    yield open_it
    for stage in opened:
        stage.close()


def counting(name, log, error=None, seconds=1.0):
    def run():
        log.append(name)
        if error:
            raise error
        return {"value_j": len(log) / 3, "says": [name]}

    return gpu_stage.Check(name, seconds, run)


def read(stage):
    return json.loads((stage.folder / "stage.json").read_text())


def test_a_stage_goes_on_where_it_was(open_stage):
    log = []
    stage = open_stage()
    assert stage.folder.name == "nvidia-h200"
    assert stage.run([counting("a", log), counting("b", log, ValueError("no"))]) == 1
    assert read(stage)["failed"] == {"b": "ValueError: no"}
    assert not read(stage)["complete"]
    stage.close()
    stage = open_stage()
    assert stage.run([counting("a", log), counting("b", log)]) == 0
    assert log == ["a", "b", "b"]
    record = read(stage)
    assert record["complete"]
    assert record["failed"] == {}
    assert record["checks"]["a"]["value_j"] == 0.333333
    assert record["commit"] == "abc"


@pytest.mark.parametrize("seconds", [gpu_stage.CALL_S, 300])
def test_what_may_not_finish_in_time_is_left_for_the_next_call(open_stage, seconds):
    log = []
    stage = open_stage(seconds=seconds)
    stage._begun_s -= 0.8 * seconds
    assert stage.run([counting("a", log, seconds=0.2 * seconds)]) == gpu_stage.CALL_AGAIN
    assert log == []
    assert stage.run([counting("a", log, seconds=0.05 * seconds)]) == 0


def test_a_check_too_long_for_any_call_is_begun_at_once(open_stage):
    log = []
    assert open_stage().run([counting("a", log, seconds=2 * gpu_stage.CALL_S)]) == 0


def test_a_check_that_keeps_what_it_did_is_gone_on_with(open_stage):
    log = []
    stage = open_stage()
    checks = [counting("a", log, gpu_stage.Unfinished("2 are left")), counting("b", log)]
    assert stage.run(checks) == gpu_stage.CALL_AGAIN
    assert not (stage.folder / "stage.json").exists()
    assert stage.run([counting("a", log), counting("b", log)]) == 0
    assert log == ["a", "a", "b"]
    assert read(stage)["failed"] == {}


def test_a_part_is_kept_and_done_again_after_what_has_nothing_yet(open_stage):
    log = []

    def give_a_part():
        log.append("a")
        return {"value_j": 1.0, "failed": "without b's"}

    stage = open_stage()
    assert stage.run([gpu_stage.Check("a", 1.0, give_a_part), counting("b", log, OSError())]) == 1
    assert read(stage)["checks"]["a"]["value_j"] == 1
    assert read(stage)["failed"]["a"] == "without b's"
    assert not read(stage)["complete"]
    stage.close()
    stage = open_stage()
    assert stage.run([counting("a", log), counting("b", log), counting("c", log)]) == 0
    assert log == ["a", "b", "b", "c", "a"]
    assert read(stage)["failed"] == {}
    assert read(stage)["complete"]


def test_results_of_other_versions_are_not_mixed(open_stage, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_stage.py", "--only=a"])
    log = []
    stage = open_stage()
    stage.run([counting("a", log)])
    stage.close()
    with pytest.raises(UsageError, match=r"(?s)another versions.*gpu.sh stage --only=a --fresh$"):
        open_stage(versions={"jax": "2"})
    stage = open_stage(versions={"jax": "2"}, fresh=True)
    assert stage.run([counting("a", log)]) == 0
    assert log == ["a", "a"]
    assert read(stage)["environment"]["versions"] == {"jax": "2"}


def test_a_file_without_a_finished_check_is_begun_anew(open_stage):
    log = []
    stage = open_stage()
    assert stage.run([counting("a", log, ValueError("no"))]) == 1
    stage.close()
    stage = open_stage(versions={"jax": "2"})
    assert stage.run([counting("a", log)]) == 0
    assert read(stage)["environment"]["versions"] == {"jax": "2"}


def test_a_number_that_is_none_fails_its_check_alone(open_stage):
    log = []
    stage = open_stage()
    nan = gpu_stage.Check("nan", 1.0, lambda: {"ratio": float("nan")})
    assert stage.run([nan, counting("a", log)]) == 1
    assert "ratio is nan" in read(stage)["failed"]["nan"]
    assert list(read(stage)["checks"]) == ["a"]


def test_two_stages_do_not_measure_on_one_gpu_at_a_time(open_stage):
    first = open_stage()
    with pytest.raises(UsageError, match="in use by process"):
        open_stage()
    first.close()
    open_stage()


def test_an_unknown_check_is_refused_with_the_nearest(open_stage):
    with pytest.raises(UsageError, match=r"--only=tiks is unknown. Did you mean 'ticks'\?"):
        open_stage(only=("tiks",)).run([counting("ticks", [])])


# --- arithmetic -----------------------------------------------------------------------------------


def staircase(tick_s, power_w, duration_s, poll_s=0.001):
    """Readings of a counter that ticks, from 0 on."""
    begin_ns = np.arange(0, duration_s, poll_s) * 1e9
    values = np.floor(begin_ns / 1e9 / tick_s + 1e-6) * tick_s * power_w
    return gpu_instrument.Readings(begin_ns, begin_ns + 1e4, values)


def test_ticks_of_a_staircase():
    facts = gpu_instrument.counter_facts(staircase(0.02, 250.0, 1.0))
    assert facts["changes"] == 49
    assert facts["interval_ms"]["median"] == pytest.approx(20)
    assert facts["resolution_mj"] == 5000
    assert facts["power_w"] == pytest.approx(250)
    # A change lies between the reading before it, at 19 ms, and the end of the one after, at 20.01.
    assert facts["bracket_ms"]["max"] == pytest.approx(1.01)


def test_counter_and_power_of_known_ratio():
    counter = staircase(0.1, 202.0, 3.0)
    power = gpu_instrument.Readings(
        counter.begin_ns, counter.end_ns, np.full(len(counter.values), 200.0)
    )
    blocks = gpu_instrument.energy_by_both(counter, power, 7)
    assert blocks.shape == (7, 2)
    assert blocks[:, 0] / blocks[:, 1] == pytest.approx(np.full(7, 1.01))


def test_lag_of_a_counter_that_is_late():
    late_s, idle_w, busy_w = 0.07, 100.0, 400.0
    time_s = np.arange(0, 20, 0.01)
    edges = [(5.0, busy_w - idle_w), (10.0, idle_w - busy_w), (15.0, busy_w - idle_w)]
    energy_j = idle_w * time_s + sum(
        step_w * np.maximum(0, time_s - at_s - late_s) for at_s, step_w in edges
    )
    ticks = gpu_instrument.Changes(1e9 * time_s, np.zeros_like(time_s), energy_j)
    settle_s = 1.0
    lines, kinds = [], []
    for begin_s, state in ((0.0, "idle"), (5.0, "busy"), (10.0, "idle"), (15.0, "busy")):
        for start_s, end_s, kind in (
            (begin_s, begin_s + settle_s, "settling"),
            (begin_s + settle_s, min(begin_s + 5, 19.9), state),
        ):
            lines.append({"start_ns": 1e9 * start_s, "end_ns": 1e9 * end_s})
            kinds.append((kind, None))
    states = {"idle": Estimate(idle_w, 0.0), "busy": Estimate(busy_w, 0.0)}
    found = gpu_instrument.lags(lines, kinds, states, ticks)
    assert found["rising"]["mean"] == pytest.approx(late_s)
    assert len(found["rising"]["values"]) == 2
    assert found["falling"] is None  # one edge gives no interval


def test_the_expected_share_is_what_right_intervals_do():
    rng = np.random.default_rng(0)
    size, pairs = 20, 1500
    lines = [
        {
            "start_ns": 10**9 * at,
            "end_ns": 10**9 * (at + 1),
            "updates": 10,
            "steady": True,
            "fenced": True,
            "energy_j": {"gpu:0": energy_j},
            "uncertainty_j": {"gpu:0": 0.0},
            "why": {},
        }
        for at, energy_j in enumerate(rng.normal(100, 3, 2 * size * pairs))
    ]
    found = gpu_instrument.cover_of_blocks(lines, "gpu:0", size)
    assert found["pairs"] + found["pairs_without_interval"] == pairs
    held, zero = found["holds_next_mean"], found["difference_holds_zero"]
    assert 0.83 < held["expected"] < 0.90
    assert held["share"] == pytest.approx(held["expected"], abs=0.03)
    assert zero["share"] == pytest.approx(0.95, abs=0.03)
    assert held["ci95"][0] < held["share"] < held["ci95"][1]


def test_the_expected_share_of_equal_blocks_with_many_degrees_of_freedom():
    # 1.96 / sqrt(2) standard deviations of a normal distribution.
    assert gpu_instrument.expected_share(Estimate(1.0, 1.0), 1.0) == pytest.approx(0.8342, abs=1e-4)
    assert gpu_instrument.expected_share(Estimate(1.0, 1.0), 0.0) == pytest.approx(0.95)


def test_blocks_without_a_pair_say_nothing():
    assert gpu_instrument.cover_of_blocks([], "gpu:0", 5) is None


@pytest.mark.parametrize(("held", "ends"), [([True] * 4, (0.398, 1)), ([False] * 4, (0, 0.602))])
def test_the_interval_of_a_share(held, ends):
    assert gpu_instrument.share_of(held)["ci95"] == pytest.approx(ends, abs=1e-3)


def test_outcomes_of_a_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_gpu" name="test_a" time="1.5"/>'
        '<testcase classname="tests.test_gpu" name="test_b" time="0"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert gpu_tests.read_outcomes(report) == {
        "tests.test_gpu::test_a": {"outcome": "passed", "duration_s": 1.5},
        "tests.test_gpu::test_b": {"outcome": "skipped", "duration_s": 0.0},
    }
