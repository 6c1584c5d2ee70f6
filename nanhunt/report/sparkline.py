"""A curve in one line of text, with the onset and every non-finite value marked ✗.

A cell stands for one step or, of a longer run than there are cells, for several; it shows the largest of them, because
a spike of one step is what the reader looks for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CROSS", "Cell", "sparkline"]

CROSS = "✗"
_LEVELS = "▁▂▃▄▅▆▇█"
#: a curve that spans more than this factor is drawn on a log scale: the rise before a spike would be one flat line
_LINEAR_SPAN = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One character of a sparkline; `mark` is "onset", "lead", "non-finite" or ''."""

    char: str
    mark: str = ""


def sparkline(
    steps: Sequence[int], values: Sequence[float], *, onset: int | None, width: int, lead: int | None = None
) -> list[Cell]:
    """Return at most `width` cells over `steps` (ascending); `onset` and `lead` are steps to mark.

    An onset that has no value of its own is marked at the next step that has one, or in a cell of its own at the end. The
    lead keeps its level, and is marked only where no cross is.
    """
    bad = None if onset is None else bisect_left(steps, onset)
    early = None if lead is None else bisect_left(steps, lead)
    beyond = bad is not None and bad >= len(values)
    count = min(len(values), max(width - beyond, 1))
    finite = [v for v in values if math.isfinite(v)]
    cells = []
    for i in range(count):
        start, stop = i * len(values) // count, (i + 1) * len(values) // count
        part = values[start:stop]
        if bad is not None and start <= bad < stop:
            cells.append(Cell(char=CROSS, mark="onset"))
        elif not all(math.isfinite(v) for v in part):
            cells.append(Cell(char=CROSS, mark="non-finite"))
        else:
            mark = "lead" if early is not None and start <= early < stop else ""
            cells.append(Cell(char=_level(max(part), finite), mark=mark))
    return [*cells, Cell(char=CROSS, mark="onset")] if beyond else cells


def _level(value: float, finite: Sequence[float]) -> str:
    """Return the block for a value between the smallest and the largest of the curve."""
    low, high = min(finite), max(finite)
    if low > 0 and high / low > _LINEAR_SPAN:
        low, high, value = math.log(low), math.log(high), math.log(value)
    # halves first: the difference of two numbers near the largest float would be infinite
    span = high / 2 - low / 2
    share = (value / 2 - low / 2) / span if span > 0 else 0.0
    return _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]
