"""Nothing is lost: kills, faults of disk, sensors and folders, in real processes of the driver.

`docs/reliability.md` says what is promised. `benchmarks/kills.py` does in bulk what the first tests
here do a few times.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import killed_runs
import numpy as np
import powercap_tree
import pytest
from killed_runs import NAME, NotedTree, finish, start

from jaxenergy.errors import RunError
from jaxenergy.records import read_run, read_runs
from jaxenergy.training.checkpoint import Checkpoints, Progress
from jaxenergy.training.steps import TrainState

DAY_S = 86_400


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Iterator[NotedTree]:
    """A RAPL counter that goes on while runs come and go, as hardware does."""
    tree = NotedTree(tmp_path_factory.mktemp("powercap"))
    with powercap_tree.Writer(tree):
        yield tree


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tree) -> Path:
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("reference")
    finish(start(out, tree))
    return out / NAME


@pytest.fixture(scope="module")
def clock(tmp_path_factory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler to shift the clock below Python")
    return killed_runs.build_clock(tmp_path_factory.mktemp("clock"))


def wait_for(holds: Callable[[], object], process: subprocess.Popen) -> None:
    """Waits until `holds()`; fails if the process ends first."""
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ------------------------------------------------------------------------------------------ kills


@pytest.mark.parametrize(
    ("moments", "clock_s"),
    [
        (["save"], 0),
        (["window"], DAY_S),
        pytest.param(["summary"], 0, marks=pytest.mark.slow),
        pytest.param(["start", "training"], 0, marks=pytest.mark.slow),
        pytest.param(["end"], -DAY_S, marks=pytest.mark.slow),
    ],
    ids=["save", "window", "summary", "twice", "end"],
)
def test_a_killed_run_ends_as_one_that_was_not(moments, clock_s, tmp_path, tree, reference, clock):
    folder, deaths = tmp_path / NAME, []
    seeded = random.Random(str(moments))
    for moment in moments:
        killed = killed_runs.kill(start(tmp_path, tree), folder, moment, seeded)
        assert killed or moment == "summary"  # which takes less than a millisecond
        deaths.append(killed_runs.look_at(folder, moment, deaths))
    finish(start(tmp_path, tree, env=killed_runs.shifted(clock, clock_s) if clock_s else None))
    assert killed_runs.violations(folder, reference, deaths, tree) == []
    if clock_s and deaths[-1].fell != "after the summary":  # else nothing was left to do
        first, last = (read_run(folder).windows[position]["wall_time"] for position in (0, -1))
        assert (first < last) == (clock_s > 0)


@pytest.mark.slow
def test_the_account_goes_on_after_a_reboot(tmp_path, tree, reference):
    """After a boot the monotonic clock and the counters begin anew; totals go on."""
    process = start(tmp_path, tree)
    wait_for(lambda: lines_in(tmp_path / NAME / "metrics.jsonl") >= 2, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    file = tmp_path / NAME / "windows.jsonl"
    before = [json.loads(line) for line in file.read_text().splitlines()]
    for line in before:
        line["boot_id"] = "00000000-0000-0000-0000-000000000000"
        line["start_ns"] += 10**15
        line["end_ns"] += 10**15
    file.write_text("".join(json.dumps(line) + "\n" for line in before))
    finish(start(tmp_path, tree))
    run = read_run(tmp_path / NAME)
    assert run.summary is not None
    assert run.windows[: len(before)] == before
    lines = [line for line in run.windows if "phase" in line]
    joules = sum(line["energy_j"]["cpu:package-0"] for line in lines)
    assert run.summary["energy_j"]["metered"] == pytest.approx(joules, rel=1e-9)
    seconds = sum(line["end_ns"] - line["start_ns"] for line in lines) / 1e9
    assert run.summary["duration_s"] == pytest.approx(seconds, rel=1e-9)
    assert [line["energy_j"] for line in run.metrics] == sorted(
        line["energy_j"] for line in run.metrics
    )
    assert killed_runs.final_state(run.path) == killed_runs.final_state(reference)


def test_windows_beside_a_save_are_not_steady_and_saving_is_a_phase(reference):
    windows = read_run(reference).windows
    phases = [line["phase"] for line in windows]
    after_a_save = [windows[i + 1] for i, phase in enumerate(phases[:-1]) if phase == "checkpoint"]
    trained = [line for line in after_a_save if line["phase"] == "train"]
    assert any(not line["steady"] for line in trained)


@pytest.mark.slow
def test_batch_norm_dropout_augmentation_and_micro_batches_go_on_bit_for_bit(tmp_path):
    flags = [
        *("--model=cnn", "--depth=1", "--width=2", "--model_args=dropout=0.3", "--augment"),
        *(
            "--batch_size=32",
            "--accumulate=2",
            "--optimizer=adam",
            "--updates=200",
            "--eval_every=20",
        ),
        *("--checkpoint_every=0.2s", "--keep=1", "--meters=none", "--idle_seconds=0"),
    ]
    command = [sys.executable, "-m", "experiments.run", *flags, f"--name={NAME}", "--quiet"]
    subprocess.run([*command, f"--out={tmp_path}/whole"], check=True)
    cut = [*command, f"--out={tmp_path}/cut"]
    for signum, status, evaluations in ((signal.SIGTERM, 143, 1), (signal.SIGKILL, -9, 4)):
        process = subprocess.Popen(cut, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        metrics = tmp_path / "cut" / NAME / "metrics.jsonl"
        wait_for(lambda: lines_in(metrics) >= evaluations, process)  # noqa: B023
        process.send_signal(signum)
        finish(process, status)
    subprocess.run(cut, check=True)
    folders = (tmp_path / "whole" / NAME, tmp_path / "cut" / NAME)
    whole, cut_up = map(killed_runs.final_state, folders)
    assert any("batch_stats" in place for place in whole[1])
    assert whole == cut_up
    assert [len(killed_runs.committed(folder)) for folder in folders] == [1, 1]


# ------------------------------------------------------------------------------------ checkpoints


def make_state(seed: int) -> TrainState:
    """A train state of many numbers, each field of it its own."""
    keys = dict(zip(TrainState._fields, jax.random.split(jax.random.key(seed), 20), strict=False))
    return TrainState(
        **{
            field: key if field == "key" else {"w": jax.random.normal(key, (50, 40))}
            for field, key in keys.items()
        }
    )


def assert_same(state: TrainState, other: TrainState) -> None:
    numbers = (s._replace(key=jax.random.key_data(s.key)) for s in (state, other))
    jax.tree.map(np.testing.assert_array_equal, *numbers)


def largest_file(folder: Path) -> Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_a_bit(folder: Path) -> None:
    file = largest_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(largest_file(folder), 100)


def remove_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


def alter_the_progress(folder: Path) -> None:
    file = folder / "progress" / "metadata"
    file.write_text(file.read_text().replace('"loss_sum": 2', '"loss_sum": 7'))


def rename_a_field(folder: Path) -> None:
    file = folder / "progress" / "metadata"
    file.write_text(file.read_text().replace("loss_sum", "loss_sun"))


DAMAGES = [flip_a_bit, truncate, remove_a_file, alter_the_progress, rename_a_field]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_where_a_checkpoint_is_damaged_the_one_before_it_is_taken_and_that_is_said(
    damage, tmp_path
):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update in (1, 2, 3):
        checkpoints.save(update, make_state(update), Progress(update=update, loss_sum=2.0))
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    before = (tmp_path / "3" / "progress" / "metadata").read_bytes()
    damage(tmp_path / "3")
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=2)
    restored = checkpoints.restore(make_state(0), said.append)
    assert restored is not None
    state, progress = restored
    assert progress == Progress(update=2, loss_sum=2.0)
    assert_same(state, make_state(2))
    assert len(said) == 1
    assert "checkpoint 3 cannot be used" in said[0]
    assert "2 is taken" in said[0]
    checkpoints.save(3, make_state(3), Progress(update=3, loss_sum=2.0))  # its number is free
    checkpoints.close()
    assert (tmp_path / "3" / "progress" / "metadata").read_bytes() == before
    assert len(list(tmp_path.glob("damaged-3-*"))) == 1


def test_where_no_checkpoint_can_be_read_nothing_is_done_to_them(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update in (1, 2):
        checkpoints.save(update, make_state(update), Progress(update=update))
    checkpoints.close()
    for update in (1, 2):
        truncate(tmp_path / str(update))
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(RunError, match="none of the 2 checkpoints can be used; the newest, 2"):
        checkpoints.restore(make_state(0), print)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_what_a_kill_amid_a_save_left_is_removed(tmp_path):
    orphan = tmp_path / "7.orbax-checkpoint-tmp"
    (orphan / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(7, make_state(7), Progress(update=7))
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_a_checkpoint_too_many_is_removed(tmp_path):
    """A kill after a save and before the oldest is removed leaves it."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in (1, 2, 3):
        checkpoints.save(update, make_state(update), Progress(update=update))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    restored = checkpoints.restore(make_state(0), print)
    checkpoints.close()
    assert restored is not None
    assert restored[1].update == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_states_of_every_type_have_a_checksum(tmp_path):
    state = make_state(1)._replace(
        opt_state=(jnp.ones((), jnp.bfloat16), jnp.array(True), jnp.int32(4))
    )
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, Progress(update=1))
    checkpoints.wait()
    restored = checkpoints.restore(state, print)
    checkpoints.close()
    assert restored is not None
    assert_same(restored[0], state)


# Many arrays, of which the first that cannot be written ends the save; then the others are let end.
FULL_DISK = """
import os, resource, sys
from pathlib import Path
import jax
from jaxenergy.errors import RunError
from jaxenergy.training.checkpoint import Checkpoints, Progress
from jaxenergy.training.steps import TrainState

def files():
    return sorted(path for path in folder.rglob("*"))

key, folder = jax.random.key(0), Path(sys.argv[1])
arrays = [jax.random.normal(key, (300, 200)) for _ in range(100)]
state = TrainState(**{field: key if field == "key" else arrays for field in TrainState._fields})
checkpoints = Checkpoints(folder, keep=2)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
try:
    checkpoints.save(1, state, Progress(update=1))
    checkpoints.wait()
except RunError as error:
    left = files()
    print("refused:", error)
    checkpoints.close()
    assert files() == left
"""


def test_a_save_that_fails_ends_all_that_it_began_and_nobody_prints_a_traceback(tmp_path):
    """Orbax closes its event loop on the first failure, tensorstore's threads report to it."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("refused: a checkpoint could not be saved: ")
    assert "File too large" in ended.stdout


def unfinished(reference: Path, out: Path) -> Path:
    """A run that was killed after its last checkpoint and before its summary."""
    folder = shutil.copytree(reference, out / NAME)
    (folder / "summary.json").unlink()
    return folder


def test_a_run_goes_on_from_the_newest_checkpoint_whose_lines_are_there(tmp_path, tree, reference):
    """With lines gone, going on from a later one would lose joules that had been accounted for."""
    folder = unfinished(reference, tmp_path)
    older, newest = sorted(killed_runs.committed(folder))
    lines = (folder / "windows.jsonl").read_text().splitlines(keepends=True)
    kept = lines[: killed_runs.saved_account(folder, older)["lines"]]
    (folder / "windows.jsonl").write_text("".join(kept))
    output = finish(start(tmp_path, tree))
    assert f"checkpoint {newest} cannot be used (windows.jsonl has no longer the" in output
    assert f"going on from update {older:,}" in output
    assert killed_runs.final_state(folder) == killed_runs.final_state(reference)
    (aside,) = (folder / "checkpoints").glob("damaged-*")
    shutil.rmtree(aside)
    assert killed_runs.violations(folder, reference, [], tree) == []


def preempted(reference: Path, out: Path) -> Path:
    """A run that a signal ended after its last checkpoint."""
    folder = shutil.copytree(reference, out / NAME)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "status": "preempted"}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def remove_the_lines(folder: Path) -> None:
    (folder / "windows.jsonl").unlink()


def remove_the_progress(folder: Path) -> None:
    for progress in (folder / "checkpoints").glob("*/progress/metadata"):
        progress.unlink()


def remove_the_states(folder: Path) -> None:
    for state in (folder / "checkpoints").glob("*/state"):
        shutil.rmtree(state)


LOSSES = [remove_the_lines, remove_the_progress, remove_the_states]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_run_that_lacks_what_it_would_go_on_from_is_left_as_it_is(
    lose, tmp_path, tree, reference
):
    folder = preempted(reference, tmp_path)
    lose(folder)
    before = contents(folder)
    assert_ended_plainly(finish(start(tmp_path, tree), 1), "none of the 2 checkpoints can be used")
    assert contents(folder) == before


def test_a_run_whose_states_are_damaged_keeps_its_checkpoints_and_a_summary(
    tmp_path, tree, reference
):
    folder = preempted(reference, tmp_path)
    for state in (folder / "checkpoints").glob("*/state"):
        truncate(state)
    before, summary = contents(folder / "checkpoints"), read_run(folder).summary
    assert_ended_plainly(finish(start(tmp_path, tree), 1), "none of the 2 checkpoints can be used")
    assert contents(folder / "checkpoints") == before
    run = read_run(folder)
    assert run.state == "unfinished"
    assert summary is not None
    assert run.summary is not None
    assert "none of the 2 checkpoints" in run.summary["why"]["status"]
    assert run.summary["updates"] == summary["updates"]
    joules = [line["energy_j"]["cpu:package-0"] for line in run.windows if "phase" in line]
    assert run.summary["energy_j"]["metered"] == pytest.approx(sum(joules))
    assert run.summary["energy_j"]["metered"] > summary["energy_j"]["metered"]


def test_where_no_checkpoint_is_left_that_is_said(tmp_path, tree, reference):
    folder = unfinished(reference, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    output = finish(start(tmp_path, tree))
    assert "no checkpoint is there" in output
    assert "going on from update 0" in output
    run = read_run(folder)
    assert run.summary is not None
    assert [w for w in run.summary["warnings"] if "no checkpoint" in w] == [
        "attempt 1 went on from update 0: no checkpoint is there, and what was trained before is "
        "lost"
    ]
    assert run.summary["energy_j"]["by_phase"]["lost"] > 0
    assert killed_runs.violations(folder, reference, [], tree) == []


def test_a_run_that_had_not_begun_to_train_has_lost_nothing(tmp_path, tree, reference):
    folder = unfinished(reference, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    for name in ("windows.jsonl", "metrics.jsonl"):
        (folder / name).unlink()
    assert "no checkpoint" not in finish(start(tmp_path, tree))


def test_evaluations_that_are_gone_are_said(tmp_path, tree, reference):
    folder = unfinished(reference, tmp_path)
    (folder / "metrics.jsonl").unlink()
    finish(start(tmp_path, tree))
    summary = read_run(folder).summary
    assert summary is not None
    assert [warning for warning in summary["warnings"] if "metrics.jsonl" in warning] == [
        "metrics.jsonl lacks 5 of the evaluations that windows.jsonl tells of, the first at update "
        "1,000"
    ]


# -------------------------------------------------------------------------------- disk and folder


def assert_ended_plainly(output: str, *said: str) -> None:
    """The process gave a reason in few lines, and nobody in it a traceback."""
    error = output[output.index("error: ") :]
    assert "Traceback" not in output
    assert all(part in error for part in said), error
    assert len(error.splitlines()) <= 3, error


def test_a_full_disk_ends_the_run_plainly_and_it_goes_on_when_there_is_room(
    tmp_path, tree, reference
):
    process = start(tmp_path, tree)
    windows = tmp_path / NAME / "windows.jsonl"
    wait_for(lambda: lines_in(tmp_path / NAME / "metrics.jsonl") >= 2, process)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    full = windows.stat().st_size + 700
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (full, hard))
    assert_ended_plainly(finish(process, 1), "File too large")
    death = killed_runs.look_at(tmp_path / NAME, "full disk")
    assert death.windows
    assert read_run(tmp_path / NAME).state == "unfinished"
    finish(start(tmp_path, tree))
    assert killed_runs.violations(tmp_path / NAME, reference, [death], tree) == []


def test_a_folder_in_use_is_refused_read_by_anybody_and_its_end_is_noticed(tmp_path, tree):
    endless = ("--updates=100000000", "--eval_every=1000")
    folder = tmp_path / NAME
    process = start(tmp_path, tree, *endless)
    wait_for(lambda: lines_in(folder / "metrics.jsonl") >= 1, process)
    second = start(tmp_path, tree, *endless)
    lengths = []
    while second.poll() is None:
        lengths.append(len(read_run(folder).windows))
        time.sleep(0.02)
    output = finish(second, 2)
    assert_ended_plainly(output, f"in use by process {process.pid}")
    assert "is continued" not in output  # it was not
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]
    folder.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert_ended_plainly(finish(process, 1))


def break_json(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])


def make_newer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema": 99}))


def make_deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"id": ' + "[" * 100_000)


def make_huge_number(folder: Path) -> None:
    (folder / "summary.json").write_text('{"schema": 1, "status": "preempted", "updates": 1e999}')


def make_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def make_circle(folder: Path) -> None:
    (folder / "summary.json").unlink()
    (folder / "summary.json").symlink_to("summary.json")


def hide_script(folder: Path) -> None:
    why = {"status": "<script>alert(1)</script>\x1b[2J\u202e"}
    summary = {"schema": 1, "status": "failed", "why": why}
    (folder / "summary.json").write_text(json.dumps(summary))


HARMS = {
    break_json: "config.json is not strict JSON",
    make_newer: "schema 99, newer than 1",
    make_deep: "nested too deeply",
    make_huge_number: "out of range",
    make_pipe: "is no plain file",
    make_circle: "symbolic link",
    hide_script: "<script>alert(1)</script>\\x1b[2J\\u202e",
}


@pytest.mark.slow
def test_what_cannot_be_continued_is_said_by_the_driver_and_left_as_it_is(
    tmp_path, tree, reference
):
    processes = {}
    for harm in HARMS:
        folder = shutil.copytree(reference, tmp_path / harm.__name__ / NAME)
        harm(folder)
        processes[harm] = contents(folder), start(folder.parent, tree)
    for harm, (before, process) in processes.items():
        assert_ended_plainly(finish(process, 2), HARMS[harm], "--overwrite")
        assert contents(tmp_path / harm.__name__ / NAME) == before
        assert [path.name for path in (tmp_path / harm.__name__).iterdir()] == [NAME]


# ---------------------------------------------------------------------------------------- signals

# An update whose tracing does not end, as a compilation that takes minutes.
STUCK = """
import ctypes, os
import optax

def endless(learning_rate=0.1):
    def update(updates, state, params=None):
        folder = os.environ.get("STUCK_IN", "")
        if os.path.exists(folder + "/environment.json"):
            open(folder + "/stuck", "w").close()
            while True:
                ctypes.CDLL(None).pause()
        return updates, state
    stuck = optax.GradientTransformation(lambda params: (), update)
    return optax.chain(stuck, optax.sgd(learning_rate))
"""


@pytest.mark.slow
def test_one_signal_ends_a_run_whose_main_thread_never_answers(tmp_path, tree):
    """The watcher ends it, by its own rule: nothing else would, ever."""
    (tmp_path / "stuck.py").write_text(STUCK)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    flags = ("--optimizer=stuck:endless", "--updates=40")
    out = tmp_path / "runs"
    process = start(out, tree, *flags, env={**env, "STUCK_IN": str(out / NAME)})
    wait_for((out / NAME / "stuck").exists, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    run = read_run(out / NAME)
    assert run.summary is not None
    assert run.summary["status"] == "preempted"
    assert "while the main thread was busy" in run.summary["why"]["status"]
    assert [line["phase"] for line in run.windows][-1] == "compile"
    assert run.summary["energy_j"]["by_phase"]["compile"] > 0
    finish(start(out, tree, *flags, env=env))
    assert read_run(out / NAME).state == "completed"


# The signal comes when the third evaluation has begun, in the main thread itself.
STOPPED = """
import signal
from experiments.run import main
from jaxenergy.training.programs import Programs

whole, begun = Programs.evaluation, []

def evaluation(self, *args):
    begun.append(args)
    if len(begun) == 3:
        signal.raise_signal(signal.SIGTERM)
    return whole(self, *args)

Programs.evaluation = evaluation
main()
"""


def test_an_evaluation_that_a_signal_broke_off_is_made_anew_and_lost(tmp_path, tree, reference):
    flags = (f"--out={tmp_path}", f"--powercap_root={tree.root}", *killed_runs.FLAGS)
    ended = subprocess.run([sys.executable, "-c", STOPPED, *flags], check=False, timeout=300)
    assert ended.returncode == 143
    death = killed_runs.look_at(tmp_path / NAME, "evaluation")
    stopped = read_run(tmp_path / NAME).summary
    assert stopped is not None
    assert (stopped["status"], stopped["updates"]) == ("preempted", 3000)
    assert "lost" not in stopped["energy_j"]["by_phase"]
    finish(start(tmp_path, tree))
    assert killed_runs.violations(tmp_path / NAME, reference, [death], tree) == []
    summary = read_run(tmp_path / NAME).summary
    assert summary is not None
    (lost,) = (
        line
        for line in read_run(tmp_path / NAME).windows[: death.windows.count(b"\n")]
        if line["phase"] == "eval" and not line["steady"]
    )
    assert lost["first_update"] == 3000
    assert summary["energy_j"]["by_phase"]["lost"] == lost["energy_j"]["cpu:package-0"]


# Killed between the evaluation that was made anew and the next save.
KILLED = f"""
import os, signal, time
from experiments.run import main
from jaxenergy.training.loop import Loop

whole = Loop._stretch

def stretch(self, state, update, progress):
    if update == 3000:
        time.sleep({killed_runs.SETTLING_S})
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, state, update, progress)

Loop._stretch = stretch
main()
"""


@pytest.mark.slow
def test_an_evaluation_that_no_checkpoint_knows_of_is_counted_once(tmp_path, tree):
    flags = (f"--out={tmp_path}", f"--powercap_root={tree.root}", *killed_runs.FLAGS)
    for code, status in ((STOPPED, 143), (KILLED, -signal.SIGKILL)):
        ended = subprocess.run([sys.executable, "-c", code, *flags], check=False, timeout=300)
        assert ended.returncode == status
    finish(start(tmp_path, tree))
    run = read_run(tmp_path / NAME)
    evaluations = [
        line["energy_j"]["cpu:package-0"]
        for line in run.windows
        if line.get("phase") == "eval" and line["first_update"] == 3000
    ]
    assert len(evaluations) == 3  # broken off, not known of, and the one that counts
    assert run.summary is not None
    assert run.summary["energy_j"]["by_phase"]["lost"] == pytest.approx(sum(evaluations[:2]))


# ---------------------------------------------------------------------------------------- sensors


def test_faults_of_sensors_cost_their_domain_from_there_and_nothing_else(tmp_path):
    machine = powercap_tree.intel(tmp_path / "powercap", sockets=2)
    zones = {path.name: path for path in machine.power_w}
    vanishing, freezing = zones["intel-rapl:0"], zones["intel-rapl:1"]
    resetting = zones["intel-rapl:0:2"]
    machine.start_uj[resetting] = 1_000_000_000  # far more than it counts until it is next read
    command = [
        *(sys.executable, "-m", "experiments.run", f"--out={tmp_path}/runs", f"--name={NAME}"),
        *("--model=mlp", "--depth=1", "--width=16", "--updates=12000", "--eval_every=1000"),
        *("--meters=rapl", f"--powercap_root={machine.root}", "--idle_seconds=0"),
    ]
    with powercap_tree.Writer(machine):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        folder = tmp_path / "runs" / NAME
        wait_for(lambda: lines_in(folder / "metrics.jsonl") >= 2, process)
        faulty = (vanishing, freezing)
        machine.power_w = {z: w for z, w in machine.power_w.items() if z not in faulty}
        time.sleep(0.05)  # the writer ends its round, in which it would make the file anew
        (vanishing / "energy_uj").unlink()
        machine.start_uj[resetting] = 0
        finish(process)
    run = read_run(folder)
    assert run.summary is not None
    assert run.summary["status"] == "completed"
    assert run.summary["updates"] == 12000
    energy = run.summary["energy_j"]
    reasons = {
        "cpu:package-0": "No such file",
        "cpu:package-1": "stood still",
        "dram:package-0": "",
    }
    for domain, reason in reasons.items():
        assert energy["by_domain"][domain] is None
        assert reason in energy["why"][f"by_domain.{domain}"]
        told = [line["energy_j"][domain] is not None for line in run.windows]
        assert told[0]
        assert not all(told)
    assert energy["by_domain"]["dram:package-1"] > 0
    assert energy["total"] is None
    # Nor is the rest of them given for the whole as the training goes on.
    assert run.metrics[0]["energy_j"] > 0
    assert run.metrics[-1]["energy_j"] is None
    assert "No such file" in run.metrics[-1]["why"]["energy_j"]
    assert [line["energy_j"]["cpu:package-0"] for line in run.windows[-3:]] == [None] * 3
    # It was set back, and counts again.
    assert run.windows[-1]["energy_j"]["dram:package-0"] is not None


# --------------------------------------------------------------------------------------- security


def test_what_a_folder_names_is_never_imported(tmp_path, tree):
    """A folder's config may name any module; only the command line makes a plug-in."""
    marker = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    process = start(tmp_path / "runs", tree, env=env)
    folder = tmp_path / "runs" / NAME
    wait_for(lambda: lines_in(folder / "metrics.jsonl") >= 1, process)
    process.kill()
    process.communicate()
    config = json.loads((folder / "config.json").read_text())
    for setting in ("optimizer", "model", "activation", "dataset", "meters", "schedule"):
        config[setting] = "evil:attack"
    (folder / "config.json").write_text(json.dumps(config))
    # The id is still that of the command, so it is continued, by what the command says.
    output = finish(start(tmp_path / "runs", tree, env=env))
    assert "going on from update" in output
    (row,) = read_runs(tmp_path / "runs")
    assert (row["config.optimizer"], row["state"]) == ("evil:attack", "completed")
    assert not marker.exists()
    assert "evil" not in sys.modules
