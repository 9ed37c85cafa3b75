"""Quantities as people read them."""

import pytest

from jaxenergy.units import format_duration_s, format_percent, format_si


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.345, "12.3 J"),
        (0.0123, "12.3 mJ"),
        (999.96, "1.00 kJ"),
        (-4.2e-7, "-420 nJ"),
        (1.5e-13, "0.000150 nJ"),
        (0.0, "0 J"),
        (None, "n/a"),
        (float("nan"), "n/a"),
        (2.5e12, "2.50 TJ"),
        (2.5e18, "2500 PJ"),
    ],
)
def test_si(value, text):
    assert format_si(value, "J") == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0035, "0.35 %"),
        (0.02, "2 %"),
        (0.996, "100 %"),
        (1.5, "150 %"),
        (12.34, "1200 %"),
        (3e-9, "0.0000003 %"),
        (None, "n/a"),
        (float("inf"), "n/a"),
    ],
)
def test_percents_have_no_exponent(share, text):
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (12.34, "12.3 s"),
        (245, "4 min 05 s"),
        (11_220, "3 h 07 min"),
        (None, "n/a"),
    ],
)
def test_durations(seconds, text):
    assert format_duration_s(seconds) == text
