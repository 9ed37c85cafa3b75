"""Sweeps: their order, what is found and what is left alone, and sweeps in real processes."""

import collections
import dataclasses
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import simulated_nvml
import single_node_slurm
from absl import flags as absl_flags
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import experiments.run  # noqa: F401  # defines the flags of a run
from experiments.flags import run_config
from jaxenergy import sweeps
from jaxenergy.config import PROTOCOL, RunConfig
from jaxenergy.errors import RunError, UsageError
from jaxenergy.records import Run, read_run
from jaxenergy.report.sweep import SweepView
from jaxenergy.sweeps import Conditions
from jaxenergy.sweeps.device_lock import DeviceLocks, Stopped
from jaxenergy.sweeps.grid import read_axes, read_seeds
from jaxenergy.sweeps.prediction import Predictor
from jaxenergy.sweeps.results import Ground
from jaxenergy.sweeps.slurm import write_job
from jaxenergy.sweeps.survey import Size
from jaxenergy.units import format_si

TINY = RunConfig(model="mlp", depth=1, width=16, updates=20, idle_seconds=0.0, meters="estimate")

ARGUMENT_TEXTS = st.text("abcxyz019.,=/_ '\"$;-", max_size=12)
CONFIGS = st.builds(
    RunConfig,
    model=st.sampled_from(["cnn", "mlp"]),
    depth=st.none() | st.integers(1, 50),
    optimizer_args=ARGUMENT_TEXTS,
    learning_rate=st.none() | st.floats(1e-9, 1e9),
    batch_size=st.integers(1, 10**6),
    augment=st.booleans(),
    updates=st.none() | st.integers(1, 2**31 - 1),
    seed=st.integers(0, 2**32 - 1),
    data_dir=st.none() | ARGUMENT_TEXTS,
    checkpoint_every=st.sampled_from(["60s", "500", "0"]),
    quiet=st.booleans(),
)


# ---------------------------------------------------------------------------------- the design


def test_a_source_is_run_before_what_begins_with_it_and_the_rest_stays_random():
    source = dataclasses.replace(TINY, updates=7)
    fine = dataclasses.replace(TINY, init_from=f"setup:{source.id}")
    kinds = [source, *(dataclasses.replace(c, depth=d) for c in (TINY, fine) for d in range(1, 4))]
    cells = sweeps.plan([dataclasses.replace(c, seed=s) for s in range(9) for c in kinds]).cells
    places = collections.Counter()
    for seed in range(9):
        block = [cell.config for cell in cells if cell.block == seed]
        assert len(block) == len(kinds)
        first = min(i for i, config in enumerate(block) if config.init_from)
        assert any(config.updates == 7 for config in block[:first])
        places[block[-1].init_from is None] += 1
    assert len(places) == 2  # what has no source comes last in some blocks


def grid(learning_rates=3, seeds=4):
    return sweeps.product(
        TINY,
        {
            "learning_rate": [0.1 * (n + 1) for n in range(learning_rates)],
            "seed": list(range(seeds)),
        },
    )


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(), st.randoms())
def test_each_block_is_a_random_order_of_all_cells_of_its_seed(rates, seeds, order_seed, shuffle):
    configs = grid(rates, seeds)
    planned = sweeps.plan(configs, order_seed=order_seed)
    assert collections.Counter(cell.config for cell in planned.cells) == collections.Counter(
        configs
    )
    blocks = [
        (seed, [cell.config.learning_rate for cell in cells])
        for seed, cells in itertools.groupby(planned.cells, lambda cell: cell.block)
    ]
    assert [seed for seed, _ in blocks] == list(range(seeds))
    assert all(len(set(block)) == rates for _, block in blocks)
    # The order is the draw's alone, not that in which the configs happened to be given.
    shuffle.shuffle(configs)
    assert sweeps.plan(configs, order_seed=order_seed) == planned


@settings(deadline=None)
@given(st.integers(), st.sets(st.integers(0, 23), min_size=1))
def test_adding_runs_leaves_the_order_of_the_others(order_seed, chosen):
    configs = grid(6, 4)
    some = [configs[index] for index in chosen]
    whole = sweeps.plan(configs, order_seed=order_seed).cells
    part = sweeps.plan(some, order_seed=order_seed).cells
    assert list(part) == [cell for cell in whole if cell.config in some]


def test_no_cell_is_favoured():
    """Over many draws each cell is at each place of its block about equally often."""
    draws = 2000
    counts = collections.Counter()
    configs = grid(3, 1)
    for order_seed in range(draws):
        for place, cell in enumerate(sweeps.plan(configs, order_seed=order_seed).cells):
            counts[cell.config.learning_rate, place] += 1
    expected = draws / 3
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 9
    assert statistic < 18.5  # chi-squared with 4 degrees of freedom exceeds it once in 1,000


def parse(arguments):
    """The config that experiments.run makes of a command line."""
    absl_flags.FLAGS.unparse_flags()
    for name in absl_flags.FLAGS:
        absl_flags.FLAGS[name].unparse()
    rest = absl_flags.FLAGS(["run", *arguments])
    assert rest == ["run"]
    return run_config()


@settings(max_examples=50, deadline=None)
@given(CONFIGS, st.sampled_from(["runs", "/some where/runs", "a'b;$(c)"]))
def test_the_command_line_of_a_cell_is_its_config(config, out):
    arguments = sweeps.Cell(config).arguments(out, "x-r0")
    assert arguments[:2] == ["-m", "experiments.run"]
    typed = shlex.split(shlex.join(arguments))  # as a shell takes the line of sweep.json
    expected = dataclasses.replace(config, out=out, name="x-r0")
    assert parse(typed[2:]) == expected
    assert expected.id == config.id


@pytest.mark.parametrize(
    ("configs", "word"),
    [
        ([], "one or more"),
        ([TINY, TINY], "the same"),
        ([TINY, dataclasses.replace(TINY, verbose=True)], "the same"),
        ([dataclasses.replace(TINY, name="x")], "--name=x"),
        ([dataclasses.replace(TINY, overwrite=True)], "--overwrite"),
    ],
)
def test_what_is_no_sweep_is_refused(configs, word):
    with pytest.raises(UsageError, match=word) as error:
        sweeps.plan(configs)
    assert len(str(error.value).splitlines()) <= 3


# ------------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize(
    ("texts", "axes"),
    [
        (["depth=2,4,8"], {"depth": [2, 4, 8]}),
        (["optimizer=sgd, adam", "augment=true,false"], None),
        (
            ["optimizer_args=momentum=0.9,nesterov=true; momentum=0.5;"],
            {"optimizer_args": ["momentum=0.9,nesterov=true", "momentum=0.5", ""]},
        ),
        (["optimizer_args=momentum=0.9"], {"optimizer_args": ["momentum=0.9"]}),
        (["meters=nvml,rapl;"], {"meters": ["nvml,rapl"]}),
        (["clip_norm=none,1"], {"clip_norm": [None, 1.0]}),
        (["dataset=digits,cifar10"], {"dataset": ["digits", "cifar10"]}),
        (
            ["dataset=synthetic:8x8x3,classes=2;digits"],
            {"dataset": ["synthetic:8x8x3,classes=2", "digits"]},
        ),
    ],
)
def test_a_grid_as_it_is_typed(texts, axes):
    expected = axes or {"optimizer": ["sgd", "adam"], "augment": [True, False]}
    assert read_axes(texts) == expected


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, unique=True))
def test_numbers_of_a_grid_are_read_back(values):
    assert read_axes([f"width={','.join(map(str, values))}"]) == {"width": values}
    assert read_seeds(f"{','.join(map(str, values))},") == values


def test_a_number_of_seeds_is_the_first_so_many():
    assert read_seeds("3") == [0, 1, 2]


# For each, a word that the message must hold.
WRONG = [
    ([], "nothing to sweep over"),
    (["--grid=optimiser=sgd,adam"], "'optimizer'"),
    (["--grid=depth"], "name=value"),
    (["--grid=depth=2,,4"], "empty"),
    (["--grid=depth="], "empty"),
    (["--grid=depth=2;;4"], "empty"),
    (["--grid=depth=2,2"], "twice"),
    (["--grid=learning_rate=0.1,1e-1"], "twice"),
    (["--grid=depth=2,x"], "whole number"),
    (["--grid=depth=0,2"], "1 or more"),
    (["--grid=out=a,b"], "does not change"),
    (["--grid=depth=2", "--grid=depth=4"], "twice"),
    (["--grid=depth=2,4", "--depth=3"], "both"),
    (["--grid=seed=1,2", "--seeds=2"], "both"),
    (["--seeds=2", "--seed=1"], "both"),
    (["--seeds=0"], "how many"),
    (["--seeds=1,1"], "twice"),
    (["--seeds=many"], "how many"),
    (["--seeds=4294967296,"], "4294967295"),
    (["--grid=optimizer_args=momentum=0.9,nesterov=true"], "two ways"),
    (["--grid=batch_size=128,99", "--accumulate=3"], "divide"),
    (["--grid=epochs=1,2", "--updates=5"], "one of the two"),
    (["--grid=width=" + ",".join(map(str, range(1, 202))), "--seeds=50"], "10,000"),
    (["--seeds=2", "--launcher=slrm"], "slurm"),
    (["--seeds=2", "--exclusive=gpu"], "--launcher=slurm"),
    (["--seeds=2", "--exclusive=rack", "--launcher=slurm"], "node"),
    (["--seeds=2", "--gres=gpu:2", "--launcher=slurm"], "--exclusive=gpu"),
    (["--seeds=2", "--order_seed=x"], "whole number"),
    (["--seeds=2", "--name=mine"], "--out=FOLDER, which holds them all"),
    (["--seeds=2", "--resume=never"], "goes on with"),
    (["--seeds=2", "--overwrite"], "does not run again what is finished"),
    (["--list"], "experiments.run --list"),
    (["--seeds=2", "--nmae=mine"], "nmae"),
    # These need the registries, and so a process that has JAX.
    (["--grid=optimizer=sgd,adm"], "'adam'"),
    (["--grid=model_args=norm=group;nrom=batch"], "norm"),
]


# Two drivers define the same flags, so that this process cannot load both; and to start one for
# each command line would take long.
TRY_ALL = """
import contextlib, io, json, sys
from absl import flags
import experiments.sweep

refusals = []
for arguments in json.load(sys.stdin):
    sys.argv = ["sweep", *arguments]
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    message, status = io.StringIO(), None
    with contextlib.redirect_stderr(message):
        try:
            experiments.sweep.main()
        except SystemExit as ended:
            status = ended.code
    refusals.append((status, message.getvalue()))
print(json.dumps(refusals))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What the driver says to each of `WRONG`, and the folder in which it might have written."""
    folder = tmp_path_factory.mktemp("refusals")
    beside = [f"--out={folder}/runs", f"--lock_dir={folder}/locks", "--model=mlp"]
    command_lines = json.dumps([[*beside, *arguments] for arguments, _ in WRONG])
    ended = subprocess.run(
        [sys.executable, "-c", TRY_ALL],
        input=command_lines,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[" ".join(a)[:40] for a, _ in WRONG])
def test_a_wrong_command_line_starts_nothing(number, refusals):
    folder, answers = refusals
    status, message = answers[number]
    assert status == 2, message
    assert 1 <= len(message.strip().splitlines()) <= 3, message
    assert WRONG[number][1] in message
    assert list(folder.iterdir()) == []


# ----------------------------------------------------------------------------------- the locks


def test_devices_are_taken_one_at_a_time(tmp_path):
    said = []
    with DeviceLocks(["cpu", "GPU-1"], tmp_path, who="the first") as first:
        DeviceLocks(["GPU-2"], tmp_path, who="another card").release()
        with pytest.raises(UsageError, match="the first") as error:
            DeviceLocks(["cpu"], tmp_path, who="the second", wait=False)
        assert f"process {os.getpid()}" in str(error.value)
        with pytest.raises(Stopped):
            DeviceLocks(
                ["GPU-1"], tmp_path, who="x", say=said.append, stop_requested=lambda: signal.SIGINT
            )
        assert "the first" in said[0]
        first.note_run(12345)
        with pytest.raises(UsageError, match="12345"):
            DeviceLocks(["cpu"], tmp_path, who="the second", wait=False)
    DeviceLocks(["cpu", "GPU-1"], tmp_path, who="the second", wait=False).release()


def test_a_lock_lasts_as_long_as_the_run_that_inherited_it(tmp_path):
    held = DeviceLocks(["cpu"], tmp_path, who="a sweep")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=held.descriptors)
    held.release()  # as the kernel does for a sweep that is killed
    with pytest.raises(UsageError, match="a sweep"):
        DeviceLocks(["cpu"], tmp_path, who="the next", wait=False)
    child.communicate()
    DeviceLocks(["cpu"], tmp_path, who="the next", wait=False).release()


# A GPU for JAX, as far as a survey asks for one.
WITH_A_GPU = """
from jaxenergy import measuring
from jaxenergy.config import RunConfig
from jaxenergy.meters import Device
from jaxenergy.sweeps.survey import _look_at_machine

measuring.read_jax_devices = lambda: [Device("gpu", 0, name="card")]
for meters in ("nvml", "none"):
    print(*_look_at_machine({"": RunConfig(meters=meters)})[1])
"""


def test_a_gpu_is_locked_by_its_uuid_whether_it_is_metered_or_not(tmp_path):
    simulated_nvml.Cards(tmp_path / "state", [simulated_nvml.Card(uuid="GPU-5f")]).write()
    env = simulated_nvml.environment(simulated_nvml.build(tmp_path), tmp_path / "state")
    ended = subprocess.run(
        [sys.executable, "-c", WITH_A_GPU], capture_output=True, text=True, check=True, env=env
    )
    assert ended.stdout.split() == ["GPU-5f", "GPU-5f"]


# ------------------------------------------------------------------------------ the prediction


def finished(config, updates, once_s, per_update_s):
    duration_s = once_s + per_update_s * updates
    summary = {
        "updates": updates,
        "parameters": 100,
        "duration_s": duration_s,
        "duration_by_phase_s": {"compile": once_s, "train": per_update_s * updates},
        "compiled": {"flops_per_update": 1e6},
    }
    return config, Run(Path("x"), "completed", "", config.to_json(), summary)


def test_time_is_that_of_the_same_settings_else_scaled_by_the_work():
    same, deeper = TINY, dataclasses.replace(TINY, depth=3)
    sizes = {
        dataclasses.replace(TINY, seed=7).id: Size(20, 100, 128, 1e6),
        deeper.id: Size(200, 300, 128, 3e6),
    }
    predictor = Predictor(sizes, startup_s=2.0)
    assert predictor.predict(sweeps.Cell(deeper)).seconds is None
    predictor.add(*finished(same, updates=20, once_s=5.0, per_update_s=0.5))
    other_seed = predictor.predict(sweeps.Cell(dataclasses.replace(TINY, seed=7)))
    assert other_seed.seconds == 2 + 5 + 10
    assert "same settings" in other_seed.source
    scaled = predictor.predict(sweeps.Cell(deeper))
    assert scaled.seconds == pytest.approx(2 + 5 + 3 * 0.5 * 200)
    assert "depth" in scaled.source


# ------------------------------------------------------------------------------- real processes

SMALL = ["--model=mlp", "--depth=1", "--width=16", "--idle_seconds=0", "--meters=estimate"]


def sweep_command(folder, *flags):
    return [
        sys.executable,
        *("-m", "experiments.sweep", f"--out={folder}/runs", f"--lock_dir={folder}/locks"),
        *SMALL,
        *flags,
    ]


def run_sweep(folder, *flags, status=0, env=None):
    """Runs the driver to its end; its record and what it printed."""
    ended = subprocess.run(
        sweep_command(folder, *flags),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=env,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return read_record(folder), ended.stdout


def read_record(folder):
    (record,) = (folder / "runs" / "sweeps").glob("*/sweep.json")
    return json.loads(record.read_text())


def states(record):
    return collections.Counter(cell["state"] for cell in record["cells"])


DIVERGING = ["--grid=learning_rate=0.1,1e30", "--seeds=2", "--updates=10"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two set-ups, one of which fails by its nature; and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, *run_sweep(folder, *DIVERGING, status=1)


def test_failed_runs_are_recorded_and_the_sweep_goes_on(swept):
    folder, record, printed = swept
    assert states(record) == {"completed": 2, "failed": 2}
    assert [cell["block"] for cell in record["cells"]] == [0, 0, 1, 1]
    for cell in record["cells"]:
        run = read_run(folder / "runs" / cell["run"])
        assert run.state == cell["state"]
        assert run.config is not None
        assert run.config["id"] == cell["run_id"]
        diverges = cell["settings"]["learning_rate"] == 1e30
        assert cell["state"] == ("failed" if diverges else "completed")
        assert cell["exit_status"] == (1 if diverges else 0)
        assert ("not finite" in (cell["why"] or "")) == diverges
    (conditions,) = record["conditions"]
    assert conditions["provenance"] == "estimated"
    assert conditions["protocol"] == record["protocol"]
    assert "ESTIMATED" in printed
    assert printed.count("learning_rate=1e+30 seed=1") >= 1


def test_any_run_can_be_repeated_by_its_line_of_the_record(swept, tmp_path):
    cell = next(cell for cell in swept[1]["cells"] if cell["state"] == "completed")
    program, *words = shlex.split(cell["command"])
    assert program == sys.executable
    # As it stands it finds its run completed.
    ended = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "complete" in ended.stdout


def test_what_is_finished_is_not_run_again_and_may_lie_deeper(swept, tmp_path):
    folder, record, _ = swept
    shutil.copytree(folder / "runs", tmp_path / "runs" / "of" / "a colleague")
    shutil.rmtree(tmp_path / "runs" / "of" / "a colleague" / "sweeps")
    again, printed = run_sweep(tmp_path, *DIVERGING, status=1)
    assert again["id"] == record["id"]
    assert states(again) == states(record)
    assert {cell["wall_s"] for cell in again["cells"]} == {None}
    assert {Path(cell["run"]).parts[0] for cell in again["cells"]} == {"of"}
    assert "2 of 4 runs completed, 2 failed" in printed


def test_results_of_other_conditions_are_left_alone_and_said(swept, tmp_path):
    folder, record, _ = swept
    shutil.copytree(folder / "runs", tmp_path / "runs")
    done = [cell for cell in record["cells"] if cell["state"] == "completed"]
    runs = [read_run(folder / "runs" / cell["run"]) for cell in record["cells"]]
    configs = [RunConfig.from_json(run.config or {}) for run in runs]
    planned = sweeps.plan([dataclasses.replace(config, name=None) for config in configs])
    here = Conditions.from_json(record["conditions"][0])
    expected = {cell.run_id: here for cell in planned.cells}
    assert Ground(tmp_path / "runs", expected).left_alone(planned) == ()

    def edit(cell, name, change):
        file = tmp_path / "runs" / cell["run"] / name
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    edit(done[0], "environment.json", lambda e: e["cpu"].update(model="Another CPU"))
    edit(done[1], "config.json", lambda c: c.update(protocol=0))
    ground = Ground(tmp_path / "runs", expected)
    located = {cell.run_id: ground.locate(cell) for cell in planned.cells}
    for cell in done:
        assert located[cell["run_id"]].state == "waiting"
        assert located[cell["run_id"]].name == f"{cell['run_id']}-r1"  # beside it, not over it
    sentences = " ".join(ground.left_alone(planned))
    assert "Another CPU" in sentences
    assert "protocol 0" in sentences

    # Where nothing is expected, as of a cluster's nodes, both are there, and cannot be mixed.
    edit(done[1], "config.json", lambda c: c.update(protocol=PROTOCOL))
    ground = Ground(tmp_path / "runs", {})
    result = sweeps.SweepResult(
        planned, tuple(ground.locate(cell) for cell in planned.cells), tmp_path
    )
    assert len(result.conditions) == 2
    assert "must not be mixed" in result.warnings[-1]
    with pytest.raises(RunError, match="Another CPU"):
        result.comparable()


@pytest.mark.slow
def test_runs_on_other_data_are_left_alone_and_said(tmp_path):
    text = tmp_path / "text"
    flags = ["--model=lstm", "--dataset=text:length=8", f"--data_dir={text}"]
    flags += ["--updates=3", "--batch_size=8", "--seeds=1"]
    text.write_text("one text, and " * 100)
    first, _ = run_sweep(tmp_path, *flags)
    text.write_text("of another one " * 100)
    second, printed = run_sweep(tmp_path, *flags)
    (before,), (after,) = first["cells"], second["cells"]
    assert before["run_id"] == after["run_id"]
    assert (before["run"], after["run"]) == (f"{before['run_id']}-r0", f"{before['run_id']}-r1")
    assert "other data" in " ".join(second["warnings"])
    assert "left alone" in printed
    again, _ = run_sweep(tmp_path, *flags)
    assert (again["cells"][0]["run"], again["cells"][0]["wall_s"]) == (after["run"], None)


@pytest.mark.slow
def test_runs_by_other_code_of_an_optimizer_are_left_alone_and_said(tmp_path):
    code = tmp_path / "mine.py"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    flags = ["--grid=optimizer=mine:plain,sgd", "--seeds=1", "--updates=3"]
    code.write_text("from optax import sgd\ndef plain(learning_rate=0.1): return sgd(0.1)\n")
    first, _ = run_sweep(tmp_path, *flags, env=env)
    code.write_text("from optax import sgd\ndef plain(learning_rate=0.1): return sgd(0.001)\n")
    second, printed = run_sweep(tmp_path, *flags, env=env)
    assert states(second) == {"completed": 2}
    (warning,) = second["warnings"]
    assert "1 run of the same settings" in warning
    assert "other code than --optimizer names now" in warning
    assert "left alone" in printed
    anew = [cell for cell in second["cells"] if cell["wall_s"] is not None]
    assert [cell["settings"]["optimizer"] for cell in anew] == ["mine:plain"]
    assert anew[0]["run"] == f"{anew[0]['run_id']}-r1"
    assert f"{anew[0]['run_id']}-r0" in [cell["run"] for cell in first["cells"]]
    again, _ = run_sweep(tmp_path, *flags, env=env)
    assert {cell["wall_s"] for cell in again["cells"]} == {None}


def test_a_dry_run_says_what_it_knows_and_writes_nothing(swept, tmp_path):
    folder, _, _ = swept
    before = sorted(folder.rglob("*"))
    flags = ["--grid=learning_rate=0.1,0.2", "--seeds=3", "--updates=10", "--dry_run"]
    ended = subprocess.run(
        sweep_command(folder, *flags), capture_output=True, text=True, check=True
    )
    assert sorted(folder.rglob("*")) == before
    assert "6 runs, 4 to be done: " in ended.stdout
    assert "2 finished runs of the same" in ended.stdout
    assert "learning_rate" in ended.stdout


def test_a_dry_run_for_a_cluster_takes_the_runs_of_any_machine(swept, tmp_path):
    folder, _, _ = swept
    shutil.copytree(folder / "runs", tmp_path / "runs")
    for file in (tmp_path / "runs").glob("*/environment.json"):
        document = json.loads(file.read_text())
        document["cpu"]["model"] = "A node's CPU"
        file.write_text(json.dumps(document))

    def forecast(*flags):
        command = sweep_command(tmp_path, *DIVERGING, "--dry_run", *flags)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "4 runs, 4 to be done" in forecast()
    cluster = forecast("--launcher=slurm")
    assert "4 runs, 0 to be done" in cluster
    assert "left alone" not in cluster


def test_the_live_table_has_joules_and_the_time_left_and_fits_its_screen(swept):
    folder, record, _ = swept
    configs = [
        dataclasses.replace(TINY, updates=10, learning_rate=rate, seed=seed)
        for rate in [0.1, *(1 + number / 10 for number in range(40))]
        for seed in (0, 1)
    ]
    planned = sweeps.plan(configs)
    ground = Ground(folder / "runs", {})
    cells = [ground.locate(cell) for cell in planned.cells]
    running = next(i for i, cell in enumerate(cells) if cell.cell.config.learning_rate == 2.0)
    cells[running] = dataclasses.replace(cells[running], state="running")
    result = sweeps.SweepResult(planned, tuple(cells), folder)
    assert result.count("completed") == 2
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, height=20, color_system=None)
    with SweepView(console) as view:
        view.show(
            sweeps.Progress(
                result=result,
                begun_s=time.monotonic(),
                update=4,
                total_updates=10,
                energy_j=12.3,
                provenance="estimated",
                left_s=130.0,
                unknown=3,
            )
        )
        frame = written.getvalue()
        assert len(frame.splitlines()) <= 20
        assert "2 of 82 runs completed, 79 waiting; 2 min 10 s left and 3 runs not known" in frame
        assert "learning_rate=2.0" in frame
        assert "update 4/10  12.3 J estimated" in frame
        assert "│ 2.0 " in frame
        view.finish(result)
    whole = written.getvalue()[len(frame) :]
    assert "ESTIMATED" in whole
    for config in configs:
        assert f"│ {config.learning_rate} " in whole
    accounts = [
        (read_run(folder / "runs" / cell["run"]).summary or {})["energy_j"]
        for cell in record["cells"]
        if cell["state"] == "completed"
    ]
    energies = [account["total"] - account["by_phase"]["compile"] for account in accounts]
    assert format_si(sum(energies) / 2, "J") in whole


def completed_sweep(monkeypatch, folder, summaries):
    """A sweep of which every run is completed.

    Args:
        monkeypatch: pytest's.
        folder: of the sweep.
        summaries: what the run of each config came to.
    """
    by_id = {config.id: summary for config, summary in summaries.items()}

    def read(cell):
        return Run(folder, "completed", "", cell.cell.config.to_json(), by_id[cell.run_id])

    monkeypatch.setattr(sweeps.CellResult, "read", read)
    planned = sweeps.plan(list(summaries))
    cells = [
        sweeps.CellResult(c, "completed", "", folder, c.run_id, None, 1.0) for c in planned.cells
    ]
    return sweeps.SweepResult(planned, tuple(cells), folder)


def shown(result, width=120):
    """What is printed of a sweep in a log: the lines of its runs, and what stands at its end."""
    written = io.StringIO()
    console = Console(file=written, width=width, color_system=None)
    with SweepView(console) as view:
        view.show(sweeps.Progress(result=result))
        view.finish(result)
    return written.getvalue()


def account(seed, *, cached, metered=True, **further):
    """A run's summary: 3 J or a little more, and compiling that takes 13 J or next to nothing."""
    compile_j, compile_s = (0.25, 0.25) if cached else (13.0, 4.0)
    total_j = 3.0 + 0.1 * seed + compile_j
    return {
        "provenance": "estimated" if metered else "none",
        "energy_j": {"total": total_j if metered else None},
        "per_update_j": {"mean": 0.01} if metered else {"mean": None},
        "duration_s": compile_s + 4.0,
        "duration_by_phase_s": {"compile": compile_s, "idle": 2.0, "train": 2.0},
        "compiled": {
            "cache_hit": cached,
            "compile_j": compile_j if metered else None,
            "compile_s": compile_s,
        },
        "final": {"test_accuracy": 0.9},
        **further,
    }


def optimizers_and_seeds(**settings):
    return [
        dataclasses.replace(TINY, optimizer=optimizer, seed=seed, **settings)
        for optimizer in ("sgd", "adam")
        for seed in range(3)
    ]


@pytest.mark.parametrize("metered", [True, False])
@pytest.mark.parametrize("cold", [(), ("sgd",), ("adam",), ("sgd", "adam")])
def test_what_was_compiled_before_changes_no_mean_of_the_table(
    monkeypatch, tmp_path, cold, metered
):
    summaries = {
        config: account(
            config.seed, cached=config.seed > 0 or config.optimizer not in cold, metered=metered
        )
        for config in optimizers_and_seeds()
    }
    printed = shown(completed_sweep(monkeypatch, tmp_path, summaries))
    table = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    rows = {row[0].strip(): [cell.strip() for cell in row[2:]] for row in table}
    energy, per_update = ("3.10 J ± 8%", "10.0 mJ ± 0%") if metered else ("n/a", "n/a")
    cells = [energy, per_update, "accuracy 90.00%", "2.0 s"]
    assert rows == {"sgd": cells, "adam": cells}
    assert "without idle and compiling" in printed
    anew, found = ("13.0 J", "250 mJ") if metered else ("4.0 s", "250 ms")
    told = {0: "", 1: f"{anew} in 1 run that compiled anew and "}
    told[2] = told[1].replace("1 run", "2 runs")
    assert (
        f"Compiling took {told[len(cold)]}{found} in {6 - len(cold)} runs that found their programs"
    ) in printed
    lines = [line for line in printed.splitlines() if "seed=0" in line]
    assert sum(f"2.0 s, compiling {anew};" in line for line in lines) == len(cold)
    assert sum(f"2.0 s, compiling {found} (from the cache);" in line for line in lines) == 2 - len(
        cold
    )


def towards(seed, *, reached, cached):
    """A run's summary, with a target that takes 2 J or a little more beside compiling."""
    target = {"accuracy": 0.9, "reached_at_update": None, "energy_j": None}
    if reached:
        compile_j = 0.25 if cached else 13.0
        target |= {"reached_at_update": 1200, "energy_j": 2.0 + 0.1 * seed + compile_j}
    return account(seed, cached=cached, target=target)


def test_a_sweep_with_a_target_says_which_runs_reached_it_and_for_what(monkeypatch, tmp_path):
    summaries = {
        config: towards(
            config.seed,
            reached=config.optimizer == "sgd" and config.seed < 2,
            cached=config.seed > 0,
        )
        for config in optimizers_and_seeds(target_accuracy=0.9)
    }
    result = completed_sweep(monkeypatch, tmp_path, summaries)
    printed = shown(result, width=150)
    (headings,) = (line for line in printed.splitlines() if line.startswith("┃"))
    names = [name.strip() for name in headings.split("┃")[1:-1]]
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    table = {row[0].strip(): dict(zip(names, map(str.strip, row), strict=True)) for row in rows}
    # Of two values 0.1 apart, half an interval is 12.7 times 0.05.
    assert (table["sgd"]["reached"], table["sgd"]["to target"]) == ("2/3", "2.05 J ± 31%")
    assert (table["adam"]["reached"], table["adam"]["to target"]) == ("0/3", "")
    assert "To target: " in printed
    lines = {line.split("  ")[1]: line for line in printed.splitlines() if "seed=" in line}
    assert len(lines) == 6
    cold = "target accuracy 0.9 reached after 1,200 updates for 2.00 J;"
    assert cold in lines["optimizer=sgd seed=0"]
    assert cold.replace("2.00", "2.10") in lines["optimizer=sgd seed=1"]
    for label in ("optimizer=sgd seed=2", "optimizer=adam seed=0"):
        assert "target accuracy 0.9 not reached;" in lines[label]


def test_without_a_target_nothing_is_said_of_one(monkeypatch):
    summaries = {c: account(c.seed, cached=True, target=None) for c in optimizers_and_seeds()}
    assert "target" not in shown(completed_sweep(monkeypatch, Path("x"), summaries))


ENDLESS = ["--updates=100000000", "--eval_every=2000", "--seeds=2"]


STARTED: list[tuple[Path, subprocess.Popen]] = []


def start(folder, *flags):
    process = subprocess.Popen(
        sweep_command(folder, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    STARTED.append((folder, process))
    return process


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """A test that fails half-way leaves neither a sweep nor its run."""
    yield
    while STARTED:
        folder, process = STARTED.pop()
        if process.poll() is None:
            _, run_pid = holder_of(folder)
            process.kill()
            process.communicate()
            if run_pid is not None:
                os.kill(run_pid, signal.SIGKILL)


def wait_for(holds, process):
    """Waits until `holds()`; fails if the process ends first."""
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def evaluations(folder):
    return sum(path.read_bytes().count(b"\n") for path in (folder / "runs").glob("*/metrics.jsonl"))


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    process = start(tmp_path, *ENDLESS)
    wait_for(lambda: evaluations(tmp_path) >= 1, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    record = read_record(tmp_path)
    assert states(record) == {"unfinished": 1, "waiting": 1}
    (begun,) = (cell for cell in record["cells"] if cell["state"] == "unfinished")
    assert begun["exit_status"] == 130
    run = read_run(tmp_path / "runs" / begun["run"])
    assert run.summary is not None
    assert run.summary["status"] == "preempted"
    assert run.summary["updates"] > 0

    seen = evaluations(tmp_path)
    process = start(tmp_path, *ENDLESS)
    wait_for(lambda: evaluations(tmp_path) > seen, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    again = read_run(tmp_path / "runs" / begun["run"])
    assert again.summary is not None
    assert again.summary["attempts"] == 2
    assert again.summary["updates"] > run.summary["updates"]


def holder_of(folder):
    """The process ids of the sweep and of its run, as the lock's file says."""
    (lock,) = (folder / "locks").glob("*.lock")
    owner = json.loads(lock.read_text().splitlines()[0])
    return owner["pid"], owner["run_pid"]


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_its_run_and_the_next_waits_for_it(tmp_path):
    process = start(tmp_path, *ENDLESS)
    wait_for(lambda: evaluations(tmp_path) >= 1, process)
    pid, run_pid = holder_of(tmp_path)
    assert pid == process.pid
    process.kill()
    process.communicate()

    refused = subprocess.run(
        sweep_command(tmp_path, *ENDLESS, "--nowait"), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert f"process {run_pid}" in refused.stderr

    waiting = start(tmp_path, *ENDLESS)
    assert waiting.stdout is not None
    assert f"process {run_pid}" in waiting.stdout.readline()
    seen = evaluations(tmp_path)
    os.kill(run_pid, signal.SIGTERM)  # the orphan saves, and with it goes the lock
    wait_for(lambda: evaluations(tmp_path) > seen, waiting)
    waiting.send_signal(signal.SIGINT)
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, output
    (run,) = (read_run(path.parent) for path in (tmp_path / "runs").glob("*/config.json"))
    assert run.summary is not None
    assert run.summary["attempts"] == 2


@pytest.mark.slow
def test_a_run_that_is_killed_is_recorded_and_the_sweep_goes_on(tmp_path):
    process = start(tmp_path, *ENDLESS)
    wait_for(lambda: evaluations(tmp_path) >= 1, process)
    _, first = holder_of(tmp_path)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: holder_of(tmp_path)[1] not in (first, None), process)
    seen = evaluations(tmp_path)
    wait_for(lambda: evaluations(tmp_path) > seen, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    killed, stopped = read_record(tmp_path)["cells"]
    assert killed["state"] == "unfinished"  # the same command goes on with it
    assert "SIGKILL" in killed["why"]
    assert killed["exit_status"] == -signal.SIGKILL
    assert stopped["exit_status"] == 130


@pytest.mark.slow
def test_two_sweeps_at_once_take_turns_and_share_their_runs(tmp_path):
    flags = ["--updates=200", "--seeds=2"]
    both = [start(tmp_path, *flags), start(tmp_path, *flags, "--grid=learning_rate=0.1,0.2")]
    same = start(tmp_path, *flags)
    printed = [process.communicate(timeout=300)[0] for process in (*both, same)]
    assert [process.returncode for process in (*both, same)] == [0, 0, 0], printed
    assert sum("waiting for cpu" in text for text in printed) == 2
    runs = [read_run(path.parent) for path in (tmp_path / "runs").glob("*/config.json")]
    assert len(runs) == 6  # two of the first, four of the second, none of the third
    spans = sorted(
        (line["start_ns"], line["end_ns"])
        for run in runs
        for line in run.windows
        if "phase" in line
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


# ---------------------------------------------------------------------------------------- Slurm

QUEUE = ("squeue", "--noheader", "--array", "--format=%F_%K %T")
HOLDS_THE_NODE = ("--output=/dev/null", "--wrap=sleep 600")

needs_slurm = pytest.mark.skipif(
    single_node_slurm.why_not() != "", reason=single_node_slurm.why_not() or "-"
)


def test_without_slurm_the_launcher_says_so(tmp_path):
    env = {**os.environ, "PATH": str(tmp_path)}
    flags = ["--seeds=2", "--launcher=slurm"]
    ended = subprocess.run(
        sweep_command(tmp_path, *flags), capture_output=True, text=True, check=False, env=env
    )
    assert ended.returncode == 2
    assert "sbatch was not found" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_slurm_complains_of_is_printed_in_lines(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue"):
        program = programs / name
        program.write_text(
            "#!/bin/sh\n"
            "echo 'squeue: error: one' >&2; echo 'squeue: error: two' >&2\n"
            "echo 'squeue: fatal: three' >&2; exit 1\n"
        )
        program.chmod(0o755)
    env = {**os.environ, "PATH": os.pathsep.join([str(programs), os.environ["PATH"]])}
    flags = ["--seeds=2", "--updates=3", "--launcher=slurm"]
    ended = subprocess.run(
        sweep_command(tmp_path, *flags), capture_output=True, text=True, check=False, env=env
    )
    assert ended.returncode == 1
    assert ended.stderr == "error: squeue failed: squeue: error: two\nsqueue: fatal: three\n"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with single_node_slurm.SingleNodeSlurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.mark.slow
@needs_slurm
def test_a_job_array_runs_the_sweep_and_leaves_what_can_be_read(slurm, tmp_path):
    flags = [*DIVERGING, "--launcher=slurm", "--sbatch=time=10", "--setup=export SETUP=1"]
    record, printed = run_sweep(tmp_path, *flags, status=1, env=slurm.environment)
    assert states(record) == {"completed": 2, "failed": 2}, printed
    folder = tmp_path / "runs" / "sweeps" / record["id"]
    commands = (folder / "commands.txt").read_text().splitlines()
    assert commands == [cell["command"] for cell in record["cells"]]
    script = (folder / "job.sbatch").read_text()
    for line in ("--array=0-3", "--exclusive", "--requeue", "--time=10"):
        assert f"#SBATCH {line}\n" in script
    assert script.index("export SETUP=1") < script.index("eval")
    assert subprocess.run(["bash", "-n", folder / "job.sbatch"], check=False).returncode == 0
    runs = [read_run(tmp_path / "runs" / cell["run"]) for cell in record["cells"]]
    spans = sorted((line["start_ns"], line["end_ns"]) for run in runs for line in run.windows)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))

    # What is finished is not submitted again; a further seed is.
    further = [flag.replace("--seeds=2", "--seeds=3") for flag in flags]
    subprocess.run(
        sweep_command(tmp_path, *further),
        env=slurm.environment,
        check=False,
        capture_output=True,
        timeout=300,
    )
    scripts = [path.read_text() for path in (tmp_path / "runs" / "sweeps").glob("*/job.sbatch")]
    assert sorted("--array=4-5\n" in text for text in scripts) == [False, True]


@pytest.mark.slow
@needs_slurm
def test_a_task_that_is_preempted_goes_on_with_its_run(slurm, tmp_path):
    flags = [*ENDLESS, "--launcher=slurm", "--nowatch"]
    run_sweep(tmp_path, *flags, env=slurm.environment)

    def jobs(state):
        asked = slurm.ask(*QUEUE)
        return [line.split()[0] for line in asked.splitlines() if line.endswith(state)]

    slurm.wait_for(lambda: evaluations(tmp_path) >= 1)
    (running,) = jobs("RUNNING")  # the other waits: a task has the node to itself
    again, printed = run_sweep(tmp_path, *flags, env=slurm.environment)
    assert "in the queue already" in printed
    assert states(again) == {"running": 1, "waiting": 1}

    urgent = slurm.ask("sbatch", "--parsable", "--partition=urgent", "--exclusive", *HOLDS_THE_NODE)
    slurm.wait_for(lambda: f"{running} PENDING" in slurm.ask(*QUEUE))  # it was thrown out
    (path,) = (tmp_path / "runs").glob("*/config.json")

    def saved():
        run = read_run(path.parent)
        return run.summary is not None and run.summary["status"] == "preempted"

    slurm.wait_for(saved)
    updates = (read_run(path.parent).summary or {})["updates"]
    assert updates > 0
    (log,) = (tmp_path / "runs" / "sweeps").glob(f"*/logs/task-{running.partition('_')[2]}.log")
    assert "PREEMPTION" in log.read_text()
    slurm.ask("scancel", urgent)
    slurm.wait_for(
        lambda: jobs("RUNNING") and running not in jobs("RUNNING")
    )  # now the other one runs
    slurm.ask("scontrol", "requeuehold", *jobs("RUNNING"))
    slurm.ask("scontrol", "update", f"JobId={running}", "StartTime=now")  # it would be 2 minutes

    def goes_on():
        lines = read_run(path.parent).windows
        return any(line.get("event") == "rollback" for line in lines)

    slurm.wait_for(goes_on)
    rollback = next(w for w in read_run(path.parent).windows if w.get("event") == "rollback")
    assert rollback["to_update"] == updates
    slurm.ask("scancel", "--user=root")


@pytest.mark.slow
@needs_slurm
def test_before_a_time_limit_a_run_saves_and_its_task_is_queued_again(slurm, tmp_path):
    """The last minutes are announced by a signal to the task's shell alone; here by hand."""
    run_sweep(tmp_path, *ENDLESS, "--launcher=slurm", "--nowatch", env=slurm.environment)
    slurm.wait_for(lambda: evaluations(tmp_path) >= 1)
    asked = slurm.ask("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%F_%K")
    slurm.ask("scancel", "--batch", "--signal=USR1", asked)
    slurm.wait_for(
        lambda: "BeginTime" in slurm.ask("squeue", "--noheader", "--array", "--format=%r")
    )
    slurm.ask("scancel", "--user=root")
    (path,) = list((tmp_path / "runs").glob("*/summary.json"))[:1]
    assert json.loads(path.read_text())["status"] == "preempted"


def test_tasks_that_share_a_package_counter_take_turns(tmp_path):
    """A GPU of one's own is enough only where nothing but the GPU is counted."""

    def script(meters):
        planned = sweeps.plan([dataclasses.replace(TINY, meters=meters, seed=s) for s in (0, 1, 2)])
        cells = [sweeps.CellResult(c, "waiting", "", None, f"{c.run_id}-r0") for c in planned.cells]
        options = sweeps.SlurmOptions(exclusive="gpu", gres="gpu:a100:1", parallel=2)
        return write_job(cells, [0, 2], tmp_path, tmp_path, options).read_text()

    assert "#SBATCH --array=0,2%1\n" in script("auto")
    assert "#SBATCH --array=0,2%1\n" in script("nvml,rapl")
    alone = script("nvml")
    assert "#SBATCH --array=0,2%2\n" in alone
    assert "#SBATCH --gres=gpu:a100:1\n" in alone
    assert "--exclusive" not in alone
