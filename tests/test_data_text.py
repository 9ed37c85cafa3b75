"""Texts as sequences of characters: what is learned from, what is held out, what is refused."""

import math
import platform

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxenergy import data
from jaxenergy.config import RunConfig
from jaxenergy.data.text import encode
from jaxenergy.errors import UsageError
from jaxenergy.records import read_run
from jaxenergy.training import session
from jaxenergy.training.plan import make_plan
from jaxenergy.training.progress import SilentObserver

TEXT = "".join(f"{number} is the number after {number - 1}.\n" for number in range(400))


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "numbers.txt"
    file.write_text(TEXT)
    return file


def decode(dataset, tokens) -> str:
    return "".join(dataset.facts.vocabulary[token] for token in np.asarray(tokens).ravel())


def test_sequences_follow_each_other_and_each_token_is_labelled_by_the_next(file):
    dataset = data.load("text:length=16", data_dir=file)
    parts = (dataset.train, dataset.validation, dataset.test)
    inputs = "".join(decode(dataset, part.inputs) for part in parts)
    labels = "".join(decode(dataset, part.labels) for part in parts)
    assert inputs == TEXT[: len(inputs)]
    assert labels == TEXT[1 : len(labels) + 1]
    assert len(TEXT) - len(inputs) <= 16
    assert len(dataset.validation.labels) == len(dataset.test.labels)
    assert len(dataset.train.labels) >= 18 * len(dataset.test.labels)
    assert dataset.classes == len(set(TEXT))
    assert dataset.tokens_per_example == 16


@given(st.text(st.characters(), max_size=600))
def test_encoding_is_undone_by_the_vocabulary(text):
    tokens, vocabulary = encode(text)
    decoded = "".join(vocabulary[token] for token in tokens)
    # A lone surrogate is no character of any text that is read.
    expected = text.encode("utf-32-le", "replace").decode("utf-32-le")
    if len(set(expected)) <= 256:
        assert decoded == expected
    else:
        assert all(a == b or a == "\ufffd" for a, b in zip(decoded, expected, strict=True))


def test_of_many_kinds_the_most_frequent_stay():
    rare = "".join(map(chr, range(1000, 1400)))
    tokens, vocabulary = encode("ab" * 50 + rare)
    assert len(vocabulary) == 256
    decoded = "".join(vocabulary[token] for token in tokens)
    assert decoded.startswith("ab" * 50)
    assert decoded.count("\ufffd") == 400 - 253


def test_the_standard_library_is_always_there():
    dataset = data.load("stdlib:length=64,characters=50000")
    assert platform.python_version() in dataset.source
    assert "sha256" in dataset.source
    assert "import" in decode(dataset, dataset.train.inputs)
    assert dataset.digest == data.load("stdlib:characters=50000,length=64").digest


@pytest.mark.parametrize(
    ("name", "given_file", "message"),
    [
        ("text", None, "no --data_dir is given"),
        ("text", "absent.txt", "is no file"),
        ("text", "binary.bin", "byte 0 is not UTF-8"),
        ("text", "short.txt", "Allowed: a text of at least 2,561 characters"),
        ("text:lenght=3", "numbers.txt", "Did you mean 'length'"),
        ("text:length=0", "numbers.txt", "at least 1"),
        ("stdlib:length=2.5", None, "a whole number"),
    ],
)
def test_what_is_no_text_is_refused(name, given_file, message, file):
    file.with_name("binary.bin").write_bytes(b"\xff\xfe")
    file.with_name("short.txt").write_text("too short")
    folder = given_file and file.with_name(given_file)
    with pytest.raises(UsageError, match=message):
        data.load(name, data_dir=folder)


def test_synthetic_tokens_are_random_and_labelled_by_the_next():
    dataset = data.load("synthetic:12,classes=5,examples=40")
    assert dataset.train.inputs.shape == dataset.train.labels.shape == (40, 12)
    np.testing.assert_array_equal(dataset.train.inputs[:, 1:], dataset.train.labels[:, :-1])
    assert set(np.unique(dataset.train.labels)) == set(range(5))


@pytest.mark.parametrize("model", ["transformer_lm", "lstm"])
def test_a_language_model_learns_its_text(model, file, tmp_path):
    config = RunConfig(
        model=model,
        depth=1,
        width=32,
        dataset="text:length=16",
        data_dir=str(file),
        optimizer="adam",
        learning_rate=1e-2,
        batch_size=32,
        updates=120,
        eval_every=60,
        meters="none",
        out=str(tmp_path),
        name="run",
    )
    result = session.run(config, SilentObserver(), {})
    final = result.summary["final"]
    for split in ("validation", "test"):
        bits = final[f"{split}_bits_per_character"]
        assert bits == pytest.approx(final[f"{split}_loss"] / math.log(2))
        assert bits < 2.5 < math.log2(len(set(TEXT)))  # guessing takes 4.2 bits
        assert 0.5 < final[f"{split}_accuracy"] <= 1
    assert "per_token_j" in result.summary
    first, last = read_run(result.path).metrics
    assert last["validation_bits_per_character"] < first["validation_bits_per_character"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "cnn"}, "Allowed for these: transformer_lm, lstm"),
        ({"model": "lstm", "augment": True}, "--augment is for images"),
    ],
)
def test_what_is_for_images_is_refused_for_text(settings, message, file):
    config = RunConfig(dataset="text:length=16", **settings)
    with pytest.raises(UsageError, match=message):
        make_plan(config, data.load(config.dataset, data_dir=file), "cpu")
