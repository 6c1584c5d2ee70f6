"""Columns of a table by tensor and step: millions of rows become one dictionary a tensor, and no object a row.

Tables are those of `Trace.table`, whose text is in dictionaries: a name is looked at once, however many rows have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.trace.columns import codes, floats, integers, mask

__all__ = ["by_place", "largest_by_place", "rows_whose"]

#: By module and name: a value by step.
Series = dict[tuple[str, str], dict[int, float]]
_Ints = npt.NDArray[np.int64]


def rows_whose(table: Any, column: str, holds: Callable[[str], bool]) -> Any:
    """Return the rows whose text in a column passes a test."""
    words, places = codes(table.column(column))
    return table.filter(mask(np.array([holds(word) for word in words])[places]))


def by_place(table: Any, value: str = "value") -> Series:
    """Return a column by (module, name), in the order of their first rows, and step; of several in a step the last."""
    steps, values = _steps_and(table, value)
    return {place: dict(zip(steps[at].tolist(), values[at].tolist(), strict=True)) for place, at in _places(table)}


def largest_by_place(table: Any, value: str) -> Series:
    """Return a column by (module, name) and step, both ascending; of several in a step the largest, NaN if there is none."""
    steps, values = _steps_and(table, value)
    found: Series = {}
    for place, rows in sorted(_places(table), key=lambda pair: pair[0]):
        at = rows[np.argsort(steps[rows], kind="stable")]
        own, first = np.unique(steps[at], return_index=True)
        found[place] = dict(zip(own.tolist(), np.fmax.reduceat(values[at], first).tolist(), strict=True))
    return found


def _steps_and(table: Any, value: str) -> tuple[_Ints, npt.NDArray[np.float64]]:
    """Return steps and values, NaN for null."""
    return integers(table.column("step")), floats(table.column(value))


def _places(table: Any) -> Iterator[tuple[tuple[str, str], _Ints]]:
    """Yield each (module, name) with its rows, in the order of their first ones."""
    if not table.num_rows:
        return
    modules, module = codes(table.column("module"))
    names, name = codes(table.column("name"))
    both = module * len(names) + name
    order = np.argsort(both, kind="stable")
    starts = np.flatnonzero(np.diff(both[order], prepend=-1))
    for rows in sorted(np.split(order, starts[1:]), key=lambda rows: int(rows[0])):
        yield (modules[module[rows[0]]], names[name[rows[0]]]), rows
