"""The config's laws: it round-trips, its id hashes what matters, and it refuses what it must."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy.config import RunConfig, field_type, parse_interval, parse_setting
from jaxenergy.errors import UsageError

configs = st.builds(
    RunConfig,
    model=st.sampled_from(["mlp", "cnn"]),
    depth=st.none() | st.integers(1, 200),
    learning_rate=st.none() | st.floats(1e-9, 10),
    batch_size=st.integers(1, 10_000),
    augment=st.booleans(),
    updates=st.none() | st.integers(1, 10**9),
    checkpoint_every=st.sampled_from(["0", "500", "60s"]),
    seed=st.integers(0, 2**32 - 1),
    out=st.text(st.characters(exclude_characters="\0"), max_size=10),
)


@given(configs)
def test_round_trip(config):
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig.from_json(config.to_json()).id == config.id


def test_id_changes_with_every_identity_setting_and_with_no_other():
    other = {bool: True, int: 2, float: 0.25, str: "500"}
    allowed = {"precision": "bfloat16", "forms": "plain", "resume": "never"}
    default = RunConfig()
    for field in dataclasses.fields(RunConfig):
        value = allowed.get(field.name, other[field_type(field.name)])
        changed = dataclasses.replace(default, **{field.name: value})
        assert (changed.id != default.id) == field.metadata["identity"], field.name


def test_settings_at_their_default_do_not_enter_the_id():
    assert RunConfig(batch_size=128).id == RunConfig().id


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5", "nan", "infs", "-3s", "10 m", "1e400s"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(UsageError, match="Allowed"):
        parse_interval(text)


def test_intervals():
    assert parse_interval("500") == (500, None)
    assert parse_interval("1.5s") == (None, 1.5)
    assert parse_interval("0") == parse_interval("0s") == (None, None)


@pytest.mark.parametrize(
    ("name", "text"), [("batch_size", "1.5"), ("learning_rate", "nan"), ("augment", "maybe")]
)
def test_text_of_another_type_is_refused(name, text):
    with pytest.raises(UsageError, match=f"--{name}={text}"):
        parse_setting(name, text)


@pytest.mark.parametrize("values", [{"model": 3}, {"seed": True}, {"augment": 1}, {"modle": "cnn"}])
def test_a_config_file_with_wrong_types_or_names_is_refused(values):
    with pytest.raises(UsageError):
        RunConfig.from_json(values)
