"""NumPy arrays, scalars and random states out of a checkpoint, as plain numbers and texts alone.

torch's guarded unpickler takes NumPy's types where they are named as safe, and then sets their state as the file says.
That is not safe: the state of a dtype has its flags, and a file may describe a field of objects whose flags deny it. Bytes
of the file then are what NumPy takes for pointers, and the first look at such an array follows them. So each name of NumPy
stands for something here that makes the real thing of what it has looked at.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

__all__ = ["NUMPY_GLOBALS"]

#: Booleans, whole numbers, floats, complex numbers and texts, of a width that NumPy has or that a text needs.
_PLAIN = re.compile(r"[|<>=]?(?:[biu?][1248]?|f(?:2|4|8|16)|c(?:8|16|32)|[SUa]\d{1,6})")


class _Dtype:
    """A dtype while it is unpickled; `value` is the real one."""

    def __init__(self, spec: object, align: object = False, copy: object = False) -> None:
        if not isinstance(spec, str) or not _PLAIN.fullmatch(spec):
            raise ValueError(f"a NumPy dtype of {str(spec)[:40]!r}, which is no plain number or text")
        self.value = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order alone: all else of a plain dtype follows from its name."""
        _, order, subdtype, names, fields, *_ = state
        if (subdtype, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise ValueError("a NumPy dtype with fields, which is no plain number or text")
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array that is filled from bytes whose length fits, and from nothing else."""

    def __setstate__(self, state: Any) -> None:
        """Fill the array that `_reconstruct` made."""
        _, shape, dtype, is_fortran, data = state
        is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not (is_shape and isinstance(dtype, _Dtype) and isinstance(data, bytes)):
            raise ValueError("a NumPy array of something else than plain numbers or texts")
        if len(shape) > 32 or math.prod(shape) * dtype.value.itemsize != len(data):
            raise ValueError(f"a NumPy array of shape {shape!s:.80} with {len(data)} bytes")
        super().__setstate__((1, shape, dtype.value, bool(is_fortran), data))  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        """Pickle, and copy, as the array that it is."""
        return self.view(np.ndarray).__reduce__()


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """Return the empty array that pickle fills next."""
    if kind is not _Array:
        raise ValueError("a NumPy array of a class of its own")
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _scalar(dtype: object, data: object) -> Any:
    """Return the NumPy number that these bytes are."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != dtype.value.itemsize:
        raise ValueError("a NumPy scalar of something else than a plain number or text")
    return np.frombuffer(data, dtype.value, count=1)[0] if data else dtype.value.type()


def _empty(*arguments: object) -> bytes:
    """Return what the pickles of torch.save write for no bytes at all: a call of `bytes`."""
    if arguments:
        raise ValueError("a call of bytes with arguments")
    return b""


#: For `torch.serialization.safe_globals`. NumPy 2 renamed `numpy.core` to `numpy._core`; files carry the name of the version
#: that wrote them.
NUMPY_GLOBALS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_empty, "builtins.bytes"),
    *((_reconstruct, f"numpy.{package}.multiarray._reconstruct") for package in ("core", "_core")),
    *((_scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
]
