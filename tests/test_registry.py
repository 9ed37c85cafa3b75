"""Names that are unknown are refused so that a person can mend them."""

import hashlib
import math

import pytest

from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.registry import Registry, load_attribute, read_source


def test_an_unknown_name_is_refused_with_the_nearest_and_the_list():
    registry = Registry("--optimizer")
    registry.add("adam", 1, "Adam")
    registry.add("sgd", 2, "SGD")
    with pytest.raises(UsageError) as refused:
        registry["sdg"]
    assert str(refused.value) == (
        "--optimizer=sdg is unknown. Did you mean 'sgd'?\nAllowed: adam, sgd."
    )


def test_a_name_is_registered_once():
    registry = Registry("--model")
    registry.add("mlp", 1, "one")
    with pytest.raises(UsageError, match="mlp"):
        registry.add("mlp", 2, "two")
    assert registry["mlp"] == 1


def test_of_very_many_names_the_nearest_are_shown():
    message = str(unknown_value("--x", "n150", [f"n{number}" for number in range(150)]))
    assert "and 145 more" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("math:sinn", "'math:sin'"),
        ("math", "module:attribute"),
        ("no_such_module:f", "no_such_module"),
        (":f", "module:attribute"),
        ("my/optimizers.py:f", "my.optimizers:f"),
        ("optimizers.py:f", "names a file"),
    ],
)
def test_a_plug_in_that_is_not_there_is_refused(spec, word):
    with pytest.raises(UsageError, match="--optimizer") as refused:
        load_attribute(spec, "--optimizer")
    assert word in str(refused.value)


def test_a_plug_in_is_loaded():
    assert load_attribute("math:sqrt", "--optimizer") is math.sqrt


def test_a_plug_in_is_told_from_another_of_its_name_by_its_own_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "told_by_its_file.py"
    for code in ("import math\n", "import cmath\n"):
        file.write_text(code)
        assert read_source("told_by_its_file:f") == {
            "file": file.name,
            "digest": f"sha256:{hashlib.sha256(code.encode()).hexdigest()}",
        }


@pytest.mark.parametrize("spec", ["sys:exit", "no_such_module:f", "no_such.module:f", ":f"])
def test_what_has_no_file_has_no_source(spec):
    assert read_source(spec) is None
