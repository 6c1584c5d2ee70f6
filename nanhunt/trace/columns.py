"""Arrow columns as numpy arrays, by ways that do not import pandas: starting it takes longer than reading a small trace.

`to_numpy`, `pyarrow.scalar`, `pyarrow.array`, and whatever calls them (`fill_null`), look whether pandas is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["codes", "floats", "integers", "lengths_of", "lines_of", "mask"]

_DTYPES = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}


def floats(column: Any) -> npt.NDArray[np.float64]:
    """Return a column or array of numbers as float64, NaN for null."""
    numbers = _numbers(column.cast(pa.float64()), np.float64)
    return np.where(_is_null(column), np.nan, numbers) if column.null_count else numbers


def integers(column: Any, null: int = 0) -> npt.NDArray[np.int64]:
    """Return a column or array of whole numbers as int64, with a number in the place of null."""
    numbers = _numbers(column, np.int64)
    return np.where(_is_null(column), null, numbers) if column.null_count else numbers


def codes(column: Any) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return a column of text as its words and each row's place among them; a null is at the end, as ''."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = encoded.unify_dictionaries().combine_chunks()
    words = [*encoded.dictionary.to_pylist(), ""]
    return words, integers(encoded.indices, null=len(words) - 1)


def lengths_of(lists: Any) -> npt.NDArray[np.int64]:
    """Return the length of each list of an array, 0 for null."""
    return integers(lists.value_lengths())


def lines_of(
    table: Any, numbers: dict[tuple[str, str, str], int]
) -> tuple[npt.NDArray[np.int64], list[tuple[int, str]]]:
    """Return each row's number in `numbers`, which gets the table's new (module, role, name), and (number, dtype) as they come.

    By way of the dictionaries, so that Python sees a combination once a table.
    """
    columns = [codes(table.column(name)) for name in ("module", "role", "name", "dtype")]
    code = np.zeros(table.num_rows, np.int64)
    for words, places in columns:
        code = code * len(words) + places
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    lines, dtypes = np.zeros(first.size, np.int64), []
    for at in np.argsort(first):  # in the order of the rows
        module, role, name, dtype = (words[places[first[at]]] for words, places in columns)
        lines[at] = numbers.setdefault((module, role, name), len(numbers))
        dtypes.append((int(lines[at]), dtype))
    return lines[inverse], dtypes


def mask(holds: npt.NDArray[np.bool_]) -> Any:
    """Return booleans as an Arrow array, to filter with."""
    return pa.Array.from_buffers(pa.bool_(), holds.size, [None, pa.py_buffer(np.packbits(holds, bitorder="little"))])


def _chunks(column: Any) -> list[Any]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _numbers(column: Any, dtype: Any) -> npt.NDArray[Any]:
    """Return the numbers of a column; what stands in the place of a null is anything."""
    parts = [_numbers_of(chunk) for chunk in _chunks(column) if len(chunk)]
    if len(parts) == 1:
        return parts[0].astype(dtype, copy=False)
    return np.concatenate(parts, dtype=dtype) if parts else np.zeros(0, dtype)


def _numbers_of(chunk: Any) -> npt.NDArray[Any]:
    """Return the numbers of an array; a damaged stream may announce more of them than its buffer holds."""
    dtype, end = np.dtype(_DTYPES[chunk.type]), chunk.offset + len(chunk)
    data = chunk.buffers()[1]
    if data.size < end * dtype.itemsize:
        raise pa.ArrowInvalid(f"a column of {end} numbers has a buffer of {data.size} bytes")
    return np.frombuffer(data, dtype, count=end)[chunk.offset :]


def _is_null(column: Any) -> npt.NDArray[np.bool_]:
    """Return which values of a column are null."""
    parts = []
    for chunk in _chunks(column):
        validity = chunk.buffers()[0]
        if validity is None:
            parts.append(np.zeros(len(chunk), np.bool_))
        else:
            first = chunk.offset // 8  # a slice of a large array unpacks its own bytes alone
            bytes_ = np.frombuffer(validity, np.uint8)[first : (chunk.offset + len(chunk) + 7) // 8]
            bits = np.unpackbits(bytes_, bitorder="little")[chunk.offset - 8 * first :]
            parts.append(bits[: len(chunk)] == 0)
    return np.concatenate(parts)
