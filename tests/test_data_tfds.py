"""TensorFlow Datasets without TensorFlow: prepare, read back, refuse, and give up soon."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import re
import socket
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra `tfds` is not installed")

import tensorflow_datasets as tfds

from jaxenergy import data
from jaxenergy.data import official, tfds_builders
from jaxenergy.data.archives import Archive
from jaxenergy.data.dataset import Split
from jaxenergy.errors import UsageError

CLASSES, PER_CLASS = 10, 20


@pytest.fixture
def small_cifar10(monkeypatch, tmp_path):
    """CIFAR-10 with 200 + 50 random images, published as one file of our own making."""
    random = np.random.default_rng(0)
    train, test = (
        Split(
            random.integers(0, 256, (count, 32, 32, 3), np.uint8),
            random.permutation(np.arange(count) % CLASSES).astype(np.int32),
        )
        for count in (CLASSES * PER_CLASS, 50)
    )
    content = b"the published bytes"
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "small.bin").write_bytes(content)
    small = dataclasses.replace(
        official.OFFICIAL["cifar10"],
        train_counts=(PER_CLASS,) * CLASSES,
        test_counts=(5,) * CLASSES,
        archives=(
            Archive(
                "small.bin",
                "https://small.invalid/small.bin",
                len(content),
                hashlib.sha256(content).hexdigest(),
            ),
        ),
        parse=lambda contents: (train, test) if contents == [content] else None,
        find=lambda data_dir: None,
    )
    monkeypatch.setitem(official.OFFICIAL, "cifar10", small)
    return small, train, test


def _manual(tmp_path):
    return tfds.download.DownloadConfig(manual_dir=str(tmp_path / "manual"))


def test_prepares_without_tensorflow_and_reads_back_in_the_official_order(small_cifar10, tmp_path):
    _, train, test = small_cifar10
    root = tmp_path / "tfds"
    read_train, read_test, source = tfds_builders.load_with_tfds("cifar10", root, _manual(tmp_path))
    np.testing.assert_array_equal(read_train.inputs, train.inputs)
    np.testing.assert_array_equal(read_train.labels, train.labels)
    np.testing.assert_array_equal(read_test.inputs, test.inputs)
    np.testing.assert_array_equal(read_test.labels, test.labels)
    assert source == "TensorFlow Datasets jaxenergy_images/cifar10/1.0.0, in the official order"
    assert "tensorflow" not in sys.modules

    # What is prepared needs neither the archive nor a network any more, by whichever folder.
    (tmp_path / "manual" / "small.bin").unlink()
    direct = official.build_official(official.OFFICIAL["cifar10"], train, test, "direct")
    for data_dir in (root, root / "jaxenergy_images/cifar10/1.0.0"):
        again = data.load("cifar10", data_dir=data_dir)
        assert again.digest == direct.digest
        assert again.train.examples == 9 * again.validation.examples


def test_an_altered_download_is_refused(small_cifar10, tmp_path):
    (tmp_path / "manual" / "small.bin").write_bytes(b"other bytes than these!")
    with pytest.raises(tfds_builders.NotAvailable, match=r"Expected.*size=19.*Got.*size=23"):
        tfds_builders.load_with_tfds("cifar10", tmp_path / "tfds", _manual(tmp_path))


@contextlib.contextmanager
def _served(folder, monkeypatch):
    """Publishes a folder's files on this machine; the archive's address is that of its server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            _publish_at(f"http://127.0.0.1:{server.server_port}/small.bin", monkeypatch)
            yield
        finally:
            server.shutdown()
            thread.join()


def _publish_at(url, monkeypatch):
    small = official.OFFICIAL["cifar10"]
    there = dataclasses.replace(small, archives=(dataclasses.replace(small.archives[0], url=url),))
    monkeypatch.setitem(official.OFFICIAL, "cifar10", there)


def test_what_is_not_here_is_downloaded_and_kept(small_cifar10, monkeypatch, tmp_path):
    _, train, test = small_cifar10
    with _served(tmp_path / "manual", monkeypatch):
        loaded = data.load("cifar10", data_dir=tmp_path)
    direct = official.build_official(official.OFFICIAL["cifar10"], train, test, "direct")
    assert loaded.digest == direct.digest == data.load("cifar10", data_dir=tmp_path).digest


def test_an_altered_download_from_its_host_is_refused(small_cifar10, monkeypatch, tmp_path):
    (tmp_path / "manual" / "small.bin").write_bytes(b"The published bytes")
    with (
        _served(tmp_path / "manual", monkeypatch),
        pytest.raises(UsageError, match=r"wrong checksum.*Expected.*Got"),
    ):
        data.load("cifar10", data_dir=tmp_path)


def test_a_host_without_the_file_is_told(small_cifar10, monkeypatch, tmp_path):
    (tmp_path / "manual" / "small.bin").unlink()
    with (
        _served(tmp_path / "manual", monkeypatch),
        pytest.raises(UsageError, match=r"cannot be reached \(HTTPError\)"),
    ):
        data.load("cifar10", data_dir=tmp_path)


def test_a_truncated_prepared_set_is_refused(small_cifar10, tmp_path):
    tfds_builders.load_with_tfds("cifar10", tmp_path / "tfds", _manual(tmp_path))
    (shard,) = (tmp_path / "tfds").rglob("*-train.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UsageError, match="truncated or altered"):
        data.load("cifar10", data_dir=tmp_path / "tfds")


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_class_that_a_prepared_set_names_is_not_imported(
    small_cifar10, monkeypatch, tmp_path, key
):
    """TFDS would import the module of any class that features.json names."""
    tfds_builders.load_with_tfds("cifar10", tmp_path / "tfds", _manual(tmp_path))
    (file,) = (tmp_path / "tfds").rglob("features.json")
    features = json.loads(file.read_text())
    features["featuresDict"]["features"]["image"] = {key: "evil_features.Attack", "content": {}}
    file.write_text(json.dumps(features))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_features.py").write_text("")
    with pytest.raises(UsageError, match="not loaded because a folder names it"):
        data.load("cifar10", data_dir=tmp_path / "tfds")
    assert "evil_features" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"32"', '"999999"', "altered"),
        ('"200"', '"999999999999"', "altered"),
        ("{", "[" * 100_000, "is no JSON"),
    ],
    ids=["shape", "count", "depth"],
)
def test_a_prepared_set_that_says_it_is_huge_is_refused(small_cifar10, tmp_path, old, new, told):
    tfds_builders.load_with_tfds("cifar10", tmp_path / "tfds", _manual(tmp_path))
    for name in ("features.json", "dataset_info.json"):
        (file,) = (tmp_path / "tfds").rglob(name)
        file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UsageError, match=told):
        data.load("cifar10", data_dir=tmp_path / "tfds")


def _prepare_as_tfds_does(name, version, train, root, *, with_id):
    """Prepares a set with the features and the shuffling of TFDS's own builder."""
    pytest.importorskip("PIL", reason="TFDS decodes the PNG of its own builders with Pillow")
    from PIL import Image

    def png(image):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "png")
        stream.seek(0)
        return stream

    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=CLASSES),
    }
    if with_id:
        features["id"] = tfds.features.Text()

    def examples(self, prefix):
        for index, (image, label) in enumerate(zip(train.inputs, train.labels, strict=True)):
            example = {"image": png(image), "label": int(label)}
            yield index, example | ({"id": f"{prefix}_{index:05d}"} if with_id else {})

    with tfds.core.registered.skip_registration():
        stock = type(
            "Cifar10",
            (tfds.core.GeneratorBasedBuilder,),
            {
                "name": name,
                "VERSION": tfds.core.Version(version),
                "_info": lambda self: tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                ),
                "_split_generators": lambda self, _: {
                    part: self._generate_examples(part) for part in ("train", "test")
                },
                "_generate_examples": examples,
            },
        )
        builder = stock(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()


@pytest.mark.parametrize("with_id", [True, False], ids=["with-id", "without-id"])
def test_a_set_prepared_by_tfds_itself_is_read(small_cifar10, tmp_path, with_id):
    _, train, _ = small_cifar10
    _prepare_as_tfds_does("cifar10", "3.0.2", train, tmp_path, with_id=with_id)
    read, _, source = tfds_builders.load_with_tfds("cifar10", tmp_path)
    if with_id:
        assert source == "TensorFlow Datasets cifar10/3.0.2, in the official order"
        np.testing.assert_array_equal(read.inputs, train.inputs)
        np.testing.assert_array_equal(read.labels, train.labels)
    else:
        assert "in TFDS's own order" in source
        assert not np.array_equal(read.inputs, train.inputs)

        def as_set(split):
            pairs = zip(split.inputs, split.labels, strict=True)
            return {image.tobytes() + bytes([label]) for image, label in pairs}

        assert as_set(read) == as_set(train)


def test_a_set_prepared_in_a_format_that_needs_tensorflow_is_named(small_cifar10, tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    info = {"name": "cifar10", "version": "3.0.2", "fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match=r"prepared as tfrecord.*expected array_record"):
        data.load("cifar10", data_dir=folder)


def _message_without_network(url, monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _publish_at(url, monkeypatch)
    with pytest.raises(UsageError) as refused:
        data.load("cifar10", data_dir=tmp_path)
    message = str(refused.value)
    assert len(message.splitlines()) == 3
    assert re.search(r"\(1\).*small\.bin.*\(2\).*\[tfds\].*\(3\).*array_record", message)
    return message


def test_a_closed_door_is_told_with_the_three_ways(small_cifar10, monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/small.bin"
        assert "cannot be reached" in _message_without_network(url, monkeypatch, tmp_path)


def test_a_silent_host_is_given_up_after_the_time_limit(small_cifar10, monkeypatch, tmp_path):
    assert tfds_builders._PROBE_TIMEOUT_S < 15
    monkeypatch.setattr(tfds_builders, "_PROBE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(tfds_builders, "_CONNECT_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/small.bin"
        assert "no answer" in _message_without_network(url, monkeypatch, tmp_path)
