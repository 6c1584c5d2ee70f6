"""StatsColumns: the statistics of many tensors, a column a statistic, as they come from a device and go into a trace.

A step has a thousand tensors. As values of their own they would take 20 µs each to make, and as much to take apart again;
as columns they take a thousandth of that. One that somebody asks for is made a `TensorStats` then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats

__all__ = ["COUNTS", "EMPTY", "REALS", "UNMEASURED", "StatsColumns"]

#: The columns that are whole numbers, and those that are not.
COUNTS = ("numel", "nan", "posinf", "neginf", "zero", "subnormal")
REALS = ("amax", "amin", "sum", "sum_of_squares")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsColumns:
    """A row a tensor; `bins` is -1 where no exponents were counted, and else how many of `counts` are this row's.

    `lowest` is the exponent of the first of them. A tensor that could not be measured has a `numel` of -1.
    """

    numel: Ints
    nan: Ints
    posinf: Ints
    neginf: Ints
    zero: Ints
    subnormal: Ints
    amax: Floats
    amin: Floats
    sum: Floats
    sum_of_squares: Floats
    lowest: Ints
    bins: Ints
    #: of all rows, one behind the other
    counts: Ints

    def __len__(self) -> int:
        return len(self.numel)

    def __getitem__(self, row: int) -> TensorStats | None:
        """Return one tensor's statistics; None of what could not be measured."""
        row = range(len(self))[row]
        if self.numel[row] < 0:
            return None
        exponents = None
        if self.bins[row] >= 0:
            begin = int(np.maximum(self.bins[:row], 0).sum())
            counts = tuple(self.counts[begin : begin + int(self.bins[row])].tolist())
            exponents = ExponentHistogram(lowest=int(self.lowest[row]) if counts else 0, counts=counts)
        numbers: dict[str, Any] = {name: int(getattr(self, name)[row]) for name in COUNTS}
        numbers |= {name: float(getattr(self, name)[row]) for name in REALS}
        return TensorStats(**numbers, exponents=exponents)

    @property
    def finite(self) -> Ints:
        """Finite elements of each."""
        found: Ints = self.numel - self.nan - self.posinf - self.neginf
        return found

    @classmethod
    def of(cls, rows: Sequence[TensorStats | None]) -> Self:
        """Put values into columns."""
        held = [TensorStats(numel=-1) if stats is None else stats for stats in rows]
        exponents = [stats.exponents for stats in held]
        columns: dict[str, Any] = {name: np.array([getattr(s, name) for s in held], np.int64) for name in COUNTS}
        columns |= {name: np.array([getattr(s, name) for s in held], np.float64) for name in REALS}
        return cls(
            **columns,
            lowest=np.array([0 if e is None else e.lowest for e in exponents], np.int64),
            bins=np.array([-1 if e is None else len(e.counts) for e in exponents], np.int64),
            counts=np.array([c for e in exponents if e is not None for c in e.counts], np.int64),
        )

    @classmethod
    def of_bins(
        cls, columns: dict[str, Any], bins: npt.NDArray[Any] | None, lowest: int, *, every: Ints | None = None
    ) -> Self:
        """Put columns and a matrix of exponents' counts together, (rows, bins), the first bin that of 2^`lowest`.

        Empty bins at both ends of a row are left out; without a matrix no exponents were counted. `every` is what each
        row's counts are multiplied by, those of -1 left out: they stand for one.
        """
        rows = len(columns["numel"])
        if bins is None:
            none = np.full(rows, -1, np.int64)
            return cls(**columns, lowest=np.zeros(rows, np.int64), bins=none, counts=np.zeros(0, np.int64))
        width = bins.shape[1]
        held, column = np.divmod(np.flatnonzero(bins), max(1, width))
        used = np.bincount(held, minlength=rows)
        ends = np.cumsum(used)
        there = used > 0
        first, last = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        first[there], last[there] = column[(ends - used)[there]], column[ends[there] - 1] + 1
        lengths = last - first
        behind = np.cumsum(lengths) - lengths
        places = np.repeat(np.arange(rows) * width + first - behind, lengths) + np.arange(int(lengths.sum()))
        counts = bins.reshape(-1)[places].astype(np.int64)
        if every is not None:
            counts = np.where(counts < 0, 1, counts * every.repeat(lengths))
        lowest_of = np.where(there, lowest + first, 0).astype(np.int64)
        return cls(**columns, lowest=lowest_of, bins=lengths, counts=counts)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def take(self, rows: Ints) -> Self:
        """Return these rows, in this order."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        lengths = np.maximum(self.bins, 0)
        begins = np.cumsum(lengths) - lengths
        wanted = lengths[rows]
        # of each count that is kept, where it lies now: its row's begin, and how far behind that it is
        ends = np.cumsum(wanted)
        places = np.repeat(begins[rows] - (ends - wanted), wanted) + np.arange(int(wanted.sum()))
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "counts"}
        return type(self)(**columns, counts=self.counts[places])


#: What could not be measured.
UNMEASURED = StatsColumns.of([None])
EMPTY = StatsColumns.of([])
