"""The estimate is CPU time times watts: of this process, its children, and nobody else."""

import os
import subprocess
import sys
import time

from jaxenergy.meters import open_meters
from jaxenergy.meters.cpu_time import ProcessTreeClock
from jaxenergy.meters.estimate import EstimatedCounter, EstimateMeter

BURN = "import time\nwhile time.process_time() < {cpu_s}: pass\n"


def burn(cpu_s: float) -> float:
    """Keeps a core busy; returns the CPU time that it really took."""
    start_s = time.process_time()
    while time.process_time() - start_s < cpu_s:
        pass
    return time.process_time() - start_s


def test_joules_are_cpu_time_times_watts():
    counter = EstimatedCounter(watts_per_busy_core=10.0)
    before_s = time.process_time()
    first_j = counter.read_j()
    burn(0.05)
    second_j = counter.read_j()
    after_s = time.process_time()
    assert 10.0 * 0.05 <= second_j - first_j <= 10.0 * (after_s - before_s)


def test_waiting_costs_nothing():
    counter = EstimatedCounter(watts_per_busy_core=1.0)
    first_j, before_s = counter.read_j(), time.process_time()
    time.sleep(0.1)
    assert counter.read_j() - first_j <= time.process_time() - before_s + 1e-3


def test_every_joule_is_marked_and_the_assumptions_are_stated():
    with open_meters("estimate") as meters:
        (domain,) = meters.domains
        assert domain.provenance == "estimated"
        assert domain.range_j is None
        assert "6 W per busy core" in domain.source
        (note,) = meters.notes
        assert "27-37 %" in note
        assert "idle power" in note


def test_children_are_counted_once_alive_and_after_they_ended():
    clock = ProcessTreeClock()
    before_s, own_before_s = clock.read_s(), time.process_time()
    others = clock.descendants()  # of tests before, e.g. Python's own that minds shared memory
    program = BURN.format(cpu_s=0.2) + "input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        deadline_s = time.monotonic() + 30
        alive_s = 0.0
        while alive_s < 0.2 and time.monotonic() < deadline_s:
            time.sleep(0.02)
            alive_s = clock.read_s() - before_s
        assert child.pid in clock.descendants()
        assert child.stdin is not None
        child.stdin.write(b"\n")
    own_s = time.process_time() - own_before_s
    ended_s = clock.read_s() - before_s
    assert ended_s >= alive_s >= 0.2
    # Counted twice it would be at least 0.4 s; what else there is, is our own polling and start-up.
    assert ended_s < 0.2 + 0.19 + own_s
    assert child.pid not in others
    assert clock.descendants() == others


def test_a_grandchild_is_counted():
    clock = ProcessTreeClock()
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"
    program = program.replace("{cpu_s}", "0.1")
    before_s = clock.read_s()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert clock.read_s() - before_s >= 0.1


def test_a_child_that_lived_before_counts_from_now_on():
    program = BURN.format(cpu_s=0.3) + "print('done', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        own_s = time.process_time()
        clock = ProcessTreeClock()
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.wait()
        assert clock.read_s() < 0.25 + time.process_time() - own_s


def test_waiting_children_are_left_to_whoever_waits_for_them():
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    clock = ProcessTreeClock()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    clock.read_s()
    assert child.wait() == 7


def test_an_estimate_never_goes_back():
    meter = EstimateMeter()
    (counter,) = meter.counters
    readings = []
    for _ in range(20):
        subprocess.run(["true"], check=True)
        readings.append(counter.read_j())
    assert readings == sorted(readings)
