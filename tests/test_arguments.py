"""Typed arguments: what is read back is what was written, and everything else is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy.arguments import (
    COUNT,
    FRACTION,
    POSITIVE,
    Argument,
    Interval,
    read_arguments,
    split_arguments,
)
from jaxenergy.errors import UsageError

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(NUMBERS)
def test_numbers_come_back_as_they_were_written(number):
    assert Argument(float).read(repr(number), "x") == number


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_come_back_as_they_were_written(number):
    value = Argument(int).read(str(number), "x")
    assert value == number
    assert type(value) is int


@given(NUMBERS, NUMBERS, NUMBERS)
def test_an_interval_takes_what_lies_in_it_and_nothing_else(low, high, number):
    argument = Argument(float, interval=Interval(low, high))
    if low <= number < high:
        assert argument.read(number, "x") == number
    else:
        with pytest.raises(UsageError):
            argument.read(number, "x")


@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [
        (Argument(bool), "true", True),
        (Argument(bool), "No", False),
        (Argument(int), 3.0, 3),
        (Argument(float, optional=True), "none", None),
        (Argument(str, choices=("none", "batch")), "none", "none"),
        (Argument((float, float)), "0.9/0.999", (0.9, 0.999)),
        (Argument((str, float)), ("heuristic", 1e-6), ("heuristic", 1e-6)),
        (Argument(object), "3", 3),
        (Argument(object), "0.5", 0.5),
        (Argument(object), "False", False),
        (Argument(object), "none", None),
        (Argument(object), "sps", "sps"),
    ],
)
def test_reads(argument, text, value):
    read = argument.read(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("argument", "text", "allowed"),
    [
        (Argument(bool), "maybe", "true or false"),
        (Argument(int), "1.5", "a whole number"),
        (Argument(int, interval=COUNT), "0", "at least 1"),
        (Argument(int), True, "a whole number"),
        (Argument(float), "nan", "a number"),
        (Argument(float), "inf", "a number"),
        (Argument(float), "fast", "a number"),
        (Argument(float), "none", "a number"),
        (Argument(float, interval=FRACTION), "1", "at least 0 and below 1"),
        (Argument(float, interval=POSITIVE), "0", "above 0"),
        (Argument(float, optional=True), "x", "or none"),
        (Argument((float, float)), "0.9", "a number / a number"),
        (Argument(str, choices=("a", "b")), "c", "a, b"),
    ],
)
def test_refuses_with_the_value_got_and_the_values_allowed(argument, text, allowed):
    with pytest.raises(UsageError) as error:
        argument.read(text, "--flag: x")
    assert f"--flag: x={text}" in str(error.value)
    assert allowed in str(error.value)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'momentum'"):
        read_arguments({"momentun": "0.9"}, {"momentum": Argument(float)}, "--optimizer_args")
    with pytest.raises(UsageError, match="no arguments here"):
        read_arguments({"x": "1"}, {}, "--schedule=constant")


def test_splits():
    assert split_arguments("", "x") == {}
    assert split_arguments(" a=1, b = x:y ,", "x") == {"a": "1", "b": "x:y"}
    for text in ("a", "a=", "=1", "a=1,a=2"):
        with pytest.raises(UsageError):
            split_arguments(text, "--optimizer_args")


def test_an_unbounded_interval_is_described_as_finite():
    assert str(Interval(-math.inf, math.inf)) == "finite"
