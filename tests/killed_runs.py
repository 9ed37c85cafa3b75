"""Runs that `kill -9` ends and that are continued, and what must hold of them afterwards.

Shared by `test_reliability.py` and `benchmarks/kills.py`. Every run is the driver in a process of
its own, metered by a simulated RAPL counter whose every value is noted, so that what the lines of
a killed process say can be compared with what its counter did.
"""

import bisect
import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from powercap_tree import PowercapTree

from jaxenergy.records import read_run
from jaxenergy.records.account import Account
from jaxenergy.records.summary import label_lines

NAME = "x"
UPDATES = 6000
KEEP = 2
FLAGS = (
    "--model=mlp",
    "--depth=1",
    "--width=16",
    "--optimizer=adam",
    f"--updates={UPDATES}",
    "--eval_every=1000",
    "--checkpoint_every=500",
    f"--keep={KEEP}",
    "--idle_seconds=0",
    "--meters=rapl",
    f"--name={NAME}",
)
# A line whose energy the counter has not told yet is not written yet; with a fast counter that
# is a matter of milliseconds.
SETTLING_S = 0.3
# A counter that stands for a second, or jumps by more than its power explains, is out of order for
# all that a run can know, and null is the right answer. Here it does so where the machine was too
# busy to write it in time: every millisecond or two.
_LATE_NS = 5_000_000
_SEEN_LATE_NS = 1_000_000_000
# Between an edge's time and the reading of the counter a process may have to wait for a processor.
_READING_NS = 50_000_000

_CLOCK_SOURCE = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset_s(void) {
    const char *text = getenv("CLOCK_OFFSET_S");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset_s();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int status = syscall(SYS_gettimeofday, now, zone);
    if (status == 0 && now) now->tv_sec += offset_s();
    return status;
}

time_t time(time_t *now) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (now) *now = t.tv_sec;
    return t.tv_sec;
}
"""


class NotedTree(PowercapTree):
    """A powercap tree of one package that notes when its counter had which value."""

    def __init__(self, root: Path):
        super().__init__(root)
        self._before_ns: list[int] = []
        self._after_ns: list[int] = []
        self._energy_j: list[float] = []
        self.zone("intel-rapl:0", "package-0", power_w=60.0, limits_w=(150.0, 180.0))

    def write(self, folder: Path, energy_uj: int) -> None:
        before_ns = time.perf_counter_ns()
        super().write(folder, energy_uj)
        self._before_ns.append(before_ns)
        self._energy_j.append(energy_uj / 1e6)
        self._after_ns.append(time.perf_counter_ns())

    def least_j(self, time_ns: int) -> float:
        """The least that the counter may have said at a time."""
        return self._energy_j[bisect.bisect_right(self._after_ns, time_ns) - 1]

    def was_late(self, begin_ns: int, end_ns: int) -> bool:
        """Whether a value that was due between two times was written late."""
        first = max(0, bisect.bisect_right(self._after_ns, begin_ns) - 1)
        last = bisect.bisect_left(self._before_ns, end_ns)
        changes = itertools.pairwise(zip(self._after_ns, self._before_ns, strict=False))
        return any(
            later[1] - earlier[0] >= _LATE_NS
            for earlier, later in itertools.islice(changes, first, last)
        )

    def most_j(self, time_ns: int) -> float:
        """The most that the counter may have said at a time."""
        return self._energy_j[bisect.bisect_right(self._before_ns, time_ns) - 1]


def build_clock(folder: Path) -> Path:
    """Compiles the library that, loaded first, shifts a process's wall clock."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_CLOCK_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    return library


def shifted(library: Path, seconds: int) -> dict[str, str]:
    """The environment of a process whose wall clock is wrong by so many seconds."""
    return {**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET_S": str(seconds)}


def start(
    out: Path, tree: PowercapTree, *flags: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Starts the run, or what is left of it."""
    command = [sys.executable, "-m", "experiments.run", f"--out={out}", *FLAGS]
    return subprocess.Popen(
        [*command, f"--powercap_root={tree.root}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for the end of a process that must end with a status; what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def final_state(folder: Path) -> tuple[int, dict[str, bytes]]:
    """The newest checkpoint: its update, and each array's bytes by its place in the train state."""
    import jax
    from orbax import checkpoint as ocp

    update = max(committed(folder))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((folder / "checkpoints" / str(update) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return update, {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def saved_account(folder: Path, update: int) -> dict:
    """The energy ledger in a checkpoint."""
    progress = folder / "checkpoints" / str(update) / "progress" / "metadata"
    return json.loads(progress.read_text())["account"]


def committed(folder: Path) -> list[int]:
    """The updates of the checkpoints that are whole."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return []
    return [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]


def lines_of(path: Path) -> list[dict]:
    """The lines of a file, each of which must be whole."""
    content = path.read_bytes() if path.exists() else b""
    assert not content or content.endswith(b"\n"), f"{path.name} ends in a torn line"
    return [json.loads(line) for line in content.splitlines()]


# ------------------------------------------------------------------------------------------ kills


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: a delay drawn at random after something has happened in the folder.

    Attributes:
        has_come: whether it has happened, given the folder and a share of the training, 0 to 1.
        delay_s: the longest delay.
        interval_s: time between two looks; 0 looks without a pause.
    """

    has_come: Callable[[Path, float], bool]
    delay_s: float
    interval_s: float = 1e-3


def _metrics_reach(folder: Path, share: float) -> bool:
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().count(b"\n") if path.exists() else 0
    return lines >= share * UPDATES / 1000


def _grows_beyond(folder: Path, share: float) -> bool:
    path = folder / "windows.jsonl"
    # A line is some 500 bytes, and there are two for each checkpoint besides those of evaluations.
    return path.exists() and path.stat().st_size >= 500 * share * 3 * UPDATES / 500


def _is_saving(folder: Path, share: float) -> bool:
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir() or max(committed(folder), default=0) < share * (UPDATES - 1000):
        return False
    return any(not path.name.isdigit() for path in checkpoints.iterdir())


def _is_summarised(folder: Path, share: float) -> bool:
    return (folder / ".summary.json.tmp").exists()


MOMENTS = {
    "start": Moment(lambda folder, share: folder.exists(), 0.5),  # a run lasts some 2 s
    "training": Moment(lambda folder, share: _metrics_reach(folder, 0.05), 1.0),
    "window": Moment(_grows_beyond, 0.001, 2e-4),
    "save": Moment(_is_saving, 0.03, 2e-4),
    "end": Moment(lambda folder, share: _metrics_reach(folder, 1.0), 0.03),
    "summary": Moment(_is_summarised, 0.0, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Death:
    """What a kill left.

    Attributes:
        moment: when it was meant to fall.
        fell: where it fell, by what lies in the folder.
        windows: the content of `windows.jsonl`.
        violations: what should not lie so.
        late: whether the line of a finished window was not written yet.
    """

    moment: str
    fell: str
    windows: bytes
    violations: list[str]
    late: bool


def kill(process: subprocess.Popen, folder: Path, moment: str, seeded: random.Random) -> bool:
    """Kills a process at a moment; False where it had ended before."""
    when, share = MOMENTS[moment], seeded.random()
    already = _is_summarised(folder, share)  # of a process that was killed before
    while process.poll() is None and (already or not when.has_come(folder, share)):
        already = already and _is_summarised(folder, share)
        if when.interval_s:
            time.sleep(when.interval_s)
    time.sleep(seeded.uniform(0, when.delay_s))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def look_at(folder: Path, moment: str, earlier: Sequence[Death] = ()) -> Death:
    """What lies in a folder after a kill, and after the earlier ones."""
    windows_file = folder / "windows.jsonl"
    violations, late = [], False
    try:
        windows = lines_of(windows_file)
        metrics = lines_of(folder / "metrics.jsonl")
        if (folder / "config.json").exists():
            run = read_run(folder)
            _ = (run.windows, run.metrics, run.environment)  # anybody may read it as it lies
            if run.state == "foreign":
                violations.append(f"it cannot be read: {run.why}")
    except Exception as error:
        return Death(moment, "unknown", b"", [f"{type(error).__name__}: {error}"], False)
    train = [line for line in windows if line.get("phase") == "train" and line["updates"]]
    reached = max((line["first_update"] + line["updates"] for line in train), default=0)
    known = max([line["update"] for line in metrics] + committed(folder), default=0)
    if known > reached:
        file_age_s = time.time() - (folder / "metrics.jsonl").stat().st_mtime
        late = file_age_s < SETTLING_S
        if not late:
            violations.append(f"windows reach {reached}, though {known} was evaluated or saved")
    before = earlier[-1].windows.count(b"\n") if earlier else 0
    own = [line for line in windows[before:] if line.get("phase") == "train"]
    if not (folder / "config.json").exists():
        fell = "before the config"
    elif (folder / "summary.json").exists():
        fell = "after the summary"
    elif (folder / ".summary.json.tmp").exists():
        fell = "amid the summary"
    elif any(not p.name.isdigit() for p in _entries(folder / "checkpoints")):
        fell = "amid a save"
    elif reached == UPDATES:
        fell = "after training"
    elif not own:
        fell = "loading, compiling, restoring"
    else:
        fell = "amid training"
    content = windows_file.read_bytes() if windows_file.exists() else b""
    return Death(moment, fell, content, violations, late)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


# ------------------------------------------------------------------------------------------- laws


def violations(
    folder: Path,
    reference: Path,
    deaths: list[Death],
    tree: NotedTree,
) -> list[str]:
    """What a run that was killed and continued to its end does not keep of what is promised."""
    found = [fault for death in deaths for fault in death.violations]
    run = read_run(folder)
    if run.state != "completed" or run.summary is None:
        return [*found, f"it is {run.state}: {run.why}"]
    content = (folder / "windows.jsonl").read_bytes()
    for death in deaths:
        if not content.startswith(death.windows):
            found.append(f"a line from before the kill ({death.fell}) is gone or changed")
    if final_state(folder) != final_state(reference):
        found.append("the final parameters are others")
    if run.summary["final"] != read_run(reference).summary["final"]:  # type: ignore[index]
        found.append("the final accuracies are others")
    found += _faults_of_windows(run.windows, any(death.late for death in deaths))
    found += _faults_of_account(run.windows, run.summary["energy_j"], tree)
    for update in committed(folder):
        account = saved_account(folder, update)
        if account != Account(run.windows[: account["lines"]]).to_json():
            found.append(f"the account in checkpoint {update} is not that of the lines before it")
    found += _leftovers(folder)
    return found


def _faults_of_windows(lines: list[dict], late: bool) -> list[str]:
    """Windows that are missing or twice, and processes whose lines have gaps."""
    found = []
    labelled = label_lines(lines)
    standing = [line for label, line in labelled if label == "train" and line["updates"]]
    ends = [(line["first_update"], line["first_update"] + line["updates"]) for line in standing]
    expected = 0
    for first, last in sorted(ends):
        if first < expected:
            found.append(f"updates {first} to {min(expected, last)} stand twice")
        elif first > expected and not late:
            found.append(f"updates {expected} to {first} are in no window")
        expected = max(expected, last)
    if expected != UPDATES:
        found.append(f"windows end at {expected} of {UPDATES}")
    for before, after in itertools.pairwise(lines):
        same = "phase" in before and "phase" in after and before["attempt"] == after["attempt"]
        if same and before["end_ns"] != after["start_ns"]:
            found.append(f"a gap of {after['start_ns'] - before['end_ns']} ns within a process")
    return found


def _faults_of_account(lines: list[dict], energy: dict, tree: NotedTree) -> list[str]:
    """Joules of a process that are not its counter's, and sums that do not add up."""
    found = []
    windows = [line for line in lines if "phase" in line]
    for attempt in sorted({line["attempt"] for line in windows}):
        own = [line for line in windows if line["attempt"] == attempt]
        joules = _sum_j(own)
        begin_ns, end_ns = own[0]["start_ns"], own[-1]["end_ns"]
        if joules is None:
            found += [
                f"attempt {attempt}: null without a cause: {line['why']}"
                for line in own
                if line["energy_j"]["cpu:package-0"] is None
                and not tree.was_late(line["start_ns"] - _SEEN_LATE_NS, line["end_ns"])
            ]
            continue
        least = tree.least_j(end_ns) - tree.most_j(begin_ns + _READING_NS)
        most = tree.most_j(end_ns + _READING_NS) - tree.least_j(begin_ns)
        if not least <= joules <= most:
            found.append(f"attempt {attempt}: {joules} J, by the counter {least} to {most} J")
    undone = [
        line for position, line in enumerate(lines) if _is_undone(line, lines[position + 1 :])
    ]
    for name, joules, told in (
        ("lost", undone, energy["by_phase"].get("lost", 0.0)),
        ("metered", windows, energy["metered"]),
        ("by_domain", windows, energy["by_domain"]["cpu:package-0"]),
    ):
        added = _sum_j(joules)
        if added is None or told is None:
            same = added is told
        else:
            same = math.isclose(added, told, rel_tol=1e-9, abs_tol=1e-9)
        if not same:
            found.append(f"{name} is {told} J in the summary, and {added} J by the lines")
    return found


def _sum_j(lines: list[dict]) -> float | None:
    joules = [line["energy_j"]["cpu:package-0"] for line in lines]
    return None if None in joules else math.fsum(joules)


def null_attempts(folder: Path) -> int:
    """In how many processes a line is null since the counter was late, so that less is compared."""
    lines = [line for line in read_run(folder).windows if "phase" in line]
    attempts = {line["attempt"] for line in lines}
    return sum(_sum_j([li for li in lines if li["attempt"] == a]) is None for a in attempts)


def _is_undone(line: dict, later: list[dict]) -> bool:
    """Whether a line is of work that a later process went back behind."""
    events = [other for other in later if "event" in other]
    rollbacks = [event["to_update"] for event in events]
    if line.get("phase") == "eval" and not line["steady"]:  # broken off, and so made anew
        return any(line["first_update"] >= update for update in rollbacks)
    if line.get("phase") == "eval" and line["first_update"] in [
        event["to_update"] for event in events if "evaluated_at" in event
    ]:  # no checkpoint knew of it
        return True
    if line.get("first_update") is not None:
        return any(line["first_update"] + line["updates"] > update for update in rollbacks)
    if line.get("phase") != "train":
        return False
    # What followed the last cut: it stands if the same process came to another window.
    following = [o for o in later if "event" in o or o.get("first_update") is not None]
    return bool(following) and "event" in following[0]


def _leftovers(folder: Path) -> list[str]:
    """Files and processes that nobody will remove, and checkpoints beyond those to be kept."""
    found = [
        f"{path.relative_to(folder)} was left"
        for path in folder.rglob("*")
        if "tmp" in path.name or path.name.startswith("damaged")
    ]
    if len(committed(folder)) > KEEP:
        found.append(f"{len(committed(folder))} checkpoints were kept")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named = os.fsencode(folder.parent) in (process / "cmdline").read_bytes()
        except OSError:
            continue
        if named:
            found.append(f"process {process.name} is still there")
    return found
