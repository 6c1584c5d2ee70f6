"""Statistics of the parts of tensors, added up row by row, and written into a table's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.trace.columns import floats, integers, lengths_of
from nanhunt.trace.ragged import Histograms, as_column, as_lists
from nanhunt.trace.schema import ArrowSchema

__all__ = ["MEASURED", "ShardSums", "with_sums"]

_COUNTS = ("numel", "nan", "posinf", "neginf", "zero", "subnormal")
_SIZES = ("amax", "amin", "mean", "std", "l2")
#: Columns of statistics.
MEASURED = (*_COUNTS, *_SIZES, "exp_lo", "exp_hist")

_Ints = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True, eq=False)
class ShardSums:
    """Statistics of some rows that add up."""

    counts: dict[str, _Ints]
    amax: npt.NDArray[np.float64]
    amin: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    exponents: Histograms

    @classmethod
    def of(cls, table: Any, rows: _Ints) -> ShardSums:
        """Read them; NaN stands for an extreme that no element has."""
        counts = {name: integers(table.column(name))[rows] for name in _COUNTS}
        amax, amin, mean, l2 = (floats(table.column(name))[rows] for name in ("amax", "amin", "mean", "l2"))
        finite = counts["numel"] - counts["nan"] - counts["posinf"] - counts["neginf"]
        return cls(
            counts=counts,
            amax=amax,
            amin=amin,
            total=np.where(finite > 0, mean * finite, 0.0),
            squares=l2 * l2,
            exponents=Histograms.of(table).take(rows),
        )

    def add(self, other: ShardSums, at: _Ints) -> None:
        """Add rows of another to the rows `at`, each at most once."""
        for name, values in self.counts.items():
            values[at] += other.counts[name]
        self.amax[at] = np.fmax(self.amax[at], other.amax)
        self.amin[at] = np.fmin(self.amin[at], other.amin)
        self.total[at] += other.total
        self.squares[at] += other.squares
        self.exponents = self.exponents.plus(other.exponents, at)

    def without(self, rows: npt.NDArray[np.bool_]) -> ShardSums:
        """Return the sums with nothing seen in some rows."""
        return ShardSums(
            counts={name: np.where(rows, 0, values) for name, values in self.counts.items()},
            amax=np.where(rows, np.nan, self.amax),
            amin=np.where(rows, np.nan, self.amin),
            total=np.where(rows, 0.0, self.total),
            squares=np.where(rows, 0.0, self.squares),
            exponents=self.exponents.without(rows),
        )

    def sizes(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the columns of sizes, NaN for null."""
        counts = self.counts
        finite = counts["numel"] - counts["nan"] - counts["posinf"] - counts["neginf"]
        some = np.maximum(finite, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = self.total / some
            std = np.sqrt(np.maximum(self.squares / some - mean * mean, 0.0))
        gone = finite == 0
        return {
            "amax": self.amax,
            "amin": self.amin,
            "mean": np.where(gone, np.nan, mean),
            "std": np.where(gone, np.nan, std),
            "l2": np.sqrt(self.squares),
        }


def with_sums(table: Any, rows: _Ints, at: _Ints, sums: ShardSums, shapes: list[list[int]]) -> Any:
    """Return the table with the sums `at` in its rows."""
    columns: dict[str, Any] = {}
    for name, values in {**sums.counts, **sums.sizes()}.items():
        kind = ArrowSchema.field(name).type
        held = floats(table.column(name)) if name in _SIZES else integers(table.column(name), null=-1)
        held = held.copy()
        held[rows] = values[at]
        null = np.isnan(held) if name in _SIZES else held < 0
        columns[name] = as_column(np.where(null, 0, held), null, kind)
    columns |= _exponents(table, rows, sums.exponents.take(at))
    if "shape" in table.column_names:
        columns["shape"] = _shapes(table.column("shape"), rows, shapes)
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return table


def _exponents(table: Any, rows: _Ints, new: Histograms) -> dict[str, Any]:
    """Return `exp_lo` and `exp_hist` with new histograms in some rows."""
    old = Histograms.of(table)
    joined = old.followed_by(new)
    places = np.arange(len(old.low))
    places[rows] = len(old.low) + np.arange(len(rows))
    found = joined.take(places)
    lengths = np.where(found.known, found.bins, 0)
    counts = found.counts[np.repeat(found.known, found.bins)]
    return {
        "exp_lo": as_column(np.where(found.known, found.low, 0), ~found.known, ArrowSchema.field("exp_lo").type),
        "exp_hist": as_lists(lengths, counts, ~found.known),
    }


def _shapes(column: Any, rows: _Ints, shapes: list[list[int]]) -> Any:
    """Return the shapes with others in some rows."""
    lists = column.combine_chunks()
    lengths, null = lengths_of(lists), np.array([not v for v in lists.is_valid().to_pylist()], bool)
    sizes: list[Any] = np.split(integers(lists.flatten()), np.cumsum(lengths)[:-1])
    for row, shape in zip(rows.tolist(), shapes, strict=True):
        sizes[row] = np.array(shape, np.int64)
    null[rows] = False
    whole = np.concatenate(sizes) if sizes else np.zeros(0, np.int64)
    return as_lists(np.array([len(s) for s in sizes], np.int64), whole, null)
