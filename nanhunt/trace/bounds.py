"""What no sound trace holds: values beyond what the writer can write, and files that would fill memory when read.

A trace may come from anywhere. Parquet and Arrow look after their own structure; that a step is no number below zero, and
that a file of a kilobyte does not become a gigabyte of rows, is looked after here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nanhunt.trace.columns import floats, integers, lengths_of
from nanhunt.trace.parquet_footer import footer_sizes

__all__ = ["is_compressed", "oversize", "unsound"]

#: Whole numbers up to this are floats too, which is what they become in a DataFrame.
_WHOLE = 1 << 53
#: Least and largest of whole numbers. Binary exponents are those of float64, subnormal ones included.
_RANGES = {
    **dict.fromkeys(("step", "micro", "rank", "seq", "numel", "nan", "posinf", "neginf", "zero", "subnormal"), (0, _WHOLE)),
    "exp_lo": (-1074, 1023),
}  # fmt: skip
#: Never null: where and when a row was observed, and what of.
_ALWAYS = ("step", "micro", "rank", "seq", "phase", "pass", "role", "module", "name")
#: Magnitudes over finite elements.
_MAGNITUDES = ("amax", "amin")
#: Bins of a histogram: every exponent of float64.
_BINS = 1074 + 1024
#: Rows of a group, and values of one of its columns: thirty times what the writer puts into one.
_ROWS, _VALUES, _BYTES = 1 << 21, 1 << 25, 1 << 30
#: Rows of a file for each of its bytes: the writer needs some fifteen bytes a row.
_ROWS_A_BYTE = 1


def unsound(table: Any) -> str:
    """Return what is wrong with the first of a table's columns that no writer wrote so; '' where none is."""
    for name in table.column_names:
        column = table.column(name)
        if name in _ALWAYS and column.null_count:
            return f"column {name} has rows without a value"
        if name in _RANGES:
            low, high = _RANGES[name]
            numbers = integers(column, null=low)
            if numbers.size and not low <= numbers.min() <= numbers.max() <= high:
                return f"column {name} has a value that is not between {low} and {high}"
        elif name in _MAGNITUDES:
            sizes = floats(column)
            if (np.isinf(sizes) | (sizes < 0)).any():
                return f"column {name} has a value that is no magnitude of a finite number"
        elif pa.types.is_list(column.type) and _has_odd_lists(column, _BINS if name == "exp_hist" else None):
            return f"column {name} has a list that is too long, or of numbers below zero"
    return ""


def _has_odd_lists(column: Any, longest: int | None) -> bool:
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # of no rows, or of more than one array holds
        return (
            any(_has_odd_lists(pa.chunked_array([part]), longest) for part in lists.chunks)
            if lists.num_chunks > 1
            else False
        )
    inner = lists.flatten()
    lengths = lengths_of(lists)
    if inner.null_count or (longest is not None and lengths.size and lengths.max() > longest):
        return True
    numbers = integers(inner)
    return bool(numbers.size) and bool(numbers.min() < 0 or numbers.max() > _WHOLE)


def oversize(path: Path) -> str:
    """Return why a Parquet file would become more than it can have been written from; '' where it would not."""
    size = path.stat().st_size
    try:
        rows, groups = footer_sizes(path)
    except ValueError as error:
        return str(error)
    if rows > max(_ROWS, _ROWS_A_BYTE * size):
        return f"it claims {rows:,} rows in {size:,} bytes"
    for group in groups:
        if group.rows > _ROWS or group.values > _VALUES or group.size > _BYTES:
            return f"a group of its rows claims {group.rows:,} rows, {group.values:,} values in a column, {group.size:,} bytes"
    return ""


def is_compressed(message: Any) -> bool:
    """Whether a message of an Arrow stream holds compressed rows, which nanhunt never writes, and which have no bound.

    Arrow decompresses without asking, so the mark is looked up in the message's own header: field 3 of the record batch,
    which is field 2 of the message (format/Message.fbs). The header was checked by Arrow when the message was read.
    """
    data = memoryview(message.metadata)
    header = _field(data, struct.unpack_from("<I", data, 0)[0], 2)
    return message.type == "record batch" and header is not None and _field(data, header, 3) is not None


def _field(data: memoryview, table: int, index: int) -> int | None:
    """Return where a field of a flatbuffer's table points to; None where the table does not have it."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    at = 4 + 2 * index
    offset = struct.unpack_from("<H", data, entries + at)[0] if at < struct.unpack_from("<H", data, entries)[0] else 0
    return table + offset + struct.unpack_from("<I", data, table + offset)[0] if offset else None
