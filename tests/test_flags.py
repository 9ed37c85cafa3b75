"""Every flag refuses every kind of wrong value: status 2, one to three lines, nothing written."""

import dataclasses
import subprocess
import sys

import pytest
from absl import flags as absl_flags

import experiments.run
from jaxenergy.config import RunConfig

# For each flag, values it must refuse and a word its message must contain besides the value.
WRONG = {
    "model": [("cmm", "cnn")],
    "depth": [("0", "1 or more"), ("2.5", "whole number"), ("deep", "whole number")],
    "width": [("-3", "1 or more"), ("wide", "whole number")],
    "model_args": [("norm", "name=value"), ("nrom=batch", "norm"), ("norm=bacth", "batch")],
    "activation": [("rleu", "relu")],
    "optimizer": [("sdg", "sgd"), ("no_such_module:tx", "no_such_module"), ("os:nothing", "os")],
    "optimizer_args": [("momentun=0.9", "momentum"), ("momentum=fast", "momentum")],
    "learning_rate": [("0", "more than 0"), ("-1", "more than 0"), ("nan", "number")],
    "schedule": [("cosin", "cosine")],
    "weight_decay": [("-0.1", "0 or more"), ("inf", "number")],
    "clip_norm": [("0", "more than 0"), ("tight", "number")],
    "batch_size": [("0", "1 or more"), ("1e3", "whole number"), ("1000000", "1 to")],
    "accumulate": [("0", "1 or more"), ("3", "divisor")],
    "task_weights": [("1,x", "2 numbers"), ("1,2,3", "2 numbers"), ("1,-1", "at least 0")],
    "task_sampling": [("exmples", "examples"), ("tasks", "labels")],
    "augment": [("maybe", "true or false")],
    "epochs": [("0", "more than 0"), ("ten", "number")],
    "updates": [("0", "1 to"), ("1.5", "whole number")],
    "eval_every": [("0", "1 or more"), ("often", "whole number")],
    "target_accuracy": [("0", "more than 0"), ("97", "at most 1")],
    "target_return": [("much", "number"), ("100", "--target_accuracy")],
    "target_bits_per_character": [("0", "more than 0"), ("2", "--target_accuracy")],
    "precision": [("float23", "float32")],
    "forms": [("plian", "plain")],
    "init_from": [("no/such/folder", "no/such/folder")],
    "trainable": [("haed", "head")],
    "seed": [("-1", "0 to"), ("4294967296", "0 to"), ("x", "whole number")],
    "dataset": [("cifar", "cifar10"), ("synthetic:8x8,clases=10", "classes")],
    "data_dir": [("no/such/folder", "no/such/folder")],
    "meters": [("nvlm", "nvml"), ("rapl", "rapl"), ("estimate,none", "none")],
    "idle_seconds": [("-1", "0 to"), ("long", "number")],
    "checkpoint_every": [("soon", "seconds"), ("-5", "seconds")],
    "powercap_root": [("no/such/folder", "no/such/folder")],
    "out": [("\0", "out")],
    "name": [("../up", "slash"), (".hidden", "dot"), ("", "empty")],
    "resume": [("atuo", "auto"), ("require", "unfinished")],
    "overwrite": [("perhaps", "true or false")],
    "keep": [("0", "1 or more"), ("all", "whole number")],
    "quiet": [("2", "true or false")],
    "verbose": [("very", "true or false")],
    "list": [("optimisers", "optimizers")],
}
# Other flags that a wrong value needs to be looked at.
BESIDE = {
    "task_weights": ["--dataset=digits:tasks=class+parity"],
    "task_sampling": ["--dataset=digits:tasks=class+parity"],
    "data_dir": ["--dataset=cifar10"],
    "powercap_root": ["--meters=rapl"],
    "resume": ["--name=none_such"],
}


def run_driver(arguments, capfd, monkeypatch):
    """Status and stderr of the driver, run in this process with fresh flags."""
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    absl_flags.FLAGS.unparse_flags()
    for name in absl_flags.FLAGS:
        absl_flags.FLAGS[name].unparse()
    with pytest.raises(SystemExit) as ended:
        experiments.run.main()
    return ended.value.code, capfd.readouterr().err


def test_each_flag_of_the_driver_is_tried():
    assert set(WRONG) == {field.name for field in dataclasses.fields(RunConfig)} | {"list"}


CASES = [(flag, value, word) for flag, cases in WRONG.items() for value, word in cases]


@pytest.mark.parametrize(("flag", "value", "word"), CASES, ids=[f"{f}={v}" for f, v, _ in CASES])
def test_a_wrong_value_is_refused(flag, value, word, capfd, monkeypatch, tmp_path):
    # A value that is not refused would run: let that be short, and leave a trace.
    beside = {"out": f"{tmp_path}/runs", "updates": "1", "idle_seconds": "0"}
    beside = {name: text for name, text in beside.items() if name != flag}
    if flag == "epochs":
        del beside["updates"]
    arguments = [f"--{name}={text}" for name, text in beside.items()]
    arguments += [*BESIDE.get(flag, []), f"--{flag}={value}"]
    status, message = run_driver(arguments, capfd, monkeypatch)
    assert status == 2, message
    assert 1 <= len(message.strip().splitlines()) <= 3, message
    assert "Traceback" not in message
    assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--optimiser=sgd"], "optimizer"),
        (["sgd"], "is not a flag"),
        (["--epochs=1", "--updates=5"], "one of the two"),
        (["--quiet", "--verbose"], "one of the two"),
    ],
)
def test_wrong_command_lines_are_refused(arguments, word, capfd, monkeypatch, tmp_path):
    status, message = run_driver([f"--out={tmp_path}/runs", *arguments], capfd, monkeypatch)
    assert status == 2
    assert 1 <= len(message.strip().splitlines()) <= 3, message
    assert word in message
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_flag_ends_the_process_with_status_2():
    command = [sys.executable, "-m", "experiments.run", "--batch_size=many"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == ("error: --batch_size=many is not allowed.\nAllowed: a whole number.\n")
