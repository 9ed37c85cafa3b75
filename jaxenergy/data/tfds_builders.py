"""The published sets through TensorFlow Datasets, without TensorFlow.

TensorFlow Datasets (TFDS) downloads with registered checksums and keeps prepared sets where many
projects share them. Its own builders of these sets need TensorFlow to prepare them; the one here
needs none: it reads the archives in memory with this package's readers and stores plain tensors as
array_record, in the official order. Sets that TFDS's own builders have prepared as array_record
elsewhere are read too.

This is the only module that imports `tensorflow_datasets`; `load` imports it when a set was not
found as files.
"""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# isort: split
import requests  # comes with TFDS, so that its absence is not what is reported where both lack

from jaxenergy.data.archives import read_bounded
from jaxenergy.data.dataset import Split
from jaxenergy.data.official import OFFICIAL, Official
from jaxenergy.errors import UsageError

_FORMAT = "array_record"
_LABEL, _SUPERCLASS = "label", "coarse_label"  # as TFDS's own builder of CIFAR-100 names them
_CONNECT_TIMEOUT_S = 4.0
_MAX_INFO_BYTES = 1 << 20
# Under which features.json names the Python classes of its features, in old and in new form.
_CLASS_KEYS = frozenset({"type", "pythonClassName", "python_class_name"})
_PROBE_TIMEOUT_S = 10.0  # bounds name resolution too, which has no timeout of its own


class NotAvailable(Exception):
    """A set is neither prepared nor to be downloaded; the message says why."""


class JaxenergyImages(tfds.core.GeneratorBasedBuilder):
    """Prepares any of the published sets; its config names which."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in OFFICIAL]  # noqa: RUF012

    @property
    def url_infos(self) -> dict[str, tfds.download.checksums.UrlInfo]:
        """The registered checksums: those that local archives are held to as well."""
        return {
            archive.url: tfds.download.checksums.UrlInfo(
                archive.size_bytes, archive.sha256, archive.name
            )
            for archive in self._official.archives
        }

    @property
    def _official(self):
        return OFFICIAL[self.builder_config.name]

    def _info(self) -> tfds.core.DatasetInfo:
        # `bytes` stores an image as it is; the default stores 3,072 integers, ten times slower.
        image = tfds.features.Tensor(
            shape=self._official.shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        labels = {_LABEL: tfds.features.Tensor(shape=(), dtype=np.int32)}
        if self._official.label_columns > 1:
            labels[_SUPERCLASS] = tfds.features.Tensor(shape=(), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, **labels}),
            citation=self._official.facts.citation,
            disable_shuffling=True,  # the validation part is defined on the official order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        paths = dl_manager.download([archive.url for archive in self._official.archives])
        train, test = self._official.parse([Path(path).read_bytes() for path in paths])
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        columns = split.labels.reshape(split.examples, -1)
        names = (_LABEL, _SUPERCLASS)[: columns.shape[1]]
        for index, (image, labels) in enumerate(zip(split.inputs, columns, strict=True)):
            yield index, {"image": image, **dict(zip(names, labels, strict=True))}


def load_with_tfds(
    name: str,
    data_dir: Path | None,
    download_config: tfds.download.DownloadConfig | None = None,
) -> tuple[Split, Split, str]:
    """Reads a set that is prepared, or downloads and prepares it first.

    Args:
        name: a name of `OFFICIAL`.
        data_dir: TFDS's data folder, or the folder of one prepared version; TFDS's own default
            (`TFDS_DATA_DIR`, `~/tensorflow_datasets`) where it is None.
        download_config: how to download; with a `manual_dir` no network is needed.

    Returns:
        The training part, the test part and a sentence on the source.

    Raises:
        NotAvailable: it is not prepared and the download host cannot be reached, or sends another
            file than the published one.
    """
    root = Path(tfds.core.constants.DATA_DIR if data_dir is None else data_dir)
    folder = _find_prepared(name, root)
    if folder is None:
        if download_config is None:
            _require_connection(OFFICIAL[name].archives[0].url)
        builder = JaxenergyImages(config=name, data_dir=str(root), file_format=_FORMAT)
        config = download_config or tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            builder.download_and_prepare(
                download_config=config.replace(force_checksums_validation=True)
            )
        except tfds.download.download_manager.NonMatchingChecksumError as error:
            raise NotAvailable(" ".join(str(error).split())) from error
        except (requests.RequestException, tfds.download.DownloadError) as error:
            raise NotAvailable(f"{type(error).__name__}: {error}") from error
        folder = Path(builder.data_dir)
    return _read_prepared(folder, OFFICIAL[name])


def _find_prepared(name: str, root: Path) -> Path | None:
    """The folder of the newest prepared version of a set that can be read without TensorFlow.

    Args:
        name: a name of `OFFICIAL`.
        root: TFDS's data folder, the folder of the set, or that of one version.

    Returns:
        The folder, one of this module's builder before one of TFDS's own; None if there is none.

    Raises:
        NotAvailable: `root` itself is a prepared version, but in another file format.
    """
    usable = []
    for pattern in ("", "*/", f"{name}/*/", f"{JaxenergyImages.name}/{name}/*/"):
        for file in root.glob(f"{pattern}dataset_info.json"):
            folder, info = file.parent, _read_info(file)
            ours = (info.get("name"), info.get("configName")) == (JaxenergyImages.name, name)
            if not (ours or info.get("name") == name) or folder.name.startswith("incomplete"):
                continue
            if info.get("fileFormat") == _FORMAT:
                usable.append((ours, _version_of(info), folder))
            elif folder == root:
                raise NotAvailable(
                    f"it is prepared as {info.get('fileFormat', 'tfrecord')}, which TensorFlow "
                    f"alone reads; expected {_FORMAT}"
                )
    return max(usable)[-1] if usable else None


def _read_info(file: Path) -> dict[str, Any]:
    try:
        info = json.loads(read_bounded(file, _MAX_INFO_BYTES))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is no JSON: {error}.\nPrepare the data set again, or remove the folder."
        ) from error
    return info if isinstance(info, dict) else {}


def _refuse_foreign_classes(folder: Path) -> None:
    """Refuses a prepared set that names a class of any package but TFDS: TFDS would import it."""
    file = folder / "features.json"
    pending: list[Any] = [_read_info(file)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for key in _CLASS_KEYS & value.keys():
                name = value[key]
                if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
                    raise UsageError(
                        f"{file} names the class {name[:100]!r}, which is not loaded because a "
                        "folder names it.\nAllowed: classes of tensorflow_datasets."
                    )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _version_of(info: dict[str, Any]) -> tuple[int, ...]:
    """`3.0.2` or `3.0.2-rc1` as numbers, to compare by."""
    return tuple(int(number) for number in re.findall(r"\d+", str(info.get("version", ""))))


def _read_prepared(folder: Path, official: Official) -> tuple[Split, Split, str]:
    """Reads both parts of a prepared set into memory, in the official order where it is known."""
    _refuse_foreign_classes(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        train, test = (_read_part(builder, part, official) for part in ("train", "test"))
    except ImportError as error:  # TFDS's own builders store PNG
        raise NotAvailable(f"reading {folder} failed: {' '.join(str(error).split())}") from error
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise UsageError(
            f"{folder} is truncated or altered: expected a set prepared as {_FORMAT}, found "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if builder.info.full_name.startswith(JaxenergyImages.name) or "id" in builder.info.features:
        order = "in the official order"
    else:
        order = "in TFDS's own order, so that its validation part is another than the files'"
    return train, test, f"TensorFlow Datasets {builder.info.full_name}, {order}"


def _read_part(builder: tfds.core.DatasetBuilder, part: str, official: Official) -> Split:
    """One part of a prepared set.

    TFDS shuffles what its own builders prepare; where they kept the index in `id` (CIFAR), sorting
    by it restores the official order.
    """
    source = builder.as_data_source(split=part)
    shape, most = builder.info.features["image"].shape, sum(official.train_counts)
    if shape != official.shape or len(source) > most:  # before memory is taken for what is said
        raise ValueError(f"{part}: {len(source)} images of {shape}, not {most} of {official.shape}")
    images = np.empty((len(source), *shape), np.uint8)
    # What an earlier version of this module has prepared has no super-classes.
    names = [_LABEL, *(name for name in (_SUPERCLASS,) if name in builder.info.features)]
    labels = np.empty((len(source), len(names)), np.int32)
    ids = []
    for start in range(0, len(source), 1000):  # reading one by one takes twice the time
        indices = range(start, min(start + 1000, len(source)))
        for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
            images[index], labels[index] = example["image"], [example[name] for name in names]
            if "id" in example:
                ids.append(example["id"])
    if ids:
        order = np.argsort(np.array(ids))
        images, labels = images[order], labels[order]
    return Split(images, labels if len(names) > 1 else labels[:, 0].copy())


def _require_connection(url: str) -> None:
    """Raises NotAvailable, soon, where TFDS's download would fail after minutes of retrying.

    The request goes through the same library, proxies and certificates as TFDS's own.
    """
    failure: list[str] = [f"no answer from {url} within {_PROBE_TIMEOUT_S:.0f} s"]

    def probe() -> None:
        try:
            with requests.get(url, stream=True, timeout=_CONNECT_TIMEOUT_S) as response:
                response.raise_for_status()
            failure.clear()
        except requests.RequestException as error:
            failure[0] = f"{url} cannot be reached ({type(error).__name__})"

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_TIMEOUT_S)
    if failure:
        raise NotAvailable(failure[0])
