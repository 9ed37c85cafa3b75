"""The drivers that measure: what they print and write, and that every flag refuses wrong values."""

import json
import os
import subprocess
import sys

import pytest

PLUG_IN = """
import jax
import jax.numpy as jnp

def fixed():
    return jnp.ones((8, 8)) @ jnp.ones((8, 8))

def make_step():
    step = jax.jit(lambda x, scale: jnp.tanh(x * scale), donate_argnums=0)
    return step, (jnp.ones(64), 1.5), lambda out, args: (out, *args[1:])

def make_donating():
    return jax.jit(lambda x: x + 1, donate_argnums=0), (jnp.ones(64),)

def make_nonsense():
    return 3, 4

NUMBER = 3
"""
SIMULATED = ["--meters=simulated", "--target_relative_ci=0.5", "--max_seconds=3"]

# Runs a driver once for each command line it is given, and reports how each ended.
CHILD = """
import contextlib, importlib, io, json, sys
from absl import flags

driver = importlib.import_module(sys.argv[1])
report = []
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["driver", *arguments]
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            driver.main()
            status = None
        except SystemExit as ended:
            status = ended.code
    report.append((status, errors.getvalue()))
print(json.dumps(report))
"""
NAMES_OF_FLAGS = """
import importlib, sys
from absl import flags

driver = importlib.import_module(sys.argv[1])
print(*(flag.name for flag in flags.FLAGS.get_key_flags_for_module(driver)))
"""

# Command lines that must be refused, by driver and flag, and a word of each message.
REFUSED = {
    "measure": {
        "meters": [("nvlm", "nvml"), ("estimate,none", "none")],
        "powercap_root": [("no/such/folder", "no/such/folder")],
        "target_relative_ci": [("0", "above 0"), ("1", "below 1"), ("x", "a number")],
        "max_seconds": [("0", "above 0"), ("inf", "a number"), ("long", "a number")],
        "json": [("no/such/folder/m.json", "existing folder"), (".", "existing folder")],
        "jit": [("maybe", "true or false")],
        "setup": [("maybe", "true or false")],
        "shapes": [("3x", "1024x1024"), ("0", "1 or more"), ("", "1024x1024")],
        "dtype": [("flaot32", "float32")],
        "seed": [("-1", "at least 0"), ("x", "whole number")],
    },
    "meters": {"powercap_root": [("no/such/folder", "no folder"), ("", "no folder")]},
    "compare": {
        "frameworks": [
            ("jax,troch", "torch"),
            ("jax", "needs two"),
            ("torch,torch", "twice"),
            ("", "jax_plain"),
        ],
        "models": [("cmm", "cnn"), ("mlp,mlp", "twice"), ("", "mlp")],
        "processes": [("1", "at least 2"), ("many", "whole number")],
        "cold_compiles": [("0", "at least 1"), ("1.5", "whole number")],
        "seconds": [("0", "above 0"), ("inf", "a number")],
        "tf32": [("maybe", "true or false")],
        "batch_size": [("0", "1 or more")],
        "precision": [("float46", "float32")],
        "name": [("../up", "--name")],
    },
    "shares": {
        "meters": [("nvlm", "nvml")],
        "model": [("cmm", "cnn")],
        "optimizer": [("sdg", "sgd")],
        "accumulate": [("3", "divisor")],
        "dataset": [("cifar", "cifar10")],
        "target_relative_ci": [("2", "below 1")],
        "max_seconds": [("-1", "above 0")],
        "json": [("no/such/folder/m.json", "existing folder")],
    },
}
POSITIONAL = {"measure": ["operator:neg"]}


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory):
    """An environment in which Python finds the functions of `PLUG_IN`."""
    folder = tmp_path_factory.mktemp("plug_in")
    (folder / "plug_in.py").write_text(PLUG_IN)
    places = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def run_child(code, *arguments, env=None):
    """What a fresh process prints in which experiments can be imported."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def run_driver(driver, *arguments, env=None):
    command = [sys.executable, "-m", f"experiments.{driver}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def assert_refused(driver, lines, words, env=None):
    """Each command line ends with status 2 and a few lines that have a word in them."""
    printed = run_child(CHILD, f"experiments.{driver}", json.dumps(lines), env=env)
    report = json.loads(printed.splitlines()[-1])
    for line, word, (status, message) in zip(lines, words, report, strict=True):
        assert status == 2, (line, message)
        assert 1 <= len(message.strip().splitlines()) <= 3, message
        assert word in message, message


@pytest.mark.parametrize("driver", REFUSED)
def test_wrong_values_are_refused(driver):
    cases = [(flag, *case) for flag, cases in REFUSED[driver].items() for case in cases]
    lines = [[*POSITIONAL.get(driver, []), f"--{flag}={value}"] for flag, value, _ in cases]
    assert_refused(driver, lines, [word for *_, word in cases])


@pytest.mark.parametrize("driver", ["measure", "meters"])
def test_each_flag_of_the_driver_is_tried(driver):
    assert set(run_child(NAMES_OF_FLAGS, f"experiments.{driver}").split()) == set(REFUSED[driver])


def test_help_shows_the_flags():
    """Those of a run too, which are defined elsewhere."""
    for driver, flags in (("measure", REFUSED["measure"]), ("shares", REFUSED["shares"])):
        printed = run_driver(driver, "--help").stdout
        for flag in flags:
            assert f"{flag}:" in printed, flag


def test_a_function_with_arrays_of_given_shapes(tmp_path):
    flags = ["--jit", "--shapes=32x16,16x8", f"--json={tmp_path}/m.json", *SIMULATED]
    ended = run_driver("measure", "jax.numpy:matmul", *flags)
    assert ended.returncode == 0, ended.stderr
    assert "simulated: the joules follow a script" in ended.stdout
    assert "J per call" in ended.stdout
    assert "SIMULATED" in ended.stdout
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["function"] == "jax.numpy:matmul"
    assert record["provenance"] == "simulated"
    assert record["seconds_per_call"] > 0


@pytest.mark.parametrize("arguments", [["plug_in:fixed"], ["plug_in:make_step", "--setup"]])
def test_a_function_of_one_s_own(plug_in, arguments):
    ended = run_driver("measure", *arguments, "--meters=none", env=plug_in)
    assert ended.returncode == 0, ended.stderr
    assert "n/a J per call (no domain was counted)" in ended.stdout


UNMEASURABLE = [
    ([], "MODULE:FUNCTION is missing"),
    (["plug_in:fixed", "plug_in:fixed"], "is not a flag"),
    (["plug_in"], "module:attribute"),
    (["plug_out:fixed"], "plug_out"),
    (["plug_in:fixd"], "fixed"),
    (["plug_in:NUMBER"], "not a function"),
    (["plug_in:make_nonsense", "--setup"], "(3, 4)"),
    (["jax.numpy:matmul"], "cannot be called with 0 arguments"),
    (["jax.numpy:matmul", "--shapes=3"], "cannot be called with 1 arguments"),
    (["jax.numpy:matmul", "--shapes=3x4,5x6"], "--shapes=3x4,5x6 failed"),
    (["math:sqrt", "--setup"], "cannot be called with 0 arguments"),
    (["plug_in:make_donating", "--setup"], "carry"),
    (["plug_in:make_step", "--setup", "--shapes=3"], "one of the two"),
]


def test_what_cannot_be_measured_is_refused(plug_in):
    lines, words = zip(*UNMEASURABLE, strict=True)
    assert_refused("measure", lines, words, env=plug_in)


def test_shares_are_printed_and_written(tmp_path):
    small = ["--model=mlp", "--depth=1", "--width=8", "--batch_size=16", "--optimizer=adam"]
    ended = run_driver("shares", *small, "--meters=none", f"--json={tmp_path}/s.json")
    assert ended.returncode == 0, ended.stderr
    for word in ("forward", "backward", "optimizer", "remainder", "not metered", "adam"):
        assert word in ended.stdout
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["config"]["optimizer"] == "adam"
    assert record["config"]["resolved"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert record["energy_j"] is None
    means = {name: part["mean"] for name, part in record["duration_s"].items()}
    whole = means.pop("update")
    assert sum(means.values()) == pytest.approx(whole, rel=1e-9)
