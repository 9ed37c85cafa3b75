"""Signals in real processes: noticed in time, and by the watcher where the main thread cannot."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

# A main thread that does not run Python byte code, as in a long XLA compilation: it waits in C for
# a pipe that nobody writes, in a call that is restarted after a signal.
STUCK = """
import ctypes, os, sys
from jaxenergy.training.interruption import Interruption

def note(signum):
    os.write(1, b"recorded %d;" % signum)

with Interruption(note, grace_s=float(sys.argv[1])):
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
    process = start(STUCK, "3600")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    # Two signals that are both pending come in any order.
    assert (output, process.returncode) in ((b"recorded 2;", 143), (b"recorded 15;", 130))


def test_a_third_signal_does_not_wait_for_the_record():
    never = STUCK.replace('os.write(1, b"recorded %d;" % signum)', "threading.Event().wait()")
    process = start(never.replace("import ctypes", "import threading, ctypes"), "0.05")
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    process.communicate()
    assert process.returncode == 143
