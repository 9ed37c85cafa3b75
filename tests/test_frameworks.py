"""Comparing frameworks: the design, one process, what the processes say, the driver's words."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxenergy import data
from jaxenergy.config import RunConfig
from jaxenergy.energy import Ledger
from jaxenergy.errors import UsageError
from jaxenergy.frameworks import FRAMEWORKS, comparison, summary, worker
from jaxenergy.frameworks.comparison import Design
from jaxenergy.frameworks.inputs import EPOCHS, Inputs, in_a_row, read_inputs
from jaxenergy.frameworks.side import Side
from jaxenergy.frameworks.side_jax import JaxSide
from jaxenergy.frameworks.zoo import ZOO, zoo_configs
from jaxenergy.meters import Meters
from jaxenergy.meters.simulated import PowerCurve, SimulatedCounter, SimulatedMeter
from jaxenergy.models import MODELS
from jaxenergy.report.frameworks import print_comparison
from jaxenergy.training.plan import make_plan

POWER_W = 250.0


def make_design(**given):
    base = {
        "configs": {"mlp": RunConfig(model="mlp", schedule="constant")},
        "frameworks": ("jax", "torch"),
        "processes": 4,
        "cold_compiles": 2,
        "seconds": 1.0,
        "tf32": True,
        "seed": 0,
    }
    return Design(**{**base, **given})


# --- the design -----------------------------------------------------------------------------------


def test_a_block_is_one_process_of_each_framework_in_an_order_drawn_anew():
    names = tuple(FRAMEWORKS)
    order = make_design(frameworks=names, processes=20).order("mlp")
    blocks = [[name for block, _, name in order if block == number] for number in range(20)]
    assert all(sorted(block) == sorted(names) for block in blocks)
    assert len({tuple(block) for block in blocks}) > 10
    assert [block for block, _, _ in order] == sorted(block for block, _, _ in order)
    assert order == make_design(frameworks=names, processes=20).order("mlp")
    assert order != make_design(frameworks=names, processes=20, seed=1).order("mlp")


def test_the_id_tells_what_is_compared_and_not_where_it_is_kept():
    config = RunConfig(model="mlp", out="elsewhere", name="x", data_dir="there", quiet=True)
    plain = make_design(configs={"mlp": RunConfig(model="mlp")})
    assert make_design(configs={"mlp": config}).id == plain.id
    assert make_design(configs={"mlp": RunConfig(model="mlp", depth=3)}).id != plain.id
    assert make_design(seconds=2.0).id != make_design().id


def test_the_zoo_has_every_family():
    assert list(ZOO) == list(MODELS)
    common = RunConfig(batch_size=32, optimizer="adam")
    configs = zoo_configs("all", common)
    assert list(configs) == list(MODELS)
    assert {config.batch_size for config in configs.values()} == {32}
    assert list(zoo_configs("vit, mlp", common)) == ["vit", "mlp"]


def test_inputs_come_back_as_they_were_written(tmp_path, monkeypatch):
    def savez_of_numpy_2_0(file, **arrays):  # to which every keyword is an array
        as_arrays: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        savez(file, **as_arrays)

    savez = np.savez
    monkeypatch.setattr(np, "savez", savez_of_numpy_2_0)
    rng = np.random.default_rng(0)
    variables = {
        "params": {"Dense_0": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}},
        "batch_stats": {"BatchNorm_0": {"mean": np.zeros(2, np.float32)}},
    }
    orders = rng.permuted(np.tile(np.arange(7, dtype=np.int32), (EPOCHS, 1)), axis=1)
    Inputs({"tf32": None}, orders, variables).write(tmp_path / "in")
    found = read_inputs(tmp_path / "in")
    assert found.facts == {"tf32": None}
    np.testing.assert_array_equal(found.orders, orders)
    assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


def test_jax_draws_the_batches_that_pytorch_is_given():
    examples, batch_size = 10, 4
    rng = np.random.default_rng(1)
    orders = rng.permuted(np.tile(np.arange(examples, dtype=np.int32), (EPOCHS, 1)), axis=1)
    config = RunConfig(
        model="mlp",
        depth=1,
        width=4,
        batch_size=batch_size,
        dataset=f"synthetic:2x2x1,examples={examples}",
        schedule="constant",
        updates=20,
    )
    facts = {"updates_per_call": 1, "tf32": None, "device": {"platform": "cpu"}}
    params = {"kernel": np.ones((4, 10), np.float32)}  # of no matter here
    side = JaxSide(config, "auto", Inputs(facts, orders, {"params": params}))
    side.before_start()
    side.start()
    side.prepare()
    side.load()
    take_batch = side._steps.make_take_batch(side._program)
    drawn = []

    def record(state, split, orders):  # in the place of the compiled update
        drawn.append(take_batch(state, split, orders))
        position = (state.position + batch_size) % examples
        return state._replace(position=position), None

    side._compiled = record
    updates = 2 * EPOCHS * examples // batch_size + 3  # beyond the last epoch, twice
    for _ in range(updates):
        side.call()
    row, train = in_a_row(orders, batch_size), side._program.dataset.train
    for update, batch in enumerate(drawn):
        begin = update * batch_size % orders.size
        indices = row[begin : begin + batch_size]
        np.testing.assert_array_equal(batch.inputs, train.inputs[indices])
        np.testing.assert_array_equal(batch.labels, train.labels[indices])


# --- what belongs to a framework's start ----------------------------------------------------------


SMALL = RunConfig(
    model="cnn",
    depth=2,
    width=4,
    optimizer="adam",
    batch_size=4,
    dataset="synthetic:4x4x1,examples=20",
    schedule="constant",
    updates=20,
)


def make_inputs(config):
    """What is prepared for a config on the CPU; parity is not looked at."""
    dataset = data.load(config.dataset)
    program = make_plan(config, dataset, "cpu").program
    variables = jax.tree.map(np.asarray, jax.jit(program.model.init)(jax.random.key(3)))
    orders = np.tile(np.arange(len(dataset.train.labels), dtype=np.int32), (EPOCHS, 1))
    facts = {"updates_per_call": 1, "tf32": None, "device": {"platform": "cpu"}}
    return Inputs(facts, orders, variables)


# Says what a side has imported by the end of each stage, and has compiled or computed by then.
FOLLOW = """
import json, sys
from pathlib import Path
from typing import Any
from jaxenergy.config import RunConfig
from jaxenergy.frameworks import worker
from jaxenergy.frameworks.inputs import read_inputs

framework, config, folder = sys.argv[1:]
inputs = read_inputs(Path(folder))
side = worker._open_side(framework, RunConfig.from_json(json.loads(config)), inputs)
told, done = {}, []

def note_compilation(event, duration, **_):
    if "backend_compile" in event:
        done.append("compiled")

for stage in ("before_start", "start", "prepare", "load"):
    getattr(side, stage)()
    if stage == "start" and framework == "torch":
        from torch.nn.modules import module
        module.register_module_forward_pre_hook(lambda *_: done.append("computed"))
    elif stage == "start":
        import jax
        jax.monitoring.register_event_duration_secs_listener(note_compilation)
    packages = ("jax", "flax", "optax", "torch", "jaxenergy.training.steps", "jaxenergy.torch_twin")
    told[stage] = [name for name in packages if name in sys.modules] + sorted(set(done))
side.build()
side.call()
side.fence()
print(json.dumps({**told, "loss": side.loss(), "threads": side.describe()["threads"]}))
"""


def follow(framework, folder, **variables):
    command = [sys.executable, "-c", FOLLOW, framework, json.dumps(SMALL.to_json()), str(folder)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_framework_pays_for_its_own_start_and_for_nothing_of_ours(tmp_path):
    pytest.importorskip("torch")
    make_inputs(SMALL).write(tmp_path)
    theirs = ["jax", "flax", "optax"]
    of_jax = follow("jax_plain", tmp_path, NPROC="3")
    of_torch = follow("torch", tmp_path, NPROC="3")
    assert of_jax["before_start"] == []
    assert of_jax["start"] == theirs
    # Nothing is compiled in what is left out: the first time, XLA itself is set up.
    assert of_jax["prepare"] == [*theirs, "jaxenergy.training.steps"]
    assert of_jax["load"] == [*theirs, "jaxenergy.training.steps", "compiled"]
    assert of_torch["before_start"] == [*theirs, "jaxenergy.training.steps"]
    assert of_torch["start"] == [*theirs, "torch", "jaxenergy.training.steps"]
    assert of_torch["prepare"] == [*of_torch["start"], "jaxenergy.torch_twin"]
    assert of_torch["load"] == of_torch["prepare"]  # and the network has computed nothing
    assert of_torch["loss"] == pytest.approx(of_jax["loss"], rel=1e-5)  # at the same weights
    assert of_torch["threads"] == of_jax["threads"] == 3  # what sets XLA's sets PyTorch's


# --- one process ----------------------------------------------------------------------------------


class Products(Side):
    """A framework of its own: matrix products in numpy; starting and compiling take a while."""

    updates_per_call = 2

    def __init__(self):
        self.calls = self.fences = 0

    def _work(self, seconds):
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            np.dot(self.matrix, self.matrix)

    def before_start(self):
        time.sleep(0.05)

    def start(self):
        self.matrix = np.random.default_rng(0).normal(size=(64, 64))
        self._work(0.03)

    def prepare(self):
        self._work(0.05)

    def load(self):
        self._work(0.01)

    def build(self):
        self._work(0.08)

    def call(self):
        self.calls += 1
        self._work(0.002)

    def fence(self):
        self.fences += 1

    def loss(self):
        return 0.0

    def peak_device_bytes(self):
        return None

    def describe(self):
        return {}


def meter_products(seconds=0.5):
    side = Products()
    counter = SimulatedCounter(PowerCurve([0.0], [POWER_W]), tick_s=0.0, resolution_j=1e-6)
    meters, lines = Meters((SimulatedMeter([counter]),)), []
    with Ledger(meters, fence=lambda _: side.fence(), on_line=lines.append) as ledger:
        updates, losses = worker._train(side, ledger, meters, seconds)
    assert losses == [0.0, 0.0]
    return side, lines, updates, worker.account(lines, updates, meters.counted_domains)


def test_a_process_is_cut_into_its_stages_and_they_are_all_there_is():
    side, lines, updates, told = meter_products()
    assert sum(updates.values()) == side.calls * side.updates_per_call
    assert updates["compile"] == side.updates_per_call
    stages = told["stages"]
    for stage, least_s in (("start_up", 0.04), ("compile", 0.082), ("warmup", 0.006)):
        assert stages[stage]["duration_s"] >= least_s
        assert stages[stage]["energy_j"] == pytest.approx(
            POWER_W * stages[stage]["duration_s"], rel=1e-3
        )
    # On a busy machine there may be more of `other`: what passes between two stages.
    labels = [line["phase"] for line in lines if line["phase"] != "other"]
    assert labels[: labels.index("train")] == ["input", "input", "compile", "warmup"]
    assert "other" in {line["phase"] for line in lines}
    train_s = sum(line["end_ns"] - line["start_ns"] for line in lines if line["phase"] == "train")
    assert train_s / 1e9 > 0.49  # as long as was asked for, in whole windows
    windows = [line for line in lines if line["phase"] == "train" and line["updates"]]
    assert all(line["fenced"] for line in windows)
    assert len(windows) >= worker._MIN_WINDOWS
    assert sum(line["updates"] for line in windows) == updates["train"]


def test_an_update_takes_its_time_times_the_power_and_the_rest_is_fixed():
    _, _, updates, told = meter_products()
    per_update, stages = told["per_update"], told["stages"]
    assert per_update["duration_s"] >= 0.001  # two updates a call of 2 ms
    assert per_update["energy_j"] == pytest.approx(POWER_W * per_update["duration_s"], rel=1e-3)
    assert per_update["power_w"] == pytest.approx(POWER_W, rel=1e-3)
    spent_s = sum(stage["duration_s"] for stage in stages.values())
    first = updates["compile"] + updates["warmup"]
    expected_s = spent_s - first * per_update["duration_s"]
    assert told["fixed"]["duration_s"] == pytest.approx(expected_s)
    assert told["fixed"]["energy_j"] == pytest.approx(POWER_W * expected_s, rel=1e-2)
    assert told["idle_w"] is None
    assert told["why"] == {"idle_w": "idle power was not measured"}


class Descent(Products):
    """A training whose loss falls, by updates that do nothing from one of them on."""

    updates_per_call = 1

    def __init__(self, effective):
        super().__init__()
        self.effective = effective

    def loss(self):  # before the last call's own update, as everywhere
        return 2.3 * 0.99 ** min(self.calls - 1, self.effective)


def test_a_graph_whose_updates_do_nothing_is_found_out():
    training = pytest.importorskip(
        "jaxenergy.torch_twin.training",
        reason="needs PyTorch",
        exc_type=UsageError,  # pyright: ignore[reportArgumentType]
    )
    processes = []
    for name, effective in (("jax", 99), ("torch", training._UPDATES_BEFORE_CAPTURE)):
        side = Descent(effective)
        with Ledger(Meters(), fence=lambda _, side=side: side.fence()) as ledger:
            _, losses = worker._train(side, ledger, Meters(), 0.1)
        processes.append({"framework": name, "first_losses": losses})
    why = summary.why_losses_differ(processes, "float32")
    assert why is not None
    assert "first updates" in why


def test_without_a_meter_time_is_still_known():
    side, lines = Products(), []
    with Ledger(Meters(), fence=lambda _: side.fence(), on_line=lines.append) as ledger:
        updates, _ = worker._train(side, ledger, Meters(), 0.2)
    told = worker.account(lines, updates, ())
    assert told["per_update"]["energy_j"] is None
    assert told["fixed"]["energy_j"] is None
    assert told["per_update"]["duration_s"] >= 0.001
    assert told["fixed"]["duration_s"] is not None
    assert told["why"]["per_update.energy_j"] == "no domain was counted"


# --- what the processes say -----------------------------------------------------------------------


def make_process(framework, block, *, update_s, power_w, fixed_s, cold=True, **given):
    """The record of a process that took what is said."""
    update_j, fixed_j = update_s * power_w, fixed_s * power_w
    stage = {"energy_j": fixed_j / 3, "duration_s": fixed_s / 3}
    return {
        "framework": framework,
        "block": block,
        "position": 0,
        "cold": cold,
        "provenance": "measured",
        "stages": dict.fromkeys(worker.STAGES, stage),
        "per_update": {
            "energy_j": update_j,
            "duration_s": update_s,
            "power_w": power_w,
            "windows": 20,
        },
        "fixed": {"energy_j": fixed_j, "duration_s": fixed_s},
        "idle_w": 50.0,
        "peak_memory": {"host_bytes": 10**9, "device_bytes": None},
        "updates_per_call": 1,
        "first_losses": [2.3, 2.2],
        "described": {},
        "environment": {"versions": {"jax": "1"}},
        "lines": [],
        "why": {},
        **given,
    }


def make_processes(blocks=5, cold=3, after_compiling=1.0):
    """Torch: half as long again at two thirds of the power, dearer by 10 s at the start.

    `after_compiling` is how much longer updates of JAX take in a process that has compiled.
    """
    chance = random.Random(0)
    processes = []
    for block in range(blocks):
        slow = 1 + 0.1 * chance.random()  # what a block shares
        for name, update_s, power_w, fixed_s in (
            ("jax", 0.010, 120.0, 20.0),
            ("torch", 0.015, 70.0, 5.0),
        ):
            own = 1 + 0.001 * chance.random()
            if name == "jax" and block < cold:
                own *= after_compiling
            processes.append(
                make_process(
                    name,
                    block,
                    update_s=update_s * slow * own,
                    power_w=power_w,
                    fixed_s=fixed_s * slow,
                    cold=block < cold,
                )
            )
    return processes


def summarise(processes, frameworks=("jax", "torch"), **given):
    facts = {"total_updates": 1000, "parity": None, "tf32": None}
    facts["device"] = {"platform": "gpu", "index": 0, "name": "a card"}
    facts["resolved"] = {"depth": 2, "width": 8, "parameters": 99}
    config = {"optimizer": "sgd", "batch_size": 128, "dataset": "digits"}
    given = {"status": summary.COMPARED, **given}
    return summary.summarise(summary.Comparison(config, facts, processes, **given), frameworks)


def test_time_and_power_are_told_apart():
    entry = summarise(make_processes())
    (pair,) = entry["pairs"]
    assert (pair["framework"], pair["reference"]) == ("torch", "jax")
    assert pair["time_ratio"]["ratio"] == pytest.approx(1.5, rel=2e-3)
    assert pair["power_ratio"]["ratio"] == pytest.approx(70 / 120)
    assert pair["energy_ratio"]["ratio"] == pytest.approx(1.5 * 70 / 120, rel=2e-3)
    low, high = pair["energy_ratio"]["ci95"]
    assert low < 1.5 * 70 / 120 < high
    assert high - low < 0.005  # what a block shares has dropped out
    assert pair["energy_ratio"]["processes"] == 2


@pytest.mark.parametrize(("cold", "tell"), [(3, "loaded"), (1, "loaded"), (4, "cold"), (5, "cold")])
def test_processes_that_compiled_and_those_that_did_not_are_not_taken_together(cold, tell):
    entry = summarise(make_processes(cold=cold, after_compiling=1.08))
    (pair,), told = entry["pairs"], entry["frameworks"]["jax"]
    slower = 1.0 if tell == "loaded" else 1.08
    processes = 5 - cold if tell == "loaded" else cold
    assert pair["time_ratio"]["ratio"] == pytest.approx(1.5 / slower, rel=2e-3)
    low, high = pair["time_ratio"]["ci95"]
    assert high - low < 0.005
    assert pair["time_ratio"]["processes"] == told["per_update_s"]["processes"] == processes
    for name in ("per_update_j", "power_w", "net_per_update_j"):
        assert told[name]["processes"] == processes
        assert told[name]["ci95"] is not None
    assert pair["energy_ratio"]["ratio"] == pytest.approx(
        pair["time_ratio"]["ratio"] * pair["power_ratio"]["ratio"]
    )
    # A training that compiles anew goes on in the process that has compiled.
    assert told["training_s"]["processes"] == cold
    assert told["training_s"]["mean"] == pytest.approx(1.05 * (20 + 1.08 * 10), rel=0.05)


def test_the_interval_of_a_ratio_of_updates_holds_though_some_processes_compiled():
    chance, held = random.Random(1), []
    for _ in range(600):
        processes = make_processes(after_compiling=1.06)
        for process in processes:
            process["per_update"]["duration_s"] *= chance.gauss(1.0, 0.01)
        (pair,) = summarise(processes)["pairs"]
        low, high = pair["time_ratio"]["ci95"]
        held.append(low <= 1.5 <= high)
    assert 0.92 < sum(held) / 600 < 0.98


def test_crossovers_and_whole_trainings():
    entry = summarise(make_processes())
    (pair,) = entry["pairs"]
    energy, seconds = pair["energy_crossover"], pair["time_crossover"]
    # 2,400 J + 1.2 J an update against 350 J + 1.05 J: torch from the first update on.
    assert energy["verdict"] == "never"
    assert energy["cheaper_in_the_long_run"] == "torch"
    # 20 s + 10 ms against 5 s + 15 ms.
    assert seconds["verdict"] == "crosses"
    assert seconds["updates"] == pytest.approx(3000, rel=0.02)
    ((low, high),) = seconds["set95"]
    assert low < 3000 < high
    assert (seconds["cheaper_without_updates"], seconds["cheaper_in_the_long_run"]) == (
        "torch",
        "jax",
    )
    assert (seconds["cold_blocks"], seconds["blocks"]) == (3, 3)
    told = entry["frameworks"]["jax"]
    assert told["training_j"]["mean"] == pytest.approx(1.05 * (2400 + 1200), rel=0.03)
    assert told["compile_j"]["processes"] == 3
    assert told["start_up_j"]["processes"] == 5
    assert told["net_per_update_j"]["mean"] == pytest.approx(
        told["per_update_j"]["mean"] * (120 - 50) / 120
    )
    assert told["peak_memory"]["device_bytes"] == {"mean": None, "why": "not known here"}


def test_a_number_that_is_not_known_says_why_and_the_rest_stands():
    processes = make_processes()
    broken = next(p for p in processes if p["framework"] == "torch" and p["block"] == 3)
    broken["per_update"] = {**broken["per_update"], "energy_j": None, "power_w": None}
    broken["fixed"] = {**broken["fixed"], "energy_j": None}
    broken["why"] = {"per_update.energy_j": "the counter stood still"}
    entry = summarise(processes)
    told = entry["frameworks"]["torch"]
    assert told["per_update_j"] == {"mean": None, "why": "the counter stood still"}
    assert told["training_j"]["processes"] == 3
    assert told["per_update_s"]["processes"] == 2
    (pair,) = entry["pairs"]
    assert pair["energy_ratio"]["processes"] == 1
    assert pair["time_ratio"]["processes"] == 2


def test_a_process_that_compiled_and_does_not_know_leaves_trainings_unknown():
    processes = make_processes()
    broken = next(p for p in processes if p["framework"] == "torch" and p["block"] == 1)
    broken["per_update"] = {**broken["per_update"], "energy_j": None, "power_w": None}
    broken["fixed"] = {**broken["fixed"], "energy_j": None}
    broken["why"] = {"per_update.energy_j": "the counter stood still"}
    told = summarise(processes)["frameworks"]["torch"]
    assert told["training_j"] == {"mean": None, "why": "the counter stood still"}
    assert told["per_update_j"]["processes"] == 2


def test_the_weakest_provenance_is_told_and_differing_versions_are_warned_of():
    processes = make_processes()
    processes[0]["provenance"] = "estimated"
    processes[1]["environment"] = {"versions": {"jax": "2"}}
    processes[2]["others_busy_cores"] = 1.27
    entry = summarise(processes)
    assert entry["provenance"] == "estimated"
    versions, disturbed = entry["warnings"]
    assert versions == "the processes do not all have the same versions"
    assert disturbed.startswith("in 1 of 10 processes other programs kept up to 1.3 cores busy")


@pytest.mark.parametrize(
    ("losses", "precision", "why"),
    [
        ([2.3001, 2.2001], "float32", None),
        ([2.31, 2.2], "float32", "the loss of the first update is 2.3 in jax and 2.31 in torch"),
        ([2.3, 2.1], "float32", "first updates is 2.1 in torch and 2.2 in jax"),
        ([2.31, 2.2], "bfloat16", None),
        ([2.3, float("nan")], "float32", "the loss of the first updates is nan in torch"),
        (None, "float32", None),
    ],
)
def test_metered_programs_must_begin_with_the_same_losses(losses, precision, why):
    processes = make_processes()
    processes[-1]["first_losses"] = losses
    found = summary.why_losses_differ(processes[-2:], precision)
    assert found is None if why is None else why in (found or "")


def test_one_cold_compile_gives_no_interval():
    (pair,) = summarise(make_processes(cold=1))["pairs"]
    crossing = pair["time_crossover"]
    assert crossing["set95"] is None
    assert crossing["updates"] == pytest.approx(3000, rel=0.05)
    assert crossing["why"]
    assert pair["compile_time_ratio"]["ci95"] is None


def test_the_document_is_strict_json_and_prints():
    processes = make_processes()
    entries = {
        "mlp": summarise(processes),
        "cnn": summarise(processes[:2]),
        "vit": summarise([], status=summary.REFUSED, why="the first layer differs"),
    }
    document = {
        "models": json.loads(json.dumps(entries, allow_nan=False)),
        "reference": "jax",
        "design": {"frameworks": ["jax", "torch"]},
    }
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparison(document, "runs/x", console)
    text = console.export_text()
    assert "1.5 (1.5 to 1.5)" in text
    assert "jax takes less beyond 2,9" in text
    assert "torch takes less at any number of updates" in text
    assert "refused: the first layer differs" in text
    assert "no interval: an interval needs two" in text


# --- running processes ----------------------------------------------------------------------------


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_signal_ends_the_process_and_all_that_it_started(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids)!r} + '.new', {str(pids)!r})\n"
        "time.sleep(60)\n"
    )

    def interrupt():  # once both are there
        while not pids.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with comparison._Stop() as stop:
        threading.Thread(target=interrupt, daemon=True).start()
        status = stop.run([sys.executable, "-c", code], os.environ, subprocess.DEVNULL)
    assert status == -signal.SIGKILL
    assert stop.signum == signal.SIGINT
    while any(is_alive(pid) for pid in pids.read_text().split()):  # they are dying
        time.sleep(0.01)
    assert stop.run(["true"], os.environ, subprocess.DEVNULL) == 128 + signal.SIGINT


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_prepared(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(comparison, "_prepare", lambda *given: pytest.fail("it was prepared"))
    with pytest.raises(UsageError, match=r"(?s)file/c cannot be made.*--out"):
        comparison.run(make_design(), tmp_path / "file" / "c")


def test_another_comparison_is_not_mixed_in(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / comparison.DESIGN_FILE).write_text(json.dumps(make_design().to_json()))
    with pytest.raises(UsageError, match=r"(?s)differs in seconds\.\n.*--overwrite"):
        comparison.run(make_design(seconds=9.0), folder)
    (folder / comparison.DESIGN_FILE).rename(folder / "notes.txt")
    with pytest.raises(UsageError, match="holds something else"):
        comparison.run(make_design(), folder)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
