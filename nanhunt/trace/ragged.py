"""Lists of whole numbers of different lengths, as numpy arrays: how they are added up by exponent, and made Arrow's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nanhunt.trace.columns import integers, lengths_of

__all__ = ["Histograms", "as_column", "as_lists"]

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histograms:
    """Counts by binary exponent, a row each: the first bin's exponent, how many bins, all counts one after another."""

    low: _Ints
    bins: _Ints
    counts: _Ints
    #: rows that have counts at all
    known: _Bools

    @classmethod
    def of(cls, table: Any) -> Histograms:
        """Return those of a table's rows."""
        lists = table.column("exp_hist").combine_chunks()
        return cls(
            low=integers(table.column("exp_lo")),
            bins=lengths_of(lists),
            counts=integers(lists.flatten()),
            known=integers(lists.value_lengths(), null=-1) >= 0,
        )

    def take(self, rows: _Ints) -> Histograms:
        """Return some rows."""
        bins, starts = self.bins[rows], (np.cumsum(self.bins) - self.bins)[rows]
        return Histograms(
            low=self.low[rows], bins=bins, counts=self.counts[_spans(starts, bins)], known=self.known[rows]
        )

    def without(self, rows: _Bools) -> Histograms:
        """Return them with no count in some rows."""
        bins = np.where(rows, 0, self.bins)
        return Histograms(low=self.low, bins=bins, counts=self.counts[np.repeat(~rows, self.bins)], known=self.known)

    def followed_by(self, other: Histograms) -> Histograms:
        """Return the rows of both."""
        both = [
            np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("low", "bins", "counts", "known")
        ]
        return Histograms(low=both[0], bins=both[1], counts=both[2], known=both[3])

    def plus(self, other: Histograms, at: _Ints) -> Histograms:
        """Return the sums, `other`'s rows added to the rows `at`, each at most once; unknown where one of both is."""
        low, high = self.low.copy(), self.low + self.bins
        some, has = other.bins > 0, self.bins[at] > 0
        there = at[some]
        low[there] = np.where(has[some], np.minimum(low[there], other.low[some]), other.low[some])
        ends = other.low[some] + other.bins[some]
        high[there] = np.where(has[some], np.maximum(high[there], ends), ends)
        bins = high - low
        counts, starts = np.zeros(int(bins.sum()), np.int64), np.cumsum(bins) - bins
        # bins of a row differ, and rows do not overlap: each place is met once
        counts[_spans(starts + self.low - low, self.bins)] += self.counts
        counts[_spans(starts[at] + other.low - low[at], other.bins)] += other.counts
        known = self.known.copy()
        known[at] &= other.known
        return Histograms(low=low, bins=bins, counts=counts, known=known)


def _spans(starts: _Ints, lengths: _Ints) -> _Ints:
    """Return starts[i], starts[i] + 1, … of so many each, one after another."""
    begins = np.cumsum(lengths) - lengths
    return np.repeat(starts - begins, lengths) + np.arange(int(lengths.sum()))


def as_column(values: npt.NDArray[Any], null: _Bools, kind: pa.DataType) -> Any:
    """Return numbers as an Arrow array without the help of pandas."""
    data = np.ascontiguousarray(values, {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}[kind])
    return pa.Array.from_buffers(kind, len(data), [_validity(null), pa.py_buffer(data)])


def as_lists(lengths: _Ints, values: _Ints, null: _Bools) -> Any:
    """Return lists as an Arrow array."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    child = pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, np.int64))])
    buffers = [_validity(null), pa.py_buffer(offsets)]
    return pa.ListArray.from_buffers(pa.list_(pa.int64()), len(lengths), buffers, children=[child])


def _validity(null: _Bools) -> Any:
    return pa.py_buffer(np.packbits(~null, bitorder="little")) if null.any() else None
