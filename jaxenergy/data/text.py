"""Text as sequences of characters, each of which is to predict the next.

`stdlib` is the source of the Python that runs, so that there is always a text, without a download;
it differs from one Python to the next, and its version and hash are recorded. `text` is a file of
the user's own. Characters are the tokens: no tokenizer, whose version would enter the result, and
losses of different texts compare in bits per character.
"""

import hashlib
import itertools
import platform
import sysconfig
from pathlib import Path

import numpy as np

from jaxenergy.arguments import COUNT, Argument, read_arguments, split_arguments
from jaxenergy.data.dataset import Dataset, Facts, Split, build_dataset
from jaxenergy.errors import UsageError

OPTIONS = {"length": Argument(int, 128, COUNT), "characters": Argument(int, 2_000_000, COUNT)}
_MAX_KINDS = 256  # a token is a byte
_OTHER = "\N{REPLACEMENT CHARACTER}"  # stands for all kinds beyond the most frequent ones
_HELD_OUT = 20  # one part in so many for validation, and one for test


def load_stdlib(options: str, data_dir: Path | None = None) -> Dataset:
    """The modules of the running Python's standard library, as characters.

    The modules at the library's top level (no packages), in the order of their names' hashes, so
    that the held-out end of the text is made of modules from all over the alphabet.

    Args:
        options: `length` of a sequence and how many `characters` are used at most, as
            `length=128,characters=2000000`.
        data_dir: not used.

    Returns:
        The data set.

    Raises:
        UsageError: an unknown option, or the library's source is not installed.
    """
    del data_dir
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        folder.glob("*.py"), key=lambda file: hashlib.sha256(file.name.encode()).digest()
    )
    if not files:
        raise UsageError(
            f"--dataset=stdlib: there are no source files in {folder}.\n"
            "Give a text of your own: --dataset=text --data_dir=FILE."
        )
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    source = (
        f"{len(files)} modules of the standard library of Python {platform.python_version()}, "
        f"sha256 of their text {hashlib.sha256(text.encode()).hexdigest()}"
    )
    citation = "Python Software Foundation, https://www.python.org"
    return _build("stdlib", options, text, source, citation, "PSF-2.0")


def load_text(options: str, data_dir: Path | None = None) -> Dataset:
    """A file of UTF-8 text, as characters.

    Args:
        options: as for `load_stdlib`.
        data_dir: the file.

    Returns:
        The data set.

    Raises:
        UsageError: an unknown option, no file, or one that is no text or too short.
    """
    if data_dir is None or not data_dir.is_file():
        given = "no --data_dir is given" if data_dir is None else f"{data_dir} is no file"
        raise UsageError(
            f"--dataset=text: {given}.\nAllowed: --data_dir=FILE, a text in UTF-8; "
            "--dataset=stdlib needs none."
        )
    content = data_dir.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--dataset=text --data_dir={data_dir}: byte {error.start} is not UTF-8.\n"
            "Allowed: a text in UTF-8."
        ) from None
    source = f"the file {data_dir.name}, sha256 {hashlib.sha256(content).hexdigest()}"
    return _build("text", options, text, source, "the user's own", "the user's own")


def _build(name: str, options: str, text: str, source: str, citation: str, licence: str) -> Dataset:
    """The data set of a text: its beginning to train on, its end held out.

    A sequence begins where the one before it ends, and its last label is the next one's first
    token. Nine tenths are for training; what follows is for validation, the very end for test.
    """
    what = f"--dataset={name}:{options}" if options else f"--dataset={name}"
    values = read_arguments(split_arguments(options, what), OPTIONS, what)
    length, most = int(str(values["length"])), int(str(values["characters"]))
    tokens, vocabulary = encode(text[:most])
    sequences = (len(tokens) - 1) // length
    held_out = sequences // _HELD_OUT
    if not held_out:
        raise UsageError(
            f"{what}: {len(tokens):,} characters make {max(sequences, 0)} sequences of {length}.\n"
            f"Allowed: a text of at least {_HELD_OUT * length + 1:,} characters, "
            "or a smaller length."
        )
    inputs = tokens[: sequences * length].reshape(sequences, length)
    labels = tokens[1 : sequences * length + 1].reshape(sequences, length).astype(np.int32)
    ends = (0, sequences - 2 * held_out, sequences - held_out, sequences)
    train, validation, test = (
        Split(inputs[start:end].copy(), labels[start:end])
        for start, end in itertools.pairwise(ends)
    )
    facts = Facts(
        name=f"{name}:length={length},characters={most}",
        classes=len(vocabulary),
        flips=False,
        citation=citation,
        licence=licence,
        vocabulary=vocabulary,
    )
    return build_dataset(facts, train, validation, test, source)


def encode(text: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the characters of a text.

    Args:
        text: the text.

    Returns:
        Tokens, uint8 `[characters]`, and what each number stands for: the text's characters in the
        order of Unicode, of which at most 255 where there are more kinds than 256; the rarer ones
        are all U+FFFD then, the last number.
    """
    points = np.frombuffer(text.encode("utf-32-le", errors="replace"), "<u4")
    kinds, numbers, counts = np.unique(points, return_inverse=True, return_counts=True)
    if len(kinds) <= _MAX_KINDS:
        return numbers.astype(np.uint8), tuple(map(chr, kinds))
    frequent = np.sort(np.argsort(-counts, kind="stable")[: _MAX_KINDS - 1])
    number_of = np.full(len(kinds), _MAX_KINDS - 1)
    number_of[frequent] = np.arange(_MAX_KINDS - 1)
    vocabulary = (*map(chr, kinds[frequent]), _OTHER)
    return number_of[numbers].astype(np.uint8), vocabulary
