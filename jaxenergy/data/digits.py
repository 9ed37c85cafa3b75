"""The embedded data set: 1,797 images of handwritten digits, so the main job runs anywhere.

The file beside this module holds the test part of the UCI "Optical Recognition of Handwritten
Digits" set as published, in its order: 8x8 images whose pixels count, 0 to 16, the dark pixels of a
4x4 block of the scanned bitmap. Pixels are kept in those units. Its origin and licence stand in
`DIGITS.md`.
"""

from importlib import resources
from pathlib import Path

import numpy as np

from jaxenergy.data.dataset import (
    Dataset,
    Facts,
    Split,
    build_dataset,
    rank_within_class,
    take,
)

FACTS = Facts(
    name="digits",
    classes=10,
    flips=False,
    citation=(
        "E. Alpaydin and C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine "
        "Learning Repository. https://doi.org/10.24432/C50P49"
    ),
    licence="CC BY 4.0",
)


def load_digits(data_dir: Path | None = None) -> Dataset:
    """Loads the embedded digits.

    Of every five images of a class, in file order, the third is for validation and the fifth for
    test, so each held-out image has training images from before and after it. The 13 writers
    occur in all three parts: test accuracy is about new images, not about new writers.

    Args:
        data_dir: not used, the data are in the package; it may be given for a set of runs on
            several data sets.

    Returns:
        The data set: 1,083 images to train on, 359 for validation, 355 for test.
    """
    del data_dir
    file = resources.files("jaxenergy.data").joinpath("digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        every = Split(arrays["images"][..., None], arrays["labels"].astype(np.int32))
    rank = rank_within_class(every.labels) % 5
    return build_dataset(
        FACTS,
        train=take(every, (rank != 2) & (rank != 4)),
        validation=take(every, rank == 2),
        test=take(every, rank == 4),
        source="embedded in the package: the 1,797 images of optdigits.tes (UCI)",
    )
