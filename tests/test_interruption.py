"""Signals in real processes: noticed in time, and by the watcher where the main thread cannot."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxenergy.training import interruption

# A main thread that does not run Python byte code, as in a long XLA compilation: it waits in C for
# a pipe that nobody writes, in a call that is restarted after a signal.
STUCK = """
import ctypes, os, sys
from jaxenergy.training.interruption import Interruption

def note(signum):
    os.write(1, b"recorded %d;" % signum)

with Interruption(note, *map(float, sys.argv[1:])):
    read_end, write_end = os.pipe()
    os.write(1, b"ready;")
    buffer = ctypes.create_string_buffer(1)
    libc = ctypes.CDLL(None)
    while True:
        libc.read(read_end, buffer, 1)
"""

POLITE = """
import os, time
from jaxenergy.training.interruption import Interruption, exit_status

with Interruption(lambda signum: os.write(1, b"stuck;")) as interruption:
    os.write(1, b"ready;")
    while interruption.signum is None:
        time.sleep(0.005)
    os.write(1, b"saved;")
raise SystemExit(exit_status(interruption.signum))
"""


def start(code, *args):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 6) == b"ready;"
    return process


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_main_thread_that_listens_ends_in_its_own_time(signum, status):
    process = start(POLITE)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"saved;", status)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_watcher_records_and_ends_a_process_whose_main_thread_is_stuck(signum, status):
    process = start(STUCK, "0.05")
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"recorded %d;" % signum, status)


def test_a_second_signal_records_and_ends_the_process_without_waiting():
    process = start(STUCK, "3600", "3600")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    # Two signals that are both pending come in any order.
    assert (output, process.returncode) in ((b"recorded 2;", 143), (b"recorded 15;", 130))


# Finishes what it is at before it looks, as the loop does between compiled calls.
BUSY = POLITE.replace(
    '    os.write(1, b"saved;")', '    time.sleep(0.3)\n    os.write(1, b"saved;")'
)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_is_sent_twice_is_one(signum, status):
    process = start(BUSY)
    for _ in range(3):
        process.send_signal(signum)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"saved;", status)


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs GNU timeout")
@pytest.mark.slow
def test_a_process_that_timeout_ends_saves():
    command = ["timeout", "5", sys.executable, "-c", textwrap.dedent(BUSY)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == (b"ready;saved;", 124)


def test_the_same_signal_again_after_a_while_is_a_second_one():
    process = start(STUCK, "3600", "3600")
    process.send_signal(signal.SIGTERM)
    time.sleep(interruption.REPEAT_S + 0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"recorded 15;", 143)


# Nor can the record be written, as on a disk that hangs.
STUCK_TWICE = STUCK.replace('os.write(1, b"recorded %d;" % signum)', "threading.Event().wait()")
STUCK_TWICE = STUCK_TWICE.replace("import ctypes", "import threading, ctypes")


def test_a_third_signal_does_not_wait_for_the_record():
    process = start(STUCK_TWICE, "0.05", "3600")
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    process.communicate()
    assert process.returncode == 143


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_record_that_cannot_be_written_is_not_waited_for(signum, status):
    process = start(STUCK_TWICE, "0.05", "0.05")
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"", status)


def test_whatever_is_stuck_a_process_ends_within_10_s_of_a_signal():
    """By the rules above; half a second is for a machine on which nothing is at once."""
    assert interruption.GRACE_S + interruption.RECORD_S <= 10 - 0.5
