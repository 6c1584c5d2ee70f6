"""Rows as an Arrow record batch: None becomes null, NaN stays NaN.

Of a step like the one before, what was observed where is in Arrow already: `Layout`s are met again, and their columns kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nanhunt.stats.columns import COUNTS, StatsColumns
from nanhunt.trace.schema import COLUMNS, ArrowSchema, Observation
from nanhunt.trace.step_rows import Layout, StepRows

__all__ = ["record_batch"]

_TYPES = {column.name: column.type for column in COLUMNS}
#: The columns that a site has, by the names of its fields.
_OF_A_SITE = {"phase": "phase", "pass": "pass_", "role": "role", "module": "module", "name": "name", "op": "op",
              "source": "source", "dtype": "dtype", "shape": "shape"}  # fmt: skip
_MEASURED = (*COUNTS, "amax", "amin", "mean", "std", "l2", "exp_lo", "exp_hist")
_KNOWN: WeakKeyDictionary[Layout, dict[str, Any]] = WeakKeyDictionary()


def record_batch(rows: Sequence[Observation]) -> Any:
    """Return rows as one batch in the trace's schema."""
    held = rows if isinstance(rows, StepRows) else StepRows.of(rows)
    columns = _sites(held.layout) | _measured(held)
    columns |= {name: pa.array(getattr(held, name), _TYPES[name]) for name in ("step", "micro", "rank", "seq")}
    columns["value"] = pa.array(held.value, _TYPES["value"], mask=~held.has_value)
    return pa.record_batch([columns[column.name] for column in COLUMNS], schema=ArrowSchema)


def _sites(layout: Layout) -> dict[str, Any]:
    if layout not in _KNOWN:
        _KNOWN[layout] = {
            column: _array([getattr(site, field) for site in layout.sites], _TYPES[column])
            for column, field in _OF_A_SITE.items()
        }
    return _KNOWN[layout]


def _array(values: Sequence[Any], kind: pa.DataType) -> Any:
    """Return the Arrow array of a column."""
    try:
        return pa.array(values, type=kind)
    except UnicodeEncodeError:
        # A file name that is not UTF-8 reaches Python with lone surrogates, which Arrow refuses.
        values = [v if v is None else v.encode("utf-8", "backslashreplace").decode() for v in values]
        return pa.array(values, type=kind)


def _measured(rows: StepRows) -> dict[str, Any]:
    """Return `numel` to `exp_hist`; a magnitude that no element has is null, and so is all of a row without statistics."""
    stats, missing = rows.stats, rows.ticket < 0
    places = np.where(missing, 0, rows.ticket)
    if not len(stats):
        return {name: pa.nulls(len(rows), _TYPES[name]) for name in _MEASURED}
    finite = stats.finite
    some = np.maximum(finite, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = stats.sum / some
        # the product may overflow, and rounding may leave less than nothing
        std = np.sqrt(np.maximum(stats.sum_of_squares / some - mean * mean, 0.0))
    found: dict[str, Any] = {name: (getattr(stats, name), None) for name in COUNTS}
    found["amax"] = (stats.amax, finite == 0)
    found["amin"] = (stats.amin, finite <= stats.zero)
    found |= {"mean": (mean, finite == 0), "std": (std, finite == 0), "l2": (np.sqrt(stats.sum_of_squares), None)}
    found["exp_lo"] = (stats.lowest, stats.bins < 0)
    columns = {}
    for name, (values, absent) in found.items():
        gone = missing if absent is None else missing | absent[places]
        columns[name] = pa.array(values[places], _TYPES[name], mask=gone)
    columns["exp_hist"] = _histograms(stats.take(rows.ticket[~missing]), missing)
    return columns


def _histograms(stats: StatsColumns, missing: npt.NDArray[np.bool_]) -> Any:
    """Return the lists of counts; null where none were counted."""
    bins = np.full(len(missing), -1, np.int64)
    bins[~missing] = stats.bins
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.maximum(bins, 0))]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(stats.counts), _TYPES["exp_hist"], mask=pa.array(bins < 0))
