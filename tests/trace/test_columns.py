"""Columns as arrays are what pyarrow itself makes of them, nulls and slices included."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nanhunt.trace.columns import codes, floats, integers, lengths_of, mask

NUMBERS = [[1, None, -3], [], [2**40, 7], [None]]


def chunked(kind: Any) -> Any:
    small = [[None if v is None else min(v, 2**30) for v in chunk] for chunk in NUMBERS]
    return pa.chunked_array([pa.array(chunk, kind) for chunk in small], kind)


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float64()])
@pytest.mark.parametrize("part", [slice(0, 6), slice(1, 5), slice(3, 3), slice(4, 5)])
def test_numbers_are_those_of_the_column(kind, part):
    column = chunked(kind).slice(part.start, part.stop - part.start)
    values = column.to_pylist()
    np.testing.assert_array_equal(floats(column), [np.nan if v is None else v for v in values])
    if kind != pa.float64():
        np.testing.assert_array_equal(integers(column, null=-1), [-1 if v is None else v for v in values])


def test_whole_numbers_keep_all_digits():
    assert integers(pa.chunked_array([[2**63 - 1, -(2**63)]])).tolist() == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("encoded", [False, True])
def test_codes_stand_for_the_words_whatever_each_chunk_calls_them(encoded):
    texts = [["b", None, "a"], ["a", "c"], []]
    arrays = [pa.array(t, pa.string()) for t in texts]
    kind = pa.dictionary(pa.int32(), pa.string())
    column = pa.chunked_array([a.dictionary_encode() for a in arrays], kind) if encoded else pa.chunked_array(arrays)
    words, places = codes(column)
    assert [words[place] for place in places] == ["b", "", "a", "a", "c"]
    assert places[1] == len(words) - 1


def test_lengths_and_masks():
    lists = pa.array([[1, 2], None, [], [3]], pa.list_(pa.int64()))
    assert lengths_of(lists).tolist() == [2, 0, 0, 1]
    holds = np.arange(19) % 3 == 0
    assert mask(holds).to_pylist() == holds.tolist()
    assert mask(holds[:0]).to_pylist() == []


def test_no_column_needs_pandas():
    code = """
import sys, numpy as np, pyarrow as pa
from nanhunt.trace.columns import codes, floats, integers, mask
batch = pa.record_batch([pa.Array.from_buffers(pa.int64(), 2, [None, pa.py_buffer(np.array([1, 2]))])], ["a"])
column = pa.Table.from_batches([batch]).filter(mask(np.array([True, False]))).column("a")
assert floats(column).tolist() == integers(column).tolist() == [1]
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
