"""A run's folder: chosen without writing, owned by one process, whole after kill and full disk."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxenergy.errors import RunError, UsageError
from jaxenergy.records import RecordError, choose_folder, read_run
from jaxenergy.records.files import LineWriter, read_lines, write_json_atomic
from jaxenergy.records.folder import NOTHING, OVERWRITE, RESUME, START, lines_begin_with
from jaxenergy.records.lock import FolderLock

CONFIG = {"id": "0123456789", "optimizer": "sgd", "seed": 0, "quiet": False}
OTHER = {**CONFIG, "id": "9876543210", "optimizer": "adam", "quiet": True}
IDENTITY = ("optimizer", "seed")


def choose(out, config=CONFIG, **options):
    return choose_folder(out, config, identity=IDENTITY, **options)


def window(update, attempt=0):
    return {
        "phase": "train",
        "attempt": attempt,
        "start_ns": update,
        "end_ns": update + 1,
        "first_update": update,
        "updates": 1,
        "energy_j": {"gpu:0": 1.5},
    }


def make_run(out, name: str | None = "x", config=CONFIG, status=None, **summary):
    choice = choose(out, config, name=name)
    with choice.create() as folder:
        folder.append_window(window(0))
        if status is not None:
            folder.write_summary({"schema": 1, "status": status, **summary})
    return choice.path


def contents(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------------------------ choosing


def test_choosing_writes_nothing(tmp_path):
    out = tmp_path / "runs"
    assert choose(out).action == START
    assert not out.exists()
    make_run(out)
    before = contents(tmp_path)
    assert choose(out, name="x").action == RESUME
    assert choose(out, name="x", overwrite=True).action == OVERWRITE
    assert contents(tmp_path) == before


def test_unnamed_runs_are_numbered_and_an_unfinished_one_is_continued(tmp_path):
    for number, status in enumerate(["completed", "failed", "target_reached"]):
        assert choose(tmp_path).path.name == f"0123456789-r{number}"
        make_run(tmp_path, None, status=status)
    assert choose(tmp_path, OTHER).path.name == "9876543210-r0"
    make_run(tmp_path, None, status="preempted")
    choice = choose(tmp_path)
    assert (choice.action, choice.path.name) == (RESUME, "0123456789-r3")
    assert choose(tmp_path, resume="never").path.name == "0123456789-r4"
    assert choose(tmp_path, overwrite=True).path.name == "0123456789-r3"


@pytest.mark.parametrize("status", ["completed", "target_reached"])
def test_a_complete_named_run_says_so_and_nothing_is_to_be_done(tmp_path, status):
    path = make_run(tmp_path, status=status)
    before = contents(path)
    choice = choose(tmp_path, name="x")
    assert choice.action == NOTHING
    assert f"is complete ({status})" in choice.message
    with pytest.raises(UsageError, match="is complete"):
        choice.create()
    assert contents(path) == before


@pytest.mark.parametrize("status", [None, "preempted", "completed", "target_reached"])
def test_a_named_run_of_another_config_is_refused_with_the_flags_that_differ(tmp_path, status):
    path = make_run(tmp_path, status=status)
    before = contents(path)
    with pytest.raises(UsageError) as refusal:
        choose(tmp_path, OTHER, name="x")
    assert "--optimizer=sgd there, adam here" in str(refusal.value)
    assert "quiet" not in str(refusal.value)  # not part of the id
    assert "seed" not in str(refusal.value)  # the same
    assert "another --name; --overwrite" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 3
    assert contents(path) == before


def test_a_complete_run_of_an_older_protocol_is_refused_with_its_protocol(tmp_path):
    make_run(tmp_path, config={**CONFIG, "protocol": 1}, status="completed")
    now = {**CONFIG, "id": OTHER["id"], "protocol": 2}
    with pytest.raises(UsageError, match="its protocol: 1 there, 2 here"):
        choose(tmp_path, now, name="x")


def test_a_failed_named_run_is_refused_with_its_reason(tmp_path):
    make_run(tmp_path, status="failed", why={"status": "the training loss became nan"})
    with pytest.raises(UsageError, match="the training loss became nan"):
        choose(tmp_path, name="x")


def test_resume_modes(tmp_path):
    with pytest.raises(UsageError, match="no unfinished run"):
        choose(tmp_path, name="x", resume="require")
    make_run(tmp_path)
    assert choose(tmp_path, name="x", resume="require").action == RESUME
    with pytest.raises(UsageError, match="--resume=never"):
        choose(tmp_path, name="x", resume="never")
    with pytest.raises(UsageError, match="Allowed: auto, never, require"):
        choose(tmp_path, resume="alwyas")
    with pytest.raises(UsageError, match="contradict"):
        choose(tmp_path, resume="require", overwrite=True)


BAD_NAMES = [
    *(
        "",
        " ",
        " x",
        "x ",
        ".",
        "..",
        ".hidden",
        "a/b",
        "../x",
        "/etc",
        "a\\b",
        "a\nb",
        "a\x1b[31m",
    ),
    *("a\x00b", "a\u202eb", "a\u2028b", "\udc80", "x" * 201, "é" * 101, "x.old-1"),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_could_leave_out_or_break_a_terminal_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="Allowed: ") as refusal:
        choose(tmp_path, name=name)
    assert str(refusal.value).replace("\n", "").isprintable()
    assert not any(tmp_path.iterdir())


@given(st.text(max_size=30))
@example("0\u16800")  # a space that is none of the controls
def test_whatever_name_is_accepted_stays_one_folder_below_out(tmp_path_factory, name):
    out = tmp_path_factory.getbasetemp() / "names"
    try:
        path = choose(out, name=name).path
    except UsageError:
        return
    assert os.path.normpath(path) == str(path)
    assert os.path.dirname(path) == str(out)
    assert name.isprintable()


@pytest.mark.parametrize("name", ["x", "ö-1_2.3", "<img src=x>", "x" * 200, "a b", "x.old-"])
def test_other_names_are_kept_as_they_are(tmp_path, name):
    assert make_run(tmp_path, name).name == name


def make_foreign(folder, kind):
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"dear")
    if kind == "corrupt config":
        (folder / "config.json").write_text('{"id": "0123456789"')
    elif kind == "newer schema":
        (folder / "config.json").write_text('{"id": "0123456789", "schema": 99}')
    elif kind == "corrupt summary":
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "summary.json").write_text("[]")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no run", "no run's folder"),
        ("corrupt config", "not strict JSON"),
        ("newer schema", "schema 99"),
        ("corrupt summary", "no JSON object"),
    ],
)
def test_what_is_no_readable_run_is_left_alone_or_moved_whole(tmp_path, kind, reason, overwrite):
    make_foreign(tmp_path / "x", kind)
    before = contents(tmp_path / "x")
    if overwrite and kind != "no run":
        choose(tmp_path, name="x", overwrite=True).create().close()
        assert contents(tmp_path / "x.old-1") == before
        return
    with pytest.raises(UsageError, match=reason):
        choose(tmp_path, name="x", overwrite=overwrite)
    assert contents(tmp_path / "x") == before


def test_a_link_is_no_place_for_a_run(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is no folder"):
        choose(tmp_path, name="x", overwrite=True)


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match=r"--out=.*is no folder"):
        choose(tmp_path / "runs")


# ---------------------------------------------------------------------------- creating, resuming


def test_a_new_folder_and_its_continuation(tmp_path):
    with choose(tmp_path, name="x").create() as folder:
        assert (folder.attempt, folder.resumed, folder.notes) == (0, False, ())
        folder.write_environment({"host": "a"})
        folder.append_window(window(0))
        folder.append_metrics({"update": 1, "train_loss": float("nan")})
        folder.write_summary({"schema": 1, "status": "preempted"})
    with choose(tmp_path, name="x").create() as folder:
        assert (folder.attempt, folder.resumed, folder.notes) == (1, True, ())
        assert not (folder.path / "summary.json").exists()  # it would say that nobody works here
        folder.write_environment({"host": "b"})
        folder.append_rollback(1)
        folder.append_window(window(1, attempt=1))
        run = folder.read()
    assert run.config == CONFIG
    assert run.environment == {"host": "b"}
    assert json.loads((run.path / "environment-0.json").read_text()) == {"host": "a"}
    rollback = {"event": "rollback", "to_update": 1, "attempt": 1}
    assert run.windows == [window(0), rollback, window(1, attempt=1)]
    assert run.metrics == [{"update": 1, "train_loss": None, "why": {"train_loss": "it was nan"}}]
    names = {path.name for path in run.path.iterdir()}
    kept = ["config.json", "environment.json", "environment-0.json"]
    assert names == {*kept, "windows.jsonl", "metrics.jsonl"}


def test_the_account_is_that_of_the_lines_and_tells_when_they_are_gone(tmp_path):
    lines = [window(0), {**window(1), "energy_j": {"gpu:0": 0.1, "dram": None}}, window(2)]
    with choose(tmp_path, name="x").create() as folder:
        assert folder.account() == {"lines": 0, "energy_j": {}}
        for line in lines:
            folder.append_window(line)
        account = json.loads(json.dumps(folder.account()))
        assert account == {"lines": 3, "energy_j": {"train": {"gpu:0": 3.1, "dram": None}}}
    with choose(tmp_path, name="x").create() as folder:
        folder.append_rollback(3)
        assert folder.account() == {**account, "lines": 4}
        assert lines_begin_with(folder.path, account)
        for altered in ({}, {**account, "lines": 2}, {**account, "lines": "3"}, {"lines": -1}):
            assert not lines_begin_with(folder.path, altered)
        file = folder.path / "windows.jsonl"
        file.write_text(file.read_text().replace("0.1", "0.2"))
        assert not lines_begin_with(folder.path, account)


def test_the_same_environment_is_not_kept_twice(tmp_path):
    for _ in range(2):
        with choose(tmp_path, name="x").create() as folder:
            folder.append_window(window(0))
            folder.write_environment({"host": "a", "threads": (1, 2)})
    assert not (tmp_path / "x" / "environment-0.json").exists()


def test_the_environment_of_each_attempt_with_lines_is_kept(tmp_path):
    for host, lines in [("a", 1), ("killed before its first line", 0), ("c", 1), ("d", 1)]:
        with choose(tmp_path, name="x").create() as folder:
            folder.write_environment({"host": host, "devices": 0})
            folder.write_environment({"host": host, "devices": 1})
            for _ in range(lines):
                folder.append_window(window(0, folder.attempt))
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "x").glob("env*.json")}
    assert {name: environment["host"] for name, environment in read.items()} == {
        "environment-0.json": "a",
        "environment-1.json": "c",
        "environment.json": "d",
    }
    assert all(environment["devices"] == 1 for environment in read.values())


def test_the_environment_of_a_process_that_left_no_line_is_no_attempt_s(tmp_path):
    for host in ("killed before its first line", "b"):
        with choose(tmp_path, name="x").create() as folder:
            folder.write_environment({"host": host})
    assert [path.name for path in (tmp_path / "x").glob("env*.json")] == ["environment.json"]
    assert read_run(tmp_path / "x").environment == {"host": "b"}


def test_what_is_checked_before_a_run_is_continued_leaves_it_as_it_is(tmp_path):
    path = make_run(tmp_path, status="preempted")
    with open(path / "windows.jsonl", "a") as file:
        file.write('{"torn')
    (path / "metrics.jsonl").unlink()
    before = contents(path)

    def check(folder):
        assert (folder / ".lock").exists()
        raise RunError(f"not {folder.name}")

    with pytest.raises(RunError, match="not x"):
        choose(tmp_path, name="x").create(check)
    assert contents(path) == before


def test_overwriting_keeps_every_older_folder(tmp_path):
    for _ in range(3):
        choice = choose(tmp_path, name="x", overwrite=True)
        with choice.create() as folder:
            folder.append_window(window(0))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x", "x.old-1", "x.old-2"]
    assert all(len(read_run(tmp_path / name).windows) == 1 for name in names)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("leftovers", [[], [".lock"], [".lock", ".config.json.tmp"]])
def test_a_folder_in_which_nothing_was_recorded_yet_is_started(tmp_path, leftovers):
    (tmp_path / "x").mkdir()
    for name in leftovers:
        (tmp_path / "x" / name).write_text("")
    choice = choose(tmp_path, name="x")
    assert choice.action == START
    choice.create().close()
    assert sorted(contents(tmp_path / "x")) == ["config.json", "metrics.jsonl", "windows.jsonl"]


def test_a_folder_that_changed_after_it_was_chosen_is_refused(tmp_path):
    start, again = choose(tmp_path, name="x"), choose(tmp_path, name="x")
    start.create().close()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="another process"):
        again.create()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change", ["completed", "overwritten"])
def test_a_folder_that_changed_before_it_is_continued_is_refused(tmp_path, change):
    make_run(tmp_path)
    resume = choose(tmp_path, name="x")
    if change == "completed":
        make_run(tmp_path, status="completed")
    else:
        choose(tmp_path, OTHER, name="x", overwrite=True).create().close()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="another process"):
        resume.create()
    assert contents(tmp_path) == before


def test_what_a_killed_process_was_writing_is_removed_on_continuing(tmp_path):
    path = make_run(tmp_path)
    for name in (".summary.json.tmp", ".environment-0.json.tmp"):
        (path / name).write_text("{")
    choose(tmp_path, name="x").create().close()
    assert not list(path.glob(".*"))


def test_a_config_that_is_no_strict_json_leaves_no_folder(tmp_path):
    with pytest.raises(RecordError, match="learning_rate is inf"):
        choose(tmp_path / "runs", {**CONFIG, "learning_rate": float("inf")}).create()
    assert not (tmp_path / "runs").exists()


def test_a_corrupt_line_in_the_middle_is_refused_and_left(tmp_path):
    path = make_run(tmp_path, status="preempted")
    (path / "windows.jsonl").write_text('{"phase": "train"\n{"event": "note"}\n')
    before = contents(path)
    with pytest.raises(RecordError, match=r"windows\.jsonl: line 1"):
        choose(tmp_path, name="x").create()
    assert contents(path) == before


def test_a_planted_link_is_not_written_through(tmp_path):
    path = make_run(tmp_path)
    target = tmp_path / "precious"
    target.write_text("dear")
    for name in ("windows.jsonl", ".environment.json.tmp", "environment.json"):
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(target)
    with pytest.raises(RecordError, match="symbolic link"):
        choose(tmp_path, name="x").create()
    (path / "windows.jsonl").unlink()
    with choose(tmp_path, name="x").create() as folder, contextlib.suppress(RecordError):
        folder.write_environment({"host": "a"})
    assert target.read_text() == "dear"


def test_checkpoints_that_lead_elsewhere_are_refused(tmp_path):
    path = make_run(tmp_path)
    (tmp_path / "elsewhere" / "100").mkdir(parents=True)  # as a number, a checkpoint to be deleted
    (path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="checkpoints is a symbolic link"):
        choose(tmp_path, name="x").create()
    assert not (path / ".lock").exists()


# ------------------------------------------------------------------------------------------ lock


@contextlib.contextmanager
def process(code, *arguments, **options):
    """A second Python process running `code`; killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def next_line(child):
    """The next line that a process prints."""
    return child.stdout.readline()


HOLD = """
    import sys
    from jaxenergy.records import choose_folder
    config = {"id": "0123456789", "optimizer": "sgd", "seed": 0, "quiet": False}
    folder = choose_folder(sys.argv[1], config, name="x").create()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    with process(HOLD, tmp_path, stdin=subprocess.PIPE) as owner:
        assert next_line(owner) == "held\n"
        before = contents(tmp_path)
        for overwrite in (False, True):
            choice = choose(tmp_path, name="x", overwrite=overwrite)
            with pytest.raises(UsageError, match=f"in use by process {owner.pid} on "):
                choice.create()
        assert contents(tmp_path) == before
        owner.kill()
        owner.wait()
        assert (tmp_path / "x" / ".lock").exists()
        choose(tmp_path, name="x").create().close()
    assert not (tmp_path / "x" / ".lock").exists()


def test_the_same_process_is_refused_too_and_closing_gives_back(tmp_path):
    folder = choose(tmp_path, name="x").create()
    with pytest.raises(UsageError, match=f"process {os.getpid()}"):
        choose(tmp_path, name="x").create()
    folder.close()
    folder.close()
    choose(tmp_path, name="x").create().close()


def test_however_threads_take_and_give_back_only_one_holds_the_lock(tmp_path):
    holders, most = [], 0

    def take_turns():
        nonlocal most
        for _ in range(1000):
            try:
                lock = FolderLock(tmp_path)
            except UsageError:
                continue
            holders.append(lock)
            os.sched_yield()  # lets the others try
            most = max(most, len(holders))
            holders.remove(lock)
            lock.release()

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path):
    code = """
    import os, sys
    from jaxenergy.records import choose_folder
    config = {"id": "0123456789", "optimizer": "sgd", "seed": 0, "quiet": False}
    folder = choose_folder(sys.argv[1], config, name="x").create()
    if os.fork() == 0:
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
    os.wait()
    """
    with process(code, tmp_path, stdin=subprocess.PIPE) as owner:
        assert next_line(owner) == "forked\n"
        with pytest.raises(UsageError, match="in use"):  # the child has not let go for its parent
            choose(tmp_path, name="x").create()
        owner.kill()
        owner.wait()
        choose(tmp_path, name="x").create().close()


def test_a_file_system_that_cannot_lock_is_refused_and_left_empty(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to make flock fail below Python")
    source = tmp_path / "nolock.c"
    source.write_text(
        "#include <errno.h>\nint flock(int f, int o) { errno = ENOLCK; return -1; }\n"
    )
    library = tmp_path / "nolock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HOLD), tmp_path / "runs"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert "cannot lock files (No locks available)" in run.stderr
    assert list((tmp_path / "runs").iterdir()) == []


# ----------------------------------------------------------------------------------- kills, faults

WRITE = """
    import sys
    from jaxenergy.records import choose_folder
    config = {"id": "0123456789", "optimizer": "sgd", "seed": 0, "quiet": False}
    folder = choose_folder(sys.argv[1], config, name="x").create()
    first = len(folder.read().windows)
    print("ready", flush=True)
    for update in range(first, first + 10**9):
        line = {"phase": "train", "attempt": folder.attempt, "start_ns": 0, "end_ns": 1,
                "first_update": update, "updates": 1, "energy_j": {"gpu:0": 1.5}, "pad": "x" * 300}
        folder.append_window(line)
        if update % 50 == 0:
            folder.write_environment({"update": update, "pad": "x" * 5000})
            print(update, flush=True)
"""


def test_kill_9_amid_writes_loses_no_line_and_leaves_no_part_of_one(tmp_path):
    finished = 0
    for attempt in range(4):
        with process(WRITE, tmp_path) as writer:
            assert next_line(writer) == "ready\n"
            for _ in range(1 + 2 * attempt):
                finished = int(next_line(writer)) + 1
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        run = read_run(tmp_path / "x")  # readable as it lies
        assert run.state == "unfinished"
        assert [line["first_update"] for line in run.windows] == list(range(len(run.windows)))
        assert len(run.windows) >= finished
        assert run.windows[-1]["attempt"] == attempt
        assert run.environment is not None
    with choose(tmp_path, name="x").create() as folder:
        assert folder.attempt == 4
        folder.write_environment({})
    assert not list(folder.path.glob(".*"))


LINE = json.dumps(window(0)) + "\n"


@given(st.integers(1, 3), st.integers(1, len(LINE)), st.binary(max_size=20))
def test_only_a_torn_tail_is_cut_off(tmp_path_factory, lines, cut, garbage):
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    path.unlink(missing_ok=True)
    tail = LINE[:-cut].encode() + garbage.replace(b"\n", b"")
    path.write_bytes(lines * LINE.encode() + tail)
    writer = LineWriter(path)
    assert bool(writer.note) == bool(tail)
    writer.append({"event": "after"})
    writer.close()
    read = list(read_lines(path))
    assert read[:lines] == [window(0)] * lines
    assert read[-1] == {"event": "after"}
    assert len(read) - lines - 1 in ({0, 1} if cut == 1 else {0})  # whole but for its newline


def test_a_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_text(LINE + LINE[:-1])
    writer = LineWriter(path)
    writer.close()
    assert path.read_text() == LINE + LINE
    assert "newline" in writer.note


def test_a_huge_line_that_no_run_writes_is_refused_and_left(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"x" * 200_000)
    with pytest.raises(RecordError, match="longer than"):
        LineWriter(path)
    assert path.stat().st_size == 200_000


@contextlib.contextmanager
def largest_file(size):
    """The kernel refuses to let any file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_when_the_disk_is_full_the_message_names_file_and_reason_and_no_half_line_stays(tmp_path):
    with choose(tmp_path, name="x").create() as folder:
        folder.append_window(window(0))
        folder.write_environment({"host": "a"})
        before = contents(folder.path)
        with largest_file(len(before["windows.jsonl"]) + 20):
            with pytest.raises(RunError, match=r"windows\.jsonl could not be written: File too"):
                folder.append_window(window(1))
            with pytest.raises(RunError, match=r"environment\.json could not be written"):
                folder.write_environment({"host": "b" * 1000})
            with pytest.raises(RunError, match=r"summary\.json could not be written"):
                folder.write_summary({"schema": 1, "status": "completed", "pad": "x" * 1000})
        assert contents(folder.path) == before
        folder.append_window(window(1))  # room was made
        assert folder.read().windows == [window(0), window(1)]


def test_a_disk_that_is_full_at_the_start_leaves_no_folder(tmp_path):
    with largest_file(10), pytest.raises(RunError, match=r"config\.json could not be written"):
        choose(tmp_path, name="x").create()
    assert not any(tmp_path.iterdir())


def test_a_folder_deleted_in_mid_run_is_noticed(tmp_path):
    with choose(tmp_path, name="x").create() as folder:
        folder.append_window(window(0))
        shutil.rmtree(folder.path)
        for append in (folder.append_window, folder.append_metrics):
            with pytest.raises(RunError, match="deleted"):
                append(window(1))
        with pytest.raises(RunError, match=r"summary\.json could not be written: No such file"):
            folder.write_summary({"schema": 1, "status": "completed"})
    assert not folder.path.exists()


def test_a_read_only_folder_is_refused_plainly(tmp_path):
    make_run(tmp_path)
    mount = ["mount", "--bind", tmp_path, tmp_path]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to be root and to mount: permission bits do not bind root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path], check=True)
        with pytest.raises(UsageError, match="Read-only file system"):
            choose(tmp_path, name="x").create()
        with pytest.raises(UsageError, match=r"cannot be made: Read-only file system.*\n.*--out"):
            choose(tmp_path, name="y").create()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# ------------------------------------------------------------------------------------ strict JSON


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ({"energy_j": {"gpu:0": float("nan")}}, "energy_j.gpu:0 is nan"),
        ({"a": [1, {"b": float("-inf")}]}, r"a\.1\.b is -inf"),
        ({"a": b"x"}, "a is of type bytes"),
        ({"a": "x" * 70_000}, "at most"),
    ],
)
def test_what_a_reader_could_not_take_is_not_written(tmp_path, line, where):
    writer = LineWriter(tmp_path / "windows.jsonl")
    with pytest.raises(RecordError, match=where):
        writer.append(line)
    writer.close()
    assert (tmp_path / "windows.jsonl").read_bytes() == b""


def test_a_document_that_cannot_be_written_leaves_the_old_one_and_no_orphan(tmp_path):
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(RecordError, match="b is nan"):
        write_json_atomic(path, {"b": float("nan")})
    path.with_name(".summary.json.tmp").mkdir()  # whatever is in the way
    with pytest.raises(
        RunError, match=f"summary.json could not be written: {os.strerror(errno.EISDIR)}"
    ):
        write_json_atomic(path, {"b": 1})
    assert json.loads(path.read_text()) == {"a": 1}
