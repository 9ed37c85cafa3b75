"""Data sets: the embedded one, the published files in every form, random data, and refusals."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxenergy import data
from jaxenergy.data import cifar, dataset, idx, official
from jaxenergy.data.archives import Archive
from jaxenergy.data.plain_pickle import read_plain_pickle
from jaxenergy.errors import UsageError

# --- the rules that hold for every set ------------------------------------------------------------


def _assert_same(split, inputs, labels):
    np.testing.assert_array_equal(split.inputs, inputs)
    np.testing.assert_array_equal(split.labels, labels)


@given(hnp.arrays(np.int32, st.integers(0, 200), elements=st.integers(0, 5)))
def test_rank_within_class_counts_the_earlier_ones(labels):
    ranks = dataset.rank_within_class(labels)
    assert all(ranks[i] == np.sum(labels[:i] == labels[i]) for i in range(len(labels)))


@given(hnp.arrays(np.int32, st.integers(1, 200), elements=st.integers(0, 3)))
def test_validation_is_a_tenth_of_each_class_and_disjoint(labels):
    index = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    train, validation = dataset.hold_out_validation(dataset.Split(index, labels))
    both = np.concatenate([train.inputs, validation.inputs]).ravel()
    assert sorted(both) == list(range(len(labels)))
    np.testing.assert_array_equal(
        np.bincount(validation.labels, minlength=4), np.bincount(labels, minlength=4) // 10
    )


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5)))
def test_statistics_are_those_of_the_training_part_alone(images):
    def split(inputs):
        return dataset.Split(inputs, np.zeros(len(inputs), np.int32))

    facts = dataset.Facts("any", 1, False, "", "")
    zeros = np.zeros_like(images)
    built = dataset.build_dataset(facts, split(images), split(zeros), split(zeros.copy()), "")
    expected = images.astype(np.float64).std(axis=(0, 1, 2))
    np.testing.assert_allclose(built.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        built.std, np.where(np.ptp(images, (0, 1, 2)) > 0, expected, 1), rtol=1e-9
    )


def test_the_digest_tells_any_change_and_the_arrays_cannot_be_changed():
    def build(pixel, label):
        def split(p, c):
            return dataset.Split(np.full((2, 8, 8, 1), p, np.uint8), np.array([0, c], np.int32))

        facts = dataset.Facts("any", 2, False, "", "")
        return dataset.build_dataset(facts, split(pixel, 0), split(1, 0), split(2, label), "")

    assert build(3, 1).digest == build(3, 1).digest
    assert len({build(3, 1).digest, build(4, 1).digest, build(3, 0).digest}) == 3
    with pytest.raises(ValueError, match="read-only"):
        build(3, 1).train.inputs[0] = 0


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3, np.int32)),
    ],
)
def test_a_split_of_other_types_or_shapes_is_refused(inputs, labels):
    with pytest.raises(ValueError, match="is wanted"):
        dataset.Split(inputs, labels)


def test_importing_and_loading_digits_imports_no_heavy_package():
    code = (
        "import sys, jaxenergy.data; jaxenergy.data.load('digits');"
        "print([m for m in ('jax', 'flax', 'tensorflow_datasets', 'requests') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cifar", "Did you mean 'cifar10'"),
        ("digits:9", "not of the form name=value"),
        ("digits:clases=0-4", "Did you mean 'classes'"),
        ("digits:classes=5-10", "classes of 0 to 9, ranges among them"),
        ("digits:classes=4-0", "got '4-0'"),
        ("digits:classes=0+one", "got 'one'"),
        ("digits:classes=7", "two classes or more, each of them once"),
        ("digits:classes=0-4+3", "two classes or more, each of them once"),
        ("digits:tasks=class+parity+class", "have one twice"),
        ("digits:classes=0-4,tasks=parity", "classes and tasks are both given"),
        ("digits:tasks=class+size", "task=size is unknown"),
        ("digits:task=class", "Did you mean 'tasks'"),
        ("joined:digits", "two sets or more"),
        ("joined:digits+", "two sets or more"),
        ("joined:digits+digits", "one twice"),
        ("joined:digits+synthetic:64", "no set of images with one task"),
        ("joined:synthetic:8x8x2,examples=10+digits+nothing", "--dataset=nothing is unknown"),
        ("synthetic:32x32x3x1", "is not understood"),
        ("synthetic:0", "at least 1"),
        ("synthetic:32,classes=257", "at most 256 kinds"),
        ("synthetic:0x8", "at least 1"),
        ("synthetic:8x8,clases=3", "Did you mean 'classes'"),
        ("synthetic:8x8,classes=1", "from 2 to"),
        ("synthetic:8x8,classes=3,seed=1,classes=4", "classes is given twice"),
        ("synthetic:8x8,classes=many", "from 2 to"),
        ("synthetic:8x8,classes=3,9x9", "is not understood"),
        ("synthetic:1234567x8", "is not understood"),
        ("synthetic:99999x99999x9,examples=1000000000", r"take \d+ bytes; this machine has \d+"),
    ],
)
def test_a_wrong_name_is_told_in_few_lines(name, told):
    with pytest.raises(UsageError, match=told) as refused:
        data.load(name)
    assert len(str(refused.value).splitlines()) <= 3


# --- digits and synthetic -------------------------------------------------------------------------


def test_digits_are_the_published_images_split_evenly():
    digits = data.load("digits")
    parts = (digits.train, digits.validation, digits.test)
    assert [part.examples for part in parts] == [1083, 359, 355]
    counts = [np.bincount(part.labels, minlength=10) for part in parts]
    # The counts per digit of optdigits.tes, from its own description file.
    assert list(np.sum(counts, axis=0)) == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert all(np.ptp(count) <= 2 for count in counts[1:])
    assert digits.input_shape == (8, 8, 1)
    assert (digits.classes, digits.padding, digits.flips) == (10, 1, False)
    assert {int(part.inputs.max()) for part in parts} == {16}
    # The first image of the file is a 0 whose top row reads so.
    np.testing.assert_array_equal(digits.train.inputs[0, 0, :, 0], [0, 0, 5, 13, 9, 1, 0, 0])
    assert digits.train.labels[0] == 0
    assert "CC BY" in digits.licence
    assert digits.digest == (
        "sha256:52b300544f8b1ff94ddc8e74ec1f37e65bc6933399eba85c5876f2781e5ca0f0"
    )


def test_no_digit_is_in_two_parts():
    digits = data.load("digits")
    seen = [{image.tobytes() for image in part.inputs} for part in (digits.train, digits.test)]
    assert not seen[0] & seen[1]


def test_synthetic_is_what_was_asked_for_and_the_same_everywhere():
    made = data.load("synthetic:8x6x2,classes=7,examples=70")
    assert made.name == "synthetic:8x6x2,classes=7,examples=70,seed=0"
    assert made.train.inputs.shape == (70, 8, 6, 2)
    assert [made.validation.examples, made.test.examples] == [7, 7]
    assert set(made.train.labels) == set(range(7))
    assert made.digest == data.load("synthetic:8x6x2,examples=70,classes=7").digest
    assert made.digest == (
        "sha256:7dc3ef02b05e1c631b23c4d1fe4ea98eaec8bc138282b60be80df247d848175d"
    )
    assert made.digest != data.load("synthetic:8x6x2,classes=7,examples=70,seed=1").digest
    assert data.load("synthetic:8x6,examples=1").input_shape == (8, 6, 1)


def test_synthetic_pixels_are_uniform():
    counts = np.bincount(data.load("synthetic:32x32,examples=300").train.inputs.ravel())
    expected = 300 * 32 * 32 / 256
    chi_squared = np.sum((counts - expected) ** 2 / expected)
    assert chi_squared < 330.5  # the 99.9 % quantile for 255 degrees of freedom; the seed is fixed


# --- CIFAR ----------------------------------------------------------------------------------------

PER_FILE = 20


@dataclasses.dataclass
class SmallCifar:
    """CIFAR in every published form, with 20 images a file."""

    binary: cifar.Edition
    python: cifar.Edition
    train: dataset.Split
    test: dataset.Split
    files: dict[str, dict[str, bytes]]  # by edition folder, then file name

    def publish(self, folder, edition, monkeypatch):
        """Writes the edition's archive and registers its size and hash as the published ones."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, content in self.files[edition.folder].items():
                member = tarfile.TarInfo(f"{edition.folder}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        archive = Archive(
            edition.archive.name,
            edition.archive.url,
            len(stream.getvalue()),
            hashlib.sha256(stream.getvalue()).hexdigest(),
        )
        editions = tuple(
            dataclasses.replace(one, archive=archive) if one is edition else one
            for one in (self.binary, self.python)
        )
        self.register(monkeypatch, editions)
        path = folder / archive.name
        path.write_bytes(stream.getvalue())
        return path

    def extract(self, folder, edition):
        """Writes the edition's files; returns their folder."""
        inner = folder / edition.folder
        inner.mkdir()
        for name, content in self.files[edition.folder].items():
            (inner / name).write_bytes(content)
        return inner

    def register(self, monkeypatch, editions):
        small = dataclasses.replace(
            official.OFFICIAL[self.name],
            train_counts=tuple(np.bincount(self.train.labels, minlength=self.classes)),
            test_counts=tuple(np.bincount(self.test.labels, minlength=self.classes)),
            find=partial(cifar.find_cifar, editions),
        )
        monkeypatch.setitem(official.OFFICIAL, self.name, small)

    @property
    def classes(self):
        return 10 if self.binary is CIFAR10[0] else 100

    @property
    def name(self):
        return f"cifar{self.classes}"


CIFAR10 = tuple(
    dataclasses.replace(edition, train_examples=PER_FILE, test_examples=PER_FILE)
    for edition in (cifar.CIFAR10_BINARY, cifar.CIFAR10_PYTHON)
)
CIFAR100 = tuple(
    dataclasses.replace(edition, train_examples=PER_FILE, test_examples=PER_FILE)
    for edition in (cifar.CIFAR100_BINARY, cifar.CIFAR100_PYTHON)
)


def _python2_pickle(batch):
    """A pickle of the batch as Python 2 with numpy 1 wrote the published ones (protocol 2)."""

    def string(text):
        if len(text) < 256:
            return b"U" + bytes([len(text)]) + text
        return b"T" + struct.pack("<I", len(text)) + text

    def number(value):
        return b"J" + struct.pack("<i", value)

    def array(planes):
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
            + b"(K\x01(" + number(planes.shape[0]) + number(planes.shape[1]) + b"t"
            + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
            + b"(K\x03U\x01|NNN" + number(-1) + number(-1) + b"K\x00tb"
            + b"\x89" + string(planes.tobytes()) + b"tb"
        )  # fmt: skip

    out = b"\x80\x02}("
    for key, value in batch.items():
        out += string(key.encode())
        if isinstance(value, np.ndarray):
            out += array(value)
        elif isinstance(value, list):
            out += b"](" + b"".join(number(item) for item in value) + b"e"
        else:
            out += string(value)
    return out + b"u."


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, monkeypatch):
    classes = int(request.param.removeprefix("cifar"))
    binary, python = CIFAR10 if classes == 10 else CIFAR100
    random = np.random.default_rng(classes)

    def part(files):
        labels = random.integers(0, classes, files * PER_FILE)
        images = random.integers(0, 256, (files * PER_FILE, 32, 32, 3), np.uint8)
        return dataset.Split(images, labels.astype(np.int32))

    train, test = part(len(binary.train)), part(1)
    small = SmallCifar(binary, python, train, test, {binary.folder: {}, python.folder: {}})
    for names, split in (("train", train), ("test", test)):
        for number, (binary_name, python_name) in enumerate(
            zip(*((edition.train if names == "train" else (edition.test,))
                  for edition in (binary, python)), strict=True)
        ):  # fmt: skip
            block = slice(number * PER_FILE, (number + 1) * PER_FILE)
            planes = split.inputs[block].transpose(0, 3, 1, 2).reshape(PER_FILE, 3072)
            labels = split.labels[block]
            coarse = [labels[:, None] // 5] if classes == 100 else []
            records = np.concatenate([*coarse, labels[:, None], planes], axis=1).astype(np.uint8)
            small.files[binary.folder][binary_name] = records.tobytes()
            small.files[python.folder][python_name] = _python2_pickle(
                {
                    "batch_label": b"a batch",
                    python.label_key: labels.tolist(),
                    "data": planes,
                    "coarse_labels": (labels // 5).tolist(),
                }
            )
    small.register(monkeypatch, (binary, python))
    return small


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("place", ["file", "folder of it", "extracted", "parent of extracted"])
def test_cifar_is_found_and_read_in_every_form(small_cifar, form, place, tmp_path, monkeypatch):
    edition = getattr(small_cifar, form)
    if "extracted" in place:
        inner = small_cifar.extract(tmp_path, edition)
        data_dir = inner if place == "extracted" else tmp_path
    else:
        path = small_cifar.publish(tmp_path, edition, monkeypatch)
        data_dir = path if place == "file" else tmp_path
    loaded = data.load(small_cifar.name, data_dir=data_dir)
    rest, validation = dataset.hold_out_validation(small_cifar.train)
    _assert_same(loaded.train, rest.inputs, rest.labels)
    _assert_same(loaded.validation, validation.inputs, validation.labels)
    _assert_same(loaded.test, small_cifar.test.inputs, small_cifar.test.labels)
    assert ("SHA-256" in loaded.source) == ("extracted" not in place)
    assert str(tmp_path) not in loaded.source


@pytest.mark.parametrize("form", ["binary", "python"])
def test_super_classes_are_read_beside_the_classes(small_cifar, form, tmp_path):
    small = small_cifar
    if small.classes == 10:
        with pytest.raises(UsageError, match="task=superclass is unknown"):
            data.load("cifar10:tasks=superclass", data_dir=small.extract(tmp_path, small.binary))
        return
    folder = small.extract(tmp_path, getattr(small, form))
    classes = data.load("cifar100:examples=40", data_dir=folder)
    both = data.load("cifar100:examples=40,tasks=superclass+class", data_dir=folder)
    alone = data.load("cifar100:examples=40,tasks=superclass", data_dir=folder)
    assert [(task.name, task.classes) for task in both.tasks] == [
        ("superclass", 20),
        ("class", 100),
    ]
    assert (both.classes, alone.classes, alone.tasks) == (120, 20, ())
    for part in ("train", "validation", "test"):
        fine, two, coarse = (getattr(loaded, part) for loaded in (classes, both, alone))
        assert fine.labels.ndim == coarse.labels.ndim == 1
        _assert_same(two, fine.inputs, np.stack([fine.labels // 5, fine.labels], axis=1))
        _assert_same(coarse, fine.inputs, fine.labels // 5)
    assert data.load("cifar100:examples=40,tasks=class", data_dir=folder).digest == classes.digest


def test_a_truncated_or_altered_archive_is_refused(small_cifar, tmp_path, monkeypatch):
    path = small_cifar.publish(tmp_path, small_cifar.binary, monkeypatch)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    told = f"expected {len(content)} bytes, found {len(content) - 10}"
    with pytest.raises(UsageError, match=told):
        data.load(small_cifar.name, data_dir=tmp_path)
    altered = content[:50] + bytes([content[50] ^ 1]) + content[51:]
    path.write_bytes(altered)
    told = f"expected SHA-256 {hashlib.sha256(content).hexdigest()}, found "
    with pytest.raises(UsageError, match=told + hashlib.sha256(altered).hexdigest()):
        data.load(small_cifar.name, data_dir=tmp_path)


def test_truncated_altered_or_missing_extracted_files_are_refused(small_cifar, tmp_path):
    inner = small_cifar.extract(tmp_path, small_cifar.binary)
    path = inner / small_cifar.binary.test
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    told = f"expected {len(content)} bytes, found {len(content) - 1}"
    with pytest.raises(UsageError, match=told):
        data.load(small_cifar.name, data_dir=tmp_path)
    out_of_range = bytearray(content)
    out_of_range[small_cifar.binary.label_bytes - 1] = small_cifar.classes
    path.write_bytes(out_of_range)
    with pytest.raises(UsageError, match=f"from 0 to {small_cifar.classes - 1}, found"):
        data.load(small_cifar.name, data_dir=tmp_path)
    relabelled = bytearray(content)
    label = small_cifar.binary.label_bytes - 1
    relabelled[label] = (relabelled[label] + 1) % small_cifar.classes
    path.write_bytes(relabelled)
    with pytest.raises(UsageError, match=r"expected \d+ test examples of class \d+, found \d+"):
        data.load(small_cifar.name, data_dir=tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match="is missing"):
        data.load(small_cifar.name, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda batch, key: batch.pop("data"), r"expected data \[20, 3072\], found NoneType"),
        (lambda batch, key: batch.update(data=np.zeros((3, 7), np.uint8)), r"found \[3, 7\]"),
        (lambda batch, key: batch.pop(key), "with 20 values, found NoneType"),
        (lambda batch, key: batch[key].pop(), "with 20 values, found 19 values"),
        (lambda batch, key: batch[key].__setitem__(0, 300), "whole numbers from 0 to 255"),
    ],
    ids=["no data", "other shape", "no labels", "too few labels", "label out of range"],
)
def test_pickles_of_another_structure_are_refused(small_cifar, tmp_path, change, told):
    inner = small_cifar.extract(tmp_path, small_cifar.python)
    path = inner / small_cifar.python.test
    batch = read_plain_pickle(path.read_bytes(), "test")
    change(batch, small_cifar.python.label_key)
    path.write_bytes(_python2_pickle(batch))
    with pytest.raises(UsageError, match=told):
        data.load(small_cifar.name, data_dir=tmp_path)


def test_an_archive_without_its_members_is_refused():
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w:gz").close()
    with pytest.raises(UsageError, match=r"lacks data_batch_1\.bin"):
        cifar.read_cifar_archive(empty.getvalue(), CIFAR10[0])
    with pytest.raises(UsageError, match="not a whole archive"):
        cifar.read_cifar_archive(b"not a tar file", CIFAR10[0])


def test_members_that_are_links_are_not_followed(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in (*CIFAR10[0].train, CIFAR10[0].test):
            member = tarfile.TarInfo(f"{CIFAR10[0].folder}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(UsageError, match="lacks"):
        cifar.read_cifar_archive(stream.getvalue(), CIFAR10[0])


@pytest.mark.parametrize("prefix", ["../", "/", "./../../", "x/../../"])
def test_no_member_is_ever_written_to_where_it_says(small_cifar, prefix, tmp_path, monkeypatch):
    """An archive is read in memory: members that would leave its folder are not looked at."""
    for folder in ("out", "data"):
        (tmp_path / folder).mkdir()
    edition = small_cifar.binary
    outside = {f"{prefix}{tmp_path}/out/evil": b"evil", f"{prefix}out/evil": b"evil"}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        own = {f"{edition.folder}/{k}": v for k, v in small_cifar.files[edition.folder].items()}
        for name, content in {**outside, **own}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo(f"{edition.folder}/{edition.test}")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    monkeypatch.chdir(tmp_path / "data")
    train, test = cifar.read_cifar_archive(stream.getvalue(), edition)
    assert len(train.labels) == len(edition.train) * edition.train_examples
    assert len(test.labels) == edition.test_examples
    assert [path for path in tmp_path.rglob("*") if path.name == "evil"] == []
    assert list((tmp_path / "data").iterdir()) == []


def test_a_member_that_says_it_is_huge_is_refused_before_it_is_read():
    """A few bytes of an archive can stand for gigabytes."""
    edition = CIFAR10[0]
    header = tarfile.TarInfo(f"{edition.folder}/{edition.test}")
    header.size = 1 << 40
    content = gzip.compress(header.tobuf() + bytes(1024))
    with pytest.raises(UsageError, match=r"test_batch\.bin is altered: expected at most \d+ bytes"):
        cifar.read_cifar_archive(content, edition)


def test_a_file_that_is_huge_is_refused_before_it_is_read(small_cifar, tmp_path):
    for edition, name in ((small_cifar.binary, "train"), (small_cifar.python, "test")):
        (tmp_path / name).mkdir()
        inner = small_cifar.extract(tmp_path / name, edition)
        path = inner / (edition.train[0] if name == "train" else edition.test)
        os.truncate(path, 1 << 40)  # holes take no space on the disk, and all the memory when read
        with pytest.raises(UsageError, match="altered"):
            data.load(small_cifar.name, data_dir=tmp_path / name)


@pytest.mark.skipif(
    not os.environ.get("JAXENERGY_CIFAR10"),
    reason="JAXENERGY_CIFAR10 names no folder with the real CIFAR-10",
)
def test_the_real_cifar10_loads():
    loaded = data.load("cifar10", data_dir=os.environ["JAXENERGY_CIFAR10"])
    assert loaded.train.inputs.shape == (45_000, 32, 32, 3)
    assert loaded.test.inputs.shape == (10_000, 32, 32, 3)
    assert list(np.bincount(loaded.validation.labels)) == [500] * 10
    # The statistics everyone quotes for the 50,000 training images, within what 10 % can move.
    np.testing.assert_allclose(loaded.mean, np.array([0.4914, 0.4822, 0.4465]) * 255, atol=0.3)
    np.testing.assert_allclose(loaded.std, np.array([0.2470, 0.2435, 0.2616]) * 255, atol=0.3)


# --- hostile pickles ------------------------------------------------------------------------------


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function",
    [os.system, eval, getattr, subprocess.Popen, np.load, np.frombuffer, bytearray, pickle.loads],
)
def test_a_pickle_that_names_any_function_is_refused(function, protocol):
    hostile = pickle.dumps({"data": _Calls(function, "touch hacked")}, protocol)
    with pytest.raises(UsageError, match="cannot be read as a pickle of plain arrays: it names"):
        read_plain_pickle(hostile, "it")


@pytest.mark.parametrize(
    "hostile",
    [
        b"cnumpy\nndarray\n}U\x01xK\x01sb.",  # sets the state of a class it was given
        b"c_codecs\nencode\n}U\x01xK\x01sb.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00utf-7tR.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"P1\n.",  # a persistent id
        b"",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",  # a frame longer than any memory
        b"B\xff\xff\xff\x7fabc",  # bytes longer than the file
        b"\x80\x02Nr\xff\xff\xff\xff.",  # the last place of a table of four thousand million
        pickle.dumps([1, 2]),
        pickle.dumps(None),
    ],
)
def test_broken_or_hostile_bytes_are_refused_and_nothing_else(hostile):
    with pytest.raises(UsageError):
        read_plain_pickle(hostile, "it")


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(content):
    with contextlib.suppress(UsageError):
        assert isinstance(read_plain_pickle(b"\x80\x02" + content, "it"), dict)


@pytest.mark.parametrize(
    "state",
    [
        (1, (2**62, 4), False, b"abcd"),
        (1, (-1, 4), False, b"abcd"),
        (1, (1.5,), False, b"abcd"),
        (1, (5,), False, b"abcd"),
        (1, (4,), False, [1, 2, 3, 4]),
        (1, 4, False, b"abcd"),
        None,
    ],
)
def test_arrays_whose_state_lies_are_refused(state):
    reconstruct = np.zeros(1).__reduce__()[0]

    class Liar:
        def __reduce__(self):
            if state is None:
                return reconstruct, (np.ndarray, (0,), b"b")
            version, shape, fortran, content = state
            full = (version, shape, np.dtype("u1"), fortran, content)
            return reconstruct, (np.ndarray, (0,), b"b"), full

    with pytest.raises(UsageError, match="array"):
        read_plain_pickle(pickle.dumps({"data": Liar()}, 2), "it")


@pytest.mark.parametrize("dtype", [object, np.float64, np.int64, "U3"])
def test_arrays_of_other_types_are_refused(dtype):
    with pytest.raises(UsageError, match="not plain uint8"):
        read_plain_pickle(pickle.dumps({"data": np.zeros(3, dtype)}, 2), "it")


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=6)),
    st.sampled_from("CF"),
    st.integers(2, 4),
)
def test_arrays_pickled_by_python_3_are_read(array, order, protocol):
    array = np.asarray(array, order=order)
    told = {"data": array, "labels": [1, 2], "text": "x", "raw": b"y", "nested": {"a": (1.5, None)}}
    read = read_plain_pickle(pickle.dumps(told, protocol), "it")
    np.testing.assert_array_equal(read.pop("data"), array)
    assert read == {key: value for key, value in told.items() if key != "data"}


# --- idx ------------------------------------------------------------------------------------------


@pytest.fixture(params=["mnist", "fashion_mnist"])
def small_idx(request, monkeypatch):
    """A set of 40 + 20 images in four idx files, registered as the published ones."""
    random = np.random.default_rng(1)
    real = {"mnist": idx.MNIST, "fashion_mnist": idx.FASHION_MNIST}[request.param]
    arrays, contents, files = [], {}, []
    for count, file in zip((40, 40, 20, 20), real.files, strict=True):
        shape = (count, *file.shape[1:])
        array = random.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape)
        contents[file.name] = header + array.tobytes()
        packed = contents[file.archive.name] = gzip.compress(contents[file.name])
        archive = dataclasses.replace(
            file.archive, size_bytes=len(packed), sha256=hashlib.sha256(packed).hexdigest()
        )
        files.append(idx.IdxFile(archive, shape))
        arrays.append(array)
    small_set = dataclasses.replace(real, files=tuple(files))
    small = dataclasses.replace(
        official.OFFICIAL[request.param],
        train_counts=tuple(np.bincount(arrays[1], minlength=10)),
        test_counts=tuple(np.bincount(arrays[3], minlength=10)),
        find=partial(idx.find_idx, small_set),
    )
    monkeypatch.setitem(official.OFFICIAL, request.param, small)
    return request.param, small_set, arrays, contents


@pytest.mark.parametrize("packed", [4, 0, 2], ids=["gzipped", "not gzipped", "mixed"])
@pytest.mark.parametrize("place", ["file", "folder", "below"])
def test_idx_is_found_and_read_in_every_form(small_idx, packed, place, tmp_path):
    name, small_set, arrays, contents = small_idx
    folder = tmp_path / small_set.folders[0]
    folder.mkdir()
    for number, file in enumerate(small_set.files):
        wanted = file.archive.name if number < packed else file.name
        (folder / wanted).write_bytes(contents[wanted])
    data_dir = {"file": next(folder.iterdir()), "folder": folder, "below": tmp_path}[place]
    loaded = data.load(name, data_dir=data_dir)
    _assert_same(loaded.test, arrays[2][..., None], arrays[3])
    images = np.concatenate([loaded.train.inputs, loaded.validation.inputs])
    assert sorted(image.tobytes() for image in images) == sorted(map(bytes, arrays[0]))
    assert f"{packed} of 4 held to their published SHA-256" in loaded.source
    assert loaded.flips == (name == "fashion_mnist")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content[:-1], "expected 31376 bytes, found 31375"),
        (lambda content: content + b"\0", "expected 31376 bytes, found 31377"),
        (lambda content: b"\0\0\x0d" + content[3:], "expected the header 00000803"),
        (lambda content: content[:7] + b"\x29" + content[8:], "expected the header 00000803"),
        (lambda content: b"", "found nothing"),
    ],
    ids=["truncated", "longer", "floats", "other count", "empty"],
)
def test_altered_idx_files_are_refused(small_idx, change, told, tmp_path):
    name, small_set, _, contents = small_idx
    for file in small_set.files:
        (tmp_path / file.name).write_bytes(contents[file.name])
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=told):
        data.load(name, data_dir=tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz is missing"):
        data.load(name, data_dir=tmp_path)


def test_other_labels_than_the_published_ones_are_refused(small_idx, tmp_path):
    name, small_set, _, contents = small_idx
    labels = bytearray(contents["train-labels-idx1-ubyte"])
    labels[8] = (labels[8] + 1) % 10
    for file in small_set.files:
        (tmp_path / file.name).write_bytes(contents[file.name])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(UsageError, match="altered or of another set"):
        data.load(name, data_dir=tmp_path)


def test_a_broken_gzip_is_refused():
    file = idx.MNIST.files[0]
    with pytest.raises(UsageError, match="not a whole gzip file"):
        idx.parse_idx_gz(gzip.compress(b"abc")[:-5], file)


# --- what is not there ----------------------------------------------------------------------------


def test_without_files_and_without_tfds_the_three_ways_are_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "jaxenergy.data.tfds_builders", raising=False)
    monkeypatch.delattr(data, "tfds_builders", raising=False)
    for name in official.OFFICIAL:
        with pytest.raises(UsageError) as refused:
            data.load(name, data_dir=tmp_path)
        message = str(refused.value)
        assert len(message.splitlines()) == 3
        assert "TensorFlow Datasets is not installed" in message
        assert all(f"({way})" in message for way in (1, 2, 3))
        assert all(archive.name in message for archive in official.OFFICIAL[name].archives)


def test_a_data_dir_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        data.load("cifar10", data_dir=tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"expected e\.g\. cifar-10-binary\.tar\.gz"):
        data.load("cifar10", data_dir=tmp_path / "notes.txt")


def test_every_registered_archive_has_its_own_hash():
    archives = [archive for one in official.OFFICIAL.values() for archive in one.archives]
    archives += [cifar.CIFAR10_PYTHON.archive, cifar.CIFAR100_PYTHON.archive]
    assert len({archive.sha256 for archive in archives}) == len(archives) == 12
    assert all(len(bytes.fromhex(archive.sha256)) == 32 for archive in archives)
    assert all(archive.url.endswith("/" + archive.name) for archive in archives)


def test_the_published_counts_add_up():
    for one in official.OFFICIAL.values():
        total = 50_000 if one.facts.name.startswith("cifar") else 60_000
        assert sum(one.train_counts) == total
        assert sum(one.test_counts) == 10_000
        assert len(one.train_counts) == len(one.test_counts) == one.facts.classes


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 50))
def test_a_part_has_as_many_of_every_class_and_keeps_the_order(classes, examples):
    labels = np.array(classes, np.int32)
    inputs = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    part = dataset.take_evenly(dataset.Split(inputs, labels), examples)
    assert part.examples == min(examples, len(labels))
    assert np.all(np.diff(part.inputs[:, 0, 0, 0].astype(int)) > 0)
    counts = np.bincount(part.labels, minlength=4)
    for one in range(4):
        for other in range(4):
            fewer_left = counts[one] == np.sum(labels == one)
            assert fewer_left or counts[other] <= counts[one] + 1


@pytest.mark.parametrize(
    ("option", "classes"),
    [("0-4", range(5)), ("5-9", range(5, 10)), ("7+0-2", (7, 0, 1, 2)), ("3+8", (3, 8))],
)
def test_a_part_of_some_classes_has_their_examples_under_new_labels(option, classes):
    whole, part = data.load("digits"), data.load(f"digits:classes={option}")
    assert part.classes == len(classes)
    assert part.facts.vocabulary == tuple(map(str, classes))
    for name in ("train", "validation", "test"):
        old, new = getattr(whole, name), getattr(part, name)
        assert new.examples == np.isin(old.labels, list(classes)).sum()
        for place, called in enumerate(classes):
            assert np.array_equal(new.inputs[new.labels == place], old.inputs[old.labels == called])
    assert part.mean == (pytest.approx(part.train.inputs.mean()),)
    assert f"classes {', '.join(map(str, classes))}, now called 0 to" in part.source


def test_some_examples_of_some_classes_of_a_published_set(small_cifar, tmp_path):
    small_cifar.extract(tmp_path, small_cifar.binary)
    upper = range(small_cifar.classes // 2, small_cifar.classes)
    name = f"{small_cifar.name}:examples=3,classes={upper[0]}-{upper[-1]}"
    part = data.load(name, data_dir=tmp_path)
    assert part.classes == len(upper)
    assert part.train.examples == 3
    whole = data.load(small_cifar.name, data_dir=tmp_path).train
    for image, label in zip(part.train.inputs, part.train.labels, strict=True):
        same = np.all(whole.inputs == image, axis=(1, 2, 3))
        assert upper[label] in whole.labels[same]


def test_a_part_of_a_published_set_is_asked_for_by_one_option(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'examples'"):
        data.load("cifar10:exmples=5", data_dir=tmp_path)
    with pytest.raises(UsageError, match="a whole number at least 1"):
        data.load("cifar10:examples=0", data_dir=tmp_path)
