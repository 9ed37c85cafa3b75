"""Seeded random data of any stated shape and class count, for pure energy work.

Pixels are uniform over 0..255 and never constant: the power of a matrix product depends on the
values it multiplies, so a benchmark on zeros measures too little. Labels are uniform too, so
there is nothing to learn but the training examples themselves. One number for the shape gives
sequences of that many random tokens, each labelled by the one that follows.

References:
    S. Bhalachandra, B. Austin, S. Williams and N. J. Wright (2022). Understanding the Impact of
    Input Entropy on FPU, CPU, and GPU Power. arXiv:2212.08805: up to 67 % between input values of
    the same matrix product on an A100.
"""

import math
import os
import re
from pathlib import Path

import numpy as np

from jaxenergy.data.dataset import Dataset, Facts, Split, build_dataset
from jaxenergy.errors import UsageError, unknown_value

DEFAULTS = {"classes": 10, "examples": 50_000, "seed": 0}
DEFAULT_SHAPE = (32, 32, 3)
_FORM = (
    "synthetic:HEIGHTxWIDTHxCHANNELS,classes=10,examples=50000,seed=0, "
    "or synthetic:LENGTH,classes=65,… for tokens"
)
# Of one class there is nothing to learn.
_RANGES = {"classes": (2, 2**31 - 1), "examples": (1, 2**31 - 1), "seed": (0, 2**63 - 1)}
_MAX_TOKENS = 256  # a token is a byte


def load_synthetic(spec: str, data_dir: Path | None = None) -> Dataset:
    """Makes a random data set.

    Args:
        spec: what follows `synthetic:`, e.g. `32x32x3,classes=10,examples=50000,seed=0`; every part
            may be left out. `examples` are those to train on; validation and test have a tenth
            of that number each, at least one.
        data_dir: not used.

    Returns:
        The data set; the same text gives the same bits everywhere.

    Raises:
        UsageError: the text is not of that form, or the examples do not fit in memory.
    """
    del data_dir
    shape, values = _parse(spec)
    classes, examples, seed = values["classes"], values["examples"], values["seed"]
    held_out = max(1, examples // 10)
    is_tokens = len(shape) == 1
    if is_tokens and classes > _MAX_TOKENS:
        raise UsageError(
            f"--dataset=synthetic:{spec}: classes={classes}; of tokens there are at most "
            f"{_MAX_TOKENS} kinds."
        )
    # Tokens are stored as bytes, and once more, shifted by one, as int32 labels.
    needed_bytes = (examples + 2 * held_out) * math.prod(shape) * (5 if is_tokens else 1)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > memory_bytes:
        raise UsageError(
            f"--dataset=synthetic:{spec}: the examples take {needed_bytes} bytes; this machine has "
            f"{memory_bytes} bytes of memory."
        )
    # The raw stream of a bit generator is fixed for ever; the distributions on top of it are not.
    stream = np.random.PCG64(seed)

    def draw(count: int) -> Split:
        if is_tokens:
            rows = stream.random_raw(count * (shape[0] + 1)).reshape(count, -1) % np.uint64(classes)
            return Split(rows[:, :-1].astype(np.uint8), rows[:, 1:].astype(np.int32))
        inputs = _bytes(stream, count * math.prod(shape)).reshape(count, *shape)
        labels = stream.random_raw(count) % np.uint64(classes)
        return Split(inputs, labels.astype(np.int32))

    text = "x".join(map(str, shape)) + "".join(f",{key}={value}" for key, value in values.items())
    facts = Facts(
        name=f"synthetic:{text}",
        classes=classes,
        flips=not is_tokens,
        citation="none: generated",
        licence="none: generated",
    )
    return build_dataset(
        facts,
        train=draw(examples),
        validation=draw(held_out),
        test=draw(held_out),
        source=f"uniform random bytes from numpy's PCG64, seed {seed}",
    )


def _parse(spec: str) -> tuple[tuple[int, ...], dict[str, int]]:
    """The shape and the values of `DEFAULTS` that a text states."""
    shape: tuple[int, ...]
    shape, given = DEFAULT_SHAPE, {}
    for position, part in enumerate(spec.split(",") if spec else []):
        what = f"--dataset=synthetic:{spec}: {part!r}"
        key, equals, text = part.partition("=")
        if not equals:
            if position or not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6}){0,2}", part):
                raise UsageError(f"{what} is not understood. The form is {_FORM}.")
            shape = tuple(map(int, part.split("x")))
            if len(shape) == 2:
                shape = (*shape, 1)
            if min(shape) < 1:
                raise UsageError(f"{what}: each size is at least 1.")
            continue
        if key not in DEFAULTS:
            raise unknown_value(f"--dataset=synthetic:{spec}: option", key, DEFAULTS)
        if key in given:
            raise UsageError(f"{what}: {key} is given twice.")
        low, high = _RANGES[key]
        if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise UsageError(f"{what}: {key} is a whole number from {low} to {high}.")
        given[key] = int(text)
    return shape, {**DEFAULTS, **given}


def _bytes(stream: np.random.PCG64, count: int) -> np.ndarray:
    """Uniform random bytes, uint8 `[count]`, the same on machines of either byte order."""
    words = stream.random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count]
