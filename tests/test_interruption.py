"""Signals in real processes: noticed in time, and by the watcher where the main thread cannot."""

import os
import signal
import subprocess
import sys
import textwrap

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


def test_a_second_signal_ends_the_process_at_once():
    process = start(STUCK, "3600")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output == b""
    assert process.returncode in (130, 143)  # two signals that are both pending come in any order
