"""Reads the pickles in which CIFAR is published without letting them run anything.

A pickle is a program: it names functions and calls them. The ones read here may name four things,
the ones an array or a byte string is made of, and each name leads to a stand-in that does nothing
but remember its arguments; numpy's own reconstruction functions, which trust their input, are never
reached. What remains can build arrays, lists, dicts, numbers and strings only.
"""

import io
import pickle
from typing import Any

import numpy as np

from jaxenergy.errors import UsageError


def read_plain_pickle(content: bytes, what: str) -> dict[str, Any]:
    """Reads a pickled dict, written by Python 2 or 3, with numpy 1 or 2.

    Args:
        content: the pickle.
        what: names it in errors.

    Returns:
        The dict with its keys as str and arrays as `np.ndarray`; other values as they were stored,
        with the strings of Python 2 as bytes.

    Raises:
        UsageError: the pickle names anything but arrays and plain values, is broken, or is no dict.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a hostile or cut-off pickle can fail in any way
        raise UsageError(f"{what} cannot be read as a pickle of plain arrays: {error}") from error
    if type(value) is not dict:
        raise UsageError(f"{what} holds a {type(value).__name__}; expected a dict.")
    result = {}
    for key, entry in value.items():
        name = key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)
        result[name] = entry.build(what) if isinstance(entry, _Array) else entry
    return result


class _StandIn:
    """What a name in a pickle leads to.

    A pickle can set the state of anything it was given, the stand-in classes included; having
    `__setstate__` on the class makes that an error instead of a change to this module.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a state is set on something that has none")


class _Dtype(_StandIn):
    """Stands in for `numpy.dtype`; its state holds the byte order, which one byte has not."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_: object):
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _Array(_StandIn):
    """Stands in for `numpy.ndarray` and for the function that makes an empty one."""

    __slots__ = ("state",)

    def __init__(self, *_: object):
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def build(self, what: str) -> np.ndarray:
        """The array, if its state is that of a plain uint8 array."""
        match self.state:
            case (int(), tuple() as shape, _Dtype(code="u1" | "|u1" | "B"), fortran, content):
                pass
            case _:
                raise UsageError(f"{what} holds an array that is not plain uint8.")
        if isinstance(content, str):  # Python 2 strings re-pickled by Python 3
            content = content.encode("latin1", "replace")
        sizes_are_plain = all(type(size) is int and size >= 0 for size in shape)
        if not (isinstance(content, bytes) and sizes_are_plain):
            raise UsageError(f"{what} holds an array without plain content.")
        if len(content) != _product(shape):
            raise UsageError(
                f"{what} holds an array {list(shape)} with {len(content)} bytes of content; "
                f"expected {_product(shape)}."
            )
        flat = np.frombuffer(content, np.uint8)
        return flat.reshape(shape, order="F" if fortran else "C")


class _Encoded(_StandIn):
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes in old protocols."""

    def __new__(cls, text: object = None, encoding: object = None, *_: object):
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("_codecs.encode is allowed for latin1 strings only")
        return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Encoded,
}


class _PlainUnpickler(pickle._Unpickler):
    """An unpickler for which nothing exists but the names allowed.

    It is the one written in Python: nine bytes can make the one in C fill all memory (an index into
    its memo becomes the size of a table), and reading these files takes it no longer.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}; allowed are arrays, lists, dicts, numbers and strings"
            ) from None


def _product(shape: tuple[int, ...]) -> int:
    """How many elements an array of a shape has, in whole numbers that cannot overflow."""
    elements = 1
    for size in shape:
        elements *= size
    return elements
