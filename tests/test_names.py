"""What `--list` prints: every name with a line, and what optimizers cost for a model."""

import io

import pytest
from rich.console import Console

from jaxenergy.config import RunConfig
from jaxenergy.optimizers import OPTIMIZERS
from jaxenergy.report import names


def printed(function, *args):
    console = Console(file=io.StringIO(), width=200)
    function(*args, console)
    return console.file.getvalue()


def test_each_name_stands_in_the_list():
    text = printed(names.print_names, "all")
    for registry in names.REGISTRIES.values():
        for name in registry:
            assert f"{name} " in text


def test_one_list_alone():
    text = printed(names.print_names, "meters")
    assert "nvml" in text
    assert "adamw" not in text


@pytest.mark.slow
def test_costs_of_optimizers_for_a_model():
    config = RunConfig(model="mlp", depth=1, width=16)
    rows = {
        line.split()[0]: line.split()[1:]
        for line in printed(names.print_optimizer_costs, config).splitlines()
        if line and line.split()[0] in OPTIMIZERS
    }
    assert set(rows) == set(OPTIMIZERS)
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    two_moments = (2 * parameters + 2) * 4  # and two counts
    assert float(rows["adam"][0]) == pytest.approx(two_moments / 1e3, rel=0.01)
    passes = {"sam": "2", "sophia": "1.2", "lbfgs": "varies", "dpsgd": "1", "galore": "1"}
    assert {name: rows[name][-1] for name in passes} == passes
    assert "n/a" not in rows["adam"]
